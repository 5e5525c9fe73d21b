/* Attention's backward pass, and its forward pass with dropout, without a T x T matrix
 * (Dao et al. 2022): scores are computed again, 32 keys by up to 48 queries at a time,
 * from q, k and the forward pass's log-sums.
 *
 *   p = exp(scale q.k - lse)        dv += (z p)^T do     dp = z (do . v), z: dropout's factor, or 1
 *   ds = p (dp - D), D = do . o     dq += scale ds k     dk += scale ds^T q
 *
 * One thread takes one KV head of one span from its first key to its last, so every sum has one
 * order. The five products run on the forward pass's tile kernels: here in f32 throughout. Where
 * activations are bf16 and the processor multiplies pairs of them, cpu_attention_backward_bf16.c
 * does it, or attend_backward_amx.c on AMX tiles. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/attention_backward.h"
#include "cpu/transpose.h"

enum {
    KEYS = BACKWARD_KEYS,
    QUERIES = 48, /* a multiple of every tile_rows */
    DIM_TILE = 8, /* columns of one tile of a transposed gradient */
};

/* One thread's pieces, for T rows of a span. Queries of one head: */
struct pieces {
    float *q, *dout;           /* [T, K] */
    float *dq;                 /* [T, n_dim] */
    float *lse, *delta;        /* [T] */
    /* one block of keys: */
    float *k_panel, *v_panel;  /* [K, KEYS]: sums over dimensions */
    float *k_rows;             /* [n_dim / PANEL][KEYS, PANEL]: sums over keys */
    float *dk, *dv;            /* [n_dim, KEYS] */
    /* one block of queries by keys: */
    float *words;              /* [QUERIES * max(K, KEYS)]: rows of a tile side by side */
    float *p, *ds;             /* [QUERIES, KEYS] */
};

int64_t backward_take(float **at, float *base, int64_t used, int64_t n)
{
    *at = base + used;
    return used + round_up(n, 16);
}

static int64_t place_pieces(struct pieces *s, float *base, int64_t T, int64_t K)
{
    int64_t used = 0, n_dim = round_up(K, PANEL);
    used = backward_take(&s->q, base, used, T * K);
    used = backward_take(&s->dout, base, used, T * K);
    used = backward_take(&s->dq, base, used, T * n_dim);
    used = backward_take(&s->lse, base, used, T);
    used = backward_take(&s->delta, base, used, T);
    used = backward_take(&s->k_panel, base, used, K * KEYS);
    used = backward_take(&s->v_panel, base, used, K * KEYS);
    used = backward_take(&s->k_rows, base, used, n_dim * KEYS);
    used = backward_take(&s->dk, base, used, n_dim * KEYS);
    used = backward_take(&s->dv, base, used, n_dim * KEYS);
    used = backward_take(&s->words, base, used, QUERIES * max_i64(n_dim, KEYS));
    used = backward_take(&s->p, base, used, QUERIES * KEYS);
    return backward_take(&s->ds, base, used, QUERIES * KEYS);
}

/* Of a thread, for spans of up to T rows. */
static int64_t scratch_floats(const struct cpu_kernels *k, int64_t T, int64_t K)
{
    struct pieces pieces;
    int64_t floats = max_i64(place_pieces(&pieces, NULL, T, K), backward_bf16_floats(T, K));
    return k->amx ? max_i64(floats, backward_amx_floats(T, K)) : floats;
}

int64_t cpu_attention_backward_workspace(const struct cpu_device *c,
                                         const struct workspace_shape *s)
{
    int64_t floats = scratch_floats(&c->kernels, min_i64(s->max_rows, s->block_size), s->head_dim);
    return pool_n_threads(c->pool) * floats * (int64_t)sizeof(float);
}

void backward_read_row(struct tensor t, int64_t r, int64_t at, int64_t n, float *out)
{
    if (t.dtype == DTYPE_F32) {
        memcpy(out, (const float *)tensor_row(t, r) + at, (size_t)n * 4);
        return;
    }
    const uint16_t *x = (const uint16_t *)tensor_row(t, r) + at;
    for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(x[i]);
}

/* out[s, r] = in[r, s]: rows lie `stride` apart. */
static void transpose(float *out, const float *in, int64_t stride, int64_t n_rows, int64_t n)
{
    transpose_words((uint32_t *)out, (const uint32_t *)in, stride, n_rows, n);
}

static void multiply(const struct backward *m, float *out, const float *x, const float *w,
                     int64_t steps, int64_t rows)
{
    struct matmul_tile t = {.out = out, .x = x, .w = w, .steps = steps, .rows = (int32_t)rows,
                            .prefetch = (const char *)w};
    m->kernels->matmul_f32(&t);
}

/* ---- dropout's factor ---- */

/* Four keys to a counter, which names head, row and keys. */
void backward_dropout_factors(const struct backward *m, int64_t head, int64_t row, int64_t key0,
                              float z[KEYS])
{
    const struct attention *a = m->a;
    uint64_t key = cpu_random_key(a->dropout_key);
    struct dropout_row factors = {a->dropout,
                                  {(uint32_t)key0 / 4, (uint32_t)row, (uint32_t)head, 1},
                                  {(uint32_t)key, (uint32_t)(key >> 32)}};
    m->kernels->dropout_row(z, &factors, KEYS);
}

/* ---- loading ---- */

/* One head's queries, output gradients, log-sums and D = do . o. */
static void load_head(const struct backward *m, const struct span *s, int64_t head,
                      struct pieces *x)
{
    int64_t K = m->a->head_dim, H = m->a->n_head;
    float out[MAX_HEAD_DIM];
    for (int64_t i = 0; i < s->n_rows; i++) {
        int64_t r = s->row0 + i;
        backward_read_row(m->qkv, r, head * K, K, x->q + i * K);
        backward_read_row(m->dout, r, head * K, K, x->dout + i * K);
        backward_read_row(m->out, r, head * K, K, out);
        double dot = 0;
        for (int64_t k = 0; k < K; k++) dot += (double)x->dout[i * K + k] * out[k];
        x->delta[i] = (float)dot;
        x->lse[i] = m->lse[r * H + head];
    }
}

int64_t backward_kv_column(const struct attention *a, int64_t kv_head, bool value)
{
    return (a->n_head + (value ? a->n_kv_head : 0) + kv_head) * a->head_dim;
}

/* Keys (or values) [key0, key0 + n_keys) of a KV head to `words` [KEYS, K]; absent ones are
 * zero. */
static void load_rows(const struct backward *m, const struct span *s, int64_t kv_head, int64_t key0,
                      bool value, float *words)
{
    int64_t K = m->a->head_dim, n_keys = min_i64(KEYS, s->n_rows - key0);
    for (int64_t j = 0; j < n_keys; j++)
        backward_read_row(m->qkv, s->row0 + key0 + j, backward_kv_column(m->a, kv_head, value), K,
                          words + j * K);
    memset(words + n_keys * K, 0, (size_t)((KEYS - n_keys) * K) * 4);
}

/* A block of a KV head: keys in both orders, values; their gradients begin at zero. */
static void load_keys(const struct backward *m, const struct span *s, int64_t kv_head, int64_t key0,
                      struct pieces *x)
{
    int64_t K = m->a->head_dim;
    load_rows(m, s, kv_head, key0, true, x->words);
    transpose(x->v_panel, x->words, K, KEYS, K);
    load_rows(m, s, kv_head, key0, false, x->words);
    transpose(x->k_panel, x->words, K, KEYS, K);
    memset(x->k_rows, 0, (size_t)(m->n_dim * KEYS) * 4);
    for (int64_t k = 0; k < K; k += PANEL)
        for (int64_t j = 0; j < KEYS; j++)
            memcpy(x->k_rows + k * KEYS + j * PANEL, x->words + j * K + k,
                   (size_t)min_i64(PANEL, K - k) * 4);
    memset(x->dk, 0, (size_t)(m->n_dim * KEYS) * 4);
    memset(x->dv, 0, (size_t)(m->n_dim * KEYS) * 4);
}

/* ---- one block of queries by one block of keys ---- */

/* out [n, KEYS] = rows [n, K] times panel [K, KEYS]. */
static void scores(const struct backward *m, struct pieces *x, const float *rows, int64_t n,
                   const float *panel, float *out)
{
    int64_t K = m->a->head_dim, step = m->kernels->tile_rows;
    for (int64_t i = 0; i < n; i += step) {
        int64_t count = min_i64(step, n - i);
        transpose(x->words, rows + i * K, K, count, K);
        multiply(m, out + i * KEYS, x->words, panel, K, count);
    }
}

/* dt [K, KEYS] += rows [n, K]^T times weights [n, KEYS]. */
static void add_transposed(const struct backward *m, struct pieces *x, const float *rows, int64_t n,
                           const float *weights, float *dt)
{
    int64_t K = m->a->head_dim, step = min_i64(DIM_TILE, m->kernels->tile_rows);
    _Alignas(64) float tile[DIM_TILE * KEYS];
    for (int64_t k = 0; k < K; k += step) {
        int64_t count = min_i64(step, K - k);
        for (int64_t r = 0; r < n; r++) {
            const float *row = rows + r * K + k;
            if (count == DIM_TILE) memcpy(x->words + r * DIM_TILE, row, DIM_TILE * sizeof *row);
            else memcpy(x->words + r * count, row, (size_t)count * sizeof *row);
        }
        multiply(m, tile, x->words, weights, n, count);
        m->kernels->finish(dt + k * KEYS, DTYPE_F32, tile, NULL, EPILOGUE_ADD, count * KEYS);
    }
}

/* dq [n, n_dim] += ds [n, KEYS] times keys [KEYS, K]. */
static void add_queries(const struct backward *m, struct pieces *x, int64_t n, float *dq)
{
    int64_t step = m->kernels->tile_rows;
    _Alignas(64) float tile[TILE_ROWS * PANEL];
    for (int64_t i = 0; i < n; i += step) {
        int64_t count = min_i64(step, n - i);
        transpose(x->words, x->ds + i * KEYS, KEYS, count, KEYS);
        for (int64_t k = 0; k < m->n_dim; k += PANEL) {
            multiply(m, tile, x->words, x->k_rows + k * KEYS, KEYS, count);
            for (int64_t r = 0; r < count; r++)
                m->kernels->finish(dq + (i + r) * m->n_dim + k, DTYPE_F32, tile + r * PANEL, NULL,
                                   EPILOGUE_ADD, PANEL);
        }
    }
}

void backward_finish_block(const struct backward *m, float *p, float *ds, const float *lse,
                           const float *delta, int64_t head, int64_t row0, int64_t query0,
                           int64_t n, int64_t key0)
{
    float scale = m->a->scale, z[KEYS];
    bool drops = m->a->dropout > 0;
    for (int64_t i = 0; i < n; i++, p += KEYS, ds += KEYS) {
        int64_t query = query0 + i, seen = max_i64(0, min_i64(KEYS, query - key0 + 1));
        if (drops) backward_dropout_factors(m, head, row0 + query, key0, z);
        m->kernels->softmax_backward_row(p, ds, drops ? z : NULL, seen, lse[query] / scale, scale,
                                         delta[query]);
        for (int64_t j = seen; j < KEYS; j++) p[j] = ds[j] = 0;
    }
}

static void backward_block(const struct backward *m, struct pieces *x, int64_t head, int64_t row0,
                           int64_t query0, int64_t n, int64_t key0)
{
    int64_t K = m->a->head_dim;
    const float *q = x->q + query0 * K, *dout = x->dout + query0 * K;
    scores(m, x, q, n, x->k_panel, x->p);
    scores(m, x, dout, n, x->v_panel, x->ds);
    backward_finish_block(m, x->p, x->ds, x->lse, x->delta, head, row0, query0, n, key0);
    add_transposed(m, x, dout, n, x->p, x->dv);
    add_transposed(m, x, q, n, x->ds, x->dk);
    add_queries(m, x, n, x->dq + query0 * m->n_dim);
}

/* ---- a KV head of a span ---- */

/* What a query head adds to n_keys keys' columns of dqkv (cleared before): dt is [K, KEYS]. */
static void add_columns(const struct backward *m, int64_t row, int64_t column, int64_t n_keys,
                        const float *dt, float *words)
{
    int64_t K = m->a->head_dim;
    transpose(words, dt, KEYS, K, n_keys);
    for (int64_t j = 0; j < n_keys; j++) {
        float *to = (float *)tensor_row(m->dqkv, row + j) + column;
        for (int64_t k = 0; k < K; k++) to[k] += words[j * K + k];
    }
}

void backward_add_keys(const struct backward *m, const struct span *s, int64_t kv_head,
                       int64_t key0, const float *dk, const float *dv, float *words)
{
    int64_t n_keys = min_i64(KEYS, s->n_rows - key0), row = s->row0 + key0;
    add_columns(m, row, backward_kv_column(m->a, kv_head, false), n_keys, dk, words);
    add_columns(m, row, backward_kv_column(m->a, kv_head, true), n_keys, dv, words);
}

static void clear_columns(const struct backward *m, const struct span *s, int64_t column, int64_t n)
{
    for (int64_t i = 0; i < s->n_rows; i++)
        memset((float *)tensor_row(m->dqkv, s->row0 + i) + column, 0, (size_t)n * 4);
}

static void backward_head(const struct backward *m, const struct span *s, int64_t kv_head,
                          int64_t head, struct pieces *x)
{
    int64_t K = m->a->head_dim, T = s->n_rows;
    load_head(m, s, head, x);
    memset(x->dq, 0, (size_t)(T * m->n_dim) * 4);
    for (int64_t key0 = 0; key0 < T; key0 += KEYS) {
        load_keys(m, s, kv_head, key0, x);
        /* Earlier queries do not see these keys. */
        for (int64_t q0 = key0 / QUERIES * QUERIES; q0 < T; q0 += QUERIES)
            backward_block(m, x, head, s->row0, q0, min_i64(QUERIES, T - q0), key0);
        backward_add_keys(m, s, kv_head, key0, x->dk, x->dv, x->words);
    }
    for (int64_t i = 0; i < T; i++)
        memcpy((float *)tensor_row(m->dqkv, s->row0 + i) + head * K, x->dq + i * m->n_dim,
               (size_t)K * 4);
}

static void backward_heads(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward *m = ctx;
    int64_t G = m->a->n_kv_head, group = m->a->n_head / G, K = m->a->head_dim;
    float *scratch = m->scratch + thread * m->scratch_floats;
    struct pieces x;
    place_pieces(&x, scratch, m->max_rows, K);
    for (int64_t i = begin; i < end; i++) {
        const struct span *s = &m->batch->spans[i / G];
        int64_t kv_head = i % G;
        clear_columns(m, s, backward_kv_column(m->a, kv_head, false), K);
        clear_columns(m, s, backward_kv_column(m->a, kv_head, true), K);
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
            if (m->qkv.dtype == DTYPE_BF16 && m->kernels->amx)
                backward_amx_head(m, s, kv_head, h, scratch);
            else if (m->qkv.dtype == DTYPE_BF16 && m->kernels->bf16_dot)
                backward_bf16_head(m, s, kv_head, h, scratch);
            else
                backward_head(m, s, kv_head, h, &x);
    }
}

static int64_t longest_span(const struct batch *b)
{
    int64_t n = 0;
    for (int32_t i = 0; i < b->n_spans; i++) {
        ASSERT(b->spans[i].start == 0);
        n = max_i64(n, b->spans[i].n_rows);
    }
    return n;
}

static void run(struct device *d, struct backward *m, pool_body body)
{
    struct cpu_device *c = cpu_of(d);
    m->kernels = &c->kernels;
    m->max_rows = longest_span(m->batch);
    m->n_dim = round_up(m->a->head_dim, PANEL);
    m->scratch = (float *)c->workspace;
    m->scratch_floats = scratch_floats(m->kernels, m->max_rows, m->a->head_dim);
    ASSERT(pool_n_threads(c->pool) * m->scratch_floats * (int64_t)sizeof(float) <=
           c->workspace_bytes);
    pool_for(c->pool, (int64_t)m->batch->n_spans * m->a->n_kv_head, 1, body, m);
}

void cpu_attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                            struct tensor qkv, struct tensor out, const float *lse,
                            const struct batch *b, const struct attention *a)
{
    ASSERT(dqkv.dtype == DTYPE_F32 && dqkv.cols == qkv.cols && dout.cols == out.cols);
    ASSERT(lse && a->head_dim % 8 == 0 && a->head_dim <= MAX_HEAD_DIM);
    struct backward m = {.dqkv = dqkv, .dout = dout, .qkv = qkv, .out = out, .lse = lse,
                         .batch = b, .a = a};
    run(d, &m, backward_heads);
}

/* ---- forward with dropout ---- */

/* One head's queries against all keys before them. Two passes over the keys: the log-sums first,
 * then the weighted values; `dq` serves as the output's accumulator. */
static void forward_head(const struct backward *m, const struct span *s, int64_t kv_head,
                         int64_t head, struct pieces *x)
{
    int64_t K = m->a->head_dim, T = s->n_rows, H = m->a->n_head;
    float *max = x->lse, *sum = x->delta, scale = m->a->scale;
    for (int64_t i = 0; i < T; i++) {
        backward_read_row(m->qkv, s->row0 + i, head * K, K, x->q + i * K);
        max[i] = -INFINITY;
        sum[i] = 0;
    }
    memset(x->dq, 0, (size_t)(T * m->n_dim) * 4);
    for (int64_t key0 = 0; key0 < T; key0 += KEYS) {
        load_keys(m, s, kv_head, key0, x);
        /* Values where add_queries looks for keys. */
        memset(x->k_rows, 0, (size_t)(m->n_dim * KEYS) * 4);
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = 0; j < KEYS; j++)
                x->k_rows[(k / PANEL * KEYS + j) * PANEL + k % PANEL] = x->v_panel[k * KEYS + j];
        for (int64_t q0 = key0 / QUERIES * QUERIES; q0 < T; q0 += QUERIES) {
            int64_t n = min_i64(QUERIES, T - q0);
            scores(m, x, x->q + q0 * K, n, x->k_panel, x->p);
            for (int64_t i = 0; i < n; i++) {
                int64_t q = q0 + i, seen = max_i64(0, min_i64(KEYS, q - key0 + 1));
                float *p = x->p + i * KEYS, *ds = x->ds + i * KEYS, *out = x->dq + q * m->n_dim;
                float z[KEYS];
                memset(ds, 0, KEYS * 4);
                if (seen == 0) continue;
                float high = scale * m->kernels->row_max(p, seen);
                high = high > max[q] ? high : max[q];
                float before = max[q] == -INFINITY ? 0 : expf(max[q] - high);
                sum[q] = sum[q] * before + m->kernels->row_exp(ds, p, seen, high / scale, scale);
                max[q] = high;
                for (int64_t k = 0; k < K; k++) out[k] *= before;
                backward_dropout_factors(m, head, s->row0 + q, key0, z);
                for (int64_t j = 0; j < seen; j++) ds[j] *= z[j];
            }
            add_queries(m, x, n, x->dq + q0 * m->n_dim);
        }
    }
    for (int64_t i = 0; i < T; i++) {
        uint8_t *out = tensor_row(m->out, s->row0 + i);
        m->kernels->scale_row(out + (size_t)(head * K) * element_bytes(m->out.dtype), m->out.dtype,
                              x->dq + i * m->n_dim, 1 / sum[i], K);
        if (m->a->lse) m->a->lse[(s->row0 + i) * H + head] = max[i] + logf(sum[i]);
    }
}

static void forward_heads(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward *m = ctx;
    int64_t G = m->a->n_kv_head, group = m->a->n_head / G;
    struct pieces x;
    place_pieces(&x, m->scratch + thread * m->scratch_floats, m->max_rows, m->a->head_dim);
    for (int64_t i = begin; i < end; i++)
        for (int64_t h = 0; h < group; h++)
            forward_head(m, &m->batch->spans[i / G], i % G, i % G * group + h, &x);
}

void cpu_attention_dropout(struct device *d, struct tensor out, struct tensor qkv,
                           const struct batch *b, const struct attention *a)
{
    struct backward m = {.qkv = qkv, .out = out, .batch = b, .a = a};
    run(d, &m, forward_heads);
}
