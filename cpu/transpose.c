/* Rows of words side by side, four by four. */
#include "cpu/transpose.h"

void transpose_words(uint32_t *out, const uint32_t *in, int64_t stride, int64_t n_rows, int64_t n)
{
    int64_t r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        const uint32_t *a = in + r * stride;
        int64_t s = 0;
        for (; s + 4 <= n; s += 4) {
            __m128i x[4], low, high, *to;
            for (int i = 0; i < 4; i++)
                x[i] = _mm_loadu_si128((const __m128i *)(a + i * stride + s));
            low = _mm_unpacklo_epi32(x[0], x[1]);
            high = _mm_unpacklo_epi32(x[2], x[3]);
            to = (__m128i *)(out + s * n_rows + r);
            _mm_storeu_si128(to, _mm_unpacklo_epi64(low, high));
            to = (__m128i *)(out + (s + 1) * n_rows + r);
            _mm_storeu_si128(to, _mm_unpackhi_epi64(low, high));
            low = _mm_unpackhi_epi32(x[0], x[1]);
            high = _mm_unpackhi_epi32(x[2], x[3]);
            to = (__m128i *)(out + (s + 2) * n_rows + r);
            _mm_storeu_si128(to, _mm_unpacklo_epi64(low, high));
            to = (__m128i *)(out + (s + 3) * n_rows + r);
            _mm_storeu_si128(to, _mm_unpackhi_epi64(low, high));
        }
        for (; s < n; s++)
            for (int i = 0; i < 4; i++) out[s * n_rows + r + i] = a[i * stride + s];
    }
    for (; r < n_rows; r++)
        for (int64_t s = 0; s < n; s++) out[s * n_rows + r] = in[r * stride + s];
}
