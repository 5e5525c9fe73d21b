/* Training's row kernels in the vocabulary of simd_*.h: one file for all vector widths, as
 * rows_simd.h, which comes first and lends its loads and stores. */
#pragma once

#include <string.h>

#include "cpu/kernels.h"
#include "model/normal.h"

static void norm_backward_row(float *dx, float *stats, const float *dy, const float *x, int64_t n,
                              const struct norm *norm)
{
    float mean = norm->rms ? 0 : sum_row(x, n) / (float)n;
    float scale = 1 / sqrtf(sum_squares(x, n, mean) / (float)n + norm->eps);
    vf center = vf_set(mean), inverse = vf_set(scale), sum = vf_set(0), dot = vf_set(0);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf g = vf_mul(vf_load_n(dy + i, m), vf_load_n(norm->weight + i, m));
        vf hat = vf_mul(vf_sub(vf_load_n(x + i, m), center), inverse);
        sum = vf_add(sum, g);
        dot = vf_fma(g, hat, dot);
    }
    vf mean_g = vf_set(norm->rms ? 0 : vf_sum(sum) / (float)n);
    vf mean_dot = vf_set(vf_sum(dot) / (float)n);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf g = vf_mul(vf_load_n(dy + i, m), vf_load_n(norm->weight + i, m));
        vf hat = vf_mul(vf_sub(vf_load_n(x + i, m), center), inverse);
        vf d = vf_fnma(hat, mean_dot, vf_sub(g, mean_g));
        vf_store_n(dx + i, vf_fma(d, inverse, vf_load_n(dx + i, m)), m);
    }
    stats[0] = mean;
    stats[1] = scale;
}

static void norm_backward_columns(float *dweight, float *dbias, const float *dy, const float *x,
                                  const float *stats, int64_t rows, int64_t stride, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf dw = vf_set(0), db = vf_set(0);
        for (int64_t r = 0; r < rows; r++) {
            vf g = vf_load_n(dy + r * stride + i, m);
            vf d = vf_sub(vf_load_n(x + r * stride + i, m), vf_set(stats[2 * r]));
            dw = vf_fma(g, vf_mul(d, vf_set(stats[2 * r + 1])), dw);
            db = vf_add(db, g);
        }
        vf_store_n(dweight + i, vf_add(vf_load_n(dweight + i, m), dw), m);
        if (dbias) vf_store_n(dbias + i, vf_add(vf_load_n(dbias + i, m), db), m);
    }
}

/* d/dx of x sigmoid(2u): s + x s (1 - s) 2u'. */
static inline vf gelu_tanh_slope(vf x)
{
    vf square = vf_mul(x, x), one = vf_set(1);
    vf u2 = vf_mul(vf_mul(x, vf_fma(square, vf_set(0.044715f), one)), vf_set(1.5957691216f));
    vf s = vf_times_sigmoid(one, u2);
    vf du2 = vf_mul(vf_fma(square, vf_set(0.134145f), one), vf_set(1.5957691216f));
    return vf_fma(vf_mul(vf_mul(x, s), vf_sub(one, s)), du2, s);
}

/* Phi(x) + x phi(x). */
static inline vf gelu_exact_slope(vf x)
{
    vf cdf = vf_mul(vf_set(0.5f), vf_erfc(vf_mul(x, vf_set(-0.7071067812f))));
    vf density = vf_mul(vf_exp(vf_mul(vf_mul(x, x), vf_set(-0.5f))), vf_set(0.3989422804f));
    return vf_fma(x, density, cdf);
}

static void gelu_backward_row(void *dx, enum dtype dtype, const float *dy, const void *pre,
                              bool exact, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf x = load_lanes(pre, dtype, i, m);
        vf slope = exact ? gelu_exact_slope(x) : gelu_tanh_slope(x);
        store_lanes(dx, dtype, i, vf_mul(vf_load_n(dy + i, m), slope), m);
    }
}

static void gelu_row(void *out, enum dtype dtype, const void *x, bool exact, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf v = load_lanes(x, dtype, i, m);
        store_lanes(out, dtype, i, exact ? vf_gelu_exact(v) : vf_gelu_tanh(v), m);
    }
}

static void swiglu_backward_row(void *dgate, void *dup, enum dtype dtype, const float *dy,
                                const void *gate, const void *up, int64_t n)
{
    vf one = vf_set(1);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf x = load_lanes(gate, dtype, i, m), u = load_lanes(up, dtype, i, m);
        vf d = vf_load_n(dy + i, m), s = vf_times_sigmoid(one, x);
        vf slope = vf_mul(s, vf_fma(x, vf_sub(one, s), one)); /* s (1 + x (1 - s)) */
        store_lanes(dgate, dtype, i, vf_mul(vf_mul(d, u), slope), m);
        store_lanes(dup, dtype, i, vf_mul(d, vf_mul(x, s)), m);
    }
}

static void adamw_row(float *w, float *m, float *v, const float *g, float *root,
                      const struct adamw_row *a, int64_t n)
{
    vf scale = vf_set(a->grad_scale), b1 = vf_set(a->beta1), b2 = vf_set(a->beta2);
    vf rest1 = vf_set(1 - a->beta1), rest2 = vf_set(1 - a->beta2), eps = vf_set(a->eps);
    vf keep = vf_set(a->keep), rate = vf_set(a->rate), correction = vf_set(a->v_correction);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t l = lanes_left(n, i);
        vf x = vf_mul(vf_load_n(g + i, l), scale);
        vf m1 = vf_fma(x, rest1, vf_mul(vf_load_n(m + i, l), b1));
        vf v1 = vf_fma(vf_mul(x, x), rest2, vf_mul(vf_load_n(v + i, l), b2));
        vf r = vf_sqrt(v1), step = vf_div(m1, vf_fma(r, correction, eps));
        vf_store_n(root + i, r, l);
        vf_store_n(m + i, m1, l);
        vf_store_n(v + i, v1, l);
        vf_store_n(w + i, vf_fnma(step, rate, vf_mul(vf_load_n(w + i, l), keep)), l);
    }
}

/* philox4x32 with a counter in each lane of 64 bits. What lies in a lane's high half is of no
 * account: products take the low ones. */
static inline void philox_round(vi c[4], vi k0, vi k1)
{
    vi a = vi_mul_wide(c[0], vi_set(0xD2511F53u)), b = vi_mul_wide(c[2], vi_set(0xCD9E8D57u));
    c[0] = vi_xor3(vi_high_words(b), c[1], k0);
    c[2] = vi_xor3(vi_high_words(a), c[3], k1);
    c[1] = b;
    c[3] = a;
}

enum { PHILOX_ROUNDS = 10 };

/* The keys of all rounds, which all counters share. */
struct philox_keys { vi k0[PHILOX_ROUNDS], k1[PHILOX_ROUNDS]; };

static inline void philox_keys_init(struct philox_keys *keys, const uint32_t key[2])
{
    for (uint32_t i = 0; i < PHILOX_ROUNDS; i++) {
        keys->k0[i] = vi_set(key[0] + i * 0x9E3779B9u);
        keys->k1[i] = vi_set(key[1] + i * 0xBB67AE85u);
    }
}

/* Vectors of counters side by side: as many as 16 registers hold, or 32. */
enum { AT_ONCE = LANES == 16 ? 4 : 2 };

/* The words of n x LANES / 2 counters from c0 on, in order: 2 n vectors. Each round waits for the
 * one before it: while one counter's is waited for, others' are computed. */
static inline __attribute__((always_inline)) void
philox_words(const uint32_t counter[4], const struct philox_keys *keys, uint32_t c0, vi *out,
             const int n)
{
    /* Joining pairs of words takes even lanes, then odd ones:
     * so the second half of the counters is there. */
    static const uint64_t places[] = {0, LANES / 4, 1, LANES / 4 + 1,
                                      2, LANES / 4 + 2, 3, LANES / 4 + 3};
    vi c[AT_ONCE][4];
#pragma GCC unroll 4
    for (int s = 0; s < n; s++) {
        c[s][0] = vi_add(vi_load(places), vi_set(c0 + (uint32_t)(s * LANES / 2)));
        for (int i = 1; i < 4; i++) c[s][i] = vi_set(counter[i]);
    }
#pragma GCC unroll 10
    for (int round = 0; round < PHILOX_ROUNDS; round++)
#pragma GCC unroll 4
        for (int s = 0; s < n; s++) philox_round(c[s], keys->k0[round], keys->k1[round]);
#pragma GCC unroll 4
    for (int s = 0; s < n; s++) {
        vi first = vi_pairs(c[s][0], c[s][1]), second = vi_pairs(c[s][2], c[s][3]);
        out[2 * s] = vi_join_even(first, second);
        out[2 * s + 1] = vi_join_odd(first, second);
    }
}

enum { DROPOUT_AT_ONCE = 2 * AT_ONCE * LANES };

static void dropout_row(float *keep, const struct dropout_row *d, int64_t n)
{
    vi threshold = vi_set((uint32_t)((double)d->p * 4294967296.0)), words[2 * AT_ONCE];
    vf scale = vf_set(1 / (1 - d->p));
    float last[DROPOUT_AT_ONCE];
    struct philox_keys keys;
    philox_keys_init(&keys, d->key);
    for (int64_t i = 0; i < n; i += DROPOUT_AT_ONCE) {
        float *out = n - i < DROPOUT_AT_ONCE ? last : keep + i;
        philox_words(d->counter, &keys, d->counter[0] + (uint32_t)(i / 4), words, AT_ONCE);
#pragma GCC unroll 8
        for (int v = 0; v < 2 * AT_ONCE; v++)
            vf_store(out + v * LANES, vf_if_at_least(words[v], threshold, scale));
        if (out == last) memcpy(keep + i, last, (size_t)(n - i) * sizeof *last);
    }
}

static void softmax_backward_row(float *p, float *ds, const float *z, int64_t n, float shift,
                                 float scale, float delta)
{
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = lanes_left(n, i);
        vf e = vf_exp(vf_mul(vf_sub(vf_load_n(p + i, m), vf_set(shift)), vf_set(scale)));
        vf dp = vf_load_n(ds + i, m), factor = z ? vf_load_n(z + i, m) : vf_set(1);
        vf d = vf_sub(vf_mul(factor, dp), vf_set(delta));
        vf_store_n(ds + i, vf_mul(vf_mul(e, d), vf_set(scale)), m);
        vf_store_n(p + i, vf_mul(e, factor), m);
    }
}

static void random_words(const uint32_t counter[4], const struct philox_keys *keys,
                         uint32_t words[PANEL])
{
    for (int i = 0; i < PANEL; i += 2 * LANES)
        philox_words(counter, keys, counter[0] + (uint32_t)i / 4, (vi *)(words + i), 1);
}

#include "cpu/adamw_block.h"
#include "cpu/bf16_add.h"

/* Of bf16: two chains of even elements, two of odd ones. */
static float sum_squares_bf16(const uint16_t *x, int64_t n)
{
    vf sum[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    for (int64_t i = 0; i < n; i += 4 * LANES)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            vi pairs = vi_load(x + i + j * 2 * LANES);
            vf even = vf_even(pairs), odd = vf_odd(pairs);
            sum[2 * j] = vf_fma(even, even, sum[2 * j]);
            sum[2 * j + 1] = vf_fma(odd, odd, sum[2 * j + 1]);
        }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

/* Partial sums are f32 over SQUARES_BLOCK elements, their total is f64. */
static double sum_squares_f64(const void *x, enum dtype dtype, int64_t n)
{
    enum { SQUARES_BLOCK = 4096 };
    double total = 0;
    for (int64_t i = 0; i < n; i += SQUARES_BLOCK) {
        int64_t part = n - i < SQUARES_BLOCK ? n - i : SQUARES_BLOCK;
        total += dtype == DTYPE_BF16 ? sum_squares_bf16((const uint16_t *)x + i, part)
                                     : sum_squares((const float *)x + i, part, 0);
    }
    return total;
}

static void train_simd(struct cpu_kernels *k)
{
    k->norm_backward_row = norm_backward_row;
    k->norm_backward_columns = norm_backward_columns;
    k->gelu_backward_row = gelu_backward_row;
    k->gelu_row = gelu_row;
    k->swiglu_backward_row = swiglu_backward_row;
    k->softmax_backward_row = softmax_backward_row;
    k->adamw_block = adamw_block;
    k->sum_squares = sum_squares_f64;
    k->dropout_row = dropout_row;
    k->bf16_add = bf16_add;
    k->normal_fill = normal_fill;
}
