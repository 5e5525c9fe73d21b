/* Counters and histograms of the server, and their rendering in Prometheus' text format (version
 * 0.0.4). Any thread counts, without locks; a scrape sees each number as it is at that moment. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "api/completion.h"
#include "base/buf.h"

enum {
    METRICS_MAX_ROUTES = 40,
    METRICS_STATUSES = 500, /* 100..599 */
    METRICS_CLIENT_GONE = 499, /* no reply reached the client: the word of nginx */
    METRICS_BUCKETS = 20,
};

/* Why a request was turned away at the door. */
enum metrics_refusal {
    REFUSED_NO_KEY, REFUSED_WRONG_KEY, REFUSED_NOT_ADMIN, REFUSED_REQUEST_RATE, REFUSED_TOKEN_RATE,
    REFUSED_CONCURRENT, REFUSED_HOST, REFUSED_ORIGIN,
    N_REFUSALS,
};

/* Seconds, from 50 µs: upper bounds in metrics.c. */
struct histogram {
    _Atomic uint64_t buckets[METRICS_BUCKETS + 1]; /* the last one: above all bounds */
    _Atomic uint64_t sum_ns;
};

/* What a route is called: a constant string for each index from 0 to n_routes - 1. */
typedef const char *(*metrics_route_label)(int32_t route);

/* All but the counters is fixed by metrics_init, so that servers may come and go, one after another
 * or side by side, and count here. */
struct metrics {
    int64_t start_ns, start_unix;
    const char *model_id;
    const char *device; /* description */
    metrics_route_label route_label;
    int32_t n_routes; /* at most METRICS_MAX_ROUTES */
    _Atomic uint64_t requests[METRICS_MAX_ROUTES][METRICS_STATUSES];
    _Atomic uint64_t prompt_tokens, cached_tokens, completion_tokens;
    _Atomic uint64_t clients_gone; /* completions whose client left before the end */
    _Atomic uint64_t refused[N_REFUSALS];
    _Atomic int64_t connections;   /* open now */
    struct histogram queue, first_token, inter_token, request;
};

/* The strings are borrowed. For an HTTP server: http_metrics_init. */
void metrics_init(struct metrics *m, const char *model_id, const char *device,
                  metrics_route_label route_label, int32_t n_routes);
void histogram_observe(struct histogram *h, int64_t ns, uint64_t times);
void metrics_request(struct metrics *m, int32_t route, int status);
void metrics_refused(struct metrics *m, enum metrics_refusal reason);
/* One ended completion; request_ns: from its first byte in to its last byte ready. The
 * interval between two tokens is the request's mean, counted once for each. */
void metrics_completion(struct metrics *m, const struct completion_summary *s, int64_t request_ns);

/* Everything, with the gauges of the engines and of memory. */
void metrics_render(const struct metrics *m, const struct engine_stats *engine,
                    const struct api_memory_view *memory, struct buf *out);
/* One model's; to follow metrics_render, model after model, begun by metrics_models. */
void metrics_models(struct buf *out);
void metrics_model(const char *id, const struct engine_memory *m, struct buf *out);
