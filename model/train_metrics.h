/* metrics.jsonl: one JSON object a line, in the order of the steps. A line is one write, so that
 * a reader (or a kill) sees whole lines, but for the very last. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct trainer_step;
struct trainer_evaluation;

struct train_metrics { int fd; }; /* -1: closed */

/* Opens the file for a run that has done `step` steps: lines of later ones (of a run that was
 * killed after its last checkpoint) are cut off; step 0 begins a new file. */
bool train_metrics_open(struct train_metrics *m, const char *path, int64_t step,
                        struct error *err) MUST_CHECK;
void train_metrics_close(struct train_metrics *m);
/* The same for samples.txt: cuts off what is of later steps. A missing file is fine. */
bool train_samples_cut(const char *path, int64_t step, struct error *err) MUST_CHECK;
/* Writes "step", "loss", "lr", "grad_norm", "tokens_per_s", "flops_per_s", "memory_bytes"; "mfu"
 * (the share of the device's peak) where that is known; where evaluated "val_loss" and, with
 * several sets, "val_losses" by name. e may be NULL. With a loss scale also "loss_scale" and
 * "skipped_steps" so far; a skipped step's grad_norm is null. */
bool train_metrics_write(struct train_metrics *m, const struct trainer_step *s,
                         const struct trainer_evaluation *e, int64_t memory_bytes,
                         struct error *err) MUST_CHECK;
bool train_metrics_sync(struct train_metrics *m, struct error *err) MUST_CHECK;
