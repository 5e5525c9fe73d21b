/* A runner for lists of tests: see cmocka.h. */
#include <cmocka.h>

#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum outcome { RUNNING, FAILED, SKIPPED };

/* One program, one thread that runs tests. */
static jmp_buf out_of_test;
static const char *only = "*";

void cmocka_set_test_filter(const char *pattern) { only = pattern; }

void bare_skip(void) { longjmp(out_of_test, SKIPPED); }

void bare_fail(const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("# %s:%d: ", file, line);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    longjmp(out_of_test, FAILED);
}

void bare_same_integers(long long a, long long b, const char *what, const char *file, int line)
{
    if (a != b) bare_fail(file, line, "%s is %lld, not %lld", what, a, b);
}

void bare_same_bytes(const void *a, const void *b, size_t n, const char *file, int line)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            bare_fail(file, line, "byte %zu of %zu is %02x, not %02x", i, n, x[i], y[i]);
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int bare_run_tests(const struct CMUnitTest *tests, size_t n)
{
    volatile int number = 0, failed = 0; /* kept over longjmp */
    for (volatile size_t i = 0; i < n; i++) {
        if (fnmatch(only, tests[i].name, 0) != 0) continue;
        number = number + 1;
        volatile double begin = seconds_now();
        printf("# %s\n", tests[i].name); /* who is at work, should it never come back */
        fflush(stdout);
        enum outcome outcome = (enum outcome)setjmp(out_of_test);
        if (outcome == RUNNING) {
            void *state = NULL;
            tests[i].test(&state);
        }
        failed = failed + (outcome == FAILED);
        printf("%s %d - %s%s (%.2f s)\n", outcome == FAILED ? "not ok" : "ok", number,
               tests[i].name, outcome == SKIPPED ? " # SKIP" : "", seconds_now() - begin);
        fflush(stdout);
    }
    printf("1..%d\n", number);
    return number > 0 ? failed : 1;
}
