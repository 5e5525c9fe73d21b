/* Sums over rows without atomics: slices of rows, fixed by the number of rows alone, are summed in order;
 * then the slices are, in order. */
#pragma once

#include "cuda/cuda_sizes.h"
#include "cuda/gpu.cuh"

enum { SLICE_ROWS_MIN = 32 };

/* How many slices rows of `cols` are cut into: at most CUDA_ROW_SLICES, and so that all sums are at most
 * CUDA_SLICE_FLOATS (or one slice). */
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

/* out[i] += the slices' sums [slices][n], in order. */
static __global__ void add_slices_kernel(float *out, const float *sums, int64_t slices, int64_t n)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int64_t s = 0; s < slices; s++) sum += sums[s * n + i];
    out[i] += sum;
}
