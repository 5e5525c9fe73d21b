/* What a person sees of a training run, on stderr: on a terminal one line that is rewritten in
 * place; otherwise a log line every log_interval steps. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/trainer.h"

struct train_progress {
    bool terminal;
    int64_t max_iters, log_interval;
    int64_t memory_bytes;
    /* Sums since the last line. */
    double seconds, loss, tokens, flops;
    int64_t steps;
    int64_t shown_ns;       /* when the line was last written */
    double seconds_per_step; /* smoothed; 0 before the first step */
};

void train_progress_init(struct train_progress *p, const struct train_config *c,
                         int64_t memory_bytes);
/* Planned bytes by component, before the first step. */
void train_progress_print_plan(const struct memory_plan *m);
/* The listener's functions; ctx is the train_progress. */
void train_progress_stepped(void *ctx, const struct trainer_step *s);
void train_progress_evaluated(void *ctx, const struct trainer_evaluation *e);
void train_progress_saved(void *ctx, int64_t step, const char *path);
/* Leaves the line as it stands and begins a new one. */
void train_progress_end(struct train_progress *p);
