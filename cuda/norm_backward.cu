/* The backward pass of LayerNorm and RMSNorm. With z = (x - mean) s, s = 1 / deviation, g = dy weight:
 *
 *   dx += s (g - mean(g) - z mean(g z))      without mean(g) for RMSNorm      dx, dy, x f32 [R, C]
 *   dweight += sum over rows of dy z;  dbias += sum over rows of dy
 *
 * Grid: a block a row for dx; then columns x slices of rows for the sums. Bytes: 12 C + 8 C a row. CPU twin:
 * norm_backward_row and norm_backward_columns (cpu/train_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/row_sums.cuh"

enum { NORM_THREADS = 256, COLUMN_THREADS = 128 };

struct row_stats { float mean, scale; };

__global__ void rows_kernel(float *dx, row_stats *stats, const float *dy, const float *x,
                            const float *weight, int64_t n, float eps, bool rms)
{
    __shared__ float room[WARP];
    int64_t at = blockIdx.x * n;
    float sum = 0, squares = 0, mean = 0, g_sum = 0, dot = 0;
    if (!rms) {
        for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += x[at + i];
        mean = block_sum(sum, room) / (float)n;
    }
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        squares += (x[at + i] - mean) * (x[at + i] - mean);
    float scale = rsqrtf(block_sum(squares, room) / (float)n + eps);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float g = dy[at + i] * weight[i];
        g_sum += g;
        dot += g * (x[at + i] - mean) * scale;
    }
    float mean_g = rms ? 0 : block_sum(g_sum, room) / (float)n;
    float mean_dot = block_sum(dot, room) / (float)n;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float g = dy[at + i] * weight[i];
        dx[at + i] += scale * (g - mean_g - (x[at + i] - mean) * scale * mean_dot);
    }
    if (threadIdx.x == 0) stats[blockIdx.x] = {mean, scale};
}

__global__ void columns_kernel(float *weight_sums, float *bias_sums, const float *dy, const float *x,
                               const row_stats *stats, int64_t rows, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, slices = gridDim.y;
    if (i >= n) return;
    float weight = 0, bias = 0;
    int64_t end = slice_begin(blockIdx.y + 1, slices, rows);
    for (int64_t r = slice_begin(blockIdx.y, slices, rows); r < end; r++) {
        float g = dy[r * n + i];
        weight += g * (x[r * n + i] - stats[r].mean) * stats[r].scale;
        bias += g;
    }
    weight_sums[blockIdx.y * n + i] = weight;
    bias_sums[blockIdx.y * n + i] = bias;
}

void cuda_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                        struct tensor dy, struct tensor x, const struct norm *n)
{
    struct cuda_device *c = cuda_of(d);
    int64_t slices = row_slices(x.rows, x.cols), cols = x.cols;
    ASSERT(dx.dtype == DTYPE_F32 && dy.dtype == DTYPE_F32 && x.dtype == DTYPE_F32);
    ASSERT(dx.cols == cols && dy.cols == cols && dx.rows == x.rows && dy.rows == x.rows);
    int64_t sums_bytes = round_up(slices * cols * (int64_t)sizeof(float), 16);
    float *weight_sums = (float *)cuda_workspace(c, 0, sums_bytes);
    float *bias_sums = (float *)cuda_workspace(c, sums_bytes, sums_bytes);
    row_stats *stats = (row_stats *)cuda_workspace(c, 2 * sums_bytes,
                                                   x.rows * (int64_t)sizeof(row_stats));
    unsigned blocks = (unsigned)ceil_div(cols, COLUMN_THREADS);
    cuda_launch(c, "norm_backward", rows_kernel, dim3((unsigned)x.rows), dim3(NORM_THREADS), 0,
                (float *)dx.data, stats, (const float *)dy.data, (const float *)x.data, n->weight, cols,
                n->eps, n->rms);
    cuda_launch(c, "norm_backward", columns_kernel, dim3(blocks, (unsigned)slices),
                dim3(COLUMN_THREADS), 0, weight_sums, bias_sums, (const float *)dy.data,
                (const float *)x.data, stats, x.rows, cols);
    cuda_launch(c, "norm_backward", add_slices_kernel, dim3(blocks), dim3(COLUMN_THREADS), 0, dweight,
                weight_sums, slices, cols);
    if (dbias)
        cuda_launch(c, "norm_backward", add_slices_kernel, dim3(blocks), dim3(COLUMN_THREADS), 0, dbias,
                    bias_sums, slices, cols);
}
