/* Attention's backward pass, without a T x T matrix (Dao et al. 2022): scores are computed again.
 *
 *   p = exp(scale q.k - lse)        D = do . o         dp = z (do . v)        z: dropout's factor, or 1
 *   ds = p (dp - D)                 dq = scale sum over keys of ds k
 *   dv = sum over queries of z p do                    dk = scale sum over queries of ds q
 *
 * dqkv f32 [R, (H + 2G) K]; qkv 16 bits or f32 as attention saw them; dout f32; spans begin at position 0.
 * No atomics: one kernel has a block for each tile of queries and walks its keys, another a block for each tile of
 * keys and walks the queries of all heads that read them, in order.
 *
 *   tensor cores   64 own rows a block, 16 a warp, 32 rows walked at a time; p, ds and do rounded to 16 bits.
 *                  14 K operations a pair of query and key (both kernels compute its score): bound by mma.sync,
 *                  and nearly as much by ldmatrix
 *   plain          f32, and 16 bits without tensor cores
 *
 * Grid: D by rows; tiles x KV heads; blocks of keys x KV heads. CPU twin: cpu_attention_backward. */
#include <type_traits>

#include "cuda/attention.cuh"
#include "cuda/cuda_internal.h"

template <class T> struct backward_args {
    attention_shape a;
    float *dqkv;
    const float *dout, *lse;
    const T *qkv, *out;
    float *delta; /* [R, H] */
    const span *spans;
    int32_t n_spans, rows;
    const T *dout_rounded; /* where dout lies, in the first half of each of its rows; of tensor cores */
};

/* Columns of a head of q, k (which = 0) or v (1) in a row of qkv. */
__device__ __forceinline__ int64_t query_at(const attention_shape &a, int64_t row, int32_t head)
{
    return row * a.qkv_cols + (int64_t)head * a.head_dim;
}

__device__ __forceinline__ int64_t key_at(const attention_shape &a, int64_t row, int32_t kv_head,
                                          int32_t which)
{
    return query_at(a, row, a.n_head + which * a.n_kv_head + kv_head);
}

template <class T> __global__ void delta_kernel(backward_args<T> a)
{
    int64_t row = blockIdx.x, head = blockIdx.y, n = a.a.head_dim;
    int64_t at = (row * a.a.n_head + head) * n;
    float sum = 0;
    for (int d = threadIdx.x; d < n; d += WARP) sum += a.dout[at + d] * to_f32(a.out[at + d]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) a.delta[row * a.a.n_head + head] = sum;
}

/* Shared memory of both kernels: queries and their do [16][K], keys [32][K + 1], values [32][K + 1], and
 * p z and ds [16][33]; all f32. */
struct backward_rooms { float *q, *dout, *k, *v, *p, *ds; };
static constexpr int PAIR_STRIDE = KEYS + 1;

static __host__ __device__ __forceinline__ int backward_floats(int32_t n)
{
    return 2 * QUERIES * n + 2 * KEYS * (n + 1) + 2 * QUERIES * PAIR_STRIDE;
}

__device__ __forceinline__ backward_rooms rooms_of(float *m, int32_t n)
{
    backward_rooms r;
    r.q = m;
    r.dout = r.q + QUERIES * n;
    r.k = r.dout + QUERIES * n;
    r.v = r.k + KEYS * (n + 1);
    r.p = r.v + KEYS * (n + 1);
    r.ds = r.p + QUERIES * PAIR_STRIDE;
    return r;
}

template <class T>
__device__ void load_queries(const backward_args<T> &a, const tile_of_span &t, int32_t kv_head,
                             const backward_rooms &s)
{
    int32_t n = a.a.head_dim, group = a.a.group;
    for (int i = threadIdx.x; i < QUERIES * n; i += ATTENTION_THREADS) {
        int32_t query = t.first + i / n, d = i % n, row = t.s.row0 + query / group;
        int32_t head = kv_head * group + query % group;
        bool alive = i / n < t.n;
        s.q[i] = alive ? to_f32(a.qkv[query_at(a.a, row, head) + d]) : 0;
        s.dout[i] = alive ? a.dout[((int64_t)row * a.a.n_head + head) * n + d] : 0;
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

/* p z and ds of 16 queries by 32 keys, to shared memory: lanes are keys, a warp has 4 queries. */
template <class T>
__device__ void pairs(const backward_args<T> &a, const tile_of_span &t, int32_t kv_head, int32_t key0,
                      const backward_rooms &s)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
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

/* Grid: tiles of queries, KV heads. A warp adds up dq of its 4 queries; lanes are elements of the head. */
template <class T, int PARTS>
__global__ void __launch_bounds__(ATTENTION_THREADS) queries_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t n = a.a.head_dim, group = a.a.group, kv_head = blockIdx.y;
    backward_rooms s = rooms_of(memory, n);
    tile_of_span t;
    if (!find_tile(a.spans, a.n_spans, group, blockIdx.x, QUERIES, t)) return;
    load_queries(a, t, kv_head, s);
    float dq[WARP_QUERIES][PARTS] = {};
    int32_t keys = (t.first + t.n - 1) / group + 1;
    for (int32_t key0 = 0; key0 < keys; key0 += KEYS) {
        __syncthreads();
        load_keys(a, t.s, kv_head, key0, s);
        __syncthreads();
        pairs(a, t, kv_head, key0, s);
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
            if (p * WARP + lane < n) a.dqkv[at + p * WARP + lane] = dq[i][p] * a.a.scale;
    }
}

/* Grid: blocks of 32 keys of all spans, KV heads. A warp adds up dk and dv of 8 keys. */
static constexpr int WARP_KEYS = KEYS / ATTENTION_WARPS;

template <class T, int PARTS>
__global__ void __launch_bounds__(ATTENTION_THREADS) keys_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t n = a.a.head_dim, group = a.a.group, kv_head = blockIdx.y;
    backward_rooms s = rooms_of(memory, n);
    tile_of_span block;
    if (!find_tile(a.spans, a.n_spans, 1, blockIdx.x, KEYS, block)) return;
    int32_t key0 = block.first;
    load_keys(a, block.s, kv_head, key0, s);
    float dk[WARP_KEYS][PARTS] = {}, dv[WARP_KEYS][PARTS] = {};
    /* From the tile that holds the first query that sees a key here. */
    int32_t queries = block.s.n_rows * group;
    for (int32_t first = key0 * group / QUERIES * QUERIES; first < queries; first += QUERIES) {
        tile_of_span t = {block.s, first, min(QUERIES, queries - first)};
        __syncthreads();
        load_queries(a, t, kv_head, s);
        __syncthreads();
        pairs(a, t, kv_head, key0, s);
        __syncthreads();
        for (int i = 0; i < QUERIES; i++)
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
            a.dqkv[key_at(a.a, row, kv_head, 0) + d] = dk[j][p] * a.a.scale;
            a.dqkv[key_at(a.a, row, kv_head, 1) + d] = dv[j][p];
        }
    }
}

/* ---- tensor cores ---- */

static constexpr int OWN = 64, WALK = 32, ROUND_THREADS = 256;
static constexpr float LOG2_E = 1.4426950409f;

/* dout rounded to T, written over the first half of its row once the row has been read; and D, of what was
 * rounded. Grid: a block a row, a warp a head at a time. Bytes: 8 H K read, 2 H K written. */
template <class T> __global__ void __launch_bounds__(ROUND_THREADS) round_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    T *rounded = (T *)memory;
    int64_t row = blockIdx.x, n = a.a.head_dim, cols = n * a.a.n_head;
    for (int head = threadIdx.x / WARP; head < a.a.n_head; head += ROUND_THREADS / WARP) {
        float sum = 0;
        for (int64_t i = head * n + threadIdx.x % WARP; i < (head + 1) * n; i += WARP) {
            rounded[i] = from_f32<T>(a.dout[row * cols + i]);
            sum += to_f32(rounded[i]) * to_f32(a.out[row * cols + i]);
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) a.delta[row * a.a.n_head + head] = sum;
    }
    __syncthreads();
    T *to = const_cast<T *>(a.dout_rounded) + row * 2 * cols;
    for (int64_t i = threadIdx.x * 8; i < cols; i += ROUND_THREADS * 8)
        store_packed(to + i, load_packed<T, 8>(rounded + i));
}

/* The block's own rows and those that it walks past, D >= K elements and 8 more, so that ldmatrix meets no bank
 * twice. Of queries: q and do; of keys: k and v. */
template <class T, int D> struct flash_rooms {
    T own[2][OWN][D + 8];
    T walk[2][2][WALK][D + 8];               /* two stages */
    float lse[2][WALK], delta[2][WALK];      /* of queries walked past */
};

/* Row i of a span's queries or keys. */
template <class T> struct row_source {
    const backward_args<T> &a;
    span s;
    int32_t kv_head;
    bool keys;

    __device__ __forceinline__ int32_t count() const { return keys ? s.n_rows : s.n_rows * a.a.group; }
    __device__ __forceinline__ int64_t row(int32_t i) const { return s.row0 + (keys ? i : i / a.a.group); }
    __device__ __forceinline__ int32_t head(int32_t i) const
    {
        return keys ? kv_head : kv_head * a.a.group + i % a.a.group;
    }
    /* which = 0: q or k; 1: do or v. */
    __device__ __forceinline__ const T *at(int32_t i, int which) const
    {
        if (keys) return a.qkv + key_at(a.a, row(i), kv_head, which);
        if (which == 0) return a.qkv + query_at(a.a, row(i), head(i));
        return a.dout_rounded + (row(i) * 2 * a.a.n_head + head(i)) * a.a.head_dim;
    }
};

/* ROWS rows from `first` on of both tensors, zeros past the end of rows and heads, in the background. */
template <class T, int D, int ROWS>
__device__ __forceinline__ void fetch(T (&to)[2][ROWS][D + 8], const row_source<T> &from, int32_t first)
{
    constexpr int PIECES = D / 8;
    for (int at = threadIdx.x; at < ROWS * PIECES; at += ATTENTION_THREADS) {
        int r = at / PIECES, d = at % PIECES * 8;
        bool valid = first + r < from.count() && d < from.a.a.head_dim;
        int32_t i = valid ? first + r : 0, e = valid ? d : 0;
        copy_async_16(&to[0][r][d], from.at(i, 0) + e, valid);
        copy_async_16(&to[1][r][d], from.at(i, 1) + e, valid);
    }
}

/* Log-sums (in powers of 2) and D of query i; zeros past the end. */
template <class T>
__device__ __forceinline__ void query_sums(const row_source<T> &from, int32_t i, float &lse, float &delta)
{
    lse = delta = 0;
    if (i >= from.count()) return;
    int64_t at = from.row(i) * from.a.a.n_head + from.head(i);
    lse = from.a.lse[at] * LOG2_E;
    delta = from.a.delta[at];
}

/* Fragment of 16 x 16 elements from (m, k) on, the left operand of mma.sync. */
template <class T, int S>
__device__ __forceinline__ void left(uint32_t (&r)[4], const T (*rows)[S], int m, int k)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    ldmatrix_x4(r, &rows[m + matrix % 2 * 8 + lane % 8][k + matrix / 2 * 8]);
}

/* The right operand for outputs n .. n + 15 at depth k .. k + 15, of rows [n][k] or, turned, [k][n]. */
template <class T, int S>
__device__ __forceinline__ void right(uint32_t (&r)[4], const T (*rows)[S], int n, int k)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    ldmatrix_x4(r, &rows[n + matrix / 2 * 8 + lane % 8][k + matrix % 2 * 8]);
}

template <class T, int S>
__device__ __forceinline__ void right_turned(uint32_t (&r)[4], const T (*rows)[S], int n, int k)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    ldmatrix_x4_trans(r, &rows[k + matrix % 2 * 8 + lane % 8][n + matrix / 2 * 8]);
}

/* d [16, 16] += a b, d as two fragments of 8 columns. */
template <class T>
__device__ __forceinline__ void multiply_add(float (&low)[4], float (&high)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[4])
{
    uint32_t b_low[2] = {b[0], b[1]}, b_high[2] = {b[2], b[3]};
    mma_16816(low, a, b_low, T());
    mma_16816(high, a, b_high, T());
}

template <class T> __device__ __forceinline__ uint32_t pair_of(float low, float high)
{
    packed<T, 2> v = {{from_f32<T>(low), from_f32<T>(high)}};
    return *reinterpret_cast<uint32_t *>(&v);
}

/* Results of two fragments of 8 columns as a left operand of depth 16. */
template <class T>
__device__ __forceinline__ void as_left(uint32_t (&r)[4], const float (&low)[4], const float (&high)[4])
{
    r[0] = pair_of<T>(low[0], low[1]);
    r[1] = pair_of<T>(low[2], low[3]);
    r[2] = pair_of<T>(high[0], high[1]);
    r[3] = pair_of<T>(high[2], high[3]);
}

static constexpr int PARTS_WALKED = WALK / 8; /* fragments of 8 columns */

/* x: scores, becomes z p; y: do . v, becomes ds. Element e of lane 4 g + q in fragment f is the pair of own row
 * g + e / 2 * 8 and walked row f * 8 + 2 q + e % 2. */
template <bool KEYS_OWN, class T>
__device__ __forceinline__ void pair_gradients(float (&x)[PARTS_WALKED][4], float (&y)[PARTS_WALKED][4],
                                               const row_source<T> &queries, int32_t own0, int32_t walk0,
                                               const float (&lse)[2 * PARTS_WALKED],
                                               const float (&delta)[2 * PARTS_WALKED])
{
    const attention_shape &a = queries.a.a;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int f = 0; f < PARTS_WALKED; f++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int32_t own = own0 + g + e / 2 * 8, walk = walk0 + f * 8 + 2 * q + e % 2;
            int32_t query = KEYS_OWN ? walk : own, key = KEYS_OWN ? own : walk;
            int at = KEYS_OWN ? f * 2 + e % 2 : e / 2;
            int32_t position = a.group == 1 ? query : query / a.group;
            bool seen = query < queries.count() && key <= position;
            float p = seen ? exp2f(x[f][e] * (a.scale * LOG2_E) - lse[at]) : 0, keep = 1;
            if (a.drop_threshold != 0 && seen)
                keep = attention_keep(a, key, queries.s.row0 + position, queries.head(query));
            x[f][e] = p * keep;
            y[f][e] = p * (keep * y[f][e] - delta[at]);
        }
}

/* Rows walked past from `first` on, into a stage. */
template <class T, int D, bool KEYS_OWN>
__device__ __forceinline__ void fetch_walk(flash_rooms<T, D> &s, int stage, const row_source<T> &walk,
                                           int32_t first)
{
    fetch<T, D, WALK>(s.walk[stage], walk, first);
    copy_async_commit();
    int i = threadIdx.x;
    if (KEYS_OWN && i < WALK) query_sums(walk, first + i, s.lse[stage][i], s.delta[stage][i]);
}

/* The warp's own rows as left operands: in registers where these suffice. */
template <class T, int D> struct own_fragments {
    static constexpr bool KEPT = D <= 64;
    uint32_t kept[2][KEPT ? D / 16 : 1][4];

    __device__ __forceinline__ void keep(const flash_rooms<T, D> &s, int m)
    {
#pragma unroll
        for (int k = 0; k < (KEPT ? D / 16 : 0); k++)
#pragma unroll
            for (int which = 0; which < 2; which++) left(kept[which][k], s.own[which], m, k * 16);
    }
    __device__ __forceinline__ void get(uint32_t (&r)[4], const flash_rooms<T, D> &s, int which, int m,
                                        int k) const
    {
        if (!KEPT) left(r, s.own[which], m, k * 16);
#pragma unroll
        for (int i = 0; i < (KEPT ? 4 : 0); i++) r[i] = kept[which][KEPT ? k : 0][i];
    }
};

/* x = products of own rows 0 with walked rows 0 (q and k), y = those of 1 (do and v). */
template <class T, int D>
__device__ __forceinline__ void pair_products(float (&x)[PARTS_WALKED][4], float (&y)[PARTS_WALKED][4],
                                              const own_fragments<T, D> &f, const flash_rooms<T, D> &s,
                                              const T (&walk)[2][WALK][D + 8], int m)
{
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[2][4], b[4];
        f.get(a[0], s, 0, m, k);
        f.get(a[1], s, 1, m, k);
#pragma unroll
        for (int n = 0; n < WALK / 16; n++) {
            right(b, walk[0], n * 16, k * 16);
            multiply_add<T>(x[2 * n], x[2 * n + 1], a[0], b);
            right(b, walk[1], n * 16, k * 16);
            multiply_add<T>(y[2 * n], y[2 * n + 1], a[1], b);
        }
    }
}

/* sum [16, D] += x rows: x [16, 32], rounded to T. */
template <class T, int D>
__device__ __forceinline__ void add_rows(float (&sum)[D / 8][4], const float (&x)[PARTS_WALKED][4],
                                         const T (&rows)[WALK][D + 8])
{
#pragma unroll
    for (int k = 0; k < WALK / 16; k++) {
        uint32_t a[4], b[4];
        as_left<T>(a, x[2 * k], x[2 * k + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            right_turned(b, rows, n * 16, k * 16);
            multiply_add<T>(sum[2 * n], sum[2 * n + 1], a, b);
        }
    }
}

/* The sums of the warp's own rows, to dq, or dk (which = 0), or dv (1). */
template <int D, class T>
__device__ __forceinline__ void put_rows(const row_source<T> &own, const tile_of_span &t, int m, int which,
                                         const float (&sum)[D / 8][4], float scale)
{
    const attention_shape &a = own.a.a;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int32_t r = m + g + e * 8, i = t.first + r;
        if (r >= t.n) continue;
        int64_t at = own.keys ? key_at(a, own.row(i), own.kv_head, which)
                              : query_at(a, own.row(i), own.head(i));
#pragma unroll
        for (int f = 0; f < D / 8; f++) {
            int d = f * 8 + 2 * q;
            if (d >= a.head_dim) continue;
            packed<float, 2> v = {{sum[f][2 * e] * scale, sum[f][2 * e + 1] * scale}};
            store_packed(own.a.dqkv + at + d, v);
        }
    }
}

/* Grid: tiles of 64 keys (KEYS_OWN; else queries) of all spans, KV heads. D: the head's size rounded up to a
 * multiple of 32. Left to itself ptxas spills a register of the large ones that it takes for small. */
template <class T, int D, bool KEYS_OWN>
__global__ void __launch_bounds__(ATTENTION_THREADS, KEYS_OWN || D < 96 ? 0 : LARGE_BLOCKS)
    flash_kernel(backward_args<T> a)
{
    extern __shared__ __align__(16) float memory[];
    flash_rooms<T, D> &s = *(flash_rooms<T, D> *)memory;
    int lane = threadIdx.x % WARP, m = threadIdx.x / WARP * 16, g = lane / 4, q = lane % 4;
    int32_t group = a.a.group, kv_head = blockIdx.y;
    tile_of_span t;
    /* Blocks with the longest walks begin first: those of early keys, or of late queries. */
    int32_t tile = KEYS_OWN ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    if (!find_tile(a.spans, a.n_spans, KEYS_OWN ? 1 : group, tile, OWN, t)) return;
    row_source<T> own = {a, t.s, kv_head, KEYS_OWN}, walk = {a, t.s, kv_head, !KEYS_OWN};
    const row_source<T> &queries = KEYS_OWN ? walk : own;
    int32_t at = KEYS_OWN ? t.first * group / WALK * WALK : 0;
    int32_t end = KEYS_OWN ? walk.count() : (t.first + t.n - 1) / group + 1;

    float x_sum[D / 8][4] = {}, y_sum[KEYS_OWN ? D / 8 : 1][4] = {}; /* dk or dq; dv */
    float lse[2 * PARTS_WALKED] = {}, delta[2 * PARTS_WALKED] = {};
    if (!KEYS_OWN)
        for (int e = 0; e < 2; e++) query_sums(own, t.first + m + g + e * 8, lse[e], delta[e]);
    fetch<T, D, OWN>(s.own, own, t.first);
    fetch_walk<T, D, KEYS_OWN>(s, 0, walk, at);
    copy_async_wait<0>();
    __syncthreads();
    own_fragments<T, D> f;
    f.keep(s, m);
    for (int stage = 0; at < end; at += WALK, stage ^= 1) {
        if (at + WALK < end) fetch_walk<T, D, KEYS_OWN>(s, stage ^ 1, walk, at + WALK);
        float x[PARTS_WALKED][4] = {}, y[PARTS_WALKED][4] = {};
        pair_products(x, y, f, s, s.walk[stage], m);
        if (KEYS_OWN)
#pragma unroll
            for (int i = 0; i < 2 * PARTS_WALKED; i++) {
                lse[i] = s.lse[stage][i / 2 * 8 + 2 * q + i % 2];
                delta[i] = s.delta[stage][i / 2 * 8 + 2 * q + i % 2];
            }
        pair_gradients<KEYS_OWN>(x, y, queries, t.first + m, at, lse, delta);
        if constexpr (KEYS_OWN) add_rows<T, D>(y_sum, x, s.walk[stage][1]);
        add_rows<T, D>(x_sum, y, s.walk[stage][0]);
        copy_async_wait<0>(); /* the next tile is there, and everyone is done with this one */
        __syncthreads();
    }
    put_rows<D>(own, t, m, 0, x_sum, a.a.scale);
    if constexpr (KEYS_OWN) put_rows<D>(own, t, m, 1, y_sum, 1);
}

/* Bytes of shared memory; a multiprocessor before sm_80 has 64 KiB. */
template <class T, int D> static bool has_room(const struct cuda_device *c)
{
    return c->sm >= 80 || sizeof(flash_rooms<T, D>) <= 64 << 10;
}

template <class T, int D>
static bool flash_backward(struct cuda_device *c, const backward_args<T> &args)
{
    if (!has_room<T, D>(c)) return false;
    unsigned kv_heads = (unsigned)args.a.n_kv_head;
    unsigned queries = (unsigned)(ceil_div((int64_t)args.rows * args.a.group, OWN) + args.n_spans);
    unsigned keys = (unsigned)(ceil_div(args.rows, OWN) + args.n_spans);
    size_t row_bytes = (size_t)args.a.n_head * (size_t)args.a.head_dim * sizeof(T);
    cuda_launch(c, "attention_backward", round_kernel<T>, dim3((unsigned)args.rows), dim3(ROUND_THREADS),
                row_bytes, args);
    cuda_launch(c, "attention_backward", flash_kernel<T, D, false>, dim3(queries, kv_heads),
                dim3(ATTENTION_THREADS), sizeof(flash_rooms<T, D>), args);
    cuda_launch(c, "attention_backward", flash_kernel<T, D, true>, dim3(keys, kv_heads),
                dim3(ATTENTION_THREADS), sizeof(flash_rooms<T, D>), args);
    return true;
}

/* False: this GPU's tensor cores or shared memory do not do for it. */
template <class T> static bool on_tensor_cores(struct cuda_device *c, const backward_args<T> &args)
{
    if (c->sm < 75) return false;
    switch (ceil_div(args.a.head_dim, 32)) {
    case 1: return flash_backward<T, 32>(c, args);
    case 2: return flash_backward<T, 64>(c, args);
    case 3: return flash_backward<T, 96>(c, args);
    case 4: return flash_backward<T, 128>(c, args);
    default: ASSERT(!"heads have at most 128 elements");
    }
    return false;
}

template <class T>
static void backward(struct cuda_device *c, const backward_args<T> &args)
{
    int32_t n = args.a.head_dim;
    unsigned kv_heads = (unsigned)args.a.n_kv_head;
    unsigned tiles = (unsigned)(ceil_div((int64_t)args.rows * args.a.group, QUERIES) + args.n_spans);
    unsigned blocks = (unsigned)(ceil_div(args.rows, KEYS) + args.n_spans);
    size_t shared = (size_t)backward_floats(n) * sizeof(float);
    cuda_launch(c, "attention_backward", delta_kernel<T>,
                dim3((unsigned)args.rows, (unsigned)args.a.n_head), dim3(WARP), 0, args);
    WITH_PARTS(n, cuda_launch(c, "attention_backward", queries_kernel<T, PARTS>, dim3(tiles, kv_heads),
                              dim3(ATTENTION_THREADS), shared, args));
    WITH_PARTS(n, cuda_launch(c, "attention_backward", keys_kernel<T, PARTS>, dim3(blocks, kv_heads),
                              dim3(ATTENTION_THREADS), shared, args));
}

template <class T>
static void backward_from(struct cuda_device *c, struct tensor dqkv, struct tensor dout,
                          struct tensor qkv, struct tensor out, const float *lse,
                          const struct batch *b, const struct attention *a)
{
    int64_t bytes = dqkv.rows * a->n_head * (int64_t)sizeof(float);
    backward_args<T> args = {
        .a = attention_shape_of(a, qkv.cols), .dqkv = (float *)dqkv.data,
        .dout = (const float *)dout.data, .lse = lse, .qkv = (const T *)qkv.data,
        .out = (const T *)out.data, .delta = (float *)cuda_workspace(c, 0, bytes), .spans = b->spans,
        .n_spans = b->n_spans, .rows = b->n_rows, .dout_rounded = (const T *)dout.data,
    };
    /* GPUs that compute in bf16 have tensor cores, and the memory for them. */
    if constexpr (std::is_same_v<T, float>) backward(c, args);
    else if constexpr (std::is_same_v<T, bf16>) on_tensor_cores(c, args);
    else if (!on_tensor_cores(c, args)) backward(c, args);
}

void cuda_attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                             struct tensor qkv, struct tensor out, const float *lse,
                             const struct batch *b, const struct attention *a)
{
    ASSERT(dqkv.dtype == DTYPE_F32 && dout.dtype == DTYPE_F32 && out.dtype == qkv.dtype);
    ASSERT(dqkv.cols == qkv.cols && dqkv.rows == b->n_rows && a->head_dim <= 4 * WARP);
    WITH_TYPE(qkv.dtype, backward_from<T>(cuda_of(d), dqkv, dout, qkv, out, lse, b, a));
}
