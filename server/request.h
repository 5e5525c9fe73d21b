/* Inside of the HTTP server: what http.c (connections) and routes.c (meaning of paths) share. */
#pragma once

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "server/auth.h"
#include "server/exchange.h"
#include "server/guard.h"
#include "server/http.h"
#include "server/job_feed.h"
#include "server/jobs.h"
#include "server/listen.h"
#include "server/memory_history.h"
#include "server/models.h"
#include "server/request_log.h"
#include "server/upload.h"

enum { N_ROUTES = 29 };

struct http_server {
    struct http_options options;
    const struct api_context *api;
    struct metrics *metrics;
    struct process_baseline baseline;
    struct memory_history *memory;
    struct listener listener;
    struct MHD_Daemon *daemon;
    struct MHD_Response *no_memory; /* made at the start, for when no other can be made */
    struct exchanges *exchanges;
    struct connections *connections;
    _Atomic bool draining;
    _Atomic int32_t n_open; /* requests */
    uint32_t id_prefix; /* random, of this process */
    _Atomic uint64_t n_requests;
    /* Slow answers, each on a thread of its own. */
    pthread_mutex_t work_mutex;
    pthread_cond_t work_done;
    int32_t n_working;
    bool no_more_work;
};

/* An answer that may wait for a disk or a model: the connection sleeps meanwhile. */
enum work_state { WORK_NONE, WORK_READY, WORK_RUNNING, WORK_DONE };

/* One request, from its headers to NOTIFY_COMPLETED; the connection's thread's. */
struct request {
    struct http_server *server;
    struct MHD_Connection *connection;
    int64_t begin_ns;
    char id[REQUEST_ID_MAX + 1];
    const char *method;       /* static; see request_log_method */
    struct auth_caller caller; /* the key's; all zero without one */
    bool counted;             /* by the key's limits, until the request ends */
    bool preflight;           /* answered with headers alone */
    int32_t route;            /* index into the table; N_ROUTES when none fits */
    char param[256];          /* what stands for {id} */
    bool head;                /* HEAD: a reply's headers alone */
    struct buf body;
    struct upload *upload;    /* instead of `body`, where the route takes one */
    size_t n_received;        /* of the body, kept or not */
    int refusal;              /* status to answer with once the body has been read; 0: none */
    struct error refusal_error;
    struct exchange *exchange;
    /* Guarded by the server's work_mutex while WORK_RUNNING, when they are the worker's. */
    enum work_state work;
    bool work_ok;
    struct error work_error;
    struct buf reply;
    int reply_fd;             /* the reply is this file, instead of `reply`; -1: none */
    int64_t reply_bytes;
    struct job_feed *feed;    /* the reply is this stream of events, until an exchange has it */
    uint64_t n_reply;         /* bytes of the reply's body, as far as they are known */
    int status;               /* answered; 0: not yet */
};

/* A header of the request; NULL: there is none. */
static inline const char *request_header(const struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, name);
}

/* ---- routes.c ---- */

const char *route_label(int32_t route); /* its path; "other" for N_ROUTES */
/* Finds the route for a method and a path: fills r->route and r->param. HEAD is answered where GET
 * is. On failure *status is 404 (r->route is N_ROUTES then) or 405. */
bool route_find(const char *method, const char *path, struct request *r, int *status,
                struct error *err) MUST_CHECK;
/* Who may: the path's, for a method that it does not take; a user for what is not there. */
enum api_access route_access(int32_t route);
/* The kind of completion that the route makes; false for routes that answer at once. */
bool route_is_completion(int32_t route, enum completion_kind *kind);
enum route_body { BODY_NONE, BODY_JSON, BODY_UPLOAD };
enum route_body route_body(int32_t route);
/* Is the answer a file of the web page (page.h), named by r->param? */
bool route_is_page(int32_t route);
/* Does its answer take its time? Then it is called on a thread of its own. */
bool route_is_slow(int32_t route);
/* Is it what monitors ask for, again and again? */
bool route_is_probe(int32_t route);
/* The methods that the route's path takes, for 405: "GET, HEAD, DELETE". */
void route_allow(int32_t route, char *out, size_t size);
/* The first route of the same path: requests are counted by path. */
int32_t route_counted(int32_t route);
const char *route_content_type(int32_t route);
/* The whole reply of a route that answers at once. */
bool route_answer(struct request *r, struct buf *out, struct error *err);

/* ---- work.c: slow answers ---- */

/* Puts the connection to sleep and has a thread answer; it is resumed when the answer is there. Not
 * in the call that brings the body: see answer_completion in http.c. */
bool work_start(struct request *r, struct error *err) MUST_CHECK;
enum work_state work_look(struct request *r);
/* Waits for all of them; none begins any more. */
void work_end_all(struct http_server *s);

/* ---- routes_models.c: models that come and go ---- */

bool get_models(struct request *r, struct buf *out, struct error *err);
bool get_model(struct request *r, struct buf *out, struct error *err);
bool post_model_load(struct request *r, struct buf *out, struct error *err);
bool delete_model(struct request *r, struct buf *out, struct error *err);

/* ---- routes_training.c: answers to what is asked of files and jobs ---- */

bool post_file(struct request *r, struct buf *out, struct error *err);
bool get_files(struct request *r, struct buf *out, struct error *err);
bool get_file(struct request *r, struct buf *out, struct error *err);
bool get_file_content(struct request *r, struct buf *out, struct error *err);
bool delete_file(struct request *r, struct buf *out, struct error *err);
bool post_job(struct request *r, struct buf *out, struct error *err);
bool get_jobs(struct request *r, struct buf *out, struct error *err);
bool get_job(struct request *r, struct buf *out, struct error *err);
bool post_job_cancel(struct request *r, struct buf *out, struct error *err);
bool post_job_pause(struct request *r, struct buf *out, struct error *err);
bool post_job_resume(struct request *r, struct buf *out, struct error *err);
bool get_job_events(struct request *r, struct buf *out, struct error *err);
bool get_job_checkpoints(struct request *r, struct buf *out, struct error *err);
