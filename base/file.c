/* Files: see file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* O_NONBLOCK: a FIFO by this name must not hang the loader. */
enum { OPEN_FLAGS = O_RDONLY | O_CLOEXEC | O_NONBLOCK };

/* ---- Files that are cut while they are mapped ---- */

/* Globals: a signal's handler reaches nothing else. */
static _Atomic int64_t n_guards, n_faults;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    static const char line[] = "gptd: a file was cut short while it was being read: put files in "
                               "place whole, with a rename\n";
    int saved = errno;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *at = (void *)((uintptr_t)info->si_addr & ~(page - 1));
    atomic_fetch_add(&n_faults, 1);
    if (atomic_load(&n_guards) == 0 || info->si_code != BUS_ADRERR ||
        mmap(at, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
        if (write(STDERR_FILENO, line, sizeof line - 1) < 0) errno = 0;
        signal(number, SIG_DFL); /* the read, tried again, ends the process */
    }
    errno = saved;
}

static void handle_bus_errors(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

void file_guard_begin(struct file_guard *g)
{
    handle_bus_errors(); /* whoever else has taken the signal since */
    atomic_fetch_add(&n_guards, 1);
    g->n_faults = atomic_load(&n_faults);
}

bool file_guard_end(struct file_guard *g, const char *what, struct error *err)
{
    atomic_fetch_sub(&n_guards, 1);
    if (atomic_load(&n_faults) == g->n_faults) return true;
    return error_set(err, ERR_IO, NULL, "%s was cut short while it was being read: put files in "
                     "place whole, with a rename", what);
}

/* ---- Opening ---- */

static int64_t changed_ns(const struct stat *st)
{
    return st->st_mtim.tv_sec * INT64_C(1000000000) + st->st_mtim.tv_nsec;
}

/* The descriptor of an open regular file, what it is in *st; else it is closed, and -1 with `err`
 * set. */
static int check_regular(int fd, const char *path, struct stat *st, struct error *err)
{
    if (fd < 0) {
        error_errno(err, "cannot open %s", path);
        return -1;
    }
    if (fstat(fd, st) != 0)
        error_errno(err, "cannot stat %s", path);
    else if (!S_ISREG(st->st_mode))
        error_set(err, ERR_FORMAT, NULL, "%s is not a regular file", path);
    else
        return fd;
    close(fd);
    return -1;
}

/* Opens a regular file for reading; what it is goes to *st. -1 with `err` set on failure. */
static int open_regular(const char *path, struct stat *st, struct error *err)
{
    return check_regular(open(path, OPEN_FLAGS), path, st, err);
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
    struct stat st;
    int found = open_beneath(root, name, OPEN_FLAGS, err);
    *fd = found < 0 ? -1 : check_regular(found, name, &st, err);
    if (*fd >= 0) *size = (size_t)st.st_size;
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
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct stat st;
    int fd = open_regular(path, &st, err);
    if (fd < 0) return false;
    pthread_once(&once, handle_bus_errors);
    struct file_map map = {.size = (size_t)st.st_size, .inode = st.st_ino,
                           .changed_ns = changed_ns(&st)};
    if (map.size > 0) {
        void *p = mmap(NULL, map.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            error_errno(err, "cannot map %s (%zu bytes)", path, map.size);
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

bool file_map_unchanged(const struct file_map *map, const char *path, struct error *err)
{
    struct stat st;
    if (stat(path, &st) != 0 || st.st_ino != map->inode) return true;
    if (changed_ns(&st) == map->changed_ns && (size_t)st.st_size == map->size) return true;
    return error_set(err, ERR_IO, NULL, "%s was written to while it was being read: put files in "
                     "place whole, with a rename", path);
}

void file_map_close(struct file_map *map)
{
    if (map->data) munmap((void *)map->data, map->size);
    *map = (struct file_map){0};
}

bool file_read(const char *path, struct buf *out, struct error *err)
{
    struct stat st;
    int fd = open_regular(path, &st, err);
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
