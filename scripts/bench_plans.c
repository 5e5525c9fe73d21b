/* How near train_cost comes to real steps: a preset's steps under one plan after another, beside
 * the estimate of each. Times are the process's CPU time on one thread, which holds on a busy
 * machine. Prints a table; not a test. Build (after make) and run:
 *
 *     cc -std=c17 -D_GNU_SOURCE -O2 -pthread -I. -o build/bench_plans scripts/bench_plans.c \
 *         build/gptd.a -lcjson -lpcre2-8 -lunistring -lcrypto -lm
 *     build/bench_plans configs/small.json bf16 8 [steps]      8: sequences of a batch
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/checked.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include "model/train_search.h"
#include "model/trainer_internal.h"

enum { CHARACTERS = 65, CONFIG_LIMIT = 1 << 20 };

/* A plan by what it changes of the first. */
struct variant {
    const char *name;
    int64_t micro_batch, loss_rows; /* 0: the first's */
    enum recompute recompute;
    enum moment_format moments;
    enum dtype gradients;
};

static const struct variant variants[] = {
    {.name = "whole batch, nothing saved"},
    {.name = "micro-batch 1", .micro_batch = 1},
    {.name = "64 rows of logits", .loss_rows = 64},
    {.name = "recompute selective", .recompute = RECOMPUTE_SELECTIVE},
    {.name = "recompute block", .recompute = RECOMPUTE_BLOCK},
    {.name = "gradients bf16", .gradients = DTYPE_BF16},
    {.name = "moments bf16", .moments = MOMENT_BF16},
    {.name = "moments q8", .moments = MOMENT_Q8},
};

static void must(bool ok, const struct error *err)
{
    if (ok) return;
    fprintf(stderr, "bench_plans: %s\n", err->text);
    exit(1);
}

static double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Any tokens will do, as long as they differ. */
static void fill(struct trainer *t, int64_t sequence)
{
    int64_t T = t->options.config.sequence_length, V = t->options.model.vocab_size;
    int32_t tokens[T + 1];
    for (int64_t i = 0; i <= T; i++) tokens[i] = (int32_t)((sequence * 7919 + i * 104729) % V);
    bool room = gpt_rows_add(t->host_rows, &t->train.options, tokens, tokens + 1, (int32_t)T);
    ASSERT(room);
}

static void step(struct trainer *t, int64_t number)
{
    const struct train_config *c = &t->options.config;
    gpt_train_zero_grads(&t->train, t->device);
    for (int64_t i = 0; i < c->batch_size; i += c->micro_batch_size) {
        gpt_rows_clear(t->host_rows);
        for (int64_t k = i; k < min_i64(i + c->micro_batch_size, c->batch_size); k++) fill(t, k);
        t->host_rows->scalars->grad_scale = 1e-4f;
        struct gpt_micro_batch m = gpt_rows_upload(t->host_rows, &t->device_rows, t->device);
        gpt_train_micro_step(&t->train, t->device, &m);
    }
    struct error err;
    optimizer_sum_squares(&t->optimizer, t->device, t->squares);
    must(t->device->ops->sync(t->device, &err), &err);
    optimizer_step(&t->optimizer, t->device, 1e-4f, number, 1, optimizer_grad_norm(*t->squares, 1));
}

/* Seconds of the fastest of `steps` steps; *plan is what was allocated. */
static double run(const struct trainer_options *o, struct device *d, int64_t steps,
                  struct memory_plan *plan)
{
    struct trainer draft = {.options = *o, .device = d, .metrics = {.fd = -1}};
    struct error err;
    double best = 1e30;
    struct trainer *t = trainer_allocate(&draft, &err);
    must(t != NULL, &err);
    must(gpt_init(&t->gpt, d, 1, t->load_staging, &err), &err);
    optimizer_start(&t->optimizer, d);
    for (int64_t i = 1; i <= steps; i++) {
        double begin = cpu_seconds();
        step(t, i);
        double seconds = cpu_seconds() - begin;
        if (seconds < best) best = seconds;
    }
    *plan = trainer_memory(t);
    trainer_release(t);
    return best;
}

static struct trainer_options read_options(const char *path, const char *dtype, int64_t batch)
{
    struct trainer_options o = {0};
    struct error err;
    struct buf text;
    buf_init(&text, CONFIG_LIMIT);
    train_config_init(&o.config);
    must(file_read(path, &text, &err), &err);
    must(gpt_config_from_preset(text.data, text.len, path, &o.model, &err), &err);
    must(train_config_from_json(text.data, text.len, path, &o.config, &err), &err);
    buf_free(&text);
    if (o.model.vocab_size == 0) o.model.vocab_size = CHARACTERS;
    o.config.dtype = strcmp(dtype, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32;
    o.config.batch_size = o.config.micro_batch_size = batch;
    o.config.grad_accum_steps = 1;
    o.config.loss_rows = 512;
    train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
    return o;
}

static void change(struct train_config *c, const struct variant *v)
{
    if (v->micro_batch) c->micro_batch_size = v->micro_batch;
    if (v->loss_rows) c->loss_rows = v->loss_rows;
    c->loss_rows = min_i64(c->loss_rows, c->micro_batch_size * c->sequence_length);
    c->recompute = v->recompute;
    c->moments = v->moments;
    c->gradients = v->gradients;
}

/* The best of several measurements: something else may be at work. */
static struct device_rates measure(struct device *d, enum dtype dtype)
{
    struct device_rates best = {.flops = 0}, r;
    struct error err;
    for (int i = 0; i < 10; i++) {
        must(device_rates_measure(d, dtype, &r, &err), &err);
        if (r.flops > best.flops) best.flops = r.flops;
        if (r.bytes > best.bytes) best.bytes = r.bytes;
    }
    return best;
}

int main(int argc, char **argv)
{
    struct cpu_options one_thread = {.n_threads = 1, .isa = CPU_ISA_BEST};
    struct device *d;
    struct error err;
    if (argc < 4) {
        fprintf(stderr, "usage: bench_plans CONFIG f32|bf16 SEQUENCES [STEPS]\n");
        return 2;
    }
    struct trainer_options first = read_options(argv[1], argv[2], atoll(argv[3]));
    must(cpu_device_open(&one_thread, &d, &err), &err);
    struct device_rates rates = measure(d, first.config.dtype);
    double real0 = 0, estimate0 = 0;
    printf("%s, %s, batch %s; %.0f GFLOP/s, %.0f GB/s\n", argv[1], argv[2], argv[3],
           rates.flops / 1e9, rates.bytes / 1e9);
    printf("| plan | MB | seconds | estimate | of the first | estimate |\n"
           "|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        struct trainer_options o = first;
        change(&o.config, &variants[i]);
        struct train_choice choice = {.config = o.config};
        double real = run(&o, d, argc > 4 ? atoll(argv[4]) : 3, &choice.memory);
        train_cost(&o, d, &rates, &choice);
        if (i == 0) real0 = real, estimate0 = choice.seconds;
        printf("| %s | %.0f | %.3f | %.3f | %.3f | %.3f |\n", variants[i].name,
               (double)choice.memory.total_bytes / 1e6, real, choice.seconds, real / real0,
               choice.seconds / estimate0);
        fflush(stdout);
    }
    d->ops->close(d);
    return 0;
}
