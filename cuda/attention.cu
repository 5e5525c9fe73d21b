/* Causal attention through the page tables, for prompts and for decoding (Dao et al. 2022: no T x T matrix): the
 * plain kernels, of f32 and of GPUs without tensor cores. cuda/attention_mma.cu has those of 16 bits.
 *
 *   out[r, h] = sum over keys of softmax(scale q.k) v        qkv f32 [R, (H + 2G) K], out f32 or 16 bits [R, H K]
 *
 * **A query's bits depend on its keys alone.** Keys are taken 32 at a time, aligned from position 0, with a running
 * maximum and sum; each CHUNK of them is computed from nothing and joined to the chunks before it by one
 * function. So it makes no difference whether one block walks all chunks (many queries) or each chunk has
 * a block of its own and another kernel joins them (few queries, long contexts).
 *
 * Grid: tiles of queries (cuda/attention.cuh) x KV heads (x chunks). A warp has 4 queries: lanes are keys for the
 * scores, elements of the head for the sum of values. Bytes: keys and values once a tile. CPU twin:
 * cpu_attention. */
#include "cuda/attention.cuh"
#include "cuda/cuda_internal.h"

#include <type_traits>

static constexpr int CHUNK = 512, WARP_QUERIES = QUERIES / ATTENTION_WARPS;

/* What some keys gave one query: p are relative to max. Element part * 32 + lane of the sum of
 * values. */
template <int PARTS> struct softmax_state { float max, sum, acc[PARTS]; };

template <int PARTS> __device__ __forceinline__ softmax_state<PARTS> no_keys()
{
    softmax_state<PARTS> s = {-CUDART_INF_F, 0, {}};
    return s;
}

/* `to` takes in `from`, whose keys come later. */
template <int PARTS>
__device__ __forceinline__ void join(softmax_state<PARTS> &to, const softmax_state<PARTS> &from)
{
    if (from.max == -CUDART_INF_F) return;
    float max = fmaxf(to.max, from.max);
    float before = to.max == -CUDART_INF_F ? 0 : expf(to.max - max), now = expf(from.max - max);
    to.max = max;
    to.sum = to.sum * before + from.sum * now;
#pragma unroll
    for (int p = 0; p < PARTS; p++) to.acc[p] = to.acc[p] * before + from.acc[p] * now;
}

/* Shared memory: q [16][K], keys [32][K + 1], values [32][K], all f32. */
struct rooms { float *q, *k, *v; };

__device__ __forceinline__ rooms rooms_of(float *memory, int32_t n)
{
    return {memory, memory + QUERIES * n, memory + QUERIES * n + KEYS * (n + 1)};
}

template <class T>
__device__ void load_queries(const attention_args<T> &a, const tile_of_span &t, int32_t kv_head, float *q)
{
    int32_t n = a.a.head_dim, group = a.a.group;
    for (int i = threadIdx.x; i < QUERIES * n; i += ATTENTION_THREADS) {
        int32_t query = t.first + i / n;
        float x = 0;
        if (i / n < t.n) {
            int64_t row = t.s.row0 + query / group, head = kv_head * group + query % group;
            /* Rounded as the keys are. */
            x = round_to<T>(a.qkv[row * a.a.qkv_cols + head * n + i % n]);
        }
        q[i] = x;
    }
}

/* Keys and values of positions key0 .. key0 + 31 below `end`; zeros from there on. */
template <class T>
__device__ void load_keys(const attention_args<T> &a, const tile_of_span &t, int32_t kv_head,
                          int32_t key0, int32_t end, const rooms &s)
{
    int32_t n = a.a.head_dim;
    for (int i = threadIdx.x; i < KEYS * n; i += ATTENTION_THREADS) {
        int32_t j = i / n, d = i % n, key = key0 + j;
        float k = 0, v = 0;
        if (key < end) {
            const T *page = a.cache + a.pages[t.s.table + key / KV_PAGE_TOKENS] * a.page_elements;
            int32_t in_page = key % KV_PAGE_TOKENS;
            page += (int64_t)kv_head * KV_PAGE_TOKENS * n;
            k = to_f32(page[in_page * n + d]);
            v = to_f32(page[a.page_elements / 2 + d * KV_PAGE_TOKENS + in_page]);
        }
        s.k[j * (n + 1) + d] = k;
        s.v[j * n + d] = v;
    }
}

/* 32 keys for one query: `score` is lane's key's, -inf where it is not seen; `keep` dropout's
 * factor. */
template <int PARTS>
__device__ __forceinline__ void take_keys(softmax_state<PARTS> &s, float score, float keep, const float *v,
                                          int32_t n)
{
    int lane = threadIdx.x % WARP;
    float block_max = warp_max(score);
    if (block_max == -CUDART_INF_F) return;
    float max = fmaxf(s.max, block_max);
    float before = s.max == -CUDART_INF_F ? 0 : expf(s.max - max), p = expf(score - max);
    s.max = max;
    s.sum = s.sum * before + warp_sum(p);
    p *= keep;
#pragma unroll
    for (int part = 0; part < PARTS; part++) s.acc[part] *= before;
    for (int j = 0; j < KEYS; j++) {
        float pj = __shfl_sync(0xFFFFFFFFu, p, j);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int d = part * WARP + lane;
            if (d < n) s.acc[part] = fmaf(pj, v[j * n + d], s.acc[part]);
        }
    }
}

/* All keys [key0, end) of a chunk for the tile: fills state of this warp's queries. */
template <class T, int PARTS>
__device__ void attend_chunk(const attention_args<T> &a, const tile_of_span &t, int32_t kv_head,
                             int32_t key0, int32_t end, const rooms &s,
                             softmax_state<PARTS> (&state)[WARP_QUERIES])
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t n = a.a.head_dim, group = a.a.group;
    for (int32_t key = key0; key < end; key += KEYS) {
        __syncthreads();
        load_keys(a, t, kv_head, key, end, s);
        __syncthreads();
        float score[WARP_QUERIES] = {};
        for (int d = 0; d < n; d++) {
            float k = s.k[lane * (n + 1) + d];
#pragma unroll
            for (int i = 0; i < WARP_QUERIES; i++)
                score[i] = fmaf(s.q[(warp * WARP_QUERIES + i) * n + d], k, score[i]);
        }
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            int32_t query = t.first + warp * WARP_QUERIES + i, row = query / group;
            bool alive = warp * WARP_QUERIES + i < t.n;
            bool seen = alive && key + lane <= t.s.start + row;
            float keep = seen ? attention_keep(a.a, key + lane, t.s.row0 + row,
                                               kv_head * group + query % group)
                              : 1;
            take_keys<PARTS>(state[i], seen ? score[i] * a.a.scale : -CUDART_INF_F, keep, s.v, n);
        }
    }
}

template <class T, int PARTS>
__device__ __forceinline__ void write_query(const attention_args<T> &a, int64_t row, int64_t head,
                                            const softmax_state<PARTS> &s)
{
    int lane = threadIdx.x % WARP;
    int32_t n = a.a.head_dim;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int64_t d = p * WARP + lane, at = (row * a.a.n_head + head) * n + d;
        if (d >= n) continue;
        float y = s.acc[p] / s.sum;
        if (a.out_f32) ((float *)a.out)[at] = y;
        else ((T *)a.out)[at] = from_f32<T>(y);
    }
    if (a.lse && lane == 0) a.lse[row * a.a.n_head + head] = s.max + logf(s.sum);
}

/* Grid: tiles, KV heads, and 1 (all chunks here) or as many as there are chunks. */
template <class T, int PARTS>
__global__ void __launch_bounds__(ATTENTION_THREADS, 1) attention_kernel(attention_args<T> a)
{
    extern __shared__ float memory[];
    rooms s = rooms_of(memory, a.a.head_dim);
    tile_of_span t;
    int32_t kv_head = blockIdx.y, group = a.a.group, warp = threadIdx.x / WARP;
    if (!find_tile(a.spans, a.n_spans, group, blockIdx.x, QUERIES, t)) return;
    load_queries(a, t, kv_head, s.q);
    int32_t keys = t.s.start + (t.first + t.n - 1) / group + 1; /* that the tile's last query sees */
    bool split = a.partial != nullptr;
    int32_t first = split ? blockIdx.z * CHUNK : 0, last = split ? first + CHUNK : keys;
    if (first >= keys) return;
    softmax_state<PARTS> total[WARP_QUERIES];
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) total[i] = no_keys<PARTS>();
    for (int32_t key0 = first; key0 < min(last, keys); key0 += CHUNK) {
        softmax_state<PARTS> state[WARP_QUERIES];
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) state[i] = no_keys<PARTS>();
        attend_chunk<T, PARTS>(a, t, kv_head, key0, min(key0 + CHUNK, keys), s, state);
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) join(total[i], state[i]);
    }
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        int32_t query = t.first + warp * WARP_QUERIES + i;
        if (warp * WARP_QUERIES + i >= t.n) continue;
        int64_t row = t.s.row0 + query / group, head = kv_head * group + query % group;
        if (!split) {
            write_query<T, PARTS>(a, row, head, total[i]);
            continue;
        }
        float *to = partial_of(a, blockIdx.z, row, head);
        int lane = threadIdx.x % WARP;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * WARP + lane < a.a.head_dim) to[2 + p * WARP + lane] = total[i].acc[p];
        if (lane == 0) {
            to[0] = total[i].max;
            to[1] = total[i].sum;
        }
    }
}

/* A warp a (row, head): joins its chunks in order. */
template <class T, int PARTS>
__global__ void join_kernel(attention_args<T> a)
{
    int lane = threadIdx.x % WARP;
    int64_t row = blockIdx.x, head = blockIdx.y;
    int32_t keys = 0;
    for (int32_t i = 0; i < a.n_spans; i++) {
        span s = a.spans[i];
        if (row >= s.row0 && row < s.row0 + s.n_rows) keys = s.start + (int32_t)row - s.row0 + 1;
    }
    softmax_state<PARTS> total = no_keys<PARTS>();
    for (int32_t chunk = 0; chunk * CHUNK < keys; chunk++) {
        const float *from = partial_of(a, chunk, row, head);
        softmax_state<PARTS> s = {from[0], from[1], {}};
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * WARP + lane < a.a.head_dim) s.acc[p] = from[2 + p * WARP + lane];
        join(total, s);
    }
    write_query<T, PARTS>(a, row, head, total);
}

/* Runs the statement with PARTS: 32 elements of a head a lane each. */
#define WITH_PARTS(head_dim, statement)                                                             \
    switch (((head_dim) + WARP - 1) / WARP) {                                                       \
    case 1: { constexpr int PARTS = 1; statement; break; }                                          \
    case 2: { constexpr int PARTS = 2; statement; break; }                                          \
    case 3:                                                                                         \
    case 4: { constexpr int PARTS = 4; statement; break; }                                          \
    default: ASSERT(!"heads have at most 128 elements");                                            \
    }

template <class T>
static void attend_plain(struct cuda_device *c, attention_args<T> args, int64_t max_keys)
{
    int32_t n = args.a.head_dim;
    size_t shared = (size_t)(QUERIES * n + KEYS * (n + 1) + KEYS * n) * sizeof(float);
    unsigned tiles = (unsigned)(ceil_div((int64_t)args.rows * args.a.group, QUERIES) + args.n_spans);
    unsigned chunks = (unsigned)ceil_div(max_keys, CHUNK);
    int64_t bytes = (int64_t)chunks * args.rows * args.a.n_head * (n + 2) * (int64_t)sizeof(float);
    /* Few tiles leave most of the GPU idle: then chunks get blocks of their own, if there is
     * room. */
    bool split = chunks > 1 && (int64_t)tiles * args.a.n_kv_head < 2 * c->n_multiprocessors
                 && bytes <= c->workspace_bytes;
    if (split) args.partial = (float *)cuda_workspace(c, 0, bytes);
    dim3 grid(tiles, (unsigned)args.a.n_kv_head, split ? chunks : 1);
    WITH_PARTS(n, cuda_launch(c, "attention", attention_kernel<T, PARTS>, grid,
                              dim3(ATTENTION_THREADS), shared, args));
    if (split)
        WITH_PARTS(n, cuda_launch(c, "attention", join_kernel<T, PARTS>,
                                  dim3((unsigned)args.rows, (unsigned)args.a.n_head), dim3(WARP), 0,
                                  args));
}

template <class T>
static void attend_from(struct cuda_device *c, struct tensor out, struct tensor qkv,
                        const struct batch *b, const struct attention *a, const struct kv_cache *kv,
                        int32_t layer, bool writes)
{
    int64_t page = cuda_kv_page_bytes(&c->base, kv->dtype, kv->n_kv_head, kv->head_dim) / sizeof(T);
    attention_args<T> args = {
        .a = attention_shape_of(a, qkv.cols), .qkv = (const float *)qkv.data,
        .cache = (T *)kv->data + (int64_t)layer * kv->n_pages * page, .page_elements = page,
        .spans = b->spans, .pages = b->pages, .n_spans = b->n_spans, .lse = a->lse,
        .partial = nullptr, .rows = b->n_rows, .out = out.data, .out_f32 = out.dtype == DTYPE_F32,
        .writes = writes, .kv = kv_write_args_of(qkv, b, a, page),
    };
    /* No sequence has more keys than the cache has room for. */
    int64_t max_keys = (int64_t)kv->n_pages * KV_PAGE_TOKENS;
    if (b->max_keys > 0) max_keys = min_i64(max_keys, b->max_keys);
    if constexpr (sizeof(T) == 2)
        if (cuda_attention_mma(c, args, max_keys)) return;
    if constexpr (std::is_same_v<T, bf16>)
        ASSERT(!"a GPU that computes in bf16 has tensor cores");
    else
        attend_plain(c, args, max_keys);
}

static void attend(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer, bool writes)
{
    ASSERT(qkv.dtype == DTYPE_F32 && qkv.rows == b->n_rows && out.rows == b->n_rows);
    ASSERT(out.cols == (int64_t)a->n_head * a->head_dim && a->head_dim <= 4 * WARP);
    ASSERT(out.dtype == DTYPE_F32 || out.dtype == kv->dtype);
    WITH_TYPE(kv->dtype, attend_from<T>(cuda_of(d), out, qkv, b, a, kv, layer, writes));
}

void cuda_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                    const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    attend(d, out, qkv, b, a, kv, layer, false);
}

void cuda_kv_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                       const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    bool decodes = b->n_rows == b->n_spans && a->n_head <= DECODE_HEADS * a->n_kv_head;
    bool at_once = decodes && kv->dtype != DTYPE_F32 && cuda_attention_has_mma(cuda_of(d), a->head_dim);
    if (!at_once) cuda_kv_write(d, qkv, b, a, kv, layer);
    attend(d, out, qkv, b, a, kv, layer, at_once);
}
