/* GPUs that people have: memory, speed and what they can do, from NVIDIA's data sheets, so that a plan can be
 * made for a card that is not here. */
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
    bool bf16;              /* tensor cores for bf16 (sm_80 and later) */
    double bf16_flops;      /* dense tensor-core (f16 before sm_80; f32 rate without tensor cores), a second */
    double bytes_per_s;
};
extern const struct gpu gpus[];
extern const size_t n_gpus;

/* By name, case and spaces aside ("rtx3060", "RTX 3060 12GB"); NULL when there is none. */
const struct gpu *gpu_find(const char *name);
/* What a process takes on the card before its first tensor: driver context, modules, cuBLAS. An estimate;
 * *source says whose. */
int64_t gpu_context_bytes(const struct gpu *g, const char **source);
/* What a run may plan with: memory less context and a margin. */
int64_t gpu_budget(const struct gpu *g);
struct device_rates gpu_rates(const struct gpu *g);
