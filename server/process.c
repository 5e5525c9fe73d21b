/* Process memory: see process.h. /proc/self/statm rather than smaps, whose walk over the page
 * tables would let a client that polls memory slow the engine down. */
#include "server/process.h"

#include <stdio.h>
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
