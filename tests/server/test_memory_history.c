/* Tests of server/memory_history.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "server/memory_history.h"

/* Numbers its samples. */
static void count_samples(void *ctx, struct api_memory_sample *out)
{
    int64_t *n = ctx;
    *out = (struct api_memory_sample){.time = ++*n};
}

static struct api_memory_sample at[MEMORY_HISTORY_SAMPLES];

static void test_the_newest_is_kept_for_a_second(void **state)
{
    int64_t n = 0;
    struct memory_history *h;
    struct error err;
    assert_true(memory_history_start(count_samples, &n, &h, &err));
    struct api_memory_sample a = memory_history_now(h), b = memory_history_now(h);
    assert_true(a.time >= 1 && b.time - a.time <= 1); /* the thread takes one of its own */
    for (int i = 0; i < 1000; i++) b = memory_history_now(h);
    assert_true(b.time <= 3);
    memory_history_stop(h);
    memory_history_stop(NULL);
}

static void test_the_ring_keeps_the_last_hour(void **state)
{
    enum { MORE = 5 };
    int64_t n = 0;
    struct memory_history *h;
    struct error err;
    assert_true(memory_history_start(count_samples, &n, &h, &err));
    for (int64_t i = 0; i < MEMORY_HISTORY_SAMPLES + MORE; i++)
        memory_history_add(h, &(struct api_memory_sample){.time = 1000 + i});
    size_t there = memory_history_copy(h, at);
    memory_history_stop(h);
    assert_int_equal(there, MEMORY_HISTORY_SAMPLES);
    /* The thread's own sample may have come at any place: all others are in order, to the
     * newest. */
    int64_t last = 0;
    size_t own = 0;
    for (size_t i = 0; i < there; i++) {
        if (at[i].time < 1000) {
            own++;
            continue;
        }
        assert_true(last == 0 || at[i].time == last + 1);
        last = at[i].time;
    }
    assert_true(own <= 1);
    assert_int_equal(last, 1000 + MEMORY_HISTORY_SAMPLES + MORE - 1);
}

static void test_it_begins_with_what_is_there(void **state)
{
    int64_t n = 0;
    struct memory_history *h;
    struct error err;
    assert_true(memory_history_start(count_samples, &n, &h, &err));
    memory_history_add(h, &(struct api_memory_sample){.time = 99});
    size_t there = memory_history_copy(h, at);
    assert_true(there == 1 || there == 2);
    memory_history_stop(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_newest_is_kept_for_a_second),
        cmocka_unit_test(test_the_ring_keeps_the_last_hour),
        cmocka_unit_test(test_it_begins_with_what_is_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
