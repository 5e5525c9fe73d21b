/* The run: see trainer.h. Open, step after step with what is due after each, close. */
#include "model/trainer.h"

#include <errno.h>
#include <stdio.h>

#include "base/file.h"
#include "model/trainer_internal.h"

/* ---- opening ---- */

static bool begin_run(struct trainer *t, struct error *err)
{
    const struct trainer_options *o = &t->options;
    bool ok = o->init_from ? trainer_load_weights(t, o->init_from, err)
                           : gpt_init(&t->gpt, t->device, (uint64_t)o->config.seed,
                                      t->load_staging, err);
    if (!ok) return false;
    optimizer_start(&t->optimizer, t->device);
    t->state = (struct train_state){.loss_scale = loss_scale_begin(o->config.loss_scale,
                                                                   o->config.dtype)};
    snprintf(t->state.fingerprint, sizeof t->state.fingerprint, "%s",
             dataset_fingerprint(o->data));
    return t->device->ops->sync(t->device, err);
}

/* metrics.jsonl and samples.txt, without what is of steps yet to come. */
static bool open_metrics(struct trainer *t, struct error *err)
{
    char path[RUN_PATH_MAX];
    return path_join(path, sizeof path, t->options.dir, "samples.txt", err)
           && train_samples_cut(path, t->state.step, err)
           && path_join(path, sizeof path, t->options.dir, "metrics.jsonl", err)
           && train_metrics_open(&t->metrics, path, t->state.step, err);
}

static bool start(struct trainer *t, const char *resume_from, struct error *err)
{
    t->schedule = train_config_schedule(&t->options.config);
    t->saved_step = -1;
    if (resume_from ? !trainer_restore(t, resume_from, err) : !begin_run(t, err)) return false;
    return trainer_warm_up(t, err)
           && train_state_write_config(t->options.dir, &t->gpt.config, &t->options.config, err)
           && open_metrics(t, err);
}

bool trainer_open(struct device *d, const struct trainer_options *o, const char *resume_from,
                  struct trainer **out, struct error *err)
{
    struct trainer draft = {.options = *o, .device = d, .metrics = {.fd = -1}};
    ASSERT(o->n_sets >= 0 && o->n_sets <= TRAINER_MAX_SETS);
    struct trainer *t = trainer_allocate(&draft, err);
    if (!t) return false;
    if (!start(t, resume_from, err)) {
        trainer_close(t);
        return false;
    }
    *out = t;
    return true;
}

void trainer_close(struct trainer *t)
{
    if (!t) return;
    train_metrics_close(&t->metrics);
    trainer_release(t);
}

int64_t trainer_step_number(const struct trainer *t) { return t->state.step; }

const struct gpt *trainer_gpt(const struct trainer *t) { return &t->gpt; }

void trainer_stop(struct trainer *t) { atomic_store(&t->stop, true); }

/* ---- evaluation's consequences ---- */

static bool is_due(const struct trainer *t, int64_t interval)
{
    return interval > 0 && t->state.step % interval == 0;
}

static bool evaluation_is_due(const struct trainer *t)
{
    const struct train_config *c = &t->options.config;
    return c->eval_interval > 0 && (is_due(t, c->eval_interval) || t->state.step == c->max_iters);
}

static void take_best(struct trainer *t, struct trainer_evaluation *e)
{
    if (e->n_sets == 0) return;
    e->is_best = t->state.best_step == 0 || e->loss[0] < t->state.best_loss;
    t->state.evals_since_best = e->is_best ? 0 : t->state.evals_since_best + 1;
    if (!e->is_best) return;
    t->state.best_loss = e->loss[0];
    t->state.best_step = t->state.step;
}

/* Samples are for people: a plain text file. */
static bool append_sample(const struct trainer *t, const struct trainer_evaluation *e,
                          struct error *err)
{
    char path[RUN_PATH_MAX];
    if (!path_join(path, sizeof path, t->options.dir, "samples.txt", err)) return false;
    FILE *f = fopen(path, "a");
    if (!f) return error_errno(err, "cannot write %s", path);
    fprintf(f, "---- step %lld", (long long)e->step);
    if (e->n_sets > 0) fprintf(f, ", loss %.4f", e->loss[0]);
    fprintf(f, " ----\n%s\n", e->sample);
    return fclose(f) == 0 || error_errno(err, "cannot write %s", path);
}

static bool evaluate(struct trainer *t, struct trainer_evaluation *e, struct error *err)
{
    struct buf text;
    if (!trainer_evaluate(t, e, &text, err)) return false;
    take_best(t, e);
    bool ok = !e->sample || append_sample(t, e, err);
    if (ok && t->options.listener.evaluated)
        t->options.listener.evaluated(t->options.listener.ctx, e);
    buf_free(&text);
    e->sample = NULL;
    return ok;
}

/* ---- the run ---- */

static bool has_converged(const struct trainer *t)
{
    int64_t patience = t->options.config.early_stop_patience;
    return patience > 0 && t->state.evals_since_best >= patience;
}

static bool is_over(const struct trainer *t)
{
    return t->state.step >= t->options.config.max_iters || has_converged(t);
}

/* A run whose loss is off its path may be lost: then the checkpoint before it is the good one. */
static bool checkpoint_is_due(const struct trainer *t, bool is_best)
{
    if (is_over(t) || atomic_load(&t->stop)) return true;
    if (t->state.spikes.off_in_a_row > 0) return false;
    return is_best || is_due(t, t->options.config.save_interval);
}

bool trainer_advance(struct trainer *t, struct error *err)
{
    const struct trainer_listener *l = &t->options.listener;
    struct trainer_step s;
    struct trainer_evaluation e = {0};
    ASSERT(!is_over(t));
    if (!trainer_learn(t, &s, err)) return false;
    bool evaluated = evaluation_is_due(t);
    if (evaluated && !evaluate(t, &e, err)) return false;
    if (!train_metrics_write(&t->metrics, &s, evaluated ? &e : NULL,
                             trainer_memory(t).total_bytes, err))
        return false;
    if (l->stepped) l->stepped(l->ctx, &s);
    return !checkpoint_is_due(t, e.is_best) || trainer_save(t, err);
}

bool trainer_run(struct trainer *t, enum trainer_end *end, struct error *err)
{
    while (!is_over(t) && !atomic_load(&t->stop))
        if (!trainer_advance(t, err)) return false;
    /* Stopped before the first step, or between a step and its end. */
    if (t->saved_step != t->state.step && !trainer_save(t, err)) return false;
    *end = t->state.step >= t->options.config.max_iters ? TRAINER_DONE
           : has_converged(t)                           ? TRAINER_EARLY
                                                        : TRAINER_STOPPED;
    return trainer_publish(t, *end == TRAINER_EARLY ? t->state.best_step : t->state.step, err);
}
