/* The HTTP server: libmicrohttpd's epoll threads, the table of routes, limits, errors in OpenAI's
 * shape. It parses and writes; everything it says comes from api/.
 *
 *     http_start            serving
 *     http_drain            new work is refused with 503, /ready too; what runs goes on
 *     http_stop             cuts what still runs, closes everything, frees */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "api/api.h"
#include "base/options.h"
#include "server/connection.h"
#include "server/metrics.h"
#include "server/process.h"

struct auth;       /* server/auth.h */
struct file_store; /* server/files.h */
struct jobs;       /* server/jobs.h */
struct models;     /* server/models.h */
struct tls;        /* server/tls.h */

struct http_options {
    const char *host;       /* see server/listen.h */
    int64_t port;           /* 0: any free one */
    int64_t threads;
    int64_t max_body, max_header;
    int64_t max_connections; /* beyond, the longest idle is closed; are none idle: 503 */
    int64_t max_connections_per_address; /* 0: no limit; more are closed at once */
    /* idle_s also: without a byte in either direction, unless waiting for the engine */
    struct connection_times times;
    int64_t stall_timeout_s; /* see engine_is_stalled: what /health says */
    bool log_requests;
    struct tls *tls; /* NULL: plain HTTP */
    /* Who may ask. Without keys (NULL) anyone may do anything. */
    struct auth *auth;
    bool check_host;        /* only names of this machine, and these, in the Host header */
    struct option_list allowed_hosts;
    struct option_list cors_origins; /* "https://example.org" or "*"; of browsers' pages */
    bool share_prefix_cache; /* among keys */
    /* Training over HTTP; without these its routes answer 503. They must outlive the server. */
    struct file_store *files;
    struct jobs *jobs;
    struct models *models; /* NULL: the model is the one that it was at start */
    const char *configs_dir; /* where presets are, which plans may be asked for */
    int64_t max_upload;
};

struct http_server;

/* metrics_init with this server's routes. */
void http_metrics_init(struct metrics *m, const char *model_id, const char *device);
/* `api` and `metrics` (of http_metrics_init) must outlive the server. */
bool http_start(const struct http_options *o, const struct api_context *api,
                struct metrics *metrics, const struct process_baseline *baseline,
                struct http_server **out, struct error *err) MUST_CHECK;
/* SIGHUP: files that are read at start are read again. What cannot be read or used is logged, and
 * what was before stays. */
void http_reload(struct http_server *s);
int http_port(const struct http_server *s); /* 0: a Unix socket */
void http_drain(struct http_server *s);
int32_t http_active(struct http_server *s); /* requests that are not answered, to their end */
void http_stop(struct http_server *s);      /* NULL-safe */
