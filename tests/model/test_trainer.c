/* The run: it learns; all that it does is a function of config, data and step, so that a run
 * that was cut off goes on to the same bytes; memory is what was planned, and steps allocate
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/checkpoint_write.h"
#include "tests/model/count_allocs.h"
#include "tests/model/train_fixture.h"

enum { TEXT_BYTES = 4000 };

/* volatile: compilers know malloc, and think that it looks at no variable. */
static volatile int n_allocations;
static volatile bool watching;

static void note_allocation(void)
{
    if (watching) n_allocations++;
}

static struct train_fixture f;

static int set_up(void **state)
{
    train_fixture_open(&f, TEXT_BYTES);
    return 0;
}

static int tear_down(void **state)
{
    train_fixture_close(&f);
    return 0;
}

/* A copy of the rows of every weight, as text of bytes: for comparing runs. */
static float *weights(int64_t *n)
{
    const struct gpt *g = trainer_gpt(f.trainer);
    *n = g->config.vocab_size * g->config.n_embd + 3 * g->config.n_embd * g->config.n_embd;
    float *all = calloc((size_t)*n, sizeof *all);
    f.device->train->matrix_read(f.device, &g->wte, 0, g->config.vocab_size, all);
    f.device->train->matrix_read(f.device, &g->layers[1].qkv, 0, 3 * g->config.n_embd,
                                 all + g->config.vocab_size * g->config.n_embd);
    return all;
}

static void test_loss_falls(void **state)
{
    f.options.config.max_iters = 150;
    train_fixture_begin(&f);
    assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
    double first = train_fixture_metric(&f, 0, "loss");
    double last = train_fixture_metric(&f, 149, "loss");
    double uniform = log((double)f.options.model.vocab_size);
    assert_true(fabs(first - uniform) < 0.2); /* it knows nothing yet */
    assert_true(last < 1.6);
    assert_true(train_fixture_metric(&f, 149, "step") == 150);
    assert_true(isnan(train_fixture_metric(&f, 150, "step")));
    assert_true(train_fixture_metric(&f, 2, "lr") == 3e-3); /* warm-up: 2 % of 150 steps */
    assert_true(train_fixture_metric(&f, 3, "grad_norm") > 0);
}

static void test_planned_is_allocated(void **state)
{
    struct memory_plan planned;
    struct error err;
    int64_t sum = 0;
    assert_true(trainer_plan(&f.options, f.device, NULL, NULL, &planned, &err));
    train_fixture_begin(&f);
    struct memory_plan m = trainer_memory(f.trainer);
    assert_memory_equal(&m, &planned, sizeof m);
    const int64_t *taken = m.component, total = m.total_bytes;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) sum += taken[i];
    assert_true(taken[MEMORY_WEIGHTS] > 0 && taken[MEMORY_GRADIENTS] > 0);
    assert_true(taken[MEMORY_OPTIMIZER] > 0 && taken[MEMORY_ACTIVATIONS] > 0);
    assert_true(taken[MEMORY_KV_CACHE] > 0 && taken[MEMORY_WORKSPACE] > 0);
    assert_true(taken[MEMORY_STAGING] > 0 && taken[MEMORY_HOST] > 0);
    assert_true(taken[MEMORY_DATA] > 0);
    assert_int_equal(sum, total);
    train_fixture_steps(&f, 1);
    assert_true(train_fixture_metric(&f, 0, "memory_bytes") == (double)total);
}

static void test_over_the_budget(void **state)
{
    struct memory_plan planned;
    struct error err;
    assert_true(trainer_plan(&f.options, f.device, NULL, NULL, &planned, &err));
    f.options.memory_budget = planned.total_bytes - 1;
    assert_false(trainer_open(f.device, &f.options, NULL, &f.trainer, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
    assert_non_null(strstr(err.text, "1 over the memory budget"));
    f.options.memory_budget = planned.total_bytes;
    train_fixture_begin(&f);
}

static const struct device_ops *real_ops;

static void *counted_alloc(struct device *d, size_t bytes, struct error *err)
{
    note_allocation();
    return real_ops->alloc(d, bytes, err);
}

/* On the host or on the device. */
static void test_steps_allocate_nothing(void **state)
{
    if (!COUNTS) skip();
    struct device_ops ops = *(real_ops = f.device->ops);
    ops.alloc = counted_alloc;
    f.device->ops = &ops;
    f.options.config.dropout = 0.1;
    f.options.config.grad_accum_steps = 2;
    train_fixture_begin(&f);
    train_fixture_steps(&f, 1);
    n_allocations = 0;
    watching = true;
    train_fixture_steps(&f, 10);
    watching = false;
    assert_int_equal(n_allocations, 0);
    struct error err;
    watching = true;
    void *volatile probe = malloc(1);
    void *page = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    watching = false;
    assert_int_equal(n_allocations, 2); /* it does count */
    free(probe);
    munmap(page, 1);
    watching = true;
    void *arena = ops.alloc(f.device, 4096, &err);
    watching = false;
    assert_true(n_allocations >= 4); /* the device's, and the mapping that it makes */
    f.device->ops = real_ops;
    real_ops->free(f.device, arena, 4096);
}

/* ---- the same bytes ---- */

/* Runs to the end in run `whole`, and in run `cut` with a break after each of the given steps,
 * where all but what is on disk is lost. */
static void check_resume(const int64_t *breaks, int64_t n)
{
    train_fixture_use_run(&f, "whole");
    train_fixture_begin(&f);
    assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
    train_fixture_end(&f);
    train_fixture_use_run(&f, "cut");
    train_fixture_begin(&f);
    for (int64_t i = 0; i < n; i++) {
        train_fixture_steps(&f, breaks[i] - trainer_step_number(f.trainer));
        train_fixture_end(&f);
        train_fixture_resume(&f);
        assert_true(trainer_step_number(f.trainer) < breaks[i]);
    }
    assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
    train_fixture_same(&f, "whole/model.safetensors", "cut/model.safetensors");
    train_fixture_same(&f, "whole/config.json", "cut/config.json");
    train_fixture_same(&f, "whole/checkpoints/step-20/optimizer.safetensors",
                       "cut/checkpoints/step-20/optimizer.safetensors");
    train_fixture_same(&f, "whole/checkpoints/step-20/trainer_state.json",
                       "cut/checkpoints/step-20/trainer_state.json");
    train_fixture_same(&f, "whole/samples.txt", "cut/samples.txt");
    train_fixture_same(&f, "whole/train_config.json", "cut/train_config.json");
}

static void each_way(struct train_config *c)
{
    c->save_interval = 3;
    c->eval_interval = 4;
    c->sample_tokens = 5;
    c->dropout = 0.2;
    c->grad_accum_steps = 2;
    c->micro_batch_size = 3;
    train_fixture_open_data(&f);
}

static void test_resume_f32(void **state)
{
    static const int64_t breaks[] = {5, 7, 14};
    each_way(&f.options.config);
    check_resume(breaks, 3);
}

static void test_resume_bf16_with_small_state(void **state)
{
    static const int64_t breaks[] = {5, 14};
    f.options.config.dtype = DTYPE_BF16;
    f.options.config.moments = MOMENT_Q8;
    f.options.config.master = MASTER_REMAINDER;
    f.options.config.gradients = DTYPE_BF16;
    each_way(&f.options.config);
    check_resume(breaks, 2);
}

static void test_resume_bf16_with_masters(void **state)
{
    static const int64_t breaks[] = {8};
    f.options.config.dtype = DTYPE_BF16;
    f.options.config.moments = MOMENT_BF16;
    f.options.config.master = MASTER_F32;
    f.options.config.freeze_layers = 1;
    each_way(&f.options.config);
    f.options.n_sets = 0; /* no best: the sample of step 8 is not in a checkpoint */
    check_resume(breaks, 1);
}

/* The weights of the same run without a scale, byte for byte. */
static void test_a_power_of_two_changes_no_bit(void **state)
{
    static const double scales[] = {0, 1024};
    for (int dtype = 0; dtype < 2; dtype++) {
        char names[2][32];
        for (int i = 0; i < 2; i++) {
            snprintf(names[i], sizeof names[i], "scaled-%d-%d", dtype, i);
            f.options.config.dtype = dtype ? DTYPE_BF16 : DTYPE_F32;
            f.options.config.gradients = f.options.config.dtype;
            f.options.config.loss_scale = scales[i];
            train_fixture_use_run(&f, names[i]);
            train_fixture_begin(&f);
            assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
            train_fixture_end(&f);
            bool shown = train_fixture_metric(&f, 19, "loss_scale") == 1024;
            assert_int_equal(shown, i);
        }
        char a[64], b[64];
        snprintf(a, sizeof a, "%s/model.safetensors", names[0]);
        snprintf(b, sizeof b, "%s/model.safetensors", names[1]);
        train_fixture_same(&f, a, b);
    }
}

/* A scale at which gradients overflow: steps are skipped until it fits, and change nothing; what is
 * left of it is in the checkpoint. */
static void test_overflow_skips_steps(void **state)
{
    static const int64_t breaks[] = {5};
    const double scale = 0x1p120;
    int64_t n;
    f.options.config.loss_scale = scale;
    train_fixture_begin(&f);
    float *before = weights(&n);
    train_fixture_steps(&f, 1);
    float *after = weights(&n);
    assert_memory_equal(before, after, (size_t)n * sizeof *before);
    free(after);
    assert_true(isnan(train_fixture_metric(&f, 0, "grad_norm")) ||
                train_fixture_metric(&f, 0, "grad_norm") == 0); /* null */
    assert_true(train_fixture_metric(&f, 0, "skipped_steps") == 1);
    train_fixture_steps(&f, 1);
    assert_true(fabs(train_fixture_metric(&f, 1, "loss_scale") / scale - 0.5) < 1e-8);
    assert_true(train_fixture_metric(&f, 1, "skipped_steps") == 2);
    train_fixture_end(&f);
    free(before);

    f.options.config.loss_scale = 0x1p75; /* some are skipped, most are not */
    each_way(&f.options.config);
    check_resume(breaks, 1); /* amid those that are skipped */
    double skipped = train_fixture_metric(&f, 19, "skipped_steps");
    if (!(skipped > 3 && skipped < 17)) fail_msg("%g steps were skipped", skipped);
    double last = train_fixture_metric(&f, 19, "loss_scale") / 0x1p75;
    assert_true(fabs(last * exp2(skipped) - 1) < 1e-8);
    assert_true(train_fixture_metric(&f, 19, "loss") < train_fixture_metric(&f, 0, "loss"));
}

static void test_f16_is_for_other_devices(void **state)
{
    struct error err;
    f.options.config.dtype = DTYPE_F16;
    assert_false(trainer_open(f.device, &f.options, NULL, &f.trainer, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_string_equal(err.param, "dtype");
    assert_non_null(strstr(err.text, "cpu does not compute in f16: CUDA devices do"));
    f.trainer = NULL;
}

/* Metrics of steps that were lost are taken back; each step has one line. */
static void test_metrics_after_a_resume(void **state)
{
    f.options.config.save_interval = 3;
    train_fixture_begin(&f);
    train_fixture_steps(&f, 5);
    double fifth = train_fixture_metric(&f, 4, "loss");
    train_fixture_end(&f);
    char path[200];
    snprintf(path, sizeof path, "%s/metrics.jsonl", f.run);
    FILE *torn = fopen(path, "a");
    fputs("{\"step\":6,\"loss\":", torn); /* a line that was being written */
    fclose(torn);
    train_fixture_resume(&f);
    assert_true(isnan(train_fixture_metric(&f, 3, "step")));
    train_fixture_run(&f);
    for (int i = 0; i < 20; i++) assert_true(train_fixture_metric(&f, i, "step") == i + 1);
    assert_true(train_fixture_metric(&f, 4, "loss") == fifth);
}

/* Recomputing and the number of rows whose logits exist at a time save memory and change no bit. */
static void test_ways_to_save_memory_change_nothing(void **state)
{
    float *expected = NULL;
    int64_t n, bytes[4];
    f.options.config.dropout = 0.1;
    for (int way = 0; way < 3; way++) {
        char name[16];
        snprintf(name, sizeof name, "way-%d", way);
        train_fixture_use_run(&f, name);
        f.options.config.recompute = (enum recompute)way;
        train_fixture_begin(&f);
        bytes[way] = trainer_memory(f.trainer).total_bytes;
        train_fixture_steps(&f, 5);
        float *w = weights(&n);
        if (expected) assert_memory_equal(w, expected, (size_t)n * sizeof *w);
        else expected = w;
        if (w != expected) free(w);
        train_fixture_end(&f);
    }
    assert_true(bytes[1] < bytes[0] && bytes[2] < bytes[1]);
    free(expected);
}

/* So many batches are one large one, but for the order of sums. */
static void test_gradient_accumulation(void **state)
{
    /* In more micro-batches than the host holds at a time, too. */
    static const struct { const char *run; int64_t batch, steps, micro; } ways[] = {
        {"at-once", 20, 1, 20}, {"accumulated", 4, 5, 3}, {"one-by-one", 10, 2, 1},
    };
    enum { N_WAYS = sizeof ways / sizeof *ways };
    float *w[N_WAYS];
    int64_t n;
    for (int way = 0; way < N_WAYS; way++) {
        train_fixture_use_run(&f, ways[way].run);
        f.options.config.batch_size = ways[way].batch;
        f.options.config.grad_accum_steps = ways[way].steps;
        f.options.config.micro_batch_size = ways[way].micro;
        f.options.config.loss_rows = 0;
        train_fixture_open_data(&f);
        train_fixture_begin(&f);
        train_fixture_steps(&f, 3);
        w[way] = weights(&n);
        train_fixture_end(&f);
    }
    for (int way = 1; way < N_WAYS; way++) {
        double difference = 0, size = 0;
        for (int64_t i = 0; i < n; i++) {
            difference += pow((double)w[0][i] - (double)w[way][i], 2);
            size += pow((double)w[0][i], 2);
        }
        assert_true(size > 0 && sqrt(difference / size) < 1e-4);
    }
    for (int way = 0; way < N_WAYS; way++) free(w[way]);
}

/* ---- what must not be resumed ---- */

static void refuse_resume(const char *param, const char *why)
{
    struct error err = {0};
    char path[RUN_PATH_MAX];
    struct trainer *t = NULL;
    assert_true(train_state_path(f.run, train_state_newest(f.run), path, &err));
    assert_false(trainer_open(f.device, &f.options, path, &t, &err));
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_string_equal(err.param, param);
}

static void test_another_config_or_other_data_are_refused(void **state)
{
    f.options.config.save_interval = 5;
    train_fixture_begin(&f);
    train_fixture_steps(&f, 5);
    train_fixture_end(&f);
    struct trainer_options good = f.options;
    f.options.config.learning_rate /= 2;
    refuse_resume("learning_rate", "learning_rate is 0.0015, and is 0.003 in");
    f.options = good;
    f.options.config.seed++;
    refuse_resume("seed", "would not give the run that was begun");
    f.options = good;
    f.options.model.n_ff += 16;
    refuse_resume("n_ff", "n_ff is another");
    f.options = good;
    FILE *text = fopen(f.text_path, "a");
    fputs("the dog.\n", text);
    fclose(text);
    train_fixture_open_data(&f);
    refuse_resume("input", "not those of");
}

/* What is only about when to look and what to keep may change. */
static void test_intervals_may_change(void **state)
{
    f.options.config.save_interval = 5;
    train_fixture_begin(&f);
    train_fixture_steps(&f, 5);
    train_fixture_end(&f);
    f.options.config.save_interval = 4;
    f.options.config.eval_interval = 3;
    f.options.config.recompute = RECOMPUTE_BLOCK;
    train_fixture_resume(&f);
    assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
}

/* ---- stopping ---- */

static void test_stop_leaves_a_checkpoint(void **state)
{
    train_fixture_begin(&f);
    train_fixture_steps(&f, 2);
    trainer_stop(f.trainer);
    assert_int_equal(train_fixture_run(&f), TRAINER_STOPPED);
    train_fixture_end(&f);
    assert_int_equal(train_state_newest(f.run), 2);
    assert_true(train_fixture_has(&f, "run/model.safetensors"));
    train_fixture_resume(&f);
    assert_int_equal(train_fixture_run(&f), TRAINER_DONE);
}

static void test_diverging_stops_before_the_weights_are_harmed(void **state)
{
    struct error err = {0};
    enum trainer_end end;
    f.options.config.learning_rate = 10;
    f.options.config.grad_clip = 0;
    f.options.config.warmup_iters = 0;
    f.options.config.weight_decay = 10;
    f.options.config.max_iters = 3000;
    f.options.config.lr_schedule = LR_CONSTANT;
    f.options.config.save_interval = 2;
    train_fixture_begin(&f);
    assert_false(trainer_run(f.trainer, &end, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "training stops"));
    int64_t step = train_state_newest(f.run);
    char last[64], path[RUN_PATH_MAX];
    snprintf(last, sizeof last, "checkpoints/step-%lld", (long long)step);
    assert_true(step >= 0);
    if (!strstr(err.text, last)) fail_msg("expected %s in %s", last, err.text);
    assert_true(train_state_path(f.run, step, path, &err));
    assert_true(checkpoint_verify(path, &err));
}

static void test_early_stop_leaves_the_best(void **state)
{
    struct trainer_options *o = &f.options;
    o->config.eval_interval = 1;
    o->config.early_stop_patience = 3;
    o->config.learning_rate = 0.5; /* too much: soon the loss rises */
    o->config.min_lr = 0;
    o->config.warmup_iters = 10;
    o->config.max_iters = 1000;
    o->config.spike_patience = 0;
    train_fixture_begin(&f);
    assert_int_equal(train_fixture_run(&f), TRAINER_EARLY);
    int64_t step = trainer_step_number(f.trainer), best = 0;
    assert_true(step < 1000);
    for (int64_t i = 1; i < step; i++)
        if (train_fixture_metric(&f, i, "val_loss") < train_fixture_metric(&f, best, "val_loss"))
            best = i;
    assert_int_equal(step, best + 1 + 3);
    char path[100];
    snprintf(path, sizeof path, "run/checkpoints/step-%lld/model.safetensors",
             (long long)best + 1);
    train_fixture_same(&f, path, "run/model.safetensors");
    train_fixture_same(&f, path, "run/checkpoints/best/model.safetensors");
    train_fixture_end(&f);
    train_fixture_resume(&f); /* it stays ended */
    assert_int_equal(train_fixture_run(&f), TRAINER_EARLY);
    assert_int_equal(trainer_step_number(f.trainer), step);
    train_fixture_same(&f, path, "run/model.safetensors");
}

static void test_checkpoints_that_are_kept(void **state)
{
    f.options.config.save_interval = 2;
    f.options.config.keep_checkpoints = 3;
    train_fixture_begin(&f);
    train_fixture_run(&f);
    for (int step = 1; step <= 20; step++) {
        char path[64];
        snprintf(path, sizeof path, "run/checkpoints/step-%d", step);
        assert_int_equal(train_fixture_has(&f, path), step >= 16 && step % 2 == 0);
    }
}

/* ---- evaluation ---- */

static int64_t n_evaluated;
static double seen_loss[2];

static void see(void *ctx, const struct trainer_evaluation *e)
{
    assert_int_equal(e->n_sets, 2);
    for (int i = 0; i < 2; i++) seen_loss[i] = e->loss[i];
    assert_true(e->sample && strlen(e->sample) > 10);
    n_evaluated++;
}

static void test_several_sets_and_a_sample(void **state)
{
    f.options.sets[1] = (struct trainer_set){"the \"training\" text", f.data, SPLIT_TRAIN};
    f.options.n_sets = 2;
    f.options.config.eval_interval = 8;
    f.options.config.sample_tokens = 8;
    f.options.listener.evaluated = see;
    n_evaluated = 0;
    train_fixture_begin(&f);
    train_fixture_run(&f);
    assert_int_equal(n_evaluated, 3); /* after 8, 16 and the last, 20 */
    assert_true(fabs(train_fixture_metric(&f, 19, "val_loss") - seen_loss[0]) < 1e-6);
    assert_true(fabs(train_fixture_metric(&f, 19, "the _training_ text") - seen_loss[1]) < 1e-6);
    assert_true(isnan(train_fixture_metric(&f, 18, "val_loss")));
    size_t n;
    char *samples = train_fixture_read(&f, "run/samples.txt", &n);
    assert_non_null(strstr(samples, "---- step 16, loss "));
    free(samples);
}

static int64_t n_stepped;

static void see_share(void *ctx, const struct trainer_step *s)
{
    assert_true(s->mfu > 0 && s->mfu <= 1);
    n_stepped++;
}

/* A peak that was measured on a busy machine gives way to what steps do. */
static void test_no_step_is_faster_than_the_device(void **state)
{
    f.options.peak_flops = 1;
    f.options.listener.stepped = see_share;
    n_stepped = 0;
    train_fixture_begin(&f);
    train_fixture_run(&f);
    assert_int_equal(n_stepped, 20);
}

/* Looking changes nothing. */
static void test_evaluating_does_not_disturb(void **state)
{
    f.options.config.dropout = 0.1;
    train_fixture_use_run(&f, "blind");
    train_fixture_begin(&f);
    train_fixture_run(&f);
    train_fixture_end(&f);
    train_fixture_use_run(&f, "seeing");
    f.options.config.eval_interval = 3;
    f.options.config.sample_tokens = 8;
    train_fixture_begin(&f);
    train_fixture_run(&f);
    train_fixture_same(&f, "blind/model.safetensors", "seeing/model.safetensors");
}

/* ---- beginning with a model ---- */

static void test_init_from(void **state)
{
    train_fixture_begin(&f);
    train_fixture_run(&f);
    double last = train_fixture_metric(&f, 19, "loss");
    train_fixture_end(&f);
    char from[128];
    snprintf(from, sizeof from, "%s/run", f.dir);
    train_fixture_use_run(&f, "tuned");
    f.options.init_from = from;
    f.options.config.freeze_layers = 2;
    f.options.config.freeze_embeddings = true;
    train_fixture_begin(&f);
    int64_t n;
    float *before = weights(&n);
    train_fixture_steps(&f, 3);
    float *after = weights(&n);
    assert_memory_equal(before, after, (size_t)n * sizeof *before); /* both are frozen */
    assert_true(train_fixture_metric(&f, 0, "loss") < last + 0.3);
    free(before);
    free(after);
}

static void test_init_from_another_shape_is_refused(void **state)
{
    struct error err;
    train_fixture_begin(&f);
    train_fixture_run(&f);
    train_fixture_end(&f);
    char from[128];
    snprintf(from, sizeof from, "%s/run", f.dir);
    f.options.init_from = from;
    f.options.model.n_ff += 32;
    assert_false(trainer_open(f.device, &f.options, NULL, &f.trainer, &err));
    assert_non_null(strstr(err.text, "mlp_up is 128 x 32; the config asks for 160 x 32"));
    f.options.model.n_ff -= 32;
    f.options.model.n_layer = 3;
    assert_false(trainer_open(f.device, &f.options, NULL, &f.trainer, &err));
    assert_non_null(strstr(err.text, "has 2 layers; the config says 3"));
    f.options.model.n_layer = 2;
    f.options.model.tie_weights = false;
    assert_false(trainer_open(f.device, &f.options, NULL, &f.trainer, &err));
    assert_non_null(strstr(err.text, "has no lm_head"));
    f.trainer = NULL;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_loss_falls),
        TEST(test_planned_is_allocated),
        TEST(test_over_the_budget),
        TEST(test_steps_allocate_nothing),
        TEST(test_resume_f32),
        TEST(test_resume_bf16_with_small_state),
        TEST(test_resume_bf16_with_masters),
        TEST(test_a_power_of_two_changes_no_bit),
        TEST(test_overflow_skips_steps),
        TEST(test_f16_is_for_other_devices),
        TEST(test_metrics_after_a_resume),
        TEST(test_ways_to_save_memory_change_nothing),
        TEST(test_gradient_accumulation),
        TEST(test_another_config_or_other_data_are_refused),
        TEST(test_intervals_may_change),
        TEST(test_stop_leaves_a_checkpoint),
        TEST(test_diverging_stops_before_the_weights_are_harmed),
        TEST(test_early_stop_leaves_the_best),
        TEST(test_checkpoints_that_are_kept),
        TEST(test_several_sets_and_a_sample),
        TEST(test_no_step_is_faster_than_the_device),
        TEST(test_evaluating_does_not_disturb),
        TEST(test_init_from),
        TEST(test_init_from_another_shape_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
