/* What memory was like: see memory_history.h. */
#include "server/memory_history.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

static const int64_t fresh_ns = 1000000000;

struct memory_history {
    memory_sample_fn sample;
    void *ctx;
    pthread_t thread;
    pthread_mutex_t mutex; /* of what follows */
    pthread_cond_t wake;
    bool stopped;
    int64_t newest_ns; /* clock_ns of the newest sample */
    struct api_memory_sample newest;
    size_t n; /* ever added: the next goes to n % MEMORY_HISTORY_SAMPLES */
    struct api_memory_sample ring[MEMORY_HISTORY_SAMPLES];
};

/* With the mutex held. */
static void take_sample(struct memory_history *h)
{
    h->sample(h->ctx, &h->newest);
    h->newest_ns = clock_ns();
}

static void add(struct memory_history *h, const struct api_memory_sample *s)
{
    h->ring[h->n++ % MEMORY_HISTORY_SAMPLES] = *s;
}

static void *run(void *arg)
{
    struct memory_history *h = arg;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    pthread_mutex_lock(&h->mutex);
    while (!h->stopped) {
        take_sample(h);
        add(h, &h->newest);
        until.tv_sec += MEMORY_HISTORY_INTERVAL_S;
        int rc = 0;
        while (!h->stopped && rc != ETIMEDOUT)
            rc = pthread_cond_timedwait(&h->wake, &h->mutex, &until);
    }
    pthread_mutex_unlock(&h->mutex);
    return NULL;
}

static void free_history(struct memory_history *h)
{
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->mutex);
    free(h);
}

bool memory_history_start(memory_sample_fn sample, void *ctx, struct memory_history **out,
                          struct error *err)
{
    struct memory_history *h = calloc(1, sizeof *h);
    if (!h) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    h->sample = sample;
    h->ctx = ctx;
    pthread_mutex_init(&h->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&h->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    take_sample(h);
    int failed = pthread_create(&h->thread, NULL, run, h);
    if (failed) {
        free_history(h);
        errno = failed;
        return error_errno(err, "cannot start the thread that watches memory");
    }
    *out = h;
    return true;
}

void memory_history_stop(struct memory_history *h)
{
    if (!h) return;
    pthread_mutex_lock(&h->mutex);
    h->stopped = true;
    pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->mutex);
    pthread_join(h->thread, NULL);
    free_history(h);
}

struct api_memory_sample memory_history_now(struct memory_history *h)
{
    pthread_mutex_lock(&h->mutex);
    if (clock_ns() - h->newest_ns >= fresh_ns) take_sample(h);
    struct api_memory_sample s = h->newest;
    pthread_mutex_unlock(&h->mutex);
    return s;
}

size_t memory_history_copy(struct memory_history *h,
                           struct api_memory_sample out[MEMORY_HISTORY_SAMPLES])
{
    pthread_mutex_lock(&h->mutex);
    size_t n = h->n < MEMORY_HISTORY_SAMPLES ? h->n : MEMORY_HISTORY_SAMPLES;
    for (size_t i = 0; i < n; i++) out[i] = h->ring[(h->n - n + i) % MEMORY_HISTORY_SAMPLES];
    pthread_mutex_unlock(&h->mutex);
    return n;
}

void memory_history_add(struct memory_history *h, const struct api_memory_sample *s)
{
    pthread_mutex_lock(&h->mutex);
    add(h, s);
    pthread_mutex_unlock(&h->mutex);
}
