/* The memory plan: a list of every tensor and buffer of a run, which is also the layout of the arena it
 * lives in. One function lays a thing out by calling plan_take for each piece; run once with
 * base = NULL it answers "how many bytes, of what?", run again with the arena it hands out
 * the very same pieces. So the plan is the allocation.
 *
 *     struct plan plan;
 *     plan_init(&plan);
 *     layout(&plan, thing);             // sizes only: pointers are NULL
 *     arena = alloc(plan.total);
 *     plan_restart(&plan, arena);
 *     layout(&plan, thing);             // the same calls now return addresses
 *     ASSERT(plan_matches(&plan));
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum memory_component {
    MEMORY_WEIGHTS,
    MEMORY_KV_CACHE,
    MEMORY_ACTIVATIONS,
    MEMORY_WORKSPACE,
    MEMORY_STAGING, /* step inputs and outputs between host and device */
    MEMORY_GRADIENTS,
    MEMORY_OPTIMIZER, /* moments and master copies */
    MEMORY_HOST,    /* engine slots, page tables, prefix index, request queue */
    N_MEMORY_COMPONENTS,
};

const char *memory_component_name(enum memory_component c); /* "weights", "kv_cache", ... */

struct plan {
    uint8_t *base;   /* NULL while planning */
    int64_t total;   /* bytes so far, each piece rounded up to DEVICE_ALIGN */
    int64_t planned; /* total of the first pass, for plan_matches */
    int64_t component[N_MEMORY_COMPONENTS];
    bool overflow;   /* a size did not fit 63 bits */
};

void plan_init(struct plan *p);
/* Begins the second pass over `base` (planned bytes long, DEVICE_ALIGN-aligned). */
void plan_restart(struct plan *p, void *base);
/* n items of `size` bytes; NULL in the first pass (and for 0 bytes). */
void *plan_take(struct plan *p, enum memory_component c, int64_t n, int64_t size);
/* The two arenas of a run, zeroed, for plans whose first pass is done; begins the second pass over them. The
 * host's goes back with free, the device's with its ops->free. On failure nothing is held. */
struct device;
bool plan_alloc(struct plan *host, struct plan *device, struct device *d, void **host_arena,
                void **device_arena, struct error *err) MUST_CHECK;
bool plan_matches(const struct plan *p); /* second pass took exactly what the first planned */
