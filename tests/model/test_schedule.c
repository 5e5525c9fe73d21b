/* The learning rate's path: its ends, its formulas, and what "steps or a fraction" means. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "model/schedule.h"

static void close_to(double a, double b) { assert_true(fabs(a - b) <= 1e-15 + 1e-12 * fabs(b)); }

static struct schedule make(enum lr_schedule kind)
{
    return (struct schedule){.kind = kind, .learning_rate = 1e-3, .min_lr = 1e-4,
                             .max_iters = 1000, .warmup_iters = 100, .decay_iters = 200};
}

static void test_steps_or_a_fraction(void **state)
{
    assert_int_equal(schedule_steps(0, 1000), 0);
    assert_int_equal(schedule_steps(0.25, 1000), 250);
    assert_int_equal(schedule_steps(0.9999, 1000), 999);
    assert_int_equal(schedule_steps(1, 1000), 1);
    assert_int_equal(schedule_steps(300, 1000), 300);
    assert_int_equal(schedule_steps(2.75, 1000), 2);
    assert_int_equal(schedule_steps(1e9, 1000), 1000); /* no more than there are */
}

static void test_warm_up(void **state)
{
    for (int kind = LR_COSINE; kind <= LR_WSD; kind++) {
        struct schedule s = make((enum lr_schedule)kind);
        close_to(schedule_lr(&s, 1), 1e-5);
        close_to(schedule_lr(&s, 37), 37e-5);
        close_to(schedule_lr(&s, 100), 1e-3);
        s.warmup_iters = 0;
        assert_true(schedule_lr(&s, 1) > 0.99e-3);
    }
}

static void test_cosine(void **state)
{
    struct schedule s = make(LR_COSINE);
    close_to(schedule_lr(&s, 550), 5.5e-4); /* half way */
    close_to(schedule_lr(&s, 325), 1e-4 + 9e-4 * 0.5 * (1 + cos(M_PI / 4)));
    close_to(schedule_lr(&s, 1000), 1e-4);
    close_to(schedule_lr(&s, 5000), 1e-4);
}

static void test_linear(void **state)
{
    struct schedule s = make(LR_LINEAR);
    close_to(schedule_lr(&s, 550), 5.5e-4);
    close_to(schedule_lr(&s, 325), 7.75e-4);
    close_to(schedule_lr(&s, 1000), 1e-4);
}

static void test_constant(void **state)
{
    struct schedule s = make(LR_CONSTANT);
    for (int64_t step = 100; step <= 1000; step += 100) close_to(schedule_lr(&s, step), 1e-3);
}

static void test_wsd(void **state)
{
    struct schedule s = make(LR_WSD);
    close_to(schedule_lr(&s, 101), 1e-3);
    close_to(schedule_lr(&s, 800), 1e-3); /* stable to here */
    close_to(schedule_lr(&s, 850), 1e-4 + 9e-4 * (1 - sqrt(0.25)));
    close_to(schedule_lr(&s, 1000), 1e-4);
    s.decay_iters = 0;
    close_to(schedule_lr(&s, 1000), 1e-3);
}

/* Warm-up may be the whole run. */
static void test_nothing_but_warm_up(void **state)
{
    struct schedule s = make(LR_COSINE);
    s.warmup_iters = 1000;
    close_to(schedule_lr(&s, 999), 0.999e-3);
    close_to(schedule_lr(&s, 1000), 1e-3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_or_a_fraction),
        cmocka_unit_test(test_warm_up),
        cmocka_unit_test(test_cosine),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_constant),
        cmocka_unit_test(test_wsd),
        cmocka_unit_test(test_nothing_but_warm_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
