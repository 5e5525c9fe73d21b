/* The softmax of one row of a block, for products_simd.h. */
#pragma once

#include <math.h>

#include "cpu/kernels.h"

/* So few rows of attention side by side wait for memory rather than for the multipliers. */
enum { ROWS_WAIT = 3 };

/* Scores become scale * scores, then exp of them less their maximum; lanes past the row's limit, up
 * to a whole vector, become zero. Fills max and sum, and clears acc. */
static void softmax_row(const struct attend_block *b, int32_t r, float *scores)
{
    int32_t n = b->limit[r], whole = n / LANES * LANES; /* most rows see all of a block */
    vf low = vf_set(-INFINITY), highest = low, scale = vf_set(b->scale), sum = vf_set(0);
    for (int32_t i = 0; i < whole; i += LANES)
        highest = vf_max(highest, vf_mul(vf_load(scores + i), scale));
    if (whole < n)
        highest = vf_max(highest, vf_first(vf_mul(vf_load(scores + whole), scale), low, n - whole));
    float max = vf_highest(highest);
    vf shift = vf_set(max);
    for (int32_t i = 0; i < n; i += LANES) {
        vf p = vf_exp(vf_sub(vf_mul(vf_load(scores + i), scale), shift));
        if (i == whole) p = vf_first(p, vf_set(0), n - whole);
        vf_store(scores + i, p);
        sum = vf_add(sum, p);
    }
    b->max[r] = max;
    b->sum[r] = vf_sum(sum);
    for (int64_t i = 0; i < b->acc_stride; i += LANES)
        vf_store(b->acc + r * b->acc_stride + i, vf_set(0));
}
