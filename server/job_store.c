/* Jobs on disk: see job_store.h. */
#include "server/job_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"

enum {
    JOB_JSON_LIMIT = 64 * 1024,
    EVENTS_LIMIT = 256 << 20,
    EVENT_LIMIT = 4096,
    LINES_CHUNK = 16 * 1024,
    METRICS_DEPTH = 4,
    MAX_CHECKPOINTS = 4096,
    WORDS_LOOKED_AT = 4096,
};

bool job_path(const struct data_dir *d, const struct ft_job *job, const char *rest,
              char out[DATA_PATH_MAX], struct error *err)
{
    return data_dir_path(d, out, "jobs", job->id, rest, err);
}

/* ---- making, saving, loading ---- */

static bool take_data(const struct data_dir *d, const struct ft_job *job, const char *name,
                      const char *from, char *out, size_t size, struct error *err)
{
    char to[DATA_PATH_MAX];
    const char *slash = strrchr(from, '/'), *dot = strrchr(slash ? slash : from, '.');
    snprintf(out, size, "%s%.16s", name, dot ? dot : "");
    if (!job_path(d, job, out, to, err)) return false;
    if (link(from, to) == 0) return true;
    if (errno == ENOENT)
        return error_set(err, ERR_NOT_FOUND, "file", "the file was deleted meanwhile");
    return error_errno(err, "cannot link %s to %s", from, to);
}

/* Does `path`, without links, lie in some job's folder? */
static bool lies_in_jobs(const struct data_dir *d, const char *path)
{
    char jobs[DATA_PATH_MAX], real[PATH_MAX];
    size_t n;
    if (!data_dir_path(d, jobs, "jobs", NULL, NULL, NULL) || !realpath(jobs, real)) return false;
    n = strlen(real);
    return strncmp(path, real, n) == 0 && path[n] == '/';
}

/* A checkpoint's manifest is the last of it to be written, and the first to go. */
static bool is_complete(const char *checkpoint)
{
    char manifest[PATH_MAX];
    return path_join(manifest, sizeof manifest, checkpoint, "manifest.json", NULL)
           && file_exists(manifest);
}

static bool take_start(const struct data_dir *d, struct ft_job *job, struct error *err)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json", "generation_config.json",
                                        "train_config.json"};
    char start[DATA_PATH_MAX], from[DATA_PATH_MAX], to[DATA_PATH_MAX];
    if (!lies_in_jobs(d, job->init_from)) return true;
    if (!job_path(d, job, "start", start, err) || !directory_make(start, err)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!path_join(from, sizeof from, job->init_from, names[i], err)
            || !path_join(to, sizeof to, start, names[i], err))
            return false;
        if (link(from, to) == 0) continue;
        if (errno != ENOENT) return error_errno(err, "cannot link %s to %s", from, to);
        if (i < 2) /* without these it is no model */
            return error_set(err, ERR_NOT_FOUND, "model", "the model was removed meanwhile");
    }
    if (strstr(job->init_from, "/checkpoints/step-") && !is_complete(job->init_from))
        return error_set(err, ERR_NOT_FOUND, "model", "the checkpoint was removed meanwhile");
    snprintf(job->init_from, sizeof job->init_from, "%s", start);
    return true;
}

bool job_store_create(const struct data_dir *d, struct ft_job *job, const char *training,
                      const char *validation, struct error *err)
{
    char dir[DATA_PATH_MAX], metrics[DATA_PATH_MAX];
    struct error ignored;
    if (!job_path(d, job, NULL, dir, err) || !job_path(d, job, "metrics.jsonl", metrics, err)
        || !directory_make(dir, err))
        return false;
    bool ok = take_data(d, job, "training", training, job->training_path,
                        sizeof job->training_path, err)
              && (!validation || take_data(d, job, "validation", validation, job->validation_path,
                                           sizeof job->validation_path, err));
    ok = ok && take_start(d, job, err);
    if (ok && symlink(JOB_MODEL_NAME "/metrics.jsonl", metrics) != 0)
        ok = error_errno(err, "cannot link %s", metrics);
    ok = ok && job_store_save(d, job, err);
    if (!ok && !data_remove_tree(dir, &ignored)) log_warn("%s", ignored.text);
    return ok;
}

bool job_store_save(const struct data_dir *d, const struct ft_job *job, struct error *err)
{
    char path[DATA_PATH_MAX];
    struct buf json;
    if (!job_path(d, job, "job.json", path, err)) return false;
    buf_init(&json, JOB_JSON_LIMIT);
    ft_job_render(job, &json);
    buf_putc(&json, '\n');
    bool ok = buf_check(&json, path, err) && file_write_atomic(path, json.data, json.len, err);
    buf_free(&json);
    return ok;
}

bool job_store_load(const struct data_dir *d, const char *id, struct ft_job *out,
                    struct error *err)
{
    char path[DATA_PATH_MAX];
    struct buf json;
    if (!data_dir_path(d, path, "jobs", id, "job.json", err)) return false;
    buf_init(&json, JOB_JSON_LIMIT);
    bool ok = file_read(path, &json, err) && ft_job_parse(json.data, json.len, path, out, err);
    buf_free(&json);
    if (ok && strcmp(out->id, id) != 0)
        return error_set(err, ERR_FORMAT, NULL, "%s: is of the job %s", path, out->id);
    return ok;
}

/* ---- events ---- */

/* Opens events.jsonl; *offset: where the next line begins. A line that a crash cut short gets its
 * end first. -1 on failure. */
static int open_events(const struct data_dir *d, const struct ft_job *job, int64_t *offset)
{
    char path[DATA_PATH_MAX], last = '\n';
    struct error err;
    struct stat st;
    if (!job_path(d, job, "events.jsonl", path, &err)) return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || fstat(fd, &st) != 0) {
        log_warn("cannot open %s: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return -1;
    }
    *offset = st.st_size;
    if (st.st_size > 0 && pread(fd, &last, 1, st.st_size - 1) == 1 && last != '\n'
        && write(fd, "\n", 1) == 1)
        ++*offset;
    return fd;
}

void job_store_event(const struct data_dir *d, const struct ft_job *job, const char *level,
                     const char *data, const char *fmt, ...)
{
    char message[600];
    int64_t offset;
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    int fd = open_events(d, job, &offset);
    if (fd < 0) return;
    struct ft_event e = {
        .created_at = time(NULL), .level = level, .type = data ? "metrics" : "message",
        .message = message, .data = data,
    };
    snprintf(e.id, sizeof e.id, "ftevent-%s-%" PRId64, job->id + strlen("ftjob-"), offset);
    struct buf line;
    buf_init(&line, EVENT_LIMIT);
    ft_event_render(&e, &line);
    buf_putc(&line, '\n');
    if (!line.failed && write(fd, line.data, line.len) != (ssize_t)line.len)
        log_warn("cannot write an event of %s: %s", job->id, strerror(errno));
    buf_free(&line);
    close(fd);
}

bool job_event_is_whole(const char *line, size_t n)
{
    return n > 2 && line[0] == '{' && line[n - 1] == '}';
}

/* The line's id is `id`? Lines are what ft_event_render wrote: {"id":"...", first. */
static bool line_has_id(const char *line, size_t n, const char *id)
{
    size_t len = strlen(id);
    static const char head[] = "{\"id\":\"";
    size_t h = sizeof head - 1;
    return n > h + len + 1 && memcmp(line, head, h) == 0 && memcmp(line + h, id, len) == 0
           && line[h + len] == '"';
}

/* An event's id ends in where its line begins. */
static bool find_event(int fd, const char *id, int64_t *offset)
{
    char line[EVENT_LIMIT + 1], *end;
    const char *dash = strrchr(id, '-');
    errno = 0;
    int64_t begin = dash ? strtoll(dash + 1, &end, 10) : -1;
    if (begin < 0 || end == dash + 1 || *end || errno) return false;
    ssize_t got = pread(fd, line, sizeof line, begin);
    const char *newline = got > 0 ? memchr(line, '\n', (size_t)got) : NULL;
    if (!newline || !line_has_id(line, (size_t)(newline - line), id)) return false;
    *offset = begin + (newline - line) + 1;
    return true;
}

int job_store_open_events(const struct data_dir *d, const struct ft_job *job, const char *after,
                          int64_t *offset, struct error *err)
{
    char path[DATA_PATH_MAX];
    if (!job_path(d, job, "events.jsonl", path, err)) return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *offset = 0;
    if (fd < 0) {
        error_errno(err, "cannot open %s", path);
    } else if (after && !find_event(fd, after, offset)) {
        error_set(err, ERR_INVALID, "after", "'after' is no event of this job");
        close(fd);
        fd = -1;
    }
    return fd;
}

/* The line that ends before *end, which moves to its beginning. False at the file's beginning. A
 * line that a crash cut short is passed over. */
static bool previous_line(const char *text, size_t *end, const char **line, size_t *n)
{
    while (*end > 0) {
        size_t stop = *end;
        bool whole = text[stop - 1] == '\n';
        size_t begin = stop - 1;
        while (begin > 0 && text[begin - 1] != '\n') begin--;
        *end = begin;
        *line = text + begin;
        *n = stop - begin - (whole ? 1 : 0);
        if (whole && job_event_is_whole(*line, *n)) return true;
    }
    return false;
}

bool job_store_list_events(const struct data_dir *d, const struct ft_job *job,
                           const struct api_page *page, struct buf *out, struct error *err)
{
    char path[DATA_PATH_MAX];
    struct buf text;
    struct error why = {0};
    if (!job_path(d, job, "events.jsonl", path, err)) return false;
    buf_init(&text, EVENTS_LIMIT);
    if (!file_read(path, &text, &why) && why.code != ERR_NOT_FOUND) {
        buf_free(&text);
        *err = why;
        return false;
    }
    bool begun = !page->after, more = false;
    int64_t shown = 0;
    const char *line;
    size_t n;
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t end = text.len; !more && previous_line(text.data, &end, &line, &n);) {
        if (!begun) {
            begun = line_has_id(line, n, page->after);
            continue;
        }
        more = shown == page->limit;
        if (more) break;
        if (shown++) buf_putc(out, ',');
        buf_append(out, line, n);
    }
    buf_printf(out, "],\"has_more\":%s}", more ? "true" : "false");
    buf_free(&text);
    return begun || error_set(err, ERR_INVALID, "after", "'after' is no event of this job");
}

/* ---- lines of a growing file ---- */

enum lines_read job_read_lines(int fd, int64_t *offset, job_line_fn see, void *ctx)
{
    char chunk[LINES_CHUNK];
    ssize_t got;
    do got = pread(fd, chunk, sizeof chunk, *offset);
    while (got < 0 && errno == EINTR);
    if (got < 0) return LINES_FAILED;
    const char *line = chunk, *stop = chunk + got, *newline;
    while ((newline = memchr(line, '\n', (size_t)(stop - line)))) {
        see(ctx, line, (size_t)(newline - line));
        line = newline + 1;
    }
    /* A line longer than the chunk is none of ours: pass it over. */
    if (line == chunk && got == LINES_CHUNK) line = stop;
    *offset += line - chunk;
    return line == chunk ? LINES_NONE : LINES_SOME;
}

void job_read_metrics(const struct data_dir *d, const struct ft_job *job, int64_t *offset,
                      job_line_fn see, void *ctx)
{
    char path[DATA_PATH_MAX];
    struct stat st;
    if (!job_path(d, job, JOB_MODEL_NAME "/metrics.jsonl", path, NULL)) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        if (st.st_size < *offset) *offset = 0;
        while (job_read_lines(fd, offset, see, ctx) == LINES_SOME) continue;
    }
    close(fd);
}

/* ---- checkpoints ---- */

struct checkpoint_seen {
    struct ft_checkpoint c;
    char path[DATA_PATH_MAX];
};

struct checkpoint_list {
    struct checkpoint_seen *at; /* newest first */
    size_t n;
};

static bool step_of(const char *name, int64_t *step)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
    errno = 0;
    *step = strtoll(name + 5, &end, 10);
    return *end == 0 && errno == 0;
}

static int newest_checkpoint_first(const void *a, const void *b)
{
    const struct checkpoint_seen *x = a, *y = b;
    return x->c.step < y->c.step ? 1 : x->c.step > y->c.step ? -1 : 0;
}

/* The folders model/checkpoints/step-N that are complete. */
static bool list_checkpoints(const struct data_dir *d, const struct ft_job *job,
                             struct checkpoint_list *out, struct error *err)
{
    char dir[DATA_PATH_MAX];
    *out = (struct checkpoint_list){0};
    if (!job_path(d, job, JOB_MODEL_NAME "/checkpoints", dir, err)) return false;
    DIR *folder = opendir(dir);
    if (!folder) return errno == ENOENT || error_errno(err, "cannot read the folder %s", dir);
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(folder)) && out->n < MAX_CHECKPOINTS;) {
        int64_t step;
        struct stat st;
        if (!step_of(e->d_name, &step)) continue;
        void *more = realloc(out->at, (out->n + 1) * sizeof *out->at);
        if (!more) {
            ok = error_set(err, ERR_MEMORY, NULL, "no memory to list the checkpoints");
            break;
        }
        out->at = more;
        struct checkpoint_seen *c = &out->at[out->n];
        *c = (struct checkpoint_seen){
            .c = {.step = step, .train_loss = NAN, .valid_loss = NAN}};
        ok = path_join(c->path, sizeof c->path, dir, e->d_name, err);
        if (!ok || !is_complete(c->path) || stat(c->path, &st) != 0) continue;
        c->c.created_at = st.st_mtime;
        out->n++;
    }
    closedir(folder);
    if (!ok) {
        free(out->at);
        return false;
    }
    if (out->n) qsort(out->at, out->n, sizeof *out->at, newest_checkpoint_first);
    for (size_t i = 0; i < out->n; i++) out->at[i].c.path = out->at[i].path;
    return true;
}

bool job_find_checkpoint(const struct data_dir *d, const struct ft_job *job, int64_t step,
                         char path[DATA_PATH_MAX], int64_t *created_at)
{
    char name[80];
    struct stat st;
    snprintf(name, sizeof name, JOB_MODEL_NAME "/checkpoints/step-%" PRId64, step);
    if (!job_path(d, job, name, path, NULL) || !is_complete(path) || stat(path, &st) != 0)
        return false;
    *created_at = st.st_mtime;
    return true;
}

bool job_has_checkpoint(const struct data_dir *d, const struct ft_job *job)
{
    struct checkpoint_list list;
    if (!list_checkpoints(d, job, &list, NULL)) return false;
    free(list.at);
    return list.n > 0;
}

/* job_line_fn: what a line of metrics says of one of the checkpoints. */
static void see_metrics(void *ctx, const char *line, size_t n)
{
    struct checkpoint_list *list = ctx;
    int64_t step;
    struct cJSON *root = json_parse(line, n, METRICS_DEPTH, "metrics.jsonl", NULL);
    if (root && json_to_i64(json_get(root, "step"), &step))
        for (size_t i = 0; i < list->n; i++) {
            struct ft_checkpoint *c = &list->at[i].c;
            if (c->step != step) continue;
            const struct cJSON *loss = json_get(root, "loss"), *val = json_get(root, "val_loss");
            if (cJSON_IsNumber(loss)) c->train_loss = loss->valuedouble;
            if (cJSON_IsNumber(val)) c->valid_loss = val->valuedouble;
        }
    cJSON_Delete(root);
}

bool job_store_list_checkpoints(const struct data_dir *d, const struct ft_job *job,
                                const struct api_page *page, struct buf *out, struct error *err)
{
    struct checkpoint_list list;
    int64_t after = INT64_MAX, offset = 0, shown = 0;
    if (page->after) {
        const char *dash = strrchr(page->after, '-');
        char *end;
        after = dash ? strtoll(dash + 1, &end, 10) : 0;
        if (!dash || end == dash + 1 || *end)
            return error_set(err, ERR_INVALID, "after", "'after' is no checkpoint's id");
    }
    if (!list_checkpoints(d, job, &list, err)) return false;
    job_read_metrics(d, job, &offset, see_metrics, &list);
    bool more = false;
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < list.n && !more; i++) {
        if (list.at[i].c.step >= after) continue;
        more = shown == page->limit;
        if (more) break;
        if (shown++) buf_putc(out, ',');
        ft_checkpoint_render(job, &list.at[i].c, out);
    }
    buf_printf(out, "],\"has_more\":%s}", more ? "true" : "false");
    free(list.at);
    return true;
}

/* ---- the trainer's traces ---- */

bool job_has_model(const struct data_dir *d, const struct ft_job *job)
{
    char config[DATA_PATH_MAX], weights[DATA_PATH_MAX];
    return job_path(d, job, JOB_MODEL_NAME "/config.json", config, NULL)
           && job_path(d, job, JOB_MODEL_NAME "/model.safetensors", weights, NULL)
           && file_exists(config) && file_exists(weights);
}

void job_last_words(const struct data_dir *d, const struct ft_job *job, const char *log, char *out,
                    size_t size)
{
    char path[DATA_PATH_MAX], tail[WORDS_LOOKED_AT + 1];
    struct stat st;
    out[0] = 0;
    if (!job_path(d, job, log, path, NULL)) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = -1;
    if (fstat(fd, &st) == 0)
        n = pread(fd, tail, WORDS_LOOKED_AT, max_i64(0, st.st_size - WORDS_LOOKED_AT));
    close(fd);
    while (n > 0 && (unsigned char)tail[n - 1] <= ' ') n--;
    if (n <= 0) return;
    tail[n] = 0;
    const char *line = strrchr(tail, '\n');
    snprintf(out, size, "%s", line ? line + 1 : tail);
    for (char *p = out; *p; p++)
        if ((unsigned char)*p < ' ') *p = ' ';
}
