/* Tests of server/guard.c: which Host and Origin are this machine's own. What requests meet is
 * tested over HTTP. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/guard.h"

static void test_hosts(void **state)
{
    const struct option_list allowed = {.n = 2, .at = {"gpt.example", "box"}};
    static const struct { const char *host; bool local; } cases[] = {
        {"localhost", true}, {"LOCALHOST", true}, {"localhost:8080", true}, {"127.0.0.1", true},
        {"127.0.0.1:65535", true}, {"[::1]", true}, {"[::1]:8080", true}, {"box", true},
        {"Gpt.Example:443", true}, {"localhost:", true},
        {"", false}, {":", false}, {":8080", false}, {"localhost.", false}, {"localhostx", false},
        {"localhost.evil.example", false}, {"evil.example", false}, {"xgpt.example", false},
        {"gpt.example.evil", false}, {"localhost:80:80", false}, {"localhost:80x", false},
        {"localhost:-1", false}, {"localhost, evil.example", false}, {"evil@localhost", false},
        {"[::1", false}, {"[::1]x", false}, {"[::1]]", false}, {"[", false}, {"[]", false},
        {"::1", false}, {"[::1]:8080:1", false}, {"127.0.0.1.evil.example", false},
        {"127.0.0.2", false}, {"0.0.0.0", false}, {"10.0.0.1", false}, {"localhost ", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (guard_host_is_local(cases[i].host, &allowed) != cases[i].local)
            fail_msg("%s", cases[i].host);
    char *endless = calloc(1, 100001);
    assert_non_null(endless);
    memset(endless, 'a', 100000);
    assert_false(guard_host_is_local(endless, &allowed));
    endless[0] = '[';
    assert_false(guard_host_is_local(endless, &allowed));
    free(endless);
}

/* Any bytes: what is let in is a name that is allowed, and a port after it at most. */
static void test_random_hosts(void **state)
{
    static const char *const pieces[] = {"localhost", "127.0.0.1", "[::1]", "box", ":", "80", "[",
                                         "]", ".", "", "x", "\xff"};
    static const char *const names[] = {"localhost", "127.0.0.1", "[::1]", "box"};
    const struct option_list allowed = {.n = 1, .at = {"box"}};
    uint32_t seed = 4711;
    int let_in = 0;
    for (int i = 0; i < 100000; i++) {
        char host[64] = "";
        for (int k = 0; k < 4; k++)
            strcat(host, pieces[((seed = seed * 1664525 + 1013904223) >> 16) % 12]);
        bool good = false;
        for (int k = 0; k < 4; k++) {
            size_t n = strlen(names[k]);
            if (strncmp(host, names[k], n) != 0) continue;
            const char *port = host + n + 1;
            good = !host[n] || (host[n] == ':' && !port[strspn(port, "0123456789")]);
        }
        if (guard_host_is_local(host, &allowed) != good) fail_msg("%s", host);
        let_in += good;
    }
    assert_true(let_in > 100);
}

static void test_origins(void **state)
{
    static const char *const good[] = {"*", "https://a.example", "http://[::1]:80", "app://x"};
    static const char *const bad[] = {"", "a.example", "https://", "://a", "https://a/", "null",
                                      "https://a?b", "https://u@a", "https://a,https://b", "**"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(guard_is_origin(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(guard_is_origin(bad[i]));
    assert_true(guard_origin_is_host("http://localhost:8080", "localhost:8080"));
    assert_true(guard_origin_is_host("https://Box", "box"));
    assert_false(guard_origin_is_host("http://localhost:8081", "localhost:8080"));
    assert_false(guard_origin_is_host("http://localhost:8080.evil.example", "localhost:8080"));
    assert_false(guard_origin_is_host("http://evil.example", "localhost:8080"));
    assert_false(guard_origin_is_host("null", "localhost:8080"));
    assert_false(guard_origin_is_host("", "localhost:8080"));
    assert_false(guard_origin_is_host("http://localhost", NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hosts),
        cmocka_unit_test(test_random_hosts),
        cmocka_unit_test(test_origins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
