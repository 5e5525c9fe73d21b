/* Attention's backward pass on AMX tiles, with operands in bf16 as in
 * cpu_attention_backward_bf16.c. Formulas: cpu_attention_backward.c.
 *
 * 32 keys at a time, against all queries from the first of them on, at most 512 in a go:
 *
 *   product      left, rows of          right, a panel of      summed over
 *   do v         do, as they lie        32 keys                dimensions
 *   q k          q, as they lie         32 keys                dimensions; then p and ds,
 *                                                              while tiles go on
 *   dv' = do' p  dimensions of do       32 keys                queries
 *   dk' = q' ds  dimensions of q        32 keys                queries
 *   dq = ds k    ds, as they lie        32 dimensions each     keys
 *
 * Cycles of 32 queries x 32 keys x 64 dimensions (0.66 MFLOP), from the published figures: 40
 * tdpbf16ps at 16, 640; some 60 vector instructions a query on two ports, 960: p is the limit. All
 * that it needs stays in a core's second-level cache. */
#include "cpu/simd_avx512.h"

#include <string.h>

#include "base/checked.h"
#include "cpu/amx.h"
#include "cpu/attention_backward.h"
#include "cpu/exp2_simd.h"
#include "cpu/transpose.h"

enum {
    KEYS = BACKWARD_KEYS,
    QUERIES = AMX_GROUP_ROWS, /* of a go */
};
_Static_assert((int)KEYS == (int)AMX_STEP && (int)AMX_ROWS == (int)AMX_STEP,
               "a block of keys is a step and a panel");
_Static_assert((int)KEYS == 2 * (int)LANES, "and two vectors");

/* One thread's pieces, for a span of T rows, padded to a multiple of 32 with zeros, as are
 * dimensions (n_dim). Halves are bf16. */
struct pieces {
    uint16_t *q, *dout;               /* [T, n_dim] */
    uint8_t *q_turned, *do_turned;    /* [n_dim / 32][T / 32][32 dimensions, 32 queries] */
    float *dq;                        /* [n_dim / 32][T, 32] */
    float *lse, *delta;               /* [T] */
    /* one block of keys: */
    uint16_t *rows;                   /* [KEYS, K] */
    uint32_t *k_panel, *v_panel;      /* [K / 2, KEYS]: pairs of dimensions */
    uint8_t *k_pairs;                 /* [n_dim / 32][KEYS / 2][32][2]: pairs of keys */
    float *dk, *dv;                   /* [n_dim, KEYS] */
    float *words;                     /* [KEYS * K] */
    /* one go of queries by keys: */
    float *dp;                        /* [QUERIES, KEYS] */
    uint16_t *p, *ds;                 /* [QUERIES, KEYS] */
    uint8_t *pairs;                   /* one of them: [QUERIES / 2][KEYS][2] */
};

/* As backward_take, for n bytes. */
static int64_t take(void *at, float *base, int64_t used, int64_t bytes)
{
    float *p;
    used = backward_take(&p, base, used, ceil_div(bytes, (int64_t)sizeof *p));
    memcpy(at, &p, sizeof p);
    return used;
}

static int64_t place(struct pieces *x, float *base, int64_t T, int64_t K)
{
    int64_t n_dim = round_up(K, PANEL), n = round_up(T, AMX_ROWS), used = 0;
    int64_t go = min_i64(n, QUERIES);
    used = take(&x->q, base, used, n * n_dim * 2);
    used = take(&x->dout, base, used, n * n_dim * 2);
    used = take(&x->q_turned, base, used, n * n_dim * 2);
    used = take(&x->do_turned, base, used, n * n_dim * 2);
    used = take(&x->dq, base, used, n * n_dim * 4);
    used = take(&x->lse, base, used, n * 4);
    used = take(&x->delta, base, used, n * 4);
    used = take(&x->rows, base, used, KEYS * K * 2);
    used = take(&x->k_panel, base, used, KEYS * K * 2);
    used = take(&x->v_panel, base, used, KEYS * K * 2);
    used = take(&x->k_pairs, base, used, KEYS * n_dim * 2);
    used = take(&x->dk, base, used, KEYS * n_dim * 4);
    used = take(&x->dv, base, used, KEYS * n_dim * 4);
    used = take(&x->words, base, used, KEYS * K * 4);
    used = take(&x->dp, base, used, go * KEYS * 4);
    used = take(&x->p, base, used, go * KEYS * 2);
    used = take(&x->ds, base, used, go * KEYS * 2);
    return take(&x->pairs, base, used, go * KEYS * 2);
}

int64_t backward_amx_floats(int64_t T, int64_t K)
{
    struct pieces x;
    return place(&x, NULL, T, K);
}

/* ---- loading ---- */

static void turn(const struct backward *m, uint8_t *turned, const uint16_t *rows, int64_t step,
                 int64_t T)
{
    for (int64_t k = 0; k < m->n_dim; k += AMX_ROWS)
        amx_turn_rows(turned + (k / AMX_ROWS * (T / AMX_STEP) + step) * AMX_STEP_BYTES, rows + k,
                      m->n_dim, AMX_STEP, AMX_ROWS);
}

static void load_head(const struct backward *m, const struct span *s, int64_t head, int64_t T,
                      struct pieces *x)
{
    int64_t n = m->n_dim;
    size_t padding = (size_t)(n - m->a->head_dim) * sizeof *x->q;
    for (int64_t i = 0; i < T; i++) {
        uint16_t *q = x->q + i * n, *dout = x->dout + i * n;
        backward_bf16_query(m, s, head, i, q, dout, &x->lse[i], &x->delta[i]);
        memset(q + m->a->head_dim, 0, padding);
        memset(dout + m->a->head_dim, 0, padding);
    }
    for (int64_t i = 0; i < T; i += AMX_STEP) {
        turn(m, x->q_turned, x->q + i * n, i / AMX_STEP, T);
        turn(m, x->do_turned, x->dout + i * n, i / AMX_STEP, T);
    }
    memset(x->dq, 0, (size_t)(T * n) * sizeof *x->dq);
}

/* A block of a KV head: keys in both orders, values; their gradients begin at zero. */
static void load_keys(const struct backward *m, const struct span *s, int64_t kv_head, int64_t key0,
                      struct pieces *x)
{
    int64_t K = m->a->head_dim;
    backward_bf16_keys(m, s, kv_head, key0, true, x->rows);
    transpose_words(x->v_panel, (const uint32_t *)x->rows, K / 2, KEYS, K / 2);
    backward_bf16_keys(m, s, kv_head, key0, false, x->rows);
    transpose_words(x->k_panel, (const uint32_t *)x->rows, K / 2, KEYS, K / 2);
    for (int64_t k = 0; k < K; k += PANEL)
        amx_pair_rows(x->k_pairs + k / PANEL * AMX_STEP_BYTES, x->rows + k, K, KEYS,
                      min_i64(PANEL, K - k));
    memset(x->dk, 0, (size_t)(m->n_dim * KEYS) * sizeof *x->dk);
    memset(x->dv, 0, (size_t)(m->n_dim * KEYS) * sizeof *x->dv);
}

/* ---- one go: queries [query0, query0 + n) by a block of keys; n is a multiple of 32 ---- */

struct go {
    const struct backward *m;
    const struct pieces *x;
    int64_t T, head, row0, query0, n, key0;
    float *sums; /* what rows of a product are added to, [rows][PANEL] of each panel... */
    int64_t panel_rows; /* ... and so many to a panel */
};

static void write_dp(const void *ctx, int64_t panel, int64_t row, int64_t n_rows, const float *tile)
{
    const struct go *g = ctx;
    float *dp = g->x->dp + row * KEYS;
    for (int64_t i = 0; i < n_rows * KEYS; i += LANES) vf_store(dp + i, vf_load(tile + i));
}

/* Of LANES scores s and of dp, what of p and ds the query sees; z are dropout's factors. */
static inline void weigh(const struct backward *m, vf s, vf dp, vf z, vf shift, vf delta,
                         __mmask16 seen, vf *p, vf *ds)
{
    vf e = vf_exp2_weight(_mm512_fmsub_ps(s, vf_set(m->a->scale * PER_LN2), shift));
    vf d = _mm512_fmsub_ps(z, dp, delta);
    *p = _mm512_maskz_mul_ps(seen, e, z);
    *ds = _mm512_maskz_mul_ps(seen, vf_mul(e, vf_set(m->a->scale)), d);
}

/* From scores, and dp of all rows, p and ds. */
static void write_p(const void *ctx, int64_t panel, int64_t row, int64_t n_rows, const float *tile)
{
    const struct go *g = ctx;
    const struct pieces *x = g->x;
    _Alignas(64) float z[KEYS];
    for (int64_t k = 0; k < KEYS; k++) z[k] = 1;
    for (int64_t end = row + n_rows; row < end; row++, tile += KEYS) {
        int64_t query = g->query0 + row, seen = max_i64(0, min_i64(KEYS, query - g->key0 + 1));
        uint32_t mask = (uint32_t)(((uint64_t)1 << seen) - 1);
        vf shift = vf_set(x->lse[query] * PER_LN2), delta = vf_set(x->delta[query]), p[2], ds[2];
        if (g->m->a->dropout > 0)
            backward_dropout_factors(g->m, g->head, g->row0 + query, g->key0, z);
        for (int v = 0; v < 2; v++)
            weigh(g->m, vf_load(tile + v * LANES), vf_load(x->dp + row * KEYS + v * LANES),
                  vf_load(z + v * LANES), shift, delta, (__mmask16)(mask >> v * LANES), &p[v],
                  &ds[v]);
        _mm512_storeu_si512(x->p + row * KEYS, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
        _mm512_storeu_si512(x->ds + row * KEYS, (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0]));
    }
}

static void add_rows(const void *ctx, int64_t panel, int64_t row, int64_t n_rows, const float *tile)
{
    const struct go *g = ctx;
    float *to = g->sums + (panel * g->panel_rows + row) * PANEL;
    for (int64_t i = 0; i < n_rows * PANEL; i += LANES)
        vf_store(to + i, vf_add(vf_load(to + i), vf_load(tile + i)));
}

/* Rows of the go, summed over dimensions. */
static void multiply_rows(const struct go *g, const uint16_t *rows, const uint32_t *panel,
                          amx_write write)
{
    int64_t bytes = g->m->n_dim * 2;
    struct amx_product p = {
        .a = (const uint8_t *)rows + g->query0 * bytes, .a_row = bytes, .a_step = AMX_STEP * 2,
        .a_block = AMX_ROWS * bytes, .rows = g->n, .b = (const uint8_t *)panel,
        .pairs = g->m->a->head_dim / 2, .write = write, .ctx = g,
    };
    amx_multiply(&p, 0, 1);
}

/* sums [n_dim, KEYS] += dimensions of the go's queries times weights [n, KEYS]. */
static void add_transposed(struct go *g, const uint8_t *turned, const uint16_t *weights,
                           float *sums)
{
    for (int64_t i = 0; i < g->n; i += AMX_STEP)
        amx_pair_rows(g->x->pairs + i * KEYS * 2, weights + i * KEYS, KEYS, AMX_STEP, KEYS);
    g->sums = sums;
    struct amx_product p = {
        .a = turned + g->query0 / AMX_STEP * AMX_STEP_BYTES, .a_row = AMX_STEP * 2,
        .a_step = AMX_STEP_BYTES, .a_block = g->T / AMX_STEP * AMX_STEP_BYTES, .rows = g->m->n_dim,
        .b = g->x->pairs, .pairs = g->n / 2, .write = add_rows, .ctx = g,
    };
    amx_multiply(&p, 0, 1);
}

/* dq += ds times keys. */
static void add_queries(struct go *g)
{
    g->sums = g->x->dq + g->query0 * PANEL;
    g->panel_rows = g->T;
    struct amx_product p = {
        .a = (const uint8_t *)g->x->ds, .a_row = KEYS * 2, .a_step = KEYS * 2,
        .a_block = AMX_ROWS * KEYS * 2, .rows = g->n, .b = g->x->k_pairs, .b_panel = AMX_STEP_BYTES,
        .pairs = KEYS / 2, .write = add_rows, .ctx = g,
    };
    amx_multiply(&p, 0, g->m->n_dim / PANEL);
}

static void backward_go(struct go g)
{
    const struct pieces *x = g.x;
    multiply_rows(&g, x->dout, x->v_panel, write_dp);
    multiply_rows(&g, x->q, x->k_panel, write_p);
    add_transposed(&g, x->do_turned, x->p, x->dv);
    add_transposed(&g, x->q_turned, x->ds, x->dk);
    add_queries(&g);
}

static void store_queries(const struct backward *m, const struct span *s, int64_t head, int64_t T,
                          const float *dq)
{
    int64_t K = m->a->head_dim;
    for (int64_t i = 0; i < s->n_rows; i++) {
        float *to = (float *)tensor_row(m->dqkv, s->row0 + i) + head * K;
        for (int64_t k = 0; k < K; k += PANEL)
            memcpy(to + k, dq + k * T + i * PANEL, (size_t)min_i64(PANEL, K - k) * sizeof *to);
    }
}

void backward_amx_head(const struct backward *m, const struct span *s, int64_t kv_head,
                       int64_t head, float *scratch)
{
    int64_t T = round_up(s->n_rows, AMX_ROWS);
    struct pieces x;
    place(&x, scratch, m->max_rows, m->a->head_dim);
    load_head(m, s, head, T, &x);
    for (int64_t key0 = 0; key0 < s->n_rows; key0 += KEYS) {
        load_keys(m, s, kv_head, key0, &x);
        for (int64_t q0 = key0; q0 < T; q0 += QUERIES) /* earlier queries do not see these keys */
            backward_go((struct go){.m = m, .x = &x, .T = T, .head = head, .row0 = s->row0,
                                    .query0 = q0, .n = min_i64(QUERIES, T - q0), .key0 = key0});
        backward_add_keys(m, s, kv_head, key0, x.dk, x.dv, x.words);
    }
    store_queries(m, s, head, T, x.dq);
}
