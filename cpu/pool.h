/* A pool of threads for the loops inside one operation. The caller works too; workers join in
 * while the loop is open, spin for a moment after it, then sleep. One thread at a time may
 * call pool_for; the pool belongs to the device.
 *
 * A loop never waits for a worker that has not begun: each thread begins with an even share of the
 * indices, and whoever is done takes from the others' shares. A worker that is late (asleep,
 * descheduled) finds the gate closed and goes back to waiting. Which thread runs an index is
 * therefore left to chance, and a body must not let its result depend on it. */
#pragma once

#include <stdint.h>

#include "base/error.h"

struct pool;

/* Calls the body for a range [begin, end) of the indices; `thread` is below
 * pool_n_threads and no two calls run at once with the same one. */
typedef void (*pool_body)(void *ctx, int64_t begin, int64_t end, int32_t thread);

/* n_threads >= 1 counts the caller. */
bool pool_open(int32_t n_threads, struct pool **out, struct error *err) MUST_CHECK;
void pool_close(struct pool *p); /* NULL-safe */
int32_t pool_n_threads(const struct pool *p);

/* Runs body over [0, n) in ranges of at least `grain` indices (the last may be shorter). A
 * thread's ranges follow one another as long as its share lasts, and shrink towards its end, so
 * that threads finish together. n <= grain runs on the caller alone. Everything the bodies wrote
 * is visible to the caller on return. */
void pool_for(struct pool *p, int64_t n, int64_t grain, pool_body body, void *ctx);
