/* Tests of server/notify.c, against a service manager's socket in this process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "server/notify.h"

/* A manager that listens on `name` ("@..." for an abstract one), which the environment names
 * too. */
static int manager_open(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t n = strlen(name);
    memcpy(a.sun_path, name, n);
    if (name[0] == '@') a.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, size), 0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

/* What it was told; "" for nothing. */
static const char *told(int manager)
{
    static char state[200];
    ssize_t n = recv(manager, state, sizeof state - 1, MSG_DONTWAIT);
    state[n > 0 ? n : 0] = 0;
    return state;
}

static void test_a_manager_is_told(void **state)
{
    char dir[] = "/tmp/gptd-test-notify-XXXXXX", path[64], abstract[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/socket", dir);
    snprintf(abstract, sizeof abstract, "@gptd-test-notify-%d", (int)getpid());
    const char *const names[] = {path, abstract};
    for (int i = 0; i < 2; i++) {
        int manager = manager_open(names[i]);
        assert_string_equal(told(manager), "");
        notify_send("READY=1");
        notify_send("STOPPING=1");
        assert_string_equal(told(manager), "READY=1");
        assert_string_equal(told(manager), "STOPPING=1");
        close(manager);
        notify_send("READY=1"); /* nobody there any more: no harm */
    }
    unlink(path);
    rmdir(dir);
}

static void test_reloading_has_the_time(void **state)
{
    int manager = manager_open("@gptd-test-notify-reloading");
    long long us, before = clock_ns() / 1000;
    notify_reloading();
    const char *text = told(manager);
    assert_int_equal(sscanf(text, "RELOADING=1\nMONOTONIC_USEC=%lld", &us), 1);
    assert_in_range(us, before, clock_ns() / 1000);
    close(manager);
}

static void test_no_manager(void **state)
{
    char long_name[sizeof((struct sockaddr_un *)0)->sun_path + 10];
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[0] = '/';
    long_name[sizeof long_name - 1] = 0;
    int manager = manager_open("@gptd-test-notify-none");
    unsetenv("NOTIFY_SOCKET");
    notify_send("READY=1");
    const char *const odd[] = {"", "gptd-test-notify-none", long_name};
    for (int i = 0; i < 3; i++) {
        setenv("NOTIFY_SOCKET", odd[i], 1);
        notify_send("READY=1");
    }
    assert_string_equal(told(manager), "");
    close(manager);
}

static void test_the_watchdogs_interval(void **state)
{
    static const struct { const char *us, *pid; int64_t ns; } cases[] = {
        {NULL, NULL, 0}, {"30000000", NULL, 30000000000}, {"1", NULL, 1000},
        {"0", NULL, 0}, {"-5", NULL, 0}, {"soon", NULL, 0}, {"30000000", "1", 0},
        {"9223372036854775807", NULL, 0}, {"30000000", "own", 30000000000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char own[32];
        snprintf(own, sizeof own, "%d", (int)getpid());
        unsetenv("WATCHDOG_USEC");
        unsetenv("WATCHDOG_PID");
        if (cases[i].us) setenv("WATCHDOG_USEC", cases[i].us, 1);
        if (cases[i].pid)
            setenv("WATCHDOG_PID", strcmp(cases[i].pid, "own") == 0 ? own : cases[i].pid, 1);
        assert_int_equal(notify_watchdog_ns(), cases[i].ns);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_manager_is_told),
        cmocka_unit_test(test_reloading_has_the_time),
        cmocka_unit_test(test_no_manager),
        cmocka_unit_test(test_the_watchdogs_interval),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
