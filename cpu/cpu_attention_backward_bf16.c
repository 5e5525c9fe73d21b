/* Attention's backward pass with operands in bf16, as every matrix product of a bf16
 * model: q, k, v (which are bf16 already), and do, p and ds rounded; sums in f32.
 * Formulas: cpu_attention_backward.c.
 *
 * The products run on the bf16 tile kernel, 10 T^2 K operations a head, against bytes
 * that stay in a core's cache: the multipliers bound it. Queries and do are packed once a
 * head, in both of the orders that products want: tiles of ROWS queries whose words are
 * pairs of dimensions (sums over dimensions), and tiles of ROWS dimensions whose words
 * are pairs of queries (sums over queries). */
#include <string.h>

#include "base/checked.h"
#include "cpu/attention_backward.h"
#include "cpu/transpose.h"

enum {
    KEYS = BACKWARD_KEYS,
    ROWS = 8,     /* of a tile: divides KEYS, so that blocks of
                     queries may begin at any block of keys */
    QUERIES = 96, /* a multiple of ROWS */
};

/* One thread's pieces, for a span of T rows, padded to a multiple of ROWS with zeros.
 * Words are pairs of bf16. */
struct pieces {
    uint32_t *q, *dout;             /* [T / ROWS][K / 2][ROWS] */
    uint32_t *q_turned, *do_turned; /* [K / ROWS][T / 2][ROWS]: pairs of queries */
    float *dq;                      /* [T / ROWS][n_dim / PANEL][ROWS, PANEL] */
    float *lse, *delta;             /* [T] */
    /* one block of keys: */
    uint32_t *k_panel, *v_panel;    /* [K / 2][KEYS] */
    uint32_t *k_turned;             /* [n_dim / PANEL][KEYS / 2][PANEL]: pairs of keys */
    float *dk, *dv;                 /* [K, KEYS] */
    /* one block of queries by keys: */
    float *p, *ds;                  /* [QUERIES, KEYS] */
    uint16_t *rounded;              /* one of them in bf16 */
    uint32_t *pairs;                /* and its rows in pairs: [QUERIES / 2][KEYS] */
    uint32_t *words;                /* [KEYS * K] */
};

static int64_t take_words(uint32_t **at, float *base, int64_t used, int64_t n)
{
    float *p;
    used = backward_take(&p, base, used, n);
    *at = (uint32_t *)p;
    return used;
}

static int64_t place(struct pieces *x, float *base, int64_t T, int64_t K)
{
    int64_t used = 0, n_dim = round_up(K, PANEL), n = round_up(T, ROWS);
    used = take_words(&x->q, base, used, n * K / 2);
    used = take_words(&x->dout, base, used, n * K / 2);
    used = take_words(&x->q_turned, base, used, n * K / 2);
    used = take_words(&x->do_turned, base, used, n * K / 2);
    used = backward_take(&x->dq, base, used, n * n_dim);
    used = backward_take(&x->lse, base, used, n);
    used = backward_take(&x->delta, base, used, n);
    used = take_words(&x->k_panel, base, used, K / 2 * KEYS);
    used = take_words(&x->v_panel, base, used, K / 2 * KEYS);
    used = take_words(&x->k_turned, base, used, n_dim * KEYS / 2);
    used = backward_take(&x->dk, base, used, K * KEYS);
    used = backward_take(&x->dv, base, used, K * KEYS);
    used = backward_take(&x->p, base, used, QUERIES * KEYS);
    used = backward_take(&x->ds, base, used, QUERIES * KEYS);
    used = take_words((uint32_t **)&x->rounded, base, used, QUERIES * KEYS / 2);
    used = take_words(&x->pairs, base, used, QUERIES / 2 * KEYS);
    return take_words(&x->words, base, used, KEYS * max_i64(K, KEYS));
}

int64_t backward_bf16_floats(int64_t T, int64_t K)
{
    struct pieces x;
    return place(&x, NULL, T, K);
}

/* out [ROWS, PANEL] = one tile's product. */
static void multiply(const struct backward *m, float *out, const uint32_t *x, const uint32_t *w,
                     int64_t steps)
{
    struct matmul_tile t = {.out = out, .x = x, .w = w, .steps = steps, .rows = ROWS,
                            .prefetch = (const char *)w};
    m->kernels->matmul_bf16(&t);
}

/* ---- loading ---- */

/* ROWS queries' rows of n elements, into tile i of both orders. */
static void pack_tile(const uint16_t *rows, int64_t i, int64_t T, int64_t K, uint32_t *tiles,
                      uint32_t *turned)
{
    transpose_words(tiles + i * ROWS * (K / 2), (const uint32_t *)rows, K / 2, ROWS, K / 2);
    for (int64_t pair = 0; pair < ROWS / 2; pair++) {
        uint32_t words[MAX_HEAD_DIM];
        pair_words(words, rows + 2 * pair * K, rows + (2 * pair + 1) * K, K);
        uint32_t *out = turned + (i * (ROWS / 2) + pair) * ROWS;
        for (int64_t k = 0; k < K; k += ROWS)
            memcpy(out + k / ROWS * (T / 2) * ROWS, words + k, ROWS * sizeof *words);
    }
}

/* A head's part of a row is a few lines, a page away from the next row's:
 * no processor foresees it. */
static void call_ahead(struct tensor t, int64_t r, int64_t at, int64_t n)
{
    enum { ROWS_AHEAD = 12, LINE = 64 };
    if (r + ROWS_AHEAD >= t.rows) return;
    int64_t bytes = (int64_t)element_bytes(t.dtype);
    const char *row = (const char *)tensor_row(t, r + ROWS_AHEAD) + at * bytes;
    for (int64_t i = 0; i < n * bytes; i += LINE) __builtin_prefetch(row + i);
}

void backward_bf16_query(const struct backward *m, const struct span *s, int64_t head, int64_t i,
                         uint16_t *q, uint16_t *dout, float *lse, float *delta)
{
    int64_t K = m->a->head_dim, r = s->row0 + i;
    float row[MAX_HEAD_DIM];
    double dot[4] = {0};
    *lse = *delta = 0;
    if (i >= s->n_rows) {
        memset(q, 0, (size_t)K * sizeof *q);
        memset(dout, 0, (size_t)K * sizeof *dout);
        return;
    }
    call_ahead(m->qkv, r, head * K, K);
    call_ahead(m->dout, r, head * K, K);
    call_ahead(m->out, r, head * K, K);
    memcpy(q, (const uint16_t *)tensor_row(m->qkv, r) + head * K, (size_t)K * 2);
    backward_read_row(m->dout, r, head * K, K, row);
    m->kernels->to_bf16(dout, row, K);
    backward_read_row(m->out, r, head * K, K, row);
    for (int64_t k = 0; k < K; k++) dot[k % 4] += (double)bf16_to_f32(dout[k]) * row[k];
    *delta = (float)(dot[0] + dot[1] + dot[2] + dot[3]);
    *lse = m->lse[r * m->a->n_head + head];
}

void backward_bf16_keys(const struct backward *m, const struct span *s, int64_t kv_head,
                        int64_t key0, bool value, uint16_t *rows)
{
    int64_t K = m->a->head_dim, n_keys = min_i64(KEYS, s->n_rows - key0);
    int64_t column = backward_kv_column(m->a, kv_head, value);
    for (int64_t j = 0; j < n_keys; j++) {
        int64_t r = s->row0 + key0 + j;
        call_ahead(m->qkv, r, column, K);
        memcpy(rows + j * K, (const uint16_t *)tensor_row(m->qkv, r) + column,
               (size_t)K * sizeof *rows);
    }
    memset(rows + n_keys * K, 0, (size_t)((KEYS - n_keys) * K) * sizeof *rows);
}

/* One head's queries, output gradients, log-sums, and D. */
static void load_head(const struct backward *m, const struct span *s, int64_t head,
                      struct pieces *x)
{
    int64_t K = m->a->head_dim, T = round_up(s->n_rows, ROWS);
    _Alignas(4) uint16_t q[ROWS * MAX_HEAD_DIM], dout[ROWS * MAX_HEAD_DIM];
    for (int64_t i = 0; i < T; i += ROWS) {
        for (int64_t j = 0; j < ROWS; j++)
            backward_bf16_query(m, s, head, i + j, q + j * K, dout + j * K, &x->lse[i + j],
                                &x->delta[i + j]);
        pack_tile(q, i / ROWS, T, K, x->q, x->q_turned);
        pack_tile(dout, i / ROWS, T, K, x->dout, x->do_turned);
    }
}

/* A block of a KV head: keys in both orders, values; their gradients begin at zero. */
static void load_keys(const struct backward *m, const struct span *s, int64_t kv_head, int64_t key0,
                      struct pieces *x)
{
    int64_t K = m->a->head_dim;
    uint16_t *rows = (uint16_t *)x->words;
    backward_bf16_keys(m, s, kv_head, key0, true, rows);
    transpose_words(x->v_panel, x->words, K / 2, KEYS, K / 2);
    backward_bf16_keys(m, s, kv_head, key0, false, rows);
    transpose_words(x->k_panel, x->words, K / 2, KEYS, K / 2);
    memset(x->k_turned, 0, (size_t)(m->n_dim * KEYS / 2) * sizeof *x->k_turned);
    for (int64_t k = 0; k < K; k += PANEL)
        for (int64_t j = 0; j < KEYS; j += 2)
            pair_words(x->k_turned + k * (KEYS / 2) + j / 2 * PANEL, rows + j * K + k,
                       rows + (j + 1) * K + k, min_i64(PANEL, K - k));
    memset(x->dk, 0, (size_t)(K * KEYS) * sizeof *x->dk);
    memset(x->dv, 0, (size_t)(K * KEYS) * sizeof *x->dv);
}

/* ---- one block of queries by one block of keys; n is a multiple of ROWS ---- */

/* x->rounded and x->pairs = weights [n, KEYS]. */
static void round_rows(const struct backward *m, struct pieces *x, const float *weights, int64_t n)
{
    m->kernels->to_bf16(x->rounded, weights, n * KEYS);
    for (int64_t i = 0; i < n; i += 2)
        pair_words(x->pairs + i / 2 * KEYS, x->rounded + i * KEYS, x->rounded + (i + 1) * KEYS,
                   KEYS);
}

/* dt [K, KEYS] += rows [n, K]^T times weights [n, KEYS], which x->pairs holds;
 * rows from query0 of `turned`. */
static void add_transposed(const struct backward *m, const struct pieces *x, const uint32_t *turned,
                           int64_t T, int64_t query0, int64_t n, float *dt)
{
    _Alignas(64) float tile[ROWS * KEYS];
    for (int64_t k = 0; k < m->a->head_dim; k += ROWS) {
        const uint32_t *rows = turned + (k / ROWS * (T / 2) + query0 / 2) * ROWS;
        multiply(m, tile, rows, x->pairs, n / 2);
        m->kernels->finish(dt + k * KEYS, DTYPE_F32, tile, NULL, EPILOGUE_ADD, ROWS * KEYS);
    }
}

/* dq [n, n_dim] += ds [n, KEYS], which x->rounded holds, times keys [KEYS, K]. */
static void add_queries(const struct backward *m, struct pieces *x, int64_t n, float *dq)
{
    _Alignas(64) float tile[ROWS * PANEL];
    for (int64_t i = 0; i < n; i += ROWS) {
        const uint32_t *rows = (const uint32_t *)(x->rounded + i * KEYS);
        transpose_words(x->words, rows, KEYS / 2, ROWS, KEYS / 2);
        for (int64_t k = 0; k < m->n_dim; k += PANEL) {
            multiply(m, tile, x->words, x->k_turned + k * (KEYS / 2), KEYS / 2);
            m->kernels->finish(dq + i * m->n_dim + k * ROWS, DTYPE_F32, tile, NULL, EPILOGUE_ADD,
                               ROWS * PANEL);
        }
    }
}

static void backward_block(const struct backward *m, struct pieces *x, int64_t head, int64_t row0,
                           int64_t T, int64_t query0, int64_t n, int64_t key0)
{
    int64_t K = m->a->head_dim, words = K / 2;
    for (int64_t i = 0; i < n; i += ROWS) {
        multiply(m, x->p + i * KEYS, x->q + (query0 + i) * words, x->k_panel, words);
        multiply(m, x->ds + i * KEYS, x->dout + (query0 + i) * words, x->v_panel, words);
    }
    backward_finish_block(m, x->p, x->ds, x->lse, x->delta, head, row0, query0, n, key0);
    round_rows(m, x, x->p, n);
    add_transposed(m, x, x->do_turned, T, query0, n, x->dv);
    round_rows(m, x, x->ds, n);
    add_transposed(m, x, x->q_turned, T, query0, n, x->dk);
    add_queries(m, x, n, x->dq + query0 * m->n_dim);
}

static void store_queries(const struct backward *m, const struct span *s, int64_t head,
                          const float *dq)
{
    int64_t K = m->a->head_dim;
    for (int64_t i = 0; i < s->n_rows; i++) {
        float *to = (float *)tensor_row(m->dqkv, s->row0 + i) + head * K;
        const float *from = dq + i / ROWS * ROWS * m->n_dim + i % ROWS * PANEL;
        for (int64_t k = 0; k < K; k += PANEL)
            memcpy(to + k, from + k * ROWS, (size_t)min_i64(PANEL, K - k) * sizeof *to);
    }
}

void backward_bf16_head(const struct backward *m, const struct span *s, int64_t kv_head,
                        int64_t head, float *scratch)
{
    int64_t T = round_up(s->n_rows, ROWS);
    struct pieces x;
    place(&x, scratch, m->max_rows, m->a->head_dim);
    load_head(m, s, head, &x);
    memset(x.dq, 0, (size_t)(T * m->n_dim) * sizeof *x.dq);
    for (int64_t key0 = 0; key0 < s->n_rows; key0 += KEYS) {
        load_keys(m, s, kv_head, key0, &x);
        for (int64_t q0 = key0; q0 < T; q0 += QUERIES) /* earlier queries do not see these keys */
            backward_block(m, &x, head, s->row0, T, q0, min_i64(QUERIES, T - q0), key0);
        backward_add_keys(m, s, kv_head, key0, x.dk, x.dv, (float *)x.words);
    }
    store_queries(m, s, head, x.dq);
}
