/* What memory was like: a sample now, and of the last hour one each ten seconds, in a ring of fixed
 * size. One thread samples; any may ask. */
#pragma once

#include "api/api.h"
#include "base/error.h"

enum { MEMORY_HISTORY_SAMPLES = 360, MEMORY_HISTORY_INTERVAL_S = 10 };

/* Called from any thread, never by two at once. May take some milliseconds. */
typedef void (*memory_sample_fn)(void *ctx, struct api_memory_sample *out);

struct memory_history;

/* Takes the first sample and starts the thread. */
bool memory_history_start(memory_sample_fn sample, void *ctx, struct memory_history **out,
                          struct error *err) MUST_CHECK;
void memory_history_stop(struct memory_history *h); /* NULL-safe */

/* At most a second old: asking often costs nothing. */
struct api_memory_sample memory_history_now(struct memory_history *h);
/* Oldest first; returns how many there are. */
size_t memory_history_copy(struct memory_history *h,
                           struct api_memory_sample out[MEMORY_HISTORY_SAMPLES]);

/* One more; the thread's, and a test's. */
void memory_history_add(struct memory_history *h, const struct api_memory_sample *s);
