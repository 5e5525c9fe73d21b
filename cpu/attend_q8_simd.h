/* Attention over a q8_0 cache in the vocabulary of simd_*.h, and of the includer's:
 *
 *   vi_even_bytes(w), vi_odd_bytes(w)   the bytes 0 and 2 (1 and 3) of each word,
 *                                       as two 16-bit numbers
 *   vi_dot16(acc, a, b)                 acc + both products of 16-bit numbers, in each word
 *   vi_broadcast(p)                     the word at p in all lanes
 *   vi_to_vf(a), vi_round(x)            whole numbers to floats, and floats to the nearest ones
 *   vi_store(p, a), vi_store_i16(p, a)  LANES words; as 16-bit numbers, saturated
 *   QUERY_MAX                           rows that run side by side (with 4 vectors a row): 6 or 3
 *
 * A block of 128 keys costs 4 * 128 * K operations a row and reads 128 * 2 * K bytes, and 4
 * for each scale. A word of codes is taken apart once for all rows, and multiplied twice for
 * each: with vpdpwssd as many instructions as bf16 pairs take, on half their bytes. Few rows
 * wait for memory, many for the multipliers.
 *
 * Why not query codes of 8 bits, whose products come four to an instruction: their rounding would
 * be as large as the cache's own. Why not f32: one product a lane, and a conversion of every
 * code. */
#include "cpu/simd_math.h"

#include "base/error.h"
#include "cpu/kernels.h"
#include "cpu/softmax_simd.h"

#define INLINE static inline __attribute__((always_inline))

INLINE vf broadcast_float(const void *p)
{
    float f;
    memcpy(&f, p, sizeof f);
    return vf_set(f);
}

enum { TILE_WORDS = 4 * LANES };

/* What a tile sums over: `steps` steps of four elements in each of n_parts parts, where the codes
 * of vector v begin at at[part][v] and lie at_step bytes from step to step; those that multiply
 * them lie side by side at left + r * stride, part after part. */
struct tile {
    const uint8_t *at[KEY_BLOCK_PAGES][4];
    int64_t ahead[KEY_BLOCK_PAGES][4]; /* from there to what will be wanted next */
    int64_t n_parts, steps, at_step;
    const int16_t *left;
    int64_t stride;
};

/* sums[r * TILE_WORDS + v * LANES ...] of the tile. First all even bytes, then all odd ones: the
 * partners of both would not find room in the registers beside the sums. */
INLINE void multiply(const struct tile *t, int32_t *sums, const int rows, const int vectors)
{
    vi acc[QUERY_MAX][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) acc[r][v] = vi_set(0);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const int16_t *left = t->left + 2 * half;
        for (int64_t part = 0; part < t->n_parts; part++) {
            const uint8_t *a = t->at[part][0], *b = t->at[part][1], *c = t->at[part][2],
                          *d = t->at[part][3];
            const int64_t *ahead = t->ahead[part];
            for (int64_t s = 0; s < t->steps; s++, left += 4) {
                const uint8_t *at[4] = {a + s * t->at_step, b + s * t->at_step, c + s * t->at_step,
                                        d + s * t->at_step};
                if (rows <= ROWS_WAIT && half == 0)
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; v++)
                        _mm_prefetch((const char *)at[v] + ahead[v], _MM_HINT_T1);
                vi codes[4];
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    codes[v] = half ? vi_odd_bytes(vi_load(at[v])) : vi_even_bytes(vi_load(at[v]));
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    vi x = vi_broadcast(left + r * t->stride);
#pragma GCC unroll 4
                    for (int v = 0; v < vectors; v++) acc[r][v] = vi_dot16(acc[r][v], codes[v], x);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) vi_store(sums + r * TILE_WORDS + v * LANES, acc[r][v]);
}

/* Scores of `rows` queries against 4 vectors of keys, by blocks of dimensions that share a scale.
 * keys[v] and scales[v] are where vector v begins. */
INLINE void score_tile(const int16_t *q, int64_t stride, const uint8_t *const keys[4],
                       const int64_t ahead[4], const float *const scales[4], int64_t n, float *out,
                       int32_t *sums, const int rows)
{
    struct tile t = {.n_parts = 1, .at_step = 4 * KV_PAGE_TOKENS, .stride = stride};
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 4; v++) vf_store(out + r * KEY_BLOCK + v * LANES, vf_set(0));
    for (int64_t begin = 0; begin < n; begin += KV_Q8_BLOCK) {
        t.steps = (n - begin < KV_Q8_BLOCK ? n - begin : KV_Q8_BLOCK) / 4;
        t.left = q + begin;
        for (int v = 0; v < 4; v++) {
            t.at[0][v] = keys[v] + begin * KV_PAGE_TOKENS;
            t.ahead[0][v] = ahead[v];
        }
        multiply(&t, sums, rows, 4);
        for (int v = 0; v < 4; v++) {
            vf scale = vf_load(scales[v] + begin / KV_Q8_BLOCK * KV_PAGE_TOKENS);
            for (int r = 0; r < rows; r++) {
                float *to = out + r * KEY_BLOCK + v * LANES;
                vf score = vf_mul(vi_to_vf(vi_load(sums + r * TILE_WORDS + v * LANES)), scale);
                vf_store(to, vf_fma(score, broadcast_float(q + r * stride + n), vf_load(to)));
            }
        }
    }
}

/* Against all pages of the block. Lanes past the last page repeat it: nobody looks at them. */
INLINE void score_rows(const struct attend_block *b, int32_t row, float *scores, int32_t *sums,
                       const int rows)
{
    const int16_t *q = (const int16_t *)((const uint32_t *)b->q + row * b->q_stride);
    for (int32_t key0 = 0; key0 < b->n_pages * KV_PAGE_TOKENS; key0 += 4 * LANES) {
        const uint8_t *keys[4];
        const float *scales[4];
        int64_t ahead[4];
        for (int v = 0; v < 4; v++) {
            int32_t key = key0 + v * LANES, page = key / KV_PAGE_TOKENS;
            if (page >= b->n_pages) page = b->n_pages - 1;
            ahead[v] = b->next[page] - b->pages[page];
            keys[v] = b->pages[page] + key % KV_PAGE_TOKENS * 4;
            scales[v] = kv_q8_key_scales(b->pages[page], b->head_dim) + key % KV_PAGE_TOKENS;
        }
        score_tile(q, 2 * b->q_stride, keys, ahead, scales, b->head_dim,
                   scores + row * KEY_BLOCK + key0, sums, rows);
    }
}

/* Codes of p times the values' scales for a whole block, zero past the row's limit.
 * Returns what a code of 1 stands for. */
static float weigh_row(const struct attend_block *b, int32_t limit, float *p, int16_t *codes)
{
    vf highest = vf_set(0);
    for (int32_t i = 0; i < KEY_BLOCK; i += LANES) {
        int32_t m = limit - i < LANES ? limit - i : LANES;
        if (m <= 0) break;
        const float *scales = kv_q8_value_scales(b->pages[i / KV_PAGE_TOKENS], b->head_dim);
        vf weight = vf_mul(vf_load(p + i), vf_load(scales + i % KV_PAGE_TOKENS));
        weight = vf_first(weight, vf_set(0), m);
        vf_store(p + i, weight);
        highest = vf_max(highest, weight);
    }
    float largest = vf_highest(highest);
    bool some = largest >= KV_Q8_LEAST;
    vf inverse = vf_set(some ? KV_Q8_LEFT_MOST / largest : 0);
    for (int32_t i = 0; i < KEY_BLOCK; i += LANES)
        vi_store_i16(codes + i, i < limit ? vi_round(vf_mul(vf_load(p + i), inverse)) : vi_set(0));
    return some ? largest / KV_Q8_LEFT_MOST : 0;
}

/* acc[r][n0 ...] = the rows' weighted values, of `vectors` vectors of the head. */
INLINE void value_tile(const struct attend_block *b, int32_t row, const int16_t *codes,
                       const float *scale, int64_t n0, int32_t *sums, const int rows,
                       const int vectors)
{
    struct tile t = {.n_parts = b->n_pages, .steps = KV_PAGE_TOKENS / 4,
                     .at_step = 4 * b->acc_stride, .left = codes, .stride = KEY_BLOCK};
    for (int32_t i = 0; i < b->n_pages; i++)
        for (int v = 0; v < 4; v++) {
            t.at[i][v] = b->pages[i] + KV_PAGE_TOKENS * b->head_dim + (n0 + v * LANES) * 4;
            t.ahead[i][v] = b->next[i] - b->pages[i];
        }
    multiply(&t, sums, rows, vectors);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            vf_store(b->acc + (row + r) * b->acc_stride + n0 + v * LANES,
                     vf_mul(vi_to_vf(vi_load(sums + r * TILE_WORDS + v * LANES)),
                            vf_set(scale[r])));
}

/* Rows side by side, over all keys: codes of those that a row does not see are zero. */
INLINE void attend_rows(const struct attend_block *b, int32_t row, float *scores, const int rows)
{
    int32_t *sums = (int32_t *)(scores + QUERY_ROWS * KEY_BLOCK);
    int16_t codes[QUERY_MAX * KEY_BLOCK];
    float scale[QUERY_MAX];
    int64_t n = 0;
    score_rows(b, row, scores, sums, rows);
    for (int32_t r = 0; r < rows; r++) {
        int32_t limit = b->limit[row + r];
        softmax_row(b, row + r, scores + (row + r) * KEY_BLOCK);
        scale[r] = weigh_row(b, limit, scores + (row + r) * KEY_BLOCK, codes + r * KEY_BLOCK);
    }
    for (; n + 4 * LANES <= b->acc_stride; n += 4 * LANES)
        value_tile(b, row, codes, scale, n, sums, rows, 4);
    for (; n + 2 * LANES <= b->acc_stride; n += 2 * LANES)
        value_tile(b, row, codes, scale, n, sums, rows, 2);
    if (LANES == 16 && n < b->acc_stride) value_tile(b, row, codes, scale, n, sums, rows, 1);
}

static void attend_q8(const struct attend_block *b)
{
    _Alignas(64) float scores[QUERY_ROWS * KEY_BLOCK + QUERY_MAX * TILE_WORDS];
    int32_t r = 0;
    for (; r + QUERY_MAX <= b->n_rows; r += QUERY_MAX) attend_rows(b, r, scores, QUERY_MAX);
#if QUERY_MAX == 6
    for (; r + 3 <= b->n_rows; r += 3) attend_rows(b, r, scores, 3);
#endif
    for (; r + 2 <= b->n_rows; r += 2) attend_rows(b, r, scores, 2);
    for (; r < b->n_rows; r++) attend_rows(b, r, scores, 1);
}

static void quantize_kv(int16_t *codes, float *scale, const float *x, int64_t n, int32_t most)
{
    vf highest = vf_set(0);
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = n - i < LANES ? n - i : LANES;
        highest = vf_max(highest, vf_abs(vf_load_n(x + i, m)));
    }
    float largest = vf_highest(highest);
    bool some = largest >= KV_Q8_LEAST;
    vf inverse = vf_set(some ? (float)most / largest : 0), limit = vf_set((float)most);
    *scale = some ? largest / (float)most : 0;
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t m = n - i < LANES ? n - i : LANES;
        vf code = vf_mul(vf_load_n(x + i, m), inverse);
        code = vf_min(vf_max(code, vf_sub(vf_set(0), limit)), limit);
        int16_t lanes[LANES];
        vi_store_i16(lanes, vi_round(code));
        memcpy(codes + i, lanes, (size_t)m * sizeof *codes);
    }
}
#undef INLINE
