/* LayerNorm and RMSNorm of a row, for who has a block of threads for it (cuda/norm.cu) and who has
 * a warp (products of few rows, cuda/matmul.cu): the same bits.
 *
 * One tree of sums, fixed by the row's length n. A row is pieces of 128 elements, four a lane,
 * which are added in pairs; piece i belongs to share i % 8, which adds its pieces upwards; a lane
 * adds its eight shares in order, then the warp its lanes. A block has a warp a share; a warp has
 * all shares, and all their loads under way. */
#pragma once

#include "cuda/gpu.cuh"
#include "model/device.h"

static constexpr int NORM_SHARES = 8, NORM_PIECE = 4 * WARP;

/* weight NULL: no norm. */
struct norm_args {
    const float *weight, *bias;
    float eps;
    bool rms;
};

static inline norm_args norm_args_of(const struct norm *n) { return {n->weight, n->bias, n->eps, n->rms}; }

struct row_stats { float mean, scale; };

/* Elements i .. i + 3 of [n]: rows begin at multiples of 16 bytes where n is a multiple of 4. Zeros
 * past the end. */
__device__ __forceinline__ packed<float, 4> load_piece(const float *row, int32_t i, int32_t n)
{
    packed<float, 4> x = {};
    if (n % 4 == 0) {
        if (i < n) x = load_packed<float, 4>(row + i);
        return x;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (i + e < n) x.at[e] = row[i + e];
    return x;
}

/* Of x - mean, or of its squares, where there is a row. No multiplication is fused with an
 * addition: which ones would be is the compiler's choice, here and there another. */
template <bool SQUARES>
__device__ __forceinline__ float piece_sum(const packed<float, 4> &x, float mean, int32_t i, int32_t n)
{
    float y[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float from_mean = x.at[e] - mean;
        y[e] = i + e >= n ? 0 : SQUARES ? __fmul_rn(from_mean, from_mean) : from_mean;
    }
    return (y[0] + y[1]) + (y[2] + y[3]);
}

/* The sum over a row by a warp; every lane gets it. */
template <bool SQUARES>
__device__ __forceinline__ float warp_row_sum(const float *row, int32_t n, float mean)
{
    float shares[NORM_SHARES] = {}, total = 0;
#pragma unroll 1
    for (int32_t i0 = threadIdx.x % WARP * 4; i0 < n; i0 += NORM_SHARES * NORM_PIECE) {
        packed<float, 4> x[NORM_SHARES];
#pragma unroll
        for (int s = 0; s < NORM_SHARES; s++) x[s] = load_piece(row, i0 + s * NORM_PIECE, n);
#pragma unroll
        for (int s = 0; s < NORM_SHARES; s++)
            shares[s] += piece_sum<SQUARES>(x[s], mean, i0 + s * NORM_PIECE, n);
    }
#pragma unroll
    for (int s = 0; s < NORM_SHARES; s++) total += shares[s];
    return warp_sum(total);
}

/* The same by a block of NORM_SHARES warps. room [NORM_SHARES][WARP]: shared memory that nobody
 * else uses. */
template <bool SQUARES>
__device__ __forceinline__ float block_row_sum(const float *row, int32_t n, float mean,
                                               float (*room)[WARP])
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float share = 0, total = 0;
    for (int32_t i = warp * NORM_PIECE + lane * 4; i < n; i += NORM_SHARES * NORM_PIECE)
        share += piece_sum<SQUARES>(load_piece(row, i, n), mean, i, n);
    __syncthreads(); /* an earlier call's readers are done */
    room[warp][lane] = share;
    __syncthreads();
#pragma unroll
    for (int s = 0; s < NORM_SHARES; s++) total += room[s][lane];
    return warp_sum(total);
}

__device__ __forceinline__ float norm_scale(float squares, int32_t n, float eps)
{
    return rsqrtf(squares / (float)n + eps);
}

__device__ __forceinline__ row_stats warp_row_stats(const norm_args &a, const float *row, int32_t n)
{
    float mean = a.rms ? 0 : warp_row_sum<false>(row, n, 0) / (float)n;
    return {mean, norm_scale(warp_row_sum<true>(row, n, mean), n, a.eps)};
}

__device__ __forceinline__ row_stats block_row_stats(const norm_args &a, const float *row, int32_t n,
                                                     float (*room)[WARP])
{
    float mean = a.rms ? 0 : block_row_sum<false>(row, n, 0, room) / (float)n;
    return {mean, norm_scale(block_row_sum<true>(row, n, mean, room), n, a.eps)};
}

/* to[i .. i + 3] = the row's normed. */
template <class T>
__device__ __forceinline__ void norm_piece(T *to, const norm_args &a, const row_stats &s, const float *row,
                                           int32_t i, int32_t n)
{
    packed<float, 4> x = load_piece(row, i, n), weight = load_piece(a.weight, i, n), bias = {};
    if (a.bias) bias = load_piece(a.bias, i, n);
    packed<T, 4> y;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float normed = __fmul_rn(__fmul_rn(x.at[e] - s.mean, s.scale), weight.at[e]);
        y.at[e] = from_f32<T>(a.bias ? __fadd_rn(normed, bias.at[e]) : normed);
    }
    if (n % 4 == 0) {
        if (i < n) store_packed(to + i, y);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (i + e < n) to[i + e] = y.at[e];
}
