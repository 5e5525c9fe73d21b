/* The backward pass of LayerNorm and RMSNorm. With z = (x - mean) s, s = 1 / deviation, g = dy
 * weight:
 *
 *   dx += s (g - mean(g) - z mean(g z))      without mean(g) for RMSNorm      dx, dy, x f32 [R, C]
 *   dweight += sum over rows of dy z;  dbias += sum over rows of dy
 *
 * and for the branch before the norm: next = dropout(dx), of 16 bits or f32, and its column sums.
 *
 * Grid: a block a slice of rows, which it takes one by one; a thread always has the same columns
 * and adds up their part of the sums as it goes. Then the slices are summed. Rows that are wider
 * than what blocks' threads hold are read again, from the first-level cache. Bytes: 16 C a row (x,
 * dy, dx in and out), 2 C for the branch in 16 bits, and the slices' sums. Some 20 operations an
 * element: bound by the bytes. CPU twin: norm_backward_row and norm_backward_columns
 * (cpu/train_simd.h), cpu_dropout. */
#include "cuda/dropout.cuh"
#include "cuda/row_sums.cuh"

enum { NORM_THREADS_MAX = 256, SHARED_COLUMNS_MAX = 3072 /* 36 KiB of sums */ };

/* Where a row of a slice goes and adds to: its dx and the branch's dy (NULL: none), from the
 * tensor's element `first` on, and the slice's sums. */
template <class T> struct norm_out {
    float *dx, *dweight, *dbias, *dbranch;
    T *branch;
    uint64_t first;
};

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

/* The columns of a row from i on: dx and the branch, and their part of the slice's sums. */
template <int EACH, class T>
__device__ __forceinline__ void add_columns(const norm_out<T> &to, const norm_row &r, const norm_stats &s,
                                            const keep &k, int64_t i)
{
    packed<float, EACH> x = load_packed<float, EACH>(r.x + i), dy = load_packed<float, EACH>(r.dy + i);
    packed<float, EACH> w = load_packed<float, EACH>(r.weight + i);
    packed<float, EACH> out = load_packed<float, EACH>(to.dx + i);
    packed<float, EACH> dw = load_packed<float, EACH>(to.dweight + i);
    packed<float, EACH> db = load_packed<float, EACH>(to.dbias + i);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        float g = dy.at[e] * w.at[e], z = (x.at[e] - s.mean) * s.scale;
        out.at[e] += s.scale * (g - s.mean_g - z * s.mean_dot);
        dw.at[e] += dy.at[e] * z;
        db.at[e] += dy.at[e];
    }
    store_packed(to.dx + i, out);
    store_packed(to.dweight + i, dw);
    store_packed(to.dbias + i, db);
    if (!to.branch) return;
    packed<float, EACH> z = keep_factors<EACH>(k, to.first + (uint64_t)i);
    packed<float, EACH> sum = load_packed<float, EACH>(to.dbranch + i);
    packed<T, EACH> rounded;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        rounded.at[e] = from_f32<T>(k.on ? out.at[e] * z.at[e] : out.at[e]);
        sum.at[e] += to_f32(rounded.at[e]);
    }
    store_packed(to.branch + i, rounded);
    store_packed(to.dbranch + i, sum);
}

struct norm_backward_args {
    float *dx, *sums;
    const float *dy, *x, *weight;
    int64_t rows, n;
    float eps;
    bool rms;
    void *branch; /* NULL: none */
    keep drop;
};

/* Sums [slices][n] of dweight, then of dbias, then of the branch; slice blockIdx.x is at work on
 * its own, in shared memory (IN_SHARED: of 3 n floats) or where it goes. There are few slices:
 * registers for four blocks do. */
template <int EACH, bool IN_SHARED, class T>
__global__ void __launch_bounds__(NORM_THREADS_MAX, 4) norm_backward_kernel(norm_backward_args a)
{
    extern __shared__ __align__(16) float shared_sums[];
    __shared__ float room[2 * WARP];
    int64_t n = a.n, slice = blockIdx.x, slices = gridDim.x, end = slice_begin(slice + 1, slices, a.rows);
    int n_sums = a.branch ? 3 : 2;
    float *of_slice = a.sums + slice * n, *sums = IN_SHARED ? shared_sums : of_slice;
    int64_t stride = IN_SHARED ? n : slices * n; /* from one of the slice's sums to the next */
    /* Each thread has its columns to itself: nobody waits. */
    for (int v = 0; v < n_sums; v++)
        for (int64_t i = first_column<EACH>(); i < n; i += column_step<EACH>())
            store_packed(sums + v * stride + i, packed<float, EACH>{});
    for (int64_t row = slice_begin(slice, slices, a.rows); row < end; row++) {
        norm_row r = {a.x + row * n, a.dy + row * n, a.weight, n};
        norm_out<T> to = {a.dx + row * n, sums, sums + stride, sums + 2 * stride,
                          a.branch ? (T *)a.branch + row * n : NULL, (uint64_t)(row * n)};
        norm_stats s = stats_of<EACH>(r, a.eps, a.rms, room);
        for (int64_t i = first_column<EACH>(); i < n; i += column_step<EACH>())
            add_columns<EACH>(to, r, s, a.drop, i);
    }
    if constexpr (IN_SHARED)
        for (int v = 0; v < n_sums; v++)
            for (int64_t i = first_column<EACH>(); i < n; i += column_step<EACH>())
                store_packed(of_slice + v * slices * n + i, load_packed<float, EACH>(sums + v * stride + i));
}

template <int EACH, bool IN_SHARED, class T>
static void launch(struct cuda_device *c, const norm_backward_args &a, int64_t slices)
{
    int64_t threads = min_i64(round_up(ceil_div(a.n, EACH), WARP), NORM_THREADS_MAX);
    size_t shared = IN_SHARED ? (a.branch ? 3 : 2) * (size_t)a.n * sizeof(float) : 0;
    cuda_launch(c, "norm_backward", norm_backward_kernel<EACH, IN_SHARED, T>, dim3((unsigned)slices),
                dim3((unsigned)threads), shared, a);
}

template <class T>
static void launch_for(struct cuda_device *c, const norm_backward_args &a, int64_t slices)
{
    bool fits = a.n <= SHARED_COLUMNS_MAX;
    if (a.n % 4 != 0) fits ? launch<1, true, T>(c, a, slices) : launch<1, false, T>(c, a, slices);
    else fits ? launch<4, true, T>(c, a, slices) : launch<4, false, T>(c, a, slices);
}

void cuda_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                        struct tensor dy, struct tensor x, const struct norm *n,
                        const struct branch_gradient *next)
{
    struct cuda_device *c = cuda_of(d);
    int64_t slices = row_slices(x.rows, x.cols), cols = x.cols;
    ASSERT(dx.dtype == DTYPE_F32 && dy.dtype == DTYPE_F32 && x.dtype == DTYPE_F32);
    ASSERT(dx.cols == cols && dy.cols == cols && dx.rows == x.rows && dy.rows == x.rows);
    ASSERT(!next || (next->dy.rows == x.rows && next->dy.cols == cols));
    int64_t bytes = (next ? 3 : 2) * slices * cols * (int64_t)sizeof(float);
    norm_backward_args args = {
        .dx = (float *)dx.data, .sums = (float *)cuda_workspace(c, 0, bytes), .dy = (const float *)dy.data,
        .x = (const float *)x.data, .weight = n->weight, .rows = x.rows, .n = cols, .eps = n->eps,
        .rms = n->rms, .branch = next ? next->dy.data : NULL, .drop = keep_of(next ? next->drop : dropout{}),
    };
    WITH_TYPE(next ? next->dy.dtype : DTYPE_F32, launch_for<T>(c, args, slices));
    add_slices(c, "norm_backward", {{dweight, dbias, next ? next->dbias : NULL}}, args.sums, slices, cols);
}
