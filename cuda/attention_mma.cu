/* Causal attention over a 16-bit cache by tensor cores, for prompts and for decoding (Dao et al. 2022).
 *
 *   out[r, h] = sum over keys of softmax(scale q.k) v        qkv f32 [R, (H + 2G) K], out f32 or 16 bits [R, H K]
 *
 * **A query's bits depend on its keys alone.** Keys are taken a BLOCK of 64 at a time, aligned from position 0. A block is
 * computed from nothing, by one function, and joined to the blocks before it, by one function; so it makes no
 * difference whether a warp walks all blocks (prompts), the warps of a block of threads take turns
 * (decoding), or the blocks lie on other multiprocessors (long contexts of few sequences), nor who shares
 * a tile.
 *
 * A warp has 16 queries: positions of a span by the query heads of one KV head, so that grouped heads share what is
 * loaded. S = Q K^T [16, 64], O = P V [16, K], both by mma.sync, P in registers. Of 16 elements of the depth
 * lane q of a quad holds 4q .. 4q + 3 on both sides, 8 bytes in a row of keys [P, K], or of values [K, P].
 *
 *   prompt    4 warps, 64 queries; keys and values through shared memory, the next block on its way while one
 *             is computed. Bound by mma.sync: 4 K FLOPs a query and key
 *   decode    8 warps, 16 queries; a warp a block of keys, straight from memory. Bytes: the sequence's keys and
 *             values once, which bounds it. Scores are in powers of 2: exp2 is an instruction. It norms and
 *             rotates its queries and key itself, and writes key and value to their page, before it begins
 *
 * CPU twin: cpu_attention. */
#include "cuda/attention.cuh"

static constexpr int BLOCK = 64, TILE = DECODE_HEADS, PAGES = BLOCK / KV_PAGE_TOKENS;
static constexpr int PROMPT_WARPS = 4, DECODE_WARPS = 8;
static constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
static constexpr int LONG_KEYS = 1024; /* more are spread over multiprocessors, if few sequences have them */

/* Rows g and g + 8 of a warp's tile, for lane g * 4 + q: p are relative to 2^max. Elements d * 8 +
 * 2q, 2q + 1 of the head's sum of values. */
template <int DEPTH> struct tile_state { float max[2], sum[2], acc[DEPTH / 8][4]; };

/* How the maximum changes when keys are joined, and with it what was summed. */
struct join_factors { float max, before, now; };

__device__ __forceinline__ join_factors factors_of(float to_max, float from_max)
{
    float max = fmaxf(to_max, from_max);
    if (from_max == -CUDART_INF_F) return {to_max, 1, 0};
    return {max, to_max == -CUDART_INF_F ? 0 : exp2f(to_max - max), exp2f(from_max - max)};
}

__device__ __forceinline__ float joined(const join_factors &f, float to, float from)
{
    return fmaf(to, f.before, from * f.now);
}

/* `to` takes in `from`, whose keys come later. */
template <int DEPTH>
__device__ __forceinline__ void join(tile_state<DEPTH> &to, const tile_state<DEPTH> &from)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        join_factors f = factors_of(to.max[i], from.max[i]);
        to.max[i] = f.max;
        to.sum[i] = joined(f, to.sum[i], from.sum[i]);
#pragma unroll
        for (int d = 0; d < DEPTH / 8; d++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                to.acc[d][2 * i + e] = joined(f, to.acc[d][2 * i + e], from.acc[d][2 * i + e]);
    }
}

/* ---- queries ---- */

/* A warp's queries [first, first + n) of a span, and lane's two of them. turned: those queries
 * [n][K], normed and rotated, or NULL, and they are in qkv. */
template <int DEPTH> struct tile_queries {
    uint32_t q[DEPTH / 16][4];
    int32_t row[2], head[2], last[2]; /* row of the step; last: the position up to which it sees keys, -1: none */
};

template <class T, int DEPTH>
__device__ __forceinline__ tile_queries<DEPTH> load_queries(const attention_args<T> &a, const span &s,
                                                            int32_t kv_head, int32_t first, int32_t n,
                                                            const float *turned)
{
    tile_queries<DEPTH> t;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int32_t at = g + 8 * i, query = first + at, row = query / a.a.group;
        bool alive = at < n;
        t.row[i] = s.row0 + row;
        t.head[i] = kv_head * a.a.group + query % a.a.group;
        t.last[i] = alive ? s.start + row : -1;
        const float *from = a.qkv + t.row[i] * a.a.qkv_cols + (int64_t)t.head[i] * a.a.head_dim + 4 * q;
        if (turned) from = turned + at * a.a.head_dim + 4 * q;
#pragma unroll
        for (int d = 0; d < DEPTH / 16; d++) {
            packed<float, 4> x = {};
            if (alive && d * 16 < a.a.head_dim) x = load_packed<float, 4>(from + d * 16);
            packed<T, 4> y = {from_f32<T>(x.at[0]), from_f32<T>(x.at[1]), from_f32<T>(x.at[2]),
                              from_f32<T>(x.at[3])};
            t.q[d][i] = reinterpret_cast<const uint32_t *>(&y)[0];
            t.q[d][2 + i] = reinterpret_cast<const uint32_t *>(&y)[1];
        }
    }
    return t;
}

/* ---- one block of keys ---- */

/* Of 16 keys of a page, two groups of 8 are columns of S: so that lane q's columns 2q and 2q + 1 of
 * both are the keys 4q .. 4q + 3. */
__device__ __forceinline__ int key_of_column(int group, int g) { return g / 2 * 4 + group * 2 + g % 2; }
__device__ __forceinline__ int column_of_key(int key) { return key / 2 % 2 * 8 + key / 4 * 2 + key % 2; }

/* P [16, 64] from scores s, and its row sums. Scores past a query's last key become 0. */
template <class T>
__device__ __forceinline__ void soften(const attention_args<T> &a, float (&s)[PAGES][2][4], int32_t key0,
                                       const int32_t (&row)[2], const int32_t (&head)[2],
                                       const int32_t (&last)[2], float (&max)[2], float (&sum)[2])
{
    int q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        max[i] = -CUDART_INF_F;
        sum[i] = 0;
#pragma unroll
        for (int page = 0; page < PAGES; page++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float &x = s[page][j / 2][2 * i + j % 2];
                int32_t key = key0 + page * KV_PAGE_TOKENS + 4 * q + j;
                x = key <= last[i] ? x * (a.a.scale * LOG2_E) : -CUDART_INF_F;
                max[i] = fmaxf(max[i], x);
            }
#pragma unroll
        for (int m = 1; m < 4; m <<= 1) max[i] = fmaxf(max[i], __shfl_xor_sync(0xFFFFFFFFu, max[i], m));
        float base = max[i] == -CUDART_INF_F ? 0 : max[i]; /* no key: all become 0 */
#pragma unroll
        for (int page = 0; page < PAGES; page++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float &x = s[page][j / 2][2 * i + j % 2];
                x = exp2f(x - base);
                sum[i] += x;
            }
#pragma unroll
        for (int m = 1; m < 4; m <<= 1) sum[i] += __shfl_xor_sync(0xFFFFFFFFu, sum[i], m);
        if (a.a.drop_threshold == 0) continue;
#pragma unroll
        for (int page = 0; page < PAGES; page++) {
            int32_t key = key0 + page * KV_PAGE_TOKENS + 4 * q;
#pragma unroll
            for (int j = 0; j < 4; j++)
                s[page][j / 2][2 * i + j % 2] *= attention_keep(a.a, key + j, row[i], head[i]);
        }
    }
}

template <class T> __device__ __forceinline__ uint32_t pair_of(float low, float high)
{
    packed<T, 2> p = {from_f32<T>(low), from_f32<T>(high)};
    return *reinterpret_cast<const uint32_t *>(&p);
}

/* The block of keys from key0 on, for the warp's tile. keys(page, group, d): of the group's g-th
 * key, elements d * 16 + 4q .. + 3 of the head; values(page, d): of element d * 8 + g, keys 4q ..
 * 4q + 3 of the page. */
template <class T, int DEPTH, class Keys, class Values>
__device__ __forceinline__ void attend_block(tile_state<DEPTH> &out, const attention_args<T> &a,
                                             const tile_queries<DEPTH> &t, int32_t key0, Keys keys,
                                             Values values)
{
    float s[PAGES][2][4] = {};
#pragma unroll
    for (int page = 0; page < PAGES; page++)
#pragma unroll
        for (int d = 0; d < DEPTH / 16; d++) {
            if (d * 16 >= a.a.head_dim) continue;
#pragma unroll
            for (int group = 0; group < 2; group++) {
                uint2 k = keys(page, group, d);
                uint32_t b[2] = {k.x, k.y};
                mma_16816(s[page][group], t.q[d], b, T());
            }
        }
    soften(a, s, key0, t.row, t.head, t.last, out.max, out.sum);
#pragma unroll
    for (int d = 0; d < DEPTH / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++) out.acc[d][e] = 0;
#pragma unroll
    for (int page = 0; page < PAGES; page++) {
        const float(&x)[2][4] = s[page];
        uint32_t p[4] = {pair_of<T>(x[0][0], x[0][1]), pair_of<T>(x[0][2], x[0][3]),
                         pair_of<T>(x[1][0], x[1][1]), pair_of<T>(x[1][2], x[1][3])};
#pragma unroll
        for (int d = 0; d < DEPTH / 8; d++) {
            if (d * 8 >= a.a.head_dim) continue;
            uint2 v = values(page, d);
            uint32_t b[2] = {v.x, v.y};
            mma_16816(out.acc[d], p, b, T());
        }
    }
}

/* ---- results ---- */

template <class T>
__device__ __forceinline__ void put_pair(const attention_args<T> &a, int64_t row, int64_t head, int32_t d,
                                         float y0, float y1)
{
    int64_t at = (row * a.a.n_head + head) * a.a.head_dim + d;
    if (a.out_f32) store_packed((float *)a.out + at, packed<float, 2>{y0, y1});
    else store_packed((T *)a.out + at, packed<T, 2>{from_f32<T>(y0), from_f32<T>(y1)});
}

template <class T>
__device__ __forceinline__ void put_lse(const attention_args<T> &a, int64_t row, int64_t head, float max,
                                        float sum)
{
    if (a.lse) a.lse[row * a.a.n_head + head] = (max + log2f(sum)) * LN_2;
}

/* ---- prompts ---- */

/* Shared memory of a block of keys: keys [64][stride] by page and column, values [pages][K][16].
 * Strides that are odd multiples of 32 bytes: 8 bytes a lane meet no bank twice. */
__host__ __device__ __forceinline__ int32_t key_stride(int32_t n) { return n + (n % 32 == 0 ? 16 : 0); }
__host__ __device__ __forceinline__ int32_t block_elements(int32_t n) { return BLOCK * (key_stride(n) + n); }

/* A block's keys below `end`, zeros from there on, and the pages of values that have any. */
template <class T, int DEPTH>
__device__ __forceinline__ void fetch_block(T *to, const attention_args<T> &a, const span &s,
                                            int32_t kv_head, int32_t key0, int32_t end)
{
    constexpr int PIECES = DEPTH / 8;
    int32_t n = a.a.head_dim, stride = key_stride(n);
    int64_t in_page = (int64_t)kv_head * KV_PAGE_TOKENS * n;
    for (int i = threadIdx.x; i < BLOCK * PIECES; i += PROMPT_WARPS * WARP) {
        int32_t j = i / PIECES, piece = i % PIECES * 8, page = j / KV_PAGE_TOKENS, at = j % KV_PAGE_TOKENS;
        if (piece >= n) continue;
        bool there = key0 + page * KV_PAGE_TOKENS < end;
        const T *from = a.cache + in_page;
        if (there) from += a.pages[s.table + key0 / KV_PAGE_TOKENS + page] * a.page_elements;
        copy_async_16(to + (page * KV_PAGE_TOKENS + column_of_key(at)) * stride + piece,
                      from + at * n + piece, key0 + j < end);
        /* The same piece of the values: 16 keys of an element are two. */
        copy_async_16(to + BLOCK * stride + page * KV_PAGE_TOKENS * n + at * n + piece,
                      from + a.page_elements / 2 + at * n + piece, there);
    }
}

/* Grid: tiles of 64 queries, KV heads. */
template <class T, int DEPTH>
__global__ void __launch_bounds__(PROMPT_WARPS *WARP) prompt_kernel(attention_args<T> a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    constexpr int QUERIES_A_BLOCK = PROMPT_WARPS * TILE;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int32_t kv_head = blockIdx.y, n = a.a.head_dim, group = a.a.group, stride = key_stride(n);
    tile_of_span tile;
    if (!find_tile(a.spans, a.n_spans, group, blockIdx.x, QUERIES_A_BLOCK, tile)) return;
    const span &s = tile.s;
    int32_t first = tile.first + warp * TILE;
    int32_t mine = max(0, min(TILE, tile.n - warp * TILE)); /* of the warp */
    int32_t end = s.start + (tile.first + tile.n - 1) / group + 1;
    int32_t my_end = mine > 0 ? s.start + (first + mine - 1) / group + 1 : 0;
    tile_queries<DEPTH> t = load_queries<T, DEPTH>(a, s, kv_head, first, mine, nullptr);
    T *stages[2] = {(T *)memory, (T *)memory + block_elements(n)};
    tile_state<DEPTH> total = {{-CUDART_INF_F, -CUDART_INF_F}, {}, {}};

    fetch_block<T, DEPTH>(stages[0], a, s, kv_head, 0, end);
    copy_async_commit();
    for (int32_t key0 = 0, i = 0; key0 < end; key0 += BLOCK, i ^= 1) {
        copy_async_wait<0>();
        __syncthreads(); /* the block is there for all, and all are done with the one before */
        if (key0 + BLOCK < end)
            fetch_block<T, DEPTH>(i ? stages[0] : stages[1], a, s, kv_head, key0 + BLOCK, end);
        copy_async_commit();
        if (key0 >= my_end) continue;
        const T *k = (i ? stages[1] : stages[0]) + g * stride + 4 * q;
        const T *v = (i ? stages[1] : stages[0]) + BLOCK * stride + g * KV_PAGE_TOKENS + 4 * q;
        tile_state<DEPTH> state;
        attend_block<T, DEPTH>(
            state, a, t, key0,
            [&](int page, int of, int d) {
                return *(const uint2 *)(k + (page * KV_PAGE_TOKENS + of * 8) * stride + d * 16);
            },
            [&](int page, int d) {
                return *(const uint2 *)(v + (page * n + d * 8) * KV_PAGE_TOKENS);
            });
        join(total, state);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (t.last[i] < 0) continue;
#pragma unroll
        for (int d = 0; d < DEPTH / 8; d++)
            if (d * 8 < n)
                put_pair(a, t.row[i], t.head[i], d * 8 + 2 * q, total.acc[d][2 * i] / total.sum[i],
                         total.acc[d][2 * i + 1] / total.sum[i]);
        if (q == 0) put_lse(a, t.row[i], t.head[i], total.max[i], total.sum[i]);
    }
}

/* ---- decoding ---- */

/* What a block of keys gave one query: maximum, sum, then the sum of values [K]. */
template <int DEPTH>
__device__ __forceinline__ void put_partial(float *to, const tile_state<DEPTH> &s, int i, int32_t n)
{
    int q = threadIdx.x % 4;
#pragma unroll
    for (int d = 0; d < DEPTH / 8; d++)
        if (d * 8 < n)
            store_packed(to + 2 + d * 8 + 2 * q, packed<float, 2>{s.acc[d][2 * i], s.acc[d][2 * i + 1]});
    if (q == 0) store_packed(to, packed<float, 2>{s.max[i], s.sum[i]});
}

/* Joins what blocks of keys gave, in order: element d of one query. from [blocks][stride]. */
struct element { float max, sum, value; };

__device__ __forceinline__ void join_partials(element &to, const float *from, int64_t stride, int32_t d,
                                              int32_t blocks)
{
    for (int32_t i = 0; i < blocks; i++, from += stride) {
        join_factors f = factors_of(to.max, from[0]);
        to.max = f.max;
        to.sum = joined(f, to.sum, from[1]);
        to.value = joined(f, to.value, from[2 + d]);
    }
}

template <class T>
__device__ __forceinline__ void put_element(const attention_args<T> &a, int64_t row, int64_t head, int32_t d,
                                            const element &e)
{
    int64_t at = (row * a.a.n_head + head) * a.a.head_dim + d;
    float y = e.value / e.sum;
    if (a.out_f32) ((float *)a.out)[at] = y;
    else ((T *)a.out)[at] = from_f32<T>(y);
    if (d == 0) put_lse(a, row, head, e.max, e.sum);
}

/* The warp's block of keys from memory. */
template <class T, int DEPTH>
__device__ __forceinline__ void attend_from_memory(tile_state<DEPTH> &out, const attention_args<T> &a,
                                                   const span &s, const tile_queries<DEPTH> &t,
                                                   int32_t kv_head, int32_t key0, int32_t end)
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    int32_t n = a.a.head_dim;
    const T *pages[PAGES];
#pragma unroll
    for (int page = 0; page < PAGES; page++) {
        int32_t at = key0 / KV_PAGE_TOKENS + page;
        pages[page] = a.cache + (int64_t)kv_head * KV_PAGE_TOKENS * n + 4 * q;
        if (at * KV_PAGE_TOKENS < end) pages[page] += a.pages[s.table + at] * a.page_elements;
    }
    auto load_value = [&](int page, int d) {
        if (key0 + page * KV_PAGE_TOKENS >= end) return make_uint2(0, 0);
        return *(const uint2 *)(pages[page] + a.page_elements / 2 + (d * 8 + g) * KV_PAGE_TOKENS);
    };
    auto load_key = [&](int page, int of, int d) {
        int32_t key = key_of_column(of, g);
        if (key0 + page * KV_PAGE_TOKENS + key >= end) return make_uint2(0, 0);
        return *(const uint2 *)(pages[page] + key * n + d * 16);
    };
    if constexpr (DEPTH <= 64) {
        /* Values are on their way while scores are computed. */
        uint2 v[PAGES][DEPTH / 8];
#pragma unroll
        for (int page = 0; page < PAGES; page++)
#pragma unroll
            for (int d = 0; d < DEPTH / 8; d++)
                if (d * 8 < n) v[page][d] = load_value(page, d);
        attend_block<T, DEPTH>(out, a, t, key0, load_key, [&](int page, int d) { return v[page][d]; });
    } else {
        attend_block<T, DEPTH>(out, a, t, key0, load_key, load_value);
    }
}

/* What kv_write does, for the row that is all of span s: the queries to `turned`, the key and the
 * value to their page, from which this block alone reads them in this kernel. With a.partial other
 * blocks have queries of the same; only that of the row's own block of keys writes. A warp a
 * head. */
template <class T>
__device__ __forceinline__ void write_row(const attention_args<T> &a, const span &s, int32_t kv_head,
                                          float *turned, bool writes_kv)
{
    int32_t n = a.a.head_dim, queries = a.a.group, row = s.row0;
    const float *from = a.qkv + row * a.a.qkv_cols;
    for (int32_t i = threadIdx.x / WARP; i < queries + (writes_kv ? 2 : 0); i += DECODE_WARPS) {
        if (i == queries + 1) {
            put_value(a.cache, from + (a.a.n_head + a.a.n_kv_head + kv_head) * n, a.kv, row, kv_head);
            continue;
        }
        bool is_key = i == queries;
        turn_head(turned + i * n, from + (is_key ? a.a.n_head + kv_head : kv_head * queries + i) * n, a.kv,
                  is_key ? a.kv.k_norm : a.kv.q_norm, row);
        if (is_key) put_key(a.cache, turned + i * n, a.kv, row, kv_head);
    }
    __syncthreads(); /* queries in shared memory, key and value in the page */
}

/* Spans of one row each. Grid: tiles of 16 heads of a KV head by spans, KV heads, and 1 or, with
 * a.partial, as many as DECODE_WARPS blocks of keys need. Shared memory: with a.writes queries and
 * a key [queries + 1][K], then, without a.partial, partials [warps][queries][K + 2]. */
template <class T, int DEPTH>
__global__ void __launch_bounds__(DECODE_WARPS *WARP, 1) decode_kernel(attention_args<T> a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4;
    int32_t n = a.a.head_dim, kv_head = blockIdx.y, tiles = (a.a.group + TILE - 1) / TILE;
    wait_for_previous();
    span s = a.spans[blockIdx.x / tiles];
    int32_t first = blockIdx.x % tiles * TILE, queries = min(TILE, a.a.group - first);
    int32_t end = s.start + 1, blocks = (end + BLOCK - 1) / BLOCK;
    float *turned = a.writes ? (float *)memory : nullptr;
    if (a.writes) {
        bool writes_kv = !a.partial || (int)blockIdx.z == (blocks - 1) / DECODE_WARPS;
        if (blockIdx.z * DECODE_WARPS >= blocks) return;
        write_row(a, s, kv_head, turned, writes_kv);
    }
    tile_queries<DEPTH> t = load_queries<T, DEPTH>(a, s, kv_head, first, queries, turned);
    tile_state<DEPTH> state;
    if (a.partial) {
        int32_t block = blockIdx.z * DECODE_WARPS + warp;
        if (block >= blocks) return;
        attend_from_memory<T, DEPTH>(state, a, s, t, kv_head, block * BLOCK, end);
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (t.last[i] >= 0) put_partial(partial_of(a, block, t.row[i], t.head[i]), state, i, n);
        return;
    }
    /* A thread joins up to PARTS elements, those of its queries that are THREADS apart. */
    constexpr int THREADS = DECODE_WARPS * WARP, PARTS = TILE * DEPTH / THREADS;
    float *partials = (float *)memory + (a.writes ? (queries + 1) * n : 0);
    element e[PARTS];
#pragma unroll
    for (int i = 0; i < PARTS; i++) e[i] = {-CUDART_INF_F, 0, 0};
    for (int32_t block0 = 0; block0 < blocks; block0 += DECODE_WARPS) {
        __syncthreads(); /* the partials before have been read */
        if (block0 + warp < blocks) {
            attend_from_memory<T, DEPTH>(state, a, s, t, kv_head, (block0 + warp) * BLOCK, end);
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (t.last[i] >= 0)
                    put_partial(partials + (warp * queries + g + 8 * i) * (n + 2), state, i, n);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            int32_t at = i * THREADS + threadIdx.x, query = at / n;
            if (query < queries)
                join_partials(e[i], partials + query * (n + 2), queries * (n + 2), at % n,
                              min(DECODE_WARPS, blocks - block0));
        }
    }
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
        int32_t at = i * THREADS + threadIdx.x, query = at / n;
        if (query < queries)
            put_element(a, s.row0, kv_head * a.a.group + first + query, at % n, e[i]);
    }
}

/* Grid: spans, heads; a thread an element. */
template <class T> __global__ void join_blocks_kernel(attention_args<T> a)
{
    wait_for_previous();
    span s = a.spans[blockIdx.x];
    int32_t head = blockIdx.y, d = threadIdx.x, blocks = s.start / BLOCK + 1;
    element e = {-CUDART_INF_F, 0, 0};
    join_partials(e, partial_of(a, 0, s.row0, head), (int64_t)a.rows * a.a.n_head * (a.a.head_dim + 2), d,
                  blocks);
    put_element(a, s.row0, head, d, e);
}

/* ---- choice ---- */

/* Runs the statement with DEPTH, the room for elements of a head. */
#define WITH_DEPTH(n, statement)                                                                    \
    if ((n) <= 32) { constexpr int DEPTH = 32; statement; }                                         \
    else if ((n) <= 64) { constexpr int DEPTH = 64; statement; }                                    \
    else { constexpr int DEPTH = 128; statement; }

template <class T> static void decode(struct cuda_device *c, attention_args<T> a, int64_t max_keys)
{
    int32_t n = a.a.head_dim;
    unsigned tiles = (unsigned)(a.n_spans * ceil_div(a.a.group, TILE)), heads = (unsigned)a.a.n_kv_head;
    int64_t blocks = ceil_div(max_keys, BLOCK);
    int64_t bytes = blocks * a.rows * a.a.n_head * (n + 2) * (int64_t)sizeof(float);
    bool split = max_keys > LONG_KEYS && (int64_t)tiles * heads < c->n_multiprocessors
                 && bytes <= c->workspace_bytes;
    if (split) a.partial = (float *)cuda_workspace(c, 0, bytes);
    dim3 grid(tiles, heads, split ? (unsigned)ceil_div(blocks, DECODE_WARPS) : 1);
    size_t queries = (size_t)min_i64(a.a.group, TILE);
    size_t shared = split ? 0 : DECODE_WARPS * queries * (size_t)(n + 2) * sizeof(float);
    if (a.writes) shared += (queries + 1) * (size_t)n * sizeof(float);
    WITH_DEPTH(n, cuda_launch_early(c, "attention", decode_kernel<T, DEPTH>, grid,
                                    dim3(DECODE_WARPS * WARP), shared, a));
    if (split)
        cuda_launch_early(c, "attention", join_blocks_kernel<T>,
                          dim3((unsigned)a.n_spans, (unsigned)a.a.n_head), dim3((unsigned)n), 0, a);
}

static size_t prompt_shared(int32_t n) { return 2 * (size_t)block_elements(n) * sizeof(bf16); }

bool cuda_attention_has_mma(const struct cuda_device *c, int32_t head_dim)
{
    return c->sm >= 75 && prompt_shared(head_dim) <= (size_t)c->shared_bytes;
}

template <class T> static bool attend(struct cuda_device *c, const attention_args<T> &a, int64_t max_keys)
{
    int32_t n = a.a.head_dim;
    size_t shared = prompt_shared(n);
    ASSERT(n % 16 == 0 && n <= 128);
    if (!cuda_attention_has_mma(c, n)) return false;
    if (a.rows == a.n_spans) {
        decode(c, a, max_keys);
        return true;
    }
    constexpr int QUERIES_A_BLOCK = PROMPT_WARPS * TILE;
    unsigned tiles = (unsigned)(ceil_div((int64_t)a.rows * a.a.group, QUERIES_A_BLOCK) + a.n_spans);
    WITH_DEPTH(n, cuda_launch(c, "attention", prompt_kernel<T, DEPTH>,
                              dim3(tiles, (unsigned)a.a.n_kv_head), dim3(PROMPT_WARPS * WARP), shared, a));
    return true;
}

bool cuda_attention_mma(struct cuda_device *c, attention_args<bf16> a, int64_t max_keys)
{
    return attend(c, a, max_keys);
}

bool cuda_attention_mma(struct cuda_device *c, attention_args<f16> a, int64_t max_keys)
{
    return attend(c, a, max_keys);
}
