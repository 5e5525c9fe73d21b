/* Products with GGUF's quantized types by AVX-512 VNNI: see kquant.h, and quant_avx512vnni.c for
 * the idea. A panel of 32 outputs is two vectors. A lone row reads every byte of the weights for 2
 * operations a code, and is bound by that; many rows are bound by vpdpbusd, 16 for a step and row,
 * and by unpacking once for up to six rows. */
#include <immintrin.h>
#include <string.h>

#include "base/error.h"
#include "cpu/kquant_scales_avx512.h"

#define INLINE static inline __attribute__((always_inline))

enum { VECTORS = PANEL / 16, GROUP_ROWS = 6 };

/* A step's bytes of 16 outputs: rows of nibbles, then of what lies above them. */
struct bytes { __m512i row[6]; };

/* The codes of group g of 16 outputs, without their offset. */
INLINE __m512i group(const struct kquant q, const struct bytes *b, const int g)
{
    __m512i low = b->row[g % 4], high;
    if (g >= 4) low = _mm512_srli_epi16(low, 4);
    low = _mm512_and_si512(low, _mm512_set1_epi8(15));
    if (q.bits == 4) return low;
    high = b->row[q.bits == 5 ? 4 : 4 + g % 2];
    int left = q.bits == 5 ? 4 - g : 4 - g / 2 * 2; /* to bit 4 */
    if (left > 0) high = _mm512_slli_epi16(high, (unsigned)left);
    if (left < 0) high = _mm512_srli_epi16(high, (unsigned)-left);
    /* low | (high & mask) */
    return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(q.bits == 5 ? 16 : 48), 0xF8);
}

/* What the codes' offset adds to the sums of each row, negated: by half step where scales are. */
struct offsets { int32_t half[2][16]; };

INLINE void find_offsets(const struct kquant q, const uint32_t *x, int64_t rows,
                         struct offsets *out)
{
    __mmask16 all = (__mmask16)((1u << rows) - 1);
    __m512i sums = _mm512_maskz_loadu_epi32(all, x + 9 * rows), first = _mm512_setzero_si512();
    __m512i minus = _mm512_set1_epi32(-q.offset);
    if (q.n_scales == 2) {
#pragma GCC unroll 4
        for (int g = 0; g < 4; g++)
            first = _mm512_dpbusd_epi32(first, _mm512_set1_epi8(1),
                                        _mm512_maskz_loadu_epi32(all, x + g * rows));
        _mm512_storeu_si512(out->half[1], _mm512_mullo_epi32(_mm512_sub_epi32(sums, first), minus));
        sums = first;
    }
    _mm512_storeu_si512(out->half[0], _mm512_mullo_epi32(sums, minus));
}

/* The same for a row alone. */
INLINE void find_lone_offsets(const struct kquant q, const uint32_t *x, struct offsets *out)
{
    int32_t sum = (int32_t)x[9], first = sum;
    if (q.n_scales == 2) {
        __m128i words = _mm_loadu_si128((const __m128i *)x), zero = _mm_setzero_si128();
        words = _mm_dpbusd_epi32(zero, _mm_set1_epi8(1), words);
        words = _mm_add_epi32(words, _mm_srli_si128(words, 8));
        first = _mm_cvtsi128_si32(words) + _mm_extract_epi32(words, 1);
    }
    out->half[0][0] = -q.offset * first;
    out->half[1][0] = -q.offset * (sum - first);
}

/* A lone row's step: what the step before left, and the bytes and scales that are to be added to
 * it. It waits for memory, so its loads go through the panel once and from front to back, which is
 * what the processor's own prefetching follows. */
struct lone {
    __m512 sum[VECTORS];
    struct bytes bytes[VECTORS];
    struct scales scales[VECTORS];
};

INLINE void load_step_scales(const struct kquant q, const uint8_t *head, int64_t step,
                             struct scales s[VECTORS])
{
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) s[v] = load_scales(q, head, step, v);
}

INLINE void load_codes(const struct kquant q, const uint8_t *codes, struct bytes bytes[VECTORS],
                       const bool in_order)
{
#pragma GCC unroll 6
    for (int i = 0; i < q.bits; i++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            bytes[v].row[i] = _mm512_loadu_si512(codes + i * KQUANT_ROW_BYTES + v * 64);
            /* The compiler may neither move loads across this nor load again what it has. */
            if (in_order) __asm__ volatile("" : "+v"(bytes[v].row[i]) : : "memory");
        }
}

INLINE void load_lone(const struct kquant q, const uint8_t *panel, int64_t step, struct lone *lone)
{
    const uint8_t *head = kquant_head(q, panel, step);
    /* Of a head that is read a line a step, all lines now, in their turn. */
    if (q.n_scales == 2 && step % KQUANT_SUPER == 0)
        for (int i = 0; i < q.head_bytes; i += 64) _mm_prefetch(head + i, _MM_HINT_T0);
    /* where they lie before the codes */
    if (q.super) load_step_scales(q, head, step, lone->scales);
    load_codes(q, kquant_codes(q, panel, step), lone->bytes, true);
    if (!q.super) load_step_scales(q, head, step, lone->scales);
}

/* One step for `n` rows of `rows` side by side, into out [n][PANEL];
 * of a lone row into its sums. */
INLINE void step_rows(const struct kquant q, const uint8_t *codes, const struct scales s[VECTORS],
                      const struct offsets *offsets, int64_t row, const uint32_t *x, int64_t rows,
                      float *out, struct lone *lone, const int n)
{
    const int groups = 8 / q.n_scales;
    struct bytes several[VECTORS];
    if (!lone) load_codes(q, codes, several, false);
    const struct bytes *bytes = lone ? lone->bytes : several;
#pragma GCC unroll 2
    for (int half = 0; half < q.n_scales; half++) {
        __m512i acc[GROUP_ROWS][VECTORS];
#pragma GCC unroll 6
        for (int r = 0; r < n; r++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                acc[r][v] = q.offset ? _mm512_set1_epi32(offsets->half[half][row + r])
                                     : _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int g = half * groups; g < (half + 1) * groups; g++) {
            __m512i w[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) w[v] = group(q, &bytes[v], g);
#pragma GCC unroll 6
            for (int r = 0; r < n; r++) {
                __m512i word = _mm512_set1_epi32((int)x[g * rows + r]);
#pragma GCC unroll 2
                for (int v = 0; v < VECTORS; v++)
                    acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], w[v], word);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            __m512 x_scale = _mm512_castsi512_ps(_mm512_set1_epi32((int)x[8 * rows + r]));
            __m512 x_sum = _mm512_cvtepi32_ps(_mm512_set1_epi32((int)x[9 * rows + r]));
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) {
                float *to = out + r * PANEL + v * 16;
                __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), x_scale);
                sum = _mm512_fmadd_ps(sum, s[v].scale[half],
                                      lone ? lone->sum[v] : _mm512_loadu_ps(to));
                if (q.minimum)
                    sum = _mm512_fmadd_ps(_mm512_mul_ps(x_sum, x_scale), s[v].minimum, sum);
                if (lone) lone->sum[v] = sum;
                else _mm512_storeu_ps(to, sum);
            }
        }
    }
}

INLINE void some_rows(const struct kquant q, const uint8_t *codes, const struct scales s[VECTORS],
                      const struct offsets *offsets, int64_t row, const struct matmul_tile *t,
                      const uint32_t *x, int64_t n)
{
    float *out = t->out + row * PANEL;
    switch (n) {
    case 1: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 1); break;
    case 2: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 2); break;
    case 3: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 3); break;
    case 4: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 4); break;
    case 5: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 5); break;
    case 6: step_rows(q, codes, s, offsets, row, x + row, t->rows, out, NULL, 6); break;
    default: ASSERT(!"more rows than registers hold");
    }
}

/* A step's codes stay in the first-level cache while the rows take turns. */
INLINE void several_rows(const struct matmul_tile *t, const struct kquant q)
{
    const uint32_t *x = t->x;
    const char *prefetch = t->prefetch;
    const int64_t rows = t->rows, first = rows > GROUP_ROWS ? (rows + 1) / 2 : rows;
    _Static_assert(TILE_ROWS <= 2 * GROUP_ROWS, "two groups make a tile");
    memset(t->out, 0, (size_t)rows * PANEL * 4);
    for (int64_t step = 0; step < t->steps; step++, x += QUANT_WORDS * rows) {
        for (int64_t i = 0; i < t->prefetch_step; i += 64) _mm_prefetch(prefetch + i, _MM_HINT_T0);
        prefetch += t->prefetch_step;
        const uint8_t *codes = kquant_codes(q, t->w, step);
        struct scales s[VECTORS];
        load_step_scales(q, kquant_head(q, t->w, step), step, s);
        struct offsets offsets;
        if (q.offset) find_offsets(q, x, rows, &offsets);
        some_rows(q, codes, s, &offsets, 0, t, x, first);
        if (first < rows) some_rows(q, codes, s, &offsets, first, t, x, rows - first);
    }
}

/* Nothing is called for ahead: prefetches into the first level would hold a core to those that it
 * may have under way (some 20 GB/s), and fewer of them disturb what the processor does by
 * itself. */
INLINE void lone_row(const struct matmul_tile *t, const struct kquant q)
{
    const uint32_t *x = t->x;
    struct lone lone = {.sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}};
    for (int64_t step = 0; step < t->steps; step++, x += QUANT_WORDS) {
        load_lone(q, t->w, step, &lone);
        struct offsets offsets;
        if (q.offset) find_lone_offsets(q, x, &offsets);
        step_rows(q, NULL, lone.scales, &offsets, 0, x, 1, NULL, &lone, 1);
    }
    for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(t->out + v * 16, lone.sum[v]);
}

INLINE void product(const struct matmul_tile *t, const enum dtype type)
{
    if (t->rows == 1) lone_row(t, kquant_of(type));
    else several_rows(t, kquant_of(type));
}

#define PRODUCT(type) \
    static void matmul_##type(const struct matmul_tile *t) { product(t, DTYPE_##type); }
KQUANT_TYPES(PRODUCT)

void cpu_kquant_kernels_avx512vnni(struct cpu_kernels *k)
{
#define ENTRY(type) k->matmul_kquant[DTYPE_##type] = matmul_##type;
    KQUANT_TYPES(ENTRY)
}
