/* The gradient of the embeddings: rows of dx go to their tokens' rows, and to their positions'.
 *
 *   dwte[tokens[r]] += dx[r];  dwpe[positions[r]] += dx[r]          f32, rows added in order
 *
 * No atomics: the block of row r does nothing if an earlier row has the same index; else it adds up all later
 * ones with it. Grid: a block a row. Bytes: dx once, each touched row read and written once; indices R^2 / 2
 * times 4 from the second-level cache. CPU twin: cpu_embed_backward. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { EMBED_THREADS = 256, EMBED_PARTS = 8 };

__global__ void embed_backward_kernel(float *dw, int64_t stride, const int32_t *index, const float *dx,
                                      int32_t rows, int64_t n)
{
    __shared__ bool same[EMBED_THREADS];
    int32_t row = blockIdx.x, mine = index[row];
    for (int32_t j0 = 0; j0 < row; j0 += blockDim.x) {
        int32_t j = j0 + threadIdx.x;
        if (__syncthreads_or(j < row && index[j] == mine)) return;
    }
    /* Columns in strips of what the threads hold in registers. */
    for (int64_t k0 = 0; k0 < n; k0 += EMBED_THREADS * EMBED_PARTS) {
        float sum[EMBED_PARTS] = {};
        for (int32_t j0 = row; j0 < rows; j0 += blockDim.x) {
            int32_t j = j0 + threadIdx.x;
            bool match = j < rows && index[j] == mine;
            if (!__syncthreads_or(match)) continue;
            same[threadIdx.x] = match;
            __syncthreads();
            for (int32_t i = 0; i < EMBED_THREADS; i++) {
                if (!same[i]) continue;
#pragma unroll
                for (int p = 0; p < EMBED_PARTS; p++) {
                    int64_t k = k0 + p * EMBED_THREADS + threadIdx.x;
                    if (k < n) sum[p] += dx[(int64_t)(j0 + i) * n + k];
                }
            }
            __syncthreads();
        }
#pragma unroll
        for (int p = 0; p < EMBED_PARTS; p++) {
            int64_t k = k0 + p * EMBED_THREADS + threadIdx.x;
            if (k < n) dw[mine * stride + k] += sum[p];
        }
    }
}

void cuda_embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                         const struct batch *b)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(dwte->dtype == DTYPE_F32 && dx.dtype == DTYPE_F32 && dwte->n_in == dx.cols);
    ASSERT(dx.rows == b->n_rows);
    cuda_launch(c, "embed_backward", embed_backward_kernel, dim3((unsigned)dx.rows),
                dim3(EMBED_THREADS), 0, (float *)dwte->data, cuda_row_stride(DTYPE_F32, dwte->n_in),
                b->tokens, (const float *)dx.data, (int32_t)dx.rows, dx.cols);
    if (dwpe)
        cuda_launch(c, "embed_backward", embed_backward_kernel, dim3((unsigned)dx.rows),
                    dim3(EMBED_THREADS), 0, dwpe, dx.cols, b->positions, (const float *)dx.data,
                    (int32_t)dx.rows, dx.cols);
}
