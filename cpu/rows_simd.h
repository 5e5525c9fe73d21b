/* Row kernels in the vocabulary of simd_*.h: one file for all vector widths, compiled once for each
 * instruction set (kernels_avx2.c, kernels_avx512.c). Reductions keep one partial sum a lane and
 * end in a fixed tree. */
#pragma once

#include <math.h>

#include "cpu/kernels.h"

static inline int64_t lanes_left(int64_t n, int64_t i) { return n - i < LANES ? n - i : LANES; }

static inline void store_lanes(void *out, enum dtype dtype, int64_t i, vf y, int64_t n)
{
    if (dtype == DTYPE_BF16)
        vf_store_bf16((uint16_t *)out + i, y, n);
    else
        vf_store_n((float *)out + i, y, n);
}

static inline vf load_lanes(const void *x, enum dtype dtype, int64_t i, int64_t n)
{
    return dtype == DTYPE_BF16 ? vf_load_bf16((const uint16_t *)x + i, n)
                               : vf_load_n((const float *)x + i, n);
}

/* y as a tensor of the type would hold it. */
static inline vf round_lanes(enum dtype dtype, vf y)
{
    return dtype == DTYPE_BF16 ? vf_round_bf16(y) : y;
}

static inline __attribute__((always_inline)) void
finish_row(void *out, enum dtype dtype, const float *y, const float *bias, enum epilogue epilogue,
           int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf v = vf_load_n(y + i, m);
        if (bias) v = vf_add(v, vf_load_n(bias + i, m));
        if (epilogue == EPILOGUE_GELU_TANH) v = vf_gelu_tanh(round_lanes(dtype, v));
        if (epilogue == EPILOGUE_GELU_EXACT) v = vf_gelu_exact(round_lanes(dtype, v));
        if (epilogue == EPILOGUE_ADD) v = vf_add(v, vf_load_n((float *)out + i, m));
        store_lanes(out, dtype, i, v, m);
    }
}

static void finish(void *out, enum dtype dtype, const float *y, const float *bias,
                   enum epilogue epilogue, int64_t n)
{
    finish_row(out, dtype, y, bias, epilogue, n);
}

static inline __attribute__((always_inline)) void
finish_rows(const struct tile_output *t, enum dtype dtype, const float *bias,
            enum epilogue epilogue, int64_t n)
{
    int64_t row_bytes = t->out_stride * (dtype == DTYPE_BF16 ? 2 : 4);
    uint8_t *out = t->out;
    for (int64_t r = 0; r < t->rows; r++, out += row_bytes)
        finish_row(out, dtype, t->y + r * PANEL, bias, epilogue, n);
}

/* A few tens of cycles a row are some of a small product's:
 * whole panels of what is common have code of their own. */
static void finish_tile(const struct tile_output *t)
{
    bool plain = t->n == PANEL && !t->bias, f32 = t->dtype == DTYPE_F32;
    if (plain && f32 && t->epilogue == EPILOGUE_NONE)
        finish_rows(t, DTYPE_F32, NULL, EPILOGUE_NONE, PANEL);
    else if (plain && f32 && t->epilogue == EPILOGUE_ADD)
        finish_rows(t, DTYPE_F32, NULL, EPILOGUE_ADD, PANEL);
    else if (plain && t->epilogue == EPILOGUE_NONE)
        finish_rows(t, DTYPE_BF16, NULL, EPILOGUE_NONE, PANEL);
    else
        finish_rows(t, t->dtype, t->bias, t->epilogue, t->n);
}

static void scale_row(void *out, enum dtype dtype, const float *x, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        store_lanes(out, dtype, i, vf_mul(vf_load_n(x + i, m), vf_set(scale)), m);
    }
}

/* Chains of additions side by side: each addition waits three or four cycles for the one before
 * it. */
enum { CHAINS = 4 };

static inline float join_chains(const vf sum[CHAINS])
{
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

/* The sum of (x - mean)^2. */
static float sum_squares(const float *x, int64_t n, float mean)
{
    vf center = vf_set(mean), sum[CHAINS] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int j = 0; j < CHAINS; j++) {
            vf d = vf_sub(vf_load(x + i + j * LANES), center);
            sum[j] = vf_fma(d, d, sum[j]);
        }
    for (; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf d = vf_first(vf_sub(vf_load_n(x + i, m), center), vf_set(0), m);
        sum[0] = vf_fma(d, d, sum[0]);
    }
    return join_chains(sum);
}

static float sum_row(const float *x, int64_t n)
{
    vf sum[CHAINS] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int j = 0; j < CHAINS; j++) sum[j] = vf_add(sum[j], vf_load(x + i + j * LANES));
    for (; i < n; i += LANES) sum[0] = vf_add(sum[0], vf_load_n(x + i, lanes_left(n, i)));
    return join_chains(sum);
}

static void norm_row(void *out, enum dtype dtype, const float *x, int64_t n,
                     const struct norm *norm)
{
    float mean = norm->rms ? 0 : sum_row(x, n) / (float)n;
    float variance = sum_squares(x, n, mean) / (float)n;
    vf scale = vf_set(1 / sqrtf(variance + norm->eps)), center = vf_set(mean);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf y = vf_mul(vf_sub(vf_load_n(x + i, m), center), scale);
        y = vf_mul(y, vf_load_n(norm->weight + i, m));
        if (norm->bias) y = vf_add(y, vf_load_n(norm->bias + i, m));
        store_lanes(out, dtype, i, y, m);
    }
}

static void swiglu_row(void *out, enum dtype dtype, const void *gate, const void *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf y = vf_mul(vf_silu(load_lanes(gate, dtype, i, m)), load_lanes(up, dtype, i, m));
        store_lanes(out, dtype, i, y, m);
    }
}

static void to_bf16(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        vf_store_bf16(out + i, vf_load_n(x + i, lanes_left(n, i)), lanes_left(n, i));
}

static void attend_join(float *max, float *sum, float *acc, float block_max, float block_sum,
                        const float *block_acc, int64_t n)
{
    bool moves = !(*max > block_max);
    vf e = vf_exp(vf_set(moves ? *max - block_max : block_max - *max)), one = vf_set(1);
    vf a = moves ? e : one, b = moves ? one : e;
    for (int64_t i = 0; i < n; i += LANES) {
        vf joined = vf_fma(vf_load(block_acc + i), b, vf_mul(vf_load(acc + i), a));
        vf_store(acc + i, joined);
    }
    vf total = vf_fma(vf_set(block_sum), b, vf_mul(vf_set(*sum), a));
    vf_store_n(sum, total, 1);
    if (moves) *max = block_max;
}

static float row_max(const float *x, int64_t n)
{
    vf low = vf_set(-INFINITY), max[2] = {low, low};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        for (int j = 0; j < 2; j++) max[j] = vf_max(vf_load(x + i + j * LANES), max[j]);
    for (int64_t m; i < n; i += LANES) {
        m = lanes_left(n, i);
        max[0] = vf_max(vf_first(vf_load_n(x + i, m), low, m), max[0]);
    }
    return vf_highest(vf_clean(vf_max(max[0], max[1])));
}

static inline __attribute__((always_inline)) vf
exp_lanes(float *out, const float *x, vf shift, vf scale, int64_t n)
{
    vf y = vf_mul(vf_sub(vf_load_n(x, n), shift), scale);
    y = vf_exp_within(vf_min(vf_set(0), vf_max(y, vf_set(EXP_LEAST))));
    if (out) vf_store_n(out, y, n);
    return y;
}

/* Bounds of zero and EXP_LEAST clean x, too, since the shift is its maximum: NaN and -inf become
 * zeros, +inf one. Of 14 instructions eight are the multipliers' (8 cycles of AVX-512 where it has
 * one), two sums wait less than one. */
static float row_exp(float *out, const float *x, int64_t n, float shift, float scale)
{
    vf sum[2] = {vf_set(0), vf_set(0)}, s = vf_set(shift), k = vf_set(scale);
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            int64_t at = i + j * LANES;
            sum[j] = vf_add(sum[j], exp_lanes(out ? out + at : NULL, x + at, s, k, LANES));
        }
    for (int64_t m; i < n; i += LANES) {
        m = lanes_left(n, i);
        vf y = exp_lanes(out ? out + i : NULL, x + i, s, k, m);
        sum[0] = vf_add(sum[0], vf_first(y, vf_set(0), m));
    }
    return vf_sum(vf_add(sum[0], sum[1]));
}

static int64_t find_above(const float *x, int64_t i, int64_t n, float t)
{
    vf threshold = vf_set(t);
    for (; i + LANES <= n; i += LANES) {
        uint32_t above = vf_above(vf_load(x + i), threshold);
        if (above) return i + __builtin_ctz(above);
    }
    while (i < n && !(x[i] > t)) i++;
    return i;
}

static int64_t count_above(const float *x, int64_t n, float t)
{
    int64_t i = 0, count = 0;
    for (; i + LANES <= n; i += LANES)
        count += __builtin_popcount(vf_above(vf_load(x + i), vf_set(t)));
    for (; i < n; i++) count += x[i] > t;
    return count;
}

static int64_t list_above(int32_t *out, const float *x, int64_t n, float t)
{
    int64_t i = 0, count = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t above = vf_above(vf_load(x + i), vf_set(t)); above; above &= above - 1)
            out[count++] = (int32_t)i + __builtin_ctz(above);
    for (; i < n; i++)
        if (x[i] > t) out[count++] = (int32_t)i;
    return count;
}

static float sum_above(const float *x, int64_t n, float t)
{
    vf threshold = vf_set(t), sum[CHAINS] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    int64_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int j = 0; j < CHAINS; j++)
            sum[j] = vf_add(sum[j], vf_keep_above(vf_load(x + i + j * LANES), threshold));
    for (int64_t m; i < n; i += LANES) {
        m = lanes_left(n, i);
        vf kept = vf_keep_above(vf_load_n(x + i, m), threshold);
        sum[0] = vf_add(sum[0], vf_first(kept, vf_set(0), m));
    }
    return join_chains(sum);
}

/* The same products and sums as the reference's, so the same bits. */
static void rotate(float *x, const float *cos_sin, int64_t half)
{
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        vf c, s, a = vf_load(x + i), b = vf_load(x + half + i);
        vf_load_pairs(cos_sin + 2 * i, &c, &s);
        vf_store(x + i, vf_sub(vf_mul(a, c), vf_mul(b, s)));
        vf_store(x + half + i, vf_add(vf_mul(b, c), vf_mul(a, s)));
    }
    for (; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = x[i], b = x[half + i];
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

static void rows_simd(struct cpu_kernels *k)
{
    k->finish = finish;
    k->finish_tile = finish_tile;
    k->scale_row = scale_row;
    k->norm_row = norm_row;
    k->swiglu_row = swiglu_row;
    k->to_bf16 = to_bf16;
    k->rotate = rotate;
    k->attend_join = attend_join;
    k->row_max = row_max;
    k->row_exp = row_exp;
    k->find_above = find_above;
    k->count_above = count_above;
    k->list_above = list_above;
    k->sum_above = sum_above;
}
