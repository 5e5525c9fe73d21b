/* Packing's inner loops: rows of 32-bit words side by side, and pairs of 16-bit ones. SSE2, which
 * every x86-64 has: they move bytes, so wider vectors would wait for the same memory. */
#pragma once

#include <emmintrin.h>
#include <stdint.h>

/* out[s * n_rows + r] = in[r * stride + s] for r < n_rows, s < n. */
void transpose_words(uint32_t *out, const uint32_t *in, int64_t stride, int64_t n_rows, int64_t n);

/* out[i] = low[i] beside high[i]. */
static inline void pair_words(uint32_t *restrict out, const uint16_t *restrict low,
                              const uint16_t *restrict high, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = low[i] | (uint32_t)high[i] << 16;
}

/* Two neighbouring words hold a pair each: the pairs of their low halves,
 * and of their high ones. */
static inline __m128i pair_across(__m128i words)
{
    enum { MIDDLE_SWAPPED = 0 | 2 << 2 | 1 << 4 | 3 << 6 };
    return _mm_shufflehi_epi16(_mm_shufflelo_epi16(words, MIDDLE_SWAPPED), MIDDLE_SWAPPED);
}

/* 16 x 16 pairs along one index become pairs along the other: with in [k][2 x 16], out [16][2 x k],
 *   out[j][2 k] = low halves of in[k][2 j], in[k][2 j + 1];  out[j][2 k + 1] = their high ones
 * for k < 16 and j < n_j; rows of both are 32 words. */
static inline void turn_pairs(uint32_t *out, const uint32_t *in, int64_t n_j)
{
    int64_t j = 0;
    for (; j + 2 <= n_j; j += 2)
        for (int64_t k = 0; k < 16; k += 2) {
            __m128i a = pair_across(_mm_loadu_si128((const __m128i *)(in + k * 32 + 2 * j)));
            __m128i b = pair_across(_mm_loadu_si128((const __m128i *)(in + (k + 1) * 32 + 2 * j)));
            _mm_storeu_si128((__m128i *)(out + j * 32 + 2 * k), _mm_unpacklo_epi64(a, b));
            _mm_storeu_si128((__m128i *)(out + (j + 1) * 32 + 2 * k), _mm_unpackhi_epi64(a, b));
        }
    for (; j < n_j; j++)
        for (int64_t k = 0; k < 16; k++) {
            uint32_t a = in[k * 32 + 2 * j], b = in[k * 32 + 2 * j + 1];
            out[j * 32 + 2 * k] = (a & 0xFFFF) | b << 16;
            out[j * 32 + 2 * k + 1] = a >> 16 | (b & 0xFFFF0000);
        }
}
