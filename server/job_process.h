/* The trainer as a child process: a group of its own, lower priority, its output in files. It never
 * outlives the thread that started it (the kernel kills it then), and the kernel prefers it when
 * memory runs out: what serves goes on. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

enum { JOB_MAX_ARGS = 128 };

struct job_command {
    const char *program;      /* a path */
    char *argv[JOB_MAX_ARGS]; /* NULL at the end; malloc'd by job_command_add */
    int argc;
    bool failed;              /* no memory, or too many */
};
void job_command_add(struct job_command *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
void job_command_free(struct job_command *c);

/* Starts it; output is appended to the two files. Call it from a thread that lives as long as the
 * child may. */
bool job_process_start(const struct job_command *c, const char *stdout_path,
                       const char *stderr_path, pid_t *pid, struct error *err) MUST_CHECK;
/* Has it ended? Then *status is as waitpid's, and the pid is no more. Never blocks. */
bool job_process_ended(pid_t pid, int *status);
/* Sends a signal to its whole group. */
void job_process_signal(pid_t pid, int signal_number);
