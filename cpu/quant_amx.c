/* Quantized products by AMX's products of signed bytes.
 *
 * A panel's codes are unpacked to bytes, at most 32 steps of them at a time (32 KiB), while the rows of a group take
 * turns. Cycles of a step of 32 rows x 32 outputs x 32 inputs (65,536 operations), at best: four products at 16,
 * half full, since a block ends with its 32nd input: 64. Beside them the scales: 64 vectors of sums are stored, loaded,
 * converted, multiplied and added, three instructions each on two ports: 96, and 64 stores. So it is the scales
 * that limit this, at some 600 operations a cycle; VNNI comes to about 200. */
#include <immintrin.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/amx.h"
#include "cpu/kernels.h"

enum {
    PART_STEPS = 32,               /* unpacked at a time */
    STEP_CODES = PANEL * QUANT_BLOCK,
    TILE_SUMS = AMX_ROWS * PANEL,
    STEPS_AT_ONCE = 2,             /* for which outputs stay in registers */
    MAX_BLOCKS = AMX_GROUP_ROWS / AMX_ROWS,
};

/* A part of a panel. */
struct part {
    _Alignas(64) int8_t codes[PART_STEPS * STEP_CODES]; /* [steps][8][PANEL][4] */
    _Alignas(64) float scales[PART_STEPS * PANEL];      /* [steps][PANEL] */
};

/* Sums of STEPS_AT_ONCE steps. */
struct sums { _Alignas(64) int32_t of[STEPS_AT_ONCE][TILE_SUMS]; };

/* Tiles 0 to 3: sums. 4, 5: 16 rows of a block's codes each. 6, 7: codes of 16 outputs, inputs by fours. */
static void configure(void)
{
    struct { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } c = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, QUANT_BLOCK, QUANT_BLOCK, 64, 64},
        .rows = {16, 16, 16, 16, 16, 16, QUANT_BLOCK / 4, QUANT_BLOCK / 4},
    };
    _Static_assert(sizeof c == 64, "the operand of ldtilecfg");
    __asm__ volatile("ldtilecfg %0" : : "m"(c) : "memory");
}

/* sums [32][PANEL] of the products of one block: 32 rows of codes at a, 32 outputs at b. */
static inline void multiply_step(const int8_t *a, const int8_t *b, int32_t *sums)
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

/* Codes of `steps` blocks as signed bytes, scales as f32. */
static void unpack(struct part *part, const uint8_t *w, int64_t steps, bool q4)
{
    const int64_t code_bytes = q4 ? STEP_CODES / 2 : STEP_CODES;
    const __m512i offset = _mm512_set1_epi8(8), mask = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
    for (int64_t s = 0; s < steps; s++, w += code_bytes + 2 * PANEL) {
        int8_t *to = part->codes + s * STEP_CODES;
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
        for (int v = 0; v < PANEL; v += 16)
            _mm512_store_ps(part->scales + s * PANEL + v,
                            _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + code_bytes + 2 * v))));
    }
}

/* out [32][PANEL] += sums x scale w scale, step after step: the VNNI kernels' order and roundings. */
static inline __attribute__((always_inline)) void
scale_sums(float *out, const struct sums *sums, const float *x_scales, const float *w_scales, const int n)
{
    __m512 scale[STEPS_AT_ONCE][2];
    for (int i = 0; i < n; i++)
        for (int v = 0; v < 2; v++) scale[i][v] = _mm512_load_ps(w_scales + i * PANEL + 16 * v);
    for (int r = 0; r < AMX_ROWS; r++)
        for (int v = 0; v < 2; v++) {
            float *to = out + r * PANEL + 16 * v;
            __m512 acc = _mm512_load_ps(to);
            for (int i = 0; i < n; i++) {
                __m512i whole = _mm512_load_si512(&sums->of[i][r * PANEL + 16 * v]);
                __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(x_scales[i * AMX_ROWS + r]));
                acc = _mm512_fmadd_ps(sum, scale[i][v], acc);
            }
            _mm512_store_ps(to, acc);
        }
}

static void scale_some(float *out, const struct sums *sums, const float *x_scales, const float *w_scales,
                       int64_t n)
{
    if (n == STEPS_AT_ONCE) scale_sums(out, sums, x_scales, w_scales, STEPS_AT_ONCE);
    else if (n == 1) scale_sums(out, sums, x_scales, w_scales, 1);
}

/* The part's steps for one block of rows: the products of some steps run while the sums of those before get
 * their scales. */
static void multiply_block(const struct part *part, const int8_t *codes, const float *x_scales,
                           int64_t steps, float *out)
{
    struct sums sums[2];
    int64_t done = 0, before = 0, turn = 0; /* `before` steps up to `done` wait in the other sums */
    for (int64_t s = 0; s < steps; s += STEPS_AT_ONCE, turn ^= 1) {
        int64_t n = min_i64(STEPS_AT_ONCE, steps - s);
        for (int64_t i = 0; i < n; i++)
            multiply_step(codes + (s + i) * AMX_ROWS * QUANT_BLOCK, part->codes + (s + i) * STEP_CODES,
                          sums[turn].of[i]);
        done = s - before;
        scale_some(out, &sums[turn ^ 1], x_scales + done * AMX_ROWS, part->scales + done * PANEL, before);
        before = n;
    }
    done = steps - before;
    scale_some(out, &sums[turn ^ 1], x_scales + done * AMX_ROWS, part->scales + done * PANEL, before);
}

void amx_quant_multiply(const struct amx_quant_product *p, int64_t begin, int64_t end)
{
    ASSERT(p->rows >= 1 && p->rows <= AMX_GROUP_ROWS);
    _Alignas(64) float out[MAX_BLOCKS * TILE_SUMS];
    struct part part;
    int64_t n_blocks = ceil_div(p->rows, AMX_ROWS), block_bytes = p->q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    configure();
    for (int64_t panel = begin; panel < end; panel++) {
        memset(out, 0, (size_t)(n_blocks * TILE_SUMS) * sizeof *out);
        for (int64_t s = 0; s < p->steps; s += PART_STEPS) {
            int64_t n = min_i64(PART_STEPS, p->steps - s);
            unpack(&part, p->w + (panel * p->steps + s) * block_bytes, n, p->q4);
            for (int64_t b = 0; b < n_blocks; b++) {
                int64_t at = (b * p->steps + s) * AMX_ROWS;
                multiply_block(&part, p->codes + at * QUANT_BLOCK, p->scales + at, n, out + b * TILE_SUMS);
            }
        }
        for (int64_t b = 0; b < n_blocks; b++)
            p->write(p->ctx, panel, b * AMX_ROWS, min_i64(AMX_ROWS, p->rows - b * AMX_ROWS),
                     out + b * TILE_SUMS);
    }
    __asm__ volatile("tilerelease" : : : "memory");
}
