/* One POST /v1/completions or /v1/chat/completions from parsed body to last byte.
 *
 *     completion_open       parse, validate, tokenize, submit      (a connection's thread)
 *     completion_read ...   whatever is new, as bytes of the reply (the same connection's threads,
 *                           one at a time)
 *     completion_free       cancels what still runs, waits for the engine to let go (within a
 *                           step), frees
 *
 * The engine's notify goes straight to `notify(ctx)`, from the engine's thread: it must only wake
 * whoever calls completion_read. completion_read itself calls it too, when it returns
 * COMPLETION_DATA and has more to say at once (each call does a bounded piece of work). */
#pragma once

#include "api/api.h"

enum completion_kind { COMPLETION_TEXT, COMPLETION_CHAT };

struct completion;

/* Whom a completion is for. */
struct completion_caller {
    uint64_t cache_salt; /* prefixes are shared within one salt only */
    /* Is told before submission how many tokens the completion may take in all, prompts and new
     * ones; may refuse. NULL: anything goes. */
    bool (*charge)(void *ctx, int64_t tokens, struct error *err);
    /* After a charge, once, when the completion ends or fails: what it did not take. From the
     * thread of completion_open, completion_read or completion_free. */
    void (*refund)(void *ctx, int64_t tokens);
    void *ctx;
};

/* On failure nothing is left behind and *err says what to answer. caller: copied; NULL: anyone. */
bool completion_open(const struct api_context *c, enum completion_kind kind, const char *body,
                     size_t n, const struct completion_caller *caller, void (*notify)(void *ctx),
                     void *ctx, struct completion **out, struct error *err) MUST_CHECK;

/* text/event-stream, or one application/json? */
bool completion_is_stream(const struct completion *c);

enum completion_status {
    COMPLETION_DATA,  /* bytes were appended */
    COMPLETION_WAIT,  /* nothing yet: notify will be called */
    COMPLETION_ENDED, /* all has been said (bytes may have been appended) */
};
/* Appends what is new to `out`. Stream: SSE events ("data: {...}\n\n"), one a token, at the end
 * "data: [DONE]\n\n"; a failing stream gets an error event, then [DONE]. Else: the whole reply once
 * all choices are done, in pieces; a request that failed (deadline, shutdown) ends with `*err` set
 * and no bytes: answer with that error. */
enum completion_status completion_read(struct completion *c, struct buf *out, struct error *err);

/* Ends it early; completion_read goes on to COMPLETION_ENDED. Any thread. */
void completion_cancel(struct completion *c);
void completion_free(struct completion *c); /* NULL-safe */

/* For logs and metrics, final once COMPLETION_ENDED. Times in ns by clock_ns, 0: did not happen. */
struct completion_summary {
    char id[48];              /* "cmpl-...", "chatcmpl-..." */
    int32_t prompt_tokens, cached_tokens, completion_tokens;
    int64_t queued_ns;        /* submission to admission (the longest of its prompts) */
    int64_t first_token_ns;   /* submission to first token */
    int64_t total_ns;
    const char *finish;       /* of the first choice */
};
void completion_summary(const struct completion *c, struct completion_summary *out);
