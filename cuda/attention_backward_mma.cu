/* Attention's backward pass on tensor cores, in 16 bits: formulas in attention_backward.cu.
 *
 * A block has 64 own rows, 16 a warp, and walks past 32 rows at a time: queries past their keys for
 * dq, keys past their queries for dk and dv. p and ds are rounded to 16 bits. 14 K operations a
 * pair of query and key: bound by mma.sync, and nearly as much by ldmatrix.
 *
 * Grid: tiles of queries x KV heads; tiles of keys x KV heads. CPU twin: cpu_attention_backward. */
#include "cuda/attention_backward.cuh"

static constexpr int OWN = 64, WALK = 32;
static constexpr float LOG2_E = 1.4426950409f;

/* The block's own rows and those that it walks past, D >= K elements and 8 more, so that ldmatrix
 * meets no bank twice. Of queries: q and do; of keys: k and v. */
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
        return a.dout + (row(i) * a.a.n_head + head(i)) * a.a.head_dim;
    }
};

/* ROWS rows from `first` on of both tensors, zeros past the end of rows and heads, in the
 * background. */
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

/* The right operand for outputs n .. n + 15 at depth k .. k + 15, of rows [n][k] or, turned,
 * [k][n]. */
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

/* x: scores, becomes z p; y: do . v, becomes ds. Element e of lane 4 g + q in fragment f is the
 * pair of own row g + e / 2 * 8 and walked row f * 8 + 2 q + e % 2. */
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

/* 16 columns of a row that four lanes have as pairs of two fragments: four columns beside each
 * other a lane, so that these lanes write 32 bytes at once. Every lane of the warp is here. */
template <class T> __device__ __forceinline__ packed<T, 4> four_columns(uint32_t low, uint32_t high)
{
    int lane = threadIdx.x % WARP, from = lane / 4 * 4 + lane % 2 * 2;
    uint32_t low_pairs[2], high_pairs[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        low_pairs[i] = __shfl_sync(0xFFFFFFFFu, low, from + i);
        high_pairs[i] = __shfl_sync(0xFFFFFFFFu, high, from + i);
    }
    bool is_low = lane % 4 < 2;
    uint2 pairs = {is_low ? low_pairs[0] : high_pairs[0], is_low ? low_pairs[1] : high_pairs[1]};
    return *reinterpret_cast<packed<T, 4> *>(&pairs);
}

/* Columns d .. d + 15 of the row that begins at `at`, if it is there: half e of two fragments,
 * scaled. */
template <class T>
__device__ __forceinline__ void put_columns(const backward_args<T> &b, int64_t at, int d, bool there,
                                            const float (&low)[4], const float (&high)[4], int e,
                                            float scale)
{
    int q = threadIdx.x % 4, n = b.a.head_dim;
    packed<float, 2> x = {{low[2 * e] * scale, low[2 * e + 1] * scale}};
    packed<float, 2> y = {{high[2 * e] * scale, high[2 * e + 1] * scale}};
    if (b.rounds) {
        packed<T, 4> four = four_columns<T>(pair_of<T>(x.at[0], x.at[1]), pair_of<T>(y.at[0], y.at[1]));
        if (there && d + 4 * q < n) store_packed((T *)b.dqkv + at + d + 4 * q, four);
        return;
    }
    float *to = (float *)b.dqkv + at + d + 2 * q;
    if (there && d + 2 * q < n) store_packed(to, x);
    if (there && d + 8 + 2 * q < n) store_packed(to + 8, y);
}

/* The sums of the warp's own rows, to dq, or dk (which = 0), or dv (1). */
template <int D, class T>
__device__ __forceinline__ void put_rows(const row_source<T> &own, const tile_of_span &t, int m, int which,
                                         const float (&sum)[D / 8][4], float scale)
{
    const attention_shape &a = own.a.a;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int32_t r = m + threadIdx.x % WARP / 4 + e * 8, i = t.first + r;
        int64_t at = own.keys ? key_at(a, own.row(i), own.kv_head, which)
                              : query_at(a, own.row(i), own.head(i));
#pragma unroll
        for (int f = 0; f < D / 8; f += 2)
            put_columns(own.a, at, f * 8, r < t.n, sum[f], sum[f + 1], e, scale);
    }
}

/* Grid: tiles of 64 keys (KEYS_OWN; else queries) of all spans, KV heads. D: the head's size
 * rounded up to a multiple of 32. Left to itself ptxas spills a register of the large ones that it
 * takes for small. */
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

template <class T, int D>
static bool flash_backward(struct cuda_device *c, const backward_args<T> &args)
{
    if (sizeof(flash_rooms<T, D>) > (size_t)c->shared_bytes) return false;
    unsigned kv_heads = (unsigned)args.a.n_kv_head;
    unsigned queries = (unsigned)(ceil_div((int64_t)args.rows * args.a.group, OWN) + args.n_spans);
    unsigned keys = (unsigned)(ceil_div(args.rows, OWN) + args.n_spans);
    cuda_launch(c, "attention_backward", flash_kernel<T, D, false>, dim3(queries, kv_heads),
                dim3(ATTENTION_THREADS), sizeof(flash_rooms<T, D>), args);
    cuda_launch(c, "attention_backward", flash_kernel<T, D, true>, dim3(keys, kv_heads),
                dim3(ATTENTION_THREADS), sizeof(flash_rooms<T, D>), args);
    return true;
}

template <class T> static bool by_head_dim(struct cuda_device *c, const backward_args<T> &args)
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

bool cuda_attention_backward_mma(struct cuda_device *c, const backward_args<bf16> &args)
{
    return by_head_dim(c, args);
}

bool cuda_attention_backward_mma(struct cuda_device *c, const backward_args<f16> &args)
{
    return by_head_dim(c, args);
}
