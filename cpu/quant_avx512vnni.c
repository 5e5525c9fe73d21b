/* Quantized products by AVX-512 VNNI: vpdpbusd adds four products of unsigned weight codes and signed row
 * codes to each of 16 lanes. Weight codes are stored with their offset; what it adds is a multiple of the
 * sum of the row's codes, with which the accumulators begin. */
#include <immintrin.h>
#include <string.h>

#include "base/error.h"
#include "cpu/kernels.h"

enum { VECTORS = PANEL / 16, GROUP_ROWS = 6 };

static inline __m512i load(const uint8_t *p) { return _mm512_loadu_si512(p); }

/* The codes of group g (inputs 4g .. 4g + 3) of 16 outputs, with their offset. */
static inline __attribute__((always_inline)) __m512i group(const uint8_t *w, int g, const bool q4)
{
    if (!q4) return load(w + g * PANEL * 4);
    __m512i bytes = load(w + g % 4 * PANEL * 4);
    if (g >= 4) bytes = _mm512_srli_epi16(bytes, 4);
    return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
}

/* One block for `n` rows, of `rows` side by side. */
static inline __attribute__((always_inline)) void
block(const uint8_t *w, const uint32_t *x, int64_t rows, float *out, const int n, const bool q4)
{
    __m512i acc[GROUP_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < n; r++) {
        __m512i begin = _mm512_set1_epi32((int)x[9 * rows + r] * (q4 ? -8 : -128));
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) acc[r][v] = begin;
    }
#pragma GCC unroll 8
    for (int g = 0; g < 8; g++) {
        __m512i codes[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) codes[v] = group(w + v * 64, g, q4);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512i word = _mm512_set1_epi32((int)x[g * rows + r]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], codes[v], word);
        }
    }
    const uint8_t *scales = w + (q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES) - 2 * PANEL;
    __m512 scale[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++)
        scale[v] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + v * 32)));
#pragma GCC unroll 6
    for (int r = 0; r < n; r++) {
        __m512 x_scale = _mm512_castsi512_ps(_mm512_set1_epi32((int)x[8 * rows + r]));
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            float *to = out + r * PANEL + v * 16;
            __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), x_scale);
            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, scale[v], _mm512_loadu_ps(to)));
        }
    }
}

static inline __attribute__((always_inline)) void
some_rows(const uint8_t *w, const uint32_t *x, int64_t rows, float *out, int64_t n, const bool q4)
{
    switch (n) {
    case 1: block(w, x, rows, out, 1, q4); break;
    case 2: block(w, x, rows, out, 2, q4); break;
    case 3: block(w, x, rows, out, 3, q4); break;
    case 4: block(w, x, rows, out, 4, q4); break;
    case 5: block(w, x, rows, out, 5, q4); break;
    case 6: block(w, x, rows, out, 6, q4); break;
    default: ASSERT(!"more rows than registers hold");
    }
}

/* A row alone waits for memory: its sums stay in registers, and lines that will be wanted are called for a few at a
 * time, between products. */
static inline __attribute__((always_inline)) void lone_row(const struct matmul_tile *t, const bool q4)
{
    const int64_t block_bytes = q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    const char *prefetch = t->prefetch;
    __m512 out[VECTORS] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t s = 0; s < t->steps; s++, w += block_bytes, x += QUANT_WORDS) {
        __m512i acc[VECTORS];
        for (int v = 0; v < VECTORS; v++) acc[v] = _mm512_set1_epi32((int)x[9] * (q4 ? -8 : -128));
#pragma GCC unroll 8
        for (int g = 0; g < 8; g++) {
            const char *line = prefetch + g * t->prefetch_step / 8;
            _mm_prefetch(line, _MM_HINT_T0);
            if (!q4) _mm_prefetch(line + 64, _MM_HINT_T0);
            __m512i word = _mm512_set1_epi32((int)x[g]);
            for (int v = 0; v < VECTORS; v++)
                acc[v] = _mm512_dpbusd_epi32(acc[v], group(w + v * 64, g, q4), word);
        }
        prefetch += t->prefetch_step;
        __m512 x_scale = _mm512_castsi512_ps(_mm512_set1_epi32((int)x[8]));
        for (int v = 0; v < VECTORS; v++) {
            const uint8_t *scales = w + block_bytes - 2 * PANEL + v * 32;
            __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
            out[v] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[v]), x_scale), scale, out[v]);
        }
    }
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(t->out + v * 16, out[v]);
}

/* Blocks of weights stay in the first-level cache while the rows take turns. */
static inline __attribute__((always_inline)) void matmul(const struct matmul_tile *t, const bool q4)
{
    const int64_t block_bytes = q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    const char *prefetch = t->prefetch;
    int64_t rows = t->rows, first = rows > GROUP_ROWS ? (rows + 1) / 2 : rows;
    _Static_assert(TILE_ROWS <= 2 * GROUP_ROWS, "two groups make a tile");
    memset(t->out, 0, (size_t)rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, w += block_bytes, x += QUANT_WORDS * rows) {
        for (int64_t i = 0; i < t->prefetch_step; i += 64) _mm_prefetch(prefetch + i, _MM_HINT_T0);
        prefetch += t->prefetch_step;
        some_rows(w, x, rows, t->out, first, q4);
        if (first < rows) some_rows(w, x + first, rows, t->out + first * PANEL, rows - first, q4);
    }
}

static void matmul_q8(const struct matmul_tile *t)
{
    if (t->rows == 1) lone_row(t, false);
    else matmul(t, false);
}

static void matmul_q4(const struct matmul_tile *t)
{
    if (t->rows == 1) lone_row(t, true);
    else matmul(t, true);
}

static inline __m512 load_bf16(const uint16_t *x)
{
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

static void quantize_block(const uint16_t *x, int8_t codes[QUANT_BLOCK], float *scale, int32_t *sum)
{
    __m512 a = load_bf16(x), b = load_bf16(x + 16);
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0);
    __m512i ca = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
    __m512i cb = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    __m512i limit = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127);
    ca = _mm512_max_epi32(_mm512_min_epi32(ca, limit), least);
    cb = _mm512_max_epi32(_mm512_min_epi32(cb, limit), least);
    _mm_storeu_si128((__m128i *)codes, _mm512_cvtepi32_epi8(ca));
    _mm_storeu_si128((__m128i *)(codes + 16), _mm512_cvtepi32_epi8(cb));
    *scale = largest / 127.0f;
    *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(ca, cb));
}

void cpu_quant_kernels_avx512vnni(struct cpu_kernels *k)
{
    k->matmul_q8 = matmul_q8;
    k->matmul_q4 = matmul_q4;
    k->quantize_block = quantize_block;
}
