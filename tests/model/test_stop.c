/* Stop strings: the matcher against a naive search of the whole text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/stop.h"

static void add(struct stop_list *l, const char *s)
{
    l->at[l->n].bytes = s;
    l->at[l->n++].n = strlen(s);
}

static void test_spans_pushes(void **state)
{
    (void)state;
    struct stop_list l = {0};
    add(&l, "\nUser:");
    struct stop_matcher m = {0};
    assert_false(stop_push(&l, &m, "Hello", 5));
    assert_int_equal(m.safe, 5);
    assert_false(stop_push(&l, &m, ".\nUs", 4));
    assert_int_equal(m.safe, 6); /* "\nUs" is held back */
    assert_false(stop_push(&l, &m, "age\nUse", 7));
    assert_int_equal(m.safe, 12);
    assert_true(stop_push(&l, &m, "r: and more", 11));
    assert_int_equal(m.safe, 12);
    assert_int_equal(m.which, 0);
    assert_true(stop_push(&l, &m, "ignored", 7));
    assert_int_equal(m.safe, 12);
}

static void test_equal_ends_longest_wins(void **state)
{
    (void)state;
    struct stop_list l = {0};
    add(&l, "c");
    add(&l, "abc");
    add(&l, "bc");
    struct stop_matcher m = {0};
    assert_true(stop_push(&l, &m, "xabc", 4));
    assert_int_equal(m.which, 1);
    assert_int_equal(m.safe, 1);
}

static void test_earlier_end_wins_over_longer(void **state)
{
    (void)state;
    struct stop_list l = {0};
    add(&l, "abcd");
    add(&l, "bc");
    struct stop_matcher m = {0};
    assert_true(stop_push(&l, &m, "abcd", 4));
    assert_int_equal(m.which, 1);
    assert_int_equal(m.safe, 1);
}

static void test_longest_allowed(void **state)
{
    (void)state;
    char s[STOP_MAX_BYTES];
    memset(s, 'a', sizeof s);
    s[sizeof s - 1] = 'b';
    struct stop_list l = {.n = 1};
    l.at[0].bytes = s;
    l.at[0].n = sizeof s;
    struct stop_matcher m = {0};
    for (int i = 0; i < 1000; i++) assert_false(stop_push(&l, &m, "a", 1));
    assert_int_equal(m.safe, 1000 - (STOP_MAX_BYTES - 1));
    assert_true(stop_push(&l, &m, "b", 1));
    assert_int_equal(m.safe, 1001 - STOP_MAX_BYTES);
}

static void test_no_strings(void **state)
{
    (void)state;
    struct stop_list l = {0};
    struct stop_matcher m = {0};
    assert_false(stop_push(&l, &m, "abc", 3));
    assert_int_equal(m.safe, 3);
}

/* The end of the first match in text[0..n), or -1; *begin and *which as stop.h rules. */
static int64_t naive(const struct stop_list *l, const char *text, int64_t n, int64_t *begin,
                     int *which)
{
    for (int64_t end = 1; end <= n; end++) {
        size_t best = 0;
        for (int i = 0; i < l->n; i++) {
            size_t k = l->at[i].n;
            if ((int64_t)k <= end && k > best && memcmp(text + end - k, l->at[i].bytes, k) == 0) {
                best = k;
                *which = i;
            }
        }
        *begin = end - (int64_t)best;
        if (best) return end;
    }
    return -1;
}

/* Bytes at the end of text that begin some stop string. */
static int64_t naive_held(const struct stop_list *l, const char *text, int64_t n)
{
    int64_t held = 0;
    for (int i = 0; i < l->n; i++)
        for (int64_t k = 1; k < (int64_t)l->at[i].n && k <= n; k++)
            if (memcmp(text + n - k, l->at[i].bytes, (size_t)k) == 0 && k > held) held = k;
    return held;
}

static void one_random_case(void)
{
    char text[60], stops[STOP_MAX][8];
    struct stop_list l = {0};
    int letters = 1 + rand() % 3, max_len = 1 + rand() % 7;
    for (int i = rand() % 5; i > 0; i--) {
        size_t n = 1 + (size_t)(rand() % max_len);
        for (size_t j = 0; j < n; j++) stops[l.n][j] = (char)('a' + rand() % letters);
        l.at[l.n].bytes = stops[l.n];
        l.at[l.n++].n = n;
    }
    for (size_t j = 0; j < sizeof text; j++) text[j] = (char)('a' + rand() % letters);

    struct stop_matcher m = {0};
    for (int64_t at = 0; at < (int64_t)sizeof text;) {
        int64_t n = rand() % 9;
        if (n > (int64_t)sizeof text - at) n = (int64_t)sizeof text - at;
        int64_t safe_before = m.safe;
        bool matched = stop_push(&l, &m, text + at, (size_t)n);
        at += n;
        int64_t begin = 0;
        int which = -1;
        assert_int_equal(matched, naive(&l, text, at, &begin, &which) >= 0);
        assert_true(m.safe >= safe_before);
        if (matched) {
            assert_int_equal(m.safe, begin);
            assert_int_equal(m.which, which);
            return;
        }
        assert_int_equal(m.n_seen, at);
        assert_int_equal(m.safe, at - naive_held(&l, text, at));
    }
}

static void test_against_naive_search(void **state)
{
    (void)state;
    srand(1);
    for (int i = 0; i < 50000; i++) one_random_case();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spans_pushes),
        cmocka_unit_test(test_equal_ends_longest_wins),
        cmocka_unit_test(test_earlier_end_wins_over_longer),
        cmocka_unit_test(test_longest_allowed),
        cmocka_unit_test(test_no_strings),
        cmocka_unit_test(test_against_naive_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
