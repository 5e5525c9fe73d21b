/* What completion.c (opening, ending) and completion_read.c (rendering) share. Not for others. */
#pragma once

#include "api/completion.h"
#include "api/reply_text.h"
#include "api/request.h"
#include "base/arena.h"
#include "base/buf.h"

/* One choice of the reply. */
struct reply_choice {
    struct reply_cursor cursor;
    bool begun;  /* stream: its first chunk is out (chat: the role) */
    bool closed; /* its finish_reason is out */
};

/* Shape letters here: N prompts, n choices per prompt. Choice j of prompt i is number i * n + j. */
struct completion {
    const struct api_context *api;
    enum completion_kind kind;
    void (*notify)(void *ctx);
    void *notify_ctx;
    struct completion_caller caller;
    int64_t charged; /* tokens that the caller was charged for and that are not settled yet */
    bool submitted;
    struct arena arena;
    struct completion_params params;
    struct token_ids *ids;            /* [N] of text prompts; empty for prompts given as ids */
    struct engine_request **requests; /* [N] */
    struct reply_source *sources;     /* [N] */
    struct reply_choice *choices;     /* [N n] */
    int32_t n_choices;
    int32_t stop_ids[SAMPLE_MAX_STOP_IDS];
    int32_t n_stop_ids;
    char id[48];
    int64_t created; /* Unix seconds */

    /* completion_read's own. */
    struct reply_part part;
    int32_t next; /* not a stream: the choice to render next */
    bool begun;   /* not a stream: the head is out, the best are picked */
    bool ended;
};

/* All has been said, or nothing ever will be: the caller gets back what was not used. */
void completion_settle(struct completion *c);
