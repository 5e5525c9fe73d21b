/* The softmax's exponential where weights become bf16, whose 8 bits need no better one: ten
 * instructions instead of 14. After simd_avx512.h. */
#pragma once

#define PER_LN2 0x1.715476p0f /* 1 / ln 2: e^x = 2^(x / ln 2) */

/* 2^x for x up to 127, to 3e-6; 1 for 0, NaN for NaN, never below 2^-125.
 * The polynomial was fitted to the relative error. */
static inline vf vf_exp2_weight(vf x)
{
    const vf magic = vf_set(0x1.8p23f); /* added, it leaves whole numbers in the lowest bits */
    x = vf_max(vf_set(-125), x);
    vf whole = vf_add(x, magic), r = vf_sub(x, vf_sub(whole, magic));
    vf y = vf_set(0x1.3a02ccp-7f);
    y = vf_fma(y, r, vf_set(0x1.c9fc46p-5f));
    y = vf_fma(y, r, vf_set(0x1.ec0378p-3f));
    y = vf_fma(y, r, vf_set(0x1.62e12cp-1f));
    y = vf_fma(y, r, vf_set(1));
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), power));
}
