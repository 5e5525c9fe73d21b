/* Cross-entropy over rows of logits, loss and gradient. The log-probability of the target comes out
 * of the very functions that sampling uses (cpu_logprob), so that training and serving report the
 * same bits. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

struct loss_job {
    const struct cpu_kernels *kernels;
    struct tensor dlogits, logits;
    const int32_t *targets;
    const struct loss_options *o;
    struct loss_row *rows;
    float *scratch; /* [threads][V] */
};

static void set_element(void *row, enum dtype dtype, int64_t i, float value)
{
    if (dtype == DTYPE_F32) ((float *)row)[i] = value;
    else ((uint16_t *)row)[i] = f32_to_bf16(value);
}

/* p[i] = exp(x[i] - max), sum theirs: gradient of the row is
 *   scale ((1 + 2 z log Z) p / sum - (1 - s) [i = target] - s / V). */
static void write_gradient(const struct loss_job *j, int64_t r, float *p, float sum, float log_z)
{
    const struct loss_options *o = j->o;
    int64_t V = j->logits.cols, target = j->targets[r];
    void *out = tensor_row(j->dlogits, r);
    float scale = *o->scale, factor = scale * (1 + 2 * o->z_loss * log_z) / sum;
    float smooth = o->label_smoothing, spread = scale * smooth / (float)V;
    float at_target = p[target] * factor - scale * (1 - smooth) - spread;
    if (smooth > 0) {
        for (int64_t i = 0; i < V; i++) p[i] = p[i] * factor - spread;
        factor = 1;
    }
    j->kernels->scale_row(out, j->dlogits.dtype, p, factor, V);
    set_element(out, j->dlogits.dtype, target, at_target);
}

static float mean_of(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return (float)(sum / (double)n);
}

static void ignore_row(const struct loss_job *j, int64_t r)
{
    j->rows[r] = (struct loss_row){0};
    if (j->dlogits.data)
        memset(tensor_row(j->dlogits, r), 0,
               (size_t)j->logits.cols * element_bytes(j->dlogits.dtype));
}

static void loss_of_row(const struct loss_job *j, int64_t r, float *p)
{
    const float *x = tensor_row(j->logits, r);
    int64_t V = j->logits.cols, target = j->targets[r];
    if (target < 0) {
        ignore_row(j, r);
        return;
    }
    ASSERT(target < V);
    /* The exponentials are wanted twice: for the sum, and for the gradient. */
    float sum, *kept = j->dlogits.data ? p : NULL;
    struct logsumexp z = cpu_logsumexp(j->kernels, x, V, kept, &sum);
    float logprob = cpu_logprob(z, x[target]), log_z = z.shift + z.log_sum;
    float smooth = j->o->label_smoothing;
    float loss = -(1 - smooth) * logprob + j->o->z_loss * log_z * log_z;
    if (smooth > 0) loss += smooth * (log_z - mean_of(x, V));
    j->rows[r] = (struct loss_row){.logprob = logprob, .loss = loss};
    if (kept) write_gradient(j, r, kept, sum, log_z);
}

static void loss_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct loss_job *j = ctx;
    float *p = j->scratch + thread * round_up(j->logits.cols, 64);
    for (int64_t r = begin; r < end; r++) loss_of_row(j, r, p);
}

int64_t cpu_loss_workspace(const struct cpu_device *c, int64_t vocab_size)
{
    return pool_n_threads(c->pool) * round_up(vocab_size, 64) * (int64_t)sizeof(float);
}

void cpu_cross_entropy(struct device *d, struct tensor dlogits, struct tensor logits,
                       const int32_t *targets, const struct loss_options *o,
                       struct loss_row *rows)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(logits.dtype == DTYPE_F32);
    ASSERT(!dlogits.data || (dlogits.rows == logits.rows && dlogits.cols == logits.cols));
    ASSERT(cpu_loss_workspace(c, logits.cols) <= c->workspace_bytes);
    struct loss_job job = {&c->kernels, dlogits, logits, targets, o, rows, (float *)c->workspace};
    pool_for(c->pool, logits.rows, 1, loss_rows, &job);
}
