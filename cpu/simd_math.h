/* Functions of vectors, in the vocabulary of simd_*.h: each lane by the same steps, whatever its
 * neighbours hold. Polynomials were fitted by interpolation at Chebyshev nodes. */
#pragma once

#include <math.h>
#include <stddef.h>

#define EXP_LEAST (-105.0f) /* e^x is zero below it */

/* Of EXP_LEAST to 89. Relative error below 3e-7, near the ends 5e-7; 1 for 0. Nine instructions, of
 * which seven are the multipliers'. */
static inline vf vf_exp_within(vf x)
{
    vf n = vf_round(vf_mul(x, vf_set(0x1.715476p0f))); /* x / ln 2 */
    vf r = vf_fnma(n, vf_set(0x1.62e43p-1f), x);
    vf p = vf_set(0x1.10627ap-7f); /* 1 + r + r^2 (...), fitted to the relative error */
    p = vf_fma(p, r, vf_set(0x1.572a08p-5f));
    p = vf_fma(p, r, vf_set(0x1.5557aep-3f));
    p = vf_fma(p, r, vf_set(0x1.fffdfcp-2f));
    p = vf_fma(p, r, vf_set(1));
    p = vf_fma(p, r, vf_set(1));
    return vf_scale2(p, n);
}

/* 0 for -inf, inf for inf, NaN for NaN. */
static inline vf vf_exp(vf x)
{
    return vf_exp_within(vf_min(vf_set(89), vf_max(vf_set(EXP_LEAST), x)));
}

/* The complementary error function: exp(-z^2) t f(t) with t = 1 / (1 + 0.4 z), for |x|; then by
 * symmetry. Relative error below 1e-6 where the result is a normal number above 1e-20. */
static inline vf vf_erfc(vf x)
{
    static const float f[] = {0.0373838343f, -0.121834664f, 0.0465339112f,
                              0.1298884f,    0.0514787241f, 0.205131156f,
                              0.198966053f,  0.226841088f,  0.225611533f};
    vf z = vf_min(vf_set(16), vf_abs(x)); /* erfc(16) is zero; the square must not overflow */
    vf t = vf_div(vf_set(1), vf_fma(vf_set(0.4f), z, vf_set(1)));
    vf y = vf_set(f[0]);
    for (size_t i = 1; i < sizeof f / sizeof *f; i++) y = vf_fma(y, t, vf_set(f[i]));
    vf square = vf_mul(z, z), tail = vf_fma(z, z, vf_sub(vf_set(0), square)); /* z^2 = both */
    y = vf_mul(vf_mul(y, t), vf_exp(vf_sub(vf_set(0), square)));
    y = vf_fnma(y, tail, y);
    return vf_if_negative(x, vf_sub(vf_set(2), y), y);
}

/* x / (1 + exp(-y)) */
static inline vf vf_times_sigmoid(vf x, vf y)
{
    return vf_div(x, vf_add(vf_set(1), vf_exp(vf_sub(vf_set(0), y))));
}

static inline vf vf_silu(vf x) { return vf_times_sigmoid(x, x); }

/* (1 + tanh u) / 2 = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline vf vf_gelu_tanh(vf x)
{
    vf cubic = vf_fma(vf_mul(vf_mul(x, x), x), vf_set(0.044715f), x);
    return vf_times_sigmoid(x, vf_mul(cubic, vf_set(1.5957691216f)));
}

static inline vf vf_gelu_exact(vf x)
{
    return vf_mul(vf_mul(vf_set(0.5f), x), vf_erfc(vf_mul(x, vf_set(-0.7071067812f))));
}

/* NaN to -inf, +inf to the largest float. */
static inline vf vf_clean(vf x)
{
    return vf_max(vf_min(vf_set(0x1.fffffep127f), x), vf_set(-INFINITY));
}
