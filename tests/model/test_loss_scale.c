/* The loss's scale: grows after many finite steps, halves at one that is not,
 * ends where it can go no lower. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "model/loss_scale.h"

static void push(struct loss_scale *s, bool finite, int64_t n)
{
    struct error err;
    for (int64_t i = 0; i < n; i++)
        if (!loss_scale_update(s, finite, &err)) fail_msg("%s", err.text);
}

static void test_what_it_begins_with(void **state)
{
    struct loss_scale off = loss_scale_begin(0, DTYPE_BF16);
    assert_true(off.scale == 0 && loss_scale_factor(&off) == 1);
    struct loss_scale f16 = loss_scale_begin(0, DTYPE_F16);
    assert_true(f16.scale == 65536 && f16.grows && loss_scale_factor(&f16) == 65536);
    struct loss_scale fixed = loss_scale_begin(128, DTYPE_F16);
    assert_true(fixed.scale == 128 && !fixed.grows);
}

static void test_growth(void **state)
{
    struct loss_scale s = loss_scale_begin(0, DTYPE_F16);
    push(&s, true, LOSS_SCALE_GROWTH_INTERVAL - 1);
    assert_true(s.scale == 65536);
    push(&s, false, 1); /* begins to count anew */
    assert_true(s.scale == 32768 && s.skipped == 1);
    push(&s, true, LOSS_SCALE_GROWTH_INTERVAL - 1);
    assert_true(s.scale == 32768);
    push(&s, true, 1);
    assert_true(s.scale == 65536);
    push(&s, true, LOSS_SCALE_GROWTH_INTERVAL);
    assert_true(s.scale == 131072 && s.skipped == 1);
    push(&s, true, (int64_t)100 * LOSS_SCALE_GROWTH_INTERVAL);
    assert_true(s.scale == LOSS_SCALE_MAX);
}

static void test_a_fixed_one_only_falls(void **state)
{
    struct loss_scale s = loss_scale_begin(1024, DTYPE_F32);
    push(&s, true, (int64_t)3 * LOSS_SCALE_GROWTH_INTERVAL);
    assert_true(s.scale == 1024);
    push(&s, false, 2);
    push(&s, true, (int64_t)3 * LOSS_SCALE_GROWTH_INTERVAL);
    assert_true(s.scale == 256 && s.skipped == 2);
}

static void test_the_end(void **state)
{
    struct loss_scale s = loss_scale_begin(4, DTYPE_F32);
    struct error err;
    push(&s, false, 2);
    assert_true(s.scale == 1);
    assert_false(loss_scale_update(&s, false, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "no lower than 1"));
    assert_true(s.scale == 1 && s.skipped == 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_it_begins_with),
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_a_fixed_one_only_falls),
        cmocka_unit_test(test_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
