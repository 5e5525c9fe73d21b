/* The table of routes: path, method, and who answers. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "api/registry.h"
#include "server/request.h"
#include "server/routes_memory.h"
#include "server/watchdog.h"

/* ---- Answers ---- */

static bool post_tokenize(struct request *r, struct buf *out, struct error *err)
{
    return api_tokenize(r->server->api, r->body.data ? r->body.data : "", r->body.len, out, err);
}

static bool post_detokenize(struct request *r, struct buf *out, struct error *err)
{
    return api_detokenize(r->server->api, r->body.data ? r->body.data : "", r->body.len, out, err);
}

/* Alive: the engine rests, or has finished a step lately, and its device works. */
static bool get_health(struct request *r, struct buf *out, struct error *err)
{
    double since_s;
    if (engine_device_failed(r->server->api))
        return error_set(err, ERR_DEVICE, NULL, "the device has failed: restart the server");
    if (engine_is_stalled(r->server->api, r->server->options.stall_timeout_s, &since_s))
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

/* api_access_fn: the description says of each operation what this table says. */
static enum api_access access_of(const char *method, const char *path);

static bool get_openapi(struct request *r, struct buf *out, struct error *err)
{
    api_openapi(r->server->api, access_of, out);
    return true;
}

/* ---- The table ---- */

/* One row is all that there is to a route: a path that is not here does not exist, and a row that
 * says nothing of who may is an admin's. */
struct route {
    enum api_access access;
    /* "{id}" at the end takes the rest of the path; before the end, all up to the next slash. */
    const char *method, *path;
    /* NULL: a completion, or a file of the web page */
    bool (*answer)(struct request *r, struct buf *out, struct error *err);
    enum completion_kind kind;
    const char *content_type; /* NULL: application/json */
    enum route_body body;
    bool slow, page;
};

#define OPEN API_ACCESS_OPEN
#define USER API_ACCESS_USER
#define ADMIN API_ACCESS_ADMIN
#define JSON_BODY .body = BODY_JSON
#define QUICK .slow = false
#define SLOW .slow = true
#define PAGE .page = true

static const struct route routes[N_ROUTES] = {
    {USER, "POST", "/v1/completions", NULL, COMPLETION_TEXT, JSON_BODY},
    {USER, "POST", "/v1/chat/completions", NULL, COMPLETION_CHAT, JSON_BODY},
    {USER, "POST", "/v1/tokenize", post_tokenize, JSON_BODY},
    {USER, "POST", "/v1/detokenize", post_detokenize, JSON_BODY},
    {USER, "GET", "/v1/models", get_models, SLOW},
    {ADMIN, "POST", "/v1/models/load", post_model_load, JSON_BODY, SLOW},
    {USER, "GET", "/v1/models/{id}", get_model, SLOW},
    {ADMIN, "DELETE", "/v1/models/{id}", delete_model, SLOW},
    {USER, "GET", "/v1/memory", get_memory, QUICK},
    {USER, "POST", "/v1/memory/plan", post_memory_plan, JSON_BODY, SLOW},
    {OPEN, "GET", "/health", get_health, QUICK},
    {OPEN, "GET", "/ready", get_ready, QUICK},
    {USER, "GET", "/metrics", get_metrics,
     .content_type = "text/plain; version=0.0.4; charset=utf-8"},
    {OPEN, "GET", "/openapi.json", get_openapi, QUICK},
    {OPEN, "GET", "/", PAGE},
    {OPEN, "GET", "/page/{id}", PAGE},
    {ADMIN, "POST", "/v1/files", post_file, .body = BODY_UPLOAD, SLOW},
    {ADMIN, "GET", "/v1/files", get_files, SLOW},
    {ADMIN, "GET", "/v1/files/{id}/content", get_file_content, SLOW,
     .content_type = "application/octet-stream"},
    {ADMIN, "GET", "/v1/files/{id}", get_file, SLOW},
    {ADMIN, "DELETE", "/v1/files/{id}", delete_file, SLOW},
    {ADMIN, "POST", "/v1/fine_tuning/jobs", post_job, JSON_BODY, SLOW},
    {ADMIN, "GET", "/v1/fine_tuning/jobs", get_jobs, SLOW},
    {ADMIN, "POST", "/v1/fine_tuning/jobs/{id}/cancel", post_job_cancel, JSON_BODY, SLOW},
    {ADMIN, "POST", "/v1/fine_tuning/jobs/{id}/pause", post_job_pause, JSON_BODY, SLOW},
    {ADMIN, "POST", "/v1/fine_tuning/jobs/{id}/resume", post_job_resume, JSON_BODY, SLOW},
    {ADMIN, "GET", "/v1/fine_tuning/jobs/{id}/events", get_job_events, SLOW},
    {ADMIN, "GET", "/v1/fine_tuning/jobs/{id}/checkpoints", get_job_checkpoints, SLOW},
    {ADMIN, "GET", "/v1/fine_tuning/jobs/{id}", get_job, SLOW},
};

const char *route_label(int32_t route) { return route < N_ROUTES ? routes[route].path : "other"; }

enum api_access route_access(int32_t route)
{
    return route < N_ROUTES ? routes[route].access : API_ACCESS_USER;
}

static enum api_access access_of(const char *method, const char *path)
{
    for (int32_t i = 0; i < N_ROUTES; i++)
        if (strcasecmp(routes[i].method, method) == 0 && strcmp(routes[i].path, path) == 0)
            return routes[i].access;
    return API_ACCESS_ADMIN;
}

int32_t route_counted(int32_t route)
{
    for (int32_t i = 0; i < route; i++)
        if (strcmp(route_label(i), route_label(route)) == 0) return i;
    return route;
}

/* Does the path fit the pattern? What stands for {id} goes to param. */
static bool path_fits(const char *pattern, const char *path, char *param, size_t size)
{
    const char *brace = strchr(pattern, '{');
    if (!brace) return strcmp(pattern, path) == 0;
    size_t before = (size_t)(brace - pattern), len = strlen(path);
    const char *rest = strchr(pattern, '}') + 1;
    size_t after = strlen(rest);
    if (strncmp(pattern, path, before) != 0 || len <= before + after) return false;
    size_t n = len - before - after;
    if (strcmp(path + len - after, rest) != 0 || n >= size) return false;
    if (after > 0 && memchr(path + before, '/', n)) return false;
    memcpy(param, path + before, n);
    param[n] = 0;
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
    int32_t same_path = N_ROUTES;
    for (r->route = 0; r->route < N_ROUTES; r->route++) {
        const struct route *route = &routes[r->route];
        if (!path_fits(route->path, path, r->param, sizeof r->param)) continue;
        bool is_get = strcmp(route->method, "GET") == 0;
        if (strcmp(method, route->method) == 0 || (is_get && strcmp(method, "HEAD") == 0))
            return true;
        if (same_path == N_ROUTES) same_path = r->route;
    }
    r->route = same_path;
    if (same_path < N_ROUTES) {
        char allow[64];
        route_allow(same_path, allow, sizeof allow);
        *status = 405;
        return error_set(err, ERR_INVALID, NULL, "%s takes %s", quotable(path), allow);
    }
    *status = 404;
    return error_set(err, ERR_NOT_FOUND, NULL, "there is nothing at %s; see /openapi.json",
                     quotable(path));
}

bool route_is_completion(int32_t route, enum completion_kind *kind)
{
    if (route >= N_ROUTES || routes[route].answer || routes[route].page) return false;
    *kind = routes[route].kind;
    return true;
}

enum route_body route_body(int32_t route)
{
    return route < N_ROUTES ? routes[route].body : BODY_NONE;
}

bool route_is_probe(int32_t route)
{
    const char *path = route_label(route);
    return strcmp(path, "/health") == 0 || strcmp(path, "/ready") == 0
           || strcmp(path, "/metrics") == 0;
}

bool route_is_page(int32_t route) { return route < N_ROUTES && routes[route].page; }

bool route_is_slow(int32_t route) { return route < N_ROUTES && routes[route].slow; }

void route_allow(int32_t route, char *out, size_t size)
{
    size_t n = 0;
    for (int32_t i = 0; i < N_ROUTES && n < size; i++) {
        if (strcmp(routes[i].path, routes[route].path) != 0) continue;
        bool is_get = strcmp(routes[i].method, "GET") == 0;
        n += (size_t)snprintf(out + n, size - n, "%s%s", n ? ", " : "",
                              is_get ? "GET, HEAD" : routes[i].method);
    }
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
