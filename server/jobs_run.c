/* The supervisor's thread: starts trainers, reads their metrics, notes how they end. See jobs.h. */
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "api/json_out.h"
#include "model/train_state.h"
#include "server/command.h"
#include "server/job_memory.h"
#include "server/job_process.h"
#include "server/jobs_internal.h"
#include "server/process.h"

enum { POLL_MS = 100, METRICS_DEPTH = 4, EVENT_DATA_LIMIT = 1024 };
static const int64_t metrics_event_interval_ns = 1000000000, memory_interval_ns = 1000000000;
static const double LONGEST_S = 1e10; /* beyond it, an estimate says nothing */

bool job_is_over(const struct job *job)
{
    return job_state_is_final(job->job.state) && job->pid == 0;
}

/* After an event: those who follow the job are told. */
static void tell(struct jobs *j, const struct job *job)
{
    job_feeds_tell(&j->feeds, job->job.id, job_is_over(job));
}

void job_set_state(struct jobs *j, struct job *job, enum job_state state, const char *level,
                   const char *message)
{
    struct error err;
    job->job.state = state;
    if (job_state_is_final(state)) job->job.finished_at = time(NULL);
    if (!job_store_save(j->dir, &job->job, &err)) log_error("%s: %s", job->job.id, err.text);
    job_store_event(j->dir, &job->job, level, NULL, "%s", message);
    tell(j, job);
    log_info("job %s: %s: %s", job->job.id, job_state_name(state), message);
}

void job_stop(struct job *job, int64_t patience_s)
{
    int64_t kill_ns = clock_ns() + patience_s * 1000000000;
    if (job->pid == 0) return;
    if (!job->stopping) job_process_signal(job->pid, SIGTERM);
    job->kill_ns = job->stopping ? min_i64(job->kill_ns, kill_ns) : kill_ns;
    job->stopping = true;
}

/* ---- starting ---- */

static void add_key(struct job_command *c, const struct ft_key *key)
{
    char flag[64];
    snprintf(flag, sizeof flag, "%s", key->name);
    for (char *p = flag; *p; p++)
        if (*p == '_') *p = '-';
    if (!key->is_word && strcmp(key->value, "true") == 0) job_command_add(c, "--%s", flag);
    else if (!key->is_word && strcmp(key->value, "false") == 0) job_command_add(c, "--no-%s", flag);
    else job_command_add(c, "--%s=%s", flag, key->value);
}

/* gptd train, with everything that the job says, within the budget that it was admitted with (0:
 * none). Paths are absolute. */
static void make_command(const struct jobs *j, const struct ft_job *job, const char *dir,
                         int64_t budget, struct job_command *c)
{
    *c = (struct job_command){.program = j->options.trainer ? j->options.trainer
                                                            : "/proc/self/exe"};
    job_command_add(c, "gptd");
    job_command_add(c, "train");
    job_command_add(c, "--device=cpu"); /* it is what the job was planned for */
    if (job->config_path[0]) job_command_add(c, "--config=%s", job->config_path);
    if (job->init_from[0]) job_command_add(c, "--init-from=%s", job->init_from);
    job_command_add(c, "--model-name=" JOB_MODEL_NAME);
    job_command_add(c, "--out-dir=%s", dir);
    job_command_add(c, "--input=%s/%s", dir, job->training_path);
    if (job->validation_path[0])
        job_command_add(c, "--val-input=%s/%s", dir, job->validation_path);
    job_command_add(c, "--threads=%" PRId64, j->options.threads);
    job_command_add(c, "--seed=%" PRId64, job->seed);
    if (job->n_epochs) job_command_add(c, "--epochs=%" PRId64, job->n_epochs);
    if (job->batch_size) job_command_add(c, "--batch-size=%" PRId64, job->batch_size);
    for (int32_t i = 0; i < job->n_keys; i++) add_key(c, &job->keys[i]);
    if (budget) job_command_add(c, "--memory-budget=%" PRId64 "B", budget);
    job_command_add(c, "--resume"); /* from the newest checkpoint, if there is one */
}

static void fail_job(struct jobs *j, struct job *job, const char *code, const char *message)
{
    snprintf(job->job.error_code, sizeof job->job.error_code, "%s", code);
    snprintf(job->job.error_message, sizeof job->job.error_message, "%s", message);
    job_set_state(j, job, JOB_FAILED, "error", message);
}

static void start_job(struct jobs *j, struct job *job)
{
    char dir[DATA_PATH_MAX], out[DATA_PATH_MAX], errors[DATA_PATH_MAX], message[96];
    struct job_command command = {0};
    struct error err;
    job->metrics_offset = job->n_steps = job->seen_ns = job->job.estimated_finish = 0;
    job->stopping = job->goes_first = false;
    job->memory = (struct api_job_memory){0};
    snprintf(job->memory.id, sizeof job->memory.id, "%s", job->job.id);
    job_memory_set_plan(&job->memory, &job->need.memory);
    bool resumed = job_has_checkpoint(j->dir, &job->job);
    bool ok = job_path(j->dir, &job->job, NULL, dir, &err)
              && job_path(j->dir, &job->job, "stdout.log", out, &err)
              && job_path(j->dir, &job->job, "stderr.log", errors, &err);
    if (ok) {
        make_command(j, &job->job, dir, job->need.memory.total_bytes, &command);
        ok = job_process_start(&command, out, errors, &job->pid, &err);
        job_command_free(&command);
    }
    if (!ok) {
        fail_job(j, job, "trainer_failed", err.text);
        return;
    }
    if (job->job.started_at == 0) job->job.started_at = time(NULL);
    snprintf(message, sizeof message, "%s (process %d)",
             resumed ? "Fine-tuning job resumed from its last checkpoint"
                     : "Fine-tuning job started", (int)job->pid);
    job_set_state(j, job, JOB_RUNNING, "info", message);
}

/* ---- metrics ---- */

static void add_metric(struct buf *data, const struct cJSON *root, const char *key, const char *as)
{
    const struct cJSON *item = json_get(root, key);
    if (!cJSON_IsNumber(item)) return;
    buf_printf(data, ",\"%s\":", as);
    json_out_double(data, item->valuedouble);
}

/* An event of one line of metrics.jsonl. */
static void metrics_event(struct jobs *j, struct job *job, const struct cJSON *root)
{
    struct buf data;
    char loss[40] = "", val[48] = "";
    const struct cJSON *train = json_get(root, "loss"), *valid = json_get(root, "val_loss");
    if (cJSON_IsNumber(train))
        snprintf(loss, sizeof loss, ", training loss=%.4f", train->valuedouble);
    if (cJSON_IsNumber(valid))
        snprintf(val, sizeof val, ", validation loss=%.4f", valid->valuedouble);
    buf_init(&data, EVENT_DATA_LIMIT);
    buf_printf(&data, "{\"step\":%" PRId64, job->job.step);
    add_metric(&data, root, "loss", "train_loss");
    add_metric(&data, root, "val_loss", "valid_loss");
    add_metric(&data, root, "lr", "lr");
    add_metric(&data, root, "grad_norm", "grad_norm");
    add_metric(&data, root, "tokens_per_s", "tokens_per_s");
    add_metric(&data, root, "memory_bytes", "memory_bytes");
    buf_putc(&data, '}');
    if (!data.failed)
        job_store_event(j->dir, &job->job, "info", data.data, "Step %" PRId64 "%s%s",
                        job->job.step, loss, val);
    buf_free(&data);
    tell(j, job);
    job->metrics_event_ns = clock_ns();
    job->metrics_line[0] = 0;
}

struct metrics_reader { struct jobs *jobs; struct job *job; };

/* job_line_fn. At most one event a second, but for evaluations: a small model makes hundreds of
 * steps in that time. */
static void see_metrics(void *ctx, const char *line, size_t n)
{
    struct metrics_reader *r = ctx;
    struct job *job = r->job;
    int64_t step;
    struct cJSON *root = json_parse(line, n, METRICS_DEPTH, "metrics.jsonl", NULL);
    if (root && json_to_i64(json_get(root, "step"), &step) && step > job->job.step) {
        job->job.step = step;
        if (cJSON_IsNumber(json_get(root, "val_loss"))
            || clock_ns() - job->metrics_event_ns >= metrics_event_interval_ns)
            metrics_event(r->jobs, job, root);
        else if (n < sizeof job->metrics_line)
            snprintf(job->metrics_line, sizeof job->metrics_line, "%.*s", (int)n, line);
    }
    cJSON_Delete(root);
}

/* As the trainer has it, with all that it chose. */
static bool read_run_config(const struct jobs *j, const struct ft_job *f, struct train_config *c)
{
    char path[DATA_PATH_MAX];
    struct gpt_config model;
    struct error err;
    return job_path(j->dir, f, JOB_MODEL_NAME, path, &err)
           && train_state_read_config(path, &model, c, &err);
}

/* A trainer has made its first step that is seen: by now it has told its config. */
static void begin_steps(struct jobs *j, struct job *job, int64_t now)
{
    struct train_config c;
    struct error why;
    job->seen_ns = now;
    job->seen_step = job->job.step;
    if (!read_run_config(j, &job->job, &c)) return;
    job->n_steps = c.max_iters;
    if (train_config_warms_up(&c, &why)) return;
    job_store_event(j->dir, &job->job, "warn", NULL, "%s", why.text);
    tell(j, job);
}

/* At the mean pace since the first step that was seen, in which evaluations and checkpoints have
 * their part. */
static void estimate_finish(struct jobs *j, struct job *job)
{
    struct ft_job *f = &job->job;
    int64_t now = clock_ns();
    if (job->seen_ns == 0) {
        begin_steps(j, job, now);
        return;
    }
    double step_ns = (double)(now - job->seen_ns) / (double)(f->step - job->seen_step);
    double left_s = step_ns * (double)(job->n_steps - f->step) / 1e9;
    bool known = left_s >= 0 && left_s < LONGEST_S;
    f->estimated_finish = known ? time(NULL) + (int64_t)ceil(left_s) : 0;
}

static void read_metrics(struct jobs *j, struct job *job)
{
    struct metrics_reader r = {j, job};
    int64_t step = job->job.step;
    job_read_metrics(j->dir, &job->job, &job->metrics_offset, see_metrics, &r);
    if (job->job.step > step) estimate_finish(j, job);
}

/* The last step has its event, whenever it came. */
static void flush_metrics(struct jobs *j, struct job *job)
{
    read_metrics(j, job);
    if (!job->metrics_line[0]) return;
    struct cJSON *root = json_parse(job->metrics_line, strlen(job->metrics_line), METRICS_DEPTH,
                                    "metrics.jsonl", NULL);
    if (root) metrics_event(j, job, root);
    cJSON_Delete(root);
}

/* ---- ending ---- */

/* "SIGKILL", for those that a process is likely to die of. */
static const char *signal_name(int number)
{
    const char *name = sigabbrev_np(number);
    return name ? name : "unknown";
}

static void note_failure(struct jobs *j, struct job *job, int status)
{
    char words[360], text[512];
    job_last_words(j->dir, &job->job, "stderr.log", words, sizeof words);
    const char *colon = words[0] ? ": " : "";
    if (WIFSIGNALED(status)) {
        int number = WTERMSIG(status);
        snprintf(text, sizeof text, "the trainer was ended by SIG%s%s; %s%s%s", signal_name(number),
                 number == SIGKILL ? " (out of memory, or by an operator)" : "",
                 job_has_checkpoint(j->dir, &job->job)
                     ? "resume the job to go on from its last checkpoint"
                     : "it has no checkpoint to go on from", colon, words);
        fail_job(j, job, "killed", text);
    } else if (WEXITSTATUS(status) == EXIT_NO_FIT) {
        fail_job(j, job, "does_not_fit", words[0] ? words : "the run does not fit into memory");
    } else if (WEXITSTATUS(status) == 0) {
        fail_job(j, job, "trainer_failed", "the trainer ended without leaving a model");
    } else {
        snprintf(text, sizeof text, "the trainer failed with exit code %d%s%s",
                 WEXITSTATUS(status), colon, words);
        fail_job(j, job, "trainer_failed", text);
    }
}

/* The steps' tokens, by the config that the run left; 0: it has none that can be read. */
static int64_t count_trained(const struct jobs *j, const struct ft_job *f)
{
    struct train_config c;
    int64_t n;
    if (!read_run_config(j, f, &c) || !checked_mul(c.batch_size, c.grad_accum_steps, &n)
        || !checked_mul(n, c.sequence_length, &n) || !checked_mul(n, f->step, &n))
        return 0;
    return n;
}

static void note_success(struct jobs *j, struct job *job)
{
    char message[160];
    struct ft_job *f = &job->job;
    f->trained_tokens = count_trained(j, f);
    ft_model_name(f, f->fine_tuned_model);
    snprintf(message, sizeof message, "New fine-tuned model created: %s", f->fine_tuned_model);
    job_set_state(j, job, JOB_SUCCEEDED, "info", message);
}

/* A trainer that somebody else told to end (an operator's SIGTERM) ends well, but is not done: its
 * exit code says nothing of it, its last line does. */
static bool was_stopped(const struct jobs *j, const struct job *job)
{
    char words[512];
    job_last_words(j->dir, &job->job, "stdout.log", words, sizeof words);
    return strstr(words, "stopped after step") != NULL;
}

static void end_job(struct jobs *j, struct job *job, int status)
{
    struct error err;
    flush_metrics(j, job);
    job->pid = 0; /* the event that follows is the last, if it is over */
    if (job->stopping) {
        /* What it is now was decided when it was told to end. */
        job->stopping = false;
        job_store_event(j->dir, &job->job, "info", NULL, "The trainer has ended");
        tell(j, job);
        if (!job_store_save(j->dir, &job->job, &err)) log_error("%s: %s", job->job.id, err.text);
    } else if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && job_has_model(j->dir, &job->job)) {
        if (was_stopped(j, job))
            job_set_state(j, job, JOB_PAUSED, "warn",
                          "The trainer was stopped from outside; the job is paused");
        else
            note_success(j, job);
    } else {
        note_failure(j, job, status);
    }
}

/* ---- memory ---- */

static int64_t count_running(const struct jobs *j)
{
    int64_t n = 0;
    for (size_t i = 0; i < j->n; i++) n += j->at[i]->pid != 0;
    return n;
}

/* The plan is the trainer's word, once it has one that can be true; what it takes is the
 * kernel's. */
static void look_at_memory(struct jobs *j, struct job *job)
{
    char dir[DATA_PATH_MAX];
    struct error err;
    struct api_job_memory *m = &job->memory;
    int64_t rss, peak;
    if (!job_path(j->dir, &job->job, JOB_MODEL_NAME, dir, &err) || !job_memory_read(dir, m, &err))
        log_debug("job %s: %s", job->job.id, err.text);
    if (!process_memory_of(job->pid, &rss, &peak)) return;
    m->rss_bytes = rss;
    m->peak_rss_bytes = peak;
}

/* For those who ask, once a second and when a trainer has come or gone. */
static void publish_memory(struct jobs *j)
{
    size_t running = (size_t)count_running(j), n = 0;
    if (running == j->n_memory && clock_ns() - j->memory_ns < memory_interval_ns) return;
    j->memory_ns = clock_ns();
    for (size_t i = 0; i < j->n; i++)
        if (j->at[i]->pid) look_at_memory(j, j->at[i]);
    pthread_mutex_lock(&j->memory_mutex);
    for (size_t i = 0; i < j->n && n < JOBS_MAX_RUNNING; i++)
        if (j->at[i]->pid) j->memory[n++] = j->at[i]->memory;
    j->n_memory = n;
    pthread_mutex_unlock(&j->memory_mutex);
}

/* ---- the thread ---- */

static void watch_running(struct jobs *j)
{
    for (size_t i = 0; i < j->n; i++) {
        struct job *job = j->at[i];
        int status;
        if (job->pid == 0) continue;
        if (job_process_ended(job->pid, &status)) {
            end_job(j, job, status);
            continue;
        }
        read_metrics(j, job);
        if (j->draining && j->drain_deadline_ns)
            job->kill_ns = min_i64(job->kill_ns, j->drain_deadline_ns);
        if (job->stopping && clock_ns() > job->kill_ns) {
            log_warn("job %s: its trainer does not end; killed", job->job.id);
            job_process_signal(job->pid, SIGKILL);
            job->kill_ns = INT64_MAX;
        }
    }
}

/* Does one wait for memory? */
static bool anyone_waits(const struct jobs *j)
{
    bool waits = false;
    for (size_t i = 0; i < j->n && !waits; i++)
        waits = j->at[i]->job.state == JOB_QUEUED && j->at[i]->job.queued_reason[0];
    return waits && !j->draining;
}

/* The oldest that waits, but before all one that a server's end interrupted; NULL: none. */
static struct job *next_queued(const struct jobs *j)
{
    struct job *next = NULL;
    for (size_t i = 0; i < j->n; i++) {
        struct job *job = j->at[i];
        if (job->job.state != JOB_QUEUED || job->pid) continue;
        if (job->goes_first) return job;
        if (!next) next = job;
    }
    return next;
}

static void start_queued(struct jobs *j)
{
    struct job *job;
    /* Nobody overtakes one that waits for memory. */
    while (count_running(j) < j->options.max_running && (job = next_queued(j)) && job_admit(j, job))
        start_job(j, job);
}

static void wait_for_news(struct jobs *j)
{
    if (count_running(j) == 0 && !anyone_waits(j)) {
        pthread_cond_wait(&j->news, &j->mutex);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += POLL_MS * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&j->news, &j->mutex, &until);
}

void *jobs_run(void *arg)
{
    struct jobs *j = arg;
    pthread_mutex_lock(&j->mutex);
    for (;;) {
        watch_running(j);
        if (!j->draining) start_queued(j);
        publish_memory(j);
        if (j->stopped && count_running(j) == 0) break;
        wait_for_news(j);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}
