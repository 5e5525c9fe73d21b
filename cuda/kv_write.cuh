/* Norms and rotation of a head, and the way of a key and a value into their page: by the kernel of
 * prompts (cuda/kv_write.cu) and by attention of decoding rows, which does it for itself
 * (cuda/attention_mma.cu). The same bits: no multiplication is fused with an addition unless it
 * says so. */
#pragma once

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

static constexpr int HEAD_MAX = 128, HEAD_PARTS = HEAD_MAX / WARP;

struct kv_write_args {
    float *qkv;
    const int32_t *positions, *slots;
    const float *rope, *q_norm, *k_norm;
    float eps;
    int32_t n_head, n_kv_head, head_dim, n_rows;
    int64_t page_elements; /* of one layer */
};

static inline kv_write_args kv_write_args_of(struct tensor qkv, const struct batch *b, const struct attention *a,
                                             int64_t page_elements)
{
    return {.qkv = (float *)qkv.data, .positions = b->positions, .slots = b->slots, .rope = a->rope,
            .q_norm = a->q_norm, .k_norm = a->k_norm, .eps = a->qk_norm_eps, .n_head = a->n_head,
            .n_kv_head = a->n_kv_head, .head_dim = a->head_dim, .n_rows = b->n_rows,
            .page_elements = page_elements};
}

/* x[part] = element part * 32 + lane of the head. */
__device__ __forceinline__ void norm_head(float (&x)[HEAD_PARTS], const float *weight, int32_t n, float eps)
{
    int lane = threadIdx.x % WARP;
    float squares = 0;
#pragma unroll
    for (int p = 0; p < HEAD_PARTS; p++) squares = fmaf(x[p], x[p], squares); /* 0 past the head's end */
    float scale = rsqrtf(warp_sum(squares) / (float)n + eps);
#pragma unroll
    for (int p = 0; p < HEAD_PARTS; p++)
        if (p * WARP + lane < n) x[p] = __fmul_rn(x[p], __fmul_rn(scale, weight[p * WARP + lane]));
}

/* A warp's query or key of row r, from `from` to `to` [n], which may be one: normed with `weight`,
 * if there is one, and rotated, if there is a table. */
__device__ __forceinline__ void turn_head(float *to, const float *from, const kv_write_args &a,
                                          const float *weight, int64_t r)
{
    int lane = threadIdx.x % WARP, n = a.head_dim;
    float x[HEAD_PARTS];
#pragma unroll
    for (int p = 0; p < HEAD_PARTS; p++) x[p] = p * WARP + lane < n ? from[p * WARP + lane] : 0;
    if (weight) norm_head(x, weight, n, a.eps);
#pragma unroll
    for (int p = 0; p < HEAD_PARTS; p++)
        if (p * WARP + lane < n) to[p * WARP + lane] = x[p];
    __syncwarp();
    if (!a.rope) return;
    const float *table = a.rope + (int64_t)a.positions[r] * n;
    for (int i = lane; i < n / 2; i += WARP) {
        float c = table[2 * i], s = table[2 * i + 1], low = to[i], high = to[i + n / 2];
        to[i] = fmaf(low, c, -__fmul_rn(high, s));
        to[i + n / 2] = fmaf(high, c, __fmul_rn(low, s));
    }
    __syncwarp();
}

/* Where KV head g of row r's slot has its page in the layer's cache. */
template <class T>
__device__ __forceinline__ T *page_of_row(T *cache, const kv_write_args &a, int64_t r, int32_t g)
{
    return cache + a.slots[r] / KV_PAGE_TOKENS * a.page_elements + (int64_t)g * KV_PAGE_TOKENS * a.head_dim;
}

template <class T>
__device__ __forceinline__ void put_key(T *cache, const float *key, const kv_write_args &a, int64_t r,
                                        int32_t g)
{
    T *to = page_of_row(cache, a, r, g) + a.slots[r] % KV_PAGE_TOKENS * a.head_dim;
    for (int i = threadIdx.x % WARP; i < a.head_dim; i += WARP) to[i] = from_f32<T>(key[i]);
}

/* And zeros after it, where it is its page's last of this step. */
template <class T>
__device__ __forceinline__ void put_value(T *cache, const float *value, const kv_write_args &a, int64_t r,
                                          int32_t g)
{
    int32_t slot = a.slots[r], in_page = slot % KV_PAGE_TOKENS;
    T *to = page_of_row(cache, a, r, g) + a.page_elements / 2;
    bool last = r + 1 == a.n_rows || a.slots[r + 1] != slot + 1;
    for (int i = threadIdx.x % WARP; i < a.head_dim; i += WARP) {
        to[i * KV_PAGE_TOKENS + in_page] = from_f32<T>(value[i]);
        for (int j = in_page + 1; last && j < KV_PAGE_TOKENS; j++)
            to[i * KV_PAGE_TOKENS + j] = from_f32<T>(0);
    }
}
