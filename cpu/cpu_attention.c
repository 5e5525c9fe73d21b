/* Causal attention through the page tables.
 *
 * A sequence's keys are cut into blocks of 128 from position 0. A kernel computes one block for
 * up to 32 query rows (positions x heads of one KV head) from nothing: maximum, sum and
 * weighted values. Blocks are then joined in the order of their positions by the online
 * softmax. Since a block's result and the order of joining depend on positions alone, it does
 * not matter who computes a block and when: one thread all blocks of a query in turn (prefill,
 * many sequences), or several threads the blocks of one query at once (decoding few long
 * sequences), the bits are the same. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

enum {
    P = KV_PAGE_TOKENS,
    MAX_POSITIONS = 32,
    AHEAD_BYTES = 2 << 20, /* of keys and values: a core's second-level cache,
                              or two, and they come back from the third */
};

/* What one kernel call, or one thread's walk over the blocks, works on. */
struct query {
    const struct span *span;
    int32_t kv_head;
    int32_t head0, n_heads; /* query heads */
    int32_t row0, n_rows;   /* rows of the span: positions start + row0 ... */
};

/* Results of one query's rows: of one block of keys, or of the blocks joined so far. */
struct attend_state {
    _Alignas(64) float max[QUERY_ROWS];
    _Alignas(64) float sum[QUERY_ROWS];
    _Alignas(64) float acc[QUERY_ROWS * MAX_HEAD_DIM]; /* [rows][Kp] */
    _Atomic int64_t n_missing; /* of a query in split mode: blocks of
                                  this wave that are still to come */
};

struct attend {
    const struct cpu_kernels *kernels;
    struct tensor out, qkv;
    const struct batch *batch;
    const struct attention *attention;
    const struct kv_cache *kv;
    int32_t layer;
    int32_t layer_ahead; /* whose pages are called for: that of `layer` + 1, or `layer` itself */
    const struct kv_write *write; /* what each query is to write before; NULL: it has been done */
    int32_t heads_per_query; /* how query heads and positions are grouped */
    int32_t queries_per_kv_head;
    int32_t positions_per_query;
    int64_t n_queries; /* of the batch */
    /* Split mode: the blocks [block0, block0 + n_blocks) of every query. */
    int64_t block0, n_blocks;
    struct attend_state *states; /* [queries] joined so far */
    struct attend_state *parts;  /* [queries][n_blocks] */
};

/* Split mode is for at most this many queries, and has room for so many blocks of them at once. */
static int64_t split_queries(const struct cpu_device *c) { return 2 * pool_n_threads(c->pool); }
static int64_t split_parts(const struct cpu_device *c) { return 16 * pool_n_threads(c->pool); }

int64_t cpu_attention_workspace(const struct cpu_device *c)
{
    return (split_queries(c) + split_parts(c)) * (int64_t)sizeof(struct attend_state);
}

static int32_t span_queries(const struct attend *m, const struct span *s)
{
    /* Blocks of positions begin at multiples, so that none straddles a key block. */
    int32_t size = m->positions_per_query;
    int32_t first = s->start / size, last = (s->start + s->n_rows - 1) / size;
    return (last - first + 1) * m->attention->n_kv_head * m->queries_per_kv_head;
}

/* Query `index` of a span: position blocks outermost, latest (longest) first. */
static struct query span_query(const struct attend *m, const struct span *s, int32_t index)
{
    const struct attention *a = m->attention;
    int32_t group = a->n_head / a->n_kv_head, size = m->positions_per_query;
    int32_t part = index % m->queries_per_kv_head;
    int32_t kv_head = index / m->queries_per_kv_head % a->n_kv_head;
    int32_t block = index / m->queries_per_kv_head / a->n_kv_head;
    int32_t last = (s->start + s->n_rows - 1) / size;
    int32_t begin = (last - block) * size, end = begin + size;
    begin = begin > s->start ? begin : s->start;
    end = end < s->start + s->n_rows ? end : s->start + s->n_rows;
    int32_t head0 = part * m->heads_per_query;
    int32_t n_heads = group - head0 < m->heads_per_query ? group - head0 : m->heads_per_query;
    return (struct query){
        .span = s,
        .kv_head = kv_head,
        .head0 = kv_head * group + head0,
        .n_heads = n_heads,
        .row0 = begin - s->start,
        .n_rows = end - begin,
    };
}

/* Words of a query's row. */
static int64_t query_stride(const struct attend *m)
{
    int64_t n = m->attention->head_dim;
    if (m->kv->dtype == DTYPE_Q8_0) return n / 2 + 1;
    return m->kv->dtype == DTYPE_BF16 && m->kernels->attend_pairs ? n / 2 : n;
}

/* One row of a query as kernels want it: see struct attend_block. */
static void load_row(const struct attend *m, const float *src, uint32_t *dst)
{
    int64_t n = m->attention->head_dim;
    uint16_t rounded[MAX_HEAD_DIM];
    float scale;
    switch (m->kv->dtype) {
    case DTYPE_F32:
        memcpy(dst, src, (size_t)n * 4);
        return;
    case DTYPE_Q8_0:
        m->kernels->quantize_kv((int16_t *)dst, &scale, src, n, KV_Q8_LEFT_MOST);
        memcpy(dst + n / 2, &scale, sizeof scale);
        return;
    default:
        m->kernels->to_bf16(rounded, src, n);
        if (m->kernels->attend_pairs)
            memcpy(dst, rounded, (size_t)n * 2);
        else
            for (int64_t k = 0; k < n; k++) dst[k] = (uint32_t)rounded[k] << 16;
    }
}

/* The rows of a query: row = position * n_heads + head. */
static void load_query(const struct attend *m, const struct query *q, uint32_t *out)
{
    int64_t n = m->attention->head_dim, stride = query_stride(m);
    for (int32_t i = 0; i < q->n_rows; i++) {
        const float *row = tensor_row(m->qkv, q->span->row0 + q->row0 + i);
        for (int32_t h = 0; h < q->n_heads; h++)
            load_row(m, row + (q->head0 + h) * n, out + (i * q->n_heads + h) * stride);
    }
}

static void (*attend_kernel(const struct attend *m))(const struct attend_block *)
{
    if (m->kv->dtype == DTYPE_Q8_0) return m->kernels->attend_q8;
    return m->kv->dtype == DTYPE_BF16 ? m->kernels->attend_bf16 : m->kernels->attend_f32;
}

/* Where the pages of block `index` lie that the query sees, up to KEY_BLOCK_PAGES.
 * Returns how many. */
static int32_t block_pages(const struct attend *m, int32_t layer, const struct query *q,
                           int64_t index, const uint8_t *pages[KEY_BLOCK_PAGES])
{
    const struct span *s = q->span;
    int64_t first_key = index * KEY_BLOCK;
    int64_t n_keys = (int64_t)s->start + q->row0 + q->n_rows - first_key;
    const int32_t *table = m->batch->pages + s->table + first_key / P;
    int32_t n = (int32_t)ceil_div(min_i64(n_keys, KEY_BLOCK), P);
    for (int32_t i = 0; i < n; i++) {
        ASSERT(table[i] >= 0 && table[i] < m->kv->n_pages);
        pages[i] = cpu_kv_head(m->kv, layer, table[i], q->kv_head);
    }
    return n;
}

/* Block `index` of the keys for all rows of the query. Positions of a query never straddle a block,
 * so every row sees some of each of its query's blocks. A block behind them leaves `out` alone.
 * `next` (or NULL) with its next_index is what this thread attends to after: its pages are called
 * for in the meantime, or the same block's of the layer ahead. */
static void attend_block(const struct attend *m, const struct query *q, const uint32_t *words,
                         int64_t index, const struct query *next, int64_t next_index,
                         struct attend_state *out)
{
    const struct span *s = q->span;
    int64_t n = m->attention->head_dim, first_key = index * KEY_BLOCK;
    int32_t limit[QUERY_ROWS];
    int64_t last = s->start + q->row0 + q->n_rows - 1; /* position */
    if (last < first_key) return;
    for (int32_t i = 0; i < q->n_rows * q->n_heads; i++) {
        int64_t seen = s->start + q->row0 + i / q->n_heads + 1 - first_key;
        limit[i] = (int32_t)max_i64(0, min_i64(seen, KEY_BLOCK));
    }
    struct attend_block b = {
        .n_rows = q->n_rows * q->n_heads,
        .head_dim = (int32_t)n,
        .scale = m->attention->scale,
        .q = words,
        .q_stride = query_stride(m),
        .limit = limit,
        .max = out->max,
        .sum = out->sum,
        .acc = out->acc,
        .acc_stride = round_up(n, 16),
    };
    b.n_pages = block_pages(m, m->layer, q, index, b.pages);
    if (m->layer_ahead != m->layer) next = q, next_index = index;
    int32_t n_next = next ? block_pages(m, m->layer_ahead, next, next_index, b.next) : 0;
    for (int32_t i = n_next; i < b.n_pages; i++)
        b.next[i] = n_next ? b.next[n_next - 1] : b.pages[i];
    attend_kernel(m)(&b);
}

static void store_query(const struct attend *m, const struct query *q,
                        const struct attend_state *state)
{
    int64_t n = m->attention->head_dim;
    for (int32_t i = 0; i < q->n_rows * q->n_heads; i++) {
        int32_t row = q->span->row0 + q->row0 + i / q->n_heads, head = q->head0 + i % q->n_heads;
        uint8_t *out = tensor_row(m->out, row);
        m->kernels->scale_row(out + (size_t)(head * n) * element_bytes(m->out.dtype),
                              m->out.dtype, state->acc + i * round_up(n, 16), 1 / state->sum[i], n);
        if (m->attention->lse)
            m->attention->lse[(int64_t)row * m->attention->n_head + head] =
                state->max[i] + logf(state->sum[i]);
    }
}

/* Blocks of keys that any row of the query sees. */
static int64_t query_blocks(const struct query *q)
{
    return ceil_div((int64_t)q->span->start + q->row0 + q->n_rows, KEY_BLOCK);
}

static void state_clear(const struct attend *m, const struct query *q, struct attend_state *s)
{
    int64_t rows = q->n_rows * q->n_heads;
    for (int64_t i = 0; i < rows; i++) s->max[i] = -INFINITY, s->sum[i] = 0;
    memset(s->acc, 0, (size_t)(rows * round_up(m->attention->head_dim, 16)) * 4);
}

static void join_block(const struct attend *m, const struct query *q, struct attend_state *state,
                       const struct attend_state *block)
{
    int64_t n = round_up(m->attention->head_dim, 16);
    for (int32_t i = 0; i < q->n_rows * q->n_heads; i++)
        m->kernels->attend_join(&state->max[i], &state->sum[i], state->acc + i * n, block->max[i],
                                block->sum[i], block->acc + i * n, n);
}

/* One query through all of its blocks; `next` (or NULL) is what this thread does then. */
static void attend_query(const struct attend *m, const struct query *q, const struct query *next)
{
    _Alignas(64) uint32_t words[QUERY_ROWS * MAX_HEAD_DIM];
    struct attend_state state, block; /* the first block's result is what there is to join to */
    load_query(m, q, words);
    int64_t n_blocks = query_blocks(q);
    for (int64_t b = 0; b < n_blocks; b++) {
        struct attend_state *out = b == 0 ? &state : &block;
        if (b + 1 < n_blocks) attend_block(m, q, words, b, q, b + 1, out);
        else attend_block(m, q, words, b, next, 0, out);
        if (b > 0) join_block(m, q, &state, &block);
    }
    store_query(m, q, &state);
}

/* The queries of a batch, one after another. */
struct cursor { const struct span *span; int32_t index; };

static struct query cursor_next(const struct attend *m, struct cursor *c)
{
    while (c->index >= span_queries(m, c->span)) c->index -= span_queries(m, c->span++);
    return span_query(m, c->span, c->index++);
}

/* A decoding query's own key and value. Each is written while the query before it is attended to:
 * read back at once, bytes stored one by one would be waited for. */
static void write_query(const struct attend *m, const struct query *q)
{
    if (m->write) cpu_kv_write_head(m->write, q->span->row0, q->kv_head);
}

/* What a query reads and writes is called for one and two queries ahead, past the end of the range
 * too: the next range of a thread mostly begins there. */
static void attend_queries(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct attend *m = ctx;
    struct cursor at = {m->batch->spans, (int32_t)begin};
    struct query q = cursor_next(m, &at), next = q, after;
    if (begin + 1 < m->n_queries) next = cursor_next(m, &at);
    write_query(m, &q);
    for (int64_t i = begin; i < end; i++, q = next, next = after) {
        after = next;
        if (i + 2 < m->n_queries) after = cursor_next(m, &at);
        if (m->write) cpu_kv_call_for(m->write, after.span->row0, after.kv_head);
        if (i + 1 < end) write_query(m, &next);
        attend_query(m, &q, i + 1 < m->n_queries ? &next : NULL);
    }
}

/* Split mode, for queries too few to keep the threads busy. In waves: the blocks of all queries
 * side by side, each into its own slot; whoever computes the last one of a query joins them in
 * order. */
static struct query nth_query(const struct attend *m, int64_t index)
{
    struct cursor at = {m->batch->spans, (int32_t)index};
    return cursor_next(m, &at);
}

/* A query's blocks of this wave. */
static void join_parts(const struct attend *m, const struct query *q, struct attend_state *state,
                       const struct attend_state *parts)
{
    int64_t n_blocks = query_blocks(q), last = min_i64(m->block0 + m->n_blocks, n_blocks);
    if (m->block0 >= n_blocks) return;
    if (m->block0 == 0) state_clear(m, q, state);
    for (int64_t b = m->block0; b < last; b++) join_block(m, q, state, &parts[b - m->block0]);
    if (last == n_blocks) store_query(m, q, state);
}

static void attend_parts(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct attend *m = ctx;
    _Alignas(64) uint32_t words[QUERY_ROWS * MAX_HEAD_DIM];
    for (int64_t i = begin; i < end; i++) {
        int64_t index = i / m->n_blocks;
        struct query q = nth_query(m, index);
        struct attend_state *state = &m->states[index];
        int64_t block = m->block0 + i % m->n_blocks;
        bool more = i + 1 < end && i % m->n_blocks + 1 < m->n_blocks &&
                    block + 1 < query_blocks(&q);
        load_query(m, &q, words);
        attend_block(m, &q, words, block, more ? &q : NULL, block + 1, &m->parts[i]);
        if (atomic_fetch_sub_explicit(&state->n_missing, 1, memory_order_acq_rel) == 1)
            join_parts(m, &q, state, &m->parts[index * m->n_blocks]);
    }
}

static void attend_split(struct cpu_device *c, struct attend *m)
{
    int64_t most = 0; /* blocks of the longest query */
    for (int64_t i = 0; i < m->n_queries; i++) {
        struct query q = nth_query(m, i);
        most = max_i64(most, query_blocks(&q));
    }
    m->states = (struct attend_state *)c->workspace;
    m->parts = m->states + m->n_queries;
    m->n_blocks = min_i64(most, split_parts(c) / m->n_queries);
    for (m->block0 = 0; m->block0 < most; m->block0 += m->n_blocks) {
        for (int64_t i = 0; i < m->n_queries; i++) m->states[i].n_missing = m->n_blocks;
        pool_for(c->pool, m->n_queries * m->n_blocks, 1, attend_parts, m);
    }
}

/* Groups heads and positions so that a kernel call has many rows, at most QUERY_ROWS. */
static void choose_grouping(struct attend *m)
{
    int32_t group = m->attention->n_head / m->attention->n_kv_head;
    m->heads_per_query = group < MAX_POSITIONS ? group : MAX_POSITIONS;
    m->queries_per_kv_head = (group + m->heads_per_query - 1) / m->heads_per_query;
    m->positions_per_query = MAX_POSITIONS;
    while (m->positions_per_query * m->heads_per_query > QUERY_ROWS) m->positions_per_query /= 2;
}

/* A few queries' keys and values are soon read, and the first of each waited for. So while one
 * layer's are, those of the next are called for: as long as they are not too many to lie in the
 * caches until it is their turn. */
static bool calls_next_layer(const struct cpu_device *c, const struct attend *m, int64_t n_pages)
{
    const struct kv_cache *kv = m->kv;
    int64_t bytes = n_pages * cpu_kv_page_bytes(&c->base, kv->dtype, kv->n_kv_head, kv->head_dim);
    return m->n_queries <= split_queries(c) && m->layer + 1 < kv->n_layer && bytes <= AHEAD_BYTES;
}

static bool is_split(const struct cpu_device *c, int64_t n_queries, int64_t n_keys)
{
    bool few = n_queries <= split_queries(c);
    return few && n_keys > KEY_BLOCK && pool_n_threads(c->pool) > 1 && n_queries > 0;
}

/* `unwritten`: keys and values of this step are still to go to the cache. */
static void attend(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer,
                   bool unwritten)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(qkv.dtype == DTYPE_F32 && qkv.rows == b->n_rows && out.rows == b->n_rows);
    ASSERT(out.cols == (int64_t)a->n_head * a->head_dim && a->n_head % a->n_kv_head == 0);
    ASSERT(kv->n_kv_head == a->n_kv_head && kv->head_dim == a->head_dim);
    ASSERT(a->head_dim % 4 == 0 && a->head_dim <= MAX_HEAD_DIM);
    struct attend m = {.kernels = &c->kernels, .out = out, .qkv = qkv, .batch = b, .attention = a,
                       .kv = kv, .layer = layer, .layer_ahead = layer};
    struct kv_write write = {&c->kernels, qkv, b, a, kv, layer};
    choose_grouping(&m);
    int64_t most_keys = 0, n_pages = 0;
    for (int32_t i = 0; i < b->n_spans; i++) {
        int64_t n_keys = (int64_t)b->spans[i].start + b->spans[i].n_rows;
        m.n_queries += span_queries(&m, &b->spans[i]);
        most_keys = max_i64(most_keys, n_keys);
        n_pages += ceil_div(n_keys, P);
    }
    if (calls_next_layer(c, &m, n_pages)) m.layer_ahead++;
    bool split = is_split(c, m.n_queries, most_keys);
    /* A lone row's query is the only one to see what it writes. */
    bool joined = unwritten && !split && b->n_rows == b->n_spans && m.queries_per_kv_head == 1;
    if (joined) m.write = &write;
    else if (unwritten) cpu_kv_write(d, qkv, b, a, kv, layer);
    if (split) attend_split(c, &m);
    else pool_for(c->pool, m.n_queries, 1, attend_queries, &m);
}

void cpu_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    if (a->dropout > 0) cpu_attention_dropout(d, out, qkv, b, a);
    else attend(d, out, qkv, b, a, kv, layer, false);
}

void cpu_kv_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                      const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    if (a->dropout > 0) {
        cpu_kv_write(d, qkv, b, a, kv, layer);
        cpu_attention_dropout(d, out, qkv, b, a);
    } else {
        attend(d, out, qkv, b, a, kv, layer, true);
    }
}
