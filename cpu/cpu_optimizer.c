/* AdamW over packed weights. Threads take blocks of 256 elements, each stepped by one kernel
 * (cpu/adamw_block.h) whatever format its parts have:
 *
 *   weight     f32 itself; or bf16 in the pair layout of a packed matrix
 *   master     an f32 copy; or the 16 bits by which the f32 value exceeds its bf16 weight (exact:
 *              the weight is the value rounded half up, so the difference fits an int16)
 *   gradient   f32; or bf16 in the pair layout
 *   moments    f32; bf16; or 8 bits: a block's largest |x| and codes of it. m: sign and 7 bits of
 *              (q / 127)^2; v: (q / 255)^4, never 0 for a v that is not, so that no step
 *              explodes */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

enum { BLOCK = ADAMW_BLOCK, BLOCKS_PER_TASK = 64 };

struct adamw_job {
    const struct cpu_kernels *kernels;
    struct adamw_block block; /* but for where it begins and its length */
};

/* Of a packed matrix of the type, padding and all; or of a vector. */
static int64_t n_elements_as(const struct device *d, const struct adamw_tensor *t, enum dtype dtype)
{
    if (!t->packed) return t->n_out * t->n_in;
    return cpu_matrix_bytes(d, dtype, t->n_out, t->n_in) / dtype_bytes(dtype, 1);
}

static int64_t n_elements(const struct device *d, const struct adamw_tensor *t)
{
    return n_elements_as(d, t, DTYPE_F32);
}

static void step_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct adamw_job *j = ctx;
    struct adamw_block block = j->block;
    for (int64_t b = begin; b < end; b++) {
        block.at = b * BLOCK;
        block.n = (int32_t)min_i64(BLOCK, block.n_elements - block.at);
        j->kernels->adamw_block(&block);
    }
}

static void step_tensor(struct device *d, const struct adamw_tensor *t, const struct adamw_step *s)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(s->step >= 1);
    ASSERT((t->dtype == DTYPE_F32 && t->grad_dtype == DTYPE_F32) || t->packed);
    double c1 = 1 - pow(s->beta1, (double)s->step), c2 = 1 - pow(s->beta2, (double)s->step);
    struct adamw_job job = {
        .kernels = &c->kernels,
        .block = {
            .t = t,
            .n_elements = n_elements(d, t),
            .step = (uint32_t)s->step,
            .constants = {
                .grad_scale = s->grad_scale, .beta1 = s->beta1, .beta2 = s->beta2, .eps = s->eps,
                .keep = 1 - s->lr * t->weight_decay,
                .rate = (float)(s->lr / c1),
                .v_correction = (float)(1 / sqrt(c2)),
            },
        },
    };
    int64_t n_blocks = ceil_div(job.block.n_elements, BLOCK);
    pool_for(c->pool, n_blocks, BLOCKS_PER_TASK, step_blocks, &job);
}

void cpu_adamw(struct device *d, const struct adamw_tensor *tensors, const bool *skip, int64_t n,
               const struct adamw_step *s)
{
    for (int64_t i = 0; i < n; i++)
        if (!skip[i]) step_tensor(d, &tensors[i], s);
}

struct master_job { const struct adamw_tensor *t; int64_t n; };

static void master_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct master_job *j = ctx;
    for (int64_t at = begin * BLOCK; at < min_i64(end * BLOCK, j->n); at += PANEL) {
        const uint16_t *row = packed_bf16_row(j->t->weight, j->t->n_in, at);
        float *master = (float *)j->t->master + at;
        for (int k = 0; k < PANEL; k++) master[k] = bf16_to_f32(row[2 * k]);
    }
}

void cpu_master_init(struct device *d, const struct adamw_tensor *t)
{
    struct master_job job = {t, n_elements(d, t)};
    if (t->master_format == MASTER_REMAINDER) memset(t->master, 0, (size_t)job.n * 2);
    if (t->master_format != MASTER_F32) return;
    pool_for(cpu_of(d)->pool, ceil_div(job.n, BLOCK), BLOCKS_PER_TASK, master_blocks, &job);
}

int64_t cpu_moment_bytes(const struct device *d, enum moment_format format, int64_t n)
{
    switch (format) {
    case MOMENT_F32: return n * 4;
    case MOMENT_BF16: return n * 2;
    case MOMENT_Q8: return round_up(n, BLOCK) + ceil_div(n, BLOCK) * (int64_t)sizeof(float);
    }
    ASSERT(!"moment_format");
    return 0;
}

/* ---- the norm ---- */

enum { SQUARES_TASK = 1 << 16, SQUARES_MAX_TASKS = 1 << 16 };

struct squares_job {
    const struct cpu_kernels *kernels;
    const void *x;
    enum dtype dtype;
    int64_t n, task;
    double *sums; /* of each task */
};

static void sum_tasks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct squares_job *j = ctx;
    for (int64_t i = begin; i < end; i++)
        j->sums[i] = j->kernels->sum_squares((const uint8_t *)j->x +
                                                 dtype_bytes(j->dtype, i * j->task),
                                             j->dtype, min_i64(j->task, j->n - i * j->task));
}

/* Parts of a size fixed by n, added in order. */
static double sum_squares(struct device *d, const void *x, enum dtype dtype, int64_t n)
{
    struct cpu_device *c = cpu_of(d);
    int64_t room = min_i64(SQUARES_MAX_TASKS, c->workspace_bytes / (int64_t)sizeof(double));
    ASSERT(room > 0);
    struct squares_job job = {&c->kernels, x, dtype, n, SQUARES_TASK, (double *)c->workspace};
    while (ceil_div(n, job.task) > room) job.task *= 2;
    int64_t n_tasks = ceil_div(n, job.task);
    pool_for(c->pool, n_tasks, 1, sum_tasks, &job);
    double sum = 0;
    for (int64_t i = 0; i < n_tasks; i++) sum += job.sums[i];
    return sum;
}

void cpu_grad_squares(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                      int64_t n, double *sum)
{
    *sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct adamw_tensor *t = &tensors[i];
        if (!skip[i])
            *sum += sum_squares(d, t->grad, t->grad_dtype, n_elements_as(d, t, t->grad_dtype));
    }
}
