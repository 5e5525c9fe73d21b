/* The process's own memory, as the kernel counts it. Any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "api/api.h"

/* First thing in main, before there are threads: stacks that are as large as our functions need,
 * and a malloc that gives large blocks back. So that what the process takes besides its plan is
 * small, and limits on it (RLIMIT_DATA counts stacks in full) can be tight. A file that may not
 * grow further (RLIMIT_FSIZE) is an error of who writes it, not the process's end. */
void process_settle(void);

/* What malloc holds of memory that was freed goes back to the system: after work that was large and
 * is done, like reading a tokenizer. */
void process_trim(void);

int64_t process_rss_bytes(void);
/* The kernel's count for another process; false when it is gone. */
bool process_memory_of(pid_t pid, int64_t *rss_bytes, int64_t *peak_rss_bytes);

/* What the process was just before its model was opened. */
struct process_baseline { int64_t rss_bytes, file_bytes, heap_bytes; };
struct process_baseline process_baseline(void);
/* Everything, over the baseline; `arenas_on_heap` bytes of the heap are the engines' (plan.h). */
void process_memory(const struct process_baseline *b, int64_t arenas_on_heap,
                    struct api_process_memory *out);
/* How much of [at, at + n) is in memory: n rounded up to pages, less what was swapped out or never
 * touched. About a microsecond a MiB at most. */
int64_t process_resident_bytes(const void *at, int64_t n);

/* What the process may still take without swapping or being killed: the kernel's MemAvailable,
 * narrowed by the memory limits of its cgroups (v2: memory.max; v1: memory.limit_in_bytes), where
 * clean page cache counts as free. INT64_MAX when nothing is known. `root` is "" but in tests: it
 * goes before /proc and /sys. */
int64_t process_memory_available(const char *root);
