/* metrics.jsonl: see train_metrics.h. */
#include "model/train_metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "model/trainer.h"

enum { LINE_BYTES = 8192 };

/* How a file says which step its lines are of. */
struct line_format {
    const char *scan;   /* of a line that names its step */
    bool others_belong; /* lines that do not are part of what precedes them; else they are torn */
};
static const struct line_format metrics_format = {"{\"step\":%lld", false};
static const struct line_format samples_format = {"---- step %lld", true};

/* Bytes up to the first line of a later step. */
static size_t bytes_until(const struct file_map *map, int64_t step, const struct line_format *f)
{
    const char *text = (const char *)map->data, *end = text + map->size;
    for (const char *line = text; line < end;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        char head[48] = "";
        long long number;
        if (!newline) return (size_t)(line - text);
        memcpy(head, line, (size_t)(newline - line) < sizeof head ? (size_t)(newline - line)
                                                                  : sizeof head - 1);
        bool named = sscanf(head, f->scan, &number) == 1;
        if (named ? number > step : !f->others_belong) return (size_t)(line - text);
        line = newline + 1;
    }
    return map->size;
}

static bool kept_bytes(const char *path, int64_t step, const struct line_format *f, size_t *out,
                       struct error *err)
{
    struct file_map map;
    *out = 0;
    if (step == 0 || !file_exists(path)) return true;
    if (!file_map_open(path, &map, err)) return false;
    *out = map.data ? bytes_until(&map, step, f) : 0;
    file_map_close(&map);
    return true;
}

bool train_samples_cut(const char *path, int64_t step, struct error *err)
{
    size_t keep;
    if (!kept_bytes(path, step, &samples_format, &keep, err)) return false;
    return truncate(path, (off_t)keep) == 0 || errno == ENOENT ||
           error_errno(err, "cannot write %s", path);
}

bool train_metrics_open(struct train_metrics *m, const char *path, int64_t step, struct error *err)
{
    size_t keep;
    m->fd = -1;
    if (!kept_bytes(path, step, &metrics_format, &keep, err)) return false;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return error_errno(err, "cannot write %s", path);
    if (ftruncate(fd, (off_t)keep) != 0) {
        error_errno(err, "cannot write %s", path);
        close(fd);
        return false;
    }
    m->fd = fd;
    return true;
}

void train_metrics_close(struct train_metrics *m)
{
    if (m->fd >= 0) close(m->fd);
    m->fd = -1;
}

/* A line under construction, in memory of its own: steps allocate nothing. */
struct line {
    char text[LINE_BYTES];
    size_t n;
};

static void put(struct line *l, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void put(struct line *l, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(l->text + l->n, sizeof l->text - l->n, fmt, args);
    va_end(args);
    ASSERT(n >= 0);
    l->n += (size_t)n;
    if (l->n >= sizeof l->text) l->n = sizeof l->text - 1;
}

/* Set names are what the caller made of file names: what JSON would need escaped becomes "_". */
static void put_name(struct line *l, const char *name)
{
    put(l, "\"");
    for (const char *s = name; *s; s++)
        put(l, "%c", *s < ' ' || *s == '"' || *s == '\\' || *s == 127 ? '_' : *s);
    put(l, "\":");
}

static void put_evaluation(struct line *l, const struct trainer_evaluation *e)
{
    if (e->n_sets == 0) return;
    put(l, ",\"val_loss\":%.9g", e->loss[0]);
    if (e->n_sets == 1) return;
    put(l, ",\"val_losses\":{");
    for (int32_t i = 0; i < e->n_sets; i++) {
        if (i) put(l, ",");
        put_name(l, e->sets[i].name);
        put(l, "%.9g", e->loss[i]);
    }
    put(l, "}");
}

bool train_metrics_write(struct train_metrics *m, const struct trainer_step *s,
                         const struct trainer_evaluation *e, int64_t memory_bytes,
                         struct error *err)
{
    struct line l = {.n = 0};
    char norm[32] = "null"; /* JSON has no infinity */
    if (isfinite(s->grad_norm)) snprintf(norm, sizeof norm, "%.9g", s->grad_norm);
    put(&l, "{\"step\":%lld,\"loss\":%.9g,\"lr\":%.9g,\"grad_norm\":%s,\"tokens_per_s\":%.1f,"
        "\"flops_per_s\":%.6g,\"memory_bytes\":%lld", (long long)s->step, s->loss, s->lr, norm,
        s->tokens_per_s, s->flops / s->seconds, (long long)memory_bytes);
    if (s->mfu > 0) put(&l, ",\"mfu\":%.4g", s->mfu);
    if (s->loss_scale > 0)
        put(&l, ",\"loss_scale\":%.9g,\"skipped_steps\":%lld", s->loss_scale,
            (long long)s->n_skipped);
    if (e) put_evaluation(&l, e);
    put(&l, "}\n");
    ssize_t n = write(m->fd, l.text, l.n);
    if (n == (ssize_t)l.n) return true;
    if (n >= 0) errno = ENOSPC;
    return error_errno(err, "cannot write the line of step %lld to metrics.jsonl",
                       (long long)s->step);
}

bool train_metrics_sync(struct train_metrics *m, struct error *err)
{
    return fdatasync(m->fd) == 0 || error_errno(err, "cannot sync metrics.jsonl");
}
