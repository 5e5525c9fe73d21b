/* The vector vocabulary of the *_simd.h files in AVX2 and FMA: 8 lanes. `n` lanes means the first
 * n, 0..8; loads put zero in the others, stores leave their memory alone. */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8 };

typedef __m256 vf;  /* 8 floats */
typedef __m256i vi; /* 8 words of 32 bits */

static inline vi first_lanes(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vf_set(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    return n == LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}
static inline void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
/* Masked stores take many times a plain one's time on some processors. */
static inline void vf_store_n(float *p, vf a, int64_t n)
{
    if (n == LANES) _mm256_storeu_ps(p, a);
    else _mm256_maskstore_ps(p, first_lanes(n), a);
}
/* The first and the second ones of LANES pairs. */
static inline void vf_load_pairs(const float *p, vf *first, vf *second)
{
    enum { EVEN = 0 | 2 << 2 | 0 << 4 | 2 << 6, ODD = 1 | 3 << 2 | 1 << 4 | 3 << 6 };
    vf a = vf_load(p), b = vf_load(p + LANES);
    vf low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    *first = _mm256_shuffle_ps(low, high, EVEN);
    *second = _mm256_shuffle_ps(low, high, ODD);
}
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }  /* ab + c */
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); } /* c - ab */
/* If one is NaN, the result is b. */
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
/* a 2^n for whole n, |n| < 250, in two steps, so that neither factor leaves the range; overflows to
 * infinity, underflows to zero. */
static inline vf vf_scale2(vf a, vf n)
{
    vi whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    vi bias = _mm256_set1_epi32(127), rest = _mm256_sub_epi32(whole, half);
    vi f = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    vi g = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return vf_mul(vf_mul(a, _mm256_castsi256_ps(f)), _mm256_castsi256_ps(g));
}
/* The first n lanes of a, then those of b. */
static inline vf vf_first(vf a, vf b, int64_t n)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(first_lanes(n)));
}
/* a where x < 0 (not for NaN), else b. */
static inline vf vf_if_negative(vf x, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
/* One bit a lane: a > b. */
static inline uint32_t vf_above(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
/* a where a > b, else zero. */
static inline vf vf_keep_above(vf a, vf b)
{
    return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ), a);
}

/* Across lanes: halves onto halves, always in this order. */
static inline float vf_sum(vf a)
{
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float vf_highest(vf a)
{
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

/* Words of two bf16, the even one in the low half. */
static inline vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
static inline vi vi_low_half(vi a) { return _mm256_and_si256(a, _mm256_set1_epi32(0xFFFF)); }
static inline vf vf_even(vi a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
static inline vf vf_odd(vi a)
{
    return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32((int)0xFFFF0000)));
}

/* To the nearest bf16, ties to even, in the high half of each word; NaN stays NaN. */
static inline vi vi_round_bf16(vf a)
{
    vi bits = _mm256_castps_si256(a);
    vi lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    vi rounded = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF)));
    vi quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    vi nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

static inline vf vf_round_bf16(vf a) { return vf_odd(vi_round_bf16(a)); }

/* n lanes. */
static inline vf vf_load_bf16(const uint16_t *p, int64_t n)
{
    uint16_t lanes[LANES] = {0};
    if (n < LANES) p = memcpy(lanes, p, (size_t)n * sizeof *p);
    return vf_even(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)));
}

static inline void vf_store_bf16(uint16_t *p, vf a, int64_t n)
{
    vi rounded = _mm256_srli_epi32(vi_round_bf16(a), 16);
    __m128i halves =
        _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    if (n == LANES) {
        _mm_storeu_si128((__m128i *)p, halves);
        return;
    }
    uint16_t lanes[LANES];
    _mm_storeu_si128((__m128i *)lanes, halves);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}

/* Whole numbers: words of 32 bits, in lanes of 64. */
static inline vi vi_set(uint32_t x) { return _mm256_set1_epi32((int)x); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_xor3(vi a, vi b, vi c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
/* Low words times low words. */
static inline vi vi_mul_wide(vi a, vi b) { return _mm256_mul_epu32(a, b); }
/* Each lane's high word in the low one's place. */
static inline vi vi_high_words(vi a) { return _mm256_srli_epi64(a, 32); }
/* The low words of a beside those of b. */
static inline vi vi_pairs(vi a, vi b)
{
    return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
}
/* Even lanes of a beside those of b; odd ones. */
static inline vi vi_join_even(vi a, vi b) { return _mm256_unpacklo_epi64(a, b); }
static inline vi vi_join_odd(vi a, vi b) { return _mm256_unpackhi_epi64(a, b); }
/* x where word a >= b, unsigned, else zero. */
static inline vf vf_if_at_least(vi a, vi b, vf x)
{
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_max_epu32(a, b), a)));
}
