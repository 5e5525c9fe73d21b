/* Quantized products by AVX-512 VNNI: vpdpbusd adds four products of unsigned weight codes and
 * signed row codes to each of 16 lanes. Weight codes are stored with their offset; what it adds is
 * a multiple of the sum of the row's codes, with which the accumulators begin. */
#include <immintrin.h>

#include "base/error.h"
#include "cpu/kernels.h"
#include "cpu/quantize_simd.h"

enum { VECTORS = PANEL / 16, QUANT_ROWS = 6 };

static inline __m512i load(const uint8_t *p) { return _mm512_loadu_si512(p); }

/* The codes of group g (inputs 4g .. 4g + 3) of 16 outputs, with their offset. */
static inline __attribute__((always_inline)) __m512i group(const uint8_t *w, int g, const bool q4)
{
    if (!q4) return load(w + g * PANEL * 4);
    __m512i bytes = load(w + g % 4 * PANEL * 4);
    if (g >= 4) bytes = _mm512_srli_epi16(bytes, 4);
    return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
}

/* What the sums of a row begin with: less what the codes' offset adds to them. (Shifting a word
 * that was loaded into all lanes costs the multipliers nothing; multiplying it first would.) */
static inline __attribute__((always_inline)) __m512i begin(uint32_t sum, const bool q4)
{
    __m512i all = _mm512_set1_epi32((int)sum);
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(all, q4 ? 3 : 7));
}

/* A block's products of `n` rows: sums. */
static inline __attribute__((always_inline)) void
block(const uint8_t *w, const uint32_t *x, __m512i sums[QUANT_ROWS][VECTORS], const int n,
      const bool q4)
{
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) sums[r][v] = begin(x[9 * n + r], q4);
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        __m512i codes[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            codes[v] = group(w + v * 64, g, q4);
            /* A lone row waits for memory: its lines are to be read in their order, which the
             * processor's own prefetching follows and which the compiler would change. */
            if (n == 1 && !q4) __asm__ volatile("" : "+v"(codes[v]) : : "memory");
        }
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512i word = _mm512_set1_epi32((int)x[g * n + r]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], codes[v], word);
        }
    }
}

/* A tile: 12 sums and the 12 outputs that they go to stay in registers. Of a block and row (2,048
 * operations) 16 instructions multiply bytes and 4 apply scales, one a cycle on Zen 4: at most 80 %
 * of the byte products' peak. A row or two wait for memory. */
static inline __attribute__((always_inline)) void
tile(const struct matmul_tile *t, const int n, const bool q4)
{
    const int64_t block_bytes = q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    const char *prefetch = t->prefetch;
    __m512 out[QUANT_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) out[r][v] = _mm512_setzero_ps();
    for (int64_t s = 0; s < t->steps; s++, w += block_bytes, x += QUANT_WORDS * n) {
        prefetch_step(prefetch, t->prefetch_step, n);
        prefetch += t->prefetch_step;
        __m512i sums[QUANT_ROWS][VECTORS];
        block(w, x, sums, n, q4);
        const __m256i *scales = (const __m256i *)(w + block_bytes - 2 * PANEL);
        __m512 scale[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++)
            scale[v] = _mm512_cvtph_ps(_mm256_loadu_si256(scales + v));
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512 x_scale = _mm512_castsi512_ps(_mm512_set1_epi32((int)x[8 * n + r]));
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) {
                __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), x_scale);
                out[r][v] = _mm512_fmadd_ps(sum, scale[v], out[r][v]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < n; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(t->out + r * PANEL + v * 16, out[r][v]);
}

static inline __attribute__((always_inline)) void matmul(const struct matmul_tile *t, const bool q4)
{
    switch (t->rows) {
    case 1: tile(t, 1, q4); break;
    case 2: tile(t, 2, q4); break;
    case 3: tile(t, 3, q4); break;
    case 4: tile(t, 4, q4); break;
    case 5: tile(t, 5, q4); break;
    case 6: tile(t, 6, q4); break;
    default: ASSERT(!"more rows than a tile has");
    }
}

static void matmul_q8(const struct matmul_tile *t) { matmul(t, false); }
static void matmul_q4(const struct matmul_tile *t) { matmul(t, true); }

/* Even and odd values apart, whose codes then share half-words.
 * Of values that are not finite the codes are 0. */
static inline __m256i block_codes(const uint16_t *x, float factor)
{
    __m512 inverse = _mm512_set1_ps(factor);
    __m512i pairs = _mm512_loadu_si512(x), low = _mm512_set1_epi32(255);
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xFFFF0000)));
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(even, inverse));
    __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(odd, inverse));
    return _mm512_cvtepi32_epi16(
        _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32(b, 8)));
}

static void quantize_row(uint32_t *out, const uint16_t *x, int64_t n)
{
    quantize_blocks(out, x, n, block_codes);
}

void cpu_quant_kernels_avx512vnni(struct cpu_kernels *k)
{
    k->quant_rows = QUANT_ROWS;
    k->matmul_q8 = matmul_q8;
    k->matmul_q4 = matmul_q4;
    k->quantize_row = quantize_row;
}
