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
    t->a = plan_take(p, MEMORY_WEIGHTS, "a", 1000, sizeof(float));
    t->b = plan_take(p, MEMORY_HOST, "b", 1, 1);
    t->none = plan_take(p, MEMORY_STAGING, "none", 0, sizeof(int));
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
    plan_take(&p, MEMORY_WEIGHTS, "w", INT64_MAX / 2, 3);
    assert_true(p.overflow);
    plan_init(&p);
    plan_take(&p, MEMORY_WEIGHTS, "w", INT64_MAX / 2, 1);
    assert_false(p.overflow);
    plan_take(&p, MEMORY_WEIGHTS, "w", INT64_MAX / 2, 1);
    plan_take(&p, MEMORY_WEIGHTS, "w", INT64_MAX / 2, 1);
    assert_true(p.overflow);
    assert_false(plan_matches(&p));
}

struct sides { char *before, *a, *b, *c, *after; };

static void layout_sides(struct plan *p, struct sides *s)
{
    s->before = plan_take(p, MEMORY_HOST, "before", 1, 1);
    plan_share_begin(p, LIFE_FORWARD);
    s->a = plan_take(p, MEMORY_ACTIVATIONS, "a", DEVICE_ALIGN, 1);
    plan_share_next(p, LIFE_LOGITS);
    s->b = plan_take(p, MEMORY_LOGITS, "b", DEVICE_ALIGN, 2);
    s->c = plan_take(p, MEMORY_ACTIVATIONS, "c", DEVICE_ALIGN, 1);
    plan_share_next(p, LIFE_BACKWARD_MLP);
    (void)plan_take(p, MEMORY_ACTIVATIONS, "d", DEVICE_ALIGN, 1);
    plan_share_end(p);
    s->after = plan_take(p, MEMORY_HOST, "after", 1, 1);
}

struct seen { int n; struct plan_item item[8]; };

static void see(void *ctx, const struct plan_item *item)
{
    struct seen *s = ctx;
    assert_true(s->n < 8);
    s->item[s->n++] = *item;
}

static void test_pieces_that_never_meet_share_bytes_and_the_larger_side_counts(void **state)
{
    struct plan p;
    struct sides s;
    struct seen seen = {0};
    plan_init(&p);
    p.see = see;
    p.ctx = &seen;
    layout_sides(&p, &s);
    assert_int_equal(p.total, 5 * DEVICE_ALIGN);
    assert_int_equal(p.component[MEMORY_LOGITS], 2 * DEVICE_ALIGN);
    assert_int_equal(p.component[MEMORY_ACTIVATIONS], DEVICE_ALIGN);
    assert_int_equal(p.component[MEMORY_HOST], 2 * DEVICE_ALIGN);

    assert_int_equal(seen.n, 6);
    assert_string_equal(seen.item[2].name, "b");
    assert_int_equal(seen.item[2].offset, seen.item[1].offset);
    assert_int_equal(seen.item[2].bytes, 2 * DEVICE_ALIGN);
    assert_int_equal(seen.item[2].life, LIFE_LOGITS);
    assert_int_equal(seen.item[4].life, LIFE_BACKWARD_MLP);
    assert_int_equal(seen.item[5].life, LIFE_RUN);
    assert_int_equal(seen.item[5].offset, 4 * DEVICE_ALIGN);

    char *arena = aligned_alloc(DEVICE_ALIGN, (size_t)p.total);
    plan_restart(&p, arena);
    layout_sides(&p, &s);
    assert_true(plan_matches(&p));
    assert_ptr_equal(s.a, s.b);
    assert_ptr_equal(s.c, s.b + 2 * DEVICE_ALIGN);
    assert_ptr_equal(s.after, arena + 4 * DEVICE_ALIGN);
    assert_int_equal(seen.n, 6); /* the second pass is nobody's news */
    free(arena);
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
        cmocka_unit_test(test_pieces_that_never_meet_share_bytes_and_the_larger_side_counts),
        cmocka_unit_test(test_every_component_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
