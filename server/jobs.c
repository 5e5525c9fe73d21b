/* What clients ask of jobs: see jobs.h. The thread that runs them is in jobs_run.c. */
#include "server/jobs.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "model/train_config.h"
#include "server/jobs_internal.h"

enum {
    CANCEL_PATIENCE_S = 15,  /* nobody needs the checkpoint */
    STOP_PATIENCE_S = 300,   /* a large model's checkpoint on a slow disk */
};

static const char preset_prefix[] = "configs/";

void jobs_options_init(struct jobs_options *o)
{
    *o = (struct jobs_options){
        .configs_dir = "configs",
        .threads = max_i64(1, sysconf(_SC_NPROCESSORS_ONLN) / 2),
        .max_running = 1,
        .max_jobs = 1000,
    };
}

/* ---- loading what is there ---- */

static struct job *add_job(struct jobs *j, const struct ft_job *f)
{
    if (j->n == j->capacity) {
        size_t capacity = j->capacity ? 2 * j->capacity : 16;
        struct job **more = realloc(j->at, capacity * sizeof *more);
        if (!more) return NULL;
        j->at = more;
        j->capacity = capacity;
    }
    struct job *job = calloc(1, sizeof *job);
    if (!job) return NULL;
    job->job = *f;
    return j->at[j->n++] = job;
}

static int oldest_first(const void *a, const void *b)
{
    const struct ft_job *x = &(*(struct job *const *)a)->job, *y = &(*(struct job *const *)b)->job;
    if (x->created_at != y->created_at) return x->created_at < y->created_at ? -1 : 1;
    return strcmp(x->id, y->id);
}

static void load_job(struct jobs *j, const char *id)
{
    struct ft_job f;
    struct error err;
    if (!job_store_load(j->dir, id, &f, &err)) {
        /* A crash between the folder and its job.json leaves one that nobody was told of. */
        log_warn("job %s is left out: %s", id, err.text);
        return;
    }
    struct job *job = add_job(j, &f);
    if (!job) {
        log_warn("job %s is left out: no memory", id);
        return;
    }
    if (f.state == JOB_RUNNING || f.state == JOB_VALIDATING) {
        job->goes_first = true;
        job_set_state(j, job, JOB_QUEUED, "warn", "The server was restarted; the job goes on");
    }
}

static void load_jobs(struct jobs *j)
{
    char path[DATA_PATH_MAX];
    struct error err;
    if (j->loaded || !data_dir_path(j->dir, path, "jobs", NULL, NULL, &err)) return;
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (data_is_id("ftjob-", e->d_name)) load_job(j, e->d_name);
    closedir(d);
    if (j->n) qsort(j->at, j->n, sizeof *j->at, oldest_first);
    j->loaded = true;
}

/* Before anything is written. */
static bool take_folder(struct jobs *j, struct error *err)
{
    if (!file_store_take(j->files, err)) return false;
    load_jobs(j);
    return true;
}

/* ---- life ---- */

static void free_jobs(struct jobs *j)
{
    for (size_t i = 0; i < j->n; i++) free(j->at[i]);
    free(j->at);
    job_feeds_free(&j->feeds);
    pthread_cond_destroy(&j->news);
    pthread_mutex_destroy(&j->mutex);
    pthread_mutex_destroy(&j->memory_mutex);
    free(j);
}

bool jobs_start(struct data_dir *dir, struct file_store *files, const struct jobs_options *o,
                struct jobs **out, struct error *err)
{
    struct jobs *j = calloc(1, sizeof *j);
    if (!j) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    j->dir = dir;
    j->files = files;
    j->options = *o;
    job_feeds_init(&j->feeds);
    pthread_mutex_init(&j->mutex, NULL);
    pthread_mutex_init(&j->memory_mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&j->news, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (data_dir_is_taken(dir)) load_jobs(j);
    int failed = pthread_create(&j->thread, NULL, jobs_run, j);
    if (failed) {
        free_jobs(j);
        errno = failed;
        return error_errno(err, "cannot start the jobs' thread");
    }
    *out = j;
    return true;
}

void jobs_drain(struct jobs *j)
{
    pthread_mutex_lock(&j->mutex);
    j->draining = true;
    for (size_t i = 0; i < j->n; i++) job_stop(j->at[i], STOP_PATIENCE_S);
    pthread_cond_signal(&j->news);
    pthread_mutex_unlock(&j->mutex);
}

void jobs_stop(struct jobs *j, int64_t timeout_s)
{
    if (!j) return;
    jobs_drain(j);
    pthread_mutex_lock(&j->mutex);
    j->drain_deadline_ns = clock_ns() + timeout_s * 1000000000;
    j->stopped = true;
    pthread_cond_signal(&j->news);
    pthread_mutex_unlock(&j->mutex);
    pthread_join(j->thread, NULL);
    free_jobs(j);
}

/* ---- creating ---- */

bool jobs_is_preset(const char *model)
{
    return strncmp(model, preset_prefix, sizeof preset_prefix - 1) == 0;
}

bool jobs_preset_path(const struct jobs *j, const char *model, char *path, size_t size,
                      struct error *err)
{
    const char *name = model + sizeof preset_prefix - 1;
    char relative[PATH_MAX];
    bool plain = name[0] && name[0] != '.' && !strchr(name, '/');
    size_t len = strlen(name);
    bool has_ending = len > 5 && strcmp(name + len - 5, ".json") == 0;
    snprintf(relative, sizeof relative, "%s%s", name, has_ending ? "" : ".json");
    if (!plain || !path_find_beneath(j->options.configs_dir, relative, path, size, NULL))
        return error_set(err, ERR_NOT_FOUND, "model",
                         "there is no preset '%.64s'; they lie in %.200s, and are named "
                         "configs/NAME", model, j->options.configs_dir);
    return true;
}

static void set_number(struct ft_job *job, const char *name, double value)
{
    struct ft_key *key = job_find_key(job, name);
    if (!key) {
        ASSERT(job->n_keys < FT_MAX_KEYS);
        key = &job->keys[job->n_keys++];
        *key = (struct ft_key){.name = job_training_key(name)->name};
    }
    snprintf(key->value, sizeof key->value, "%.17g", value);
}

/* The multiplier's product goes to the keys; then the whole is checked, so that a job that the
 * trainer would refuse is refused now. */
static bool settle_keys(struct ft_job *job, struct error *err)
{
    struct train_config c;
    if (!job_config(job, NULL, &c, err)) return false;
    double multiplier = job->learning_rate_multiplier;
    if (multiplier > 0) {
        bool own_min = job_find_key(job, "min_lr") != NULL;
        c.learning_rate *= multiplier;
        set_number(job, "learning_rate", c.learning_rate);
        if (c.min_lr > 0 && !own_min) set_number(job, "min_lr", c.min_lr *= multiplier);
    }
    if (job->seed < 0) job->seed = c.seed;
    return train_config_check(&c, "the job", err);
}

static void take_text(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text ? text : "");
}

static bool check_file(struct jobs *j, const char *param, const char *id,
                       char path[DATA_PATH_MAX], struct error *err)
{
    struct error why = {0};
    size_t size;
    int fd;
    /* Opened, so that it is known to lie where it seems to. */
    if (file_store_content(j->files, id, path, &why)
        && file_store_open_content(j->files, id, &fd, &size, &why)) {
        close(fd);
        return true;
    }
    if (why.code == ERR_NOT_FOUND) why.code = ERR_INVALID;
    return error_set(err, why.code, param, "'%s': %.300s; upload it with POST /v1/files", param,
                     why.text);
}

static bool make_job(struct jobs *j, const struct ft_request *r, const char *config_path,
                     const char *init_from, struct ft_job *job, struct error *err)
{
    *job = (struct ft_job){
        .state = JOB_QUEUED, .created_at = time(NULL), .seed = r->seed, .n_epochs = r->n_epochs,
        .batch_size = r->batch_size, .learning_rate_multiplier = r->learning_rate_multiplier,
        .n_keys = r->n_keys,
    };
    memcpy(job->keys, r->keys, sizeof job->keys);
    take_text(job->model, sizeof job->model, r->model);
    take_text(job->suffix, sizeof job->suffix, r->suffix);
    take_text(job->training_file, sizeof job->training_file, r->training_file);
    take_text(job->validation_file, sizeof job->validation_file, r->validation_file);
    take_text(job->metadata, sizeof job->metadata, r->metadata);
    take_text(job->config_path, sizeof job->config_path, config_path);
    char full[PATH_MAX] = "";
    if (init_from && !realpath(init_from, full))
        return error_errno(err, "cannot resolve %s", init_from);
    if (strlen(full) >= sizeof job->init_from)
        return error_set(err, ERR_TOO_LARGE, "model", "the model's path is too long");
    strcpy(job->init_from, full);
    return settle_keys(job, err) && data_new_id("ftjob-", job->id, sizeof job->id, err);
}

/* Two models by one name would be a riddle. */
static bool name_is_free(const struct jobs *j, const char *suffix, struct error *err)
{
    for (size_t i = 0; suffix && i < j->n; i++) {
        const struct ft_job *f = &j->at[i]->job;
        bool dead = f->state == JOB_FAILED || f->state == JOB_CANCELLED;
        if (!dead && strcmp(f->suffix, suffix) == 0)
            return error_set(err, ERR_INVALID, "suffix",
                             "the job %s makes a model by the name '%s' already; choose another",
                             f->id, suffix);
    }
    return true;
}

/* With the mutex held. */
static bool create(struct jobs *j, const struct ft_request *r, struct ft_job *job,
                   const char *training, const char *validation, int64_t n_characters,
                   struct error *err)
{
    if (j->draining)
        return error_set(err, ERR_UNAVAILABLE, NULL, "the server is shutting down");
    if (!take_folder(j, err)) return false;
    if ((int64_t)j->n >= j->options.max_jobs)
        return error_set(err, ERR_BUSY, NULL, "there are %lld jobs, the most that are kept; remove "
                         "old ones from the data folder and restart the server",
                         (long long)j->options.max_jobs);
    if (!name_is_free(j, r->suffix, err)) return false;
    if (!job_store_create(j->dir, job, training, validation, err)) return false;
    struct job *added = add_job(j, job);
    if (!added) return error_set(err, ERR_MEMORY, NULL, "no memory for the job");
    added->n_characters = n_characters;
    job_store_event(j->dir, job, "info", NULL, "Created fine-tuning job: %s", job->id);
    pthread_cond_signal(&j->news);
    return true;
}

bool jobs_create(struct jobs *j, const struct ft_request *r, const char *config_path,
                 const char *init_from, struct buf *out, struct error *err)
{
    char training[DATA_PATH_MAX], validation[DATA_PATH_MAX];
    struct ft_job job;
    if (!check_file(j, "training_file", r->training_file, training, err)) return false;
    if (r->validation_file
        && !check_file(j, "validation_file", r->validation_file, validation, err))
        return false;
    const char *held_out = r->validation_file ? validation : NULL;
    int64_t n_characters;
    if (!make_job(j, r, config_path, init_from, &job, err)
        || !job_check_room(j, &job, training, held_out, &n_characters, err))
        return false;
    pthread_mutex_lock(&j->mutex);
    bool ok = create(j, r, &job, training, held_out, n_characters, err);
    pthread_mutex_unlock(&j->mutex);
    if (ok) ft_job_render(&job, out);
    return ok;
}

/* ---- asking and ordering ---- */

/* With the mutex held. */
static struct job *find_job(struct jobs *j, const char *id, struct error *err)
{
    for (size_t i = 0; i < j->n; i++)
        if (strcmp(j->at[i]->job.id, id) == 0) return j->at[i];
    error_set(err, ERR_NOT_FOUND, "fine_tuning_job_id", "there is no fine-tuning job '%.64s'", id);
    return NULL;
}

bool jobs_get(struct jobs *j, const char *id, struct buf *out, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct job *job = find_job(j, id, err);
    if (job) ft_job_render(&job->job, out);
    pthread_mutex_unlock(&j->mutex);
    return job != NULL;
}

static bool list(struct jobs *j, const struct api_page *page, struct buf *out)
{
    bool begun = !page->after, more = false;
    int64_t shown = 0;
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = j->n; i-- > 0 && !more;) {
        const struct ft_job *f = &j->at[i]->job;
        if (!begun) {
            begun = strcmp(f->id, page->after) == 0;
            continue;
        }
        more = shown == page->limit;
        if (more) break;
        if (shown++) buf_putc(out, ',');
        ft_job_render(f, out);
    }
    buf_printf(out, "],\"has_more\":%s}", more ? "true" : "false");
    return begun;
}

bool jobs_list(struct jobs *j, const struct api_page *page, struct buf *out, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    bool ok = list(j, page, out);
    pthread_mutex_unlock(&j->mutex);
    return ok || error_set(err, ERR_INVALID, "after", "'after' is no fine-tuning job");
}

static bool wrong_state(const struct job *job, const char *what, struct error *err)
{
    return error_set(err, ERR_INVALID, "status", "the job %s is %s: it cannot be %s", job->job.id,
                     job_state_name(job->job.state), what);
}

static bool resume(struct jobs *j, struct job *job, struct error *err)
{
    bool failed = job->job.state == JOB_FAILED && job_has_checkpoint(j->dir, &job->job);
    if (job->job.state != JOB_PAUSED && !failed)
        return wrong_state(job, job->job.state == JOB_FAILED
                           ? "resumed, for it has no checkpoint; create it anew" : "resumed", err);
    job->job.error_code[0] = job->job.error_message[0] = 0;
    job->job.finished_at = 0;
    job_set_state(j, job, JOB_QUEUED, "info", "The job was resumed and waits for its turn");
    return true;
}

/* With the mutex held. */
static bool obey(struct jobs *j, struct job *job, enum job_order order, struct error *err)
{
    enum job_state state = job->job.state;
    switch (order) {
    case JOB_CANCEL:
        if (job_state_is_final(state)) return wrong_state(job, "cancelled", err);
        job_set_state(j, job, JOB_CANCELLED, "info", "The job was cancelled");
        job_stop(job, CANCEL_PATIENCE_S);
        return true;
    case JOB_PAUSE:
        if (state != JOB_QUEUED && state != JOB_RUNNING) return wrong_state(job, "paused", err);
        job_set_state(j, job, JOB_PAUSED, "info", "The job was paused");
        job_stop(job, STOP_PATIENCE_S);
        return true;
    case JOB_RESUME: return resume(j, job, err);
    }
    return false;
}

bool jobs_order(struct jobs *j, const char *id, enum job_order order, struct buf *out,
                struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct job *job = find_job(j, id, err);
    bool ok = job && obey(j, job, order, err);
    if (ok) ft_job_render(&job->job, out);
    pthread_cond_signal(&j->news);
    pthread_mutex_unlock(&j->mutex);
    return ok;
}

bool jobs_events(struct jobs *j, const char *id, const struct api_page *page, struct buf *out,
                 struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct job *job = find_job(j, id, err);
    bool ok = job && job_store_list_events(j->dir, &job->job, page, out, err);
    pthread_mutex_unlock(&j->mutex);
    return ok;
}

bool jobs_follow(struct jobs *j, const char *id, const char *after, struct job_feed **out,
                 struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct job *job = find_job(j, id, err);
    bool ok = job && job_feed_open(&j->feeds, j->dir, &job->job, after, job_is_over(job), out, err);
    pthread_mutex_unlock(&j->mutex);
    return ok;
}

bool jobs_checkpoints(struct jobs *j, const char *id, const struct api_page *page,
                      struct buf *out, struct error *err)
{
    pthread_mutex_lock(&j->mutex);
    struct job *job = find_job(j, id, err);
    bool ok = job && job_store_list_checkpoints(j->dir, &job->job, page, out, err);
    pthread_mutex_unlock(&j->mutex);
    return ok;
}

size_t jobs_memory(struct jobs *j, struct api_job_memory out[JOBS_MAX_RUNNING])
{
    pthread_mutex_lock(&j->memory_mutex);
    size_t n = j->n_memory;
    memcpy(out, j->memory, n * sizeof *out);
    pthread_mutex_unlock(&j->memory_mutex);
    return n;
}

/* ---- the models that came out ---- */

struct model_search { const char *name; char *path; int64_t *created_at; bool found; };

static void compare_model(void *ctx, const char *name, const char *path, int64_t created_at)
{
    struct model_search *s = ctx;
    if (strcmp(name, s->name) != 0) return;
    snprintf(s->path, DATA_PATH_MAX, "%s", path);
    *s->created_at = created_at;
    s->found = true;
}

static bool find_checkpoint(struct jobs *j, const char *name, char path[DATA_PATH_MAX],
                            int64_t *created_at)
{
    bool found = false;
    int64_t step;
    pthread_mutex_lock(&j->mutex);
    for (size_t i = 0; i < j->n && !found; i++)
        found = ft_checkpoint_step(&j->at[i]->job, name, &step)
                && job_find_checkpoint(j->dir, &j->at[i]->job, step, path, created_at);
    pthread_mutex_unlock(&j->mutex);
    return found;
}

bool jobs_find_model(struct jobs *j, const char *name, char path[DATA_PATH_MAX],
                     int64_t *created_at)
{
    struct model_search s = {.name = name, .path = path, .created_at = created_at};
    jobs_visit_models(j, compare_model, &s);
    return s.found || find_checkpoint(j, name, path, created_at);
}

void jobs_visit_models(struct jobs *j, jobs_model_fn visit, void *ctx)
{
    char path[DATA_PATH_MAX];
    pthread_mutex_lock(&j->mutex);
    for (size_t i = 0; i < j->n; i++) {
        const struct ft_job *f = &j->at[i]->job;
        if (f->state == JOB_SUCCEEDED && job_path(j->dir, f, JOB_MODEL_NAME, path, NULL))
            visit(ctx, f->fine_tuned_model, path, f->finished_at);
    }
    pthread_mutex_unlock(&j->mutex);
}
