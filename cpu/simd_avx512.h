/* The vector vocabulary of the *_simd.h files in AVX-512 (F, BW, VL, DQ): 16 lanes. `n` lanes means
 * the first n, 0..16; loads put zero in the others, stores leave their memory alone. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

enum { LANES = 16 };

typedef __m512 vf;  /* 16 floats */
typedef __m512i vi; /* 16 words of 32 bits */

static inline __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }

static inline vf vf_set(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    return n == LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
/* Masked stores take many times a plain one's time on some processors. */
static inline void vf_store_n(float *p, vf a, int64_t n)
{
    if (n == LANES) _mm512_storeu_ps(p, a);
    else _mm512_mask_storeu_ps(p, first_lanes(n), a);
}
/* The first and the second ones of LANES pairs. */
static inline void vf_load_pairs(const float *p, vf *first, vf *second)
{
    __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    vf low = vf_load(p), high = vf_load(p + LANES);
    *first = _mm512_permutex2var_ps(low, even, high);
    *second = _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
}
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }  /* ab + c */
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - ab */
/* If one is NaN, the result is b. */
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_abs(vf a) { return _mm512_abs_ps(a); }
/* a 2^n for whole n; overflows to infinity, underflows to zero. */
static inline vf vf_scale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }
/* The first n lanes of a, then those of b. */
static inline vf vf_first(vf a, vf b, int64_t n)
{
    return _mm512_mask_blend_ps(first_lanes(n), b, a);
}
/* a where x < 0 (not for NaN), else b. */
static inline vf vf_if_negative(vf x, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), b, a);
}
/* One bit a lane: a > b. */
static inline uint32_t vf_above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
/* a where a > b, else zero. */
static inline vf vf_keep_above(vf a, vf b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), a);
}

/* Across lanes: halves onto halves, always in this order. */
static inline float vf_sum(vf a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float vf_highest(vf a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

/* Words of two bf16, the even one in the low half. */
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline vi vi_low_half(vi a) { return _mm512_and_si512(a, _mm512_set1_epi32(0xFFFF)); }
static inline vf vf_even(vi a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
static inline vf vf_odd(vi a)
{
    return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32((int)0xFFFF0000)));
}

/* To the nearest bf16, ties to even, in the high half of each word; NaN stays NaN. */
static inline vi vi_round_bf16(vf a)
{
    vi bits = _mm512_castps_si512(a);
    vi lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    vi rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7FFF)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}

static inline vf vf_round_bf16(vf a) { return vf_odd(vi_round_bf16(a)); }

/* n lanes. One permutation moves all halves, where a shift and a conversion between widths would
 * hold the few units that shift three times as long. */
static inline vf vf_load_bf16(const uint16_t *p, int64_t n)
{
    __m256i halves = n == LANES ? _mm256_loadu_si256((const __m256i *)p)
                                : _mm256_maskz_loadu_epi16(first_lanes(n), p);
    __m512i twice = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8,
                                     7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_castsi512_ps(
        _mm512_maskz_permutexvar_epi16(0xAAAAAAAA, twice, _mm512_castsi256_si512(halves)));
}

static inline void vf_store_bf16(uint16_t *p, vf a, int64_t n)
{
    __m512i high = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1,
                                    31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    __m256i halves = _mm512_castsi512_si256(_mm512_permutexvar_epi16(high, vi_round_bf16(a)));
    if (n == LANES) _mm256_storeu_si256((__m256i *)p, halves);
    else _mm256_mask_storeu_epi16(p, first_lanes(n), halves);
}

/* Whole numbers: words of 32 bits, in lanes of 64. */
static inline vi vi_set(uint32_t x) { return _mm512_set1_epi32((int)x); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_xor3(vi a, vi b, vi c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
/* Low words times low words. */
static inline vi vi_mul_wide(vi a, vi b) { return _mm512_mul_epu32(a, b); }
/* Each lane's high word in the low one's place. */
static inline vi vi_high_words(vi a) { return _mm512_srli_epi64(a, 32); }
/* The low words of a beside those of b. */
static inline vi vi_pairs(vi a, vi b)
{
    return _mm512_mask_blend_epi32(0xAAAA, a, _mm512_slli_epi64(b, 32));
}
/* Even lanes of a beside those of b; odd ones. */
static inline vi vi_join_even(vi a, vi b) { return _mm512_unpacklo_epi64(a, b); }
static inline vi vi_join_odd(vi a, vi b) { return _mm512_unpackhi_epi64(a, b); }
/* x where word a >= b, unsigned, else zero. */
static inline vf vf_if_at_least(vi a, vi b, vf x)
{
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(a, b), x);
}
