/* What a training job will take, before its trainer is started: the config that it names, with the
 * job's keys, through the trainer's own planner. The weights are not read. */
#pragma once

#include "api/fine_tuning.h"
#include "model/plan.h"
#include "model/train_config.h"

/* The config that the trainer will have: of the preset, or the defaults for a trained model, and
 * the job's keys over it. `model` may be NULL; it is known for presets alone. Checked. */
bool job_config(const struct ft_job *job, struct gpt_config *model, struct train_config *out,
                struct error *err) MUST_CHECK;
/* The key of that name among the job's, NULL when it is not there. */
struct ft_key *job_find_key(struct ft_job *job, const char *name);
const struct train_key *job_training_key(const char *name); /* of the table: it must be there */

struct job_need {
    struct memory_plan memory; /* with the data, by the files' sizes: one token a byte at most */
    int64_t total_bytes;       /* and the trainer's program itself: JOB_PROGRAM_BYTES */
};
enum { JOB_PROGRAM_BYTES = 32 << 20 };

/* Where the job's files are: paths of its data, and of a run to go on with. */
struct job_files {
    const char *training, *validation, *run_dir; /* NULL: none */
    int64_t n_characters; /* different ones in the text; 0: not counted yet, which reads it all */
};

/* The plan of the config's defaults when it takes at most `room` bytes; else the fastest that does,
 * of what the config leaves open; else the smallest there is. `threads`: the trainer's. Fails when
 * the config, the model or the text cannot be read: the trainer will say so itself. */
bool job_plan(const struct ft_job *job, struct job_files *files, int64_t threads, int64_t room,
              struct job_need *out, struct error *err) MUST_CHECK;
/* ERR_NO_ROOM with the numbers: `need` against `room` bytes; `when` ends the sentence. */
bool job_no_room(const struct job_need *need, int64_t room, const char *when, struct error *err);
