/* The backward pass of LayerNorm and RMSNorm. With z = (x - mean) s, s = 1 / deviation, g = dy weight:
 *
 *   dx += s (g - mean(g) - z mean(g z))      without mean(g) for RMSNorm      dx, dy, x f32 [R, C]
 *   dweight += sum over rows of dy z;  dbias += sum over rows of dy
 *
 * Grid: a block a slice of rows, which it takes one by one; a thread always has the same columns and adds up their
 * part of dweight and dbias as it goes. Then the slices are summed. Rows that are wider than what blocks' threads hold
 * are read again, from the first-level cache. Bytes: 16 C a row (x, dy, dx in and out), and the slices' sums. Some
 * 20 operations an element: bound by the bytes. CPU twin: norm_backward_row and norm_backward_columns
 * (cpu/train_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/row_sums.cuh"

enum { NORM_THREADS_MAX = 256, SHARED_COLUMNS_MAX = 4096 /* 32 KiB of sums */ };

struct norm_row { const float *x, *dy, *weight; int64_t n; };

struct norm_stats { float mean, scale, mean_g, mean_dot; };

/* Both sums at once; every thread gets them. `room` [2 WARP] is nobody else's. */
__device__ __forceinline__ float2 block_sums(float a, float b, float *room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = blockDim.x / WARP;
    a = warp_sum(a), b = warp_sum(b);
    __syncthreads(); /* an earlier call's readers are done */
    if (lane == 0) room[warp] = a, room[WARP + warp] = b;
    __syncthreads();
    return make_float2(warp_sum(lane < n ? room[lane] : 0.0f),
                       warp_sum(lane < n ? room[WARP + lane] : 0.0f));
}

/* The thread's columns are EACH from (p blockDim + thread) EACH on, p = 0, 1, .... */
template <int EACH> __device__ __forceinline__ int64_t first_column() { return threadIdx.x * EACH; }
template <int EACH> __device__ __forceinline__ int64_t column_step() { return blockDim.x * EACH; }

template <int EACH>
__device__ __forceinline__ norm_stats stats_of(norm_row r, float eps, bool rms, float *room)
{
    float sum = 0, squares = 0, g_sum = 0, dot = 0, mean = 0, count = (float)r.n;
    if (!rms) {
        for (int64_t i = first_column<EACH>(); i < r.n; i += column_step<EACH>()) {
            packed<float, EACH> x = load_packed<float, EACH>(r.x + i);
#pragma unroll
            for (int e = 0; e < EACH; e++) sum += x.at[e];
        }
        mean = block_sum(sum, room) / count;
    }
    for (int64_t i = first_column<EACH>(); i < r.n; i += column_step<EACH>()) {
        packed<float, EACH> x = load_packed<float, EACH>(r.x + i);
#pragma unroll
        for (int e = 0; e < EACH; e++) squares += (x.at[e] - mean) * (x.at[e] - mean);
    }
    float scale = rsqrtf(block_sum(squares, room) / count + eps);
    for (int64_t i = first_column<EACH>(); i < r.n; i += column_step<EACH>()) {
        packed<float, EACH> x = load_packed<float, EACH>(r.x + i), dy = load_packed<float, EACH>(r.dy + i);
        packed<float, EACH> w = load_packed<float, EACH>(r.weight + i);
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float g = dy.at[e] * w.at[e];
            g_sum += g;
            dot += g * (x.at[e] - mean) * scale;
        }
    }
    float2 sums = block_sums(g_sum, dot, room);
    return {mean, scale, rms ? 0 : sums.x / count, sums.y / count};
}

/* Row `row` of a slice: dx, and the thread's columns of the slice's sums. */
template <int EACH>
__device__ __forceinline__ void add_row(float *dx, float *dweight, float *dbias, norm_row r, norm_stats s)
{
    for (int64_t i = first_column<EACH>(); i < r.n; i += column_step<EACH>()) {
        packed<float, EACH> x = load_packed<float, EACH>(r.x + i), dy = load_packed<float, EACH>(r.dy + i);
        packed<float, EACH> w = load_packed<float, EACH>(r.weight + i);
        packed<float, EACH> out = load_packed<float, EACH>(dx + i);
        packed<float, EACH> dw = load_packed<float, EACH>(dweight + i);
        packed<float, EACH> db = load_packed<float, EACH>(dbias + i);
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float g = dy.at[e] * w.at[e], z = (x.at[e] - s.mean) * s.scale;
            out.at[e] += s.scale * (g - s.mean_g - z * s.mean_dot);
            dw.at[e] += dy.at[e] * z;
            db.at[e] += dy.at[e];
        }
        store_packed(dx + i, out);
        store_packed(dweight + i, dw);
        store_packed(dbias + i, db);
    }
}

/* Sums [slices][n] of dweight, then of dbias; slice blockIdx.x is at work on its own, in shared memory (IN_SHARED: of
 * 2 n floats) or where it goes. */
template <int EACH, bool IN_SHARED>
__global__ void __launch_bounds__(NORM_THREADS_MAX)
norm_backward_kernel(float *dx, float *sums, const float *dy, const float *x, const float *weight,
                     int64_t rows, int64_t n, float eps, bool rms)
{
    extern __shared__ __align__(16) float shared_sums[];
    __shared__ float room[2 * WARP];
    int64_t slice = blockIdx.x, slices = gridDim.x, end = slice_begin(slice + 1, slices, rows);
    float *dweight = sums + slice * n, *dbias = dweight + slices * n;
    float *weight_sums = IN_SHARED ? shared_sums : dweight, *bias_sums = IN_SHARED ? shared_sums + n : dbias;
    /* Each thread has its columns to itself: nobody waits. */
    for (int64_t i = first_column<EACH>(); i < n; i += column_step<EACH>()) {
        store_packed(weight_sums + i, packed<float, EACH>{});
        store_packed(bias_sums + i, packed<float, EACH>{});
    }
    for (int64_t row = slice_begin(slice, slices, rows); row < end; row++) {
        norm_row r = {x + row * n, dy + row * n, weight, n};
        norm_stats s = stats_of<EACH>(r, eps, rms, room);
        add_row<EACH>(dx + row * n, weight_sums, bias_sums, r, s);
    }
    if constexpr (IN_SHARED)
        for (int64_t i = first_column<EACH>(); i < n; i += column_step<EACH>()) {
            store_packed(dweight + i, load_packed<float, EACH>(weight_sums + i));
            store_packed(dbias + i, load_packed<float, EACH>(bias_sums + i));
        }
}

struct norm_backward_args {
    float *dx, *sums;
    const float *dy, *x;
    const struct norm *norm;
    int64_t rows, n, slices;
};

template <int EACH, bool IN_SHARED> static void launch(struct cuda_device *c, const norm_backward_args &a)
{
    int64_t threads = min_i64(round_up(ceil_div(a.n, EACH), WARP), NORM_THREADS_MAX);
    size_t shared = IN_SHARED ? 2 * (size_t)a.n * sizeof(float) : 0;
    cuda_launch(c, "norm_backward", norm_backward_kernel<EACH, IN_SHARED>, dim3((unsigned)a.slices),
                dim3((unsigned)threads), shared, a.dx, a.sums, a.dy, a.x, a.norm->weight, a.rows, a.n,
                a.norm->eps, a.norm->rms);
}

void cuda_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                        struct tensor dy, struct tensor x, const struct norm *n)
{
    struct cuda_device *c = cuda_of(d);
    int64_t slices = row_slices(x.rows, x.cols), cols = x.cols;
    ASSERT(dx.dtype == DTYPE_F32 && dy.dtype == DTYPE_F32 && x.dtype == DTYPE_F32);
    ASSERT(dx.cols == cols && dy.cols == cols && dx.rows == x.rows && dy.rows == x.rows);
    float *sums = (float *)cuda_workspace(c, 0, 2 * slices * cols * (int64_t)sizeof(float));
    norm_backward_args args = {(float *)dx.data, sums, (const float *)dy.data, (const float *)x.data, n, x.rows,
                      cols, slices};
    bool fits = cols <= SHARED_COLUMNS_MAX;
    if (cols % 4 != 0) fits ? launch<1, true>(c, args) : launch<1, false>(c, args);
    else fits ? launch<4, true>(c, args) : launch<4, false>(c, args);
    add_slices(c, "norm_backward", dweight, sums, slices, cols);
    if (dbias) add_slices(c, "norm_backward", dbias, sums + slices * cols, slices, cols);
}
