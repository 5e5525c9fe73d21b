/* Replies on their connections: see exchange.h. */
#include "server/exchange.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/connection.h"
#include "server/watcher.h"

enum { REPLY_LIMIT = 1 << 28, RESPONSE_BLOCK = 16 * 1024 };

struct exchange {
    struct watch watch; /* first: the watcher's events come with this address */
    struct exchanges *all;
    struct MHD_Connection *connection;
    struct completion *completion; /* what the reply is read from: this, or */
    struct job_feed *feed;
    struct key_limits *limits;     /* a reference; NULL: none */
    struct exchange *next, *prev;  /* of all->open */
    struct exchange *next_to_reap; /* of all->to_reap */

    /* Guarded by mutex. */
    pthread_mutex_t mutex;
    pthread_cond_t news_cond; /* for the reaper, once closed */
    bool news;      /* something was published since the source was last read */
    bool probe;     /* write something: to learn whether anyone is there, or to be seen alive */
    bool gone;      /* nobody is */
    bool suspended; /* by us; whoever clears it resumes */
    bool closed;    /* the connection is no longer ours */

    /* The connection's thread's, then the reaper's. */
    bool is_stream;
    bool chunked;     /* a reply through write_reply is on its way */
    bool more;        /* the source had more to say than it said */
    bool ended;       /* the source has said all */
    bool delivered;
    int64_t begin_ns;
    struct buf out;   /* bytes to send */
    size_t n_sent;    /* of out */
    size_t n_whole;   /* of a reply that is sent as a whole */
};

struct exchanges {
    const struct api_context *api;
    struct metrics *metrics;
    struct watcher *watcher;
    int64_t keep_alive_ns;
    pthread_t reaper;
    pthread_mutex_t mutex; /* of what follows; may be held while taking an exchange's */
    pthread_cond_t reap_cond;
    struct exchange *open;
    struct exchange *to_reap;
    int32_t count;
    bool draining, cut, stopping;
};

/* ---- Waking ---- */

/* With e->mutex held. */
static void resume(struct exchange *e)
{
    if (!e->suspended) return;
    e->suspended = false;
    MHD_resume_connection(e->connection);
}

/* The source's notify. */
static void on_news(void *ctx)
{
    struct exchange *e = ctx;
    pthread_mutex_lock(&e->mutex);
    e->news = true;
    resume(e);
    if (e->closed) pthread_cond_signal(&e->news_cond);
    pthread_mutex_unlock(&e->mutex);
}

/* The source ends soon. Without e->mutex. */
static void cancel(struct exchange *e)
{
    if (e->completion) {
        completion_cancel(e->completion);
        return;
    }
    job_feed_cancel(e->feed);
    on_news(e);
}

static void end_early(struct exchange *e)
{
    pthread_mutex_lock(&e->mutex);
    e->gone = true;
    resume(e);
    pthread_mutex_unlock(&e->mutex);
    cancel(e);
}

static void on_peer(struct watch *watch, enum peer_event event)
{
    struct exchange *e = (struct exchange *)watch;
    if (event == PEER_GONE) {
        end_early(e);
        return;
    }
    pthread_mutex_lock(&e->mutex);
    e->probe = true;
    resume(e);
    pthread_mutex_unlock(&e->mutex);
}

enum wait_outcome { WAIT_SUSPENDED, WAIT_NEWS, WAIT_PROBE, WAIT_GONE };

/* Suspends the connection unless something has happened since. */
static enum wait_outcome wait_for_something(struct exchange *e)
{
    enum wait_outcome outcome;
    pthread_mutex_lock(&e->mutex);
    if (e->gone) {
        outcome = WAIT_GONE;
    } else if (e->news || e->more) {
        e->news = false;
        outcome = WAIT_NEWS;
    } else if (e->probe) {
        e->probe = false;
        outcome = WAIT_PROBE;
    } else {
        e->suspended = true;
        connection_work(connection_of(e->connection));
        MHD_suspend_connection(e->connection);
        outcome = WAIT_SUSPENDED;
    }
    pthread_mutex_unlock(&e->mutex);
    return outcome;
}

/* ---- Reading the source, writing the reply ---- */

/* What /metrics says of a completion; before its last bytes go out, so that who has them finds it
 * counted. */
static void count(struct exchange *e)
{
    struct completion_summary summary;
    if (!e->completion) return;
    completion_summary(e->completion, &summary);
    metrics_completion(e->all->metrics, &summary, clock_ns() - e->begin_ns);
}

/* Reads what is new into e->out. False when a completion ended with a failure. */
static bool read_source(struct exchange *e, struct error *err)
{
    struct error failure = {0};
    enum completion_status status = e->feed ? job_feed_read(e->feed, &e->out)
                                            : completion_read(e->completion, &e->out, &failure);
    e->more = status == COMPLETION_DATA;
    e->ended = status == COMPLETION_ENDED;
    if (e->ended) count(e);
    if (failure.code == ERR_NONE && !buf_check(&e->out, "the reply", &failure)) cancel(e);
    if (failure.code == ERR_NONE) return true;
    *err = failure;
    return false;
}

static ssize_t send_out(struct exchange *e, char *to, size_t max)
{
    size_t n = e->out.len - e->n_sent;
    if (n > max) n = max;
    memcpy(to, e->out.data + e->n_sent, n);
    e->n_sent += n;
    connection_expect_reading(connection_of(e->connection), n);
    if (e->n_sent == e->out.len) {
        buf_clear(&e->out);
        e->n_sent = 0;
    }
    return (ssize_t)n;
}

/* MHD's content reader: the next bytes of a reply of unknown length. */
static ssize_t write_reply(void *cls, uint64_t pos, char *to, size_t max)
{
    struct exchange *e = cls;
    for (;;) {
        if (e->out.len > e->n_sent) return send_out(e, to, max);
        if (e->ended) return MHD_CONTENT_READER_END_OF_STREAM;
        struct error err = {0};
        switch (wait_for_something(e)) {
        case WAIT_SUSPENDED: return 0;
        case WAIT_GONE: return MHD_CONTENT_READER_END_WITH_ERROR;
        case WAIT_PROBE: buf_puts(&e->out, e->is_stream ? ":\n\n" : "\n"); break;
        case WAIT_NEWS:
            if (read_source(e, &err)) break;
            if (e->out.failed) return MHD_CONTENT_READER_END_WITH_ERROR;
            api_render_error(&e->out, &err); /* status 200 is out: it is part of the body now */
            break;
        }
    }
}

static enum exchange_step respond_chunked(struct exchange *e, struct MHD_Response **response,
                                          struct error *err)
{
    *response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, RESPONSE_BLOCK, write_reply, e,
                                                  NULL);
    if (!*response) {
        error_set(err, ERR_MEMORY, NULL, "no memory for the reply");
        return EXCHANGE_FAILED;
    }
    e->chunked = true;
    if (e->is_stream) {
        MHD_add_response_header(*response, "Content-Type", "text/event-stream");
        MHD_add_response_header(*response, "Cache-Control", "no-store");
        /* To nginx: pass it on as it comes. */
        MHD_add_response_header(*response, "X-Accel-Buffering", "no");
    } else {
        MHD_add_response_header(*response, "Content-Type", "application/json");
    }
    return EXCHANGE_RESPOND;
}

/* The first byte of a JSON reply, to see if anyone is there: white space changes nothing for who
 * is still reading. It is the last reply, since there can be no further request. */
static enum exchange_step respond_probing(struct exchange *e, struct MHD_Response **response,
                                          struct error *err)
{
    buf_puts(&e->out, "\n");
    enum exchange_step step = respond_chunked(e, response, err);
    if (*response) MHD_add_response_header(*response, "Connection", "close");
    return step;
}

/* The whole reply at once, with its length. */
static enum exchange_step respond_whole(struct exchange *e, struct MHD_Response **response,
                                        struct error *err)
{
    size_t n;
    char *data = buf_take(&e->out, &n);
    e->n_whole = n;
    *response = data ? MHD_create_response_from_buffer(n, data, MHD_RESPMEM_MUST_FREE) : NULL;
    if (!*response) {
        free(data);
        error_set(err, ERR_MEMORY, NULL, "no memory for the reply");
        return EXCHANGE_FAILED;
    }
    MHD_add_response_header(*response, "Content-Type", "application/json");
    return EXCHANGE_RESPOND;
}

enum exchange_step exchange_next(struct exchange *e, struct MHD_Response **response,
                                 struct error *err)
{
    if (e->is_stream) return respond_chunked(e, response, err);
    for (;;) {
        switch (wait_for_something(e)) {
        case WAIT_SUSPENDED: return EXCHANGE_WAIT;
        case WAIT_GONE: return EXCHANGE_GONE;
        case WAIT_PROBE: return respond_probing(e, response, err);
        case WAIT_NEWS:
            if (!read_source(e, err)) return EXCHANGE_FAILED;
            if (e->ended) return respond_whole(e, response, err);
            break;
        }
    }
}

uint64_t exchange_reply_bytes(const struct exchange *e) { return e->n_whole; }

/* ---- Open and close ---- */

static void free_exchange(struct exchange *e)
{
    completion_free(e->completion);
    job_feed_close(e->feed);
    key_limits_unref(e->limits);
    buf_free(&e->out);
    pthread_cond_destroy(&e->news_cond);
    pthread_mutex_destroy(&e->mutex);
    free(e);
}

static void enter(struct exchanges *all, struct exchange *e)
{
    pthread_mutex_lock(&all->mutex);
    e->next = all->open;
    if (all->open) all->open->prev = e;
    all->open = e;
    all->count++;
    pthread_mutex_lock(&e->mutex);
    e->gone = e->gone || all->cut;
    pthread_mutex_unlock(&e->mutex);
    if (e->feed && all->draining) cancel(e);
    pthread_mutex_unlock(&all->mutex);
}

static void leave(struct exchanges *all, struct exchange *e)
{
    pthread_mutex_lock(&all->mutex);
    if (e->prev) e->prev->next = e->next;
    else all->open = e->next;
    if (e->next) e->next->prev = e->prev;
    pthread_mutex_unlock(&all->mutex);
}

/* Without a source yet. */
static struct exchange *new_exchange(struct exchanges *all, struct MHD_Connection *connection,
                                     int64_t begin_ns, struct error *err)
{
    struct exchange *e = calloc(1, sizeof *e);
    if (!e) {
        error_set(err, ERR_MEMORY, NULL, "no memory for the request");
        return NULL;
    }
    e->all = all;
    e->connection = connection;
    e->begin_ns = begin_ns;
    e->news = true; /* what the source has had from the beginning */
    buf_init(&e->out, REPLY_LIMIT);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->news_cond, NULL);
    return e;
}

/* Watches the connection, and counts. */
static bool begin_exchange(struct exchange *e, struct error *err)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(e->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (!watcher_add(e->all->watcher, &e->watch, info->connect_fd, err)) return false;
    enter(e->all, e);
    return true;
}

/* completion_caller.charge and .refund */
static bool charge(void *ctx, int64_t tokens, struct error *err)
{
    struct exchange *e = ctx;
    if (!e->limits || key_limits_charge(e->limits, tokens, clock_ns(), err) == LIMITS_OK)
        return true;
    metrics_refused(e->all->metrics, REFUSED_TOKEN_RATE);
    return false;
}

static void refund(void *ctx, int64_t tokens)
{
    struct exchange *e = ctx;
    if (e->limits) key_limits_refund(e->limits, tokens, clock_ns());
}

bool exchange_open(struct exchanges *all, enum completion_kind kind, const char *body, size_t n,
                   const struct exchange_caller *from, struct MHD_Connection *connection,
                   int64_t begin_ns, struct exchange **out, struct error *err)
{
    struct exchange *e = new_exchange(all, connection, begin_ns, err);
    if (!e) return false;
    e->limits = key_limits_ref(from->limits);
    struct completion_caller caller = {.cache_salt = from->cache_salt, .charge = charge,
                                       .refund = refund, .ctx = e};
    if (!completion_open(all->api, kind, body, n, &caller, on_news, e, &e->completion, err))
        goto fail;
    e->is_stream = completion_is_stream(e->completion);
    if (!begin_exchange(e, err)) goto fail;
    *out = e;
    return true;
fail:
    free_exchange(e);
    return false;
}

bool exchange_follow(struct exchanges *all, struct job_feed *feed,
                     struct MHD_Connection *connection, int64_t begin_ns, struct exchange **out,
                     struct error *err)
{
    struct exchange *e = new_exchange(all, connection, begin_ns, err);
    if (!e) {
        job_feed_close(feed);
        return false;
    }
    e->feed = feed;
    e->is_stream = true;
    job_feed_listen(feed, on_news, e);
    if (!begin_exchange(e, err)) {
        free_exchange(e);
        return false;
    }
    *out = e;
    return true;
}

void exchange_close(struct exchange *e, bool delivered, struct completion_summary *summary)
{
    struct exchanges *all = e->all;
    watcher_remove(all->watcher, &e->watch);
    memset(summary, 0, sizeof *summary);
    if (!e->ended) cancel(e);
    else if (e->completion) completion_summary(e->completion, summary);
    e->delivered = delivered;
    pthread_mutex_lock(&e->mutex);
    e->closed = true;
    pthread_mutex_unlock(&e->mutex);

    pthread_mutex_lock(&all->mutex);
    e->next_to_reap = all->to_reap;
    all->to_reap = e;
    pthread_cond_signal(&all->reap_cond);
    pthread_mutex_unlock(&all->mutex);
}

/* ---- The reaper ---- */

/* Reads a canceled source to its end, which comes within a step: only then are a completion's
 * counts final. */
static void read_to_end(struct exchange *e)
{
    struct error err;
    for (buf_clear(&e->out); !e->ended; buf_clear(&e->out)) {
        pthread_mutex_lock(&e->mutex);
        while (!e->news && !e->more) pthread_cond_wait(&e->news_cond, &e->mutex);
        e->news = false;
        pthread_mutex_unlock(&e->mutex);
        if (!read_source(e, &err)) log_debug("after its client left: %s", err.text);
    }
}

static void reap(struct exchange *e)
{
    struct exchanges *all = e->all;
    leave(all, e);
    if (!e->delivered && e->completion)
        atomic_fetch_add_explicit(&all->metrics->clients_gone, 1, memory_order_relaxed);
    e->more = true; /* it may have ended before anyone listened */
    read_to_end(e);
    free_exchange(e);
}

/* With all->mutex held. A probe is a comment, which a stream's reader passes over. */
static void keep_alive(struct exchanges *all)
{
    for (struct exchange *e = all->open; e; e = e->next) {
        if (!e->feed) continue;
        pthread_mutex_lock(&e->mutex);
        e->probe = true;
        resume(e);
        pthread_mutex_unlock(&e->mutex);
    }
}

/* With all->mutex held. Waits for work, or for the time to look after streams. */
static void reaper_wait(struct exchanges *all, int64_t until_ns)
{
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    int failed = 0;
    while (!all->to_reap && !all->stopping && !failed)
        failed = pthread_cond_timedwait(&all->reap_cond, &all->mutex, &until);
}

static void *reaper_run(void *arg)
{
    struct exchanges *all = arg;
    int64_t keep_alive_ns = clock_ns() + all->keep_alive_ns;
    pthread_mutex_lock(&all->mutex);
    while (all->to_reap || !all->stopping) {
        reaper_wait(all, keep_alive_ns);
        if (clock_ns() >= keep_alive_ns) {
            keep_alive(all);
            keep_alive_ns = clock_ns() + all->keep_alive_ns;
        }
        struct exchange *e = all->to_reap;
        if (!e) continue;
        all->to_reap = e->next_to_reap;
        pthread_mutex_unlock(&all->mutex);
        reap(e);
        pthread_mutex_lock(&all->mutex);
        all->count--;
    }
    pthread_mutex_unlock(&all->mutex);
    return NULL;
}

/* ---- All of them ---- */

bool exchanges_start(const struct api_context *api, struct metrics *metrics, int64_t keep_alive_s,
                     struct exchanges **out, struct error *err)
{
    struct exchanges *all = calloc(1, sizeof *all);
    if (!all) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    all->api = api;
    all->metrics = metrics;
    all->keep_alive_ns = keep_alive_s * 1000000000;
    pthread_mutex_init(&all->mutex, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&all->reap_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if (!watcher_start(on_peer, &all->watcher, err)) goto fail;
    int failed = pthread_create(&all->reaper, NULL, reaper_run, all);
    if (failed) {
        errno = failed;
        error_errno(err, "cannot start the reaper's thread");
        goto fail;
    }
    *out = all;
    return true;
fail:
    watcher_stop(all->watcher);
    pthread_cond_destroy(&all->reap_cond);
    pthread_mutex_destroy(&all->mutex);
    free(all);
    return false;
}

int32_t exchanges_count(struct exchanges *all)
{
    pthread_mutex_lock(&all->mutex);
    int32_t n = all->count;
    pthread_mutex_unlock(&all->mutex);
    return n;
}

void exchanges_drain(struct exchanges *all)
{
    pthread_mutex_lock(&all->mutex);
    all->draining = true;
    for (struct exchange *e = all->open; e; e = e->next)
        if (e->feed) cancel(e);
    pthread_mutex_unlock(&all->mutex);
}

void exchanges_cancel(struct exchanges *all)
{
    pthread_mutex_lock(&all->mutex);
    for (struct exchange *e = all->open; e; e = e->next) cancel(e);
    pthread_mutex_unlock(&all->mutex);
}

void exchanges_cut(struct exchanges *all)
{
    pthread_mutex_lock(&all->mutex);
    all->cut = true;
    for (struct exchange *e = all->open; e; e = e->next) end_early(e);
    pthread_mutex_unlock(&all->mutex);
}

void exchanges_stop(struct exchanges *all)
{
    if (!all) return;
    pthread_mutex_lock(&all->mutex);
    all->stopping = true;
    pthread_cond_signal(&all->reap_cond);
    pthread_mutex_unlock(&all->mutex);
    pthread_join(all->reaper, NULL);
    watcher_stop(all->watcher);
    pthread_cond_destroy(&all->reap_cond);
    pthread_mutex_destroy(&all->mutex);
    free(all);
}
