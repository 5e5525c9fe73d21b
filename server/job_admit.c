/* Which jobs may start: those whose plans fit beside what is resident. See jobs_internal.h. */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/job_plan.h"
#include "server/jobs_internal.h"
#include "server/process.h"

/* Of what the machine leaves, this much: the rest is for what plans do not know, and for other
 * programs. */
enum { MACHINE_PERCENT = 95 };
static const int64_t retry_ns = 1000000000;

static int64_t share(int64_t bytes) { return bytes / 100 * MACHINE_PERCENT; }

/* `reserved`: admitted for those that run; `resident`: what of it they have taken. */
static void sum_running(const struct jobs *j, int64_t *reserved, int64_t *resident)
{
    *reserved = *resident = 0;
    for (size_t i = 0; i < j->n; i++) {
        const struct job *job = j->at[i];
        if (job->pid == 0) continue;
        *reserved += job->need.total_bytes;
        *resident += min_i64(job->memory.rss_bytes, job->need.total_bytes);
    }
}

/* What training could have if no job ran. With the mutex held. */
static int64_t room_ever(struct jobs *j)
{
    int64_t reserved, resident, machine = process_memory_available("");
    if (j->options.memory > 0) return j->options.memory;
    sum_running(j, &reserved, &resident);
    return share(min_i64(machine, INT64_MAX / 4) + resident);
}

static int64_t room_now(struct jobs *j)
{
    int64_t reserved, resident, machine = process_memory_available("");
    sum_running(j, &reserved, &resident);
    if (j->options.memory > 0) return max_i64(0, j->options.memory - reserved);
    return max_i64(0, share(min_i64(machine, INT64_MAX / 4) - (reserved - resident)));
}

static bool find_files(struct jobs *j, struct job *job, char training[DATA_PATH_MAX],
                       char validation[DATA_PATH_MAX], char run[DATA_PATH_MAX],
                       struct job_files *out, struct error *err)
{
    const struct ft_job *f = &job->job;
    *out = (struct job_files){.training = training, .n_characters = job->n_characters};
    if (f->validation_path[0]) out->validation = validation;
    if (job_has_checkpoint(j->dir, f)) out->run_dir = run;
    return job_path(j->dir, f, f->training_path, training, err)
           && (!out->validation || job_path(j->dir, f, f->validation_path, validation, err))
           && job_path(j->dir, f, JOB_MODEL_NAME, run, err);
}

static void wait_for_memory(struct jobs *j, struct job *job, const struct job_need *need,
                            int64_t room)
{
    struct error why;
    bool first = !job->job.queued_reason[0];
    job_no_room(need, room, "it starts when there is room", &why);
    snprintf(job->job.queued_reason, sizeof job->job.queued_reason, "%s", why.text);
    if (!first) return;
    job_store_event(j->dir, &job->job, "warn", NULL, "The job waits for memory: %s", why.text);
    log_info("job %s waits for memory: %s", job->job.id, why.text);
}

bool job_admit(struct jobs *j, struct job *job)
{
    char training[DATA_PATH_MAX], validation[DATA_PATH_MAX], run[DATA_PATH_MAX];
    struct job_files files;
    struct job_need need;
    struct error err;
    if (job->job.queued_reason[0] && clock_ns() < job->retry_ns) return false;
    int64_t room = room_now(j);
    job->retry_ns = clock_ns() + retry_ns;
    job->need = (struct job_need){0};
    if (!find_files(j, job, training, validation, run, &files, &err)
        || !job_plan(&job->job, &files, j->options.threads, room, &need, &err)) {
        log_info("job %s has no plan: %s; its trainer shall say more", job->job.id, err.text);
        job->job.queued_reason[0] = 0;
        return true;
    }
    job->n_characters = files.n_characters;
    if (need.total_bytes > room) {
        wait_for_memory(j, job, &need, room);
        return false;
    }
    job->job.queued_reason[0] = 0;
    job->need = need;
    return true;
}

bool job_check_room(struct jobs *j, const struct ft_job *job, const char *training,
                    const char *validation, int64_t *n_characters, struct error *err)
{
    struct job_files files = {.training = training, .validation = validation};
    struct job_need need;
    struct error why;
    pthread_mutex_lock(&j->mutex);
    int64_t room = room_ever(j);
    pthread_mutex_unlock(&j->mutex);
    bool planned = job_plan(job, &files, j->options.threads, room, &need, &why);
    *n_characters = files.n_characters;
    /* A mistake of the client's; all else (a file that cannot be read now) the trainer meets again,
     * and says more. */
    if (!planned && (why.code == ERR_INVALID || why.code == ERR_UNSUPPORTED)) {
        *err = why;
        return false;
    }
    if (!planned || need.total_bytes <= room) return true;
    const char *instead = j->options.memory > 0
                              ? "choose a smaller model, block_size or batch_size, or ask for a "
                                "server with more --training-memory"
                              : "choose a smaller model, block_size or batch_size";
    return job_no_room(&need, room, instead, err);
}
