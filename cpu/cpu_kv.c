/* The KV cache's pages: their layout (drawn in kernels.h) and how a row's key and value get there.
 *
 * Keys lie transposed, so that the 16 keys of a page are 16 lanes and a score needs no sum across
 * lanes. In bf16, keys are paired along the head's dimensions and values along the
 * positions; in q8_0 they come in fours. */
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_internal.h"

enum { P = KV_PAGE_TOKENS };

/* Of one KV head in a page. */
static int64_t head_bytes(enum dtype dtype, int64_t head_dim)
{
    int64_t elements = P * head_dim + P * round_up(head_dim, 16);
    if (dtype != DTYPE_Q8_0) return elements * (int64_t)element_bytes(dtype);
    return elements + P * (ceil_div(head_dim, KV_Q8_BLOCK) + 1) * (int64_t)sizeof(float);
}

int64_t cpu_kv_page_bytes(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                          int32_t head_dim)
{
    return n_kv_head * head_bytes(dtype, head_dim);
}

const uint8_t *cpu_kv_head(const struct kv_cache *kv, int32_t layer, int32_t page, int32_t head)
{
    int64_t index = ((int64_t)layer * kv->n_pages + page) * kv->n_kv_head + head;
    return (const uint8_t *)kv->data + index * head_bytes(kv->dtype, kv->head_dim);
}

static void store_f32(float *head, int64_t i, int64_t n, const float *k, const float *v)
{
    float *values = head + P * n + i * round_up(n, 16);
    for (int64_t j = 0; j < n; j++) head[j * P + i] = k[j];
    memcpy(values, v, (size_t)n * 4);
}

static void store_bf16(const struct cpu_kernels *kernels, uint16_t *head, int64_t i, int64_t n,
                       const float *k, const float *v)
{
    uint32_t *keys = (uint32_t *)head + i;
    /* By halves of words: the position beside may be another thread's. */
    uint16_t *values = head + P * n + i / 2 * round_up(n, 16) * 2 + i % 2;
    uint16_t row[MAX_HEAD_DIM];
    kernels->to_bf16(row, k, n);
    for (int64_t j = 0; j < n; j += 2) keys[j / 2 * P] = row[j] | (uint32_t)row[j + 1] << 16;
    kernels->to_bf16(row, v, n);
    for (int64_t j = 0; j < n; j++) values[j * 2] = row[j];
}

static void store_q8(const struct cpu_kernels *kernels, uint8_t *head, int64_t i, int64_t n,
                     const float *k, const float *v)
{
    int8_t *keys = (int8_t *)head, *values = keys + P * n + i / 4 * round_up(n, 16) * 4;
    float *key_scales = (float *)kv_q8_key_scales(head, n) + i;
    int16_t row[MAX_HEAD_DIM];
    for (int64_t j = 0; j < n; j += KV_Q8_BLOCK)
        kernels->quantize_kv(row + j, &key_scales[j / KV_Q8_BLOCK * P], k + j,
                             min_i64(KV_Q8_BLOCK, n - j), KV_Q8_MOST);
    for (int64_t j = 0; j < n; j++) keys[(j / 4 * P + i) * 4 + kv_q8_place(j)] = (int8_t)row[j];
    kernels->quantize_kv(row, (float *)kv_q8_value_scales(head, n) + i, v, n, KV_Q8_MOST);
    for (int64_t j = 0; j < n; j++) values[j * 4 + kv_q8_place(i)] = (int8_t)row[j];
}

/* Norm and rotation of one head, in place. */
static void turn_head(const struct kv_write *job, float *x, const float *weight, int64_t row)
{
    const struct attention *a = job->attention;
    if (weight) {
        struct norm norm = {.weight = weight, .eps = a->qk_norm_eps, .rms = true};
        job->kernels->norm_row(x, DTYPE_F32, x, a->head_dim, &norm);
    }
    if (a->rope) {
        const float *cos_sin = a->rope + (int64_t)job->batch->positions[row] * a->head_dim;
        job->kernels->rotate(x, cos_sin, a->head_dim / 2);
    }
}

void cpu_kv_write_head(const struct kv_write *job, int64_t r, int32_t g)
{
    const struct attention *a = job->attention;
    const struct kv_cache *kv = job->kv;
    int64_t n = a->head_dim, group = a->n_head / a->n_kv_head;
    float *q = tensor_row(job->qkv, r), *k = q + (a->n_head + g) * n, *v = k + a->n_kv_head * n;
    int32_t slot = job->batch->slots[r];
    ASSERT(slot >= 0 && slot / P < kv->n_pages);
    for (int64_t h = g * group; h < (g + 1) * group; h++) turn_head(job, q + h * n, a->q_norm, r);
    turn_head(job, k, a->k_norm, r);
    uint8_t *head = (uint8_t *)cpu_kv_head(kv, job->layer, slot / P, g);
    if (kv->dtype == DTYPE_F32) store_f32((float *)head, slot % P, n, k, v);
    else if (kv->dtype == DTYPE_Q8_0) store_q8(job->kernels, head, slot % P, n, k, v);
    else store_bf16(job->kernels, (uint16_t *)head, slot % P, n, k, v);
}

/* A key has a part in every line of its page's keys; a value is a row, which in 16 and 8 bits it
 * shares with those beside it: of 4 bytes a dimension in any type. */
void cpu_kv_call_for(const struct kv_write *job, int64_t r, int32_t g)
{
    const struct kv_cache *kv = job->kv;
    int32_t slot = job->batch->slots[r];
    int64_t bytes = kv->dtype == DTYPE_Q8_0 ? 1 : (int64_t)element_bytes(kv->dtype);
    int64_t keys = P * kv->head_dim * bytes, row = round_up(kv->head_dim, 16) * 4;
    const uint8_t *head = cpu_kv_head(kv, job->layer, slot / P, g);
    const uint8_t *value = head + keys + slot % P * bytes / 4 * row;
    for (int64_t at = 0; at < keys; at += 64) __builtin_prefetch(head + at, 1, 2);
    for (int64_t at = 0; at < row; at += 64) __builtin_prefetch(value + at, 1, 2);
}

static void write_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct kv_write *job = ctx;
    for (int64_t r = begin; r < end; r++)
        for (int32_t g = 0; g < job->attention->n_kv_head; g++) cpu_kv_write_head(job, r, g);
}

void cpu_kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                  const struct attention *a, const struct kv_cache *kv, int32_t layer)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(qkv.dtype == DTYPE_F32 && qkv.rows == b->n_rows);
    ASSERT(qkv.cols == (int64_t)(a->n_head + 2 * a->n_kv_head) * a->head_dim);
    ASSERT(kv->n_kv_head == a->n_kv_head && kv->head_dim == a->head_dim);
    ASSERT(a->head_dim % 4 == 0 && a->head_dim <= MAX_HEAD_DIM);
    struct kv_write job = {&c->kernels, qkv, b, a, kv, layer};
    pool_for(c->pool, b->n_rows, cpu_row_grain(qkv.cols * 4), write_rows, &job);
}
