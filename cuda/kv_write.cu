/* Norms and rotation of queries and keys, and the way of keys and values into their pages.
 *
 *   q, k      RMSNorm per head (Qwen3), then RoPE (Su et al. 2021), in place      qkv f32 [R, (H + 2G) K]
 *   page      keys [G, P, K], then values [G, K, P] of the cache's type
 *
 * Values lie with their tokens side by side: so a lane of attention's products loads four of them at once. Slots
 * of a page after a sequence's last token are cleared, since attention multiplies them by 0.
 *
 * Decoding rows of 16 bits have it done by attention itself (cuda/attention_mma.cu).
 *
 * Grid: rows x (H + 2G) heads, a warp each. Bytes: qkv read, q and k written, the cache's share written. CPU
 * twin: cpu_kv_write. */
#include "cuda/kv_write.cuh"

enum { HEADS_A_BLOCK = 4 };

template <class T> __global__ void kv_write_kernel(T *cache, kv_write_args a)
{
    int32_t head = blockIdx.y * HEADS_A_BLOCK + threadIdx.y;
    int32_t heads = a.n_head + 2 * a.n_kv_head;
    wait_for_previous();
    if (head >= heads) return;
    int64_t r = blockIdx.x;
    float *at = a.qkv + (r * heads + head) * a.head_dim;
    if (head >= a.n_head + a.n_kv_head) {
        put_value(cache, at, a, r, head - a.n_head - a.n_kv_head);
        return;
    }
    turn_head(at, at, a, head < a.n_head ? a.q_norm : a.k_norm, r);
    if (head >= a.n_head) put_key(cache, at, a, r, head - a.n_head);
}

void cuda_kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    int32_t heads = a->n_head + 2 * a->n_kv_head;
    int64_t page = cuda_kv_page_bytes(d, kv->dtype, kv->n_kv_head, kv->head_dim);
    ASSERT(qkv.dtype == DTYPE_F32 && qkv.rows == b->n_rows && qkv.cols == heads * a->head_dim);
    ASSERT(kv->n_kv_head == a->n_kv_head && kv->head_dim == a->head_dim);
    ASSERT(a->head_dim % 2 == 0 && a->head_dim <= HEAD_MAX);
    kv_write_args args = kv_write_args_of(qkv, b, a, page / dtype_bytes(kv->dtype, 1));
    uint8_t *at = (uint8_t *)kv->data + (int64_t)layer * kv->n_pages * page;
    dim3 grid((unsigned)b->n_rows, (unsigned)ceil_div(heads, HEADS_A_BLOCK));
    WITH_TYPE(kv->dtype, cuda_launch_early(cuda_of(d), "kv_write", kv_write_kernel<T>, grid,
                                           dim3(WARP, HEADS_A_BLOCK), 0, (T *)at, args));
}
