/* Process memory: see process.h. /proc/self/statm rather than smaps, whose walk over the page
 * tables would let a client that polls memory slow the engine down. */
#include "server/process.h"

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"

enum { STACK_BYTES = 1 << 20, LARGE_BLOCK = 256 << 10, RESIDENT_PAGES = 4096 };

void process_settle(void)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_setattr_default_np(&attr);
    pthread_attr_destroy(&attr);
    /* Fixed: glibc would raise it with each large block that is freed, and then keep such
     * blocks. */
    mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK);
    signal(SIGXFSZ, SIG_IGN);
}

void process_trim(void) { (void)malloc_trim(0); }

/* ---- what is taken ---- */

/* From /proc/PID/statm: resident bytes, and those of mapped files. */
static bool read_resident(const char *pid, int64_t *rss_bytes, int64_t *file_bytes)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/statm", pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    long long total, resident, shared;
    int n = fscanf(f, "%lld %lld %lld", &total, &resident, &shared);
    fclose(f);
    int64_t page = sysconf(_SC_PAGESIZE);
    *rss_bytes = n == 3 ? resident * page : 0;
    *file_bytes = n == 3 ? shared * page : 0;
    return n == 3;
}

static int64_t read_peak(const char *pid)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%s/status", pid);
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld kB", &kib) == 1) break;
    fclose(f);
    return kib * 1024;
}

int64_t process_rss_bytes(void)
{
    int64_t rss, files;
    return read_resident("self", &rss, &files) ? rss : 0;
}

bool process_memory_of(pid_t pid, int64_t *rss_bytes, int64_t *peak_rss_bytes)
{
    char name[24];
    int64_t files;
    snprintf(name, sizeof name, "%lld", (long long)pid);
    if (!read_resident(name, rss_bytes, &files)) return false;
    *peak_rss_bytes = max_i64(read_peak(name), *rss_bytes);
    return true;
}

static int64_t heap_bytes(int64_t *free_bytes)
{
    struct mallinfo2 m = mallinfo2();
    *free_bytes = (int64_t)m.fordblks;
    return (int64_t)(m.uordblks + m.hblkhd);
}

struct process_baseline process_baseline(void)
{
    struct process_baseline b;
    int64_t free_bytes;
    (void)read_resident("self", &b.rss_bytes, &b.file_bytes);
    b.heap_bytes = heap_bytes(&free_bytes);
    return b;
}

void process_memory(const struct process_baseline *b, int64_t arenas_on_heap,
                    struct api_process_memory *out)
{
    int64_t files = 0;
    *out = (struct api_process_memory){.baseline_bytes = b->rss_bytes};
    (void)read_resident("self", &out->rss_bytes, &files);
    /* The kernel updates its high-water mark lazily. */
    out->peak_rss_bytes = max_i64(read_peak("self"), out->rss_bytes);
    out->file_bytes = files - b->file_bytes;
    out->heap_bytes = heap_bytes(&out->heap_free_bytes) - b->heap_bytes - arenas_on_heap;
}

int64_t process_resident_bytes(const void *at, int64_t n)
{
    unsigned char there[RESIDENT_PAGES];
    int64_t page = sysconf(_SC_PAGESIZE), resident = 0;
    uintptr_t begin = (uintptr_t)at / (uintptr_t)page * (uintptr_t)page;
    uintptr_t end = (uintptr_t)at + (uintptr_t)n;
    while (begin < end) {
        int64_t pages = min_i64(ceil_div((int64_t)(end - begin), page), RESIDENT_PAGES);
        if (mincore((void *)begin, (size_t)(pages * page), there) != 0) break;
        for (int64_t i = 0; i < pages; i++) resident += (there[i] & 1) * page;
        begin += (uintptr_t)(pages * page);
    }
    return resident;
}

/* ---- what is left ---- */

enum { PATH_BYTES = 4096 };

/* The number after `key` in a file of "key number" lines; with an empty key the file's first
 * number. */
static bool read_number(const char *dir, const char *name, const char *key, int64_t *out)
{
    char path[PATH_BYTES + 64], line[256], *end = line;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        *out = strtoll(line + strlen(key), &end, 10);
        found = end != line + strlen(key);
    }
    fclose(f);
    return found;
}

/* What one group leaves; INT64_MAX when it sets no limit ("max" is no number). */
static int64_t group_left(const char *dir, bool v2)
{
    int64_t limit, used, cache = 0;
    if (!read_number(dir, v2 ? "memory.max" : "memory.limit_in_bytes", "", &limit) ||
        !read_number(dir, v2 ? "memory.current" : "memory.usage_in_bytes", "", &used))
        return INT64_MAX;
    (void)read_number(dir, "memory.stat", v2 ? "inactive_file " : "total_inactive_file ", &cache);
    return max_i64(0, limit - used + min_i64(cache, used));
}

/* The least that dir/path and the groups above it leave, down to `dir` itself. */
static int64_t groups_left(const char *dir, const char *path, bool v2)
{
    char group[PATH_BYTES];
    int n = snprintf(group, sizeof group, "%s%s", dir, path);
    int64_t left = group_left(dir, v2);
    if (n < 0 || (size_t)n >= sizeof group) return left;
    while (strlen(group) > strlen(dir)) {
        left = min_i64(left, group_left(group, v2));
        *strrchr(group, '/') = 0;
    }
    return left;
}

int64_t process_memory_available(const char *root)
{
    char proc[PATH_BYTES], dir[PATH_BYTES], line[PATH_BYTES];
    int64_t left = INT64_MAX, kib;
    snprintf(proc, sizeof proc, "%s/proc", root);
    if (read_number(proc, "meminfo", "MemAvailable:", &kib)) left = kib * 1024;
    snprintf(proc, sizeof proc, "%s/proc/self/cgroup", root);
    FILE *f = fopen(proc, "re");
    /* Lines of "number:controllers:/path"; v2 is "0::/path". */
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = 0;
        bool v2 = controllers[1] == 0;
        if (!v2 && strcmp(controllers + 1, "memory") != 0) continue;
        snprintf(dir, sizeof dir, "%s/sys/fs/cgroup%s", root, v2 ? "" : "/memory");
        left = min_i64(left, groups_left(dir, path, v2));
    }
    if (f) fclose(f);
    return left;
}
