/* Undoes the rotation of the gradients of q and k, then their norms.
 *
 *   rotation   its transpose is the rotation back                          dqkv f32 [R, (H + 2G) K]
 *   norm       RMSNorm's backward a head; one weight for all heads, so its gradient sums over rows and heads
 *
 * The last kernel at work writes `out` (f32 in place, or 16 bits) with the heads of v as they are: without norms of
 * heads dqkv is read once and written once. Grid: rows x heads, a warp each; then columns x slices of rows. Some 6
 * operations an element: bound by the bytes. CPU twin: cpu_rope_backward. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/row_sums.cuh"

enum { HEADS_A_BLOCK = 4 };

struct rope_args {
    float *dqkv;
    const int32_t *positions;
    const float *rope;
    int32_t n_head, n_kv_head, head_dim;
    int64_t cols;
};

/* A head of v, as it is. */
template <class Out> __device__ __forceinline__ void copy_head(Out *out, const float *x, int32_t n)
{
    for (int i = threadIdx.x; i < n; i += WARP) out[i] = from_f32<Out>(x[i]);
}

/* out may be dqkv. */
template <class Out> __global__ void rotate_back_kernel(rope_args a, Out *out)
{
    int32_t head = blockIdx.y * HEADS_A_BLOCK + threadIdx.y, n = a.head_dim;
    if (head >= a.n_head + 2 * a.n_kv_head) return;
    int64_t at = blockIdx.x * a.cols + (int64_t)head * n;
    const float *x = a.dqkv + at;
    if (head >= a.n_head + a.n_kv_head) {
        copy_head(out + at, x, n);
        return;
    }
    const float *table = a.rope + (int64_t)a.positions[blockIdx.x] * n;
    for (int i = threadIdx.x; i < n / 2; i += WARP) {
        float c = table[2 * i], s = table[2 * i + 1], low = x[i], high = x[i + n / 2];
        out[at + i] = from_f32<Out>(low * c + high * s);
        out[at + i + n / 2] = from_f32<Out>(high * c - low * s);
    }
}

/* The head's 1 / deviation, and mean(g z), by one warp. */
struct head_stats { float scale, dot; };

template <class T>
__device__ head_stats stats_of(const float *dy, const T *x, const float *weight, int32_t n, float eps)
{
    float squares = 0, dot = 0;
    for (int i = threadIdx.x; i < n; i += WARP) {
        float v = to_f32(x[i]);
        squares += v * v;
        dot += dy[i] * weight[i] * v;
    }
    float scale = rsqrtf(warp_sum(squares) / (float)n + eps);
    return {scale, warp_sum(dot) * scale / (float)n};
}

/* Sums of dy z over the heads [head0, head0 + heads) of a slice of rows. A warp a slice. */
template <class T>
__global__ void weight_kernel(float *sums, rope_args a, const T *pre, const float *weight, float eps,
                              int32_t head0, int32_t heads, int64_t rows)
{
    int64_t slices = gridDim.x, end = slice_begin(blockIdx.x + 1, slices, rows);
    int32_t n = a.head_dim;
    float sum[8] = {}; /* of element part * 32 + lane */
    for (int64_t r = slice_begin(blockIdx.x, slices, rows); r < end; r++)
        for (int32_t h = head0; h < head0 + heads; h++) {
            int64_t at = r * a.cols + (int64_t)h * n;
            head_stats s = stats_of(a.dqkv + at, pre + at, weight, n, eps);
#pragma unroll
            for (int p = 0; p < 8; p++) {
                int i = p * WARP + threadIdx.x;
                if (i < n) sum[p] += a.dqkv[at + i] * to_f32(pre[at + i]) * s.scale;
            }
        }
#pragma unroll
    for (int p = 0; p < 8; p++)
        if (p * WARP + threadIdx.x < n) sums[blockIdx.x * (int64_t)n + p * WARP + threadIdx.x] = sum[p];
}

template <class T>
__global__ void norm_heads_kernel(rope_args a, T *out, const T *pre, const float *q_norm,
                                  const float *k_norm, float eps)
{
    int32_t head = blockIdx.y * HEADS_A_BLOCK + threadIdx.y, n = a.head_dim;
    if (head >= a.n_head + 2 * a.n_kv_head) return;
    int64_t at = blockIdx.x * a.cols + (int64_t)head * n;
    const float *weight = head < a.n_head ? q_norm : k_norm, *dy = a.dqkv + at;
    if (head >= a.n_head + a.n_kv_head) {
        copy_head(out + at, dy, n);
        return;
    }
    const T *x = pre + at;
    head_stats s = stats_of(dy, x, weight, n, eps);
    for (int i = threadIdx.x; i < n; i += WARP)
        out[at + i] = from_f32<T>(s.scale * (dy[i] * weight[i] - to_f32(x[i]) * s.scale * s.dot));
}

template <class T>
static void norms_backward(struct cuda_device *c, rope_args args, T *out, const T *pre, float *dq_norm,
                           float *dk_norm, const struct attention *a, int64_t rows, dim3 grid)
{
    int64_t slices = row_slices(rows, a->head_dim), n = a->head_dim;
    float *sums = (float *)cuda_workspace(c, 0, slices * n * (int64_t)sizeof(float));
    for (int k = 0; k < 2; k++) {
        cuda_launch(c, "rope_backward", weight_kernel<T>, dim3((unsigned)slices), dim3(WARP), 0, sums,
                    args, pre, k ? a->k_norm : a->q_norm, a->qk_norm_eps, k ? a->n_head : 0,
                    k ? a->n_kv_head : a->n_head, rows);
        add_slices(c, "rope_backward", {{k ? dk_norm : dq_norm}}, sums, slices, n);
    }
    cuda_launch(c, "rope_backward", norm_heads_kernel<T>, grid, dim3(WARP, HEADS_A_BLOCK), 0, args, out, pre,
                a->q_norm, a->k_norm, a->qk_norm_eps);
}

template <class T>
static void rotate_back(struct cuda_device *c, const rope_args &args, T *out, dim3 grid)
{
    cuda_launch(c, "rope_backward", rotate_back_kernel<T>, grid, dim3(WARP, HEADS_A_BLOCK), 0, args, out);
}

void cuda_rope_backward(struct device *d, struct tensor out, struct tensor dqkv, struct tensor qkv_pre,
                        float *dq_norm, float *dk_norm, const struct batch *b, const struct attention *a)
{
    struct cuda_device *c = cuda_of(d);
    if (!a->rope && !a->q_norm) {
        ASSERT(out.data == dqkv.data && out.dtype == dqkv.dtype);
        return;
    }
    ASSERT(dqkv.dtype == DTYPE_F32 && (out.dtype != DTYPE_F32 || out.data == dqkv.data));
    ASSERT(out.rows == dqkv.rows && out.cols == dqkv.cols && a->head_dim <= 8 * WARP);
    rope_args args = {(float *)dqkv.data, b->positions, a->rope, a->n_head, a->n_kv_head, a->head_dim,
                      dqkv.cols};
    dim3 grid((unsigned)dqkv.rows, (unsigned)ceil_div(a->n_head + 2 * a->n_kv_head, HEADS_A_BLOCK));
    if (!a->q_norm) {
        WITH_TYPE(out.dtype, rotate_back(c, args, (T *)out.data, grid));
        return;
    }
    ASSERT(qkv_pre.data && qkv_pre.cols == dqkv.cols && qkv_pre.dtype == out.dtype && dq_norm && dk_norm);
    if (a->rope) rotate_back(c, args, (float *)dqkv.data, grid);
    WITH_TYPE(out.dtype, norms_backward(c, args, (T *)out.data, (const T *)qkv_pre.data, dq_norm, dk_norm,
                                        a, dqkv.rows, grid));
}
