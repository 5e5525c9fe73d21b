/* See http_fixture.h. */
#include "tests/server/http_fixture.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/chat.h"
#include "base/clock.h"

void http_fixture_options(struct http_options *o)
{
    *o = (struct http_options){
        .host = "127.0.0.1", .threads = 2, .max_body = 100000, .max_header = 4096,
        .max_connections = 200, .times = {300, 300, 300, 300}, .stall_timeout_s = 300,
    };
}

static bool held_sync(struct device *d, struct error *err)
{
    struct http_fixture *f = (void *)((char *)d->ops - offsetof(struct http_fixture, ops));
    pthread_mutex_lock(&f->lock);
    while (f->held) pthread_cond_wait(&f->changed, &f->lock);
    bool failing = f->failing;
    pthread_mutex_unlock(&f->lock);
    if (failing) return error_set(err, ERR_DEVICE, NULL, "the device is on fire");
    return f->real->sync(d, err);
}

/* Before the engine has anything to do, so nobody else looks at the device. */
static void hook_device(struct http_fixture *f)
{
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    f->real = f->model.device->ops;
    f->ops = *f->real;
    f->ops.sync = held_sync;
    f->model.device->ops = &f->ops;
}

void http_fixture_hold(struct http_fixture *f, bool held)
{
    pthread_mutex_lock(&f->lock);
    f->held = held;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

void http_fixture_fail(struct http_fixture *f)
{
    pthread_mutex_lock(&f->lock);
    f->failing = true;
    pthread_mutex_unlock(&f->lock);
}

void http_fixture_open(struct http_fixture *f, const struct http_options *o)
{
    struct model_options m;
    struct error err;
    *f = (struct http_fixture){.chat = calloc(1, sizeof *f->chat)};
    f->metrics = calloc(1, sizeof *f->metrics);
    assert_non_null(f->chat);
    assert_non_null(f->metrics);
    model_options_init(&m);
    m.device.threads = 1;
    m.max_seqs = 8;
    m.max_batch_tokens = 64;
    if (!model_open("models/shakespeare", &m, &f->model, &err)) fail_msg("%s", err.text);
    hook_device(f);
    chat_template_init(f->chat, tokenizer_chat_template(f->model.tokenizer));
    f->api = (struct api_context){.engine = f->model.engine, .model_id = f->model.id,
                                  .model_path = f->model.path, .chat = f->chat};
    api_limits_init(&f->api.limits);
    http_metrics_init(f->metrics, f->model.id, "cpu");
    struct process_baseline baseline = {0};
    struct http_options usual;
    http_fixture_options(&usual);
    if (!http_start(o ? o : &usual, &f->api, f->metrics, &baseline, &f->server, &err))
        fail_msg("%s", err.text);
}

void http_fixture_close(struct http_fixture *f)
{
    http_stop(f->server);
    model_close(&f->model);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f->metrics);
    free(f->chat);
}

int http_connect(const struct http_fixture *f)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)http_port(f->server))};
    struct timeval patience = {.tv_sec = HTTP_PATIENCE_S};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

void http_send(int fd, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);
        if (sent <= 0) return;
        p += sent;
        n -= (size_t)sent;
    }
}

void http_post(int fd, const char *path, const char *headers, const char *json)
{
    struct buf b;
    buf_init(&b, 1 << 24);
    buf_printf(&b, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n%s\r\n%s", path,
               strlen(json), headers, json);
    http_send(fd, b.data, b.len);
    buf_free(&b);
}

void http_reset(int fd)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

char *http_read_all(int fd, size_t *n)
{
    struct buf b;
    char chunk[4096];
    ssize_t got;
    buf_init(&b, 1 << 26);
    while ((got = recv(fd, chunk, sizeof chunk, 0)) > 0) buf_append(&b, chunk, (size_t)got);
    close(fd);
    return buf_take(&b, n);
}

char *http_ask(const struct http_fixture *f, const char *request)
{
    int fd = http_connect(f);
    http_send(fd, request, strlen(request));
    return http_read_all(fd, NULL);
}

int http_status(const char *reply)
{
    int status;
    return sscanf(reply, "HTTP/1.1 %d", &status) == 1 ? status : 0;
}

char *http_body(char *reply)
{
    char *body = strstr(reply, "\r\n\r\n");
    if (!body) return reply + strlen(reply);
    *body = 0;
    body += 4;
    if (!strcasestr(reply, "Transfer-Encoding: chunked")) return body;
    char *to = body, *from = body, *end;
    for (size_t n; (n = strtoul(from, &end, 16)) > 0; from = end + 2 + n + 2) {
        memmove(to, end + 2, n);
        to += n;
    }
    *to = 0;
    return body;
}

bool http_fixture_settles(const struct http_fixture *f)
{
    int64_t end = clock_ns() + HTTP_PATIENCE_S * INT64_C(1000000000);
    while (clock_ns() < end) {
        struct engine_stats s;
        engine_stats(f->model.engine, &s);
        if (s.running == 0 && s.queued == 0 && s.kv.active == 0 && s.kv.reserved == 0
            && http_active(f->server) == 0)
            return true;
        usleep(1000);
    }
    return false;
}
