/* An engine on a golden model, for tests: requests made from a seed, replies as bytes to compare,
 * and a device whose steps can be held, counted and made to fail. One at a time in a process. */
#pragma once

#include <pthread.h>

#include "base/buf.h"
#include "model/engine.h"
#include "model/engine_internal.h"

struct engine_fixture {
    struct device *device;
    struct device_ops ops; /* the device's, with the hooks below */
    const struct device_ops *real;
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer;
    struct engine *engine;
    /* Hooks. */
    _Atomic int64_t n_allocs, alloc_bytes;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held, failing;
    int64_t n_begun;   /* steps that have come to their sync since the hold */
    int64_t n_allowed; /* of these, how many may finish */
};

/* Fails the test when anything goes wrong. `o` may be NULL for fixture_options. */
void fixture_open(struct engine_fixture *f, const char *model, const struct engine_options *o);
/* As fixture_open, but opening the engine may fail. */
bool fixture_try_open(struct engine_fixture *f, const char *model, const struct engine_options *o,
                      struct error *err);
void fixture_close(struct engine_fixture *f);
struct engine_options fixture_options(void); /* f32, 8 sequences, 64 rows, 64 queued */

/* Every step waits at its end until it is let go. */
void fixture_hold(struct engine_fixture *f);
void fixture_wait_step(struct engine_fixture *f, int64_t n); /* until the n-th step since is held */
void fixture_let(struct engine_fixture *f, int64_t n);       /* n more steps may finish */
void fixture_unhold(struct engine_fixture *f);
void fixture_fail(struct engine_fixture *f); /* every sync from now on reports a failure */

/* Of the allocations and syncs from now on, also those of fixtures yet to open, the k-th fails; 0:
 * none. Returns how many more it would have taken: 0 when it has come to pass. */
int64_t fixture_fail_operation(int64_t k);

/* Waits until the engine is idle and asserts that it holds nothing: no pages, no reservations. */
void fixture_assert_clean(struct engine_fixture *f);

/* A request with what its parameters point to. */
struct job {
    struct engine_params params;
    int32_t prompt[256];
    int32_t stop_ids[24];
    struct token_bias bias[4];
    char stops[4][4];
    struct engine_request *request;
};

enum { JOB_CONTEXT = 96 }; /* jobs stay within this many tokens */

struct rng { uint64_t state; };
int32_t rng_below(struct rng *g, int32_t n);

/* A request of every kind that there is: lengths around page boundaries, common prefixes, samplers,
 * n, stops, scoring. */
void job_init(struct job *j, uint64_t seed, const struct engine *e);
/* A plain greedy request: n_prompt tokens, max_tokens. */
void job_init_plain(struct job *j, int32_t n_prompt, int32_t max_tokens);
/* Makes the request; false when it can never fit this engine (n, pages). */
bool job_new(struct job *j, struct engine *e);
void job_submit(struct job *j, struct engine *e);
/* A request that fits, to its end. */
void job_run(struct job *j, struct engine *e);
void job_free(struct job *j);

/* All that a DONE request says, bit by bit, appended to `out`. */
void job_render(const struct job *j, struct buf *out);
