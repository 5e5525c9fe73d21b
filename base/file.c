/* Files: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* O_NONBLOCK: a FIFO by this name must not hang the loader. */
enum { OPEN_FLAGS = O_RDONLY | O_CLOEXEC | O_NONBLOCK };

/* The descriptor of an open regular file, its size in *size; else it is closed, and -1 with `err`
 * set. */
static int check_regular(int fd, const char *path, size_t *size, struct error *err)
{
    if (fd < 0) {
        error_errno(err, "cannot open %s", path);
        return -1;
    }
    struct stat st;
    if (fstat(fd, &st) != 0) {
        error_errno(err, "cannot stat %s", path);
    } else if (!S_ISREG(st.st_mode)) {
        error_set(err, ERR_FORMAT, NULL, "%s is not a regular file", path);
    } else {
        *size = (size_t)st.st_size;
        return fd;
    }
    close(fd);
    return -1;
}

/* Opens a regular file for reading; the size goes to *size. -1 with `err` set on failure. */
static int open_regular(const char *path, size_t *size, struct error *err)
{
    return check_regular(open(path, OPEN_FLAGS), path, size, err);
}

/* Without openat2: what the path is once its links are followed must lie in the folder. A file that
 * is to be created is not there to be looked at: its folder is. */
static int open_looked_at(const char *root, const char *name, int flags)
{
    char joined[2 * PATH_MAX], real_root[PATH_MAX], real[PATH_MAX + NAME_MAX + 2];
    int n = snprintf(joined, sizeof joined, "%s/%s", root, name);
    if (n < 0 || (size_t)n >= sizeof joined || !realpath(root, real_root)) return -1;
    if (name[0] == '/') {
        errno = EXDEV;
        return -1;
    }
    char *last = flags & O_CREAT ? strrchr(joined, '/') : NULL;
    if (last) *last++ = 0;
    if (!realpath(joined, real)) return -1;
    size_t len = strlen(real_root);
    bool inside = strncmp(real, real_root, len) == 0 && (real[len] == '/' || real[len] == 0);
    if (!inside || (last && strlen(last) > NAME_MAX)) {
        errno = EXDEV;
        return -1;
    }
    if (last) sprintf(real + strlen(real), "/%s", last);
    return open(real, flags | O_NOFOLLOW, 0644);
}

/* open() of `name` in `root` that does not leave it. -1 with `err` set on failure. */
static int open_beneath(const char *root, const char *name, int flags, struct error *err)
{
    struct open_how how = {.flags = (uint64_t)flags, .mode = flags & O_CREAT ? 0644 : 0,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int folder = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        error_errno(err, "cannot open %s", root);
        return -1;
    }
    int fd = (int)syscall(SYS_openat2, folder, name, &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EPERM)) fd = open_looked_at(root, name, flags);
    int why = errno;
    close(folder);
    errno = why;
    if (fd < 0 && why == EXDEV)
        error_set(err, ERR_INVALID, NULL, "%s/%s leads out of its folder", root, name);
    else if (fd < 0)
        error_errno(err, "cannot open %s/%s", root, name);
    return fd;
}

bool file_open_beneath(const char *root, const char *name, int *fd, size_t *size,
                       struct error *err)
{
    int found = open_beneath(root, name, OPEN_FLAGS, err);
    *fd = found < 0 ? -1 : check_regular(found, name, size, err);
    return *fd >= 0;
}

bool file_create_beneath(const char *root, const char *name, int *fd, struct error *err)
{
    *fd = open_beneath(root, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, err);
    return *fd >= 0;
}

/* Where what an O_PATH descriptor holds lies; closes it. */
static bool where_is(int fd, char out[PATH_MAX], struct error *err)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    int why = errno;
    close(fd);
    errno = why;
    if (n < 0) return error_errno(err, "cannot read %s", link);
    out[n] = 0;
    return true;
}

bool path_find_beneath(const char *root, const char *name, char *out, size_t size,
                       struct error *err)
{
    char folder[PATH_MAX], found[PATH_MAX];
    int root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root_fd < 0) return error_errno(err, "cannot open %s", root);
    if (!where_is(root_fd, folder, err)) return false;
    int fd = open_beneath(root, name, O_PATH | O_CLOEXEC, err);
    if (fd < 0 || !where_is(fd, found, err)) return false;
    if (strcmp(found, folder) == 0)
        return error_set(err, ERR_INVALID, NULL, "%s is the folder itself", name);
    if (strlen(found) >= size)
        return error_set(err, ERR_TOO_LARGE, NULL, "the path %.80s... is over %zu bytes", found,
                         size);
    strcpy(out, found);
    return true;
}

bool file_map_open(const char *path, struct file_map *out, struct error *err)
{
    size_t size;
    int fd = open_regular(path, &size, err);
    if (fd < 0) return false;
    struct file_map map = {.size = size};
    if (size > 0) {
        void *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            error_errno(err, "cannot map %s (%zu bytes)", path, size);
            close(fd);
            return false;
        }
        map.data = p;
    }
    close(fd);
    *out = map;
    return true;
}

void file_map_forget(const struct file_map *map)
{
    /* A hint: a kernel that does not take it only keeps more pages. */
    if (map->data) (void)madvise((void *)map->data, map->size, MADV_DONTNEED);
}

void file_map_close(struct file_map *map)
{
    if (map->data) munmap((void *)map->data, map->size);
    *map = (struct file_map){0};
}

bool file_read(const char *path, struct buf *out, struct error *err)
{
    size_t size;
    int fd = open_regular(path, &size, err);
    if (fd < 0) return false;
    char chunk[64 * 1024];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            error_errno(err, "cannot read %s", path);
            close(fd);
            return false;
        }
        if (n == 0) break;
        buf_append(out, chunk, (size_t)n);
        if (out->failed) break;
    }
    close(fd);
    return buf_check(out, path, err);
}

bool file_exists(const char *path) { return access(path, F_OK) == 0; }

bool file_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool path_join(char *out, size_t size, const char *dir, const char *name, struct error *err)
{
    int n = snprintf(out, size, "%s/%s", dir, name);
    if (n >= 0 && (size_t)n < size) return true;
    return error_set(err, ERR_TOO_LARGE, NULL, "the path %.80s.../%s is over %zu bytes", dir, name,
                     size);
}
