/* Products in the vocabulary of simd_*.h: the matmul tile and the attention block. Included once
 * for each way of multiplying, which the includer gives by name (TYPED(x) appends its suffix):
 *
 *   STEP        elements of the summed dimension that one step takes: 1 (f32) or 2 (pairs of bf16)
 *   X_WORDS     32-bit words a step of the left operand: 1, or 2 (bf16 widened to f32)
 *   TYPED(right)                      a vector of the right operand, LANES outputs
 *   TYPED(load)(p), TYPED(load_first)(p)   ... from memory; load_first:
 *                                          the odd elements become zero
 *   TYPED(left), TYPED(broadcast)(x, stride)   one step of the left operand:
 *                                              x[0] (and x[stride]) in all lanes
 *   TYPED(madd)(left, right, acc)     acc + left right, the even element before the odd one
 *   TYPED(pack)(words, p, n)          n (a multiple of LANES) values of the softmax as left
 *                                     operands
 *   TILE_MAX    rows of a matmul tile (with PANEL / LANES vectors a row)
 *   QUERY_MAX   rows of an attention tile (with 4 vectors a row)
 *
 * Row counts are constants where loops run, so that accumulators stay in registers. */

static inline __attribute__((always_inline)) void TYPED(tile)(const struct matmul_tile *t,
                                                              const int rows)
{
    enum { N = PANEL / LANES };
    vf acc[TILE_MAX][N];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) acc[r][v] = vf_set(0);
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    const char *prefetch = t->prefetch;
    for (int64_t s = 0; s < t->steps; s++) {
        _mm_prefetch(prefetch, _MM_HINT_T1);
        if (rows > FEW_ROWS) _mm_prefetch(prefetch + 64, _MM_HINT_T1);
        prefetch += t->prefetch_step;
        TYPED(right) weights[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) weights[v] = TYPED(load)(w + v * 4 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            TYPED(left) left = TYPED(broadcast)(x + r, rows);
#pragma GCC unroll 4
            for (int v = 0; v < N; v++) acc[r][v] = TYPED(madd)(left, weights[v], acc[r][v]);
        }
        w += PANEL * 4;
        x += rows * X_WORDS;
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < N; v++) vf_store(t->out + r * PANEL + v * LANES, acc[r][v]);
}

static void TYPED(matmul)(const struct matmul_tile *t)
{
    switch (t->rows) {
    case 1: TYPED(tile)(t, 1); break;
    case 2: TYPED(tile)(t, 2); break;
    case 3: TYPED(tile)(t, 3); break;
#if TILE_MAX == 12
    case 4: TYPED(tile)(t, 4); break;
    case 5: TYPED(tile)(t, 5); break;
    case 6: TYPED(tile)(t, 6); break;
    case 7: TYPED(tile)(t, 7); break;
    case 8: TYPED(tile)(t, 8); break;
    case 9: TYPED(tile)(t, 9); break;
    case 10: TYPED(tile)(t, 10); break;
    case 11: TYPED(tile)(t, 11); break;
    case 12: TYPED(tile)(t, 12); break;
#endif
    default: ASSERT(!"more rows than a tile has");
    }
}

/* Scores of `rows` queries against 4 vectors of keys, unscaled. keys[v] is where vector v begins;
 * its steps are 16 words apart. next[v]: as far, of what comes next. */
static inline __attribute__((always_inline)) void
TYPED(score_tile)(const uint32_t *q, int64_t q_stride, const uint8_t *const keys[4],
                  const uint8_t *const next[4], int64_t steps, float *out, const int rows)
{
    vf acc[QUERY_MAX][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[r][v] = vf_set(0);
    const uint8_t *k0 = keys[0], *k1 = keys[1], *k2 = keys[2], *k3 = keys[3];
    for (int64_t s = 0; s < steps; s++) {
        int64_t at = s * KV_PAGE_TOKENS * 4;
        if (rows <= ROWS_WAIT)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) _mm_prefetch((const char *)next[v] + at, _MM_HINT_T1);
        TYPED(right) key[4] = {TYPED(load)(k0 + at), TYPED(load)(k1 + at), TYPED(load)(k2 + at),
                               TYPED(load)(k3 + at)};
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            TYPED(left) left = TYPED(broadcast)(q + r * q_stride + s * X_WORDS, 1);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) acc[r][v] = TYPED(madd)(left, key[v], acc[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) vf_store(out + r * KEY_BLOCK + v * LANES, acc[r][v]);
}

/* Scores of `rows` queries against all pages of the block.
 * Lanes past the last page repeat it: nobody looks at them. */
static inline __attribute__((always_inline)) void
TYPED(score_rows)(const struct attend_block *b, int32_t row, float *scores, const int rows)
{
    const uint32_t *q = (const uint32_t *)b->q + row * b->q_stride;
    for (int32_t key0 = 0; key0 < b->n_pages * KV_PAGE_TOKENS; key0 += 4 * LANES) {
        const uint8_t *keys[4], *next[4];
        for (int v = 0; v < 4; v++) {
            int32_t key = key0 + v * LANES, page = key / KV_PAGE_TOKENS;
            if (page >= b->n_pages) page = b->n_pages - 1;
            keys[v] = b->pages[page] + key % KV_PAGE_TOKENS * 4;
            next[v] = b->next[page] + key % KV_PAGE_TOKENS * 4;
        }
        TYPED(score_tile)(q, b->q_stride, keys, next, b->head_dim / STEP,
                          scores + row * KEY_BLOCK + key0, rows);
    }
}

/* acc[r][n0 ...] += p[r] V over keys [j0, j1), for `rows` rows and `vectors` vectors of the head.
 * j0 is even; the odd half of a last lone key counts as zero, whatever its slot holds. */
static inline __attribute__((always_inline)) void
TYPED(value_tile)(const struct attend_block *b, int32_t row, const uint32_t *p, int32_t j0,
                  int32_t j1, int64_t n0, const int rows, const int vectors)
{
    enum { P_STRIDE = KEY_BLOCK / STEP * X_WORDS };
    vf acc[QUERY_MAX][4];
    float *out = b->acc + row * b->acc_stride + n0;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            acc[r][v] = vf_load(out + r * b->acc_stride + v * LANES);
    int64_t values = (int64_t)KV_PAGE_TOKENS * b->head_dim * (4 / STEP);
    for (int32_t j = j0; j < j1;) {
        const uint8_t *value = b->pages[j / KV_PAGE_TOKENS] + values + n0 * 4 +
                               j % KV_PAGE_TOKENS / STEP * b->acc_stride * 4;
        int64_t ahead = b->next[j / KV_PAGE_TOKENS] - b->pages[j / KV_PAGE_TOKENS];
        int32_t end = (j / KV_PAGE_TOKENS + 1) * KV_PAGE_TOKENS;
        for (end = end < j1 ? end : j1; j < end; j += STEP, value += b->acc_stride * 4) {
            TYPED(right) right[4];
            if (rows <= ROWS_WAIT)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v += 16 / LANES)
                    _mm_prefetch((const char *)value + ahead + v * 4 * LANES, _MM_HINT_T1);
            bool lone = STEP == 2 && j + 1 == j1;
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                right[v] = lone ? TYPED(load_first)(value + v * 4 * LANES)
                                : TYPED(load)(value + v * 4 * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const uint32_t *word = p + (row + r) * P_STRIDE + j / STEP * X_WORDS;
                TYPED(left) left = TYPED(broadcast)(word, 1);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    acc[r][v] = TYPED(madd)(left, right[v], acc[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            vf_store(out + r * b->acc_stride + v * LANES, acc[r][v]);
}

static inline __attribute__((always_inline)) void
TYPED(value_rows)(const struct attend_block *b, int32_t row, const uint32_t *p, int32_t j0,
                  int32_t j1, const int rows)
{
    int64_t n = 0;
    if (j0 >= j1) return;
    for (; n + 4 * LANES <= b->acc_stride; n += 4 * LANES)
        TYPED(value_tile)(b, row, p, j0, j1, n, rows, 4);
    for (; n + 2 * LANES <= b->acc_stride; n += 2 * LANES)
        TYPED(value_tile)(b, row, p, j0, j1, n, rows, 2);
    if (LANES == 16 && n < b->acc_stride) TYPED(value_tile)(b, row, p, j0, j1, n, rows, 1);
}

/* Rows side by side as far as all of them see, then each by itself to its own limit: the chain of
 * additions of a row is the same as if it were alone. */
static inline __attribute__((always_inline)) void
TYPED(attend_rows)(const struct attend_block *b, int32_t row, float *scores, uint32_t *p,
                   const int rows)
{
    int32_t least = KEY_BLOCK, most = 0;
    TYPED(score_rows)(b, row, scores, rows);
    for (int32_t r = row; r < row + rows; r++) {
        softmax_row(b, r, scores + r * KEY_BLOCK);
        TYPED(pack)(p + r * (KEY_BLOCK / STEP * X_WORDS), scores + r * KEY_BLOCK,
                    (b->limit[r] + LANES - 1) / LANES * LANES);
        least = b->limit[r] < least ? b->limit[r] : least;
        most = b->limit[r] > most ? b->limit[r] : most;
    }
    int32_t shared = least == most ? least : least / STEP * STEP;
    TYPED(value_rows)(b, row, p, 0, shared, rows);
    for (int32_t r = row; r < row + rows; r++) TYPED(value_rows)(b, r, p, shared, b->limit[r], 1);
}

static void TYPED(attend)(const struct attend_block *b)
{
    _Alignas(64) float scores[QUERY_ROWS * KEY_BLOCK];
    _Alignas(64) uint32_t p[QUERY_ROWS * KEY_BLOCK];
    int32_t r = 0;
    for (; r + QUERY_MAX <= b->n_rows; r += QUERY_MAX)
        TYPED(attend_rows)(b, r, scores, p, QUERY_MAX);
#if QUERY_MAX == 6
    for (; r + 3 <= b->n_rows; r += 3) TYPED(attend_rows)(b, r, scores, p, 3);
#endif
    for (; r + 2 <= b->n_rows; r += 2) TYPED(attend_rows)(b, r, scores, p, 2);
    for (; r < b->n_rows; r++) TYPED(attend_rows)(b, r, scores, p, 1);
}
