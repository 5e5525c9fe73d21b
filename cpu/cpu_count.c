/* How many threads may compute at once: the cores of the affinity mask (processors that share a
 * core share its multipliers and caches: two of them make a product no faster), narrowed by the CPU
 * quota of the cgroup that a container gives (v2: cpu.max; v1: cpu.cfs_quota_us over
 * cpu.cfs_period_us) in any of the groups that hold this process. A quota of 2.5 processors makes 2
 * threads: a third would spend half of its time forbidden to run while the others wait for it. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu_internal.h"

enum { PATH_BYTES = 4096 };

/* The first line of a small file; false when there is none. */
static bool read_line(const char *path, char *line, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f) return false;
    bool ok = fgets(line, (int)size, f) != NULL;
    fclose(f);
    return ok;
}

static bool read_number(const char *dir, const char *name, double *out)
{
    char path[PATH_BYTES + 64], line[128], *end;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (!read_line(path, line, sizeof line)) return false;
    *out = strtod(line, &end);
    return end != line;
}

/* Processors' worth of time that one group allows; a huge number when it sets no limit. */
static double group_quota(const char *dir)
{
    char path[PATH_BYTES + 64], line[128];
    double quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", dir);
    bool found = read_line(path, line, sizeof line)
                     ? sscanf(line, "%lf %lf", &quota, &period) == 2
                     : read_number(dir, "cpu.cfs_quota_us", &quota) &&
                           read_number(dir, "cpu.cfs_period_us", &period);
    return found && quota > 0 && period > 0 ? quota / period : INT_MAX;
}

/* The least quota of dir/path and the groups above it, down to `dir` itself. */
static double least_quota(const char *dir, const char *path)
{
    char group[PATH_BYTES];
    int n = snprintf(group, sizeof group, "%s%s", dir, path);
    double least = group_quota(dir);
    if (n < 0 || (size_t)n >= sizeof group) return least;
    while (strlen(group) > strlen(dir)) {
        double quota = group_quota(group);
        least = quota < least ? quota : least;
        *strrchr(group, '/') = 0;
    }
    return least;
}

/* Is "cpu" among the comma-separated controllers? */
static bool names_cpu(const char *controllers)
{
    for (const char *c = controllers; c; c = strchr(c, ',')) {
        c += *c == ',';
        if (!strncmp(c, "cpu", 3) && (c[3] == 0 || c[3] == ',')) return true;
    }
    return false;
}

/* Has the core of this processor none of a lower number in the mask? The list is "0,32" or
 * "0-1". */
static bool is_first_of_core(const char *root, int cpu, const cpu_set_t *mask)
{
    char path[PATH_BYTES + 64], line[256], *at = line;
    snprintf(path, sizeof path, "%s/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             root, cpu);
    if (!read_line(path, line, sizeof line)) return true; /* who knows of none has its own */
    for (;;) {
        char *end;
        long first = strtol(at, &end, 10), last = first;
        if (end == at) return true;
        if (*end == '-') last = strtol(end + 1, &end, 10);
        for (long i = first; i <= last && i < cpu; i++)
            if (i >= 0 && i < CPU_SETSIZE && CPU_ISSET(i, mask)) return false;
        if (*end != ',') return true;
        at = end + 1;
    }
}

int32_t cpu_cores(const char *root, const cpu_set_t *mask)
{
    int32_t n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        n += CPU_ISSET(cpu, mask) && is_first_of_core(root, cpu, mask);
    return n;
}

int32_t cpu_count(const char *root, int32_t n_cores)
{
    char path[PATH_BYTES], line[PATH_BYTES], dir[PATH_BYTES];
    double least = INT_MAX;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    /* Lines of "number:controllers:/path"; v2 is "0::/path". */
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = NULL;
        if (controllers) group = strchr(++controllers, ':');
        if (!group || group[1] != '/') continue;
        *group++ = 0;
        if (*controllers && !names_cpu(controllers)) continue;
        if (group[1] == 0) group = ""; /* the root of what is mounted */
        snprintf(dir, sizeof dir, "%s/sys/fs/cgroup%s", root, *controllers ? "/cpu" : "");
        double quota = least_quota(dir, group);
        least = quota < least ? quota : least;
    }
    if (f) fclose(f);
    int32_t n = least < n_cores ? (int32_t)least : n_cores;
    return n < 1 ? 1 : n;
}
