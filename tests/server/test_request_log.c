/* Tests of server/request_log.c: the line as text and as JSON, and whose ids are taken over. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/log.h"
#include "server/metrics.h"
#include "server/request.h"
#include "tests/server/http_fixture.h"

static const struct completion_summary of_no_completion;
static const struct completion_summary of_a_completion = {
    .id = "cmpl-1", .prompt_tokens = 7, .cached_tokens = 3, .completion_tokens = 5,
    .queued_ns = 250000, .first_token_ns = 1500000, .finish = "stop",
};

/* What request_log_end writes to stderr, without the newline; "" for nothing. */
static const char *line_of(const struct request *r, int status, const struct completion_summary *s)
{
    static char line[4096];
    int pipes[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipes), 0);
    assert_true(dup2(pipes[1], STDERR_FILENO) >= 0);
    close(pipes[1]);
    request_log_end(r, status, 2500000, s);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    ssize_t n = read(pipes[0], line, sizeof line - 1);
    close(pipes[0]);
    line[n > 0 ? n - 1 : 0] = 0;
    return line;
}

/* A request of `path`, of a server that logs. */
static void request_init(struct request *r, struct http_server *s, const char *method,
                         const char *path)
{
    struct error err;
    int status;
    memset(s, 0, sizeof *s);
    s->options.log_requests = true;
    memset(r, 0, sizeof *r);
    r->server = s;
    r->method = request_log_method(method);
    snprintf(r->id, sizeof r->id, "the-id");
    if (!route_find(method, path, r, &status, &err)) assert_int_equal(status, 404);
}

static void test_text(void **state)
{
    struct http_server s;
    struct request r;
    log_set_format(LOG_TEXT);
    request_init(&r, &s, "POST", "/v1/completions");
    assert_non_null(strstr(line_of(&r, 200, &of_a_completion),
                           " info  the-id POST /v1/completions 200 2.5 ms, key none, cmpl-1: "
                           "7 prompt tokens (3 cached), 5 completion tokens, queued 0.2 ms, "
                           "first token 1.5 ms, stop"));
    struct completion_summary canceled = of_a_completion;
    canceled.finish = NULL;
    canceled.first_token_ns = 0;
    const char *line = line_of(&r, METRICS_CLIENT_GONE, &canceled);
    assert_non_null(strstr(line, " 499 "));
    assert_non_null(strstr(line, "queued 0.2 ms, canceled"));
    request_init(&r, &s, "BREW", "/coffee?secret");
    snprintf(r.caller.name, sizeof r.caller.name, "alice");
    line = line_of(&r, 404, &of_no_completion);
    assert_non_null(strstr(line, " the-id other other 404 2.5 ms, key alice"));
    assert_null(strstr(line, "coffee")); /* a path may have anything in it */
    assert_null(strstr(line, "tokens"));
}

static const cJSON *member(const cJSON *event, const char *name)
{
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(event, name);
    assert_non_null(m);
    return m;
}

static void test_json(void **state)
{
    struct http_server s;
    struct request r;
    log_set_format(LOG_JSON);
    request_init(&r, &s, "POST", "/v1/chat/completions");
    snprintf(r.id, sizeof r.id, "a\"b\\c");
    snprintf(r.caller.name, sizeof r.caller.name, "alice");
    cJSON *event = cJSON_Parse(line_of(&r, 200, &of_a_completion));
    assert_non_null(event);
    assert_string_equal(member(event, "message")->valuestring, "request");
    assert_string_equal(member(event, "id")->valuestring, "a\"b\\c");
    assert_string_equal(member(event, "key")->valuestring, "alice");
    assert_string_equal(member(event, "method")->valuestring, "POST");
    assert_string_equal(member(event, "route")->valuestring, "/v1/chat/completions");
    assert_int_equal(member(event, "status")->valueint, 200);
    assert_float_equal(member(event, "total_ms")->valuedouble, 2.5, 1e-9);
    assert_string_equal(member(event, "completion")->valuestring, "cmpl-1");
    assert_int_equal(member(event, "prompt_tokens")->valueint, 7);
    assert_int_equal(member(event, "cached_tokens")->valueint, 3);
    assert_int_equal(member(event, "completion_tokens")->valueint, 5);
    assert_float_equal(member(event, "queue_ms")->valuedouble, 0.25, 1e-9);
    assert_float_equal(member(event, "first_token_ms")->valuedouble, 1.5, 1e-9);
    assert_string_equal(member(event, "finish_reason")->valuestring, "stop");
    cJSON_Delete(event);

    r.caller.name[0] = 0;
    event = cJSON_Parse(line_of(&r, 400, &of_no_completion));
    assert_non_null(event);
    assert_true(cJSON_IsNull(member(event, "key")));
    assert_null(cJSON_GetObjectItemCaseSensitive(event, "completion"));
    cJSON_Delete(event);
    log_set_format(LOG_TEXT);
}

/* Probes that find all well say nothing; they do when they do not, or when more is asked for. */
static void test_probes_are_quiet(void **state)
{
    struct http_server s;
    struct request r;
    request_init(&r, &s, "GET", "/health");
    assert_string_equal(line_of(&r, 200, &of_no_completion), "");
    assert_non_null(strstr(line_of(&r, 503, &of_no_completion), "/health 503"));
    log_set_level(LOG_DEBUG);
    assert_non_null(strstr(line_of(&r, 200, &of_no_completion), "/health 200"));
    log_set_level(LOG_INFO);
    request_init(&r, &s, "GET", "/v1/models");
    assert_non_null(strstr(line_of(&r, 200, &of_no_completion), "/v1/models 200"));
    s.options.log_requests = false;
    assert_string_equal(line_of(&r, 200, &of_no_completion), "");
}

static void test_methods(void **state)
{
    assert_string_equal(request_log_method("GET"), "GET");
    assert_string_equal(request_log_method("DELETE"), "DELETE");
    assert_string_equal(request_log_method("get"), "other");
    assert_string_equal(request_log_method("GETX\nforged"), "other");
    assert_string_equal(request_log_method(""), "other");
}

/* The id on the reply to a request with this one; the caller frees it. */
static char *id_for(const struct http_fixture *f, const char *given)
{
    char request[1000], id[500];
    snprintf(request, sizeof request, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
             "X-Request-Id: %s\r\n\r\n", given);
    char *reply = http_ask(f, request);
    assert_int_equal(http_status(reply), 200);
    const char *header = strstr(reply, "X-Request-Id: ");
    assert_non_null(header);
    assert_int_equal(sscanf(header, "X-Request-Id: %499[^\r]", id), 1);
    free(reply);
    return strdup(id);
}

static void test_ids(void **state)
{
    struct http_fixture f;
    char longest[REQUEST_ID_MAX + 1], *previous = NULL;
    memset(longest, '~', REQUEST_ID_MAX);
    longest[REQUEST_ID_MAX] = 0;
    http_fixture_open(&f, NULL);
    const char *const good[] = {"mine-1", "!\"#{}", longest};
    for (int i = 0; i < 3; i++) {
        char *id = id_for(&f, good[i]);
        assert_string_equal(id, good[i]);
        free(id);
    }
    char too_long[REQUEST_ID_MAX + 2];
    memset(too_long, 'a', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = 0;
    const char *const bad[] = {"two words", "\xc3\xa9", too_long};
    for (int i = 0; i < 3; i++) {
        char *id = id_for(&f, bad[i]);
        assert_int_equal(strncmp(id, "req-", 4), 0);
        assert_true(!previous || strcmp(previous, id) != 0);
        free(previous);
        previous = id;
    }
    free(previous);
    http_fixture_close(&f);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_probes_are_quiet),
        cmocka_unit_test(test_methods),
        cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
