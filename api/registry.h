/* The models that answer, by id, and who is using which. A request takes a model when it begins and
 * gives it back when it ends, so that one that was swapped out finishes what it began with:
 *
 *          api_registry_add          another of the same id, or api_registry_retire
 *   owner ─────────────────▶ RESIDENT ─────────────────────────────▶ RETIRED
 *                            taken by requests                          │ the last gives it back:
 *                                                                       ▼ api_registry_take_idle
 *   owner closes it ◀──────────────────────────────────────────────── CLOSING
 *
 * The registry opens and closes nothing: its owner (server/models.c) does. Any thread. */
#pragma once

#include <pthread.h>

#include "api/api.h"

struct api_resident {
    struct api_context api; /* first; api.registry is set by api_registry_add */
    int32_t users;
    struct api_resident *next;
};

struct api_registry {
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t news;
    struct api_resident *residents; /* the first is the default */
    struct api_resident *retired;
    struct api_resident *closing; /* one at a time */
    bool stopping;
    struct engine_stats gone; /* the counters of models that were closed */
};

void api_registry_init(struct api_registry *r);
void api_registry_free(struct api_registry *r); /* everything is closed */

/* In the place of the one with the same id, which is retired; else at the end. */
void api_registry_add(struct api_registry *r, struct api_resident *m);
/* No request gets it any more. ERR_NOT_FOUND. *out is good for api_registry_wait_closed alone. */
bool api_registry_retire(struct api_registry *r, const char *id, const struct api_resident **out,
                         struct error *err) MUST_CHECK;
/* Blocks until a retired model has no user and returns it; NULL once api_registry_stop was called
 * and none is left. */
struct api_resident *api_registry_take_idle(struct api_registry *r);
/* It is closed, but for its memory, which the caller frees. */
void api_registry_closed(struct api_registry *r, struct api_resident *m);
/* Before it is closed: what its engine has counted stays in the sums. */
void api_registry_count_gone(struct api_registry *r, const struct engine_stats *s);
void api_registry_wait_closed(struct api_registry *r, const struct api_resident *m);
/* Retires all. */
void api_registry_stop(struct api_registry *r);

/* The model called `id`, or the default for NULL; NULL with ERR_NOT_FOUND. Without a registry there
 * is one model, `c` itself. */
const struct api_context *api_acquire(const struct api_context *c, const char *id,
                                      struct error *err);
void api_release(const struct api_context *c); /* NULL-safe; what api_acquire returned */

/* Calls `visit` for each resident model, or for `c` itself; it may not call the registry. */
void api_visit(const struct api_context *c,
               void (*visit)(void *ctx, const struct api_context *model), void *ctx);
/* The sum over all engines; last_progress_ns is the oldest of those that have work. */
void api_stats(const struct api_context *c, struct engine_stats *out);
