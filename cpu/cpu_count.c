/* How many threads may compute at once: the affinity mask, narrowed by the CPU quota of the
 * cgroup that a container gives (v2: cpu.max; v1: cpu.cfs_quota_us over cpu.cfs_period_us) in any
 * of the groups that hold this process. A quota of 2.5 processors makes 2 threads: a third would
 * spend half of its time forbidden to run while the others wait for it. */
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

int32_t cpu_count(const char *root, int32_t n_affinity)
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
    int32_t n = least < n_affinity ? (int32_t)least : n_affinity;
    return n < 1 ? 1 : n;
}
