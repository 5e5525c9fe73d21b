/* Attention's backward pass, without a T x T matrix (Dao et al. 2022): scores are computed again.
 *
 *   p = exp(scale q.k - lse)        D = do . o         dp = z (do . v)        z: dropout's factor, or 1
 *   ds = p (dp - D)                 dq = scale sum over keys of ds k
 *   dv = sum over queries of z p do                    dk = scale sum over queries of ds q
 *
 * dqkv [R, (H + 2G) K] f32 or of dout's type; qkv as attention saw them, out and dout 16 bits or f32; spans begin at
 * position 0.
 * No atomics: one kernel has a block for each tile of queries and walks its keys, another a block for each tile of
 * keys and walks the queries of all heads that read them, in order. Here are the plain kernels, of f32, and of 16 bits
 * without tensor cores; attention_backward_mma.cu has the others.
 *
 * Grid: D by (row, head), 4 K elements of two bytes or four; tiles of 16 queries (8 of the largest heads) x KV heads;
 * blocks of 32 keys x KV heads. 14 K operations a pair of query and key (both kernels compute its score): bound by
 * these. CPU twin: cpu_attention_backward. */
#include "cuda/attention_backward.cuh"

#include <type_traits>

static constexpr int DELTA_WARPS = 8;

/* Grid: a warp a (row, head), two elements a lane at a time. Bytes: out and dout once; bound by
 * them. */
template <class T> __global__ void __launch_bounds__(DELTA_WARPS *WARP) delta_kernel(backward_args<T> a)
{
    int64_t item = (int64_t)blockIdx.x * DELTA_WARPS + threadIdx.x / WARP, n = a.a.head_dim;
    if (item >= (int64_t)a.rows * a.a.n_head) return;
    float sum = 0;
    for (int64_t d = item * n + threadIdx.x % WARP * 2; d < (item + 1) * n; d += 2 * WARP) {
        packed<T, 2> x = load_packed<T, 2>(a.dout + d), y = load_packed<T, 2>(a.out + d);
        sum += to_f32(x.at[0]) * to_f32(y.at[0]) + to_f32(x.at[1]) * to_f32(y.at[1]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) a.delta[item] = sum;
}

template <class T>
__device__ __forceinline__ void put_gradient(const backward_args<T> &a, int64_t at, float y)
{
    if (a.rounds) ((T *)a.dqkv)[at] = from_f32<T>(y);
    else ((float *)a.dqkv)[at] = y;
}

/* Queries of a tile, where a lane has PARTS elements of a head. Half as many of the largest heads:
 * before sm_70 no block gets more than 48 KiB of shared memory. No bit depends on it. */
template <int PARTS> static constexpr int TILE_OF = PARTS < 4 ? QUERIES : QUERIES / 2;

/* Shared memory of both kernels: a tile's queries and their do [TILE][K], keys [32][K + 1], values
 * [32][K + 1], and p z and ds [TILE][33]; all f32. */
struct backward_rooms { float *q, *dout, *k, *v, *p, *ds; };
static constexpr int PAIR_STRIDE = KEYS + 1;

static constexpr int backward_floats(int tile, int32_t n)
{
    return 2 * tile * n + 2 * KEYS * (n + 1) + 2 * tile * PAIR_STRIDE;
}

template <int TILE> __device__ __forceinline__ backward_rooms rooms_of(float *m, int32_t n)
{
    backward_rooms r;
    r.q = m;
    r.dout = r.q + TILE * n;
    r.k = r.dout + TILE * n;
    r.v = r.k + KEYS * (n + 1);
    r.p = r.v + KEYS * (n + 1);
    r.ds = r.p + TILE * PAIR_STRIDE;
    return r;
}

template <int TILE, class T>
__device__ void load_queries(const backward_args<T> &a, const tile_of_span &t, int32_t kv_head,
                             const backward_rooms &s)
{
    int32_t n = a.a.head_dim, group = a.a.group;
    for (int i = threadIdx.x; i < TILE * n; i += ATTENTION_THREADS) {
        int32_t query = t.first + i / n, d = i % n, row = t.s.row0 + query / group;
        int32_t head = kv_head * group + query % group;
        bool alive = i / n < t.n;
        s.q[i] = alive ? to_f32(a.qkv[query_at(a.a, row, head) + d]) : 0;
        s.dout[i] = alive ? to_f32(a.dout[((int64_t)row * a.a.n_head + head) * n + d]) : 0;
    }
}

/* Keys and values of the span's rows [key0, key0 + 32). */
template <class T>
__device__ void load_keys(const backward_args<T> &a, const span &sp, int32_t kv_head, int32_t key0,
                          const backward_rooms &s)
{
    int32_t n = a.a.head_dim;
    for (int i = threadIdx.x; i < KEYS * n; i += ATTENTION_THREADS) {
        int32_t j = i / n, d = i % n;
        bool alive = key0 + j < sp.n_rows;
        int64_t row = sp.row0 + key0 + j;
        s.k[j * (n + 1) + d] = alive ? to_f32(a.qkv[key_at(a.a, row, kv_head, 0) + d]) : 0;
        s.v[j * (n + 1) + d] = alive ? to_f32(a.qkv[key_at(a.a, row, kv_head, 1) + d]) : 0;
    }
}

/* p z and ds of a tile's queries by 32 keys, to shared memory: lanes are keys, warps share the
 * queries. */
template <int TILE, class T>
__device__ void pairs(const backward_args<T> &a, const tile_of_span &t, int32_t kv_head, int32_t key0,
                      const backward_rooms &s)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    constexpr int WARP_QUERIES = TILE / ATTENTION_WARPS;
    int32_t n = a.a.head_dim, group = a.a.group;
    float score[WARP_QUERIES] = {}, dp[WARP_QUERIES] = {};
    for (int d = 0; d < n; d++) {
        float k = s.k[lane * (n + 1) + d], v = s.v[lane * (n + 1) + d];
#pragma unroll
        for (int i = 0; i < WARP_QUERIES; i++) {
            int at = (warp * WARP_QUERIES + i) * n + d;
            score[i] = fmaf(s.q[at], k, score[i]);
            dp[i] = fmaf(s.dout[at], v, dp[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        int32_t in_tile = warp * WARP_QUERIES + i, query = t.first + in_tile, row = query / group;
        int32_t head = kv_head * group + query % group;
        float p = 0, ds = 0;
        if (in_tile < t.n && key0 + lane <= row) {
            int64_t at = (int64_t)(t.s.row0 + row) * a.a.n_head + head;
            float keep = attention_keep(a.a, key0 + lane, t.s.row0 + row, head);
            p = expf(score[i] * a.a.scale - a.lse[at]);
            ds = p * (keep * dp[i] - a.delta[at]);
            p *= keep;
        }
        s.p[in_tile * PAIR_STRIDE + lane] = p;
        s.ds[in_tile * PAIR_STRIDE + lane] = ds;
    }
}

/* Grid: tiles of queries, KV heads. A warp adds up dq of its queries; lanes are elements of the
 * head. */
template <class T, int PARTS>
__global__ void __launch_bounds__(ATTENTION_THREADS) queries_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    constexpr int TILE = TILE_OF<PARTS>, WARP_QUERIES = TILE / ATTENTION_WARPS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t n = a.a.head_dim, group = a.a.group, kv_head = blockIdx.y;
    backward_rooms s = rooms_of<TILE>(memory, n);
    tile_of_span t;
    if (!find_tile(a.spans, a.n_spans, group, blockIdx.x, TILE, t)) return;
    load_queries<TILE>(a, t, kv_head, s);
    float dq[WARP_QUERIES][PARTS] = {};
    int32_t keys = (t.first + t.n - 1) / group + 1;
    for (int32_t key0 = 0; key0 < keys; key0 += KEYS) {
        __syncthreads();
        load_keys(a, t.s, kv_head, key0, s);
        __syncthreads();
        pairs<TILE>(a, t, kv_head, key0, s);
        __syncwarp(); /* a warp reads what it wrote itself */
        for (int j = 0; j < KEYS; j++)
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                int d = p * WARP + lane;
                float k = d < n ? s.k[j * (n + 1) + d] : 0;
#pragma unroll
                for (int i = 0; i < WARP_QUERIES; i++)
                    dq[i][p] = fmaf(s.ds[(warp * WARP_QUERIES + i) * PAIR_STRIDE + j], k, dq[i][p]);
            }
    }
#pragma unroll
    for (int i = 0; i < WARP_QUERIES; i++) {
        int32_t in_tile = warp * WARP_QUERIES + i, query = t.first + in_tile;
        if (in_tile >= t.n) continue;
        int64_t at = query_at(a.a, t.s.row0 + query / group, kv_head * group + query % group);
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * WARP + lane < n) put_gradient(a, at + p * WARP + lane, dq[i][p] * a.a.scale);
    }
}

/* Grid: blocks of 32 keys of all spans, KV heads. A warp adds up dk and dv of 8 keys. */
static constexpr int WARP_KEYS = KEYS / ATTENTION_WARPS;

template <class T, int PARTS>
__global__ void __launch_bounds__(ATTENTION_THREADS) keys_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    constexpr int TILE = TILE_OF<PARTS>;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t n = a.a.head_dim, group = a.a.group, kv_head = blockIdx.y;
    backward_rooms s = rooms_of<TILE>(memory, n);
    tile_of_span block;
    if (!find_tile(a.spans, a.n_spans, 1, blockIdx.x, KEYS, block)) return;
    int32_t key0 = block.first;
    load_keys(a, block.s, kv_head, key0, s);
    float dk[WARP_KEYS][PARTS] = {}, dv[WARP_KEYS][PARTS] = {};
    /* From the tile that holds the first query that sees a key here. */
    int32_t queries = block.s.n_rows * group;
    for (int32_t first = key0 * group / TILE * TILE; first < queries; first += TILE) {
        tile_of_span t = {block.s, first, min(TILE, queries - first)};
        __syncthreads();
        load_queries<TILE>(a, t, kv_head, s);
        __syncthreads();
        pairs<TILE>(a, t, kv_head, key0, s);
        __syncthreads();
        for (int i = 0; i < TILE; i++)
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                int d = p * WARP + lane;
                float q = d < n ? s.q[i * n + d] : 0, dout = d < n ? s.dout[i * n + d] : 0;
#pragma unroll
                for (int j = 0; j < WARP_KEYS; j++) {
                    int at = i * PAIR_STRIDE + warp * WARP_KEYS + j;
                    dk[j][p] = fmaf(s.ds[at], q, dk[j][p]);
                    dv[j][p] = fmaf(s.p[at], dout, dv[j][p]);
                }
            }
    }
#pragma unroll
    for (int j = 0; j < WARP_KEYS; j++) {
        int32_t key = key0 + warp * WARP_KEYS + j;
        if (key >= block.s.n_rows) continue;
        int64_t row = block.s.row0 + key;
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int d = p * WARP + lane;
            if (d >= n) continue;
            put_gradient(a, key_at(a.a, row, kv_head, 0) + d, dk[j][p] * a.a.scale);
            put_gradient(a, key_at(a.a, row, kv_head, 1) + d, dv[j][p]);
        }
    }
}

template <class T, int PARTS>
static void backward(struct cuda_device *c, const backward_args<T> &args)
{
    constexpr int TILE = TILE_OF<PARTS>;
    static_assert(backward_floats(TILE, PARTS * WARP) * sizeof(float) <= 48 << 10);
    unsigned kv_heads = (unsigned)args.a.n_kv_head;
    unsigned tiles = (unsigned)(ceil_div((int64_t)args.rows * args.a.group, TILE) + args.n_spans);
    unsigned blocks = (unsigned)(ceil_div(args.rows, KEYS) + args.n_spans);
    size_t shared = (size_t)backward_floats(TILE, args.a.head_dim) * sizeof(float);
    cuda_launch(c, "attention_backward", queries_kernel<T, PARTS>, dim3(tiles, kv_heads),
                dim3(ATTENTION_THREADS), shared, args);
    cuda_launch(c, "attention_backward", keys_kernel<T, PARTS>, dim3(blocks, kv_heads),
                dim3(ATTENTION_THREADS), shared, args);
}

template <class T>
static void backward_plain(struct cuda_device *c, const backward_args<T> &args)
{
    switch (ceil_div(args.a.head_dim, WARP)) {
    case 1: return backward<T, 1>(c, args);
    case 2: return backward<T, 2>(c, args);
    case 3: return backward<T, 3>(c, args);
    case 4: return backward<T, 4>(c, args);
    default: ASSERT(!"heads have at most 128 elements");
    }
}

template <class T>
static void backward_from(struct cuda_device *c, struct tensor dqkv, struct tensor dout,
                          struct tensor qkv, struct tensor out, const float *lse,
                          const struct batch *b, const struct attention *a)
{
    int64_t bytes = dqkv.rows * a->n_head * (int64_t)sizeof(float);
    backward_args<T> args = {
        .a = attention_shape_of(a, qkv.cols), .dqkv = dqkv.data, .rounds = dqkv.dtype != DTYPE_F32,
        .lse = lse, .dout = (const T *)dout.data, .qkv = (const T *)qkv.data,
        .out = (const T *)out.data, .delta = (float *)cuda_workspace(c, 0, bytes), .spans = b->spans,
        .n_spans = b->n_spans, .rows = b->n_rows,
    };
    cuda_launch(c, "attention_backward", delta_kernel<T>,
                dim3((unsigned)ceil_div(dqkv.rows * a->n_head, DELTA_WARPS)), dim3(DELTA_WARPS * WARP), 0,
                args);
    /* GPUs that compute in bf16 have tensor cores, and the memory for them. */
    if constexpr (std::is_same_v<T, float>) backward_plain(c, args);
    else if constexpr (std::is_same_v<T, bf16>) cuda_attention_backward_mma(c, args);
    else if (!cuda_attention_backward_mma(c, args)) backward_plain(c, args);
}

void cuda_attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                             struct tensor qkv, struct tensor out, const float *lse,
                             const struct batch *b, const struct attention *a)
{
    ASSERT(dqkv.dtype == DTYPE_F32 || dqkv.dtype == qkv.dtype);
    ASSERT(dout.dtype == qkv.dtype && out.dtype == qkv.dtype);
    ASSERT(dqkv.cols == qkv.cols && dqkv.rows == b->n_rows && a->head_dim <= 4 * WARP);
    WITH_TYPE(qkv.dtype, backward_from<T>(cuda_of(d), dqkv, dout, qkv, out, lse, b, a));
}
