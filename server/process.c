/* Process memory: see process.h. /proc/self/statm rather than smaps, whose walk over the page
 * tables would let a client that polls memory slow the engine down. */
#include "server/process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"

int64_t process_rss_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    long long total, resident;
    int n = fscanf(f, "%lld %lld", &total, &resident);
    fclose(f);
    return n == 2 ? resident * sysconf(_SC_PAGESIZE) : 0;
}

static int64_t process_peak_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    if (!f) return 0;
    char line[256];
    long long kib = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lld kB", &kib) == 1) break;
    fclose(f);
    return kib * 1024;
}

void process_memory(struct api_process_memory *out)
{
    out->rss_bytes = process_rss_bytes();
    /* The kernel updates its high-water mark lazily. */
    out->peak_rss_bytes = max_i64(process_peak_bytes(), out->rss_bytes);
}

/* ---- what is left ---- */

enum { PATH_BYTES = 4096 };

/* The number after `key` in a file of "key number" lines; with an empty key the file's first number. */
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
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
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
