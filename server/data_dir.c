/* The server's folder: see data_dir.h. */
#include "server/data_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "model/file_write.h"

enum { ID_CHARACTERS = 24, TIME_CHARACTERS = 9, TREE_DESCRIPTORS = 8 };

bool data_dir_init(struct data_dir *d, const char *path, struct error *err)
{
    char here[PATH_MAX] = "";
    *d = (struct data_dir){.lock_fd = -1};
    if (path[0] != '/' && !getcwd(here, sizeof here))
        return error_errno(err, "cannot tell the working directory");
    int n = snprintf(d->path, sizeof d->path, "%s%s%s", here, here[0] ? "/" : "", path);
    if (n > 0 && (size_t)n < sizeof d->path) return true;
    return error_set(err, ERR_TOO_LARGE, "data-dir", "--data-dir: the path has over %zu bytes",
                     sizeof d->path - 1);
}

bool data_dir_is_taken(const struct data_dir *d) { return d->lock_fd >= 0; }

static bool make(struct data_dir *d, struct error *err)
{
    char files[DATA_PATH_MAX], jobs[DATA_PATH_MAX];
    return data_dir_path(d, files, "files", NULL, NULL, err)
           && data_dir_path(d, jobs, "jobs", NULL, NULL, err) && directory_make(d->path, err)
           && directory_make(files, err) && directory_make(jobs, err);
}

static bool lock(struct data_dir *d, struct error *err)
{
    char path[DATA_PATH_MAX];
    if (!data_dir_path(d, path, "lock", NULL, NULL, err)) return false;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return error_errno(err, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return error_set(err, ERR_BUSY, NULL, "another gptd uses it");
    }
    d->lock_fd = fd;
    return true;
}

bool data_dir_take(struct data_dir *d, struct error *err)
{
    struct error why = {0};
    if (data_dir_is_taken(d)) return true;
    if (make(d, &why) && lock(d, &why)) return true;
    return error_set(err, ERR_UNAVAILABLE, NULL,
                     "files and jobs cannot be kept in %.200s: %.200s; start the server with "
                     "--data-dir and a folder it may write to", d->path, why.text);
}

void data_dir_release(struct data_dir *d)
{
    if (d->lock_fd >= 0) close(d->lock_fd);
    d->lock_fd = -1;
}

bool data_dir_path(const struct data_dir *d, char out[DATA_PATH_MAX], const char *part,
                   const char *name, const char *rest, struct error *err)
{
    int n = snprintf(out, DATA_PATH_MAX, "%s/%s%s%s%s%s", d->path, part, name ? "/" : "",
                     name ? name : "", rest ? "/" : "", rest ? rest : "");
    if (n >= 0 && n < DATA_PATH_MAX) return true;
    return error_set(err, ERR_TOO_LARGE, NULL, "a path in %.80s... is too long", d->path);
}

bool data_new_id(const char *prefix, char *out, size_t size, struct error *err)
{
    static const char alphabet[] = "012345abcdefghijklmnopqrstuvwxyz"; /* 32: no bias; in order */
    uint8_t random[ID_CHARACTERS];
    size_t n = strlen(prefix);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    ASSERT(n + ID_CHARACTERS < size);
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return error_errno(err, "cannot get random bytes");
    memcpy(out, prefix, n);
    for (int i = 0; i < ID_CHARACTERS; i++)
        out[n++] = alphabet[31 & (i < TIME_CHARACTERS ? ms >> 5 * (TIME_CHARACTERS - 1 - i)
                                                      : random[i])];
    out[n] = 0;
    return true;
}

bool data_is_id(const char *prefix, const char *id)
{
    size_t n = strlen(prefix);
    if (strncmp(id, prefix, n) != 0 || strlen(id + n) != ID_CHARACTERS) return false;
    return strspn(id + n, "abcdefghijklmnopqrstuvwxyz0123456789") == ID_CHARACTERS;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    return remove(path);
}

bool data_remove_tree(const char *path, struct error *err)
{
    if (nftw(path, remove_one, TREE_DESCRIPTORS, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT)
        return true;
    return error_errno(err, "cannot remove %s", path);
}
