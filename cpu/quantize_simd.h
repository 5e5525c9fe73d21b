/* A block of a row becomes int8 codes (struct cpu_kernels, quantize_block): what AVX2 and AVX-512 do alike. */
#pragma once

#include <float.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* From the magnitudes of a block's bf16 values, their bits as whole numbers, two to a lane: scale = the largest / 127.
 * Returns 127 / the largest, or 0 where that is no number. Bits of magnitudes sort as the magnitudes do. */
static inline float block_scale(__m256i magnitudes, float *scale)
{
    __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
    __m128i inverted = _mm_xor_si128(eight, _mm_set1_epi32(-1));
    uint32_t bits = (uint32_t)(0xFFFF ^ _mm_extract_epi16(_mm_minpos_epu16(inverted), 0)) << 16;
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    __m128 quotients = _mm_div_ps(_mm_setr_ps(127, largest, 1, 1), _mm_setr_ps(largest, 127, 1, 1));
    *scale = _mm_cvtss_f32(_mm_movehdup_ps(quotients));
    float inverse = _mm_cvtss_f32(quotients);
    return inverse <= FLT_MAX ? inverse : 0;
}

static inline int32_t codes_sum(__m256i codes)
{
    /* Sums of bytes are there only without a sign. */
    __m256i four = _mm256_sad_epu8(_mm256_xor_si256(codes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    __m128i two = _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_unpackhi_epi64(two, two))) - 32 * 128;
}
