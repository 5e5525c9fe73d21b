/* Inside the engine: what its files share (engine.c life and thread, engine_plan.c memory,
 * engine_queue.c requests and their hand-over between threads, engine_admit.c sequences,
 * engine_step.c steps). */
#pragma once

#include <pthread.h>

#include "model/engine.h"
#include "model/gpt.h"

/* One running choice. Its tokens are history[0, n_history): the prompt, then what was sampled; keys
 * and values of the first n_computed are in its pages. While n_computed < n_prompt it prefills;
 * then it decodes, with exactly one token (the last) still to be computed. */
struct seq {
    struct engine_request *request; /* NULL: the slot is free */
    int32_t choice;
    bool waits_for_fork;    /* a choice beside the first, before the prompt's pages can be shared */
    int32_t *history;       /* [max_context] */
    int32_t n_history, n_computed;
    int32_t *pages;         /* [pages_per_seq] page table */
    int32_t n_pages;
    int32_t n_reserved;     /* pages promised, not yet taken */
    int32_t n_offered;      /* full pages that were offered to the prefix index */
    struct token_decoder decoder;
    struct stop_matcher stop;
    /* This step. */
    int32_t n_rows;         /* 0: not in it */
    int32_t out0, n_out;    /* its rows among the step's logits */
};

/* What a step hands to the device, and gets from it; one on the host, its twin on the device,
 * laid out alike. */
struct step_buffers {
    int32_t *tokens, *positions, *slots; /* [R] */
    int32_t *out_rows;                   /* [M] */
    struct span *spans;                  /* [max_seqs] */
    struct sample_request *requests;     /* [M] */
    int32_t *words;                      /* page tables and changes of logits,
                                            as many as there are, by offsets */
    struct sample_out *outs;             /* [M] what comes back */
};

struct step {
    struct step_buffers host, device;
    int32_t n_rows, n_spans, n_words, n_out, max_keys;
    int32_t *change_of;                  /* [V] scratch of sample_request_write */
};

/* Steps of up to so many rows, one of each sequence that decodes,
 * are recorded where the device can. */
enum { ENGINE_MAX_GRAPHS = 32 };

struct request_list { struct engine_request *head, *tail; };

struct engine {
    /* Fixed after engine_open. */
    struct device *device;
    const struct tokenizer *tokenizer;
    struct engine_options options; /* resolved: no zeros that mean something else */
    int32_t max_logit_rows, pages_per_seq;
    struct gpt gpt;
    struct kv_cache kv;
    int64_t kv_page_bytes;         /* all layers */
    void *workspace;
    int64_t workspace_bytes;
    float *load_staging;           /* gpt_load's; idle ever after */
    char fingerprint[17];
    struct plan device_plan, host_plan;
    plan_listener see;               /* of engine_plan */
    void *see_ctx;
    void *device_arena, *host_arena; /* this struct lies in host_arena */

    /* The engine thread's. */
    struct gpt_state state;
    struct kv_pool *pool;
    struct seq *seqs;              /* [max_seqs] */
    int32_t *active;               /* [max_seqs] slots in use, in order of admission */
    int32_t n_active;
    bool admission_blocked;        /* the first in line did not fit, and nothing has ended since */
    bool device_failed;
    struct request_list waiting;
    struct request_list touched;   /* to notify after this step */
    struct step step;
    struct device_graph *graphs[ENGINE_MAX_GRAPHS]; /* of n + 1 rows; NULL: not recorded */
    struct engine_stats live;      /* what `stats` becomes after this step */

    /* Between threads. */
    _Atomic int32_t n_queued;      /* submitted, not admitted, not ended */
    _Atomic int32_t n_pending;     /* submitted, not DONE */
    pthread_mutex_t lock;          /* of all that follows; never held during a step or a call out */
    pthread_cond_t wake;
    struct request_list inbox;
    bool draining, closing, failed;
    struct error failure;          /* the device's, when failed */
    struct engine_stats stats;
    pthread_t thread;
};

/* engine_plan.c: fills *e's sizes and the two plans for its options, choosing the KV pool's size;
 * allocates and lays out. Returns the engine's final place in its own arena. */
struct engine *engine_allocate(struct engine *e, struct error *err) MUST_CHECK;
void engine_release(struct engine *e);

/* engine_queue.c */
void request_list_push(struct request_list *l, struct engine_request *r);
struct engine_request *request_list_pop(struct request_list *l);
/* Moves new requests to `waiting`; sleeps while there is nothing to do. True:
 * the engine is closing. */
bool engine_collect(struct engine *e);
/* Remembers to notify the request's owner after this step. */
void engine_touch(struct engine *e, struct engine_request *r);
/* Makes `live` what engine_stats sees. */
void engine_publish_stats(struct engine *e);
/* Ends a step: publishes its numbers, then tells the owners. */
void engine_deliver(struct engine *e);
/* From now on nothing can run; submissions are refused with this error. */
void engine_fail(struct engine *e, const struct error *why);

/* engine_admit.c */
/* Pages that all choices may need at most. */
int64_t engine_request_pages(const struct engine_params *p);
/* Ends what was canceled, is past its deadline, or cannot go on. */
void engine_end_expired(struct engine *e, bool closing);
void engine_admit(struct engine *e);
/* Ends one choice and frees its slot. */
void engine_end_choice(struct engine *e, struct seq *s, enum finish_reason reason);
/* Lets the other choices start on the pages of the first, whose prompt is computed. */
void engine_fork(struct engine *e, struct seq *first);
/* Drops free slots from `active`. */
void engine_compact(struct engine *e);

/* engine_step.c: one forward pass over what is active. */
void engine_step(struct engine *e);
/* Records steps of decoding, before the first step; a failure is the device's.
 * And lets go of them. */
void engine_record_steps(struct engine *e);
void engine_free_recorded(struct engine *e);
