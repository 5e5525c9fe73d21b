/* What the kernels of attention's backward pass share: their arguments, and where rows of qkv and
 * dqkv have a head. */
#pragma once

#include "cuda/attention.cuh"
#include "cuda/cuda_internal.h"

template <class T> struct backward_args {
    attention_shape a;
    void *dqkv;  /* of T, or f32 */
    bool rounds; /* dqkv is of T */
    const float *lse;
    const T *dout, *qkv, *out;
    float *delta; /* [R, H] */
    const span *spans;
    int32_t n_spans, rows;
};

/* Columns of a head of q, k (which = 0) or v (1) in a row of qkv. */
__device__ __forceinline__ int64_t query_at(const attention_shape &a, int64_t row, int32_t head)
{
    return row * a.qkv_cols + (int64_t)head * a.head_dim;
}

__device__ __forceinline__ int64_t key_at(const attention_shape &a, int64_t row, int32_t kv_head,
                                          int32_t which)
{
    return query_at(a, row, a.n_head + which * a.n_kv_head + kv_head);
}

/* cuda/attention_backward_mma.cu. False, and nothing is done: this GPU's tensor cores or shared
 * memory do not do for it. */
bool cuda_attention_backward_mma(struct cuda_device *c, const backward_args<bf16> &args);
bool cuda_attention_backward_mma(struct cuda_device *c, const backward_args<f16> &args);
