/* Blocks of a row become int8 codes (struct cpu_kernels, quantize_row): what AVX2 and AVX-512 do alike. Scales are
 * found for eight blocks at once: a division takes as long for one. */
#pragma once

#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "cpu/kernels.h"

enum { SCALES_AT_ONCE = 8 };

/* The largest of a block's magnitudes. Their bits sort as they do. */
static inline float largest_of(const uint16_t *x)
{
    __m256i mask = _mm256_set1_epi16(0x7FFF);
    __m256i low = _mm256_loadu_si256((const __m256i *)x), high = _mm256_loadu_si256((const __m256i *)(x + 16));
    __m256i larger = _mm256_max_epu16(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
    __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(larger), _mm256_extracti128_si256(larger, 1));
    __m128i inverted = _mm_xor_si128(eight, _mm_set1_epi32(-1));
    __m128i least = _mm_minpos_epu16(inverted);
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_slli_epi32(_mm_xor_si128(least, _mm_set1_epi32(-1)), 16)));
}

/* scale = the largest / 127, inverse = 127 / the largest, or 0 where that is no number. */
static inline void block_scales(const float largest[SCALES_AT_ONCE], float *scales, float *inverses)
{
    __m256 x = _mm256_loadu_ps(largest), most = _mm256_set1_ps(127);
    __m256 inverse = _mm256_div_ps(most, x);
    _mm256_storeu_ps(scales, _mm256_div_ps(x, most));
    _mm256_storeu_ps(inverses, _mm256_and_ps(inverse, _mm256_cmp_ps(inverse, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ)));
}

static inline int32_t codes_sum(__m256i codes)
{
    /* Sums of bytes are there only without a sign. */
    __m256i four = _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_unpackhi_epi64(two, two))) - 32 * 128;
}

/* A block's codes. */
typedef __m256i (*codes_fn)(const uint16_t *x, float inverse);

/* n blocks, at most SCALES_AT_ONCE. */
static inline __attribute__((always_inline)) void
quantize_some(uint32_t *out, const uint16_t *x, const int64_t n, codes_fn codes)
{
    float largest[SCALES_AT_ONCE] = {0}, scales[SCALES_AT_ONCE], inverses[SCALES_AT_ONCE];
#pragma GCC unroll 8
    for (int64_t b = 0; b < n; b++) largest[b] = largest_of(x + b * QUANT_BLOCK);
    block_scales(largest, scales, inverses);
#pragma GCC unroll 8
    for (int64_t b = 0; b < n; b++, out += QUANT_WORDS) {
        __m256i block = codes(x + b * QUANT_BLOCK, inverses[b]);
        _mm256_storeu_si256((__m256i *)out, block);
        memcpy(out + 8, &scales[b], sizeof *out);
        out[9] = (uint32_t)codes_sum(block);
    }
}

static inline __attribute__((always_inline)) void
quantize_blocks(uint32_t *out, const uint16_t *x, int64_t n, codes_fn codes)
{
    int64_t i = 0;
    for (; i + SCALES_AT_ONCE <= n; i += SCALES_AT_ONCE)
        quantize_some(out + i * QUANT_WORDS, x + i * QUANT_BLOCK, SCALES_AT_ONCE, codes);
    if (i < n) quantize_some(out + i * QUANT_WORDS, x + i * QUANT_BLOCK, n - i, codes);
}
