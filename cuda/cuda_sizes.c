/* Bytes of things on a CUDA device: see cuda_sizes.h. */
#include "cuda/cuda_sizes.h"

#include "base/checked.h"

enum { ROW_ALIGN = 16 /* bytes: one vector load */, MOMENT_BLOCK = 256 };

/* Sizes here come from configs that were checked (model/config.h): products of two of them and a
 * small factor fit 63 bits, and the plan checks the sums. */

int64_t cuda_row_stride(enum dtype dtype, int64_t n_in)
{
    const struct dtype_info *info = dtype_info(dtype);
    if (info->block > 1) return round_up(n_in, info->block);
    return round_up(n_in, ROW_ALIGN / info->block_bytes);
}

int64_t cuda_matrix_bytes(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in)
{
    return n_out * dtype_bytes(dtype, cuda_row_stride(dtype, n_in));
}

int64_t cuda_kv_page_bytes(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                           int32_t head_dim)
{
    return 2 * dtype_bytes(dtype, (int64_t)n_kv_head * KV_PAGE_TOKENS * head_dim);
}

int64_t cuda_moment_bytes(const struct device *d, enum moment_format format, int64_t n)
{
    switch (format) {
    case MOMENT_F32: return n * 4;
    case MOMENT_BF16: return n * 2;
    case MOMENT_Q8:
        return round_up(n, MOMENT_BLOCK) + ceil_div(n, MOMENT_BLOCK) * (int64_t)sizeof(float);
    }
    ASSERT(!"moment_format");
    return 0;
}

int64_t cuda_attention_workspace(const struct workspace_shape *s)
{
    int64_t rows = min_i64(s->max_rows, CUDA_SPLIT_ROWS);
    return rows * s->n_head * CUDA_ATTENTION_SPLITS * (s->head_dim + 2) * (int64_t)sizeof(float);
}

int64_t cuda_backward_workspace(const struct workspace_shape *s)
{
    /* One slice of the widest row may be more than the slices' share; norms have up to three
     * sums. */
    int64_t widest = max_i64(max_i64(s->n_embd, 2 * s->n_ff), s->vocab_size);
    int64_t sums = 3 * max_i64(CUDA_SLICE_FLOATS, widest) * (int64_t)sizeof(float);
    int64_t delta = s->max_rows * s->n_head * (int64_t)sizeof(float);
    return max_i64(sums + DEVICE_ALIGN, delta);
}

static int64_t serving_workspace(const struct device *d, const struct workspace_shape *s)
{
    return round_up(max_i64(cuda_attention_workspace(s), CUDA_STAGING_BYTES), DEVICE_ALIGN);
}

int64_t cuda_blas_workspace(int32_t sm) { return (sm >= 90 ? 32 : 4) << 20; }

static int64_t training_workspace_of(const struct device *d, const struct workspace_shape *s, int32_t sm)
{
    int64_t bytes = max_i64(serving_workspace(d, s), cuda_backward_workspace(s));
    return round_up(max_i64(bytes, cuda_blas_workspace(sm)), DEVICE_ALIGN);
}

static int64_t training_workspace(const struct device *d, const struct workspace_shape *s)
{
    return training_workspace_of(d, s, 80);
}

static int64_t training_workspace_since_90(const struct device *d, const struct workspace_shape *s)
{
    return training_workspace_of(d, s, 90);
}

/* Before sm_80 there is no arithmetic in bf16. */
static bool computes_before_80(const struct device *d, enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16;
}

static bool computes_since_80(const struct device *d, enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

static bool keeps_kv_in(const struct device *d, enum dtype kv, enum dtype activations)
{
    return kv == activations;
}

static const struct device_ops ops_before_80 = {
    .computes_in = computes_before_80,
    .keeps_kv_in = keeps_kv_in,
    .matrix_bytes = cuda_matrix_bytes,
    .kv_page_bytes = cuda_kv_page_bytes,
    .workspace_bytes = serving_workspace,
};

static const struct device_ops ops_since_80 = {
    .computes_in = computes_since_80,
    .keeps_kv_in = keeps_kv_in,
    .matrix_bytes = cuda_matrix_bytes,
    .kv_page_bytes = cuda_kv_page_bytes,
    .workspace_bytes = serving_workspace,
};

static const struct device_train_ops train_ops = {
    .writes_act = true,
    .moment_bytes = cuda_moment_bytes,
    .workspace_bytes = training_workspace,
};

static const struct device_train_ops train_ops_since_90 = {
    .writes_act = true,
    .moment_bytes = cuda_moment_bytes,
    .workspace_bytes = training_workspace_since_90,
};

const struct device *cuda_sizes(int32_t sm)
{
    static const struct device before_80 = {.ops = &ops_before_80, .train = &train_ops,
                                            .name = "cuda"};
    static const struct device since_80 = {.ops = &ops_since_80, .train = &train_ops,
                                           .name = "cuda"};
    static const struct device since_90 = {.ops = &ops_since_80, .train = &train_ops_since_90,
                                           .name = "cuda"};
    return sm >= 90 ? &since_90 : sm >= 80 ? &since_80 : &before_80;
}
