/* Connections and their time: see connection.h. */
#include "server/connection.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    LOOK_EVERY_MS = 250,
    MAX_ALLOWANCE_S = 1 << 30,
    UNSENT_BYTES = 128 << 10, /* the kernel's memory for a client that does not read */
};
static const int64_t SECOND_NS = 1000000000, NEVER = INT64_MAX;

struct connection {
    struct connections *all;
    int fd;
    int64_t body_since_ns;
    /* Written by the connection's thread, read by the looking one. */
    _Atomic int64_t deadline_ns;  /* by clock_ns; NEVER */
    _Atomic int64_t waiting_since_ns; /* for a request; NEVER: it does something */
    /* Guarded by all->mutex. */
    bool shut;
    struct connection *next, *prev;
};

struct connections {
    struct connection_times times;
    int64_t max;
    void *ctx;
    pthread_t thread;
    pthread_mutex_t mutex; /* of what follows; a socket is shut down while it is held, and closed
                              after it was */
    pthread_cond_t stop_cond;
    bool stopping;
    struct connection *first;
    int64_t n_open; /* not shut */
};

/* ---- Shutting down sockets ---- */

/* With all->mutex held. */
static void shut(struct connection *c)
{
    if (c->shut) return;
    c->shut = true;
    c->all->n_open--;
    shutdown(c->fd, SHUT_RDWR);
}

static void shut_overdue(struct connections *all)
{
    int64_t now = clock_ns();
    int n = 0;
    for (struct connection *c = all->first; c; c = c->next) {
        if (c->shut || atomic_load_explicit(&c->deadline_ns, memory_order_relaxed) > now) continue;
        shut(c);
        n++;
    }
    if (n) log_debug("%d connections took too long and were closed", n);
}

static void shut_longest_waiting(struct connections *all)
{
    struct connection *oldest = NULL;
    int64_t since = NEVER;
    for (struct connection *c = all->first; c; c = c->next) {
        int64_t t = atomic_load_explicit(&c->waiting_since_ns, memory_order_relaxed);
        if (c->shut || t >= since) continue;
        since = t;
        oldest = c;
    }
    if (oldest) shut(oldest);
}

static void *look(void *arg)
{
    struct connections *all = arg;
    pthread_mutex_lock(&all->mutex);
    while (!all->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_EVERY_MS * 1000000L;
        until.tv_sec += until.tv_nsec / SECOND_NS;
        until.tv_nsec %= SECOND_NS;
        pthread_cond_timedwait(&all->stop_cond, &all->mutex, &until);
        shut_overdue(all);
    }
    pthread_mutex_unlock(&all->mutex);
    return NULL;
}

/* ---- All of them ---- */

bool connections_start(const struct connection_times *times, int64_t max, void *ctx,
                       struct connections **out, struct error *err)
{
    struct connections *all = calloc(1, sizeof *all);
    if (!all) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    all->times = *times;
    all->max = max;
    all->ctx = ctx;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&all->stop_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&all->mutex, NULL);
    int failed = pthread_create(&all->thread, NULL, look, all);
    if (!failed) {
        *out = all;
        return true;
    }
    pthread_mutex_destroy(&all->mutex);
    pthread_cond_destroy(&all->stop_cond);
    free(all);
    errno = failed;
    return error_errno(err, "cannot start the thread that looks after connections");
}

void connections_stop(struct connections *all)
{
    if (!all) return;
    ASSERT(!all->first);
    pthread_mutex_lock(&all->mutex);
    all->stopping = true;
    pthread_cond_signal(&all->stop_cond);
    pthread_mutex_unlock(&all->mutex);
    pthread_join(all->thread, NULL);
    pthread_mutex_destroy(&all->mutex);
    pthread_cond_destroy(&all->stop_cond);
    free(all);
}

bool connections_are_too_many(struct connections *all)
{
    pthread_mutex_lock(&all->mutex);
    bool too_many = all->n_open > all->max;
    pthread_mutex_unlock(&all->mutex);
    return too_many;
}

/* ---- One ---- */

static struct connection *open_one(struct connections *all, int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    int unsent = UNSENT_BYTES;
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent); /* not of Unix ones */
    int64_t now = clock_ns();
    c->all = all;
    c->fd = fd;
    atomic_init(&c->deadline_ns, now + all->times.header_s * SECOND_NS);
    atomic_init(&c->waiting_since_ns, now);
    pthread_mutex_lock(&all->mutex);
    if (++all->n_open > all->max) shut_longest_waiting(all); /* not this one */
    c->next = all->first;
    if (all->first) all->first->prev = c;
    all->first = c;
    pthread_mutex_unlock(&all->mutex);
    return c;
}

static void close_one(struct connection *c)
{
    if (!c) return;
    struct connections *all = c->all;
    pthread_mutex_lock(&all->mutex);
    if (c->prev) c->prev->next = c->next;
    else all->first = c->next;
    if (c->next) c->next->prev = c->prev;
    if (!c->shut) all->n_open--;
    pthread_mutex_unlock(&all->mutex);
    free(c);
}

void connection_notify(void *cls, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        *socket_context = open_one(cls, info->connect_fd);
    } else {
        close_one(*socket_context); /* libmicrohttpd closes the socket after this call */
        *socket_context = NULL;
    }
}

struct connection *connection_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

void *connection_ctx(const struct connection *c) { return c ? c->all->ctx : NULL; }

static int64_t allowance_ns(int64_t seconds, uint64_t bytes)
{
    uint64_t more_s = bytes / CONNECTION_MIN_RATE;
    if (more_s > MAX_ALLOWANCE_S) more_s = MAX_ALLOWANCE_S;
    return (seconds + (int64_t)more_s) * SECOND_NS;
}

static void expect(struct connection *c, int64_t seconds, uint64_t bytes, bool waits)
{
    int64_t now = clock_ns();
    atomic_store_explicit(&c->deadline_ns, now + allowance_ns(seconds, bytes),
                          memory_order_relaxed);
    atomic_store_explicit(&c->waiting_since_ns, waits ? now : NEVER, memory_order_relaxed);
}

void connection_expect_headers(struct connection *c)
{
    if (c) expect(c, c->all->times.idle_s + c->all->times.header_s, 0, true);
}

void connection_expect_rest(struct connection *c)
{
    if (c) expect(c, c->all->times.header_s, 0, true);
}

void connection_expect_reading(struct connection *c, uint64_t n)
{
    if (c) expect(c, c->all->times.send_s, n, false);
}

void connection_work(struct connection *c)
{
    if (!c) return;
    atomic_store_explicit(&c->deadline_ns, NEVER, memory_order_relaxed);
    atomic_store_explicit(&c->waiting_since_ns, NEVER, memory_order_relaxed);
}

void connection_expect_body(struct connection *c, uint64_t n_received)
{
    if (!c) return;
    if (n_received == 0) c->body_since_ns = clock_ns();
    atomic_store_explicit(&c->deadline_ns,
                          c->body_since_ns + allowance_ns(c->all->times.body_s, n_received),
                          memory_order_relaxed);
    atomic_store_explicit(&c->waiting_since_ns, NEVER, memory_order_relaxed);
}

void connection_shut(struct connection *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->all->mutex);
    shut(c);
    pthread_mutex_unlock(&c->all->mutex);
}
