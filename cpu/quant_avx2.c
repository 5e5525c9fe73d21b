/* Quantized products in AVX2: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16
 * bits, which magnitudes of at most 127 never overflow (2 * 127 * 127 < 2^15). */
#include <immintrin.h>
#include <string.h>

#include "cpu/kernels.h"
#include "cpu/quantize_simd.h"

enum { VECTORS = PANEL / 8 };

/* acc + w x, four products to a lane. */
static inline __m256i dot(__m256i acc, __m256i w, __m256i x)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline __m256i load(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* The codes of group g (inputs 4g .. 4g + 3) of 8 outputs, as what they mean. */
static inline __attribute__((always_inline)) __m256i group(const uint8_t *w, int g, const bool q4)
{
    if (!q4) return _mm256_sub_epi8(load(w + g * PANEL * 4), _mm256_set1_epi8((char)128));
    __m256i bytes = load(w + g % 4 * PANEL * 4);
    if (g >= 4) bytes = _mm256_srli_epi16(bytes, 4);
    return _mm256_sub_epi8(_mm256_and_si256(bytes, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
}

/* One block for one row. */
static inline __attribute__((always_inline)) void
block(const uint8_t *w, const uint32_t *x, int64_t rows, float *out, const bool q4)
{
    const uint8_t *scales = w + (q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES) - 2 * PANEL;
    float x_scale;
    memcpy(&x_scale, &x[8 * rows], sizeof x_scale);
    for (int v = 0; v < VECTORS; v++) {
        __m256i acc = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++)
            acc = dot(acc, group(w + v * 32, g, q4), _mm256_set1_epi32((int)x[g * rows]));
        __m256 sum = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_set1_ps(x_scale));
        __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(scales + v * 16)));
        _mm256_storeu_ps(out + v * 8, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out + v * 8)));
    }
}

static inline __attribute__((always_inline)) void matmul(const struct matmul_tile *t, const bool q4)
{
    const int64_t block_bytes = q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    const char *prefetch = t->prefetch;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, w += block_bytes, x += QUANT_WORDS * t->rows) {
        prefetch_step(prefetch, t->prefetch_step, t->rows);
        prefetch += t->prefetch_step;
        for (int32_t r = 0; r < t->rows; r++) block(w, x + r, t->rows, t->out + r * PANEL, q4);
    }
}

static void matmul_q8(const struct matmul_tile *t) { matmul(t, false); }
static void matmul_q4(const struct matmul_tile *t) { matmul(t, true); }

/* Eight values' codes as words. */
static inline __m256i codes_of(const uint16_t *x, __m256 inverse)
{
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_cvtps_epi32(
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), inverse));
}

static inline __m256i block_codes(const uint16_t *x, float factor)
{
    __m256 inverse = _mm256_set1_ps(factor);
    __m256i ab = _mm256_packs_epi32(codes_of(x, inverse), codes_of(x + 8, inverse));
    __m256i cd = _mm256_packs_epi32(codes_of(x + 16, inverse), codes_of(x + 24, inverse));
    /* Packing goes by halves: groups of four codes lie as 0 2 4 6, 1 3 5 7. */
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void quantize_row(uint32_t *out, const uint16_t *x, int64_t n)
{
    quantize_blocks(out, x, n, block_codes);
}

void cpu_quant_kernels_avx2(struct cpu_kernels *k)
{
    k->matmul_q8 = matmul_q8;
    k->matmul_q4 = matmul_q4;
    k->quantize_row = quantize_row;
}
