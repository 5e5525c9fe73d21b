/* Sums over rows without atomics: slices of rows, fixed by the number of rows alone, are summed in
 * order; then the slices are, in an order fixed by their number. */
#pragma once

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { SLICE_ROWS_MIN = 32, SLICE_COLUMNS = 32, SLICE_WARPS = 8 };

/* How many slices rows of `cols` are cut into: at most CUDA_ROW_SLICES, and so that all sums are at
 * most CUDA_SLICE_FLOATS (or one slice). */
static inline int64_t row_slices(int64_t rows, int64_t cols)
{
    int64_t slices = (rows + SLICE_ROWS_MIN - 1) / SLICE_ROWS_MIN, room = CUDA_SLICE_FLOATS / cols;
    slices = slices < CUDA_ROW_SLICES ? slices : CUDA_ROW_SLICES;
    slices = slices < room ? slices : room;
    return slices > 0 ? slices : 1;
}

__host__ __device__ __forceinline__ int64_t slice_begin(int64_t slice, int64_t slices, int64_t rows)
{
    return slice * rows / slices;
}

/* Up to three vectors that have slices' sums; NULL: none. */
struct sliced { float *out[3]; };

/* out[i] += the slices' sums [slices][n], one vector's after the other's: a warp every
 * SLICE_WARPS-th slice in order, then the warps in order. By blocks of (SLICE_COLUMNS,
 * SLICE_WARPS), a column a lane; a vector a row of the grid. Bytes: 4 slices n each. */
static __global__ void add_slices_kernel(sliced to, const float *sums, int64_t slices, int64_t n)
{
    float *out = blockIdx.y == 0 ? to.out[0] : blockIdx.y == 1 ? to.out[1] : to.out[2];
    if (!out) return;
    sums += blockIdx.y * slices * n;
    __shared__ float of_warp[SLICE_WARPS][SLICE_COLUMNS];
    int64_t i = (int64_t)blockIdx.x * SLICE_COLUMNS + threadIdx.x;
    float sum = 0;
#pragma unroll 8
    for (int64_t s = threadIdx.y; s < slices; s += SLICE_WARPS)
        if (i < n) sum += sums[s * n + i];
    of_warp[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || i >= n) return;
#pragma unroll
    for (int w = 1; w < SLICE_WARPS; w++) sum += of_warp[w][threadIdx.x];
    out[i] += sum;
}

static inline void add_slices(struct cuda_device *c, const char *what, const sliced &to, const float *sums,
                              int64_t slices, int64_t n)
{
    unsigned vectors = to.out[2] ? 3 : to.out[1] ? 2 : 1;
    cuda_launch(c, what, add_slices_kernel, dim3((unsigned)ceil_div(n, SLICE_COLUMNS), vectors),
                dim3(SLICE_COLUMNS, SLICE_WARPS), 0, to, sums, slices, n);
}
