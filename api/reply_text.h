/* From a choice's tokens to the text and log-probabilities of the reply, token by token as they
 * are published. Streaming and whole replies go through the same steps, so their texts are equal.
 *
 * Two positions walk over the generated tokens. `ahead` feeds the stop matcher; `shown` follows it
 * and shows a token once all its bytes are safe (no stop string can begin inside it), cut at the
 * stop string once the choice has ended. Bytes of an unfinished UTF-8 character wait in `carry`.
 * The state is a few integers: nothing here allocates, but for the output. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/engine.h"

enum logprob_shape { LOGPROBS_NONE, LOGPROBS_COMPLETIONS, LOGPROBS_CHAT };

/* What the choices of one request have in common. Read-only. */
struct reply_source {
    const struct tokenizer *tokenizer; /* NULL: no text */
    const struct engine_request *request;
    enum logprob_shape shape;
    bool echo;       /* begin with the prompt */
    bool text_start; /* as in engine_params: chat replies lose SentencePiece's leading space */
};

struct reply_cursor {
    int32_t choice;   /* of the request */
    int32_t n_prompt; /* prompt tokens shown (echo) */
    int32_t n_ahead, n_shown;
    int64_t shown_bytes; /* of the n_shown tokens, before any replacement */
    struct token_decoder decode_ahead, decode_shown;
    struct stop_matcher stop;
    char carry[4];
    int32_t n_carry;
    int64_t n_chars; /* code points shown so far: text_offset */
    bool ended;      /* everything has been shown */
};

/* What one or more steps added: pieces of JSON. All buffers of one request share a limit. */
struct reply_part {
    struct buf text;    /* the inside of a JSON string */
    struct buf tokens;  /* COMPLETIONS: items of "tokens"; CHAT: items of "content" */
    struct buf logprobs, top, offsets; /* COMPLETIONS: items of the other three arrays */
    int32_t n_tokens;   /* items */
};

void reply_part_init(struct reply_part *p, size_t limit);
void reply_part_clear(struct reply_part *p);
void reply_part_free(struct reply_part *p);
bool reply_part_empty(const struct reply_part *p);
bool reply_part_failed(const struct reply_part *p);

void reply_cursor_init(struct reply_cursor *c, const struct reply_source *s, int32_t choice);
/* Is what comes next the echo of the prompt? */
bool reply_in_prompt(const struct reply_cursor *c, const struct reply_source *s);
/* Adds to `part` what at most max_tokens more tokens bring, of the prompt or of the reply. Returns
 * how many it looked at: 0 means that there is nothing new until the engine publishes more (or
 * c->ended; what is left in the carry is shown then). The connection's thread. */
int32_t reply_advance(struct reply_cursor *c, const struct reply_source *s, int32_t max_tokens,
                      struct reply_part *part);
