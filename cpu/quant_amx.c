/* Quantized products by AMX's products of signed bytes.
 *
 * A panel's codes are unpacked to bytes, at most 32 steps of them at a time (32 KiB), while the
 * rows of a group take turns. A unit is what shares a scale: a step of 32 inputs, or half of one
 * with q6_K. Cycles of a unit of 32 rows x 32 outputs x 32 inputs (65,536 operations), at best:
 * four products at 16, half full, since a unit ends with its 32nd input: 64. Beside them the
 * scales: 64 vectors of sums are stored, loaded, converted, multiplied and added, three
 * instructions each on two ports (four where there are minima): 96, and 64 stores. So it is the
 * scales that limit this, at some 600 operations a cycle; VNNI comes to about 200. q6_K's units
 * take as long and do half as much. */
#include "cpu/simd_avx512.h"

#include <string.h>

#include "base/checked.h"
#include "cpu/amx.h"
#include "cpu/kquant_scales_avx512.h"

enum {
    PART_STEPS = 32,               /* unpacked at a time; whole heads of K types */
    STEP_CODES = PANEL * QUANT_BLOCK,
    MOST_UNITS = 2,                /* of a step */
    TILE_SUMS = AMX_ROWS * PANEL,
    UNITS_AT_ONCE = 2,             /* for which outputs stay in registers */
    MAX_BLOCKS = AMX_GROUP_ROWS / AMX_ROWS,
};

/* A part of a panel. */
struct part {
    _Alignas(64) int8_t codes[PART_STEPS * STEP_CODES]; /* [steps][8][PANEL][4] */
    _Alignas(64) float scales[PART_STEPS * MOST_UNITS * PANEL]; /* [units][PANEL] */
    _Alignas(64) float minima[PART_STEPS * PANEL];      /* [steps][PANEL], if the type has any */
    int64_t units;                                      /* of a step */
    bool minimum;
};

/* Sums of UNITS_AT_ONCE units. */
struct sums { _Alignas(64) int32_t of[UNITS_AT_ONCE][TILE_SUMS]; };

/* Tiles 0 to 3: sums. 4, 5: 16 rows of a unit's codes each. 6, 7: codes of 16 outputs,
 * inputs by fours. */
static void configure(int64_t units)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } c = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 0, 0, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, 0, 0},
    };
    _Static_assert(sizeof c == 64, "the operand of ldtilecfg");
    c.row_bytes[4] = c.row_bytes[5] = (uint16_t)(QUANT_BLOCK / units);
    c.rows[6] = c.rows[7] = (uint8_t)(QUANT_BLOCK / 4 / units);
    __asm__ volatile("ldtilecfg %0" : : "m"(c) : "memory");
}

/* sums [32][PANEL] of the products of one unit: 32 rows of codes at a, 32 outputs at b. */
static inline void multiply_unit(const int8_t *a, const int8_t *b, int32_t *sums)
{
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
                     "tileloadd (%[a],%[ar],1), %%tmm4\n\t"
                     "tileloadd (%[b],%[br],1), %%tmm6\n\t"
                     "tdpbssd %%tmm6, %%tmm4, %%tmm0\n\t"
                     "tileloadd 64(%[b],%[br],1), %%tmm7\n\t"
                     "tdpbssd %%tmm7, %%tmm4, %%tmm1\n\t"
                     "tileloadd 512(%[a],%[ar],1), %%tmm5\n\t"
                     "tdpbssd %%tmm6, %%tmm5, %%tmm2\n\t"
                     "tdpbssd %%tmm7, %%tmm5, %%tmm3\n\t"
                     "tilestored %%tmm0, (%[c],%[br],1)\n\t"
                     "tilestored %%tmm1, 64(%[c],%[br],1)\n\t"
                     "tilestored %%tmm2, 2048(%[c],%[br],1)\n\t"
                     "tilestored %%tmm3, 2112(%[c],%[br],1)"
                     :
                     : [a] "r"(a), [ar] "r"((int64_t)QUANT_BLOCK), [b] "r"(b),
                       [br] "r"((int64_t)PANEL * 4), [c] "r"(sums)
                     : "memory");
}

/* ---- a panel's codes as signed bytes, scales as f32 ---- */

static inline void unpack_block(struct part *part, int64_t step, const uint8_t *w, bool q4)
{
    const int64_t code_bytes = q4 ? STEP_CODES / 2 : STEP_CODES;
    const __m512i offset = _mm512_set1_epi8(8), mask = _mm512_set1_epi8(15);
    const __m512i sign = _mm512_set1_epi8(-128);
    int8_t *to = part->codes + step * STEP_CODES;
    for (int64_t i = 0; i < code_bytes; i += 64) {
        __m512i codes = _mm512_loadu_si512(w + i);
        if (!q4) {
            _mm512_store_si512(to + i, _mm512_xor_si512(codes, sign)); /* 128 less */
            continue;
        }
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
        _mm512_store_si512(to + i, _mm512_sub_epi8(_mm512_and_si512(codes, mask), offset));
        _mm512_store_si512(to + code_bytes + i, _mm512_sub_epi8(high, offset));
    }
    for (int v = 0; v < PANEL; v += LANES)
        vf_store(part->scales + step * PANEL + v, load_f16(w + code_bytes + 2 * v));
}

/* Group g of LANES outputs from the layout of kquant.h. */
static inline __attribute__((always_inline)) __m512i
kquant_group(const struct kquant q, const uint8_t *codes, const int g)
{
    __m512i code = _mm512_srli_epi16(vi_load(codes + g % 4 * KQUANT_ROW_BYTES), g < 4 ? 0 : 4);
    __m512i above;
    code = _mm512_and_si512(code, _mm512_set1_epi8(15));
    if (q.bits == 5) {
        above = _mm512_srli_epi16(vi_load(codes + KQUANT_NIBBLE_BYTES), (unsigned)g);
        above = _mm512_slli_epi16(_mm512_and_si512(above, _mm512_set1_epi8(1)), 4);
        code = _mm512_or_si512(code, above);
    }
    if (q.bits == 6) {
        above = vi_load(codes + KQUANT_NIBBLE_BYTES + g % 2 * KQUANT_ROW_BYTES);
        above = _mm512_and_si512(_mm512_srli_epi16(above, (unsigned)(g / 2 * 2)),
                                 _mm512_set1_epi8(3));
        code = _mm512_or_si512(code, _mm512_slli_epi16(above, 4));
    }
    return _mm512_sub_epi8(code, _mm512_set1_epi8((char)q.offset));
}

static inline __attribute__((always_inline)) void
unpack_kquant(struct part *part, const struct kquant q, const uint8_t *panel, int64_t step0,
              int64_t steps)
{
    for (int64_t s = 0; s < steps; s++) {
        const uint8_t *codes = kquant_codes(q, panel, step0 + s);
        const uint8_t *head = kquant_head(q, panel, step0 + s);
#pragma GCC unroll 2
        for (int v = 0; v < PANEL / LANES; v++) {
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++)
                _mm512_store_si512(part->codes + s * STEP_CODES + g * KQUANT_ROW_BYTES + v * 64,
                                   kquant_group(q, codes + v * 64, g));
            struct scales scales = load_scales(q, head, step0 + s, v);
            for (int half = 0; half < q.n_scales; half++)
                vf_store(part->scales + (s * q.n_scales + half) * PANEL + v * LANES,
                         scales.scale[half]);
            if (q.minimum) vf_store(part->minima + s * PANEL + v * LANES, scales.minimum);
        }
    }
    part->units = q.n_scales;
    part->minimum = q.minimum;
}

static void unpack(struct part *part, enum dtype type, const uint8_t *panel, int64_t step0,
                   int64_t steps)
{
    bool q4 = type == DTYPE_Q4_0;
    switch (type) {
#define UNPACK(name) \
    case DTYPE_##name: unpack_kquant(part, kquant_of(DTYPE_##name), panel, step0, steps); return;
        KQUANT_TYPES(UNPACK)
    default: break;
    }
    part->units = 1;
    part->minimum = false;
    for (int64_t s = 0; s < steps; s++)
        unpack_block(part, s, panel + (step0 + s) * (q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES), q4);
}

/* ---- products ---- */

/* Rows of a block, for the steps of a part. */
struct left {
    const int8_t *codes;
    const float *scales, *sums; /* [steps][32 rows] */
};

/* out [32][PANEL] += sums of units [u, u + n) x scale w scale, unit after unit, and what minima
 * add: the VNNI kernels' order and roundings. */
static inline __attribute__((always_inline)) void
scale_sums(float *out, const struct part *part, const struct left *x, const struct sums *sums,
           int64_t u, const int n, const int units, const bool minimum)
{
    vf scale[UNITS_AT_ONCE][2], least[UNITS_AT_ONCE][2];
    for (int i = 0; i < n; i++)
        for (int v = 0; v < 2; v++) {
            scale[i][v] = vf_load(part->scales + (u + i) * PANEL + LANES * v);
            if (minimum) least[i][v] = vf_load(part->minima + (u + i) * PANEL + LANES * v);
        }
    for (int r = 0; r < AMX_ROWS; r++)
        for (int v = 0; v < 2; v++) {
            float *to = out + r * PANEL + LANES * v;
            vf acc = vf_load(to);
            for (int i = 0; i < n; i++) {
                int64_t at = (u + i) / units * AMX_ROWS + r;
                vf sum = _mm512_cvtepi32_ps(vi_load(&sums->of[i][r * PANEL + LANES * v]));
                acc = vf_fma(vf_mul(sum, vf_set(x->scales[at])), scale[i][v], acc);
                if (minimum) acc = vf_fma(vf_set(x->sums[at]), least[i][v], acc);
            }
            vf_store(to, acc);
        }
}

static void scale_some(float *out, const struct part *part, const struct left *x,
                       const struct sums *sums, int64_t u, int64_t n)
{
    if (n == 0) return;
    if (part->units == 2) scale_sums(out, part, x, sums, u, UNITS_AT_ONCE, 2, false);
    else if (part->minimum && n == 1) scale_sums(out, part, x, sums, u, 1, 1, true);
    else if (part->minimum) scale_sums(out, part, x, sums, u, UNITS_AT_ONCE, 1, true);
    else if (n == 1) scale_sums(out, part, x, sums, u, 1, 1, false);
    else scale_sums(out, part, x, sums, u, UNITS_AT_ONCE, 1, false);
}

/* The part's steps for one block of rows: the products of some units run while the sums of those
 * before get their scales. */
static void multiply_block(const struct part *part, const struct left *x, int64_t steps, float *out)
{
    struct sums sums[2];
    /* `before` units wait in the other sums */
    int64_t units = steps * part->units, before = 0, turn = 0;
    int64_t inputs = QUANT_BLOCK / part->units;
    for (int64_t u = 0; u < units; u += UNITS_AT_ONCE, turn ^= 1) {
        int64_t n = min_i64(UNITS_AT_ONCE, units - u);
        for (int64_t i = u; i < u + n; i++)
            multiply_unit(x->codes + i / part->units * AMX_ROWS * QUANT_BLOCK +
                              i % part->units * inputs,
                          part->codes + i * inputs * PANEL, sums[turn].of[i - u]);
        scale_some(out, part, x, &sums[turn ^ 1], u - before, before);
        before = n;
    }
    scale_some(out, part, x, &sums[turn ^ 1], units - before, before);
}

void amx_quant_multiply(const struct amx_quant_product *p, int64_t begin, int64_t end)
{
    ASSERT(p->rows >= 1 && p->rows <= AMX_GROUP_ROWS);
    _Alignas(64) float out[MAX_BLOCKS * TILE_SUMS];
    struct part part;
    int64_t n_blocks = ceil_div(p->rows, AMX_ROWS);
    configure(p->type == DTYPE_Q6_K ? 2 : 1);
    for (int64_t panel = begin; panel < end; panel++) {
        memset(out, 0, (size_t)(n_blocks * TILE_SUMS) * sizeof *out);
        for (int64_t s = 0; s < p->steps; s += PART_STEPS) {
            int64_t n = min_i64(PART_STEPS, p->steps - s);
            unpack(&part, p->type, p->w + panel * p->panel_bytes, s, n);
            for (int64_t b = 0; b < n_blocks; b++) {
                int64_t at = (b * p->steps + s) * AMX_ROWS;
                struct left left = {p->codes + at * QUANT_BLOCK, p->scales + at, p->sums + at};
                multiply_block(&part, &left, n, out + b * TILE_SUMS);
            }
        }
        for (int64_t b = 0; b < n_blocks; b++)
            p->write(p->ctx, panel, b * AMX_ROWS, min_i64(AMX_ROWS, p->rows - b * AMX_ROWS),
                     out + b * TILE_SUMS);
    }
    __asm__ volatile("tilerelease" : : : "memory");
}
