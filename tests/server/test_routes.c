/* Tests of server/routes.c: the table against its description and its own rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/request.h"

/* Only what is in /openapi.json is walked by the tests that try every route with every key. */
static void test_every_row_is_described(void **state)
{
    struct api_context api = {0};
    struct http_server server = {.api = &api};
    struct request r = {.server = &server};
    struct error err;
    struct buf out;
    int status;
    api_limits_init(&api.limits);
    buf_init(&out, 1 << 20);
    assert_true(route_find("GET", "/openapi.json", &r, &status, &err));
    assert_true(route_answer(&r, &out, &err));
    for (int32_t i = 0; i < N_ROUTES; i++) {
        char key[300], allow[64];
        snprintf(key, sizeof key, "\"%s\":{", route_label(i));
        if (!strstr(out.data, key)) fail_msg("%s is not described", route_label(i));
        route_allow(i, allow, sizeof allow);
        assert_true(allow[0] != 0);
    }
    buf_free(&out);
}

static void test_who_may(void **state)
{
    static const struct { const char *method, *path; enum api_access access; } cases[] = {
        {"GET", "/health", API_ACCESS_OPEN}, {"HEAD", "/ready", API_ACCESS_OPEN},
        {"GET", "/", API_ACCESS_OPEN}, {"HEAD", "/page/page.js", API_ACCESS_OPEN},
        {"GET", "/page", API_ACCESS_USER}, {"GET", "/page/", API_ACCESS_USER},
        {"POST", "/v1/completions", API_ACCESS_USER}, {"GET", "/v1/completions", API_ACCESS_USER},
        {"GET", "/metrics", API_ACCESS_USER}, {"GET", "/v1/models/load", API_ACCESS_USER},
        {"POST", "/v1/models/load", API_ACCESS_ADMIN}, {"PUT", "/v1/models/load", API_ACCESS_ADMIN},
        {"DELETE", "/v1/models/a/b", API_ACCESS_ADMIN}, {"GET", "/v1/models/a/b", API_ACCESS_USER},
        {"GET", "/v1/files", API_ACCESS_ADMIN}, {"PUT", "/v1/files/a", API_ACCESS_ADMIN},
        {"GET", "/v1/fine_tuning/jobs/a/events", API_ACCESS_ADMIN},
        {"GET", "", API_ACCESS_USER}, {"GET", "/nowhere", API_ACCESS_USER},
        {"GET", "/health/", API_ACCESS_USER}, {"GET", "//health", API_ACCESS_USER},
        {"GET", "/HEALTH", API_ACCESS_USER}, {"GET", "/v1/../health", API_ACCESS_USER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct request r = {0};
        struct error err;
        int status;
        bool found = route_find(cases[i].method, cases[i].path, &r, &status, &err);
        if (route_access(r.route) != cases[i].access)
            fail_msg("%s %s (%s)", cases[i].method, cases[i].path, found ? "found" : "not found");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_row_is_described),
        cmocka_unit_test(test_who_may),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
