/* Tests of server/limits.c, on a clock that the test turns. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "server/limits.h"

static const int64_t SECOND = 1000000000, START = 77 * INT64_C(1000000000);

static struct key_limits *limits(int64_t requests, int64_t tokens, int64_t concurrent)
{
    struct limits_options o = {requests, tokens, concurrent};
    struct key_limits *l = key_limits_new(&o, START);
    assert_non_null(l);
    assert_int_equal(limits_any(&o), requests + tokens + concurrent > 0);
    return l;
}

/* A request that begins and ends at once. */
static enum limits_verdict ask(struct key_limits *l, int64_t now_ns, struct error *err)
{
    enum limits_verdict verdict = key_limits_begin(l, now_ns, err);
    if (verdict == LIMITS_OK) key_limits_end(l);
    return verdict;
}

static void test_requests_refill_steadily(void **state)
{
    struct key_limits *l = limits(6, 0, 0);
    struct error err = {0};
    for (int i = 0; i < 6; i++) assert_int_equal(ask(l, START, &err), LIMITS_OK);
    assert_int_equal(ask(l, START, &err), LIMITS_REQUESTS);
    assert_int_equal(err.code, ERR_BUSY);
    assert_int_equal(err.retry_after_s, 10);
    assert_non_null(strstr(err.text, "6 requests a minute"));
    assert_int_equal(ask(l, START + 9 * SECOND, &err), LIMITS_REQUESTS);
    assert_int_equal(err.retry_after_s, 1);
    assert_int_equal(ask(l, START + 10 * SECOND, &err), LIMITS_OK);
    assert_int_equal(ask(l, START + 10 * SECOND, &err), LIMITS_REQUESTS);
    /* An idle hour saves up a minute's worth and no more. */
    int64_t later = START + 3600 * SECOND;
    for (int i = 0; i < 6; i++) assert_int_equal(ask(l, later, &err), LIMITS_OK);
    assert_int_equal(ask(l, later, &err), LIMITS_REQUESTS);
    /* A clock that another thread read earlier takes nothing back. */
    assert_int_equal(ask(l, START, &err), LIMITS_REQUESTS);
    assert_int_equal(ask(l, later + 10 * SECOND, &err), LIMITS_OK);
    key_limits_unref(l);
}

static void test_requests_at_once(void **state)
{
    struct key_limits *l = limits(3, 0, 2);
    struct error err;
    assert_int_equal(key_limits_begin(l, START, &err), LIMITS_OK);
    assert_int_equal(key_limits_begin(l, START, &err), LIMITS_OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(key_limits_begin(l, START, &err), LIMITS_CONCURRENT);
        assert_int_equal(err.retry_after_s, 1);
    }
    key_limits_end(l);
    /* What was refused did not count: one of the minute's three is left. */
    assert_int_equal(ask(l, START, &err), LIMITS_OK);
    assert_int_equal(ask(l, START, &err), LIMITS_REQUESTS);
    key_limits_end(l);
    key_limits_unref(l);
}

static void test_tokens_are_charged_and_come_back(void **state)
{
    struct key_limits *l = limits(0, 600, 0);
    struct error err;
    assert_int_equal(key_limits_charge(l, 601, START, &err), LIMITS_TOKENS);
    assert_int_equal(err.code, ERR_NO_FIT);
    assert_non_null(strstr(err.text, "601"));
    assert_int_equal(key_limits_charge(l, 600, START, &err), LIMITS_OK);
    assert_int_equal(key_limits_charge(l, 100, START, &err), LIMITS_TOKENS);
    assert_int_equal(err.code, ERR_BUSY);
    assert_int_equal(err.retry_after_s, 10);
    key_limits_refund(l, 100, START);
    assert_int_equal(key_limits_charge(l, 100, START, &err), LIMITS_OK);
    /* What comes back after a refill fills no bucket beyond its brim. */
    key_limits_refund(l, 600, START + 60 * SECOND);
    assert_int_equal(key_limits_charge(l, 600, START + 60 * SECOND, &err), LIMITS_OK);
    assert_int_equal(key_limits_charge(l, 1, START + 60 * SECOND, &err), LIMITS_TOKENS);
    assert_int_equal(key_limits_charge(l, INT64_MAX, START, &err), LIMITS_TOKENS);
    key_limits_unref(l);
}

static void test_no_limits(void **state)
{
    struct key_limits *l = limits(0, 0, 0);
    struct error err;
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    for (int i = 0; i < 1000; i++) assert_int_equal(key_limits_begin(l, START, &err), LIMITS_OK);
    assert_int_equal(key_limits_charge(l, INT64_MAX, START, &err), LIMITS_OK);
    key_limits_refund(l, INT64_MAX, START);
    for (int i = 0; i < 1000; i++) key_limits_end(l);
    key_limits_add_headers(l, START, r);
    assert_null(MHD_get_response_header(r, "x-ratelimit-limit-requests"));
    assert_null(MHD_get_response_header(r, "x-ratelimit-limit-tokens"));
    MHD_destroy_response(r);
    key_limits_unref(l);
}

static void test_headers(void **state)
{
    struct key_limits *l = limits(60, 6000, 0);
    struct error err;
    assert_int_equal(ask(l, START, &err), LIMITS_OK);
    assert_int_equal(key_limits_charge(l, 6000, START, &err), LIMITS_OK);
    static const struct { const char *name, *value; } want[] = {
        {"x-ratelimit-limit-requests", "60"},  {"x-ratelimit-remaining-requests", "59"},
        {"x-ratelimit-reset-requests", "500ms"}, {"x-ratelimit-limit-tokens", "6000"},
        {"x-ratelimit-remaining-tokens", "50"},  {"x-ratelimit-reset-tokens", "59.5s"},
    };
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    key_limits_add_headers(l, START + SECOND / 2, r);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        const char *value = MHD_get_response_header(r, want[i].name);
        assert_non_null(value);
        assert_string_equal(value, want[i].value);
    }
    MHD_destroy_response(r);
    key_limits_unref(l);
}

static void test_durations(void **state)
{
    static const struct { int64_t ns; const char *text; } cases[] = {
        {0, "0ms"}, {1, "1ms"}, {12 * 1000000, "12ms"}, {999000000, "999ms"},
        {1000000000, "1s"}, {1234000000, "1.24s"}, {59990000000, "59.99s"},
        {60000000000, "1m0s"}, {125000000000, "2m5s"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[32];
        limits_format_duration(cases[i].ns, text, sizeof text);
        assert_string_equal(text, cases[i].text);
    }
}

enum { THREADS = 4, ROUNDS = 2000 };

static void *spend(void *arg)
{
    struct key_limits *l = arg;
    struct error err;
    intptr_t taken = 0;
    for (int i = 0; i < ROUNDS; i++) {
        if (key_limits_begin(l, START, &err) != LIMITS_OK) continue;
        if (key_limits_charge(l, 3, START, &err) == LIMITS_OK) {
            key_limits_refund(l, 2, START);
            taken++;
        }
        key_limits_end(l);
    }
    key_limits_unref(l);
    return (void *)taken;
}

static void test_threads_lose_nothing(void **state)
{
    struct key_limits *l = limits(1 << 20, 1000, THREADS);
    pthread_t threads[THREADS];
    intptr_t total = 0;
    struct error err;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, spend, key_limits_ref(l)), 0);
    for (int i = 0; i < THREADS; i++) {
        void *taken;
        pthread_join(threads[i], &taken);
        total += (intptr_t)taken;
    }
    assert_in_range(total, 998, 1000); /* the last two do not cover a charge */
    assert_int_equal(key_limits_charge(l, 1000 - total + 1, START, &err), LIMITS_TOKENS);
    if (total < 1000) assert_int_equal(key_limits_charge(l, 1000 - total, START, &err), LIMITS_OK);
    key_limits_unref(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_refill_steadily),
        cmocka_unit_test(test_requests_at_once),
        cmocka_unit_test(test_tokens_are_charged_and_come_back),
        cmocka_unit_test(test_no_limits),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
