/* The gradient of the embeddings: rows of dx go to their tokens' rows, and to their positions'.
 *
 *   dwte[tokens[r]] += dx[r];  dwpe[positions[r]] += dx[r]          f32, rows added in order
 *
 * No atomics: the block of row r does nothing if an earlier row has the same index; else it adds up
 * all later ones with it, EMBED_RUN rows' loads under way at a time. Grid: a block a row. Bytes: dx
 * once, each touched row read and written once; indices R^2 / 2 times 4 from the second-level
 * cache, four a thread. One addition an element: bound by the bytes, or where one token is every
 * tenth and more by what one multiprocessor reads. CPU twin: cpu_embed_backward. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { EMBED_THREADS = 256, EMBED_RUN = 8, INDICES_EACH = 4, INDICES = EMBED_THREADS * INDICES_EACH };

/* Which of the thread's indices, from j on and below end, are `mine`: bits. j is a multiple of
 * INDICES_EACH. */
__device__ __forceinline__ uint32_t matches(const int32_t *index, int32_t j, int32_t end, int32_t mine)
{
    packed<int32_t, INDICES_EACH> v;
    uint32_t bits = 0;
    if (j + INDICES_EACH <= end) v = load_packed<int32_t, INDICES_EACH>(index + j);
    else
#pragma unroll
        for (int e = 0; e < INDICES_EACH; e++) v.at[e] = j + e < end ? index[j + e] : -1;
#pragma unroll
    for (int e = 0; e < INDICES_EACH; e++) bits |= (v.at[e] == mine ? 1u : 0u) << e;
    return bits;
}

/* The rows of [j0, j0 + INDICES) below end whose index is `mine`, in order, into `found`; returns
 * how many. */
__device__ __forceinline__ int32_t find_rows(int32_t *found, int32_t *of_warp, const int32_t *index,
                                             int32_t j0, int32_t end, int32_t mine)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int32_t j = j0 + (int32_t)threadIdx.x * INDICES_EACH;
    uint32_t bits = matches(index, j, end, mine);
    int32_t count = __popc(bits), before = count; /* in the lanes up to this one */
#pragma unroll
    for (int m = 1; m < WARP; m *= 2) {
        int32_t other = __shfl_up_sync(0xFFFFFFFFu, before, m);
        if (lane >= m) before += other;
    }
    __syncthreads(); /* the last ones found have been read */
    if (lane == WARP - 1) of_warp[warp] = before;
    __syncthreads();
    int32_t at = before - count, total = 0;
#pragma unroll
    for (int w = 0; w < EMBED_THREADS / WARP; w++) {
        if (w < warp) at += of_warp[w];
        total += of_warp[w];
    }
#pragma unroll
    for (int e = 0; e < INDICES_EACH; e++)
        if (bits >> e & 1) found[at++] = j + e;
    __syncthreads();
    return total;
}

/* sum += the found rows' columns k .. k + EACH - 1, in order. */
template <int EACH>
__device__ __forceinline__ void add_rows(packed<float, EACH> &sum, const int32_t *found, int32_t n_found,
                                         const float *dx, int64_t k, int64_t n)
{
    for (int32_t i0 = 0; i0 < n_found; i0 += EMBED_RUN) {
        packed<float, EACH> v[EMBED_RUN];
#pragma unroll
        for (int u = 0; u < EMBED_RUN; u++)
            if (i0 + u < n_found) v[u] = load_packed<float, EACH>(dx + found[i0 + u] * n + k);
#pragma unroll
        for (int u = 0; u < EMBED_RUN; u++)
            if (i0 + u < n_found)
#pragma unroll
                for (int e = 0; e < EACH; e++) sum.at[e] += v[u].at[e];
    }
}

template <int EACH>
__global__ void __launch_bounds__(EMBED_THREADS)
embed_backward_kernel(float *dw, int64_t stride, const int32_t *index, const float *dx, int32_t rows,
                      int64_t n)
{
    __shared__ int32_t found[INDICES], of_warp[EMBED_THREADS / WARP];
    int32_t row = blockIdx.x, mine = index[row]; /* not negative */
    for (int32_t j0 = 0; j0 < row; j0 += INDICES)
        if (__syncthreads_or(matches(index, j0 + (int32_t)threadIdx.x * INDICES_EACH, row, mine) != 0))
            return;
    /* Columns in strips of what the threads hold in registers. */
    for (int64_t k0 = 0; k0 < n; k0 += EMBED_THREADS * EACH) {
        int64_t k = k0 + threadIdx.x * EACH;
        packed<float, EACH> sum = {};
        /* From a whole load on: none of the rows before this one has its index. */
        for (int32_t j0 = row / INDICES_EACH * INDICES_EACH; j0 < rows; j0 += INDICES) {
            int32_t n_found = find_rows(found, of_warp, index, j0, rows, mine);
            if (k < n) add_rows<EACH>(sum, found, n_found, dx, k, n);
        }
        if (k >= n) continue;
        packed<float, EACH> out = load_packed<float, EACH>(dw + mine * stride + k);
#pragma unroll
        for (int e = 0; e < EACH; e++) out.at[e] += sum.at[e];
        store_packed(dw + mine * stride + k, out);
    }
}

static void launch(struct cuda_device *c, float *dw, int64_t stride, const int32_t *index, struct tensor dx)
{
    auto kernel = dx.cols % 4 == 0 ? embed_backward_kernel<4> : embed_backward_kernel<1>;
    cuda_launch(c, "embed_backward", kernel, dim3((unsigned)dx.rows), dim3(EMBED_THREADS), 0, dw, stride,
                index, (const float *)dx.data, (int32_t)dx.rows, dx.cols);
}

void cuda_embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                         const struct batch *b)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(dwte->dtype == DTYPE_F32 && dx.dtype == DTYPE_F32 && dwte->n_in == dx.cols);
    ASSERT(dx.rows == b->n_rows);
    launch(c, (float *)dwte->data, cuda_row_stride(DTYPE_F32, dwte->n_in), b->tokens, dx);
    if (dwpe) launch(c, dwpe, dx.cols, b->positions, dx);
}
