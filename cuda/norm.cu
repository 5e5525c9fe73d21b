/* LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019).
 *
 *   out = (x - mean) / sqrt(var + eps) * weight + bias      x f32 [R, C], out f32 or 16 bits
 *   out = x / sqrt(mean of squares + eps) * weight + bias
 *
 * Grid: a block a row. Bytes: 4 C read, out written; the row's second and third reading hit the first-level
 * cache. CPU twin: norm_row (cpu/rows_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { NORM_THREADS = 256 };

template <class T>
__global__ void norm_kernel(T *out, const float *x, const float *weight, const float *bias, int64_t n,
                            float eps, bool rms)
{
    __shared__ float room[WARP];
    const float *row = x + blockIdx.x * n;
    wait_for_previous();
    float mean = 0, sum = 0;
    if (!rms) {
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
        mean = block_sum(sum, room) / (float)n;
    }
    float squares = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        squares += (row[i] - mean) * (row[i] - mean);
    float scale = rsqrtf(block_sum(squares, room) / (float)n + eps);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float y = (row[i] - mean) * scale * weight[i];
        out[blockIdx.x * n + i] = from_f32<T>(bias ? y + bias[i] : y);
    }
}

template <class T>
static void launch(struct cuda_device *c, struct tensor out, struct tensor x, const struct norm *n)
{
    cuda_launch_early(c, "norm", norm_kernel<T>, dim3((unsigned)x.rows), dim3(NORM_THREADS), 0,
                      (T *)out.data, (const float *)x.data, n->weight, n->bias, x.cols, n->eps, n->rms);
}

void cuda_norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n)
{
    ASSERT(x.dtype == DTYPE_F32 && out.rows == x.rows && out.cols == x.cols);
    WITH_TYPE(out.dtype, launch<T>(cuda_of(d), out, x, n));
}
