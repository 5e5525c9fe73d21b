/* The trainer's parts see each other here: trainer.c (the run), trainer_plan.c (memory),
 * trainer_step.c, trainer_eval.c, trainer_save.c. Nobody else includes it. */
#pragma once

#include <stdatomic.h>

#include "model/gpt_train.h"
#include "model/optimizer.h"
#include "model/sampler.h"
#include "model/train_metrics.h"
#include "model/train_state.h"
#include "model/trainer.h"

/* Micro-batches that the host holds at a time: as many go to the device without a wait. */
enum { TRAINER_MAX_STAGED = 8 };

/* A micro-batch's pass as the device has recorded it, by what its launches depend on. */
enum { TRAINER_MAX_GRAPHS = 4 };
struct trainer_graph {
    int32_t n_rows, n_spans;
    struct device_graph *recorded; /* NULL: not yet */
};

struct trainer {
    struct trainer_options options; /* names and data borrowed */
    struct device *device;
    struct gpt gpt;
    struct gpt_train train;
    struct optimizer optimizer;
    struct schedule schedule;

    /* Memory: one arena on the device, one on the host; *this lies in the latter. */
    struct plan device_plan, host_plan;
    void *device_arena, *host_arena;
    void *workspace;
    int64_t workspace_bytes;
    /* Host memory of n_staged micro-batches: rows on their way up, losses [max_rows] on their way
     * down. Others use the first of each between steps. */
    int64_t n_micro_batches, n_staged; /* of a step; the smaller of that and TRAINER_MAX_STAGED */
    struct gpt_rows host_rows[TRAINER_MAX_STAGED], device_rows;
    struct loss_row *losses[TRAINER_MAX_STAGED];
    double *squares;         /* [1] host: of the step's gradients */
    struct trainer_sample { struct sample_request request; struct sample_out out; } *sampled; /* [1] device */
    struct trainer_graph graphs[TRAINER_MAX_GRAPHS];
    uint32_t next_graph;     /* to give to a new shape, in turn */
    float *load_staging;     /* gpt_load's */

    struct train_state state;    /* what a checkpoint remembers */
    int64_t saved_step;          /* of the newest complete checkpoint; -1: none */
    struct train_metrics metrics;
    atomic_bool stop;
};

/* trainer_plan.c: plans, allocates and returns the trainer in its place; NULL on failure. `t` is
 * a draft with options and device. */
struct trainer *trainer_allocate(struct trainer *t, struct error *err);
void trainer_release(struct trainer *t);

/* trainer_step.c: step state.step + 1: gradients, norm, update. Fills *out. A loss or a norm
 * that is not finite, and a spike, are ERR_INVALID, with nothing updated. */
bool trainer_learn(struct trainer *t, struct trainer_step *out, struct error *err) MUST_CHECK;

/* Has the device compute the next step's first and last micro-batch and forgets the result. A
 * device that records (a GPU) then has loaded its kernels and chosen its algorithms before the
 * first step, which could otherwise fail for want of the driver's memory and would take longer than
 * the others. Does nothing on other devices. */
bool trainer_warm_up(struct trainer *t, struct error *err) MUST_CHECK;

/* trainer_graphs.c: gpt_train_micro_step, recorded when its shape comes a second time. */
void trainer_micro_step(struct trainer *t, const struct gpt_micro_batch *m);
void trainer_free_graphs(struct trainer *t);

/* trainer_eval.c: all sets, and the sample. *out's sample lives in `text`, which the caller
 * frees. */
bool trainer_evaluate(struct trainer *t, struct trainer_evaluation *out, struct buf *text,
                      struct error *err) MUST_CHECK;
/* Adds a micro-batch's losses up, from t->train.losses, which it waits for. */
struct loss_sum { double loss, nll; };
bool trainer_sum_losses(struct trainer *t, int64_t n_rows, struct loss_sum *sum, struct error *err)
    MUST_CHECK;

/* trainer_save.c */
bool trainer_save(struct trainer *t, struct error *err) MUST_CHECK;
bool trainer_restore(struct trainer *t, const char *from, struct error *err) MUST_CHECK;
/* Weights by name from a checkpoint of the very same shape. */
bool trainer_load_weights(struct trainer *t, const char *from, struct error *err) MUST_CHECK;
/* The model and the tokenizer of checkpoint `step` become the directory's. */
bool trainer_publish(struct trainer *t, int64_t step, struct error *err) MUST_CHECK;
