/* `gptd train`: from text to a model that serves. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "cuda/cuda.h"
#include "server/process.h"
#include "server/signals.h"
#include "server/train_fit.h"
#include "server/train_progress.h"
#include "server/train_setup.h"

struct training {
    struct train_options options;
    struct train_setup setup;
    struct device *device;
    struct trainer *trainer; /* guarded by mutex: the signal thread stops it */
    pthread_mutex_t mutex;
    struct train_progress progress;
    int64_t baseline_bytes; /* resident before anything was opened */
};

/* The first signal ends the run after its step; one before the first step, and a second one, the
 * process. */
static void on_signal(void *ctx, int number, int count)
{
    struct training *t = ctx;
    pthread_mutex_lock(&t->mutex);
    if (count > 1 || !t->trainer) _Exit(128 + number);
    trainer_stop(t->trainer);
    pthread_mutex_unlock(&t->mutex);
    log_info("finishing the step, then a checkpoint; a second signal does not wait");
}

static void trainer_options_from(const struct training *t, struct trainer_options *o)
{
    const struct train_setup *s = &t->setup;
    *o = (struct trainer_options){
        .config = t->options.training,
        .model = s->model,
        .data = s->data,
        .n_sets = s->n_sets,
        .tokenizer = s->tokenizer,
        .tokenizer_dir = *s->tokenizer_path ? s->tokenizer_path : NULL,
        .dir = s->dir,
        .init_from = t->options.init_from,
        .listener = {train_progress_stepped, train_progress_evaluated, train_progress_saved,
                     (void *)&t->progress},
    };
    for (int32_t i = 0; i < s->n_sets; i++) o->sets[i] = s->sets[i];
}

/* What the config leaves open becomes the fastest that fits. */
static bool fit(const struct training *t, struct trainer_options *o, struct error *err)
{
    int64_t budget = t->options.memory_budget;
    struct train_fit f = {
        .freedom = t->setup.freedom,
        .budget = budget > 0 ? budget : device_budget_default(&t->options.device),
        .budget_given = budget > 0,
        .explain = t->options.explain,
    };
    if (!train_fit(&f, t->device, o, err)) return false;
    o->memory_budget = f.budget;
    o->peak_flops = f.rates.flops;
    return true;
}

static bool open_trainer(struct training *t, struct error *err)
{
    struct trainer_options o;
    struct trainer *trainer;
    const char *from = *t->setup.resume_from ? t->setup.resume_from : NULL;
    trainer_options_from(t, &o);
    if (!fit(t, &o, err) || !trainer_open(t->device, &o, from, &trainer, err)) return false;
    struct memory_plan memory = trainer_memory(trainer);
    train_progress_print_plan(&memory);
    train_progress_print_driver(t->device, &memory);
    train_progress_init(&t->progress, &o.config, t->setup.dir, &memory, t->baseline_bytes);
    log_info("model %s: %s, %lld parameters, %s", t->options.model_name, o.model.arch,
             (long long)gpt_config_parameters(&o.model), dtype_info(o.config.dtype)->name);
    if (from) log_info("going on after step %lld, from %s", (long long)trainer_step_number(trainer),
                       from);
    pthread_mutex_lock(&t->mutex);
    t->trainer = trainer;
    pthread_mutex_unlock(&t->mutex);
    return true;
}

static void close_trainer(struct training *t)
{
    pthread_mutex_lock(&t->mutex);
    struct trainer *trainer = t->trainer;
    t->trainer = NULL;
    pthread_mutex_unlock(&t->mutex);
    trainer_close(trainer);
}

static void print_end(const struct training *t, enum trainer_end end)
{
    const char *dir = t->setup.dir;
    long long step = trainer_step_number(t->trainer);
    switch (end) {
    case TRAINER_DONE: printf("%s: trained, %lld steps\n", dir, step); break;
    case TRAINER_EARLY:
        printf("%s: the loss has not fallen for %lld evaluations; stopped at step %lld with the "
               "best model\n", dir, (long long)t->options.training.early_stop_patience, step);
        break;
    case TRAINER_STOPPED:
        printf("%s: stopped after step %lld; the same command with --resume goes on\n", dir, step);
        break;
    }
}

static bool train(struct training *t, int argc, char **argv, struct error *err)
{
    enum trainer_end end;
    cuda_device_will_train();
    if (!train_setup_open(&t->options, argc, argv, &t->setup, err)
        || !device_open(&t->options.device, &t->device, err))
        return false;
    process_trim(); /* the text and its tokenizer were taken apart: from here on it is the plan */
    if (!open_trainer(t, err)) return false;
    bool ok = trainer_run(t->trainer, &end, err);
    train_progress_end(&t->progress);
    if (ok) print_end(t, end);
    return ok;
}

static int run(struct training *t, int argc, char **argv)
{
    struct error err;
    struct signals *signals = NULL;
    int code = EXIT_DONE;
    pthread_mutex_init(&t->mutex, NULL);
    if (!signals_start(HANGUP_DEFAULT, on_signal, t, &signals, &err) || !train(t, argc, argv, &err))
        code = err.code == ERR_INVALID && err.param[0] ? command_usage("train", &err)
                                                       : command_fail("train", &err);
    close_trainer(t);
    device_close(t->device);
    train_setup_close(&t->setup);
    signals_stop(signals);
    pthread_mutex_destroy(&t->mutex);
    return code;
}

int cmd_train(int argc, char **argv)
{
    struct error err;
    bool help;
    int code;
    struct training *t = calloc(1, sizeof *t); /* its lists of inputs are too large for the stack */
    if (!t) {
        error_set(&err, ERR_MEMORY, NULL, "no memory for the options");
        return command_fail("train", &err);
    }
    t->setup.lock = -1;
    t->baseline_bytes = process_rss_bytes();
    train_options_init(&t->options);
    if (!train_options_parse(&t->options, argc, argv, &help, &err)) {
        code = command_usage("train", &err);
    } else if (help) {
        train_options_init(&t->options); /* the defaults, not what was given */
        train_options_help(&t->options);
        code = EXIT_DONE;
    } else if (!train_options_check(&t->options, &err)) {
        code = command_usage("train", &err);
    } else {
        code = run(t, argc, argv);
    }
    free(t);
    return code;
}
