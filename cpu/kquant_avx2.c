/* Products with GGUF's quantized types in AVX2: see kquant.h. vpmaddubsw multiplies codes of at
 * most 6 bits by signed bytes and adds pairs in 16 bits, which then hold the sums of several
 * groups: 4 of 5 bits (4 * 2 * 31 * 127 < 2^15), 2 of 6. Codes are unpacked once a step for all
 * rows; a lone row is bound by the bytes of the weights. */
#include <immintrin.h>
#include <string.h>

#include "cpu/kquant.h"
#include "cpu/simd_avx2.h"

#define INLINE static inline __attribute__((always_inline))

enum { VECTORS = PANEL / 8 };

INLINE __m256i load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* The codes of group g of 8 outputs, without their offset. */
INLINE __m256i group(const struct kquant q, const uint8_t *codes, const int g)
{
    __m256i low = load(codes + g % 4 * KQUANT_ROW_BYTES), high;
    if (g >= 4) low = _mm256_srli_epi16(low, 4);
    low = _mm256_and_si256(low, _mm256_set1_epi8(15));
    if (q.bits == 4) return low;
    const uint8_t *above = codes + KQUANT_NIBBLE_BYTES;
    const int left = q.bits == 5 ? 4 - g : 4 - g / 2 * 2; /* to bit 4 */
    high = load(q.bits == 5 ? above : above + g % 2 * KQUANT_ROW_BYTES);
    if (left > 0) high = _mm256_slli_epi16(high, left);
    if (left < 0) high = _mm256_srli_epi16(high, -left);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(q.bits == 5 ? 16 : 48)));
}

INLINE __m128i load_bytes(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)p); }
INLINE vf load_f16(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
INLINE vf unsigned_floats(__m128i a) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(a)); }
INLINE vf signed_floats(__m128i a) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(a)); }

#include "cpu/kquant_scales_simd.h"

/* Sums of one row over groups [g0, g1) of 8 outputs. */
INLINE __m256i dot(const struct kquant q, const __m256i codes[8], const uint32_t *x, int64_t rows,
                   const int g0, const int g1)
{
    const int together = q.bits == 6 ? 2 : 4;
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int g = g0; g < g1; g += together) {
        __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int i = g; i < g + together; i++)
            pairs = _mm256_add_epi16(
                pairs, _mm256_maddubs_epi16(codes[i], _mm256_set1_epi32((int)x[i * rows])));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return sum;
}

/* The sums of each row's codes over the first half of a step. */
INLINE void first_sums(const uint32_t *x, int64_t rows, int32_t sums[TILE_ROWS])
{
    for (int64_t r = 0; r < rows; r++) {
        sums[r] = 0;
        for (int g = 0; g < 4; g++)
            for (int i = 0; i < 4; i++) sums[r] += (int8_t)(x[g * rows + r] >> i * 8);
    }
}

/* One step of 8 outputs for all rows. */
INLINE void step_rows(const struct kquant q, const uint8_t *codes, const struct scales s,
                      const uint32_t *x, int64_t rows, const int32_t first[], float *out)
{
    __m256i w[8];
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) w[g] = group(q, codes, g);
    for (int64_t r = 0; r < rows; r++, x++, out += PANEL) {
        __m256 to = _mm256_loadu_ps(out);
        __m256 x_scale = _mm256_castsi256_ps(_mm256_set1_epi32((int)x[8 * rows]));
        int32_t x_sum = (int32_t)x[9 * rows];
#pragma GCC unroll 2
        for (int half = 0; half < q.n_scales; half++) {
            const int groups = 8 / q.n_scales;
            __m256i sum = dot(q, w, x, rows, half * groups, (half + 1) * groups);
            int32_t half_sum = q.n_scales == 1 ? x_sum : half == 0 ? first[r] : x_sum - first[r];
            int32_t minus = -q.offset * half_sum;
            if (q.offset) sum = _mm256_add_epi32(sum, _mm256_set1_epi32(minus));
            to = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), x_scale), s.scale[half],
                                 to);
        }
        if (q.minimum)
            to = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps((float)x_sum), x_scale), s.minimum,
                                 to);
        _mm256_storeu_ps(out, to);
    }
}

INLINE void matmul(const struct matmul_tile *t, const struct kquant q)
{
    const uint8_t *w = t->w;
    const uint32_t *x = t->x;
    const char *prefetch = t->prefetch;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t step = 0; step < t->steps; step++, x += QUANT_WORDS * t->rows) {
        for (int64_t i = 0; i < t->prefetch_step; i += 64) _mm_prefetch(prefetch + i, _MM_HINT_T0);
        prefetch += t->prefetch_step;
        const uint8_t *codes = kquant_codes(q, w, step), *head = kquant_head(q, w, step);
        int32_t first[TILE_ROWS];
        if (q.n_scales == 2) first_sums(x, t->rows, first);
        for (int v = 0; v < VECTORS; v++)
            step_rows(q, codes + v * 32, load_scales(q, head, step, v), x, t->rows, first,
                      t->out + v * 8);
    }
}

#define PRODUCT(type) \
    static void matmul_##type(const struct matmul_tile *t) { matmul(t, kquant_of(DTYPE_##type)); }
KQUANT_TYPES(PRODUCT)

void cpu_kquant_kernels_avx2(struct cpu_kernels *k)
{
#define ENTRY(type) k->matmul_kquant[DTYPE_##type] = matmul_##type;
    KQUANT_TYPES(ENTRY)
}
