/* The table of routes: path, method, and who answers. */
#include <string.h>

#include "base/clock.h"
#include "server/process.h"
#include "server/request.h"

enum { STALLED_AFTER_S = 5 };

/* ---- Answers ---- */

static bool get_models(struct request *r, struct buf *out, struct error *err)
{
    api_models(r->server->api, out);
    return true;
}

static bool get_model(struct request *r, struct buf *out, struct error *err)
{
    return api_model(r->server->api, r->param, out, err);
}

static bool post_tokenize(struct request *r, struct buf *out, struct error *err)
{
    return api_tokenize(r->server->api, r->body.data ? r->body.data : "", r->body.len, out, err);
}

static bool post_detokenize(struct request *r, struct buf *out, struct error *err)
{
    return api_detokenize(r->server->api, r->body.data ? r->body.data : "", r->body.len, out, err);
}

static bool get_memory(struct request *r, struct buf *out, struct error *err)
{
    struct api_process_memory process = {.baseline_bytes = r->server->baseline_bytes};
    process_memory(&process);
    api_memory(r->server->api, &process, out);
    return true;
}

/* Alive: the engine rests, or has finished a step lately. */
static bool get_health(struct request *r, struct buf *out, struct error *err)
{
    struct engine_stats stats;
    engine_stats(r->server->api->engine, &stats);
    double since_s = (double)(clock_ns() - stats.last_progress_ns) / 1e9;
    if ((stats.running > 0 || stats.queued > 0) && since_s > STALLED_AFTER_S)
        return error_set(err, ERR_UNAVAILABLE, NULL,
                         "the engine has work and made no progress for %.0f s", since_s);
    buf_puts(out, "{\"status\":\"ok\"}");
    return true;
}

static bool get_ready(struct request *r, struct buf *out, struct error *err)
{
    if (atomic_load(&r->server->draining))
        return error_set(err, ERR_UNAVAILABLE, NULL, "the server is shutting down");
    buf_puts(out, "{\"status\":\"ok\"}");
    return true;
}

static bool get_metrics(struct request *r, struct buf *out, struct error *err)
{
    struct engine_stats stats;
    struct api_process_memory process;
    engine_stats(r->server->api->engine, &stats);
    process_memory(&process);
    metrics_render(r->server->metrics, &stats, &process, out);
    return true;
}

static bool get_openapi(struct request *r, struct buf *out, struct error *err)
{
    api_openapi(r->server->api, out);
    return true;
}

/* ---- The table ---- */

struct route {
    const char *method, *path; /* "{id}" at the end takes the rest of the path */
    bool (*answer)(struct request *r, struct buf *out, struct error *err); /* NULL: a completion */
    enum completion_kind kind;
    const char *content_type; /* NULL: application/json */
};

static const struct route routes[N_ROUTES] = {
    {"POST", "/v1/completions", NULL, COMPLETION_TEXT, NULL},
    {"POST", "/v1/chat/completions", NULL, COMPLETION_CHAT, NULL},
    {"POST", "/v1/tokenize", post_tokenize, 0, NULL},
    {"POST", "/v1/detokenize", post_detokenize, 0, NULL},
    {"GET", "/v1/models", get_models, 0, NULL},
    {"GET", "/v1/models/{id}", get_model, 0, NULL},
    {"GET", "/v1/memory", get_memory, 0, NULL},
    {"GET", "/health", get_health, 0, NULL},
    {"GET", "/ready", get_ready, 0, NULL},
    {"GET", "/metrics", get_metrics, 0, "text/plain; version=0.0.4; charset=utf-8"},
    {"GET", "/openapi.json", get_openapi, 0, NULL},
};

const char *route_label(int32_t route) { return route < N_ROUTES ? routes[route].path : "other"; }

/* Does the path fit the pattern? *param: the rest that stands for {id}. */
static bool path_fits(const char *pattern, const char *path, const char **param)
{
    const char *brace = strchr(pattern, '{');
    if (!brace) return strcmp(pattern, path) == 0;
    size_t n = (size_t)(brace - pattern);
    if (strncmp(pattern, path, n) != 0 || path[n] == 0) return false;
    *param = path + n;
    return true;
}

/* Errors quote a path only where it is plain: it may be any bytes. */
static const char *quotable(const char *path)
{
    for (const char *p = path; *p; p++)
        if (*p <= ' ' || *p > '~' || p - path > 200) return "this path";
    return path;
}

bool route_find(const char *method, const char *path, struct request *r, int *status,
                struct error *err)
{
    for (r->route = 0; r->route < N_ROUTES; r->route++) {
        const struct route *route = &routes[r->route];
        if (!path_fits(route->path, path, &r->param)) continue;
        bool is_get = strcmp(route->method, "GET") == 0;
        if (strcmp(method, route->method) == 0 || (is_get && strcmp(method, "HEAD") == 0))
            return true;
        *status = 405;
        return error_set(err, ERR_INVALID, NULL, "%s takes %s", quotable(path),
                         route_allow(r->route));
    }
    *status = 404;
    return error_set(err, ERR_NOT_FOUND, NULL, "there is nothing at %s; see /openapi.json",
                     quotable(path));
}

bool route_is_completion(int32_t route, enum completion_kind *kind)
{
    if (route >= N_ROUTES || routes[route].answer) return false;
    *kind = routes[route].kind;
    return true;
}

bool route_takes_body(int32_t route)
{
    return route < N_ROUTES && strcmp(routes[route].method, "POST") == 0;
}

const char *route_allow(int32_t route)
{
    return strcmp(routes[route].method, "GET") == 0 ? "GET, HEAD" : routes[route].method;
}

const char *route_content_type(int32_t route)
{
    const char *type = route < N_ROUTES ? routes[route].content_type : NULL;
    return type ? type : "application/json";
}

bool route_answer(struct request *r, struct buf *out, struct error *err)
{
    return routes[r->route].answer(r, out, err);
}
