/* The process's own memory, as the kernel counts it. Any thread. */
#pragma once

#include <stdint.h>

#include "api/api.h"

int64_t process_rss_bytes(void);
/* Fills rss and peak; leaves baseline_bytes to the caller, who took it (process_rss_bytes) just
 * before the model was opened. */
void process_memory(struct api_process_memory *out);

/* What the process may still take without swapping or being killed: the kernel's MemAvailable, narrowed
 * by the memory limits of its cgroups (v2: memory.max; v1: memory.limit_in_bytes), where clean page cache
 * counts as free. INT64_MAX when nothing is known. `root` is "" but in tests: it goes before /proc and
 * /sys. */
int64_t process_memory_available(const char *root);
