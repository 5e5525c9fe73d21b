/* The engine: one thread that owns the device and runs steps at its own pace: admit, pick the batch
 * (decodes first, then a bounded chunk of prefill), run it, sample, publish tokens.
 *
 * A request's life (the engine thread takes every edge but the first):
 *
 *   engine_submit           pages reserved         prompt done        stop, length, cancel, deadline
 *  ───────────────▶ QUEUED ───────────────▶ RUNNING: prefill ──▶ decode ────────────────────▶ DONE
 *        │             └───────────────────── cancel, deadline, shutdown ─────────────────────────▲
 *        └ refused: ERR_BUSY (queue full), ERR_NO_FIT (never fits), ERR_INVALID,
 *          ERR_UNAVAILABLE (draining)
 *
 * Promises: an accepted request finishes (its pages for prompt + max_tokens, times n, are reserved
 * at admission); the same request with a seed or at temperature 0 gives the same tokens and
 * log-probabilities whatever runs beside it; a canceled one frees its pages within a step; after
 * engine_open the engine allocates nothing. Requests are admitted in order of arrival.
 *
 * Any thread may submit, cancel and read what has been published. Tokens are published by a
 * release store of `n_tokens`; `notify` then tells the owner (from the engine's thread; it must
 * not block). The engine never waits for a reader: a choice's tokens go to an array that was
 * sized for max_tokens at submission. */
#pragma once

#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "model/kv_pool.h"
#include "model/plan.h"
#include "model/sampler.h"
#include "model/stop.h"
#include "model/tokenizer.h"

struct engine;

enum { ENGINE_MAX_SEQS = 4096, ENGINE_MAX_BATCH_TOKENS = 65536 };
struct engine_options {
    enum dtype dtype;         /* of weights: f32, bf16, f16 (GPUs), q8_0,
                                 q4_0 (quantized as they are loaded) */
    /* Matrices that the file has quantized stay as they are, where gpt_keeps_formats; `dtype` (bf16
     * or f16) is what all else has. checkpoint_formats of the model, to live until engine_open or
     * engine_plan returns. NULL: all matrices have `dtype`. */
    const struct weight_formats *formats;
    enum dtype kv_dtype;      /* of the KV cache: f32, bf16, q8_0; KV_AUTO: of the activations */
    int32_t max_seqs;         /* sequences that run at once (n counts n) */
    int32_t max_batch_tokens; /* rows of one step: decodes plus a prefill chunk */
    int32_t max_queue;        /* requests waiting */
    int64_t max_context;      /* 0: the model's block_size */
    int64_t kv_bytes;         /* KV pool; 0: enough for max_seqs/4 full sequences, at least one,
                                 at most what memory_budget leaves */
    int64_t memory_budget;    /* 0: no limit. Over it: ERR_NO_FIT with the numbers */
    bool prefix_cache;
};
/* bf16, 16 sequences, 512 rows, 256 queued, prefix cache on. */
void engine_options_init(struct engine_options *o);

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELED, FINISH_DEADLINE,
                     FINISH_SHUTDOWN, FINISH_ERROR };
const char *finish_reason_name(enum finish_reason r); /* OpenAI's words for stop and length */

/* What a client asks. Borrowed until the request is DONE. */
struct engine_params {
    const int32_t *prompt; /* n_prompt >= 1 ids below the vocabulary's size */
    int32_t n_prompt;
    int32_t max_tokens;    /* per choice; 0 only with prompt_logprobs */
    int32_t n;             /* choices, 1..max_seqs; the prompt is computed once */
    struct sample_params sampling;
    int32_t n_top;         /* alternatives to report per token, 0..SAMPLE_MAX_TOP */
    bool prompt_logprobs;  /* score the prompt: log-probability (and n_top) of each prompt token */
    bool ignore_eos;
    bool text_start;       /* the reply begins a text (chat) instead of going on from the prompt:
                              decides about a SentencePiece tokenizer's leading space, for stop
                              strings */
    struct stop_list stops;           /* matched against decoded text; needs a tokenizer */
    const int32_t *stop_ids; int32_t n_stop_ids; /* tokens that end a choice (eos and its kind) */
    int64_t deadline_ns;   /* clock_ns() time after which it is abandoned; 0: none */
    uint64_t cache_salt;   /* prefixes are shared within one salt only */
    /* Something was published or the request is DONE; may be NULL. Called from the engine's thread
     * with none of its locks held; it must not block, nor free the request. No call comes once
     * engine_request_free has returned. */
    void (*notify)(void *ctx);
    void *ctx;
};

/* One token as published. The text of a final stop token is not part of the reply: a choice that
 * ended by a stop id has that token last in its list, with `is_stop` set. */
struct engine_token {
    int32_t id;
    float logprob;
    bool is_stop;
};

struct engine_choice {
    struct engine_token *tokens;        /* [max_tokens] */
    struct token_logprob *top;          /* [max_tokens, n_top]; NULL when n_top == 0 */
    int32_t *n_top_of;                  /* unused entries of top have id -1 */
    _Atomic int32_t n_tokens;           /* published (acquire) */
    _Atomic int32_t finish;             /* enum finish_reason; set after the last token */
    int64_t text_bytes;                 /* FINISH_STOP by a stop string: bytes of decoded
                                           text before it (by token_decode, `started` unless
                                           text_start); else -1. Read after finish */
};

enum request_state { REQUEST_QUEUED, REQUEST_RUNNING, REQUEST_DONE };

struct engine_request {
    struct engine_params params;
    struct engine_choice *choices;      /* [n] */
    struct token_logprob *prompt_scores; /* [n_prompt]; entry 0 has id only. NULL unless asked */
    struct token_logprob *prompt_top;   /* [n_prompt, n_top] */
    _Atomic int32_t n_prompt_scored;    /* entries that are there (acquire);
                                           1 from the start when asked */
    _Atomic int32_t state;              /* enum request_state; DONE is the
                                           last thing the engine writes */
    struct error error;                 /* FINISH_ERROR: why (ERR_DEVICE; ERR_MODEL: logits that are
                                           not finite, in this request alone). Read after DONE */
    bool first_failure;                 /* the engine's first ERR_MODEL: worth a line in a log */
    /* Times by clock_ns, 0 = not yet; read after DONE (first_token: after n_tokens > 0). */
    int64_t submitted_ns, admitted_ns, first_token_ns, done_ns;
    int32_t n_cached;                   /* prompt tokens that came from the prefix cache */
    /* The engine's. */
    _Atomic bool cancel;
    bool submitted;
    bool touched;                       /* in the list of requests to notify after this step */
    int32_t n_live;                     /* choices that have not ended */
    struct engine_request *next;        /* in whichever list it is */
    sem_t released;                     /* posted when the engine has
                                           touched it for the last time */
};

/* What an engine will take, without opening it: from the config alone, and of the device only its
 * sizes, so that one that is not there will do. `see` (may be NULL) gets every piece of both
 * arenas. Errors as engine_open's. */
struct engine_need {
    struct memory_plan memory;
    int32_t kv_pages;      /* of KV_PAGE_TOKENS tokens */
    enum dtype kv_dtype;   /* resolved */
    int64_t kv_page_bytes; /* all layers */
    int64_t max_context;   /* resolved */
};
bool engine_plan(const struct gpt_config *c, const struct engine_options *o, const struct device *d,
                 plan_listener see, void *ctx, struct engine_need *out,
                 struct error *err) MUST_CHECK;

/* Opens the model on the device: plans, allocates exactly the plan, loads, starts the thread. The
 * device and the tokenizer (may be NULL) must outlive it; the checkpoint may be closed after. */
bool engine_open(struct device *d, const struct checkpoint *ck, const struct tokenizer *t,
                 const struct engine_options *o, struct engine **out, struct error *err) MUST_CHECK;
/* Ends what runs (FINISH_SHUTDOWN), joins the thread, frees. All requests are DONE after. */
void engine_close(struct engine *e);
/* From now on submit answers ERR_UNAVAILABLE; what is accepted finishes. */
void engine_drain(struct engine *e);
bool engine_idle(const struct engine *e); /* nothing queued or running */

const struct gpt_config *engine_config(const struct engine *e);
const struct tokenizer *engine_tokenizer(const struct engine *e);
const char *engine_fingerprint(const struct engine *e);
/* Of the matrices that stay as the file has them; NULL: none does. */
const struct weight_formats *engine_formats(const struct engine *e);
int64_t engine_max_context(const struct engine *e);
int32_t engine_max_seqs(const struct engine *e);

/* A request with room for everything it may publish; checks the parameters against the model
 * and what can ever fit (ERR_INVALID, ERR_NO_FIT with the numbers). Freed with
 * engine_request_free, once DONE or never submitted. */
bool engine_request_new(const struct engine *e, const struct engine_params *params,
                        struct engine_request **out, struct error *err) MUST_CHECK;
void engine_request_free(struct engine_request *r); /* NULL-safe */
/* ERR_BUSY when the queue is full, ERR_UNAVAILABLE when draining,
 * ERR_DEVICE when the device has failed. */
bool engine_submit(struct engine *e, struct engine_request *r, struct error *err) MUST_CHECK;
/* All or none: for arrays of prompts. ERR_TOO_LARGE for more than the queue can ever hold. */
bool engine_submit_all(struct engine *e, struct engine_request **r, int32_t n, struct error *err)
    MUST_CHECK;
/* Asks to end it; DONE follows within a step. Harmless when it is DONE already. */
void engine_cancel(struct engine *e, struct engine_request *r);
/* Blocks until DONE (command line, tests). */
void engine_wait(struct engine *e, struct engine_request *r);

struct engine_memory {
    int64_t planned[N_MEMORY_COMPONENTS];
    int64_t allocated[N_MEMORY_COMPONENTS];
    int64_t in_use[N_MEMORY_COMPONENTS]; /* kv_cache: pages in use; staging: without loading's; the
                                            rest: all of it */
    int64_t peak[N_MEMORY_COMPONENTS];
    int64_t planned_bytes, allocated_bytes;
    int64_t host_bytes;                  /* of those: the host's arena, whatever the device */
    int64_t kv_page_bytes;               /* all layers */
};

struct engine_stats {
    struct engine_memory memory;
    struct kv_pool_stats kv;
    int32_t running, queued;             /* sequences; requests */
    int64_t n_steps, n_prefill_tokens, n_decode_tokens;
    int64_t n_model_failures;            /* requests that ended for logits that are not finite */
    int64_t last_progress_ns;            /* clock_ns when the last step began or ended,
                                            or when a request came to an idle engine:
                                            old while running or queued means stuck */
    int64_t busy_ns;                     /* time spent in steps */
    bool draining;
    bool device_failed;                  /* nothing runs any more: see engine_submit */
};
/* A consistent snapshot; never waits for a step. */
void engine_stats(const struct engine *e, struct engine_stats *out);
/* Where its memory lies, for whoever asks the driver about it:
 * the host's arena and the device's. */
struct engine_arena { const void *at; int64_t bytes; };
void engine_arenas(const struct engine *e, struct engine_arena out[2]);
/* What the device's driver says. False where there is none to ask. Any thread. */
bool engine_device_memory(const struct engine *e, struct device_memory *out);
