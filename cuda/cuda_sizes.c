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

/* What NVIDIA advises for cuBLASLt: 32 MiB on Hopper and later, 4 MiB before. */
int64_t cuda_blas_workspace(int32_t sm) { return (int64_t)(sm >= 90 ? 32 : 4) << 20; }

int64_t cuda_attention_workspace(const struct workspace_shape *s)
{
    int64_t rows = min_i64(s->max_rows, CUDA_SPLIT_ROWS);
    return rows * s->n_head * CUDA_ATTENTION_SPLITS * (s->head_dim + 2) * (int64_t)sizeof(float);
}

int64_t cuda_sample_workspace(const struct workspace_shape *s)
{
    int64_t slice = ceil_div(s->vocab_size, CUDA_SAMPLE_SLICES);
    int64_t kept = CUDA_SAMPLE_SLICES * min_i64(slice, CUDA_SAMPLE_KEEP);
    return s->max_logit_rows * kept * 2 * (int64_t)sizeof(float);
}

int64_t cuda_backward_workspace(const struct workspace_shape *s)
{
    int64_t qkv = (s->n_head + 2 * s->n_kv_head) * s->head_dim;
    int64_t widest = max_i64(max_i64(s->n_embd, 2 * s->n_ff), max_i64(qkv, s->vocab_size));
    int64_t slices = CUDA_ROW_SLICES * widest * 2 * (int64_t)sizeof(float);
    int64_t delta = s->max_rows * s->n_head * (int64_t)sizeof(float);
    int64_t tokens = (s->max_rows + s->vocab_size + 1) * 2 * (int64_t)sizeof(int32_t);
    return max_i64(slices, max_i64(delta, tokens));
}

static int64_t with_blas(int32_t sm, int64_t bytes)
{
    return cuda_blas_workspace(sm) + round_up(bytes, DEVICE_ALIGN);
}

static int64_t serving_workspace(int32_t sm, const struct workspace_shape *s)
{
    return with_blas(sm, max_i64(cuda_attention_workspace(s), cuda_sample_workspace(s)));
}

static int64_t training_workspace(int32_t sm, const struct workspace_shape *s)
{
    return max_i64(serving_workspace(sm, s), with_blas(sm, cuda_backward_workspace(s)));
}

/* Two classes of devices differ in their sizes: before Hopper, and since. */
static int64_t workspace_75(const struct device *d, const struct workspace_shape *s)
{
    return serving_workspace(75, s);
}

static int64_t workspace_90(const struct device *d, const struct workspace_shape *s)
{
    return serving_workspace(90, s);
}

static int64_t train_workspace_75(const struct device *d, const struct workspace_shape *s)
{
    return training_workspace(75, s);
}

static int64_t train_workspace_90(const struct device *d, const struct workspace_shape *s)
{
    return training_workspace(90, s);
}

static bool computes_in(const struct device *d, enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
}

static const struct device_ops ops_75 = {
    .computes_in = computes_in,
    .matrix_bytes = cuda_matrix_bytes,
    .kv_page_bytes = cuda_kv_page_bytes,
    .workspace_bytes = workspace_75,
};

static const struct device_ops ops_90 = {
    .computes_in = computes_in,
    .matrix_bytes = cuda_matrix_bytes,
    .kv_page_bytes = cuda_kv_page_bytes,
    .workspace_bytes = workspace_90,
};

static const struct device_train_ops train_75 = {
    .moment_bytes = cuda_moment_bytes,
    .workspace_bytes = train_workspace_75,
};

static const struct device_train_ops train_90 = {
    .moment_bytes = cuda_moment_bytes,
    .workspace_bytes = train_workspace_90,
};

const struct device *cuda_sizes(int32_t sm)
{
    static const struct device before_hopper = {.ops = &ops_75, .train = &train_75, .name = "cuda"};
    static const struct device hopper = {.ops = &ops_90, .train = &train_90, .name = "cuda"};
    return sm >= 90 ? &hopper : &before_hopper;
}
