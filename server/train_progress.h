/* What one sees of a training run. On stderr: on a terminal one line that is rewritten in place;
 * otherwise a log line every log_interval steps. In the run's folder: memory.json, about once a
 * second. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/trainer.h"
#include "server/job_memory.h"

struct train_progress {
    bool terminal;
    int64_t max_iters, log_interval;
    const char *dir; /* of the run; borrowed */
    struct api_job_memory memory;
    int64_t reported_ns;    /* when memory.json was last written */
    /* Sums since the last line; of the share of the device's peak, seconds of work at that peak. */
    double seconds, loss, tokens, flops, peak_seconds;
    int64_t steps;
    int64_t shown_ns;       /* when the line was last written */
    double seconds_per_step; /* smoothed; 0 before the first step */
};

/* `baseline_bytes`: process_rss_bytes before anything was opened. */
void train_progress_init(struct train_progress *p, const struct train_config *c, const char *dir,
                         const struct memory_plan *memory, int64_t baseline_bytes);
/* Planned bytes by component, before the first step. */
void train_progress_print_plan(const struct memory_plan *m);
/* What a GPU's driver says beside it; nothing where there is none. */
void train_progress_print_driver(const struct device *d, const struct memory_plan *m);
/* The listener's functions; ctx is the train_progress. */
void train_progress_stepped(void *ctx, const struct trainer_step *s);
void train_progress_evaluated(void *ctx, const struct trainer_evaluation *e);
void train_progress_saved(void *ctx, int64_t step, const char *path);
/* Leaves the line as it stands and begins a new one. */
void train_progress_end(struct train_progress *p);
