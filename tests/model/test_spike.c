/* Loss spikes: what is normal is let pass, what stays off is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "model/spike.h"

/* A falling, noisy loss; the noise repeats itself. */
static double usual(int64_t step)
{
    return 2 + 2 * exp(-(double)step / 50) + 0.1 * sin((double)step * 7);
}

static int64_t run(struct spike_watch *w, int64_t from, int64_t n)
{
    for (int64_t i = from; i < from + n; i++) assert_false(spike_watch_push(w, usual(i), 3));
    return from + n;
}

static void test_an_ordinary_run(void **state)
{
    struct spike_watch w = {0};
    run(&w, 0, 2000);
    assert_int_equal(w.n, 2000);
    assert_int_equal(w.off_in_a_row, 0);
}

static void test_single_outliers_pass(void **state)
{
    struct spike_watch w = {0};
    int64_t step = run(&w, 0, 200), n = w.n;
    for (int i = 0; i < 10; i++) {
        assert_false(spike_watch_push(&w, 9, 3));
        assert_int_equal(w.off_in_a_row, 1);
        assert_false(spike_watch_push(&w, 9, 3));
        step = run(&w, step, 20); /* back on the path */
        assert_int_equal(w.off_in_a_row, 0);
    }
    assert_int_equal(w.n, n + 200); /* outliers are not remembered */
}

static void test_divergence_is_found(void **state)
{
    struct spike_watch w = {0};
    run(&w, 0, 200);
    assert_false(spike_watch_push(&w, 4, 3));
    assert_false(spike_watch_push(&w, 5, 3));
    assert_true(spike_watch_push(&w, 6, 3));
}

static void test_a_small_rise_is_no_spike(void **state)
{
    struct spike_watch w = {0};
    for (int i = 0; i < 100; i++) /* no deviation at all */
        assert_false(spike_watch_push(&w, 2, 1));
    assert_false(spike_watch_push(&w, 2.9, 1));
    assert_true(spike_watch_push(&w, 3.1, 1));
}

/* Where losses differ widely from step to step, the bar is higher. */
static void test_noise_raises_the_bar(void **state)
{
    struct spike_watch w = {0};
    for (int i = 0; i < 100; i++) assert_false(spike_watch_push(&w, i % 2 ? 1 : 3, 1));
    assert_false(spike_watch_push(&w, 13, 1)); /* median 2, deviation 1: 2 + 11.86 */
    assert_true(spike_watch_push(&w, 14.5, 1));
}

static void test_the_beginning_is_free(void **state)
{
    struct spike_watch w = {0};
    for (int i = 0; i < SPIKE_MIN_LOSSES; i++) assert_false(spike_watch_push(&w, i % 5 * 10, 1));
    struct spike_watch steady = {0};
    for (int i = 0; i < SPIKE_MIN_LOSSES - 1; i++)
        assert_false(spike_watch_push(&steady, 1, 1));
    assert_false(spike_watch_push(&steady, 100, 1)); /* the last free one */
    assert_true(spike_watch_push(&steady, 100, 1));
}

static void test_patience_zero_is_off(void **state)
{
    struct spike_watch w = {0};
    run(&w, 0, 100);
    for (int i = 0; i < 100; i++) assert_false(spike_watch_push(&w, 1e6, 0));
    assert_int_equal(w.off_in_a_row, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_ordinary_run),
        cmocka_unit_test(test_single_outliers_pass),
        cmocka_unit_test(test_divergence_is_found),
        cmocka_unit_test(test_a_small_rise_is_no_spike),
        cmocka_unit_test(test_noise_raises_the_bar),
        cmocka_unit_test(test_the_beginning_is_free),
        cmocka_unit_test(test_patience_zero_is_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
