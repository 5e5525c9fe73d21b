/* Tests of server/watchdog.c: an engine whose device hangs in the middle of a step. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/watchdog.h"
#include "tests/server/http_fixture.h"

static void count(void *ctx) { atomic_fetch_add((_Atomic int *)ctx, 1); }

static int health(const struct http_fixture *f)
{
    char *reply = http_ask(f, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    int status = http_status(reply);
    free(reply);
    return status;
}

/* Until /health says so; the seconds that took. */
static double wait_health(const struct http_fixture *f, int status)
{
    int64_t begin = clock_ns();
    while (health(f) != status) {
        usleep(20000);
        assert_true(clock_ns() - begin < HTTP_PATIENCE_S * INT64_C(1000000000));
    }
    return (double)(clock_ns() - begin) / 1e9;
}

/* The service manager's socket, which the environment names from now on. */
static int open_manager(void)
{
    static const char name[] = "@gptd-test-watchdog";
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    memcpy(a.sun_path + 1, name + 1, sizeof name - 2);
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof name - 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, size), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    setenv("WATCHDOG_USEC", "100000", 1);
    return fd;
}

static int beats(int manager)
{
    char some[64];
    int n = 0;
    while (recv(manager, some, sizeof some, MSG_DONTWAIT) > 0) n++;
    return n;
}

static void test_a_stalled_engine(void **state)
{
    struct http_fixture f;
    struct http_options o;
    struct watchdog *w;
    struct error err;
    _Atomic int stalls = 0;
    int manager = open_manager();
    http_fixture_options(&o);
    o.stall_timeout_s = 1;
    http_fixture_open(&f, &o);
    struct watchdog_options watch = {.api = &f.api, .stall_timeout_s = 1, .on_stall = count,
                                     .ctx = &stalls};
    assert_true(watchdog_start(&watch, &w, &err));
    usleep(300000);
    assert_int_equal(health(&f), 200);
    assert_in_range(beats(manager), 1, 100);

    http_fixture_hold(&f, true);
    int fd = http_connect(&f);
    http_post(fd, "/v1/completions", "Connection: close\r\n",
              "{\"prompt\": \"A\", \"max_tokens\": 3}");
    double took = wait_health(&f, 503);
    assert_true(took > 0.5 && took < 1 + 5);
    while (atomic_load(&stalls) == 0) usleep(10000);
    usleep(100000);
    beats(manager);
    usleep(500000);
    assert_int_equal(beats(manager), 0); /* so the manager ends it */

    http_fixture_hold(&f, false);
    wait_health(&f, 200);
    char *reply = http_read_all(fd, NULL);
    assert_int_equal(http_status(reply), 200);
    free(reply);
    usleep(300000);
    assert_in_range(beats(manager), 1, 100);
    assert_int_equal(stalls, 1);
    watchdog_stop(w);
    http_fixture_close(&f);
    close(manager);
}

static void test_a_failed_device(void **state)
{
    struct http_fixture f;
    struct watchdog *w;
    struct error err;
    _Atomic int failures = 0;
    int manager = open_manager();
    http_fixture_open(&f, NULL);
    struct watchdog_options watch = {.api = &f.api, .stall_timeout_s = 300,
                                     .on_device_failure = count, .ctx = &failures};
    assert_true(watchdog_start(&watch, &w, &err));
    assert_int_equal(health(&f), 200);
    http_fixture_fail(&f);
    for (int i = 0; i < 2; i++) { /* what ran then, and what comes after */
        int fd = http_connect(&f);
        http_post(fd, "/v1/completions", "Connection: close\r\n",
                  "{\"prompt\": \"A\", \"max_tokens\": 3}");
        char *reply = http_read_all(fd, NULL);
        assert_int_equal(http_status(reply), 503);
        assert_non_null(strstr(reply, "on fire"));
        assert_non_null(strstr(reply, "device_failed"));
        free(reply);
    }
    assert_int_equal(health(&f), 503);
    while (atomic_load(&failures) == 0) usleep(10000);
    beats(manager);
    usleep(300000);
    assert_int_equal(beats(manager), 0);
    assert_int_equal(failures, 1);
    watchdog_stop(w);
    http_fixture_close(&f);
    close(manager);
}

static void test_an_engine_at_rest_is_not_stalled(void **state)
{
    struct http_fixture f;
    double since_s;
    http_fixture_open(&f, NULL);
    usleep(10000);
    assert_false(engine_is_stalled(&f.api, 0, &since_s));
    http_fixture_close(&f);
    watchdog_stop(NULL);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_stalled_engine),
        cmocka_unit_test(test_a_failed_device),
        cmocka_unit_test(test_an_engine_at_rest_is_not_stalled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
