/* Limits of one key: see limits.h. */
#include "server/limits.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"

static const double NS_PER_MINUTE = 60e9;

/* `level` is what was left at `at_ns`. */
struct bucket {
    int64_t per_minute; /* 0: no limit */
    double level;
    int64_t at_ns;
};

struct key_limits {
    pthread_mutex_t mutex;
    int64_t n_refs;
    struct bucket requests, tokens;
    int64_t max_running, running; /* max_running 0: no limit */
};

/* ---- Buckets ---- */

static void refill(struct bucket *b, int64_t now_ns)
{
    if (now_ns <= b->at_ns) return; /* two threads' clocks, read in the other order */
    b->level += (double)(now_ns - b->at_ns) * (double)b->per_minute / NS_PER_MINUTE;
    b->level = fmin(b->level, (double)b->per_minute);
    b->at_ns = now_ns;
}

/* Until the bucket holds `level`. */
static int64_t time_until(const struct bucket *b, double level)
{
    double missing = level - b->level;
    return missing <= 0 ? 0 : (int64_t)ceil(missing / (double)b->per_minute * NS_PER_MINUTE);
}

/* False when there is less; *wait_ns says until when. */
static bool take(struct bucket *b, int64_t n, int64_t now_ns, int64_t *wait_ns)
{
    if (b->per_minute == 0) return true;
    refill(b, now_ns);
    *wait_ns = time_until(b, (double)n);
    if (*wait_ns > 0) return false;
    b->level -= (double)n;
    return true;
}

static void give(struct bucket *b, int64_t n, int64_t now_ns)
{
    if (b->per_minute == 0) return;
    refill(b, now_ns);
    b->level = fmin(b->level + (double)n, (double)b->per_minute);
}

/* ---- Lifetime ---- */

bool limits_any(const struct limits_options *o)
{
    return o->requests_per_minute > 0 || o->tokens_per_minute > 0 || o->concurrent > 0;
}

struct key_limits *key_limits_new(const struct limits_options *o, int64_t now_ns)
{
    struct key_limits *l = malloc(sizeof *l);
    if (!l) return NULL;
    *l = (struct key_limits){
        .n_refs = 1,
        .requests = {o->requests_per_minute, (double)o->requests_per_minute, now_ns},
        .tokens = {o->tokens_per_minute, (double)o->tokens_per_minute, now_ns},
        .max_running = o->concurrent,
    };
    pthread_mutex_init(&l->mutex, NULL);
    return l;
}

struct key_limits *key_limits_ref(struct key_limits *l)
{
    if (!l) return NULL;
    pthread_mutex_lock(&l->mutex);
    l->n_refs++;
    pthread_mutex_unlock(&l->mutex);
    return l;
}

void key_limits_unref(struct key_limits *l)
{
    if (!l) return;
    pthread_mutex_lock(&l->mutex);
    bool last = --l->n_refs == 0;
    pthread_mutex_unlock(&l->mutex);
    if (!last) return;
    pthread_mutex_destroy(&l->mutex);
    free(l);
}

/* ---- Counting ---- */

static enum limits_verdict busy(enum limits_verdict why, int64_t wait_ns, struct error *err,
                                const char *what, int64_t limit)
{
    int64_t seconds = max_i64(1, (wait_ns + 999999999) / 1000000000);
    error_set(err, ERR_BUSY, NULL, "rate limit reached for this key: %" PRId64 " %s; try again in "
              "%" PRId64 " s", limit, what, seconds);
    err->retry_after_s = (int32_t)seconds;
    return why;
}

enum limits_verdict key_limits_begin(struct key_limits *l, int64_t now_ns, struct error *err)
{
    enum limits_verdict verdict = LIMITS_OK;
    int64_t wait_ns = 0;
    pthread_mutex_lock(&l->mutex);
    if (l->max_running > 0 && l->running >= l->max_running)
        verdict = busy(LIMITS_CONCURRENT, 0, err, "requests at once", l->max_running);
    else if (!take(&l->requests, 1, now_ns, &wait_ns))
        verdict = busy(LIMITS_REQUESTS, wait_ns, err, "requests a minute", l->requests.per_minute);
    else
        l->running++;
    pthread_mutex_unlock(&l->mutex);
    return verdict;
}

void key_limits_end(struct key_limits *l)
{
    pthread_mutex_lock(&l->mutex);
    ASSERT(l->running > 0);
    l->running--;
    pthread_mutex_unlock(&l->mutex);
}

enum limits_verdict key_limits_charge(struct key_limits *l, int64_t tokens, int64_t now_ns,
                                      struct error *err)
{
    enum limits_verdict verdict = LIMITS_OK;
    int64_t wait_ns = 0;
    pthread_mutex_lock(&l->mutex);
    int64_t limit = l->tokens.per_minute;
    if (limit > 0 && tokens > limit) {
        error_set(err, ERR_NO_FIT, "max_tokens", "the request may take %" PRId64 " tokens (prompt "
                  "and max_tokens of all choices); this key has %" PRId64 " a minute", tokens,
                  limit);
        verdict = LIMITS_TOKENS;
    } else if (!take(&l->tokens, tokens, now_ns, &wait_ns)) {
        verdict = busy(LIMITS_TOKENS, wait_ns, err, "tokens a minute", limit);
    }
    pthread_mutex_unlock(&l->mutex);
    return verdict;
}

void key_limits_refund(struct key_limits *l, int64_t tokens, int64_t now_ns)
{
    pthread_mutex_lock(&l->mutex);
    give(&l->tokens, tokens, now_ns);
    pthread_mutex_unlock(&l->mutex);
}

/* ---- Headers ---- */

void limits_format_duration(int64_t ns, char *out, size_t size)
{
    int64_t ms = (ns + 999999) / 1000000;
    if (ms < 1000) snprintf(out, size, "%" PRId64 "ms", ms);
    else if (ms < 60000) snprintf(out, size, "%.4gs", (double)((ms + 9) / 10) / 100);
    else snprintf(out, size, "%" PRId64 "m%" PRId64 "s", ms / 60000, ms % 60000 / 1000);
}

static void add_header(struct MHD_Response *response, const char *what, const char *unit,
                       const char *value)
{
    char name[64];
    snprintf(name, sizeof name, "x-ratelimit-%s-%s", what, unit);
    MHD_add_response_header(response, name, value);
}

/* `b` is a copy: nobody else's. */
static void add_headers_of(struct bucket b, const char *unit, int64_t now_ns,
                           struct MHD_Response *response)
{
    char value[32];
    if (b.per_minute == 0) return;
    refill(&b, now_ns);
    snprintf(value, sizeof value, "%" PRId64, b.per_minute);
    add_header(response, "limit", unit, value);
    snprintf(value, sizeof value, "%" PRId64, (int64_t)floor(b.level));
    add_header(response, "remaining", unit, value);
    limits_format_duration(time_until(&b, (double)b.per_minute), value, sizeof value);
    add_header(response, "reset", unit, value);
}

void key_limits_add_headers(struct key_limits *l, int64_t now_ns, struct MHD_Response *response)
{
    pthread_mutex_lock(&l->mutex);
    struct bucket requests = l->requests, tokens = l->tokens;
    pthread_mutex_unlock(&l->mutex);
    add_headers_of(requests, "requests", now_ns, response);
    add_headers_of(tokens, "tokens", now_ns, response);
}
