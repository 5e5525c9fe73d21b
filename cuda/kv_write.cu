/* Norms and rotation of queries and keys, and the way of keys and values into their pages.
 *
 *   q, k      RMSNorm per head (Qwen3), then RoPE (Su et al. 2021), in place      qkv f32 [R, (H + 2G) K]
 *   page      keys [G, P, K], then values [G, K, P] of the cache's type
 *
 * Values lie with their tokens side by side: so a lane of attention's products loads four of them at once. Slots
 * of a page after a sequence's last token are cleared, since attention multiplies them by 0.
 *
 * Grid: rows x (H + 2G) heads, a warp each. Bytes: qkv read, q and k written, the cache's share written. CPU
 * twin: cpu_kv_write. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { HEADS_A_BLOCK = 4, HEAD_MAX = 128, PARTS = HEAD_MAX / WARP };

struct kv_write_args {
    float *qkv;
    const int32_t *positions, *slots;
    const float *rope, *q_norm, *k_norm;
    float eps;
    int32_t n_head, n_kv_head, head_dim, n_rows;
    int64_t page_elements; /* of one layer */
};

/* x[part] = element part * 32 + lane of the head. */
__device__ void norm_head(float (&x)[PARTS], const float *weight, int32_t n, float eps)
{
    int lane = threadIdx.x % WARP;
    float squares = 0;
#pragma unroll
    for (int p = 0; p < PARTS; p++) squares += x[p] * x[p]; /* 0 past the head's end */
    float scale = rsqrtf(warp_sum(squares) / (float)n + eps);
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        if (p * WARP + lane < n) x[p] *= scale * weight[p * WARP + lane];
}

template <class T> __global__ void kv_write_kernel(T *cache, kv_write_args a)
{
    int32_t head = blockIdx.y * HEADS_A_BLOCK + threadIdx.y, lane = threadIdx.x, n = a.head_dim;
    int32_t heads = a.n_head + 2 * a.n_kv_head;
    wait_for_previous();
    if (head >= heads) return;
    int64_t r = blockIdx.x;
    float *at = a.qkv + (r * heads + head) * n, x[PARTS];
    bool is_query = head < a.n_head, is_value = head >= a.n_head + a.n_kv_head;
#pragma unroll
    for (int p = 0; p < PARTS; p++) x[p] = p * WARP + lane < n ? at[p * WARP + lane] : 0;
    if (!is_value) {
        const float *weight = is_query ? a.q_norm : a.k_norm;
        if (weight) norm_head(x, weight, n, a.eps);
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p * WARP + lane < n) at[p * WARP + lane] = x[p];
        __syncwarp();
        if (a.rope) {
            const float *table = a.rope + (int64_t)a.positions[r] * n;
            for (int i = lane; i < n / 2; i += WARP) {
                float c = table[2 * i], s = table[2 * i + 1], low = at[i], high = at[i + n / 2];
                at[i] = low * c - high * s;
                at[i + n / 2] = high * c + low * s;
            }
            __syncwarp();
        }
    }
    if (is_query) return;
    int32_t slot = a.slots[r], g = head - a.n_head - (is_value ? a.n_kv_head : 0);
    int32_t in_page = slot % KV_PAGE_TOKENS;
    T *to = cache + slot / KV_PAGE_TOKENS * a.page_elements + (int64_t)g * KV_PAGE_TOKENS * n;
    if (!is_value) {
        for (int i = lane; i < n; i += WARP) to[in_page * n + i] = from_f32<T>(at[i]);
        return;
    }
    to += a.page_elements / 2;
    bool last = r + 1 == a.n_rows || a.slots[r + 1] != slot + 1; /* of this step in its page */
    for (int i = lane; i < n; i += WARP) {
        to[i * KV_PAGE_TOKENS + in_page] = from_f32<T>(at[i]);
        for (int j = in_page + 1; last && j < KV_PAGE_TOKENS; j++)
            to[i * KV_PAGE_TOKENS + j] = from_f32<T>(0);
    }
}

void cuda_kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    int32_t heads = a->n_head + 2 * a->n_kv_head;
    int64_t page = cuda_kv_page_bytes(d, kv->dtype, kv->n_kv_head, kv->head_dim);
    ASSERT(qkv.dtype == DTYPE_F32 && qkv.rows == b->n_rows && qkv.cols == heads * a->head_dim);
    ASSERT(kv->n_kv_head == a->n_kv_head && kv->head_dim == a->head_dim);
    ASSERT(a->head_dim % 2 == 0 && a->head_dim <= HEAD_MAX);
    kv_write_args args = {
        .qkv = (float *)qkv.data, .positions = b->positions, .slots = b->slots, .rope = a->rope,
        .q_norm = a->q_norm, .k_norm = a->k_norm, .eps = a->qk_norm_eps, .n_head = a->n_head,
        .n_kv_head = a->n_kv_head, .head_dim = a->head_dim, .n_rows = b->n_rows,
        .page_elements = page / dtype_bytes(kv->dtype, 1),
    };
    uint8_t *at = (uint8_t *)kv->data + (int64_t)layer * kv->n_pages * page;
    dim3 grid((unsigned)b->n_rows, (unsigned)ceil_div(heads, HEADS_A_BLOCK));
    WITH_TYPE(kv->dtype, cuda_launch_early(cuda_of(d), "kv_write", kv_write_kernel<T>, grid,
                                           dim3(WARP, HEADS_A_BLOCK), 0, (T *)at, args));
}
