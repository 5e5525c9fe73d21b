/* Attention over a bf16 cache on AMX tiles: one block of keys for up to 32 query rows.
 *
 * Pages lie as tiles want their right operand: 16 keys of a page are the columns of a tile of
 * scores, its 16 values the pairs of rows that a tile of results sums over. Nothing is packed again
 * but the values of a page whose end nobody has written. A row of a result depends on its row of
 * the left operand alone, whose sums go over the dimensions in equal steps, and over the keys page
 * by page; pages and keys that a row does not see have weights of zero, which add nothing. So a row
 * has the same bits alone (decoding) as beside 31 others (a prompt), and decoding runs here too.
 * (Of values that are not finite this does not hold: they spoil the rows of their query's block
 * that do not see them yet, too.)
 *
 * Cycles of a block of 32 rows x 128 keys x 64 dimensions (1.05 MFLOP), from the published
 * figures: scores 32 tdpbf16ps at 16, 512 in all; results 64, of half a tile's depth, 1,024.
 * The softmax of 256 vectors, 15 instructions each on two ports: 1,920. Few rows wait for
 * memory: 32 KiB at some 10 bytes a cycle. */
#include "cpu/simd_avx512.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/amx.h"
#include "cpu/exp2_simd.h"
#include "cpu/kernels.h"

enum {
    P = KV_PAGE_TOKENS,
    TILE_ROWS_MOST = 16, /* so few rows wait for memory */
    TILE_LINE = 64,      /* bytes of a tile's row */
    MOST_STEP = 32,      /* dimensions of a tile of queries */
};
_Static_assert(P == 16, "a page is as wide as a tile of scores");

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "the operand of ldtilecfg");

/* Tiles 0 to 3: sums, [first rows; other rows] x [16 columns; 16 columns]. 4, 5: a step of queries
 * and of keys. 6, 7: a page's weights and values. */
static void configure(int64_t rows, int64_t step)
{
    struct tile_config c = {.palette = 1};
    for (int t = 0; t < 8; t++) c.rows[t] = (uint8_t)rows, c.row_bytes[t] = TILE_LINE;
    c.row_bytes[4] = (uint16_t)(2 * step);
    c.rows[5] = (uint8_t)(step / 2);
    c.row_bytes[6] = 2 * P;
    c.rows[7] = P / 2;
    __asm__ volatile("ldtilecfg %0" : : "m"(c) : "memory");
}

/* A product's operands: rows of the first and the other group, and two right tiles. */
struct operands {
    const uint8_t *left, *other;
    int64_t left_row;            /* bytes from row to row */
    const uint8_t *right[2];
    int64_t right_row;
};

static inline void begin_sums(const bool both)
{
    __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1" : : : "memory");
    if (both) __asm__ volatile("tilezero %%tmm2\n\ttilezero %%tmm3" : : : "memory");
}

/* Left rows and right tiles take turns in one register each: keys and values, whose tiles have
 * other shapes, have their own, and need no other configuration. */
#define MULTIPLY_FIRST(left, right)                     \
    "tileloadd (%[l],%[ls],1), %%" left "\n\t"          \
    "tileloadd (%[r0],%[rs],1), %%" right "\n\t"        \
    "tdpbf16ps %%" right ", %%" left ", %%tmm0\n\t"     \
    "tileloadd (%[r1],%[rs],1), %%" right "\n\t"        \
    "tdpbf16ps %%" right ", %%" left ", %%tmm1\n\t"
#define MULTIPLY_OTHER(left, right)                     \
    "tileloadd (%[o],%[ls],1), %%" left "\n\t"          \
    "tdpbf16ps %%" right ", %%" left ", %%tmm3\n\t"     \
    "tileloadd (%[r0],%[rs],1), %%" right "\n\t"        \
    "tdpbf16ps %%" right ", %%" left ", %%tmm2\n\t"
#define OPERANDS(p)                                                                              \
    [l] "r"((p)->left), [o] "r"((p)->other), [ls] "r"((p)->left_row), [r0] "r"((p)->right[0]),   \
        [r1] "r"((p)->right[1]), [rs] "r"((p)->right_row)

static inline void multiply_keys(const struct operands *p, const bool both)
{
    if (both)
        __asm__ volatile(MULTIPLY_FIRST("tmm4", "tmm5") MULTIPLY_OTHER("tmm4", "tmm5")
                         : : OPERANDS(p) : "memory");
    else
        __asm__ volatile(MULTIPLY_FIRST("tmm4", "tmm5") : : OPERANDS(p) : "memory");
}

static inline void multiply_values(const struct operands *p, const bool both)
{
    if (both)
        __asm__ volatile(MULTIPLY_FIRST("tmm6", "tmm7") MULTIPLY_OTHER("tmm6", "tmm7")
                         : : OPERANDS(p) : "memory");
    else
        __asm__ volatile(MULTIPLY_FIRST("tmm6", "tmm7") : : OPERANDS(p) : "memory");
}

/* Rows of both groups at two places each, `stride` bytes from row to row. */
static inline void store_sums(float *first0, float *first1, float *other0, float *other1,
                              int64_t stride, const bool both)
{
    __asm__ volatile("tilestored %%tmm0, (%0,%2,1)\n\ttilestored %%tmm1, (%1,%2,1)"
                     : : "r"(first0), "r"(first1), "r"(stride) : "memory");
    if (both)
        __asm__ volatile("tilestored %%tmm2, (%0,%2,1)\n\ttilestored %%tmm3, (%1,%2,1)"
                         : : "r"(other0), "r"(other1), "r"(stride) : "memory");
}

/* ---- the block ---- */

/* One call. Rows come in two groups of 16 if there are more than 16; the other one ends with the
 * last row, so that it may take some rows again, with the same results. */
struct work {
    const struct attend_block *b;
    int64_t other;                              /* its first row */
    int64_t step, n_steps;                      /* of the dimensions */
    const uint8_t *values[KEY_BLOCK_PAGES];
    _Alignas(64) float scores[QUERY_ROWS][KEY_BLOCK];
    _Alignas(64) uint16_t weights[QUERY_ROWS][KEY_BLOCK];
    _Alignas(64) uint32_t last[P / 2 * MAX_HEAD_DIM]; /* the last page's values,
                                                         if some are not there */
};

/* The fewest equal steps of at most a tile's row. */
static int64_t step_of(int64_t head_dim)
{
    int64_t step = MOST_STEP;
    while (head_dim % step) step -= 2;
    return step;
}

/* Lines of the page that comes next, as those of page `page` from `begin` to `end` are used. */
static void call_next(const struct attend_block *b, int32_t page, int64_t begin, int64_t end)
{
    if (b->n_rows > TILE_ROWS_MOST) return;
    for (int64_t i = begin; i < end; i += TILE_LINE)
        _mm_prefetch((const char *)b->next[page] + i, _MM_HINT_T1);
}

/* Unscaled scores of all rows, two pages at a time; past the last page it is repeated:
 * nobody looks there. */
static inline __attribute__((always_inline)) void score(struct work *w, const bool both)
{
    const struct attend_block *b = w->b;
    int64_t key_bytes = 2 * P * (int64_t)b->head_dim, q_row = b->q_stride * 4;
    struct operands p = {.left_row = q_row, .right_row = 4 * P};
    for (int32_t page = 0; page < b->n_pages; page += 2) {
        int32_t second = page + 1 < b->n_pages ? page + 1 : page;
        p.left = b->q;
        p.other = p.left + w->other * q_row;
        p.right[0] = b->pages[page];
        p.right[1] = b->pages[second];
        begin_sums(both);
        for (int64_t s = 0; s < w->n_steps; s++) {
            multiply_keys(&p, both);
            p.left += 2 * w->step;
            p.other += 2 * w->step;
            p.right[0] += 2 * P * w->step;
            p.right[1] += 2 * P * w->step;
        }
        call_next(b, page, 0, key_bytes);
        if (second > page) call_next(b, second, 0, key_bytes);
        float *first = w->scores[0] + page * P, *other = w->scores[w->other] + page * P;
        store_sums(first, first + P, other, other + P, sizeof w->scores[0], both);
    }
}

/* A row's weights, in bf16: zeros from its limit to the end of the pages. Fills max and sum. */
static void softmax_row(struct work *w, int64_t row)
{
    const struct attend_block *b = w->b;
    const float *scores = w->scores[row];
    int64_t n = b->limit[row], whole = n / LANES * LANES, end = (int64_t)b->n_pages * P;
    vf highest = vf_set(-INFINITY), sum = vf_set(0), scale = vf_set(b->scale * PER_LN2);
    for (int64_t i = 0; i < whole; i += LANES) highest = vf_max(highest, vf_load(scores + i));
    if (whole < n) highest = vf_max(highest, vf_first(vf_load(scores + whole), highest, n - whole));
    float max = vf_highest(highest);
    vf shift = vf_mul(vf_set(max), scale);
    for (int64_t i = 0; i < end; i += LANES) {
        vf p = vf_set(0);
        if (i < n) p = vf_exp2_weight(vf_sub(vf_mul(vf_load(scores + i), scale), shift));
        if (i == whole) p = vf_first(p, vf_set(0), n - whole);
        sum = vf_add(sum, p);
        _mm256_store_si256((__m256i *)(w->weights[row] + i), (__m256i)_mm512_cvtneps_pbh(p));
    }
    b->max[row] = max * b->scale;
    b->sum[row] = vf_sum(sum);
}

/* Where values lie: those of a last page that is not full are copied, with zeros for what is not
 * there, since zero times anything need not be zero. */
static void find_values(struct work *w)
{
    const struct attend_block *b = w->b;
    int64_t at = 2 * P * (int64_t)b->head_dim, seen = 0;
    for (int32_t r = 0; r < b->n_rows; r++) seen = max_i64(seen, b->limit[r]);
    for (int32_t i = 0; i < b->n_pages; i++) w->values[i] = b->pages[i] + at;
    if (seen == (int64_t)b->n_pages * P) return;
    int32_t page = b->n_pages - 1;
    const uint8_t *values = w->values[page];
    int64_t n = seen - (int64_t)page * P, words = b->acc_stride;
    memset(w->last, 0, (size_t)(P / 2 * words) * sizeof *w->last);
    memcpy(w->last, values, (size_t)(n / 2 * words) * sizeof *w->last);
    for (int64_t i = 0; n % 2 && i < words; i += LANES) {
        vi pairs = vi_load(values + (n / 2 * words + i) * 4);
        _mm512_store_si512(w->last + n / 2 * words + i, vi_low_half(pairs));
    }
    w->values[page] = (const uint8_t *)w->last;
}

/* acc = weights times values, 32 columns at a time; a lone tile of 16 is computed twice. */
static inline __attribute__((always_inline)) void weigh(struct work *w, const bool both)
{
    const struct attend_block *b = w->b;
    int64_t stride = b->acc_stride, at = 2 * P * (int64_t)b->head_dim;
    struct operands p = {.left_row = sizeof w->weights[0], .right_row = stride * 4};
    for (int64_t n = 0; n < stride; n += 2 * LANES) {
        int64_t second = n + LANES < stride ? n + LANES : n;
        begin_sums(both);
        for (int32_t page = 0; page < b->n_pages; page++) {
            p.left = (const uint8_t *)(w->weights[0] + page * P);
            p.other = (const uint8_t *)(w->weights[w->other] + page * P);
            p.right[0] = w->values[page] + n * 4;
            p.right[1] = w->values[page] + second * 4;
            multiply_values(&p, both);
            if (n == 0) call_next(b, page, at, at + 2 * P * stride);
        }
        float *first = b->acc, *other = b->acc + w->other * stride;
        store_sums(first + n, first + second, other + n, other + second, stride * 4, both);
    }
}

/* A sum that came to -0 keeps its sign until a weight of zero is added; how many of those
 * there are is none of a row's business. */
static void clear_signs(const struct attend_block *b)
{
    for (int64_t i = 0; i < b->n_rows * b->acc_stride; i += LANES)
        vf_store(b->acc + i, vf_add(vf_load(b->acc + i), vf_set(0)));
}

static inline __attribute__((always_inline)) void attend_rows(struct work *w, const bool both)
{
    score(w, both);
    for (int64_t r = 0; r < w->b->n_rows; r++) softmax_row(w, r);
    weigh(w, both);
}

void amx_attend_bf16(const struct attend_block *b)
{
    ASSERT(b->n_rows >= 1 && b->n_rows <= QUERY_ROWS && b->scale > 0 && b->head_dim % 4 == 0);
    struct work w;
    w.b = b;
    w.other = max_i64(0, b->n_rows - TILE_ROWS_MOST);
    w.step = step_of(b->head_dim);
    w.n_steps = b->head_dim / w.step;
    find_values(&w);
    configure(min_i64(b->n_rows, TILE_ROWS_MOST), w.step);
    if (b->n_rows > TILE_ROWS_MOST) attend_rows(&w, true);
    else attend_rows(&w, false);
    __asm__ volatile("tilerelease" : : : "memory");
    clear_signs(b);
}
