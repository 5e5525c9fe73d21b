/* Steps of the trainer: see bench.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/trainer_internal.h"
#include "scripts/gpu/bench.h"

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct trainer *open_trainer(const struct bench *b, const char *path,
                                    struct gpt_config *model, const char *preset)
{
    struct trainer draft = {.device = b->d, .metrics = {.fd = -1}};
    struct train_config *c = &draft.options.config;
    struct error err;
    char name[128];
    bench_read_preset(b, path, model, c);
    c->dtype = DTYPE_BF16;
    c->grad_accum_steps = 1;
    c->max_iters = 1000000;
    train_config_resolve(c, model->block_size, model->vocab_size);
    draft.options.model = *model;
    int64_t before = bench_driver_free(b);
    struct trainer *t = trainer_allocate(&draft, &err);
    bench_must(t != NULL, &err);
    snprintf(name, sizeof name, "%s training, planned", preset);
    bench_report("memory", name, (double)trainer_memory(t).device_bytes * 1e-6, "MB",
                 "the driver says %.3f MB more is in use",
                 (double)(before - bench_driver_free(b)) * 1e-6);
    t->schedule = train_config_schedule(&t->options.config);
    t->state.loss_scale = loss_scale_begin(t->options.config.loss_scale, t->options.config.dtype);
    bench_fill_weights(&t->gpt, b->d, t->load_staging, 1);
    optimizer_start(&t->optimizer, b->d);
    return t;
}

void bench_train(const struct bench *b, const char *path, int32_t n_steps)
{
    enum { MAX_STEPS = 100, WARM_UP = 2 };
    struct gpt_config model;
    struct trainer_step step;
    struct error err;
    double seconds[MAX_STEPS], first = 0;
    int64_t cut = b->small ? 16 : 1;
    const char *preset = bench_preset_name(path);
    double ceiling = bench_product_rate(b, 8192 / cut / cut, 8192 / cut / cut, 8192 / cut / cut);
    struct trainer *t = open_trainer(b, path, &model, preset);
    if (n_steps > MAX_STEPS) n_steps = MAX_STEPS;
    b->d->ops->set_workspace(b->d, t->workspace, t->workspace_bytes);
    bench_random_begin(&model, t->options.config.sequence_length);
    for (int32_t i = -WARM_UP; i < n_steps; i++) {
        if (i == 0) bench_profiled_begin();
        bench_must(trainer_learn(t, &step, &err), &err);
        if (i == -WARM_UP) first = step.loss;
        if (i >= 0) seconds[i] = step.seconds;
    }
    bench_profiled_end();
    bench_random_end();
    qsort(seconds, (size_t)n_steps, sizeof *seconds, by_size);
    double median = seconds[n_steps / 2], rate = step.flops / median;
    const struct train_config *c = &t->options.config;
    char share[64] = "";
    if (b->peak > 0) snprintf(share, sizeof share, "MFU %.1f %%, ", 100 * rate / b->peak);
    bench_report("train", preset, (double)(c->batch_size * c->sequence_length) / median, "tok/s",
                 "B %lld T %lld, %.2f ms a step, %.1f TFLOP/s, %s%.1f %% of our product; loss %.3f "
                 "to %.3f",
                 (long long)c->batch_size, (long long)c->sequence_length, 1e3 * median,
                 rate * 1e-12, share, 100 * rate / ceiling, first, step.loss);
    trainer_release(t);
}
