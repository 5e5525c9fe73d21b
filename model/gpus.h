/* GPUs that people have: memory, speed and what they can do, from NVIDIA's data sheets, so that a
 * plan can be made for a card that is not here. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "model/device_rates.h"

struct gpu {
    const char *name;       /* "GTX 1060 6GB", "RTX 4090", "H200" */
    int64_t memory_bytes;   /* as the driver reports it, or the data sheet's GiB */
    int32_t sm;             /* compute capability x 10: 61 ... 90, 100, 120 */
    int32_t multiprocessors;
    bool bf16;              /* tensor cores for bf16 (sm_80 and later) */
    double flops;           /* dense, a second: bf16 on tensor cores with sums in f32, f16 before
                               sm_80, f32 where there are no tensor cores */
    double bytes_per_s;
};
extern const struct gpu gpus[];
extern const size_t n_gpus;

/* By name ("rtx3060", "RTX 3060 12GB", "NVIDIA GeForce RTX 3060"); NULL when there is none. */
const struct gpu *gpu_find(const char *name);
/* The names nearest to one that gpu_find does not know: the card with the fewest edits, or NULL. */
const char *gpu_nearest(const char *name);
/* A card of which only the memory is known: everything else is that of a modest one. `name` is
 * borrowed. */
struct gpu gpu_of_size(const char *name, int64_t memory_bytes);

/* What a process takes on the card before its first tensor: driver context, modules, cuBLAS. An
 * estimate; *source (may be NULL) says whose. */
int64_t gpu_context_bytes(const struct gpu *g, const char **source);
/* What a run may plan with: memory less context and a margin for what else is on the card. At least
 * 0. */
int64_t gpu_margin_bytes(const struct gpu *g);
int64_t gpu_budget(const struct gpu *g);
/* What a run can expect: data-sheet figures, less what is lost in practice. */
struct device_rates gpu_rates(const struct gpu *g);
