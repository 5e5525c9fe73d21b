/* Makes the system refuse: a library for LD_PRELOAD whose calls stand before the C
 * library's, count, and fail where the control page says. The page is a file (struct
 * control) that the test maps too (its path is GPTD_FAULT_CONTROL), so that one running
 * server can be failed at one call after another.
 *
 * What counts, by kind:
 *   memory   malloc and its kind, and anonymous mmap, by gptd or any library that it calls
 *   file     calls that name a file, or that work on a regular file or a folder; mappings of files
 *   process  what makes processes, threads, pipes and descriptors for events
 * What does not: what the C library does inside itself (its allocator's own mappings, the loader's
 * reads), sockets (their failures are clients' doing), and the calls of processes other than
 * `gptd ROLE`. A failure comes before the call is made, so that nothing of it happens. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CONTROL_BYTES = 4096, TRACE_DEPTH = 24, N_STACKS = 1 << 16 };
enum kind { KIND_MEMORY = 1, KIND_FILE = 2, KIND_PROCESS = 4 };

/* Shared with tests/faults/control.py: fixed offsets. */
struct control {
    _Atomic int64_t kinds;       /* 0: nothing counts */
    _Atomic int64_t first, last; /* these calls fail, the first being 1 */
    _Atomic int64_t n_calls, n_failed;
    _Atomic int64_t error;       /* errno of a file's or a process's failure */
    _Atomic int64_t n_blocks;    /* of the allocator, alive, whatever `kinds` says */
    _Atomic int64_t record;      /* write each call's stack below */
    char role[32];               /* "": any */
    char trace[CONTROL_BYTES - 8 * 8 - 32]; /* who made the first call that
                                               failed: MODULE+OFFSET lines */
    uint64_t stacks[N_STACKS];   /* of the calls in their order: equal where the way to them was */
};
_Static_assert(offsetof(struct control, stacks) == CONTROL_BYTES, "control.py knows it");

static struct control *control; /* NULL: this process is none of the test's */
static __thread bool inside;    /* this thread's calls are the library's own */

/* glibc's own, under the names it keeps for this. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);
void __libc_free(void *p);

static void *next(const char *name)
{
    bool was = inside;
    inside = true;
    void *found = dlsym(RTLD_NEXT, name);
    inside = was;
    if (!found) abort();
    return found;
}

static void write_trace(void)
{
    void *at[TRACE_DEPTH];
    int n = backtrace(at, TRACE_DEPTH);
    size_t used = 0, size = sizeof control->trace;
    for (int i = 2; i < n && used + 1 < size; i++) {
        Dl_info from;
        if (!dladdr(at[i], &from) || !from.dli_fname) continue;
        int wrote = snprintf(control->trace + used, size - used, "%s+0x%zx %s\n", from.dli_fname,
                             (size_t)((char *)at[i] - (char *)from.dli_fbase),
                             from.dli_sname ? from.dli_sname : "?");
        if (wrote < 0) break;
        used += (size_t)wrote;
    }
}

static uint64_t stack_hash(void)
{
    void *at[TRACE_DEPTH];
    inside = true;
    int n = backtrace(at, TRACE_DEPTH);
    inside = false;
    uint64_t hash = 14695981039346656037u;
    for (int i = 0; i < n; i++) hash = (hash ^ (uint64_t)(uintptr_t)at[i]) * 1099511628211u;
    return hash;
}

/* Counts a call; true when it is to fail, with errno set. */
static bool refused(enum kind kind)
{
    if (!control || inside || !(atomic_load(&control->kinds) & kind)) return false;
    int64_t call = atomic_fetch_add(&control->n_calls, 1) + 1;
    if (atomic_load(&control->record) && call <= N_STACKS)
        control->stacks[call - 1] = stack_hash();
    if (call < atomic_load(&control->first) || call > atomic_load(&control->last)) return false;
    if (atomic_fetch_add(&control->n_failed, 1) == 0) {
        inside = true;
        write_trace();
        inside = false;
    }
    errno = kind == KIND_MEMORY ? ENOMEM : (int)atomic_load(&control->error);
    return true;
}

/* Regular files and folders only. */
static bool refused_at(int fd)
{
    if (!control || inside || !(atomic_load(&control->kinds) & KIND_FILE)) return false;
    struct stat st;
    int saved = errno; /* the kernel's struct is the C library's on x86-64 */
    bool counts = syscall(SYS_fstat, fd, &st) == 0
                  && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
    errno = saved;
    return counts && refused(KIND_FILE);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("GPTD_FAULT_CONTROL");
    if (!path) return;
    char line[4096] = {0}; /* the command line: PROGRAM 0 ROLE 0 ... */
    int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = syscall(SYS_read, fd, line, sizeof line - 2);
    close(fd);
    const char *role = n > 0 ? line + strlen(line) + 1 : "";
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *page = (void *)syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE,
                                 MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) return;
    void *warm[4];
    inside = true;
    (void)backtrace(warm, 4); /* loads what it needs */
    inside = false;
    struct control *c = page;
    if (c->role[0] == 0 || strcmp(c->role, role) == 0) control = c;
}

static void count_block(const void *p, int64_t n)
{
    if (p && control) atomic_fetch_add(&control->n_blocks, n);
}

/* ---- Memory ---- */

void *malloc(size_t n)
{
    if (refused(KIND_MEMORY)) return NULL;
    void *p = __libc_malloc(n);
    count_block(p, 1);
    return p;
}

void *calloc(size_t n, size_t size)
{
    if (refused(KIND_MEMORY)) return NULL;
    void *p = __libc_calloc(n, size);
    count_block(p, 1);
    return p;
}

void *realloc(void *p, size_t n)
{
    if (refused(KIND_MEMORY)) return NULL;
    void *q = __libc_realloc(p, n);
    if (!p) count_block(q, 1);
    if (p && n == 0) count_block(p, -1);
    return q;
}

void *memalign(size_t alignment, size_t n)
{
    if (refused(KIND_MEMORY)) return NULL;
    void *p = __libc_memalign(alignment, n);
    count_block(p, 1);
    return p;
}

void *aligned_alloc(size_t alignment, size_t n) { return memalign(alignment, n); }

int posix_memalign(void **out, size_t alignment, size_t n)
{
    void *p = memalign(alignment, n);
    if (!p) return ENOMEM;
    *out = p;
    return 0;
}

void free(void *p)
{
    count_block(p, -1);
    __libc_free(p);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset)
{
    if (flags & MAP_ANONYMOUS ? refused(KIND_MEMORY) : refused_at(fd)) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int prot, int flags, int fd, off64_t offset)
{
    return mmap(at, n, prot, flags, fd, offset);
}

/* ---- Files ---- */

static int open_at(int dir, const char *path, int flags, va_list args)
{
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0;
    if (refused(KIND_FILE)) return -1;
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}

#define DEFINE_OPEN(name)                            \
    int name(const char *path, int flags, ...)       \
    {                                                \
        va_list args;                                \
        va_start(args, flags);                       \
        int fd = open_at(AT_FDCWD, path, flags, args); \
        va_end(args);                                \
        return fd;                                   \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                           \
    int name(int dir, const char *path, int flags, ...) \
    {                                                 \
        va_list args;                                 \
        va_start(args, flags);                        \
        int fd = open_at(dir, path, flags, args);     \
        va_end(args);                                 \
        return fd;                                    \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

/* The rest fail with -1 or NULL, and else do what the C library's do. */
#define DEFINE(result, name, failure, test, parameters, arguments)          \
    result name parameters                                                  \
    {                                                                       \
        static _Atomic(void *) found;                                       \
        if (test) return failure;                                           \
        if (!atomic_load(&found)) atomic_store(&found, next(#name));        \
        return ((result(*) parameters)atomic_load(&found)) arguments;       \
    }

#define FILES refused(KIND_FILE)
DEFINE(ssize_t, read, -1, refused_at(fd), (int fd, void *to, size_t n), (fd, to, n))
DEFINE(ssize_t, pread, -1, refused_at(fd), (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
DEFINE(ssize_t, pread64, -1, refused_at(fd), (int fd, void *to, size_t n, off64_t at),
       (fd, to, n, at))
DEFINE(ssize_t, write, -1, refused_at(fd), (int fd, const void *p, size_t n), (fd, p, n))
DEFINE(ssize_t, pwrite, -1, refused_at(fd), (int fd, const void *p, size_t n, off_t at),
       (fd, p, n, at))
DEFINE(ssize_t, pwrite64, -1, refused_at(fd), (int fd, const void *p, size_t n, off64_t at),
       (fd, p, n, at))
DEFINE(int, fsync, -1, refused_at(fd), (int fd), (fd))
DEFINE(int, fdatasync, -1, refused_at(fd), (int fd), (fd))
DEFINE(int, flock, -1, refused_at(fd), (int fd, int operation), (fd, operation))
DEFINE(int, ftruncate, -1, refused_at(fd), (int fd, off_t n), (fd, n))
DEFINE(int, ftruncate64, -1, refused_at(fd), (int fd, off64_t n), (fd, n))
DEFINE(int, fallocate, -1, refused_at(fd), (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
DEFINE(int, rename, -1, FILES, (const char *from, const char *to), (from, to))
DEFINE(int, renameat, -1, FILES, (int a, const char *from, int b, const char *to), (a, from, b, to))
DEFINE(int, renameat2, -1, FILES, (int a, const char *from, int b, const char *to, unsigned flags),
       (a, from, b, to, flags))
DEFINE(int, link, -1, FILES, (const char *from, const char *to), (from, to))
DEFINE(int, linkat, -1, FILES, (int a, const char *from, int b, const char *to, int flags),
       (a, from, b, to, flags))
DEFINE(int, symlink, -1, FILES, (const char *to, const char *at), (to, at))
DEFINE(int, mkdir, -1, FILES, (const char *path, mode_t mode), (path, mode))
DEFINE(int, mkdirat, -1, FILES, (int dir, const char *path, mode_t mode), (dir, path, mode))
DEFINE(int, unlink, -1, FILES, (const char *path), (path))
DEFINE(int, unlinkat, -1, FILES, (int dir, const char *path, int flags), (dir, path, flags))
DEFINE(int, rmdir, -1, FILES, (const char *path), (path))
DEFINE(int, stat, -1, FILES, (const char *path, struct stat *to), (path, to))
DEFINE(int, fstat, -1, refused(KIND_FILE), (int fd, struct stat *to), (fd, to))
DEFINE(DIR *, opendir, NULL, FILES, (const char *path), (path))
DEFINE(DIR *, fdopendir, NULL, FILES, (int fd), (fd))
DEFINE(FILE *, fopen, NULL, FILES, (const char *path, const char *mode), (path, mode))
DEFINE(FILE *, fopen64, NULL, FILES, (const char *path, const char *mode), (path, mode))

/* What has no function of its own: openat2. */
long syscall(long number, ...)
{
    static _Atomic(void *) found;
    long arguments[6];
    va_list args;
    va_start(args, number);
    for (int i = 0; i < 6; i++) arguments[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_openat2 && refused(KIND_FILE)) return -1;
    if (!atomic_load(&found)) atomic_store(&found, next("syscall"));
    return ((long (*)(long, ...))atomic_load(&found))(number, arguments[0], arguments[1],
                                                      arguments[2], arguments[3], arguments[4],
                                                      arguments[5]);
}

/* ---- Processes, threads, pipes ---- */

#define PROCESSES refused(KIND_PROCESS)
DEFINE(pid_t, fork, -1, PROCESSES, (void), ())
DEFINE(int, execv, -1, PROCESSES, (const char *path, char *const argv[]), (path, argv))
DEFINE(int, execve, -1, PROCESSES, (const char *path, char *const argv[], char *const env[]),
       (path, argv, env))
DEFINE(int, pipe2, -1, PROCESSES, (int fds[2], int flags), (fds, flags))
DEFINE(int, eventfd, -1, PROCESSES, (unsigned n, int flags), (n, flags))
DEFINE(int, epoll_create1, -1, PROCESSES, (int flags), (flags))
DEFINE(int, pthread_create, EAGAIN, PROCESSES,
       (pthread_t *to, const pthread_attr_t *how, void *(*run)(void *), void *arg),
       (to, how, run, arg))
