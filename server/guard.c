/* Who may come in: see guard.h. */
#include "server/guard.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "server/request.h"

static bool refuse(struct request *r, enum metrics_refusal reason)
{
    metrics_refused(r->server->metrics, reason);
    return false;
}

/* ---- Host and Origin ---- */

bool guard_host_is_local(const char *host, const struct option_list *allowed)
{
    char name[256];
    size_t n = host[0] == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":");
    size_t len = strlen(host);
    if (n == 0 || n > len || n >= sizeof name) return false;
    if (host[n] == ':' && strspn(host + n + 1, "0123456789") == len - n - 1) len = n;
    if (n != len) return false;
    snprintf(name, sizeof name, "%.*s", (int)n, host);
    for (int32_t i = 0; i < allowed->n; i++)
        if (strcasecmp(name, allowed->at[i]) == 0) return true;
    return strcasecmp(name, "localhost") == 0 || strcmp(name, "127.0.0.1") == 0
           || strcmp(name, "[::1]") == 0;
}

bool guard_is_origin(const char *s)
{
    const char *authority = strstr(s, "://");
    return strcmp(s, "*") == 0
           || (authority && authority > s && authority[3] && !strpbrk(authority + 3, "/?#@, "));
}

bool guard_origin_is_host(const char *origin, const char *host)
{
    const char *authority = strstr(origin, "://");
    return authority && host && strcasecmp(authority + 3, host) == 0;
}

static bool cors_allows(const struct option_list *origins, const char *origin)
{
    for (int32_t i = 0; origin && i < origins->n; i++)
        if (strcmp(origins->at[i], "*") == 0 || strcasecmp(origins->at[i], origin) == 0)
            return true;
    return false;
}

/* A page on the web can point its own name at 127.0.0.1 and then talk to what listens there: its
 * requests still carry that name. (header_guard.c has seen to it that there is one Host at most;
 * none is HTTP/1.0's, which no browser speaks.) */
static bool check_host(struct request *r, struct error *err)
{
    const struct http_options *o = &r->server->options;
    const char *host = request_header(r, "Host");
    if (!o->check_host || !host || guard_host_is_local(host, &o->allowed_hosts)) return true;
    error_set(err, ERR_FORBIDDEN, "Host", "this server listens on this machine alone and does not "
              "go by the name in the request's Host header; use localhost, or name it with "
              "--allowed-host");
    return refuse(r, REFUSED_HOST);
}

/* Without keys a browser on this machine would lend its leave to any page: some requests that
 * change things need no preflight. */
static bool check_origin(struct request *r, const char *method, struct error *err)
{
    const struct http_options *o = &r->server->options;
    const char *origin = request_header(r, "Origin");
    bool reads = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (o->auth || !origin || reads || cors_allows(&o->cors_origins, origin)
        || guard_origin_is_host(origin, request_header(r, "Host")))
        return true;
    error_set(err, ERR_FORBIDDEN, "Origin", "a page of another origin may not do this; name the "
              "origin with --cors-origin to let it");
    return refuse(r, REFUSED_ORIGIN);
}

/* ---- Keys ---- */

static enum MHD_Result collect_key(void *cls, enum MHD_ValueKind kind, const char *name,
                                   const char *value)
{
    struct auth_headers *h = cls;
    if (strcasecmp(name, "Authorization") == 0) {
        h->authorization = value;
        h->n_authorization++;
    } else if (strcasecmp(name, "X-Api-Key") == 0) {
        h->api_key = value;
        h->n_api_key++;
    }
    return MHD_YES;
}

static bool identify(struct request *r, struct error *err)
{
    struct auth_headers headers = {0};
    const char *key;
    size_t n;
    MHD_get_connection_values(r->connection, MHD_HEADER_KIND, collect_key, &headers);
    switch (auth_presented_key(&headers, &key, &n, err)) {
    case AUTH_NO_KEY: return refuse(r, REFUSED_NO_KEY);
    case AUTH_BAD_HEADER: return refuse(r, REFUSED_WRONG_KEY);
    case AUTH_KEY: break;
    }
    if (auth_identify(r->server->options.auth, key, n, &r->caller)) return true;
    error_set(err, ERR_UNAUTHENTICATED, NULL, "the API key is not one that this server knows");
    return refuse(r, REFUSED_WRONG_KEY);
}

static bool check_limits(struct request *r, int *status, struct error *err)
{
    struct key_limits *l = r->caller.limits;
    if (!l) return true;
    enum limits_verdict verdict = key_limits_begin(l, clock_ns(), err);
    if (verdict == LIMITS_OK) {
        r->counted = true;
        return true;
    }
    *status = 429;
    return refuse(r, verdict == LIMITS_CONCURRENT ? REFUSED_CONCURRENT : REFUSED_REQUEST_RATE);
}

bool guard_admit(struct request *r, const char *method, int *status, struct error *err)
{
    enum api_access access = route_access(r->route);
    *status = 421;
    if (!check_host(r, err)) return false;
    *status = 403;
    if (!check_origin(r, method, err)) return false;
    if (!r->server->options.auth || access == API_ACCESS_OPEN) return true;
    if (guard_is_preflight(r, method)) return true;
    *status = 401;
    if (!identify(r, err)) return false;
    *status = 403;
    if (access == API_ACCESS_ADMIN && !r->caller.is_admin) {
        error_set(err, ERR_FORBIDDEN, NULL, "this takes an admin's key; yours is a user's");
        return refuse(r, REFUSED_NOT_ADMIN);
    }
    return check_limits(r, status, err);
}

/* ---- Replies ---- */

bool guard_is_preflight(const struct request *r, const char *method)
{
    return strcmp(method, "OPTIONS") == 0 && r->route < N_ROUTES
           && cors_allows(&r->server->options.cors_origins, request_header(r, "Origin"))
           && request_header(r, "Access-Control-Request-Method");
}

/* The names of headers, as a browser lists them; nothing else is ever echoed. */
static bool is_header_list(const char *s)
{
    static const char good[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_, ";
    return s && strlen(s) < 2000 && strspn(s, good) == strlen(s);
}

static void add_cors(struct request *r, struct MHD_Response *response)
{
    const struct option_list *origins = &r->server->options.cors_origins;
    const char *origin = request_header(r, "Origin");
    if (origins->n == 0) return;
    MHD_add_response_header(response, "Vary", "Origin");
    if (!cors_allows(origins, origin)) return;
    MHD_add_response_header(response, "Access-Control-Allow-Origin", origin);
    if (!r->preflight) {
        MHD_add_response_header(response, "Access-Control-Expose-Headers",
                                "X-Request-Id, Retry-After, x-ratelimit-limit-requests, "
                                "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
                                "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
                                "x-ratelimit-reset-tokens");
        return;
    }
    char allow[64];
    route_allow(r->route, allow, sizeof allow);
    MHD_add_response_header(response, "Access-Control-Allow-Methods", allow);
    const char *wanted = request_header(r, "Access-Control-Request-Headers");
    if (is_header_list(wanted))
        MHD_add_response_header(response, "Access-Control-Allow-Headers", wanted);
    MHD_add_response_header(response, "Access-Control-Max-Age", "600");
}

void guard_add_headers(struct request *r, int status, struct MHD_Response *response)
{
    if (status == 401) MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (r->caller.limits) key_limits_add_headers(r->caller.limits, clock_ns(), response);
    add_cors(r, response);
}

void guard_end(struct request *r)
{
    if (r->counted) key_limits_end(r->caller.limits);
    auth_caller_free(&r->caller);
}
