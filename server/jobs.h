/* The supervisor of training jobs: one thread starts them, one after another, each as a child
 * process of its own (job_process.h), watches over them, and writes down what becomes of them
 * (job_store.h). What a trainer does - crash, run out of memory, hang - is its job's fate and
 * nobody else's. States and their edges: api/fine_tuning.h.
 *
 * Any thread may call; calls may wait for the disk. */
#pragma once

#include "api/fine_tuning.h"
#include "server/files.h"

struct jobs_options {
    const char *configs_dir; /* where "configs/NAME" is looked for */
    const char *trainer;     /* a program that takes the arguments of gptd; NULL: gptd itself */
    int64_t threads;         /* of a trainer */
    int64_t memory;          /* bytes for all trainers together; 0: what the machine leaves */
    int64_t max_running;
    int64_t max_jobs;        /* kept, whatever their state; more are refused */
};
void jobs_options_init(struct jobs_options *o);

struct jobs;

/* Reads the jobs that are there and goes on with those that were queued or running. `dir` and
 * `files` must outlive it; the options' strings are borrowed. */
bool jobs_start(struct data_dir *dir, struct file_store *files, const struct jobs_options *o,
                struct jobs **out, struct error *err) MUST_CHECK;
/* No job starts any more; those that run are asked to write a checkpoint and end. They go on when a
 * server takes the folder again. */
void jobs_drain(struct jobs *j);
/* Waits for them, timeout_s at most, then kills; frees. NULL-safe. */
void jobs_stop(struct jobs *j, int64_t timeout_s);

/* "configs/NAME"? Then its file's path. ERR_NOT_FOUND when there is none by that name. */
bool jobs_is_preset(const char *model);
bool jobs_preset_path(const struct jobs *j, const char *model, char *path, size_t size,
                      struct error *err) MUST_CHECK;

/* Creates a job from what the client asked and where the model is: `config_path` of a preset, or
 * `init_from`, a model's path; the other is NULL. The job's object goes to `out`. ERR_NO_ROOM when
 * its plan can never fit into what there is for training; one that does not fit now waits. */
bool jobs_create(struct jobs *j, const struct ft_request *request, const char *config_path,
                 const char *init_from, struct buf *out, struct error *err) MUST_CHECK;
/* The job's object. ERR_NOT_FOUND. */
bool jobs_get(struct jobs *j, const char *id, struct buf *out, struct error *err) MUST_CHECK;
bool jobs_list(struct jobs *j, const struct api_page *page, struct buf *out, struct error *err)
    MUST_CHECK;

enum job_order { JOB_CANCEL, JOB_PAUSE, JOB_RESUME };
/* The job's object after it. ERR_INVALID when the job's state does not allow it. A trainer that
 * runs gets some time to write a checkpoint; the state says at once what was asked. */
bool jobs_order(struct jobs *j, const char *id, enum job_order order, struct buf *out,
                struct error *err) MUST_CHECK;

bool jobs_events(struct jobs *j, const char *id, const struct api_page *page, struct buf *out,
                 struct error *err) MUST_CHECK;
/* The job's events from the one after `after` (NULL: the first) on, as they come. Close the feed
 * before jobs_stop. */
struct job_feed;
bool jobs_follow(struct jobs *j, const char *id, const char *after, struct job_feed **out,
                 struct error *err) MUST_CHECK;
bool jobs_checkpoints(struct jobs *j, const char *id, const struct api_page *page, struct buf *out,
                      struct error *err) MUST_CHECK;

/* What the jobs that run take: at most a second old, and never waits for the disk. Returns how
 * many. */
enum { JOBS_MAX_RUNNING = 64 };
size_t jobs_memory(struct jobs *j, struct api_job_memory out[JOBS_MAX_RUNNING]);

/* The model of a job that succeeded, by its name (fine_tuned_model), or a checkpoint of any job, by
 * its (ft_checkpoint_name): its folder. */
bool jobs_find_model(struct jobs *j, const char *name, char path[DATA_PATH_MAX],
                     int64_t *created_at);
/* All of the former, oldest first. */
typedef void (*jobs_model_fn)(void *ctx, const char *name, const char *path, int64_t created_at);
void jobs_visit_models(struct jobs *j, jobs_model_fn visit, void *ctx);
