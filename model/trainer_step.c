/* One step of training: gradients of its micro-batches, their norm, the update. All of it is a
 * function of (config, data, step). */
#include <math.h>
#include <stdio.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/sampler.h"
#include "model/trainer_internal.h"

static int64_t sequences_per_step(const struct trainer *t)
{
    return t->options.config.batch_size * t->options.config.grad_accum_steps;
}

static bool bad_sequence(int64_t why, int64_t index, struct error *err)
{
    if (why == DATASET_BAD_TOKEN)
        return error_set(err, ERR_FORMAT, NULL, "training sequence %lld holds a token id that the "
                         "vocabulary lacks: the token shard is damaged", (long long)index);
    return error_set(err, ERR_INTERNAL, NULL, "training sequence %lld does not fit into its rows",
                     (long long)index);
}

/* Fills the host's rows of its turn with micro-batch i of the step (1, 2, ...). Returns its
 * targets, or -1. */
static int64_t fill_rows(struct trainer *t, int64_t step, int64_t i, struct error *err)
{
    const struct train_config *c = &t->options.config;
    int64_t per_step = sequences_per_step(t), begin = i * c->micro_batch_size;
    int64_t end = min_i64(begin + c->micro_batch_size, per_step), targets = 0;
    struct gpt_rows *rows = &t->host_rows[i % t->n_staged];
    gpt_rows_clear(rows);
    for (int64_t k = begin; k < end; k++) {
        int64_t index = (step - 1) * per_step + k;
        int64_t n = dataset_add(t->options.data, SPLIT_TRAIN, index, rows, &t->train.options);
        if (n < 0) {
            (void)bad_sequence(n, index, err);
            return -1;
        }
        targets += n;
    }
    return targets;
}

/* Targets of the whole step: the gradient is of their mean loss. */
static int64_t count_targets(struct trainer *t, int64_t step, struct error *err)
{
    int64_t targets = 0;
    for (int64_t i = 0; i < t->n_micro_batches; i++) {
        int64_t n = fill_rows(t, step, i, err);
        if (n < 0) return -1;
        targets += n;
    }
    return targets;
}

/* Of dropout and of rounding gradients: Philox at (step, micro-batch) under the seed; its counter's
 * last words keep this stream apart from others of the same seed. */
static uint64_t random_key(uint64_t seed, int64_t step, int64_t micro)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)step, (uint32_t)(step >> 32), (uint32_t)micro, 0x64726F70};
    uint32_t words[4];
    philox4x32(counter, key, words);
    return (uint64_t)words[1] << 32 | words[0];
}

/* Has the losses of a micro-batch brought to the host's rows i; they are there after the next
 * wait. */
static void bring_losses(struct trainer *t, int64_t i, int64_t n_rows)
{
    t->device->ops->download(t->device, t->losses[i], t->train.losses,
                             (size_t)n_rows * sizeof *t->losses[i]);
}

static void add_losses(const struct trainer *t, int64_t i, int64_t n_rows, struct loss_sum *sum)
{
    for (int64_t r = 0; r < n_rows; r++) {
        sum->loss += t->losses[i][r].loss;
        sum->nll -= t->losses[i][r].logprob;
    }
}

bool trainer_sum_losses(struct trainer *t, int64_t n_rows, struct loss_sum *sum, struct error *err)
{
    bring_losses(t, 0, n_rows);
    if (!t->device->ops->sync(t->device, err)) return false;
    add_losses(t, 0, n_rows, sum);
    return true;
}

/* Waits for the device, for the losses of the n micro-batches that it was given since the last
 * wait; what they lay in is the host's again. */
static bool collect(struct trainer *t, int64_t n, struct loss_sum *sum, struct error *err)
{
    if (!t->device->ops->sync(t->device, err)) return false;
    for (int64_t i = 0; i < n; i++) add_losses(t, i, t->host_rows[i].n_rows, sum);
    return true;
}

/* Gradients of the mean loss over the step's targets, and their norm; *rows: the tokens computed.
 * One wait for the device, if the host can hold all micro-batches: while one is computed, it gives
 * the next. */
static bool accumulate(struct trainer *t, int64_t step, int64_t targets, struct trainer_step *out,
                       int64_t *rows, struct error *err)
{
    struct loss_sum sum = {0};
    int64_t n = t->n_micro_batches, staged = t->n_staged;
    double scale = loss_scale_factor(&t->state.loss_scale);
    gpt_train_zero_grads(&t->train, t->device);
    for (int64_t i = 0; i < n; i++) {
        struct gpt_rows *host = &t->host_rows[i % staged];
        if (i > 0 && i % staged == 0 && !collect(t, staged, &sum, err)) return false;
        if (n > staged && fill_rows(t, step, i, err) < 0) return false; /* else they are there */
        *host->scalars = (struct gpt_micro_scalars){
            .random_key = random_key((uint64_t)t->options.config.seed, step, i),
            .grad_scale = (float)(scale / (double)targets),
        };
        struct gpt_micro_batch m = gpt_rows_upload(host, &t->device_rows, t->device);
        trainer_micro_step(t, &m);
        bring_losses(t, i % staged, host->n_rows);
        *rows += host->n_rows;
    }
    optimizer_sum_squares(&t->optimizer, t->device, t->squares);
    if (!collect(t, (n - 1) % staged + 1, &sum, err)) return false;
    out->grad_norm = optimizer_grad_norm(*t->squares, 1 / scale);
    out->loss = sum.loss / (double)targets;
    return true;
}

/* The checkpoint that a failed run goes back to, for its message. */
static bool bad_step(const struct trainer *t, int64_t step, const char *what, double value,
                     struct error *err)
{
    char last[80] = "there is no checkpoint yet";
    if (t->saved_step >= 0)
        snprintf(last, sizeof last, "the last good checkpoint is checkpoints/step-%lld",
                 (long long)t->saved_step);
    return error_set(err, ERR_INVALID, NULL, "step %lld: %s is %g, and training stops before it "
                     "harms the weights; %s in %s; a lower learning_rate, a longer warm-up or a "
                     "lower grad_clip may help", (long long)step, what, value, last,
                     t->options.dir);
}

/* May the weights be updated? With a loss scale, gradients that are not finite make the step one to
 * be skipped. */
static bool check_step(struct trainer *t, struct trainer_step *s, struct error *err)
{
    struct loss_scale *scale = &t->state.loss_scale;
    bool finite = isfinite(s->grad_norm);
    if (!isfinite(s->loss)) return bad_step(t, s->step, "the loss", s->loss, err);
    if (!finite && scale->scale == 0)
        return bad_step(t, s->step, "the gradients' norm", s->grad_norm, err);
    s->skipped = !finite;
    if (scale->scale > 0 && !loss_scale_update(scale, finite, err)) return false;
    s->n_skipped = scale->skipped;
    if (spike_watch_push(&t->state.spikes, s->loss, t->options.config.spike_patience))
        return bad_step(t, s->step, "the loss, far above the usual for too many steps,", s->loss,
                        err);
    return true;
}

/* From gradients to weights. The optimizer's own count of steps leaves out those that were skipped.
 * Nobody waits for the update: the next step's work goes behind it. */
static bool update(struct trainer *t, struct trainer_step *s, struct error *err)
{
    double unscale = 1 / loss_scale_factor(&t->state.loss_scale);
    if (!check_step(t, s, err)) return false;
    if (s->skipped) return true;
    optimizer_step(&t->optimizer, t->device, (float)s->lr, s->step - s->n_skipped, unscale,
                   s->grad_norm);
    return true;
}

/* Of the products that a token's forward and backward pass are made of (Chowdhery et al. 2022,
 * appendix B), with attention over half of the sequence on average. */
static double flops_per_token(const struct trainer *t)
{
    const struct gpt_config *c = &t->gpt.config;
    double lookups = c->pos_encoding == POS_LEARNED ? (double)(c->block_size * c->n_embd) : 0;
    if (!c->tie_weights) lookups += (double)(c->vocab_size * c->n_embd);
    double attention = 12.0 * (double)(c->n_layer * c->n_head * c->head_dim)
                       * (double)t->options.config.sequence_length / 2;
    return 6.0 * ((double)gpt_config_parameters(c) - lookups) + attention;
}

bool trainer_warm_up(struct trainer *t, struct error *err)
{
    int64_t last = t->n_micro_batches - 1;
    if (!t->device->ops->graph_begin) return true;
    for (int64_t i = 0; i <= last; i += last > 0 ? last : 1) {
        struct gpt_rows *host = &t->host_rows[i % t->n_staged];
        if (fill_rows(t, t->state.step + 1, i, err) < 0) return false;
        *host->scalars = (struct gpt_micro_scalars){0}; /* gradients of nothing */
        struct gpt_micro_batch m = gpt_rows_upload(host, &t->device_rows, t->device);
        trainer_micro_step(t, &m);
        if (!t->device->ops->sync(t->device, err)) return false;
    }
    return true;
}

bool trainer_learn(struct trainer *t, struct trainer_step *out, struct error *err)
{
    int64_t step = t->state.step + 1, begin = clock_ns(), rows = 0;
    int64_t targets = count_targets(t, step, err);
    if (targets < 0) return false;
    *out = (struct trainer_step){.step = step, .lr = schedule_lr(&t->schedule, step),
                                 .loss_scale = t->state.loss_scale.scale,
                                 .n_skipped = t->state.loss_scale.skipped};
    if (targets > 0) { /* else there is nothing to learn: prompts alone */
        if (!accumulate(t, step, targets, out, &rows, err)) return false;
        if (!update(t, out, err)) return false;
    }
    t->state.step = step;
    out->seconds = (double)(clock_ns() - begin) / 1e9;
    out->tokens_per_s = (double)rows / out->seconds;
    out->flops = (double)rows * flops_per_token(t);
    double rate = out->flops / out->seconds, *peak = &t->options.peak_flops;
    if (*peak > 0) {
        *peak = fmax(*peak, rate); /* others may have slowed its measurement */
        out->mfu = rate / *peak;
    }
    return true;
}
