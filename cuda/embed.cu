/* Rows by index: the embedding out of the packed weights, and the rows that want logits.
 *
 *   embed    out[r,:] = wte[tokens[r],:] (+ wpe[positions[r],:])     out f32 [R, C]
 *   gather   out[i,:] = x[rows[i],:]                                f32
 *
 * Grid: a block a row. Bytes: what is read and written, once. CPU twins: cpu_embed, cpu_gather. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/quant.cuh"

enum { ROW_THREADS = 128 };

template <class Row>
__global__ void embed_kernel(float *out, const int32_t *tokens, const int32_t *positions, Row wte,
                             const float *wpe, int64_t n)
{
    wait_for_previous();
    int64_t r = blockIdx.x, token = tokens[r];
    const float *position = wpe ? wpe + positions[r] * n : nullptr;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float x = wte.at(token, i);
        out[r * n + i] = position ? x + position[i] : x;
    }
}

__global__ void gather_kernel(float *out, const float *x, const int32_t *rows, int64_t n)
{
    wait_for_previous();
    const float *row = x + (int64_t)rows[blockIdx.x] * n;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) out[blockIdx.x * n + i] = row[i];
}

void cuda_embed(struct device *d, struct tensor out, const struct batch *b, const struct matrix *wte,
                const float *wpe)
{
    ASSERT(out.rows == b->n_rows && out.cols == wte->n_in && out.dtype == DTYPE_F32);
    WITH_ROWS(*wte, cuda_launch_early(cuda_of(d), "embed", embed_kernel<decltype(rows)>,
                                      dim3((unsigned)b->n_rows), dim3(ROW_THREADS), 0, (float *)out.data,
                                      b->tokens, b->positions, rows, wpe, out.cols));
}

void cuda_gather(struct device *d, struct tensor out, struct tensor x, const int32_t *rows)
{
    ASSERT(out.dtype == DTYPE_F32 && x.dtype == DTYPE_F32 && out.cols == x.cols);
    cuda_launch_early(cuda_of(d), "gather", gather_kernel, dim3((unsigned)out.rows), dim3(ROW_THREADS),
                      0, (float *)out.data, (const float *)x.data, rows, x.cols);
}
