/* Whole files: see file_write.h. */
#include "model/file_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "model/checkpoint_write.h"

/* Large enough that a write is a rare call, small enough for signals and network disks. */
enum { WRITE_BYTES = 8 << 20 };

static bool same_file(int fd, const char *path)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* Opens and locks the temporary file, empty. One that a crash left is taken over. */
static bool open_temporary(struct file_writer *w, struct error *err)
{
    for (;;) {
        w->fd = open(w->temporary, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (w->fd < 0) return error_errno(err, "cannot create %s", w->temporary);
        if (flock(w->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
            close(w->fd);
            return error_set(err, ERR_BUSY, NULL, "cannot write %s: another process is writing it",
                             w->path);
        }
        /* Whoever had it may have renamed it between our open and our lock: then it is theirs. */
        if (same_file(w->fd, w->temporary)) break;
        close(w->fd);
    }
    if (ftruncate(w->fd, 0) == 0) return true;
    error_errno(err, "cannot empty %s", w->temporary);
    close(w->fd);
    return false;
}

bool file_writer_open(struct file_writer *w, const char *path, struct error *err)
{
    *w = (struct file_writer){.fd = -1};
    int n = snprintf(w->path, sizeof w->path, "%s", path);
    int n_temporary = snprintf(w->temporary, sizeof w->temporary, "%s.tmp", path);
    if (n < 0 || n_temporary < 0 || (size_t)n_temporary >= sizeof w->temporary)
        return error_set(err, ERR_TOO_LARGE, NULL, "the path %.80s... is over %zu bytes", path,
                         sizeof w->path - 5);
    return open_temporary(w, err);
}

bool file_writer_append(struct file_writer *w, const void *bytes, size_t n, struct error *err)
{
    const uint8_t *p = bytes;
    while (n > 0) {
        ssize_t written = write(w->fd, p, n < WRITE_BYTES ? n : WRITE_BYTES);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return error_errno(err, "cannot write %s (after %lld bytes)", w->path,
                               (long long)w->bytes);
        p += written;
        n -= (size_t)written;
        w->bytes += written;
    }
    return true;
}

/* A rename lasts once its folder is on disk. */
static bool sync_folder_of(const char *path, struct error *err)
{
    char folder[FILE_WRITER_PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash) strcpy(folder, ".");
    else if (slash == folder) folder[1] = 0;
    else *slash = 0;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return error_errno(err, "cannot open the folder %s", folder);
    /* Some file systems cannot sync a folder, and say so with EINVAL. */
    bool ok = fsync(fd) == 0 || errno == EINVAL;
    if (!ok) error_errno(err, "cannot sync the folder %s", folder);
    close(fd);
    return ok;
}

static bool sync_and_rename(struct file_writer *w, struct error *err)
{
    if (fsync(w->fd) != 0) return error_errno(err, "cannot sync %s", w->temporary);
    if (rename(w->temporary, w->path) != 0)
        return error_errno(err, "cannot rename %s to %s", w->temporary, w->path);
    return true;
}

bool file_writer_close(struct file_writer *w, bool keep, struct error *err)
{
    bool renamed = keep && sync_and_rename(w, err);
    if (!renamed) unlink(w->temporary); /* while the lock is still ours */
    close(w->fd);
    w->fd = -1;
    return !keep || (renamed && sync_folder_of(w->path, err));
}

bool file_write_atomic(const char *path, const void *bytes, size_t n, struct error *err)
{
    struct file_writer w;
    if (!file_writer_open(&w, path, err)) return false;
    bool ok = file_writer_append(&w, bytes, n, err);
    return file_writer_close(&w, ok, err) && ok;
}

bool directory_make(const char *path, struct error *err)
{
    if (mkdir(path, 0755) == 0) return sync_folder_of(path, err);
    int saved = errno;
    if (saved == EEXIST && file_is_dir(path)) return true;
    errno = saved;
    return error_errno(err, "cannot make the directory %s", path);
}
