/* LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019).
 *
 *   out = (x - mean) / sqrt(var + eps) * weight + bias      x f32 [R, C], out f32 or 16 bits
 *   out = x / sqrt(mean of squares + eps) * weight + bias
 *
 * Grid: a block a row. Bytes: 4 C read, out written; the row's second and third reading hit the
 * first-level cache. Some 6 FLOPs an element: bound by bytes. CPU twin: norm_row
 * (cpu/rows_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/row_norm.cuh"

static constexpr int NORM_THREADS = NORM_SHARES * WARP;

template <class T> __global__ void norm_kernel(T *out, const float *x, norm_args a, int32_t n)
{
    __shared__ float room[NORM_SHARES][WARP];
    const float *row = x + (int64_t)blockIdx.x * n;
    wait_for_previous();
    row_stats s = block_row_stats(a, row, n, room);
    for (int32_t i = threadIdx.x * 4; i < n; i += NORM_THREADS * 4)
        norm_piece(out + (int64_t)blockIdx.x * n, a, s, row, i, n);
}

template <class T>
static void launch(struct cuda_device *c, struct tensor out, struct tensor x, const struct norm *n)
{
    cuda_launch_early(c, "norm", norm_kernel<T>, dim3((unsigned)x.rows), dim3(NORM_THREADS), 0,
                      (T *)out.data, (const float *)x.data, norm_args_of(n), x.cols);
}

void cuda_norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n)
{
    ASSERT(x.dtype == DTYPE_F32 && out.rows == x.rows && out.cols == x.cols && x.cols < INT32_MAX / 2);
    WITH_TYPE(out.dtype, launch<T>(cuda_of(d), out, x, n));
}
