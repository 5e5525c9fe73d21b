/* Tests of server/listen.c, with real sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "server/listen.h"

static char folder[64];

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/gptd-listen-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) { return rmdir(folder); }

/* "unix:FOLDER/s" and its path. */
static const char *socket_host(char host[128])
{
    snprintf(host, 128, "unix:%s/s", folder);
    return host + 5;
}

static bool answers(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    return ok;
}

static void test_local(void **state)
{
    static const char *const yes[] = {"localhost", "127.0.0.1", "127.1.2.3", "::1", "unix:/run/x"};
    static const char *const no[] = {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "127.evil.example",
                                     "", "localhost.evil.example", "unix", "Unix:/run/x"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) assert_true(listen_is_local(yes[i]));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) assert_false(listen_is_local(no[i]));
}

static void test_urls(void **state)
{
    char url[64];
    listen_url("127.0.0.1", 80, "http", url, sizeof url);
    assert_string_equal(url, "http://127.0.0.1:80");
    listen_url("::1", 81, "https", url, sizeof url);
    assert_string_equal(url, "https://[::1]:81");
    listen_url("unix:/run/x", 0, "http", url, sizeof url);
    assert_string_equal(url, "unix:/run/x");
}

static void test_a_free_port(void **state)
{
    struct listener a, b;
    struct error err;
    assert_true(listener_open("127.0.0.1", 0, &a, &err));
    assert_in_range(a.port, 1, 65535);
    assert_false(listener_open("127.0.0.1", a.port, &b, &err));
    assert_non_null(strstr(err.text, "in use"));
    assert_int_equal(b.fd, -1);
    listener_close(&a);
    listener_close(&a);
    assert_false(listener_open("no.such.host.invalid", 0, &a, &err));
    assert_string_equal(err.param, "host");
}

static void test_a_unix_socket(void **state)
{
    char host[128];
    struct listener l;
    struct error err;
    struct stat st;
    const char *path = socket_host(host);
    assert_true(listener_open(host, 80, &l, &err));
    assert_int_equal(l.port, 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    assert_true(answers(path));
    listener_close(&l);
    assert_false(file_exists(path));
}

static void test_a_socket_in_use_stays(void **state)
{
    char host[128];
    struct listener l, other;
    struct error err;
    const char *path = socket_host(host);
    assert_true(listener_open(host, 0, &l, &err));
    assert_false(listener_open(host, 0, &other, &err));
    assert_int_equal(err.code, ERR_BUSY);
    assert_true(answers(path));
    listener_close(&l);
}

static void test_a_stale_socket_is_replaced(void **state)
{
    char host[128];
    struct listener l, dead;
    struct error err;
    const char *path = socket_host(host);
    assert_true(listener_open(host, 0, &dead, &err));
    close(dead.fd); /* as SIGKILL does: the file stays */
    assert_true(file_exists(path));
    assert_false(answers(path));
    assert_true(listener_open(host, 0, &l, &err));
    assert_true(answers(path));
    listener_close(&l);
}

static void test_other_files_stay(void **state)
{
    char host[128];
    struct listener l;
    struct error err;
    const char *path = socket_host(host);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    assert_false(listener_open(host, 0, &l, &err));
    assert_non_null(strstr(err.text, "no socket"));
    assert_true(file_exists(path));
    unlink(path);
    assert_int_equal(symlink("/dev/null", path), 0);
    assert_false(listener_open(host, 0, &l, &err));
    assert_true(file_exists(path));
    unlink(path);
}

static void test_paths_that_cannot_be(void **state)
{
    char host[256] = "unix:";
    struct listener l;
    struct error err;
    assert_false(listener_open(host, 0, &l, &err));
    memset(host + 5, 'a', 120);
    assert_false(listener_open(host, 0, &l, &err));
    assert_non_null(strstr(err.text, "107"));
    assert_false(listener_open("unix:/no/such/folder/s", 0, &l, &err));
    assert_non_null(strstr(err.text, "/no/such/folder/s"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_a_free_port),
        cmocka_unit_test(test_a_unix_socket),
        cmocka_unit_test(test_a_socket_in_use_stays),
        cmocka_unit_test(test_a_stale_socket_is_replaced),
        cmocka_unit_test(test_other_files_stay),
        cmocka_unit_test(test_paths_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
