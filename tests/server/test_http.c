/* Tests of server/http.c, routes.c and exchange.c: one server in this process, plain sockets. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
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

#include "base/clock.h"
#include "base/log.h"
#include "server/request.h"
#include "tests/server/http_fixture.h"

#define CLOSE "Connection: close\r\n"
#define GREEDY "{\"prompt\": \"ROMEO:\", \"temperature\": 0, \"ignore_eos\": true, \"max_tokens\": "
#define SHORT GREEDY "20"
#define LONG GREEDY "240"

static struct http_fixture fixture;

static int open_fixture(void **state)
{
    http_fixture_open(&fixture, NULL);
    return 0;
}

static int close_fixture(void **state)
{
    http_fixture_close(&fixture);
    return 0;
}

/* Asks for a status; returns the reply, which the caller frees. */
static char *ask(const char *request, int status)
{
    char *reply = http_ask(&fixture, request);
    if (http_status(reply) != status) fail_msg("not %d: %.300s", status, reply);
    return reply;
}

/* POSTs and reads the whole reply. */
static char *post(const char *path, const char *headers, const char *json, int status)
{
    int fd = http_connect(&fixture);
    http_post(fd, path, headers, json);
    char *reply = http_read_all(fd, NULL);
    if (http_status(reply) != status) fail_msg("not %d: %.300s", status, reply);
    return reply;
}

/* From `"text":` on: what must not depend on how a request was sent. */
static const char *text_of(const char *body)
{
    const char *text = strstr(body, "\"text\":");
    assert_non_null(text);
    return text;
}

static char *expected_short(void)
{
    char *reply = post("/v1/completions", CLOSE, SHORT "}", 200);
    char *text = strdup(text_of(http_body(reply)));
    free(reply);
    return text;
}

static long gone_so_far(void)
{
    return (long)atomic_load(&fixture.metrics->clients_gone);
}

/* ---- Routes and errors ---- */

static void test_routes_that_answer_at_once(void **state)
{
    static const char *const paths[] = {"/v1/models", "/v1/models/shakespeare", "/v1/memory",
                                        "/health", "/ready", "/metrics", "/openapi.json",
                                        "/health?x=1"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        for (int head = 0; head < 2; head++) {
            char request[200];
            snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n",
                     head ? "HEAD" : "GET", paths[i]);
            char *reply = ask(request, 200);
            assert_non_null(strstr(reply, "X-Request-Id: req-"));
            assert_int_equal(http_body(reply)[0] == 0, head);
            free(reply);
        }
    char *reply = post("/v1/tokenize", CLOSE, "{\"prompt\": \"ROMEO:\"}", 200);
    assert_non_null(strstr(http_body(reply), "\"tokens\""));
    free(reply);
}

static void test_what_is_not_there(void **state)
{
    static const char *const paths[] = {"/page", "/v1", "/v1/models/", "/v1/completions/",
                                        "/health/x", "/%ff%fe", "/..", "//health"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char request[200];
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n", paths[i]);
        char *reply = ask(request, 404);
        assert_non_null(strstr(http_body(reply), "\"error\""));
        free(reply);
    }
    free(ask("GET /v1/models/nobody HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n", 404));
}

static void test_wrong_methods_are_told_the_right_ones(void **state)
{
    char *reply = ask("DELETE /health HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n", 405);
    assert_non_null(strstr(reply, "Allow: GET, HEAD\r\n"));
    free(reply);
    reply = ask("NONSENSE /v1/completions HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n", 405);
    assert_non_null(strstr(reply, "Allow: POST\r\n"));
    free(reply);
}

static void test_bodies_that_are_not_json(void **state)
{
    free(post("/v1/completions", CLOSE "Content-Type: text/plain\r\n", SHORT "}", 415));
    char *reply = post("/v1/completions", /* what `curl -d` says */
                       CLOSE "Content-Type: application/x-www-form-urlencoded\r\n", SHORT "}", 415);
    assert_non_null(strstr(http_body(reply), "-H 'Content-Type: application/json'"));
    free(reply);
    free(post("/v1/completions", CLOSE "Content-Type: application/jsonp\r\n", SHORT "}", 415));
    free(post("/v1/completions", CLOSE "Content-Type: Application/JSON; charset=utf-8\r\n",
              SHORT "}", 200));
    free(post("/v1/completions", CLOSE, "not JSON", 400));
    free(post("/v1/completions", CLOSE, "", 400));
}

static void test_bodies_that_are_too_large(void **state)
{
    /* More than the sockets hold, so that the reply is read only if the server reads on. */
    size_t n = 8 << 20;
    char *body = malloc(n + 1);
    assert_non_null(body);
    memset(body, 'x', n);
    body[n] = 0;
    char *reply = post("/v1/completions", CLOSE, body, 413);
    assert_non_null(strstr(http_body(reply), "100000"));
    free(reply);
    body[100001] = 0;
    free(post("/v1/completions", CLOSE, body, 413));
    body[100000] = 0;
    free(post("/v1/completions", CLOSE, body, 400)); /* fits, and is no JSON */
    free(body);
    free(ask("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
             413));
    free(ask("POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
             "Content-Length: 200000\r\n\r\n", 413));
}

static void test_a_chunked_body_is_counted(void **state)
{
    int fd = http_connect(&fixture);
    static char chunk[0x1000 + 1];
    memset(chunk, 'x', 0x1000);
    static const char head[] = "POST /v1/tokenize HTTP/1.1\r\nHost: x\r\n" CLOSE
                               "Transfer-Encoding: chunked\r\n\r\n";
    http_send(fd, head, sizeof head - 1);
    for (int i = 0; i < 50; i++) {
        http_send(fd, "1000\r\n", 6);
        http_send(fd, chunk, 0x1000);
        http_send(fd, "\r\n", 2);
    }
    http_send(fd, "0\r\n\r\n", 5);
    char *reply = http_read_all(fd, NULL);
    assert_int_equal(http_status(reply), 413);
    free(reply);
}

static void test_headers_that_are_too_long(void **state)
{
    char request[7000] = "GET /health HTTP/1.1\r\nHost: x\r\n" CLOSE "X-Long: ";
    size_t n = strlen(request);
    memset(request + n, 'x', 5000);
    strcpy(request + n + 5000, "\r\n\r\n");
    char *reply = ask(request, 431);
    assert_non_null(strstr(http_body(reply), "\"error\""));
    free(reply);
}

static void test_ambiguous_framing_is_refused(void **state)
{
    free(ask("POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n"
             "\r\n{}", 400));
    free(ask("POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
             "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400));
    free(ask("POST /v1/tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}", 400));
}

static void test_one_connection_serves_many_requests(void **state)
{
    static const char get[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = http_connect(&fixture);
    http_send(fd, get, sizeof get - 1); /* all at once: pipelined */
    http_post(fd, "/v1/completions", "", SHORT "}");
    http_post(fd, "/v1/completions", "", "{}");
    http_post(fd, "/v1/completions", "", SHORT ", \"stream\": true}");
    http_post(fd, "/v1/completions", CLOSE, SHORT "}");
    char *replies = http_read_all(fd, NULL);
    static const int expected[] = {200, 200, 400, 200, 200};
    char *at = replies;
    for (int i = 0; i < 5; i++, at++) {
        at = strstr(at, "HTTP/1.1 ");
        assert_non_null(at);
        assert_int_equal(http_status(at), expected[i]);
    }
    assert_null(strstr(at, "HTTP/1.1 "));
    free(replies);
}

/* ---- Completions ---- */

static void test_a_stream(void **state)
{
    char *reply = post("/v1/completions", CLOSE, SHORT ", \"stream\": true}", 200);
    assert_non_null(strstr(reply, "Content-Type: text/event-stream\r\n"));
    assert_non_null(strstr(reply, "Cache-Control: no-store\r\n"));
    char *body = http_body(reply);
    size_t n = strlen(body);
    static const char end[] = "data: [DONE]\n\n";
    assert_true(n > sizeof end);
    assert_string_equal(body + n - (sizeof end - 1), end);
    assert_memory_equal(body, "data: {", 7);
    free(reply);
}

static void test_half_closed_clients_are_answered(void **state)
{
    char *expected = expected_short();
    for (int i = 0; i < 40; i++) {
        int fd = http_connect(&fixture);
        http_post(fd, "/v1/completions", i % 2 ? "" : CLOSE, SHORT "}");
        if (i % 4 > 1) usleep(1000);
        shutdown(fd, SHUT_WR);
        char *reply = http_read_all(fd, NULL);
        assert_int_equal(http_status(reply), 200);
        assert_string_equal(text_of(http_body(reply)), expected);
        free(reply);
        fd = http_connect(&fixture);
        http_post(fd, "/v1/completions", "", SHORT ", \"stream\": true}");
        shutdown(fd, SHUT_WR);
        reply = http_read_all(fd, NULL);
        assert_non_null(strstr(http_body(reply), "data: [DONE]"));
        free(reply);
    }
    free(expected);
}

static struct engine_stats engine_now(void)
{
    struct engine_stats s;
    engine_stats(fixture.model.engine, &s);
    return s;
}

/* Until the server has taken a completion in, at a time when the engine had made `steps`; it may
 * even be done. */
static void wait_taken(int64_t steps)
{
    int64_t end = clock_ns() + HTTP_PATIENCE_S * INT64_C(1000000000);
    while (http_active(fixture.server) == 0 && engine_now().n_steps == steps) {
        assert_true(clock_ns() < end);
        usleep(1000);
    }
}

/* However a client leaves, and whatever it had asked for, its pages come back and it is counted. */
static void test_clients_that_leave(void **state)
{
    for (int i = 0; i < 8; i++) {
        assert_true(http_fixture_settles(&fixture));
        long before = gone_so_far();
        int64_t steps = engine_now().n_steps;
        int fd = http_connect(&fixture);
        http_post(fd, "/v1/completions", "", i % 2 ? LONG ", \"stream\": true}" : LONG "}");
        wait_taken(steps);
        if (i & 2) usleep(3000);
        if (i & 4) close(fd);
        else http_reset(fd);
        assert_true(http_fixture_settles(&fixture));
        assert_in_range(gone_so_far() - before, 0, 1); /* it may have been done already */
    }
}

/* While the engine is in the middle of a step, the client's leaving is noticed; when that step
 * ends, nothing of what it had asked for goes on. */
static void test_a_client_that_leaves_is_noticed_long_before_its_reply_is_done(void **state)
{
    for (int i = 0; i < 4; i++) {
        assert_true(http_fixture_settles(&fixture));
        long gone = gone_so_far();
        struct engine_stats before = engine_now();
        http_fixture_hold(&fixture, true);
        int fd = http_connect(&fixture);
        struct buf b;
        buf_init(&b, 10000);
        buf_puts(&b, "{\"max_tokens\": 240, \"ignore_eos\": true, \"prompt\": [\"A\"");
        for (int k = 0; k < 59; k++) buf_puts(&b, ", \"A\"");
        buf_puts(&b, i % 2 ? "], \"stream\": true}" : "]}");
        http_post(fd, "/v1/completions", "", b.data);
        buf_free(&b);
        wait_taken(before.n_steps);
        if (i & 2) close(fd);
        else http_reset(fd);
        int64_t end = clock_ns() + HTTP_PATIENCE_S * INT64_C(1000000000);
        while (gone_so_far() == gone && clock_ns() < end) usleep(1000);
        assert_int_equal(gone_so_far(), gone + 1);
        http_fixture_hold(&fixture, false);
        assert_true(http_fixture_settles(&fixture));
        assert_in_range(engine_now().n_steps - before.n_steps, 0, 1);
    }
}

/* Replies that fit no buffer, to clients that read nothing until all others have what they want. */
static void test_a_slow_reader_blocks_nobody(void **state)
{
    char *expected = expected_short();
    struct http_fixture f;
    http_fixture_open(&f, NULL);
    enum { N = 3 };
    int slow[N], small = 4096;
    /* Connections inherit it: else the kernel would take in the whole replies. */
    assert_int_equal(setsockopt(f.server->listener.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small),
                     0);
    for (int i = 0; i < N; i++) {
        slow[i] = http_connect(&f);
        setsockopt(slow[i], SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        http_post(slow[i], "/v1/completions", CLOSE, LONG ", \"logprobs\": 5, \"stream\": true}");
    }
    for (int i = 0; i < 5; i++) {
        int fd = http_connect(&f);
        http_post(fd, "/v1/completions", CLOSE, SHORT "}");
        char *reply = http_read_all(fd, NULL);
        assert_int_equal(http_status(reply), 200);
        assert_string_equal(text_of(http_body(reply)), expected);
        free(reply);
    }
    /* The engine does not wait for them either: it is done with all. */
    int64_t end = clock_ns() + HTTP_PATIENCE_S * INT64_C(1000000000);
    while ((http_active(f.server) < N || !engine_idle(f.model.engine)) && clock_ns() < end)
        usleep(1000);
    assert_true(engine_idle(f.model.engine));
    assert_true(http_active(f.server) >= N);
    for (int i = 0; i < N; i++) {
        char *reply = http_read_all(slow[i], NULL);
        assert_non_null(strstr(http_body(reply), "data: [DONE]"));
        free(reply);
    }
    http_fixture_close(&f);
    free(expected);
}

struct visitor { unsigned dice; const char *expected; int n_finished; };

/* Requests of every kind, some left in the middle; every finished reply is the expected one. */
static void *visit(void *arg)
{
    struct visitor *v = arg;
    for (int i = 0; i < 6; i++) {
        bool stream = rand_r(&v->dice) % 2;
        int fd = http_connect(&fixture);
        http_post(fd, "/v1/completions", CLOSE, stream ? SHORT ", \"stream\": true}" : SHORT "}");
        if (rand_r(&v->dice) % 4 == 0) shutdown(fd, SHUT_WR);
        if (rand_r(&v->dice) % 3 == 0) {
            char some[300];
            if (rand_r(&v->dice) % 2 && recv(fd, some, sizeof some, 0) < 0) return NULL;
            if (rand_r(&v->dice) % 2) http_reset(fd);
            else close(fd);
            continue;
        }
        char *reply = http_read_all(fd, NULL);
        bool fine = http_status(reply) == 200;
        char *body = http_body(reply);
        if (fine && stream) fine = strstr(body, "data: [DONE]") != NULL;
        if (fine && !stream) fine = strcmp(strstr(body, "\"text\":"), v->expected) == 0;
        v->n_finished += fine ? 1 : 1000000;
        free(reply);
    }
    return NULL;
}

static void test_many_clients_at_once(void **state)
{
    enum { N = 32 };
    pthread_t threads[N];
    struct visitor visitors[N];
    char *expected = expected_short();
    for (int i = 0; i < N; i++) {
        visitors[i] = (struct visitor){.dice = (unsigned)i + 1, .expected = expected};
        assert_int_equal(pthread_create(&threads[i], NULL, visit, &visitors[i]), 0);
    }
    int finished = 0;
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        finished += visitors[i].n_finished;
    }
    assert_in_range(finished, N, 6 * N);
    assert_true(http_fixture_settles(&fixture));
    free(expected);
}

/* ---- Limits and ends: servers of their own ---- */

static void test_too_many_connections_are_told(void **state)
{
    struct http_fixture f;
    struct http_options o;
    http_fixture_options(&o);
    o.max_connections = 3;
    o.threads = 1; /* and a pool of one works */
    http_fixture_open(&f, &o);
    int busy[3];
    static const char get[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    for (int i = 0; i < 3; i++) { /* each is answered "continue", and owes a body */
        static const char post[] = "POST /v1/tokenize HTTP/1.1\r\nHost: x\r\n"
                                   "Content-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        char some[300];
        busy[i] = http_connect(&f);
        http_send(busy[i], post, sizeof post - 1);
        assert_true(recv(busy[i], some, sizeof some, 0) > 0);
    }
    char *reply = http_ask(&f, get);
    assert_int_equal(http_status(reply), 503);
    assert_non_null(strstr(reply, "Retry-After: 1\r\n"));
    free(reply);
    for (int i = 0; i < 3; i++) close(busy[i]);
    http_fixture_close(&f);
}

/* Waits until the server has closed one of n connections, and closes it here. Any: two threads
 * accept them, so the one that was opened first may not have been idle for longest. */
static void await_closed(struct pollfd *idle, nfds_t n)
{
    char byte;
    assert_int_equal(poll(idle, n, 10000), 1);
    for (nfds_t i = 0; i < n; i++) {
        if (!idle[i].revents) continue;
        assert_int_equal(recv(idle[i].fd, &byte, 1, 0), 0);
        close(idle[i].fd);
        idle[i].fd = -1; /* poll passes it over */
    }
}

static void test_idle_connections_keep_nobody_out(void **state)
{
    struct http_fixture f;
    struct http_options o;
    http_fixture_options(&o);
    o.max_connections = 3;
    http_fixture_open(&f, &o);
    struct pollfd idle[6];
    for (nfds_t i = 0; i < 6; i++) { /* from the fourth on one has to go for each that comes */
        idle[i] = (struct pollfd){.fd = http_connect(&f), .events = POLLIN};
        if (i >= 3) await_closed(idle, i);
    }
    char *reply = http_ask(&f, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_int_equal(http_status(reply), 200);
    free(reply);
    for (int i = 0; i < 6; i++)
        if (idle[i].fd >= 0) close(idle[i].fd);
    http_fixture_close(&f);
}

static void test_draining(void **state)
{
    struct http_fixture f;
    http_fixture_open(&f, NULL);
    int running = http_connect(&f);
    http_post(running, "/v1/completions", "", LONG ", \"stream\": true}");
    char first[16];
    assert_true(recv(running, first, sizeof first, MSG_WAITALL) > 0);
    http_drain(f.server);
    char *reply = http_ask(&f, "GET /ready HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(http_status(reply), 503);
    free(reply);
    reply = http_ask(&f, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(http_status(reply), 200);
    free(reply);
    int late = http_connect(&f);
    http_post(late, "/v1/completions", "", SHORT "}");
    reply = http_read_all(late, NULL);
    assert_int_equal(http_status(reply), 503);
    assert_non_null(strstr(reply, "Retry-After: 1\r\n"));
    free(reply);
    assert_true(http_fixture_settles(&f));
    http_stop(f.server);
    f.server = NULL;
    reply = http_read_all(running, NULL);
    assert_non_null(strstr(reply, "data: [DONE]"));
    free(reply);
    http_fixture_close(&f);
}

/* In the middle of everything: waiting, streaming, half closed, not reading, sending. */
static void test_stopping_with_clients_in_every_state(void **state)
{
    for (int threads = 1; threads <= 2; threads++) {
        struct http_fixture f;
        struct http_options o;
        http_fixture_options(&o);
        o.threads = threads;
        http_fixture_open(&f, &o);
        int clients[12];
        for (int i = 0; i < 12; i++) {
            clients[i] = http_connect(&f);
            if (i == 0) continue;
            if (i == 1) http_send(clients[i], "POST /v1/comp", 13);
            else http_post(clients[i], "/v1/completions", "",
                           i % 2 ? LONG ", \"n\": 4, \"stream\": true}" : LONG ", \"n\": 4}");
            if (i % 3 == 0) shutdown(clients[i], SHUT_WR);
        }
        usleep(5000);
        http_fixture_close(&f);
        for (int i = 0; i < 12; i++) close(clients[i]);
    }
}

static void test_starting_where_one_cannot(void **state)
{
    struct http_options o;
    struct http_server *s;
    struct error err;
    http_fixture_options(&o);
    o.port = http_port(fixture.server);
    assert_false(
        http_start(&o, &fixture.api, fixture.metrics, &(struct process_baseline){0}, &s, &err));
    assert_non_null(strstr(err.text, "in use"));
    http_fixture_options(&o);
    o.host = "no.such.host.invalid";
    assert_false(
        http_start(&o, &fixture.api, fixture.metrics, &(struct process_baseline){0}, &s, &err));
    assert_string_equal(err.param, "host");
    /* The running server's metrics are as they were. */
    char *reply = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n" CLOSE "\r\n", 200);
    assert_non_null(strstr(reply, "gptd_http_requests_total{route=\"other\",status=\"404\"} "));
    free(reply);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routes_that_answer_at_once),
        cmocka_unit_test(test_what_is_not_there),
        cmocka_unit_test(test_wrong_methods_are_told_the_right_ones),
        cmocka_unit_test(test_bodies_that_are_not_json),
        cmocka_unit_test(test_bodies_that_are_too_large),
        cmocka_unit_test(test_a_chunked_body_is_counted),
        cmocka_unit_test(test_headers_that_are_too_long),
        cmocka_unit_test(test_ambiguous_framing_is_refused),
        cmocka_unit_test(test_one_connection_serves_many_requests),
        cmocka_unit_test(test_a_stream),
        cmocka_unit_test(test_half_closed_clients_are_answered),
        cmocka_unit_test(test_clients_that_leave),
        cmocka_unit_test(test_a_client_that_leaves_is_noticed_long_before_its_reply_is_done),
        cmocka_unit_test(test_a_slow_reader_blocks_nobody),
        cmocka_unit_test(test_many_clients_at_once),
        cmocka_unit_test(test_too_many_connections_are_told),
        cmocka_unit_test(test_idle_connections_keep_nobody_out),
        cmocka_unit_test(test_draining),
        cmocka_unit_test(test_stopping_with_clients_in_every_state),
        cmocka_unit_test(test_starting_where_one_cannot),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
