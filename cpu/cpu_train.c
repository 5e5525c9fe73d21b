/* The table of training's operations on the CPU, and the small ones. */
#include "cpu/cpu_train.h"

#include <string.h>

#include "base/checked.h"

struct zero_job { uint8_t *p; int64_t bytes; };
enum { ZERO_BLOCK = 1 << 20 };

static void zero_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct zero_job *j = ctx;
    int64_t from = begin * ZERO_BLOCK, to = min_i64(end * ZERO_BLOCK, j->bytes);
    memset(j->p + from, 0, (size_t)(to - from));
}

static void cpu_zero(struct device *d, void *p, int64_t bytes)
{
    struct zero_job job = {p, bytes};
    pool_for(cpu_of(d)->pool, ceil_div(bytes, ZERO_BLOCK), 1, zero_blocks, &job);
}

struct normal_job {
    const struct cpu_kernels *kernels;
    float *out;
    int64_t n, first;
    const uint32_t *key;
    float std;
};
enum { NORMAL_PIECE = 4096 }; /* 25 us */

static void normal_pieces(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct normal_job *j = ctx;
    int64_t from = begin * NORMAL_PIECE, to = min_i64(end * NORMAL_PIECE, j->n);
    j->kernels->normal_fill(j->out + from, to - from, j->key, j->first + from, j->std);
}

static void cpu_normal(struct device *d, float *out, int64_t n, const uint32_t key[2],
                       int64_t first, float std)
{
    struct cpu_device *c = cpu_of(d);
    struct normal_job job = {&c->kernels, out, n, first, key, std};
    pool_for(c->pool, ceil_div(n, NORMAL_PIECE), 1, normal_pieces, &job);
}

/* Rows: every operation's widest; dlogits and logits have no more rows than a micro-batch. */
static int64_t train_workspace_bytes(const struct device *d, const struct workspace_shape *s)
{
    const struct cpu_device *c = cpu_of_const(d);
    int64_t bytes = d->ops->workspace_bytes(d, s);
    bytes = max_i64(bytes, cpu_matmul_backward_workspace(c, s));
    bytes = max_i64(bytes, cpu_attention_backward_workspace(c, s));
    bytes = max_i64(bytes, cpu_loss_workspace(c, s->vocab_size));
    bytes = max_i64(bytes, s->max_rows * 2 * (int64_t)sizeof(float)); /* norm's statistics */
    return round_up(bytes, DEVICE_ALIGN);
}

const struct device_train_ops cpu_train_ops = {
    .matrix_read = cpu_matrix_read,
    .zero = cpu_zero,
    .normal = cpu_normal,
    .dropout = cpu_dropout,
    .add_dropout = cpu_add_dropout,
    .gelu = cpu_gelu,
    .matmul_backward_x = cpu_matmul_backward_x,
    .matmul_backward_w = cpu_matmul_backward_w,
    .norm_backward = cpu_norm_backward,
    .gelu_backward = cpu_gelu_backward,
    .swiglu_backward = cpu_swiglu_backward,
    .attention_backward = cpu_attention_backward,
    .rope_backward = cpu_rope_backward,
    .embed_backward = cpu_embed_backward,
    .cross_entropy = cpu_cross_entropy,
    .grad_squares = cpu_grad_squares,
    .master_init = cpu_master_init,
    .moment_bytes = cpu_moment_bytes,
    .adamw = cpu_adamw,
    .workspace_bytes = train_workspace_bytes,
};
