/* What lies on disk of a job, DATA_DIR/jobs/ftjob-ID/:
 *
 *   job.json               its object, as the API shows it; rewritten whole at each change of state
 *   events.jsonl           its events, appended
 *   training.*             the data: a second name (hard link) of the uploaded file's content, so
 *   validation.*           that deleting the upload takes nothing from the job
 *   start/                 the model to begin with, where another job left it: second names of its
 *                          files, since that job may lose checkpoints, and an operator jobs
 *   stdout.log stderr.log  what the trainer printed, of all its runs
 *   model/                 the trainer's own directory: the model, metrics.jsonl, checkpoints/
 *   metrics.jsonl          a link to model/metrics.jsonl
 *
 * Functions on one job's files are for one thread at a time: the caller holds the lock. */
#pragma once

#include "api/files.h"
#include "api/fine_tuning.h"
#include "server/data_dir.h"

#define JOB_MODEL_NAME "model"

/* A path in the job's folder. */
bool job_path(const struct data_dir *d, const struct ft_job *job, const char *rest,
              char out[DATA_PATH_MAX], struct error *err) MUST_CHECK;

/* Makes the folder, takes the data into it (fills job->training_path and validation_path), and the
 * model of another job to begin with (changes job->init_from), and writes job.json. validation:
 * NULL for none. Nothing is left of it on failure. */
bool job_store_create(const struct data_dir *d, struct ft_job *job, const char *training,
                      const char *validation, struct error *err) MUST_CHECK;
bool job_store_save(const struct data_dir *d, const struct ft_job *job, struct error *err)
    MUST_CHECK;
bool job_store_load(const struct data_dir *d, const char *id, struct ft_job *out,
                    struct error *err) MUST_CHECK;

/* Appends one event; its id comes from where it stands in the file. A failure is logged: an event
 * is not worth a job. `data`: JSON or NULL. */
void job_store_event(const struct data_dir *d, const struct ft_job *job, const char *level,
                     const char *data, const char *fmt, ...) PRINTF_LIKE(5, 6);
/* {"object":"list","data":[newest first],"has_more"} */
bool job_store_list_events(const struct data_dir *d, const struct ft_job *job,
                           const struct api_page *page, struct buf *out, struct error *err)
    MUST_CHECK;
/* The same of model/checkpoints. */
bool job_store_list_checkpoints(const struct data_dir *d, const struct ft_job *job,
                                const struct api_page *page, struct buf *out, struct error *err)
    MUST_CHECK;

/* Opens the events for reading; *offset is where the one after `after` begins, 0 for NULL. -1 with
 * ERR_INVALID when `after` is no event of this job. */
int job_store_open_events(const struct data_dir *d, const struct ft_job *job, const char *after,
                          int64_t *offset, struct error *err);
/* A crash may have cut a line short. */
bool job_event_is_whole(const char *line, size_t n);

/* A checkpoint's folder, while it is there. */
bool job_find_checkpoint(const struct data_dir *d, const struct ft_job *job, int64_t step,
                         char path[DATA_PATH_MAX], int64_t *created_at);
bool job_has_checkpoint(const struct data_dir *d, const struct ft_job *job);
bool job_has_model(const struct data_dir *d, const struct ft_job *job);
/* The last line of one of the trainer's logs, "stdout.log" or "stderr.log"; "" when there is
 * none. */
void job_last_words(const struct data_dir *d, const struct ft_job *job, const char *log, char *out,
                    size_t size);

/* Reads a bounded piece of what a file of lines got since `*offset`, calling `see` for each whole
 * one; what has no end yet comes later. */
typedef void (*job_line_fn)(void *ctx, const char *line, size_t n);
enum lines_read { LINES_SOME, LINES_NONE, LINES_FAILED };
enum lines_read job_read_lines(int fd, int64_t *offset, job_line_fn see, void *ctx);
/* Reads the lines that metrics.jsonl got since `*offset` (from the beginning when the file has
 * shrunk). */
void job_read_metrics(const struct data_dir *d, const struct ft_job *job, int64_t *offset,
                      job_line_fn see, void *ctx);
