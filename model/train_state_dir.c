/* RUN/checkpoints: finding, removing, linking. See train_state.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint_write.h"
#include "model/train_state.h"

bool train_state_path(const char *run_dir, int64_t step, char out[RUN_PATH_MAX], struct error *err)
{
    int n = snprintf(out, RUN_PATH_MAX, "%s/checkpoints/step-%lld", run_dir, (long long)step);
    return (n > 0 && n < RUN_PATH_MAX) ||
           error_set(err, ERR_TOO_LARGE, NULL, "the path of %s is too long", run_dir);
}

/* Steps of all directories named step-N, highest first. malloc'd; *n = 0 when there are none. */
struct steps { int64_t *at; size_t n, capacity; };

static int higher_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static bool push_step(struct steps *s, int64_t step)
{
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 64;
        int64_t *grown = realloc(s->at, capacity * sizeof *grown);
        if (!grown) return false;
        s->at = grown;
        s->capacity = capacity;
    }
    s->at[s->n++] = step;
    return true;
}

static bool parse_step(const char *name, int64_t *out)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
    errno = 0;
    long long step = strtoll(name + 5, &end, 10);
    *out = step;
    return !*end && !errno;
}

static bool list_steps(const char *run_dir, struct steps *out, struct error *err)
{
    char path[RUN_PATH_MAX];
    struct steps s = {0};
    *out = s;
    if (!path_join(path, sizeof path, run_dir, "checkpoints", err)) return false;
    DIR *dir = opendir(path);
    if (!dir) return errno == ENOENT || error_errno(err, "cannot list %s", path);
    bool ok = true;
    int64_t step;
    for (struct dirent *e; ok && (e = readdir(dir));)
        if (parse_step(e->d_name, &step)) ok = push_step(&s, step);
    closedir(dir);
    if (!ok) {
        free(s.at);
        return error_set(err, ERR_MEMORY, NULL, "no memory to list %s", path);
    }
    if (s.n > 0) qsort(s.at, s.n, sizeof *s.at, higher_first);
    *out = s;
    return true;
}

int64_t train_state_newest(const char *run_dir)
{
    char path[RUN_PATH_MAX];
    struct steps s;
    struct error err;
    int64_t newest = -1;
    if (!list_steps(run_dir, &s, &err)) {
        log_warn("%s", err.text);
        return -1;
    }
    for (size_t i = 0; i < s.n && newest < 0; i++) {
        if (train_state_path(run_dir, s.at[i], path, &err) && checkpoint_verify(path, &err))
            newest = s.at[i];
        else log_warn("checkpoint skipped: %s", err.text);
    }
    free(s.at);
    return newest;
}

/* All files of a directory (it has no subdirectories), then itself. */
static bool remove_directory(const char *path, struct error *err)
{
    DIR *dir = opendir(path);
    if (!dir) return errno == ENOENT || error_errno(err, "cannot open %s", path);
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (unlinkat(dirfd(dir), e->d_name, 0) != 0)
            ok = error_errno(err, "cannot remove %s/%s", path, e->d_name);
    }
    closedir(dir);
    if (ok && rmdir(path) != 0) ok = error_errno(err, "cannot remove %s", path);
    return ok;
}

bool train_state_remove(const char *run_dir, int64_t step, struct error *err)
{
    char path[RUN_PATH_MAX], manifest[RUN_PATH_MAX];
    if (!train_state_path(run_dir, step, path, err)
        || !path_join(manifest, sizeof manifest, path, "manifest.json", err))
        return false;
    /* Without its manifest it is nothing; only then do its files go. */
    if (unlink(manifest) != 0 && errno != ENOENT)
        return error_errno(err, "cannot remove %s", manifest);
    return remove_directory(path, err);
}

static bool has_manifest(const char *run_dir, int64_t step)
{
    char path[RUN_PATH_MAX], manifest[RUN_PATH_MAX];
    return train_state_path(run_dir, step, path, NULL)
           && path_join(manifest, sizeof manifest, path, "manifest.json", NULL)
           && file_exists(manifest);
}

bool train_state_prune(const char *run_dir, int64_t newest, int64_t best, int64_t keep,
                       struct error *err)
{
    struct steps s;
    if (!list_steps(run_dir, &s, err)) return false;
    bool ok = true;
    int64_t kept = 0;
    for (size_t i = 0; ok && i < s.n; i++) {
        int64_t step = s.at[i];
        if (step > newest) continue; /* not of this run's past: left for its owner to judge */
        bool complete = has_manifest(run_dir, step);
        if (complete && (step == best || kept++ < keep)) continue;
        ok = train_state_remove(run_dir, step, err);
    }
    free(s.at);
    return ok;
}

bool train_state_link_best(const char *run_dir, int64_t step, struct error *err)
{
    char link[RUN_PATH_MAX], temporary[RUN_PATH_MAX], target[40];
    snprintf(target, sizeof target, "step-%lld", (long long)step);
    if (!path_join(link, sizeof link, run_dir, "checkpoints/best", err)
        || !path_join(temporary, sizeof temporary, run_dir, "checkpoints/best.tmp", err))
        return false;
    unlink(temporary); /* of a run that was killed here */
    if (symlink(target, temporary) != 0 || rename(temporary, link) != 0)
        return error_errno(err, "cannot link %s to %s", link, target);
    return true;
}

bool train_state_lock(const char *run_dir, int *fd, struct error *err)
{
    int dir = open(run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) return error_errno(err, "cannot open %s", run_dir);
    if (flock(dir, LOCK_EX | LOCK_NB) == 0) {
        *fd = dir;
        return true;
    }
    bool busy = errno == EWOULDBLOCK;
    if (!busy) error_errno(err, "cannot lock %s", run_dir);
    close(dir);
    return busy && error_set(err, ERR_BUSY, NULL, "%s: another gptd train is at work there",
                             run_dir);
}

bool train_state_exists(const char *run_dir)
{
    char path[RUN_PATH_MAX];
    struct steps s;
    if (path_join(path, sizeof path, run_dir, "config.json", NULL) && file_exists(path))
        return true;
    if (!list_steps(run_dir, &s, NULL)) return true;
    free(s.at);
    return s.n > 0;
}

bool train_state_clear(const char *run_dir, struct error *err)
{
    struct steps s;
    if (!list_steps(run_dir, &s, err)) return false;
    bool ok = true;
    for (size_t i = 0; i < s.n && ok; i++) ok = train_state_remove(run_dir, s.at[i], err);
    free(s.at);
    return ok;
}
