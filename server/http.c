/* Connections and requests: see http.h. A request goes through request_begin (headers),
 * collect_body, and answer, all on its connection's thread; request_end (NOTIFY_COMPLETED) is the
 * one place where it is freed. A request that will be refused is still read, up to a bound, before
 * it is answered: a reply to a client that is still sending gets lost in the reset that closing
 * provokes. */
#include "server/http.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/header_guard.h"
#include "server/page.h"
#include "server/request.h"
#include "server/routes_memory.h"
#include "server/tls.h"

enum {
    DISCARD_LIMIT = 64 << 20,   /* bytes read from a request that is refused already */
    REPLY_LIMIT = 64 << 20,     /* of routes that answer at once */
    SPARE_CONNECTIONS = 128,    /* beyond max_connections, to tell them so */
    SPARE_DESCRIPTORS = 64,
    KEEP_ALIVE_S = 15,          /* at most, between the signs of life of a quiet stream of events */
    LAST_WORDS_MS = 1000,       /* for canceled replies, when the server stops */
    UPLOAD_ENVELOPE = 64 << 10, /* of multipart/form-data around a file */
};

/* ---- Replies ---- */

static enum MHD_Result respond_no_memory(struct request *r)
{
    r->status = 503;
    return MHD_queue_response(r->connection, 503, r->server->no_memory);
}

/* What respond_no_memory says. It is shared, and has no request's id. */
static struct MHD_Response *make_no_memory(void)
{
    static char text[] = "{\"error\":{\"message\":\"no memory to answer; retry later\","
                         "\"type\":\"server_error\",\"param\":null,\"code\":\"out_of_memory\"}}";
    struct MHD_Response *response =
        MHD_create_response_from_buffer(sizeof text - 1, text, MHD_RESPMEM_PERSISTENT);
    if (response && MHD_add_response_header(response, "Content-Type", "application/json") == MHD_YES
        && MHD_add_response_header(response, "Retry-After", "1") == MHD_YES
        && MHD_add_response_header(response, "Connection", "close") == MHD_YES)
        return response;
    if (response) MHD_destroy_response(response);
    return NULL;
}

/* `response` NULL: there was no memory for it. */
static enum MHD_Result respond(struct request *r, int status, struct MHD_Response *response)
{
    if (!response) return respond_no_memory(r);
    MHD_add_response_header(response, "X-Request-Id", r->id);
    guard_add_headers(r, status, response);
    if (status == 503 || atomic_load(&r->server->draining)) /* make room */
        MHD_add_response_header(response, "Connection", "close");
    r->status = status;
    connection_expect_reading(connection_of(r->connection), r->n_reply);
    enum MHD_Result result = MHD_queue_response(r->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

/* A response of the buffer's bytes; NULL when there is no memory. */
static struct MHD_Response *response_from(struct request *r, struct buf *out,
                                          const char *content_type)
{
    size_t n;
    char *data = buf_take(out, &n);
    r->n_reply = n;
    struct MHD_Response *response =
        data ? MHD_create_response_from_buffer(n, data, MHD_RESPMEM_MUST_FREE) : NULL;
    if (response) MHD_add_response_header(response, "Content-Type", content_type);
    else free(data);
    return response;
}

/* status 0: what the error's code says. */
static enum MHD_Result respond_error(struct request *r, int status, const struct error *err)
{
    if (status == 0) status = api_error_status(err->code);
    if (api_error_text(err) != err->text) log_error("%s: %s", r->id, err->text);
    struct buf out;
    buf_init(&out, REPLY_LIMIT);
    api_render_error(&out, err);
    struct MHD_Response *response = response_from(r, &out, "application/json");
    if (!response) return respond_no_memory(r);
    if (status == 429 || status == 503) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", err->retry_after_s > 0 ? err->retry_after_s : 1);
        MHD_add_response_header(response, "Retry-After", seconds);
    }
    if (status == 405) {
        char allow[64];
        route_allow(r->route, allow, sizeof allow);
        MHD_add_response_header(response, "Allow", allow);
    }
    return respond(r, status, response);
}

/* ---- Headers ---- */

static void refuse_with(struct request *r, int status, const struct error *why)
{
    if (r->refusal) return; /* the first reason stands */
    r->refusal = status;
    r->refusal_error = *why;
}

static void refuse(struct request *r, int status, enum error_code code, const char *text)
{
    struct error why;
    error_set(&why, code, NULL, "%s", text);
    refuse_with(r, status, &why);
}

/* The most that the request's body may have. A file comes in an envelope. */
static int64_t max_body(const struct request *r)
{
    const struct http_options *o = &r->server->options;
    return route_body(r->route) == BODY_UPLOAD ? o->max_upload + UPLOAD_ENVELOPE : o->max_body;
}

static void refuse_body(struct request *r)
{
    char text[128];
    snprintf(text, sizeof text, "the body is over the limit of %lld bytes",
             (long long)max_body(r));
    refuse(r, 413, ERR_TOO_LARGE, text);
}

/* "application/json", in any case, with any parameters. */
static bool is_json_type(const char *type)
{
    static const char json[] = "application/json";
    size_t n = sizeof json - 1;
    return strncasecmp(type, json, n) == 0 && (type[n] == 0 || strchr("; \t", type[n]));
}

static int64_t declared_length(const struct request *r)
{
    const char *value = request_header(r, "Content-Length");
    return value ? strtoll(value, NULL, 10) : 0;
}

/* Everything that the headers alone decide; the first reason to refuse stands. */
static void check_headers(struct request *r, const char *method, const char *path,
                          const char *version)
{
    struct http_server *s = r->server;
    struct error missing, odd, closed;
    int status, odd_status, closed_status;
    bool found = route_find(method, path, r, &status, &missing);
    const union MHD_ConnectionInfo *size =
        MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    const char *type = request_header(r, "Content-Type");
    enum route_body body = route_body(r->route);
    if (!headers_are_plain(r->connection, version, &odd_status, &odd))
        refuse(r, odd_status, odd.code, odd.text);
    if (connections_are_too_many(s->connections))
        refuse(r, 503, ERR_BUSY, "too many connections; retry later");
    if (size && size->header_size > (size_t)s->options.max_header)
        refuse(r, 431, ERR_TOO_LARGE, "the request's headers are over the limit");
    /* A request that is refused already is not worth a look at its key. */
    if (!r->refusal && !guard_admit(r, method, &closed_status, &closed))
        refuse_with(r, closed_status, &closed);
    r->preflight = !r->refusal && guard_is_preflight(r, method);
    if (r->preflight) return;
    if (!found) refuse_with(r, status, &missing);
    if (body == BODY_JSON && type && !is_json_type(type))
        refuse(r, 415, ERR_UNSUPPORTED,
               "the body must be JSON and say so: send the header 'Content-Type: application/json' "
               "(curl: -H 'Content-Type: application/json')");
    if (body != BODY_NONE && atomic_load(&s->draining))
        refuse(r, 503, ERR_UNAVAILABLE, "the server is shutting down");
    if (declared_length(r) > max_body(r)) refuse_body(r);
}

static void begin_upload(struct request *r)
{
    struct error err;
    if (!r->server->options.files)
        refuse(r, 503, ERR_UNAVAILABLE, "this server keeps no files");
    else if (!upload_begin(r->server->options.files, r->connection, &r->upload, &err))
        refuse_with(r, err.code == ERR_UNSUPPORTED ? 415 : api_error_status(err.code), &err);
}

/* Is there no sense, or danger, in reading the body of a request that is refused? */
static bool body_is_unwanted(const struct request *r)
{
    if (!r->refusal) return false;
    return r->refusal == 400 /* nobody knows where it ends */
           || request_header(r, "Expect") /* the client waits for leave to send it */
           || declared_length(r) > max_body(r) + DISCARD_LIMIT;
}

/* The call that brings the headers. */
static enum MHD_Result request_begin(struct http_server *s, struct MHD_Connection *connection,
                                     const char *url, const char *method, const char *version,
                                     struct request **out)
{
    struct request *r = calloc(1, sizeof *r);
    if (!r) return MHD_queue_response(connection, 503, s->no_memory);
    *out = r;
    r->server = s;
    atomic_fetch_add(&s->n_open, 1);
    r->connection = connection;
    r->begin_ns = clock_ns();
    r->method = request_log_method(method);
    request_log_take_id(r);
    buf_init(&r->body, (size_t)s->options.max_body);
    r->reply_fd = -1;
    r->head = strcmp(method, "HEAD") == 0;
    connection_expect_body(connection_of(connection), 0);
    check_headers(r, method, url, version);
    if (!r->refusal && !r->preflight && route_body(r->route) == BODY_UPLOAD) begin_upload(r);
    return body_is_unwanted(r) ? respond_error(r, r->refusal, &r->refusal_error) : MHD_YES;
}

/* ---- Body ---- */

static enum MHD_Result collect_body(struct request *r, const char *data, size_t n)
{
    size_t max = (size_t)max_body(r);
    r->n_received += n;
    connection_expect_body(connection_of(r->connection), r->n_received);
    if (r->n_received > max + DISCARD_LIMIT) return MHD_NO; /* it does not want to hear it */
    if (r->n_received > max) refuse_body(r);
    if (r->upload) {
        if (!r->refusal && !upload_feed(r->upload, data, n)) {
            const struct error *why = upload_error(r->upload);
            refuse_with(r, api_error_status(why->code), why);
        }
        return MHD_YES;
    }
    if (r->refusal || route_body(r->route) != BODY_JSON) {
        buf_free(&r->body);
        return MHD_YES;
    }
    buf_append(&r->body, data, n);
    if (r->body.failed) refuse(r, 503, ERR_MEMORY, "no memory for the body");
    return MHD_YES;
}

/* ---- Answers ---- */

static enum MHD_Result answer_exchange(struct request *r)
{
    struct MHD_Response *response = NULL;
    struct error err = {0};
    switch (exchange_next(r->exchange, &response, &err)) {
    case EXCHANGE_WAIT: return MHD_YES;
    case EXCHANGE_RESPOND:
        r->n_reply = exchange_reply_bytes(r->exchange);
        return respond(r, 200, response);
    case EXCHANGE_FAILED: return respond_error(r, 0, &err);
    case EXCHANGE_GONE: return MHD_NO;
    }
    return MHD_NO;
}

/* Dead connections (a cable pulled, a host gone) send nothing at all: let the kernel ask. */
static void keep_alive(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    int on = 1, idle_s = 30, interval_s = 10, probes = 3;
    setsockopt(info->connect_fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(info->connect_fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(info->connect_fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(info->connect_fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static enum MHD_Result answer_completion(struct request *r, enum completion_kind kind)
{
    struct error err;
    const char *body = r->body.data ? r->body.data : "";
    struct exchange_caller caller = {
        .cache_salt = r->server->options.share_prefix_cache ? 0 : r->caller.cache_salt,
        .limits = r->caller.limits,
    };
    bool opened = exchange_open(r->server->exchanges, kind, body, r->body.len, &caller,
                                r->connection, r->begin_ns, &r->exchange, &err);
    buf_free(&r->body);
    if (!opened) return respond_error(r, 0, &err);
    keep_alive(r->connection);
    /* Not suspended yet: libmicrohttpd (0.9.75) updates what it waits for only after a call that
     * leaves the connection running. Suspended in this call, it would still wait to read, and on
     * resuming take the end of a half-closed client's bytes for the end of the client. It calls
     * again at once. */
    return MHD_YES;
}

static enum MHD_Result answer_feed(struct request *r)
{
    struct error err;
    /* libmicrohttpd (0.9.75) ends a chunked reply to HEAD with a chunk. */
    if (r->head) return respond(r, 200, response_from(r, &r->reply, "text/event-stream"));
    struct job_feed *feed = r->feed;
    r->feed = NULL;
    if (!exchange_follow(r->server->exchanges, feed, r->connection, r->begin_ns, &r->exchange,
                         &err))
        return respond_error(r, 0, &err);
    return answer_exchange(r);
}

/* What a slow route has answered. */
static enum MHD_Result respond_work(struct request *r)
{
    struct MHD_Response *response;
    if (!r->work_ok) return respond_error(r, 0, &r->work_error);
    if (r->feed) return answer_feed(r);
    if (r->reply_fd < 0)
        return respond(r, 200, response_from(r, &r->reply, route_content_type(r->route)));
    response = MHD_create_response_from_fd64((uint64_t)r->reply_bytes, r->reply_fd);
    if (!response) return respond_no_memory(r);
    r->reply_fd = -1; /* the response closes it */
    r->n_reply = (uint64_t)r->reply_bytes;
    MHD_add_response_header(response, "Content-Type", route_content_type(r->route));
    return respond(r, 200, response);
}

static enum MHD_Result answer_slowly(struct request *r)
{
    struct error err;
    switch (work_look(r)) {
    case WORK_NONE:
        keep_alive(r->connection);
        r->work = WORK_READY;
        return MHD_YES; /* as in answer_completion: called again at once */
    case WORK_READY: return work_start(r, &err) ? MHD_YES : respond_error(r, 0, &err);
    case WORK_RUNNING: return MHD_YES;
    case WORK_DONE: return respond_work(r);
    }
    return MHD_NO;
}

static enum MHD_Result answer_page(struct request *r)
{
    struct error err;
    const struct page_file *file = page_find(r->param);
    if (!file) {
        error_set(&err, ERR_NOT_FOUND, NULL, "the web page has no such file; it begins at /");
        return respond_error(r, 404, &err);
    }
    bool known = page_is_known(file, request_header(r, "If-None-Match"));
    r->n_reply = known ? 0 : file->size;
    return respond(r, known ? 304 : 200, page_response(file));
}

static enum MHD_Result answer(struct request *r)
{
    if (r->preflight)
        return respond(r, 204, MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT));
    if (r->exchange) return answer_exchange(r); /* resumed */
    if (!r->refusal && route_is_slow(r->route)) return answer_slowly(r);
    if (r->refusal) return respond_error(r, r->refusal, &r->refusal_error);
    if (route_is_page(r->route)) return answer_page(r);
    enum completion_kind kind;
    if (route_is_completion(r->route, &kind)) return answer_completion(r, kind);
    struct buf out;
    struct error err;
    buf_init(&out, REPLY_LIMIT);
    if (!route_answer(r, &out, &err) || !buf_check(&out, "the reply", &err)) {
        buf_free(&out);
        return respond_error(r, 0, &err);
    }
    return respond(r, 200, response_from(r, &out, route_content_type(r->route)));
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *data_size, void **con_cls)
{
    struct request *r = *con_cls;
    if (!r) return request_begin(cls, connection, url, method, version,
                                 (struct request **)con_cls);
    if (*data_size > 0) {
        size_t n = *data_size;
        *data_size = 0;
        return collect_body(r, data, n);
    }
    connection_work(connection_of(connection));
    return answer(r);
}

/* The request line, as it came; before the rest is read. */
static void *look_at_line(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct connection *c = connection_of(mhd);
    /* libmicrohttpd (0.9.75) does not get over arguments that its memory cannot hold. */
    if (uri_is_plain(uri)) connection_expect_rest(c);
    else connection_shut(c);
    return NULL; /* no request yet */
}

/* ---- The end of a request ---- */

/* libmicrohttpd 0.9.75 may never notice the end of a client's bytes that came while it was not
 * reading, and keep the connection for the idle timeout, while the half-closed client waits for its
 * end. */
static void hasten_end(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    char byte;
    if (recv(info->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
        MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 1u);
}

static void request_end(void *cls, struct MHD_Connection *connection, void **con_cls,
                        enum MHD_RequestTerminationCode why)
{
    struct request *r = *con_cls;
    if (!r) return;
    *con_cls = NULL;
    int64_t ns = clock_ns() - r->begin_ns;
    bool delivered = why == MHD_REQUEST_TERMINATED_COMPLETED_OK;
    int status = delivered && r->status ? r->status : METRICS_CLIENT_GONE;
    struct completion_summary summary = {0};
    if (r->exchange) exchange_close(r->exchange, delivered, &summary);
    metrics_request(r->server->metrics, route_counted(r->route), status);
    request_log_end(r, status, ns, &summary);
    connection_expect_headers(connection_of(connection));
    if (delivered) hasten_end(connection);
    guard_end(r);
    upload_free(r->upload);
    job_feed_close(r->feed);
    if (r->reply_fd >= 0) close(r->reply_fd);
    buf_free(&r->reply);
    buf_free(&r->body);
    atomic_fetch_sub(&r->server->n_open, 1);
    free(r);
}

static void count_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
                             enum MHD_ConnectionNotificationCode what)
{
    struct http_server *s = cls;
    atomic_fetch_add(&s->metrics->connections, what == MHD_CONNECTION_NOTIFY_STARTED ? 1 : -1);
    connection_notify(s->connections, connection, socket_context, what);
}

static void log_daemon(void *cls, const char *fmt, va_list args)
{
    char text[512];
    vsnprintf(text, sizeof text, fmt, args);
    log_debug("libmicrohttpd: %s", text);
}

/* ---- Start and stop ---- */

/* Room for every connection's descriptor; the soft limit is often 1024. */
static bool raise_descriptor_limit(int64_t n_connections, struct error *err)
{
    struct rlimit limit;
    rlim_t need = (rlim_t)n_connections + SPARE_CONNECTIONS + SPARE_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return error_errno(err, "getrlimit");
    if (limit.rlim_cur >= need) return true;
    limit.rlim_cur = need;
    if (limit.rlim_max >= need && setrlimit(RLIMIT_NOFILE, &limit) == 0) return true;
    return error_set(err, ERR_INVALID, "max-connections",
                     "--max-connections %lld needs %llu descriptors, the limit is %llu (ulimit -n)",
                     (long long)n_connections, (unsigned long long)need,
                     (unsigned long long)limit.rlim_max);
}

/* Before 1.0 the library reads malformed requests leniently; what is known of that is guarded
 * against (header_guard.h, connection.h, docs/http.md). */
static void tell_library_version(const char *host)
{
    const char *version = MHD_get_version();
    if (atoi(version) >= 1)
        log_info("libmicrohttpd %s", version);
    else if (listen_is_local(host))
        log_info("libmicrohttpd %s (older than 1.0: see docs/http.md)", version);
    else
        log_warn("libmicrohttpd %s is older than 1.0, and lenient with malformed requests: where "
                 "strangers can reach this server, use a newer one (see docs/http.md)", version);
}

static bool start_daemon(struct http_server *s, struct error *err)
{
    const struct http_options *o = &s->options;
    struct MHD_OptionItem items[] = {
        {MHD_OPTION_EXTERNAL_LOGGER, (intptr_t)log_daemon, NULL},
        {MHD_OPTION_LISTEN_SOCKET, s->listener.fd, NULL},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)request_end, s},
        {MHD_OPTION_URI_LOG_CALLBACK, (intptr_t)look_at_line, s},
        {MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)count_connection, s},
        {MHD_OPTION_CONNECTION_LIMIT, (intptr_t)(o->max_connections + SPARE_CONNECTIONS), NULL},
        {MHD_OPTION_PER_IP_CONNECTION_LIMIT, (intptr_t)o->max_connections_per_address, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t)o->times.idle_s, NULL},
        /* Headers live here, beside the buffers that bodies and replies pass through. */
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, (intptr_t)(2 * o->max_header + 32 * 1024), NULL},
        /* A pool of one is no pool: the option stays out then. */
        {o->threads > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, (intptr_t)o->threads, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    struct MHD_OptionItem tls[N_TLS_OPTIONS + 1] = {{MHD_OPTION_END, 0, NULL}};
    if (o->tls) tls_options(tls);
    tls[N_TLS_OPTIONS].option = MHD_OPTION_END;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC
                     | MHD_USE_ERROR_LOG | (o->tls ? MHD_USE_TLS : 0);
    s->daemon = MHD_start_daemon(flags, 0, NULL, NULL, handle, s, MHD_OPTION_ARRAY, items,
                                 MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    if (s->daemon) return true;
    return error_set(err, ERR_IO, NULL, "cannot start the HTTP threads (%lld of them)",
                     (long long)o->threads);
}

void http_metrics_init(struct metrics *m, const char *model_id, const char *device)
{
    metrics_init(m, model_id, device, route_label, N_ROUTES + 1);
}

/* Often enough for whoever closes idle connections as this server does; proxies wait for a
 * minute. */
static int64_t keep_alive_s(const struct http_options *o)
{
    return max_i64(1, min_i64(KEEP_ALIVE_S, o->times.idle_s / 2));
}

static void free_server(struct http_server *s)
{
    if (s->no_memory) MHD_destroy_response(s->no_memory);
    pthread_cond_destroy(&s->work_done);
    pthread_mutex_destroy(&s->work_mutex);
    free(s);
}

bool http_start(const struct http_options *o, const struct api_context *api,
                struct metrics *metrics, const struct process_baseline *baseline,
                struct http_server **out, struct error *err)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    s->options = *o;
    s->api = api;
    s->metrics = metrics;
    s->baseline = *baseline;
    s->listener.fd = -1;
    pthread_mutex_init(&s->work_mutex, NULL);
    pthread_cond_init(&s->work_done, NULL);
    if (getrandom(&s->id_prefix, sizeof s->id_prefix, 0) < 0) s->id_prefix = (uint32_t)getpid();
    if (!(s->no_memory = make_no_memory())) {
        error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
        goto fail;
    }
    if (!raise_descriptor_limit(o->max_connections, err)) goto fail;
    if (!listener_open(o->host, o->port, &s->listener, err)) goto fail;
    if (!connections_start(&o->times, o->max_connections, o->tls, &s->connections, err)) goto fail;
    if (!exchanges_start(api, metrics, keep_alive_s(o), &s->exchanges, err)) goto fail;
    if (!memory_history_start(sample_memory, s, &s->memory, err)) goto fail;
    if (!start_daemon(s, err)) goto fail;
    tell_library_version(o->host);
    *out = s;
    return true;
fail:
    memory_history_stop(s->memory);
    exchanges_stop(s->exchanges);
    connections_stop(s->connections);
    listener_close(&s->listener);
    free_server(s);
    return false;
}

void http_reload(struct http_server *s)
{
    struct auth *auth = s->options.auth;
    struct tls *tls = s->options.tls;
    struct error err;
    if (!auth && !tls) log_info("SIGHUP: nothing to reload");
    if (auth && auth_reload(auth, &err)) log_info("SIGHUP: the keys have been read again");
    else if (auth) log_error("SIGHUP: the keys stay as they were: %s", err.text);
    if (tls && tls_reload(tls, &err)) log_info("SIGHUP: the certificate has been read again");
    else if (tls) log_error("SIGHUP: the certificate stays as it was: %s", err.text);
}

int http_port(const struct http_server *s) { return s->listener.port; }

void http_drain(struct http_server *s)
{
    atomic_store(&s->draining, true);
    exchanges_drain(s->exchanges);
}

int32_t http_active(struct http_server *s)
{
    /* An exchange lives on after its request, until the engine has let go. */
    int32_t open = atomic_load(&s->n_open), exchanges = exchanges_count(s->exchanges);
    return open > exchanges ? open : exchanges;
}

void http_stop(struct http_server *s)
{
    if (!s) return;
    http_drain(s);
    /* What still runs ends with an error that its client can read, if it reads. */
    exchanges_cancel(s->exchanges);
    for (int i = 0; i < LAST_WORDS_MS && exchanges_count(s->exchanges) > 0; i++) usleep(1000);
    MHD_quiesce_daemon(s->daemon);
    exchanges_cut(s->exchanges); /* MHD_stop_daemon aborts on suspended connections */
    work_end_all(s);
    MHD_stop_daemon(s->daemon);
    memory_history_stop(s->memory);
    listener_close(&s->listener);
    exchanges_stop(s->exchanges);
    connections_stop(s->connections);
    free_server(s);
}
