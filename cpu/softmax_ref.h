/* What attention in plain C does between scores and values, for every type of cache. */
#pragma once

#include <math.h>
#include <string.h>

#include "cpu/kernels.h"

/* One row of a block: scores are there; out come max, sum, the weights in their place,
 * and an acc of zeros. */
static inline void softmax_row(const struct attend_block *b, int32_t r, float *scores)
{
    float max = -INFINITY, sum = 0;
    for (int32_t j = 0; j < b->limit[r]; j++) {
        scores[j] *= b->scale;
        if (scores[j] > max) max = scores[j];
    }
    for (int32_t j = 0; j < b->limit[r]; j++) sum += scores[j] = expf(scores[j] - max);
    b->max[r] = max;
    b->sum[r] = sum;
    memset(b->acc + r * b->acc_stride, 0, (size_t)b->acc_stride * 4);
}
