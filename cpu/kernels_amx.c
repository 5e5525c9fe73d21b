/* The kernels of cpu/amx.h.
 *
 * Cycles of a step, 32 x 32 x 32 (65,536 FLOP), at best: two tile loads of A and two of B at 8
 * each, 32 in all, beside four tdpbf16ps at 16 each, 64 in all. So the multiplier is the limit,
 * 1,024 FLOP a cycle, as long as tiles come from the caches fast enough: 4 KiB in 64 cycles are all
 * that the second level gives. Therefore, where rows are many, the panel is cut along k into parts
 * of at most 32 KiB, which stay in the first level while the rows pass by (2 KiB of A a step from
 * the second), at the price of 8 KiB of f32 sums that leave and come back once a part. Storing a
 * sum and loading it again changes no bit. With one row a step reads 2 KiB of weights in two
 * products: memory is the limit.
 *
 * The rows of a finished tile go through the epilogue while the next tile's products run: a few
 * between steps, vectors beside the tiles' own unit.
 *
 * Instructions are written as assembly: gcc 12's intrinsics miscompile the configuration,
 * and declare no memory. */
#include "cpu/amx.h"

#include <immintrin.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/kernels.h"

enum {
    PAIR_STEP = AMX_STEP / 2,
    OUT_BYTES = PANEL * 4,               /* a row of a result tile */
    TILE_FLOATS = AMX_ROWS * PANEL,
    PART_STEPS = 16,                     /* of a panel in the first-level cache */
    PART_BLOCKS = 4,                     /* below so many blocks of rows a panel is not cut */
    MAX_BLOCKS = AMX_GROUP_ROWS / AMX_ROWS,
    AHEAD_BYTES = 8 << 10,               /* how far a lone block reads ahead */
    LINE = 64,
};

/* ---- instructions ---- */

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "the operand of ldtilecfg");

/* Tiles 0 to 3: the result, [upper rows; lower rows] x [16 outputs; 16 outputs]. 4, 5: A, upper and
 * lower rows. 6, 7: B. With at most 16 rows there are no lower ones. */
static void configure(int64_t rows)
{
    int64_t upper = min_i64(rows, 16), lower = rows - upper;
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        int64_t n = t >= 6 ? PAIR_STEP : t == 2 || t == 3 || t == 5 ? lower : upper;
        c.rows[t] = (uint8_t)n;
        c.row_bytes[t] = n ? LINE : 0;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(c) : "memory");
}

static void release(void) { __asm__ volatile("tilerelease" : : : "memory"); }

/* All 32 rows of A against 32 outputs. */
static inline void step_both(const uint8_t *a, int64_t a_row, const uint8_t *b)
{
    __asm__ volatile("tileloadd (%[a],%[ar],1), %%tmm4\n\t"
                     "tileloadd (%[b],%[br],1), %%tmm6\n\t"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
                     "tileloadd 64(%[b],%[br],1), %%tmm7\n\t"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n\t"
                     "tileloadd (%[a1],%[ar],1), %%tmm5\n\t"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\t"
                     "tdpbf16ps %%tmm7, %%tmm5, %%tmm3"
                     :
                     : [a] "r"(a), [a1] "r"(a + 16 * a_row), [ar] "r"(a_row), [b] "r"(b),
                       [br] "r"((int64_t)PANEL * 4)
                     : "memory");
}

/* At most 16 rows. */
static inline void step_upper(const uint8_t *a, int64_t a_row, const uint8_t *b)
{
    __asm__ volatile("tileloadd (%[a],%[ar],1), %%tmm4\n\t"
                     "tileloadd (%[b],%[br],1), %%tmm6\n\t"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
                     "tileloadd 64(%[b],%[br],1), %%tmm7\n\t"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1"
                     :
                     : [a] "r"(a), [ar] "r"(a_row), [b] "r"(b), [br] "r"((int64_t)PANEL * 4)
                     : "memory");
}

/* The same, B not to be kept in the first-level cache:
 * weights that nothing reads again before all others are read. */
static inline void step_upper_once(const uint8_t *a, int64_t a_row, const uint8_t *b)
{
    __asm__ volatile("tileloadd (%[a],%[ar],1), %%tmm4\n\t"
                     "tileloaddt1 (%[b],%[br],1), %%tmm6\n\t"
                     "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
                     "tileloaddt1 64(%[b],%[br],1), %%tmm7\n\t"
                     "tdpbf16ps %%tmm7, %%tmm4, %%tmm1"
                     :
                     : [a] "r"(a), [ar] "r"(a_row), [b] "r"(b), [br] "r"((int64_t)PANEL * 4)
                     : "memory");
}

static inline void begin_sums(const bool both)
{
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1" : : : "memory");
    if (both) __asm__ volatile("tilezero %%tmm2\n\ttilezero %%tmm3" : : : "memory");
}

static inline void load_sums(const float *sums, const bool both)
{
    int64_t stride = OUT_BYTES;
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm0\n\ttileloadd 64(%0,%1,1), %%tmm1"
                     : : "r"(sums), "r"(stride) : "memory");
    if (both)
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm2\n\ttileloadd 64(%0,%1,1), %%tmm3"
                         : : "r"(sums + 16 * PANEL), "r"(stride) : "memory");
}

static inline void store_sums(float *sums, const bool both)
{
    int64_t stride = OUT_BYTES;
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)\n\ttilestored %%tmm1, 64(%0,%1,1)"
                     : : "r"(sums), "r"(stride) : "memory");
    if (both)
        __asm__ volatile("tilestored %%tmm2, (%0,%1,1)\n\ttilestored %%tmm3, 64(%0,%1,1)"
                         : : "r"(sums + 16 * PANEL), "r"(stride) : "memory");
}

/* ---- the product ---- */

/* One call's progress. */
struct run {
    const struct amx_product *p;
    int64_t steps, whole_steps; /* of a panel; those that B holds in full */
    int64_t n_blocks;           /* of rows */
    const uint8_t *last;        /* B's last step, filled up with zeros, if B has it in part */
    const char *ahead;          /* the next line to call for */
    int64_t lines;              /* to call for each step */
    /* The finished tile whose rows are being written. */
    const float *tile;
    int64_t panel, row, left;
};

static inline void write_some(struct run *run, int64_t n)
{
    n = min_i64(n, run->left);
    if (n <= 0) return;
    run->p->write(run->p->ctx, run->panel, run->row, n, run->tile);
    run->tile += n * PANEL;
    run->row += n;
    run->left -= n;
}

/* Steps [begin, end) of a panel at b, for rows at a. At the end all rows of the tile before are
 * written. */
static inline __attribute__((always_inline)) void
run_steps(struct run *run, const uint8_t *a, const uint8_t *b, int64_t begin, int64_t end,
          const bool both)
{
    const struct amx_product *p = run->p;
    bool once = run->n_blocks == 1 && p->b_is_far;
    /* Rows are written two by two: bf16 gradients lie in pairs of them. */
    int64_t share = round_up(ceil_div(run->left, end - begin), 2);
    for (int64_t s = begin; s < end; s++) {
        const uint8_t *left = a + s * p->a_step;
        const uint8_t *right = s < run->whole_steps ? b + s * AMX_STEP_BYTES : run->last;
        if (both) step_both(left, p->a_row, right);
        else if (once) step_upper_once(left, p->a_row, right);
        else step_upper(left, p->a_row, right);
        for (int64_t i = 0; i < run->lines; i++) {
            _mm_prefetch(run->ahead, _MM_HINT_T1); /* the second level's: the first has no room */
            run->ahead += LINE;
        }
        write_some(run, share);
    }
}

static inline __attribute__((always_inline)) void
run_part(struct run *run, const uint8_t *a, const uint8_t *b, int64_t begin, int64_t end,
         float *sums, const bool both)
{
    if (begin == 0) begin_sums(both);
    else load_sums(sums, both);
    run_steps(run, a, b, begin, end, both); /* after which `sums` may hold something else */
    store_sums(sums, both);
}

/* Steps [begin, end) for all blocks of rows. The last block is as high as the others, so that tiles
 * need no other configuration: if rows run out it takes some again, and writes only the new
 * ones. */
static void run_blocks(struct run *run, int64_t panel, int64_t begin, int64_t end, float *sums,
                       int64_t sums_stride)
{
    const struct amx_product *p = run->p;
    const uint8_t *b = p->b + panel * p->b_panel;
    for (int64_t block = 0; block < run->n_blocks; block++, sums += sums_stride) {
        int64_t row = block * AMX_ROWS, first = min_i64(row, max_i64(p->rows - AMX_ROWS, 0));
        const uint8_t *a = p->a + first / AMX_ROWS * p->a_block + first % AMX_ROWS * p->a_row;
        if (p->rows > 16) run_part(run, a, b, begin, end, sums, true);
        else run_part(run, a, b, begin, end, sums, false);
        if (end < run->steps) continue;
        run->tile = sums + (row - first) * PANEL;
        run->panel = panel;
        run->row = row;
        run->left = min_i64(AMX_ROWS, p->rows - row);
    }
}

/* Where reading ahead begins for a panel: some way on in the same stream for a lone block; for
 * several, each with its part, the next panel. */
static void aim_ahead(struct run *run, int64_t panel)
{
    const struct amx_product *p = run->p;
    if (!p->b_is_far) return;
    const char *b = (const char *)p->b + panel * p->b_panel;
    run->ahead = b + (run->n_blocks == 1 ? min_i64(AHEAD_BYTES, p->b_panel) : p->b_panel);
    run->lines = ceil_div(AMX_STEP_BYTES / LINE, run->n_blocks);
}

void amx_multiply(const struct amx_product *p, int64_t begin, int64_t end)
{
    ASSERT(p->rows >= 1 && p->rows <= AMX_GROUP_ROWS);
    ASSERT(p->rows % AMX_ROWS == 0 || p->a_block == AMX_ROWS * p->a_row);
    _Alignas(64) float sums[MAX_BLOCKS * TILE_FLOATS];
    _Alignas(64) uint8_t last[AMX_STEP_BYTES] = {0};
    struct run run = {
        .p = p, .steps = ceil_div(p->pairs, PAIR_STEP), .whole_steps = p->pairs / PAIR_STEP,
        .n_blocks = ceil_div(p->rows, AMX_ROWS), .last = last,
    };
    int64_t parts = run.n_blocks < PART_BLOCKS ? 1 : ceil_div(run.steps, PART_STEPS);
    configure(min_i64(p->rows, AMX_ROWS));
    for (int64_t panel = begin; panel < end; panel++) {
        const uint8_t *b = p->b + panel * p->b_panel;
        memcpy(last, b + run.whole_steps * AMX_STEP_BYTES,
               (size_t)(p->pairs % PAIR_STEP) * PANEL * 4);
        aim_ahead(&run, panel);
        for (int64_t i = 0; i < parts; i++)
            run_blocks(&run, panel, i * run.steps / parts, (i + 1) * run.steps / parts, sums,
                       parts > 1 ? TILE_FLOATS : 0);
    }
    write_some(&run, run.left);
    release();
}

/* ---- squares ---- */

static inline __mmask32 first_halves(int64_t n) { return (__mmask32)(((uint64_t)1 << n) - 1); }

/* Row r of up to 32 elements; zeros past the n_rows and n_cols that are there. */
static inline __m512i load_row(const uint16_t *x, int64_t stride, int64_t r, int64_t n_rows,
                               int64_t n_cols)
{
    if (r >= n_rows) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi16(first_halves(n_cols), x + r * stride);
}

/* Quarter q of out[l] is quarter l of in[q]: 4 x 4 lanes of 128 bits turned. */
static inline __attribute__((always_inline)) void turn_lanes(__m512i out[4], const __m512i in[4])
{
    __m512i low0 = _mm512_shuffle_i64x2(in[0], in[1], 0x44);
    __m512i high0 = _mm512_shuffle_i64x2(in[0], in[1], 0xEE);
    __m512i low1 = _mm512_shuffle_i64x2(in[2], in[3], 0x44);
    __m512i high1 = _mm512_shuffle_i64x2(in[2], in[3], 0xEE);
    out[0] = _mm512_shuffle_i64x2(low0, low1, 0x88);
    out[1] = _mm512_shuffle_i64x2(low0, low1, 0xDD);
    out[2] = _mm512_shuffle_i64x2(high0, high1, 0x88);
    out[3] = _mm512_shuffle_i64x2(high0, high1, 0xDD);
}

/* Four rows of words a, b, c, d: in each lane, word j of all four. */
static inline __attribute__((always_inline)) void
gather_words(__m512i out[4], __m512i a, __m512i b, __m512i c, __m512i d)
{
    __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    ab = _mm512_unpackhi_epi32(a, b), cd = _mm512_unpackhi_epi32(c, d);
    out[2] = _mm512_unpacklo_epi64(ab, cd);
    out[3] = _mm512_unpackhi_epi64(ab, cd);
}

/* Pairs of rows interleaved are words; 16 x 16 of them are turned by lanes of four. Interleaving by
 * lanes puts columns 8 l + 0..3 into the low words of lane l and 8 l + 4..7 into the high ones. */
void amx_turn_rows(uint8_t *out, const uint16_t *x, int64_t stride, int64_t n_rows, int64_t n_cols)
{
    for (int half = 0; half < 2; half++) {
        __m512i quads[4][4]; /* [rows 8 q .. 8 q + 7][word of its lane] */
        for (int q = 0; q < 4; q++) {
            __m512i words[4];
            for (int i = 0; i < 4; i++) {
                __m512i even = load_row(x, stride, 8 * q + 2 * i, n_rows, n_cols);
                __m512i odd = load_row(x, stride, 8 * q + 2 * i + 1, n_rows, n_cols);
                words[i] = half ? _mm512_unpackhi_epi16(even, odd)
                                : _mm512_unpacklo_epi16(even, odd);
            }
            gather_words(quads[q], words[0], words[1], words[2], words[3]);
        }
        for (int j = 0; j < 4; j++) {
            __m512i column[4] = {quads[0][j], quads[1][j], quads[2][j], quads[3][j]}, turned[4];
            turn_lanes(turned, column);
            for (int l = 0; l < 4; l++)
                _mm512_storeu_si512(out + (8 * l + 4 * half + j) * LINE, turned[l]);
        }
    }
}

/* Halves 0, 32, 1, 33, ... of two rows, where 32 and up mean the second one;
 * from 16 on for the second vector. */
static inline __m512i interleave(__m512i even, __m512i odd, int first)
{
    __m512i i = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(even, _mm512_add_epi16(i, _mm512_set1_epi16((short)first)),
                                     odd);
}

void amx_pair_rows(uint8_t *out, const uint16_t *x, int64_t stride, int64_t n_rows, int64_t n_cols)
{
    for (int64_t r = 0; r < AMX_STEP; r += 2, out += PANEL * 4) {
        __m512i even = load_row(x, stride, r, n_rows, n_cols);
        __m512i odd = load_row(x, stride, r + 1, n_rows, n_cols);
        _mm512_storeu_si512(out, interleave(even, odd, 0));
        _mm512_storeu_si512(out + LINE, interleave(even, odd, 16));
    }
}

/* Two neighbouring words hold a pair along k each; swapping their middle halves makes them two
 * pairs along n. Then 8 x 8 such double words are turned at a time: first pairs of rows, then
 * lanes. */
void amx_turn_pairs(uint8_t *out, const uint32_t *square, int64_t pairs)
{
    const __m512i swap = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    for (int64_t n = 0; n < PANEL; n += 16)
        for (int64_t k = 0; k < PAIR_STEP; k += 8) {
            __m512i even[4], odd[4], turned[4];
            for (int i = 0; i < 4; i++) {
                __m512i rows[2];
                for (int j = 0; j < 2; j++) {
                    int64_t at = k + 2 * i + j;
                    rows[j] = at < pairs ? _mm512_loadu_si512(square + at * PANEL + n)
                                         : _mm512_setzero_si512();
                    rows[j] = _mm512_shuffle_epi8(rows[j], swap);
                }
                even[i] = _mm512_unpacklo_epi64(rows[0], rows[1]);
                odd[i] = _mm512_unpackhi_epi64(rows[0], rows[1]);
            }
            uint8_t *to = out + n / 2 * OUT_BYTES + k * 8;
            turn_lanes(turned, even);
            for (int l = 0; l < 4; l++) _mm512_storeu_si512(to + 2 * l * OUT_BYTES, turned[l]);
            turn_lanes(turned, odd);
            for (int l = 0; l < 4; l++)
                _mm512_storeu_si512(to + (2 * l + 1) * OUT_BYTES, turned[l]);
        }
}
