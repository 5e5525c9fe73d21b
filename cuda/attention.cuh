/* What attention's forward and backward kernels share: how queries are grouped, how spans are
 * found, dropout's factors.
 *
 * A tile is up to 16 queries that read the same keys: positions of one span by query heads of one
 * KV head, query i of a tile being position i / group, head i % group. Tiles of all spans are
 * counted through, and a block finds its span by halving the list. */
#pragma once

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/kv_write.cuh"
#include "cuda/philox.cuh"

static constexpr int QUERIES = 16, KEYS = 32, ATTENTION_WARPS = 4;
static constexpr int ATTENTION_THREADS = ATTENTION_WARPS * WARP;

struct attention_shape {
    int32_t n_head, n_kv_head, head_dim, group; /* group: query heads of a KV head */
    int64_t qkv_cols;
    float scale, keep_scale;
    uint32_t drop_threshold; /* 0: no dropout */
    random_key drop_key;
};

struct tile_of_span {
    span s;
    int32_t first, n; /* queries [first, first + n) of the span */
};

/* Queries of a span: rows x group. Span i's tiles are numbered from (the queries before it) /
 * (queries a tile) + i, which leaves room for as many as the spans before it can have, each with a
 * last one that is not full; so some numbers are nobody's. ceil(all queries / queries a tile) +
 * n_spans numbers are enough. Log2(spans) loads of one int32_t. False: there is no such tile. */
__device__ __forceinline__ bool find_tile(const span *spans, int32_t n_spans, int32_t group, int32_t tile,
                                          int32_t queries_a_tile, tile_of_span &out)
{
    int32_t at = 0, after = n_spans; /* the last span that begins at `tile` or before lies in [at, after) */
    while (after - at > 1) {
        int32_t middle = at + (after - at) / 2;
        if (spans[middle].row0 * group / queries_a_tile + middle <= tile) at = middle;
        else after = middle;
    }
    span s = spans[at];
    int32_t queries = s.n_rows * group;
    int32_t first = (tile - s.row0 * group / queries_a_tile - at) * queries_a_tile;
    if (first >= queries) return false;
    out = {s, first, min(queries_a_tile, queries - first)};
    return true;
}

/* The factor of key `key` for query row `row` of the step and head `head`. */
__device__ __forceinline__ float attention_keep(const attention_shape &a, int32_t key, int32_t row,
                                                int32_t head)
{
    if (a.drop_threshold == 0) return 1;
    uint64_t counter = (uint32_t)key / 4 | (uint64_t)(uint32_t)row << 32;
    philox_words w = philox(counter, (uint32_t)head, 1, key_of(a.drop_key));
    return philox_word(w, (uint32_t)key) >= a.drop_threshold ? a.keep_scale : 0.0f;
}

static inline attention_shape attention_shape_of(const struct attention *a, int64_t qkv_cols)
{
    return {.n_head = a->n_head, .n_kv_head = a->n_kv_head, .head_dim = a->head_dim,
            .group = a->n_head / a->n_kv_head, .qkv_cols = qkv_cols, .scale = a->scale,
            .keep_scale = 1 / (1 - a->dropout),
            .drop_threshold = (uint32_t)((double)a->dropout * 4294967296.0),
            .drop_key = a->dropout_key};
}

template <class T> struct attention_args {
    attention_shape a;
    const float *qkv;
    T *cache; /* of the layer */
    int64_t page_elements;
    const span *spans;
    const int32_t *pages;
    int32_t n_spans;
    float *lse;      /* [R, H] or NULL */
    float *partial;  /* [chunks][R, H][K + 2]: maximum, sum, values; or NULL: chunks are joined here */
    int32_t rows;
    void *out;
    bool out_f32;    /* else of the cache's type */
    bool writes;     /* kv_write is part of it: decoding rows only */
    kv_write_args kv;
};

/* Where the partial of (chunk, row, head) lies. */
template <class T>
__device__ __forceinline__ float *partial_of(const attention_args<T> &a, int32_t chunk, int64_t row,
                                             int64_t head)
{
    return a.partial + ((chunk * (int64_t)a.rows + row) * a.a.n_head + head) * (a.a.head_dim + 2);
}

/* Query heads of a KV head that a block of decoding has at most. */
static constexpr int DECODE_HEADS = 16;

/* cuda/attention_mma.cu: has this GPU tensor cores, and the shared memory for heads of this
 * size? */
bool cuda_attention_has_mma(const struct cuda_device *c, int32_t head_dim);
/* 16-bit caches, by tensor cores. No span has more than max_keys keys. False, and nothing is done:
 * it has not. */
bool cuda_attention_mma(struct cuda_device *c, attention_args<bf16> args, int64_t max_keys);
bool cuda_attention_mma(struct cuda_device *c, attention_args<f16> args, int64_t max_keys);
