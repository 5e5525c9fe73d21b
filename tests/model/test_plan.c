/* The plan is the allocation: two passes over the same layout agree to the byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/device.h"
#include "model/plan.h"

struct thing { float *a; char *b; int *none; };

static void layout(struct plan *p, struct thing *t)
{
    t->a = plan_take(p, MEMORY_WEIGHTS, 1000, sizeof(float));
    t->b = plan_take(p, MEMORY_HOST, 1, 1);
    t->none = plan_take(p, MEMORY_STAGING, 0, sizeof(int));
}

static void test_second_pass_hands_out_what_the_first_planned(void **state)
{
    struct plan p;
    struct thing t;
    plan_init(&p);
    layout(&p, &t);
    assert_null(t.a);
    assert_int_equal(p.total, 4096 + DEVICE_ALIGN);
    assert_int_equal(p.component[MEMORY_WEIGHTS], 4096);
    assert_int_equal(p.component[MEMORY_HOST], DEVICE_ALIGN);
    assert_int_equal(p.component[MEMORY_STAGING], 0);

    char *arena = aligned_alloc(DEVICE_ALIGN, (size_t)p.total);
    plan_restart(&p, arena);
    assert_false(plan_matches(&p));
    layout(&p, &t);
    assert_true(plan_matches(&p));
    assert_ptr_equal(t.a, arena);
    assert_ptr_equal(t.b, arena + 4096);
    assert_null(t.none);
    free(arena);
}

static void test_sizes_that_do_not_fit_are_marked_not_wrapped(void **state)
{
    struct plan p;
    plan_init(&p);
    plan_take(&p, MEMORY_WEIGHTS, INT64_MAX / 2, 3);
    assert_true(p.overflow);
    plan_init(&p);
    plan_take(&p, MEMORY_WEIGHTS, INT64_MAX / 2, 1);
    assert_false(p.overflow);
    plan_take(&p, MEMORY_WEIGHTS, INT64_MAX / 2, 1);
    plan_take(&p, MEMORY_WEIGHTS, INT64_MAX / 2, 1);
    assert_true(p.overflow);
    assert_false(plan_matches(&p));
}

static void test_every_component_has_a_name(void **state)
{
    for (int c = 0; c < N_MEMORY_COMPONENTS; c++)
        assert_true(memory_component_name((enum memory_component)c)[0] != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_second_pass_hands_out_what_the_first_planned),
        cmocka_unit_test(test_sizes_that_do_not_fit_are_marked_not_wrapped),
        cmocka_unit_test(test_every_component_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
