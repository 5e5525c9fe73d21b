/* Child processes: see job_process.h. Between fork and exec only what is safe there: the other
 * threads are gone, their locks are not. */
#include "server/job_process.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/options.h"

enum { NICENESS = 10, EXEC_FAILED = 127 };

void job_command_add(struct job_command *c, const char *fmt, ...)
{
    char *text;
    va_list args;
    if (c->argc + 1 >= JOB_MAX_ARGS) c->failed = true;
    if (c->failed) return;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0) c->failed = true;
    else c->argv[c->argc++] = text;
}

void job_command_free(struct job_command *c)
{
    for (int i = 0; i < c->argc; i++) free(c->argv[i]);
    *c = (struct job_command){0};
}

struct child {
    const struct job_command *command;
    int out, errors, status, score; /* descriptors; status: for the errno of a failed exec */
    pid_t parent;
};

static _Noreturn void give_up(const struct child *c)
{
    int why = errno;
    if (write(c->status, &why, sizeof why) < 0) _exit(EXEC_FAILED);
    _exit(EXEC_FAILED);
}

/* In the child. */
static _Noreturn void become_trainer(const struct child *c)
{
    sigset_t none;
    struct sigaction plain = {.sa_handler = SIG_DFL};
    setpgid(0, 0);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) give_up(c);
    if (getppid() != c->parent) _exit(EXEC_FAILED); /* it died before prctl */
    /* What serves goes first: a smaller share where cores are contended, and a trainer that wakes
     * up never takes a core from who is at work. Not SCHED_IDLE, under which a busy machine would
     * starve it, its last checkpoint included. Both are wishes. */
    setpriority(PRIO_PROCESS, 0, NICENESS);
    sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
    if (c->score >= 0 && write(c->score, "500", 3) < 0) errno = 0; /* a wish, no need */
    sigaction(SIGPIPE, &plain, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(c->out, STDOUT_FILENO) < 0
        || dup2(c->errors, STDERR_FILENO) < 0)
        give_up(c);
    /* Whatever a library has opened without O_CLOEXEC: connections above all. */
    close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
    options_hide_environment(); /* what the server was told is not for its trainers */
    execv(c->command->program, c->command->argv);
    give_up(c);
}

static int open_log(const char *path, struct error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) error_errno(err, "cannot open %s", path);
    return fd;
}

/* Waits until the child has become the trainer, or cannot: then reaps it. */
static bool await_exec(int from, pid_t pid, const char *program, struct error *err)
{
    int why = 0;
    ssize_t n;
    do n = read(from, &why, sizeof why);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return true;
    waitpid(pid, NULL, 0);
    errno = why;
    return error_errno(err, "cannot run the trainer %s", program);
}

bool job_process_start(const struct job_command *c, const char *stdout_path,
                       const char *stderr_path, pid_t *pid, struct error *err)
{
    int pipe_fds[2] = {-1, -1};
    struct child child = {.command = c, .out = -1, .errors = -1, .score = -1, .parent = getpid()};
    bool ok = false;
    if (c->failed) return error_set(err, ERR_MEMORY, NULL, "no memory for the trainer's options");
    child.out = open_log(stdout_path, err);
    if (child.out < 0) goto done;
    child.errors = open_log(stderr_path, err);
    if (child.errors < 0) goto done;
    if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
        error_errno(err, "cannot make a pipe");
        goto done;
    }
    child.status = pipe_fds[1];
    pid_t made = fork();
    if (made < 0) {
        error_errno(err, "cannot start a process");
        goto done;
    }
    if (made == 0) {
        child.score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        become_trainer(&child);
    }
    setpgid(made, made); /* whoever is first: a signal to the group must find it */
    close(pipe_fds[1]);
    pipe_fds[1] = -1;
    ok = await_exec(pipe_fds[0], made, c->program, err);
    if (ok) *pid = made;
done:
    if (pipe_fds[0] >= 0) close(pipe_fds[0]);
    if (pipe_fds[1] >= 0) close(pipe_fds[1]);
    if (child.errors >= 0) close(child.errors);
    if (child.out >= 0) close(child.out);
    return ok;
}

bool job_process_ended(pid_t pid, int *status)
{
    pid_t got;
    do got = waitpid(pid, status, WNOHANG);
    while (got < 0 && errno == EINTR);
    return got == pid;
}

void job_process_signal(pid_t pid, int signal_number) { kill(-pid, signal_number); }
