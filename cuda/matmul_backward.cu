/* The gradients of a product y = x W^T + bias.
 *
 *   dx = dy W           dx f32 or dy's type [R, n_in], dy [R, n_out], W [n_out, n_in]      (written)
 *   dpre = dy W gelu'(pre)                               dpre, pre of dy's type [R, n_in]  (written)
 *   dw += dy^T x        f32, or bf16 rounded stochastically                    (added)
 *   dbias += column sums of dy, in slices of rows (cuda/row_sums.cuh)
 *
 * Both products are out[m, n] = sum over t of a[t, m] b(t, n): the left operand lies with t along its rows
 * (W by outputs, dy by rows) and is turned by ldmatrix.trans on its way into mma.sync; the right one lies so
 * too (x) or the other way round (dy for dx). Each output is one chain over t in order: two runs have the
 * same bits. 128 x 128 results a block, or 64 x 64 where the large ones are fewer than the multiprocessors; t in
 * steps of 32, which cp.async brings two ahead; results go through shared memory, so that neighbours in memory are
 * written together. 2 R n_in n_out operations each, bound by mma.sync. Where cuBLASLt is there (cuda/cublas.h), it does
 * the products that are not rounded stochastically, with tanh GELU's slope.
 *
 * CPU twins: cpu_matmul_backward_x (and gelu_backward), cpu_matmul_backward_w. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/philox.cuh"
#include "cuda/row_sums.cuh"

static constexpr int STEP = 32, STAGES = 3;
static constexpr int COLUMN_THREADS = 64;
static constexpr uint32_t NOISE_STREAM = 0x67726164;

/* A matrix in memory: [rows, cols], `stride` elements from row to row. */
template <class T> struct view { const T *data; int64_t rows, cols, stride; };

/* Where out[m, n] goes: m below rows, n below cols. WRITE: dx, in f32; ROUND and SLOPE: dx, in the
 * operands' type; ADD: to dw. */
struct result {
    void *data;
    int32_t rows, cols;
    int64_t m_stride, n_stride;
    enum { WRITE, ROUND, SLOPE_TANH, SLOPE_EXACT, ADD, ADD_BF16 } how;
    random_key key;  /* of the rounding */
    const void *pre; /* of the slope: lies as data does */
};

/* Eight elements from (row, col) on; zeros outside. */
template <class T>
__device__ __forceinline__ packed<T, 8> load_piece(const view<T> &v, int64_t row, int64_t col)
{
    packed<T, 8> out = {};
    if (row >= v.rows || col >= v.cols) return out;
    const T *at = v.data + row * v.stride + col;
    if (v.stride % 8 == 0 && col + 8 <= v.cols) return load_packed<T, 8>(at);
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (col + i < v.cols) out.at[i] = at[i];
    return out;
}

/* x's upper half after 16 bits of noise were added below it. */
__device__ __forceinline__ uint16_t round_noisy(float x, uint64_t place, uint64_t key)
{
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    philox_words w = philox(place / 8, 0, NOISE_STREAM, key);
    uint32_t word = philox_word(w, (uint32_t)(place / 2));
    return (uint16_t)((bits + (word >> place % 2 * 16 & 0xFFFF)) >> 16);
}

template <class T> __device__ __forceinline__ void put_dx(const result &out, int64_t at, float y)
{
    if (out.how == result::WRITE) {
        ((float *)out.data)[at] = y;
        return;
    }
    if (out.how != result::ROUND)
        y *= gelu_slope(to_f32(((const T *)out.pre)[at]), out.how == result::SLOPE_EXACT);
    ((T *)out.data)[at] = from_f32<T>(y);
}

__device__ __forceinline__ void put_dw(const result &out, int64_t at, float y)
{
    if (out.how == result::ADD) {
        ((float *)out.data)[at] += y;
        return;
    }
    uint16_t *to = (uint16_t *)out.data + at;
    float before = __uint_as_float((uint32_t)*to << 16);
    *to = round_noisy(before + y, (uint64_t)at, key_of(out.key));
}

/* TURNED: dw, else dx. */
template <class T, bool TURNED>
__device__ __forceinline__ void put(const result &out, int m, int n, float y)
{
    if (m >= out.rows || n >= out.cols) return;
    int64_t at = m * out.m_stride + n * out.n_stride;
    if constexpr (TURNED) put_dw(out, at, y);
    else put_dx<T>(out, at, y);
}

/* ---- tensor cores ---- */

/* SIZE x SIZE results a block: 128 by eight warps of 64 x 32 each, or 64 by four of 32 x 32. */
template <int SIZE> struct tile {
    static constexpr int WARPS_M = 2, WARPS_N = SIZE / 32, THREADS = WARPS_M * WARPS_N * WARP;
    static constexpr int WARP_M = SIZE / WARPS_M, WARP_N = 32;
    static constexpr int LONG_STRIDE = SIZE + 8, SHORT_STRIDE = STEP + 8; /* no bank twice in ldmatrix */
    static constexpr int PIECES = STEP * SIZE / 8 / THREADS; /* of 8 elements a thread */
};

/* A warp's 16 x 32 results on their way out: [m][n], or where dx's columns are m, [n][m]. No bank
 * twice. */
static constexpr int OUT_ROWS = 16, BY_M = 40, BY_N = 20, OUT_FLOATS = OUT_ROWS * BY_M;

template <class T, bool TURNED, int SIZE> struct stage {
    T a[STEP][tile<SIZE>::LONG_STRIDE]; /* [t][m] */
    /* [t][n] or [n][t] */
    T b[TURNED ? STEP : SIZE][TURNED ? tile<SIZE>::LONG_STRIDE : tile<SIZE>::SHORT_STRIDE];
};

/* Eight elements from (row, col) on, in the background where they lie aligned; zeros outside. */
template <class T>
__device__ __forceinline__ void fetch_piece(T *to, const view<T> &v, int64_t row, int64_t col)
{
    if (v.stride % 8 != 0 || (col < v.cols && col + 8 > v.cols)) {
        store_packed(to, load_piece(v, row, col));
        return;
    }
    bool inside = row < v.rows && col < v.cols;
    copy_async_16(to, v.data + (inside ? row * v.stride + col : 0), inside);
}

template <class T, bool TURNED, int SIZE>
__device__ __forceinline__ void fetch(stage<T, TURNED, SIZE> &s, const view<T> &a, const view<T> &b,
                                      int64_t m0, int64_t n0, int64_t t0)
{
#pragma unroll
    for (int i = 0; i < tile<SIZE>::PIECES; i++) {
        int piece = i * tile<SIZE>::THREADS + threadIdx.x;
        int t = piece / (SIZE / 8), m = piece % (SIZE / 8) * 8;
        fetch_piece(&s.a[t][m], a, t0 + t, m0 + m);
        if (TURNED) {
            fetch_piece(&s.b[t][m], b, t0 + t, n0 + m);
        } else {
            int n = piece / (STEP / 8), k = piece % (STEP / 8) * 8;
            fetch_piece(&s.b[n][k], b, n0 + n, t0 + k);
        }
    }
}

/* Fragments of 16 steps from t on. a: outputs m .. m + 15. Lane l gives row l % 8 of matrix l /
 * 8. */
template <class T, bool TURNED, int SIZE>
__device__ __forceinline__ void left(uint32_t (&r)[4], const stage<T, TURNED, SIZE> &s, int t, int m)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8, row = lane % 8;
    ldmatrix_x4_trans(r, &s.a[t + matrix / 2 * 8 + row][m + matrix % 2 * 8]);
}

/* b: n .. n + 15, as the two registers of n .. n + 7, then those of n + 8 .. n + 15. */
template <class T, bool TURNED, int SIZE>
__device__ __forceinline__ void right(uint32_t (&r)[4], const stage<T, TURNED, SIZE> &s, int t, int n)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8, row = lane % 8;
    if (TURNED) ldmatrix_x4_trans(r, &s.b[t + matrix % 2 * 8 + row][n + matrix / 2 * 8]);
    else ldmatrix_x4(r, &s.b[n + matrix / 2 * 8 + row][t + matrix % 2 * 8]);
}

/* d += the products of a stage; wm, wn: where the warp's part begins. */
template <class T, bool TURNED, int SIZE, int MS>
__device__ __forceinline__ void add_stage(float (&d)[MS][4][4], const stage<T, TURNED, SIZE> &s, int wm,
                                          int wn)
{
#pragma unroll
    for (int t = 0; t < STEP; t += 16) {
        uint32_t fa[MS][4], fb[2][4];
#pragma unroll
        for (int j = 0; j < MS; j++) left(fa[j], s, t, wm + j * 16);
#pragma unroll
        for (int j = 0; j < 2; j++) right(fb[j], s, t, wn + j * 16);
#pragma unroll
        for (int j = 0; j < MS; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t two[2] = {fb[k / 2][k % 2 * 2], fb[k / 2][k % 2 * 2 + 1]};
                mma_16816(d[j][k], fa[j], two, T());
            }
    }
}

/* The 16 x 32 results of the warp from (m, n) on: to its part of shared memory, then out, those
 * beside each other in memory by lanes beside each other. */
template <class T, bool TURNED>
__device__ __forceinline__ void put_tile(const result &out, float *room, const float (&d)[4][4], int m,
                                         int n)
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    __syncwarp(); /* what was there before has been read */
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int row = g + e / 2 * 8, col = k * 8 + 2 * q + e % 2;
            room[TURNED ? row * BY_M + col : col * BY_N + row] = d[k][e];
        }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < OUT_ROWS; i++) {
        int row = TURNED ? i : lane % 16, col = TURNED ? lane : i / 4 * 8 + i % 4 + lane / 16 * 4;
        put<T, TURNED>(out, m + row, n + col, room[TURNED ? row * BY_M + col : col * BY_N + row]);
    }
}

/* Blocks of 256 threads: a multiprocessor since sm_80 is to have two of them. Stages are fetched
 * STAGES - 1 ahead. Each result is the same chain over t whatever the size of the tile. */
template <class T, bool TURNED, int SIZE>
__global__ void __launch_bounds__(tile<SIZE>::THREADS, SIZE == 128 ? LARGE_BLOCKS - 1 : 0)
    mma_kernel(result out, view<T> a, view<T> b, int64_t depth)
{
    typedef tile<SIZE> tile;
    constexpr int MS = tile::WARP_M / 16;
    extern __shared__ __align__(16) unsigned char memory[];
    stage<T, TURNED, SIZE> *s = (stage<T, TURNED, SIZE> *)memory;
    int warp = threadIdx.x / WARP;
    int64_t n0 = (int64_t)blockIdx.x * SIZE, m0 = (int64_t)blockIdx.y * SIZE;
    int wm = warp % tile::WARPS_M * tile::WARP_M, wn = warp / tile::WARPS_M * tile::WARP_N;
    int steps = (int)((depth + STEP - 1) / STEP);
    float d[MS][4][4] = {};
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) fetch(s[i], a, b, m0, n0, (int64_t)i * STEP);
        copy_async_commit();
    }
    int now = 0, ahead = STAGES - 1; /* stages */
    for (int i = 0; i < steps; i++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); /* this stage is there, and everyone is done with the one before it */
        if (i + STAGES - 1 < steps) fetch(s[ahead], a, b, m0, n0, (int64_t)(i + STAGES - 1) * STEP);
        copy_async_commit();
        add_stage(d, s[now], wm, wn);
        now = now + 1 < STAGES ? now + 1 : 0;
        ahead = ahead + 1 < STAGES ? ahead + 1 : 0;
    }
    copy_async_wait<0>(); /* of nothing that matters: the room is free when everyone is here */
    __syncthreads();
    float *room = (float *)memory + warp * OUT_FLOATS;
#pragma unroll
    for (int j = 0; j < MS; j++)
        put_tile<T, TURNED>(out, room, d[j], (int)m0 + wm + j * 16, (int)n0 + wn);
}

template <class T, bool TURNED, int SIZE>
static void launch_mma(struct cuda_device *c, const result &out, const view<T> &a, const view<T> &b,
                       int64_t depth)
{
    static_assert(tile<SIZE>::THREADS / WARP * OUT_FLOATS * sizeof(float) <= STAGES * sizeof(stage<T, TURNED, SIZE>));
    dim3 grid((unsigned)ceil_div(out.cols, SIZE), (unsigned)ceil_div(out.rows, SIZE));
    cuda_launch(c, "matmul_backward", mma_kernel<T, TURNED, SIZE>, grid, dim3(tile<SIZE>::THREADS),
                STAGES * sizeof(stage<T, TURNED, SIZE>), out, a, b, depth);
}

/* ---- plain ---- */

static constexpr int PLAIN = 32, PLAIN_THREADS = 256;

template <class T, bool TURNED>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_kernel(result out, view<T> a, view<T> b,
                                                              int64_t depth)
{
    __shared__ float as[PLAIN][PLAIN + 1], bs[PLAIN][PLAIN + 1]; /* [t][m], [t][n] */
    int n = threadIdx.x % PLAIN, m = threadIdx.x / PLAIN;
    int64_t n0 = (int64_t)blockIdx.x * PLAIN, m0 = (int64_t)blockIdx.y * PLAIN;
    float y[4] = {};
    for (int64_t t0 = 0; t0 < depth; t0 += PLAIN) {
        for (int at = threadIdx.x; at < PLAIN * PLAIN; at += PLAIN_THREADS) {
            int i = at / PLAIN, j = at % PLAIN;
            bool a_in = t0 + i < depth && m0 + j < a.cols;
            as[i][j] = a_in ? to_f32(a.data[(t0 + i) * a.stride + m0 + j]) : 0;
            /* Along whichever side is contiguous. */
            int64_t row = TURNED ? t0 + i : n0 + i, col = TURNED ? n0 + j : t0 + j;
            float v = row < b.rows && col < b.cols ? to_f32(b.data[row * b.stride + col]) : 0;
            if (TURNED) bs[i][j] = v;
            else bs[j][i] = v;
        }
        __syncthreads();
        for (int t = 0; t < PLAIN; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) y[i] = fmaf(as[t][m + i * 8], bs[t][n], y[i]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) put<T, TURNED>(out, m0 + m + i * 8, n0 + n, y[i]);
}

template <class T, bool TURNED>
static void multiply(struct cuda_device *c, const result &out, const view<T> &a, const view<T> &b,
                     int64_t depth)
{
    /* bf16 needs sm_80, where it is allowed at all */
    if constexpr (sizeof(T) == 2)
        if (c->sm >= 75) {
            bool large = ceil_div(out.cols, 128) * ceil_div(out.rows, 128) >= c->n_multiprocessors;
            if (large) launch_mma<T, TURNED, 128>(c, out, a, b, depth);
            else launch_mma<T, TURNED, 64>(c, out, a, b, depth);
            return;
        }
    dim3 grid((unsigned)ceil_div(out.cols, PLAIN), (unsigned)ceil_div(out.rows, PLAIN));
    cuda_launch(c, "matmul_backward", plain_kernel<T, TURNED>, grid, dim3(PLAIN_THREADS), 0, out, a, b,
                depth);
}

/* ---- the operations ---- */

/* out: how, with the slope's `pre`. */
template <class T>
static void backward_x(struct cuda_device *c, struct tensor dx, struct tensor dy, const struct matrix *w,
                       result out)
{
    int64_t stride = cuda_row_stride(w->dtype, w->n_in);
    out.data = dx.data;
    out.rows = (int32_t)w->n_in, out.cols = (int32_t)dx.rows;
    out.m_stride = 1, out.n_stride = dx.cols;
    view<T> a = {(const T *)w->data, w->n_out, w->n_in, stride};
    view<T> b = {(const T *)dy.data, dy.rows, dy.cols, dy.cols};
    multiply<T, false>(c, out, a, b, w->n_out);
}

static bool library_x(struct cuda_device *c, struct tensor dx, struct tensor dy, const struct matrix *w,
                      const void *gelu_of)
{
    struct blas_product p = {
        .type = w->dtype, .d_type = dx.dtype, .turned = false, .added = false,
        .n = dx.rows, .m = w->n_in, .k = w->n_out,
        .a_stride = cuda_row_stride(w->dtype, w->n_in), .b_stride = dy.cols, .d_stride = dx.cols,
        .a = w->data, .b = dy.data, .gelu_of = gelu_of, .d = dx.data,
    };
    return cuda_blas_product(c, &p);
}

void cuda_matmul_backward_x(struct device *d, struct tensor dx, struct tensor dy,
                            const struct matrix *w)
{
    ASSERT((dx.dtype == DTYPE_F32 || dx.dtype == w->dtype) && dy.dtype == w->dtype);
    ASSERT(dx.rows == dy.rows && dy.cols == w->n_out && dx.cols == w->n_in);
    if (library_x(cuda_of(d), dx, dy, w, NULL)) return;
    result out = {.how = dx.dtype == DTYPE_F32 ? result::WRITE : result::ROUND};
    WITH_TYPE(w->dtype, backward_x<T>(cuda_of(d), dx, dy, w, out));
}

void cuda_matmul_gelu_backward(struct device *d, struct tensor dpre, struct tensor dy,
                               const struct matrix *w, struct tensor pre, bool exact)
{
    ASSERT(dpre.dtype == w->dtype && pre.dtype == w->dtype && dy.dtype == w->dtype);
    ASSERT(dpre.rows == dy.rows && dy.cols == w->n_out && dpre.cols == w->n_in);
    ASSERT(pre.rows == dpre.rows && pre.cols == dpre.cols);
    if (!exact && library_x(cuda_of(d), dpre, dy, w, pre.data)) return;
    result out = {.how = exact ? result::SLOPE_EXACT : result::SLOPE_TANH, .pre = pre.data};
    WITH_TYPE(w->dtype, backward_x<T>(cuda_of(d), dpre, dy, w, out));
}

/* EACH columns a thread, 16 bytes where rows allow; a slice of rows a block. Bytes: dy once. */
template <class T, int EACH>
__global__ void bias_kernel(float *sums, const T *dy, int64_t rows, int64_t n)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH, slices = gridDim.y;
    if (i >= n) return;
    float sum[EACH] = {};
    int64_t end = slice_begin(blockIdx.y + 1, slices, rows);
#pragma unroll 4
    for (int64_t r = slice_begin(blockIdx.y, slices, rows); r < end; r++) {
        packed<T, EACH> v = load_packed<T, EACH>(dy + r * n + i);
#pragma unroll
        for (int e = 0; e < EACH; e++) sum[e] += to_f32(v.at[e]);
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) sums[blockIdx.y * n + i + e] = sum[e];
}

static bool library_w(struct cuda_device *c, const struct matrix *dw, struct tensor dy, struct tensor x)
{
    struct blas_product p = {
        .type = x.dtype, .d_type = DTYPE_F32, .turned = true, .added = true,
        .n = dw->n_out, .m = dw->n_in, .k = x.rows,
        .a_stride = x.cols, .b_stride = dy.cols, .d_stride = cuda_row_stride(DTYPE_F32, dw->n_in),
        .a = x.data, .b = dy.data, .d = dw->data,
    };
    return dw->dtype == DTYPE_F32 && cuda_blas_product(c, &p);
}

template <class T>
static void backward_w(struct cuda_device *c, const struct matrix *dw, struct tensor dy, struct tensor x,
                       struct random_key rounding)
{
    result out = {dw->data, (int32_t)dw->n_out, (int32_t)dw->n_in, cuda_row_stride(dw->dtype, dw->n_in), 1,
                  dw->dtype == DTYPE_F32 ? result::ADD : result::ADD_BF16, rounding, NULL};
    view<T> a = {(const T *)dy.data, dy.rows, dy.cols, dy.cols};
    view<T> b = {(const T *)x.data, x.rows, x.cols, x.cols};
    multiply<T, true>(c, out, a, b, dy.rows);
}

template <class T, int EACH>
static void launch_bias(struct cuda_device *c, float *sums, struct tensor dy, int64_t slices)
{
    int64_t blocks = ceil_div(dy.cols, COLUMN_THREADS * EACH);
    cuda_launch(c, "matmul_backward", bias_kernel<T, EACH>, dim3((unsigned)blocks, (unsigned)slices),
                dim3(COLUMN_THREADS), 0, sums, (const T *)dy.data, dy.rows, dy.cols);
}

template <class T> static void backward_bias(struct cuda_device *c, float *dbias, struct tensor dy)
{
    constexpr int EACH = 16 / sizeof(T);
    int64_t slices = row_slices(dy.rows, dy.cols), n = dy.cols;
    float *sums = (float *)cuda_workspace(c, 0, slices * n * (int64_t)sizeof(float));
    if (n % EACH == 0) launch_bias<T, EACH>(c, sums, dy, slices);
    else launch_bias<T, 1>(c, sums, dy, slices);
    add_slices(c, "matmul_backward", {{dbias}}, sums, slices, n);
}

void cuda_matmul_backward_w(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                            struct tensor x, struct random_key rounding)
{
    ASSERT(dw->dtype == DTYPE_F32 || dw->dtype == DTYPE_BF16);
    ASSERT(dy.cols == dw->n_out && x.cols == dw->n_in && dy.dtype == x.dtype && dy.rows == x.rows);
    struct cuda_device *c = cuda_of(d);
    if (!library_w(c, dw, dy, x)) WITH_TYPE(x.dtype, backward_w<T>(c, dw, dy, x, rounding));
    if (dbias) WITH_TYPE(x.dtype, backward_bias<T>(c, dbias, dy));
}
