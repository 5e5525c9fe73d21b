/* Tests of server/connection.c: a bare libmicrohttpd in front of it, and clients that take their
 * time. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "server/connection.h"

enum { PATIENCE_S = 60 };

/* A server whose handler is told in the path what to do: /w works long, /s is shut. */
struct bare { struct connections *all; struct MHD_Daemon *daemon; int port; };

static enum MHD_Result handle(void *cls, struct MHD_Connection *mhd, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *n, void **ctx)
{
    static char seen;
    struct connection *c = connection_of(mhd);
    if (connection_ctx(c) != cls) return MHD_NO;
    if (!*ctx) {
        *ctx = &seen;
        connection_expect_body(c, 0);
        return MHD_YES;
    }
    *n = 0;
    connection_work(c);
    if (url[1] == 'w') usleep(1500000); /* longer than anything here may take */
    if (url[1] == 's') connection_shut(c);
    struct MHD_Response *r = MHD_create_response_from_buffer(2, "ok", MHD_RESPMEM_PERSISTENT);
    connection_expect_reading(c, 2);
    enum MHD_Result result = MHD_queue_response(mhd, 200, r);
    MHD_destroy_response(r);
    return result;
}

static void ended(void *cls, struct MHD_Connection *mhd, void **ctx,
                  enum MHD_RequestTerminationCode why)
{
    connection_expect_headers(connection_of(mhd));
}

static void *line(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    connection_expect_rest(connection_of(mhd));
    return NULL;
}

static void bare_open(struct bare *b, int64_t max)
{
    struct connection_times times = {.idle_s = 1, .header_s = 1, .body_s = 1, .send_s = 1};
    struct error err;
    assert_true(connections_start(&times, max, b, &b->all, &err));
    unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD;
    b->daemon = MHD_start_daemon(flags, 0, NULL, NULL, handle, b,
                                 MHD_OPTION_NOTIFY_CONNECTION, connection_notify, b->all,
                                 MHD_OPTION_NOTIFY_COMPLETED, ended, NULL,
                                 MHD_OPTION_URI_LOG_CALLBACK, line, NULL, MHD_OPTION_END);
    assert_non_null(b->daemon);
    b->port = MHD_get_daemon_info(b->daemon, MHD_DAEMON_INFO_BIND_PORT)->port;
}

static void bare_close(struct bare *b)
{
    MHD_stop_daemon(b->daemon);
    connections_stop(b->all);
}

static int dial(const struct bare *b, const char *text)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)b->port)};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    while (*text) text += send(fd, text, 1, MSG_NOSIGNAL) > 0;
    return fd;
}

/* Bytes until the server closes; how long that took. */
static size_t drain(int fd, double *seconds)
{
    char some[256];
    size_t all = 0;
    int64_t begin = clock_ns();
    for (ssize_t n; (n = recv(fd, some, sizeof some, 0)) > 0;) all += (size_t)n;
    *seconds = (double)(clock_ns() - begin) / 1e9;
    close(fd);
    return all;
}

static void test_each_state_has_its_time(void **state)
{
    static const struct { const char *text; bool answered; double at_least; } cases[] = {
        {"", false, 0.9},
        {"GE", false, 0.9},
        {"GET / HTTP/1.1\r\nHost", false, 0.9},
        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", false, 0.9},
        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", true, 1.9},     /* then idle_s and header_s */
        {"GET /w HTTP/1.1\r\nHost: x\r\n\r\n", true, 3.3},    /* its own time is the server's */
    };
    enum { N = sizeof cases / sizeof *cases };
    struct bare b;
    int fd[N];
    bare_open(&b, 100);
    for (int i = 0; i < N; i++) fd[i] = dial(&b, cases[i].text);
    int64_t begin = clock_ns();
    for (int i = 0; i < N; i++) {
        double ignored;
        assert_int_equal(drain(fd[i], &ignored) > 0, cases[i].answered);
        double s = (double)(clock_ns() - begin) / 1e9;
        if (s < cases[i].at_least) fail_msg("case %d: %.2f s", i, s);
    }
    bare_close(&b);
}

static void test_a_connection_can_be_shut(void **state)
{
    struct bare b;
    double seconds;
    bare_open(&b, 100);
    assert_int_equal(drain(dial(&b, "GET /s HTTP/1.1\r\nHost: x\r\n\r\n"), &seconds), 0);
    bare_close(&b);
}

static void test_the_longest_idle_makes_room(void **state)
{
    struct bare b;
    double seconds;
    char byte;
    bare_open(&b, 2);
    int first = dial(&b, ""), second = dial(&b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(recv(second, &byte, 1, 0), 1);
    assert_false(connections_are_too_many(b.all));
    int third = dial(&b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(drain(first, &seconds), 0);
    assert_int_equal(recv(third, &byte, 1, 0), 1);
    assert_false(connections_are_too_many(b.all));
    close(second);
    close(third);
    bare_close(&b);
}

static void test_who_works_is_not_sent_away(void **state)
{
    static const char post[] = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
                               "Expect: 100-continue\r\n\r\n";
    struct bare b;
    char byte;
    bare_open(&b, 1);
    int working = dial(&b, post);
    assert_int_equal(recv(working, &byte, 1, 0), 1); /* "continue" */
    int other = dial(&b, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(recv(other, &byte, 1, 0), 1);
    assert_true(connections_are_too_many(b.all));
    close(working);
    close(other);
    bare_close(&b);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_state_has_its_time),
        cmocka_unit_test(test_a_connection_can_be_shut),
        cmocka_unit_test(test_the_longest_idle_makes_room),
        cmocka_unit_test(test_who_works_is_not_sent_away),
    };
    connections_stop(NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
