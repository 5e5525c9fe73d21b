/* Inside of the HTTP server: what http.c (connections) and routes.c (meaning of paths) share. */
#pragma once

#include <microhttpd.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "server/exchange.h"
#include "server/http.h"

enum { N_ROUTES = 11 };

struct http_server {
    struct http_options options;
    const struct api_context *api;
    struct metrics *metrics;
    int64_t baseline_bytes;
    int listen_fd, port;
    struct MHD_Daemon *daemon;
    struct exchanges *exchanges;
    _Atomic bool draining;
    uint32_t id_prefix; /* random, of this process */
    _Atomic uint64_t n_requests;
};

/* One request, from its headers to NOTIFY_COMPLETED; the connection's thread's. */
struct request {
    struct http_server *server;
    struct MHD_Connection *connection;
    int64_t begin_ns;
    char id[32];
    int32_t route;            /* index into the table; N_ROUTES when none fits */
    const char *param;        /* what stands for {id}; borrowed from the connection's memory */
    struct buf body;
    size_t n_received;        /* of the body, kept or not */
    int refusal;              /* status to answer with once the body has been read; 0: none */
    struct error refusal_error;
    struct exchange *exchange;
    int status;               /* answered; 0: not yet */
};

/* ---- routes.c ---- */

const char *route_label(int32_t route); /* its path; "other" for N_ROUTES */
/* Finds the route for a method and a path: fills r->route and r->param. HEAD is answered where GET
 * is. On failure *status is 404 (r->route is N_ROUTES then) or 405. */
bool route_find(const char *method, const char *path, struct request *r, int *status,
                struct error *err) MUST_CHECK;
/* The kind of completion that the route makes; false for routes that answer at once. */
bool route_is_completion(int32_t route, enum completion_kind *kind);
bool route_takes_body(int32_t route);
const char *route_allow(int32_t route); /* for 405 */
const char *route_content_type(int32_t route);
/* The whole reply of a route that answers at once. */
bool route_answer(struct request *r, struct buf *out, struct error *err);
