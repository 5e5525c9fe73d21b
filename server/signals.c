/* Signals as calls: see signals.h. */
#include "server/signals.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct signals {
    pthread_t thread;
    sigset_t set, old_mask;
    void (*handle)(void *ctx, int signal_number, int count);
    void *ctx;
};

/* SIGUSR2, sent to this thread alone, ends it. */
static void *signals_run(void *arg)
{
    struct signals *s = arg;
    for (int count = 1;; count++) {
        int number;
        if (sigwait(&s->set, &number) != 0 || number == SIGUSR2) return NULL;
        s->handle(s->ctx, number, count);
    }
}

bool signals_start(enum signals_hangup hangup,
                   void (*handle)(void *ctx, int signal_number, int count), void *ctx,
                   struct signals **out, struct error *err)
{
    struct signals *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, ERR_MEMORY, NULL, "cannot start the signal thread: no memory");
    s->handle = handle;
    s->ctx = ctx;
    sigemptyset(&s->set);
    sigaddset(&s->set, SIGINT);
    sigaddset(&s->set, SIGTERM);
    if (hangup == HANGUP_HANDLE) sigaddset(&s->set, SIGHUP);
    sigaddset(&s->set, SIGUSR2);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &s->set, &s->old_mask);
    int failed = pthread_create(&s->thread, NULL, signals_run, s);
    if (failed) {
        pthread_sigmask(SIG_SETMASK, &s->old_mask, NULL);
        free(s);
        errno = failed;
        return error_errno(err, "cannot start the signal thread");
    }
    *out = s;
    return true;
}

void signals_stop(struct signals *s)
{
    if (!s) return;
    pthread_kill(s->thread, SIGUSR2);
    pthread_join(s->thread, NULL);
    pthread_sigmask(SIG_SETMASK, &s->old_mask, NULL);
    free(s);
}
