/* A training run: the memory, the steps, evaluation, and what is on disk at any moment.
 *
 * A run's directory holds:
 *   config.json model.safetensors tokenizer.json generation_config.json   the model as it serves
 *   train_config.json      the resolved config, readable as one
 *   metrics.jsonl          one object a step
 *   samples.txt            a text at each evaluation
 *   checkpoints/step-N/    a model as above, with all that resuming needs; `best` links to one
 *
 * All that a step does is a pure function of the config, the data and the step's number; so a
 * run that was killed and resumed has the bits of one that was not. After trainer_open a step
 * allocates nothing, except that a GPU's driver keeps what was recorded of the first ones.
 *
 * One thread opens, runs and closes; trainer_stop may be called from any. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/config.h"
#include "model/dataset.h"
#include "model/device.h"
#include "model/plan.h"
#include "model/train_config.h"

struct trainer;

enum { TRAINER_MAX_ROWS = INT32_MAX / 2 / KV_PAGE_TOKENS }; /* micro_batch_size x sequence_length */

/* Text that the model is evaluated on. */
struct trainer_set {
    const char *name; /* borrowed */
    const struct dataset *data;
    enum dataset_split split;
};
enum { TRAINER_MAX_SETS = 16 };

struct trainer_step {
    int64_t step;          /* 1, 2, ... */
    double loss;           /* mean over the step's targets */
    double lr, grad_norm;
    double loss_scale;     /* that its gradients were computed with; 0: none */
    bool skipped;          /* they were not finite: nothing was updated */
    int64_t n_skipped;     /* steps of the run so far */
    double seconds;        /* of this step */
    double tokens_per_s;
    double flops;          /* of this step's matrix products and attention */
    double mfu;            /* of what the device could compute in that time, at most 1; 0: not known */
};

struct trainer_evaluation {
    int64_t step;
    int32_t n_sets;
    const struct trainer_set *sets;
    double loss[TRAINER_MAX_SETS]; /* mean -log p of each; the first is val_loss */
    bool is_best;
    const char *sample;            /* UTF-8; NULL without a tokenizer */
};

/* News of the run, on the thread that runs it. Any may be NULL. */
struct trainer_listener {
    void (*stepped)(void *ctx, const struct trainer_step *s);
    void (*evaluated)(void *ctx, const struct trainer_evaluation *e);
    void (*saved)(void *ctx, int64_t step, const char *path);
    void *ctx;
};

/* Everything is borrowed until trainer_close. */
struct trainer_options {
    struct train_config config; /* checked and resolved; sequence_length <= model.block_size */
    struct gpt_config model;    /* checked */
    const struct dataset *data;
    struct trainer_set sets[TRAINER_MAX_SETS]; /* the first decides which checkpoint is best */
    int32_t n_sets;
    const struct tokenizer *tokenizer; /* for samples; may be NULL */
    const char *tokenizer_dir;         /* or .gguf file, whose tokenizer goes into checkpoints */
    const char *dir;            /* of the run, there already, and locked: train_state_lock */
    const char *init_from;      /* the first weights' checkpoint; NULL: random ones */
    int64_t memory_budget;      /* 0: none */
    double peak_flops;          /* what the device computes a second (device_rates), until a step does more; 0: not
                                   known */
    struct trainer_listener listener;
};

/* What the run will take, without allocating it; `see` (may be NULL) gets every piece of both
 * arenas. Needs config and model alone; of the device only its sizes, so that one that is not there
 * will do. Data and sets count when they are given. ERR_NO_FIT when the bytes do not fit 63
 * bits. */
bool trainer_plan(const struct trainer_options *o, const struct device *d, plan_listener see,
                  void *ctx, struct memory_plan *out, struct error *err) MUST_CHECK;

/* Plans, allocates, and takes the weights from `resume_from` (a checkpoint of this run),
 * init_from, or the seed. ERR_NO_FIT over the memory budget, with the numbers; ERR_INVALID when
 * the checkpoint's data or config are not these (param: the key). */
bool trainer_open(struct device *d, const struct trainer_options *o, const char *resume_from,
                  struct trainer **out, struct error *err) MUST_CHECK;
void trainer_close(struct trainer *t); /* NULL-safe */

int64_t trainer_step_number(const struct trainer *t); /* steps done */
/* What it takes: trainer_plan's answer, to the byte. */
struct memory_plan trainer_memory(const struct trainer *t);

enum trainer_end {
    TRAINER_DONE,    /* max_iters steps */
    TRAINER_EARLY,   /* early_stop_patience; the directory's model is the best */
    TRAINER_STOPPED, /* trainer_stop; resumable */
};
/* Steps to the end. Fails when the loss or the gradients are not finite or spike (the text names
 * the last good checkpoint; nothing is written over it), and when a file cannot be written. */
bool trainer_run(struct trainer *t, enum trainer_end *end, struct error *err) MUST_CHECK;
/* Asks for the end after the step at work, with a checkpoint. Any thread. */
void trainer_stop(struct trainer *t);

/* ---- single steps, for tests ---- */

/* One step (and what it is due: evaluation, checkpoint). */
bool trainer_advance(struct trainer *t, struct error *err) MUST_CHECK;
const struct gpt *trainer_gpt(const struct trainer *t);
