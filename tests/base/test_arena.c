/* Tests of base/arena.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"

static void test_memory_is_aligned_zeroed_and_apart(void **state)
{
    struct arena a;
    unsigned char *at[300];
    arena_init(&a, 1 << 20);
    for (size_t i = 0; i < 300; i++) {
        at[i] = arena_alloc(&a, i);
        assert_non_null(at[i]);
        assert_int_equal((uintptr_t)at[i] % 16, 0);
        for (size_t j = 0; j < i; j++) assert_int_equal(at[i][j], 0);
        memset(at[i], (int)(i % 251) + 1, i);
    }
    for (size_t i = 0; i < 300; i++)
        for (size_t j = 0; j < i; j++) assert_int_equal(at[i][j], i % 251 + 1);
    arena_free(&a);
}

static void test_larger_than_a_chunk(void **state)
{
    struct arena a;
    arena_init(&a, 1 << 20);
    char *big = arena_alloc(&a, 100000);
    char *small = arena_alloc(&a, 8);
    assert_non_null(big);
    assert_non_null(small);
    memset(big, 1, 100000);
    memset(small, 2, 8);
    assert_int_equal(big[99999], 1);
    arena_free(&a);
}

static void test_the_limit_holds(void **state)
{
    struct arena a;
    arena_init(&a, 64);
    assert_non_null(arena_alloc(&a, 48));
    assert_null(arena_alloc(&a, 17));
    assert_non_null(arena_alloc(&a, 16));
    assert_null(arena_alloc(&a, 0)); /* even nothing has an address of its own */
    assert_int_equal(a.used, 64);
    arena_free(&a);
    assert_int_equal(a.used, 0);
    assert_non_null(arena_alloc(&a, 64));
    arena_free(&a);
}

static void test_absurd_sizes_are_refused(void **state)
{
    struct arena a;
    arena_init(&a, SIZE_MAX);
    assert_null(arena_array(&a, SIZE_MAX / 2, 3));
    assert_null(arena_copy(&a, "x", SIZE_MAX));
    arena_init(&a, 1000);
    assert_null(arena_alloc(&a, SIZE_MAX));
    assert_null(arena_alloc(&a, SIZE_MAX - 8));
    arena_free(&a);
}

static void test_copies_end_in_nul(void **state)
{
    struct arena a;
    arena_init(&a, 1000);
    char *s = arena_copy(&a, "abcdef", 3);
    assert_memory_equal(s, "abc", 4);
    assert_string_equal(arena_strdup(&a, "text"), "text");
    assert_string_equal(arena_copy(&a, NULL, 0), "");
    arena_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_aligned_zeroed_and_apart),
        cmocka_unit_test(test_larger_than_a_chunk),
        cmocka_unit_test(test_the_limit_holds),
        cmocka_unit_test(test_absurd_sizes_are_refused),
        cmocka_unit_test(test_copies_end_in_nul),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
