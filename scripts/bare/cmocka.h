/* The part of cmocka that the tests of cuda/ use: see README.md. */
#pragma once

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct CMUnitTest { const char *name; void (*test)(void **state); };
#define cmocka_unit_test(f) {#f, f}
#define cmocka_run_group_tests(tests, setup, teardown) \
    bare_run_tests(tests, sizeof(tests) / sizeof *(tests))

int bare_run_tests(const struct CMUnitTest *tests, size_t n); /* how many failed */
void cmocka_set_test_filter(const char *pattern);             /* '*' and '?' */

/* These end the test. */
_Noreturn void bare_skip(void);
_Noreturn void bare_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void bare_same_integers(long long a, long long b, const char *what, const char *file, int line);
void bare_same_bytes(const void *a, const void *b, size_t n, const char *file, int line);

#define print_message(...) ((void)printf(__VA_ARGS__))
#define skip() bare_skip()
#define fail_msg(...) bare_fail(__FILE__, __LINE__, __VA_ARGS__)
#define assert_true(c) ((c) ? (void)0 : bare_fail(__FILE__, __LINE__, "not true: %s", #c))
#define assert_false(c) ((c) ? bare_fail(__FILE__, __LINE__, "not false: %s", #c) : (void)0)
#define assert_non_null(p) assert_true((p) != NULL)
#define assert_null(p) assert_true((p) == NULL)
#define assert_int_equal(a, b) \
    bare_same_integers((long long)(a), (long long)(b), #a, __FILE__, __LINE__)
#define assert_memory_equal(a, b, n) bare_same_bytes(a, b, n, __FILE__, __LINE__)
