/* What a checkpoint holds beside the model, so that a resumed run has the bits of one that was
 * never interrupted: trainer_state.json (step, best, losses seen), train_config.json (the config
 * it belongs to), optimizer.safetensors (moments and masters, as the device has them). And where
 * checkpoints lie: RUN/checkpoints/step-N, complete exactly when the manifest agrees
 * (checkpoint_write.h). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/loss_scale.h"
#include "model/optimizer.h"
#include "model/spike.h"
#include "model/train_config.h"

enum { RUN_PATH_MAX = 4096 };

struct train_state {
    int64_t step;              /* done */
    char fingerprint[65];      /* of the data */
    double best_loss;          /* of the first evaluation set */
    int64_t best_step;         /* 0: none yet */
    int64_t evals_since_best;
    struct spike_watch spikes;
    struct loss_scale loss_scale; /* `grows` follows from the config: not in the file */
};

/* Writes the three files into dir (which is there, unsealed). */
bool train_state_write(const char *dir, const struct train_state *s, const struct train_config *c,
                       const struct gpt *g, const struct optimizer *o, struct device *d,
                       struct error *err) MUST_CHECK;
/* trainer_state.json. ERR_FORMAT when it is not what train_state_write writes. */
bool train_state_read(const char *dir, struct train_state *out, struct error *err) MUST_CHECK;
/* train_config.json of a run or a checkpoint: the model and how it is trained, resolved. */
bool train_state_read_config(const char *dir, struct gpt_config *model, struct train_config *c,
                             struct error *err) MUST_CHECK;
bool train_state_write_config(const char *dir, const struct gpt_config *model,
                              const struct train_config *c, struct error *err) MUST_CHECK;
/* optimizer.safetensors into memory that optimizer_layout laid out for the same config. */
bool train_state_load(const char *dir, struct optimizer *o, struct device *d, struct error *err)
    MUST_CHECK;

/* ---- the directory of checkpoints ---- */

/* One trainer a directory: *fd is to be closed at the end; the lock dies with the process, too.
 * ERR_BUSY when another has it. */
bool train_state_lock(const char *run_dir, int *fd, struct error *err) MUST_CHECK;
/* Is there a run, or a model? Then a new one must not begin there. */
bool train_state_exists(const char *run_dir);
/* Removes the run's checkpoints, all of them. */
bool train_state_clear(const char *run_dir, struct error *err) MUST_CHECK;
/* RUN/checkpoints/step-N. */
bool train_state_path(const char *run_dir, int64_t step, char out[RUN_PATH_MAX],
                      struct error *err) MUST_CHECK;
/* The newest complete checkpoint's step; -1: there is none. Incomplete ones are named in the
 * log. */
int64_t train_state_newest(const char *run_dir);
/* Removes a checkpoint or what there is of it, so that no moment shows a damaged one as
 * complete. */
bool train_state_remove(const char *run_dir, int64_t step, struct error *err) MUST_CHECK;
/* Keeps the newest `keep` and `best` (0: none); removes the other complete ones and all
 * incomplete ones up to `newest`. */
bool train_state_prune(const char *run_dir, int64_t newest, int64_t best, int64_t keep,
                       struct error *err) MUST_CHECK;
/* RUN/checkpoints/best: a link to step-N, replaced at once. */
bool train_state_link_best(const char *run_dir, int64_t step, struct error *err) MUST_CHECK;
