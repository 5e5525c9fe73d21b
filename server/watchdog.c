/* The watchdog's thread: see watchdog.h. */
#include "server/watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "api/registry.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/notify.h"

static const int64_t SECOND_NS = 1000000000;

struct watchdog {
    struct watchdog_options options;
    int64_t interval_ns;
    bool feeds; /* the service manager wants to hear */
    pthread_t thread;
    pthread_mutex_t mutex; /* of `stopping` */
    pthread_cond_t cond;
    bool stopping;
};

bool engine_is_stalled(const struct api_context *api, int64_t timeout_s, double *since_s)
{
    struct engine_stats stats;
    api_stats(api, &stats);
    *since_s = (double)(clock_ns() - stats.last_progress_ns) / 1e9;
    return (stats.running > 0 || stats.queued > 0) && *since_s > (double)timeout_s;
}

bool engine_device_failed(const struct api_context *api)
{
    struct engine_stats stats;
    api_stats(api, &stats);
    return stats.device_failed;
}

/* False when it is time to end. */
static bool pause_once(struct watchdog *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + w->interval_ns;
    until.tv_sec += ns / SECOND_NS;
    until.tv_nsec = ns % SECOND_NS;
    pthread_mutex_lock(&w->mutex);
    if (!w->stopping) pthread_cond_timedwait(&w->cond, &w->mutex, &until);
    bool stopping = w->stopping;
    pthread_mutex_unlock(&w->mutex);
    return !stopping;
}

static void *watch(void *arg)
{
    struct watchdog *w = arg;
    const struct watchdog_options *o = &w->options;
    bool was_stalled = false, had_failed = false;
    do {
        double since_s;
        bool failed = engine_device_failed(o->api);
        if (failed && !had_failed) {
            log_error("the device has failed: nothing runs on it any more");
            if (o->on_device_failure) o->on_device_failure(o->ctx);
        }
        had_failed = failed;
        bool stalled = engine_is_stalled(o->api, o->stall_timeout_s, &since_s);
        if (stalled && !was_stalled) {
            log_error("the engine has work and made no progress for %.0f s", since_s);
            if (o->on_stall) o->on_stall(o->ctx);
        } else if (was_stalled && !stalled) {
            log_warn("the engine makes progress again");
        }
        if (w->feeds && !stalled && !failed) notify_send("WATCHDOG=1");
        was_stalled = stalled;
    } while (pause_once(w));
    return NULL;
}

bool watchdog_start(const struct watchdog_options *o, struct watchdog **out, struct error *err)
{
    struct watchdog *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, ERR_MEMORY, NULL, "no memory for the watchdog");
    int64_t wanted_ns = notify_watchdog_ns();
    w->options = *o;
    w->feeds = wanted_ns > 0;
    w->interval_ns = w->feeds ? min_i64(SECOND_NS, wanted_ns / 2) : SECOND_NS;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&w->cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&w->mutex, NULL);
    int failed = pthread_create(&w->thread, NULL, watch, w);
    if (!failed) {
        *out = w;
        return true;
    }
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->cond);
    free(w);
    errno = failed;
    return error_errno(err, "cannot start the watchdog's thread");
}

void watchdog_stop(struct watchdog *w)
{
    if (!w) return;
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->cond);
    free(w);
}
