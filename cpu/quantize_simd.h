/* Blocks of a row become int8 codes (struct cpu_kernels, quantize_row): what AVX2 and AVX-512
 * do alike. Eight blocks go together: a division takes as long for one, and to find eight
 * maxima (or sums) across lanes takes not much longer either when vectors are folded onto each
 * other until each block has one lane. */
#pragma once

#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "cpu/kernels.h"

enum { BLOCKS_AT_ONCE = 8 };

/* Halves of the two, side by side in pairs of `bits`, folded by their larger words. */
#define FOLD_LARGER(a, b, bits) \
    _mm256_max_epu16(_mm256_unpacklo_epi##bits(a, b), _mm256_unpackhi_epi##bits(a, b))

/* The largest magnitude of each block. Their bits sort as they do. */
static inline __attribute__((always_inline)) __m256 largest_of(const uint16_t *x, const int64_t n)
{
    __m256i mask = _mm256_set1_epi16(0x7FFF), m[BLOCKS_AT_ONCE];
#pragma GCC unroll 8
    for (int b = 0; b < BLOCKS_AT_ONCE; b++) {
        const __m256i *block = (const __m256i *)(x + (b < n ? b : 0) * QUANT_BLOCK);
        __m256i low = _mm256_loadu_si256(block), high = _mm256_loadu_si256(block + 1);
        m[b] = _mm256_max_epu16(_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
    }
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) m[b] = FOLD_LARGER(m[2 * b], m[2 * b + 1], 16);
    m[0] = FOLD_LARGER(m[0], m[1], 32), m[1] = FOLD_LARGER(m[2], m[3], 32);
    m[0] = FOLD_LARGER(m[0], m[1], 64);
    __m128i all = _mm_max_epu16(_mm256_castsi256_si128(m[0]), _mm256_extracti128_si256(m[0], 1));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(all), 16));
}

/* 127 / the largest, or 0 where that is no number. */
static inline __m256 inverses_of(__m256 largest)
{
    __m256 inverse = _mm256_div_ps(_mm256_set1_ps(127), largest);
    return _mm256_and_ps(inverse, _mm256_cmp_ps(inverse, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
}

/* The sum of each block's codes. Sums of bytes are there only without a sign; four blocks' parts of
 * them, of at most 11 bits, go side by side into 64. */
static inline __attribute__((always_inline)) __m256i codes_sums(const __m256i codes[BLOCKS_AT_ONCE])
{
    __m128i halves[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256i all = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            __m256i shifted = _mm256_xor_si256(codes[4 * h + b], _mm256_set1_epi8(-128));
            __m256i parts = _mm256_sad_epu8(shifted, _mm256_setzero_si256());
            all = _mm256_or_si256(all, _mm256_slli_epi64(parts, 16 * b));
        }
        halves[h] = _mm_add_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    }
    __m128i low = _mm_unpacklo_epi64(halves[0], halves[1]);
    __m128i high = _mm_unpackhi_epi64(halves[0], halves[1]);
    return _mm256_sub_epi32(_mm256_cvtepu16_epi32(_mm_add_epi16(low, high)),
                            _mm256_set1_epi32(QUANT_BLOCK * 128));
}

/* A block's codes. */
typedef __m256i (*codes_fn)(const uint16_t *x, float inverse);

/* n blocks, at most BLOCKS_AT_ONCE. */
static inline __attribute__((always_inline)) void
quantize_some(uint32_t *out, const uint16_t *x, const int64_t n, codes_fn codes)
{
    float inverses[BLOCKS_AT_ONCE];
    uint64_t words[BLOCKS_AT_ONCE]; /* scale and sum: of blocks 0, 1, 4, 5, then of the others */
    __m256 largest = largest_of(x, n);
    __m256i all[BLOCKS_AT_ONCE];
    __m256i scales = _mm256_castps_si256(_mm256_div_ps(largest, _mm256_set1_ps(127)));
    _mm256_storeu_ps(inverses, inverses_of(largest));
#pragma GCC unroll 8
    for (int64_t b = 0; b < BLOCKS_AT_ONCE; b++)
        all[b] = b < n ? codes(x + b * QUANT_BLOCK, inverses[b]) : _mm256_setzero_si256();
    __m256i sums = codes_sums(all);
    _mm256_storeu_si256((__m256i *)words, _mm256_unpacklo_epi32(scales, sums));
    _mm256_storeu_si256((__m256i *)words + 1, _mm256_unpackhi_epi32(scales, sums));
#pragma GCC unroll 8
    for (int64_t b = 0; b < BLOCKS_AT_ONCE; b++, out += QUANT_WORDS) {
        if (b >= n) break;
        _mm256_storeu_si256((__m256i *)out, all[b]);
        memcpy(out + 8, &words[b / 4 * 2 + b % 2 + b % 4 / 2 * 4], sizeof *words);
    }
}

static inline __attribute__((always_inline)) void
quantize_blocks(uint32_t *out, const uint16_t *x, int64_t n, codes_fn codes)
{
    int64_t i = 0;
    for (; i + BLOCKS_AT_ONCE <= n; i += BLOCKS_AT_ONCE)
        quantize_some(out + i * QUANT_WORDS, x + i * QUANT_BLOCK, BLOCKS_AT_ONCE, codes);
    if (i < n) quantize_some(out + i * QUANT_WORDS, x + i * QUANT_BLOCK, n - i, codes);
}
