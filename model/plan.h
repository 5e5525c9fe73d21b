/* The memory plan: a list of every tensor and buffer of a run, which is also the layout of the
 * arena it lives in. One function lays a thing out by calling plan_take for each piece; run once
 * with base = NULL it answers "how many bytes, of what?", run again with the arena it hands out the
 * very same pieces. So the plan is the allocation.
 *
 *     struct plan plan;
 *     plan_init(&plan);
 *     layout(&plan, thing);             // sizes only: pointers are NULL
 *     arena = alloc(plan.total);
 *     plan_restart(&plan, arena);
 *     layout(&plan, thing);             // the same calls now return addresses
 *     ASSERT(plan_matches(&plan));
 *
 * Pieces that are never in use at the same time share bytes:
 *
 *     plan_share_begin(&plan, LIFE_ATTENTION);  qkv = plan_take(...);
 *     plan_share_next(&plan, LIFE_LOGITS);      logits = plan_take(...);
 *     plan_share_end(&plan);            // both begin at the same byte; the larger side counts
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum memory_component {
    MEMORY_WEIGHTS,
    MEMORY_MASTER,    /* f32 masters of bf16 weights, or their remainders */
    MEMORY_GRADIENTS,
    MEMORY_OPTIMIZER, /* moments */
    MEMORY_ACTIVATIONS,
    MEMORY_LOGITS,
    MEMORY_KV_CACHE,
    MEMORY_WORKSPACE,
    MEMORY_STAGING, /* step inputs and outputs between host and device */
    MEMORY_DATA,    /* tokens to learn from that lie in memory (mapped shards do not) */
    MEMORY_HOST,    /* engine slots, page tables, prefix index, request queue */
    N_MEMORY_COMPONENTS,
};

const char *memory_component_name(enum memory_component c); /* "weights", "kv_cache", ... */

/* When a piece is in use. */
enum plan_life {
    LIFE_RUN,       /* from start to end */
    LIFE_START,     /* while weights are loaded */
    LIFE_STEP,      /* during a step */
    LIFE_FORWARD,   /* of training: the forward pass, and when a block is computed again */
    LIFE_ATTENTION, /* a layer's first half */
    LIFE_MLP,       /* its second half */
    LIFE_LOGITS,    /* from the final norm to the sample or the loss */
    LIFE_BACKWARD_ATTENTION,
    LIFE_BACKWARD_MLP,
    N_PLAN_LIVES,
};

const char *plan_life_name(enum plan_life life); /* "run", "start", "step", ... */

/* One tensor or buffer. */
struct plan_item {
    const char *name; /* "qkv", "logits", ...; static */
    int32_t layer;    /* -1: of no layer */
    enum memory_component component;
    enum plan_life life;
    int64_t offset, bytes; /* in the arena; bytes rounded up to DEVICE_ALIGN */
};

/* Sees each piece of the first pass. */
typedef void (*plan_listener)(void *ctx, const struct plan_item *item);

struct plan {
    uint8_t *base;   /* NULL while planning */
    int64_t total;   /* bytes so far, each piece rounded up to DEVICE_ALIGN */
    int64_t planned; /* total of the first pass, for plan_matches */
    /* By component; they sum to total. Of pieces that share bytes the side that takes most
     * counts. */
    int64_t component[N_MEMORY_COMPONENTS];
    bool overflow;   /* a size did not fit 63 bits */
    int32_t layer;   /* whose pieces are being taken, set by the layout; -1: no layer's */
    enum plan_life life; /* of the pieces being taken */
    struct plan_share {
        bool open;
        enum plan_life outside;
        int64_t begin, end; /* end: of the largest side so far */
        int64_t before[N_MEMORY_COMPONENTS], largest[N_MEMORY_COMPONENTS];
    } share;
    plan_listener see; /* NULL: nobody listens */
    void *ctx;
};

void plan_init(struct plan *p);
/* Begins the second pass over `base` (planned bytes long, DEVICE_ALIGN-aligned). */
void plan_restart(struct plan *p, void *base);
/* n items of `size` bytes; NULL in the first pass (and for 0 bytes). */
void *plan_take(struct plan *p, enum memory_component c, const char *name, int64_t n, int64_t size);
/* Sides that share bytes, each with the time when its pieces are in use. Not nested. */
void plan_share_begin(struct plan *p, enum plan_life life);
void plan_share_next(struct plan *p, enum plan_life life);
void plan_share_end(struct plan *p);
/* What a run takes, as planners answer it without allocating. */
struct memory_plan {
    int64_t component[N_MEMORY_COMPONENTS];
    int64_t device_bytes, host_bytes; /* the two arenas */
    int64_t total_bytes;              /* both, and the data in memory */
};
/* Sums both plans and `data_bytes` up; false when that does not fit 63 bits. */
bool plan_sum(const struct plan *host, const struct plan *device, int64_t data_bytes,
              struct memory_plan *out) MUST_CHECK;

/* The two arenas of a run, zeroed, for plans whose first pass is done; begins the second pass over
 * them. The host's is page-locked where the device tells the difference, since it holds what is
 * copied in every step. On failure nothing is held. */
struct device;
bool plan_alloc(struct plan *host, struct plan *device, struct device *d, void **host_arena,
                void **device_arena, struct error *err) MUST_CHECK;
void plan_release(struct device *d, void *host_arena, void *device_arena, int64_t device_bytes);
bool plan_matches(const struct plan *p); /* second pass took exactly what the first planned */
