/* Tests of server/header_guard.c: headers as libmicrohttpd gives them, on a server. Ambiguous
 * bodies, with what follows them, are tests/http/test_hygiene.py's. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "server/header_guard.h"
#include "tests/server/http_fixture.h"

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

/* GET /health with these header lines. */
static int status_of(const char *version, const char *headers)
{
    char request[8192];
    snprintf(request, sizeof request, "GET /health %s\r\nConnection: close\r\n%s\r\n", version,
             headers);
    char *reply = http_ask(&fixture, request);
    int status = http_status(reply);
    free(reply);
    return status;
}

static void test_plain_headers_pass(void **state)
{
    assert_int_equal(status_of("HTTP/1.1", "Host: x\r\n"), 200);
    assert_int_equal(status_of("HTTP/1.1", "hOST: x\r\nX-!#$%&'*+.^_`|~9: \ta b\t\r\n"), 200);
    assert_int_equal(status_of("HTTP/1.1", "Host:\r\nX: \xc3\xa9\r\nEmpty:\r\n"), 200);
    assert_int_equal(status_of("HTTP/1.1", "Host: x\r\nContent-Length: 0\r\n"), 200);
    assert_int_equal(status_of("HTTP/1.0", ""), 200);
}

static void test_odd_headers_do_not(void **state)
{
    static const struct { const char *headers; int status; } cases[] = {
        {"", 400},
        {"Host: x\r\nHost: x\r\n", 400},
        {"Host: x\r\nContent-Length : 0\r\n", 400},
        {"Host: x\r\nX{y: 0\r\n", 400},
        {"Host: x\r\nX\x7f: 0\r\n", 400},
        {"Host: x\r\nX: a\x7f\r\n", 400},
        {"Host: x\r\nX: a\x02z\r\n", 400},
        {"Host: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n", 400},
        {"Host: x\r\nContent-Length: 0\r\ncontent-length: 0\r\n", 400},
        {"Host: x\r\nTransfer-Encoding: chunked, gzip\r\n", 400},
        {"Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400},
        {"Host: x\r\nExpect: more\r\n", 417},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(status_of("HTTP/1.1", cases[i].headers), cases[i].status);
    assert_int_equal(status_of("HTTP/1.0", "Host: x\r\nTransfer-Encoding: chunked\r\n"), 400);
}

static void test_headers_are_counted(void **state)
{
    char headers[2048] = "Host: x\r\n"; /* and Connection */
    for (int i = 0; i < MAX_HEADERS - 2; i++) strcat(headers, "X: y\r\n");
    assert_int_equal(status_of("HTTP/1.1", headers), 200);
    strcat(headers, "X: y\r\n");
    assert_int_equal(status_of("HTTP/1.1", headers), 431);
}

static void test_request_lines(void **state)
{
    char many[512] = "/x?a";
    assert_true(uri_is_plain("/"));
    assert_true(uri_is_plain("/v1/files?limit=5&after=file%2000"));
    for (int i = 1; i < MAX_ARGUMENTS; i++) strcat(many, "&b");
    assert_true(uri_is_plain(many));
    strcat(many, "&b");
    assert_false(uri_is_plain(many));
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_headers_pass),
        cmocka_unit_test(test_odd_headers_do_not),
        cmocka_unit_test(test_headers_are_counted),
        cmocka_unit_test(test_request_lines),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
