/* Suggestions for mistyped names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/options.h"

static const char *const names[] = {"n_layer",    "n_head",     "n_embd",
                                    "block_size", "batch_size", "seed"};
enum { N_NAMES = sizeof names / sizeof *names };

static void test_nearest_by_edits(void **state)
{
    assert_string_equal(nearest_name("n_layers", names, N_NAMES), "n_layer");
    assert_string_equal(nearest_name("n_heads", names, N_NAMES), "n_head");
    assert_string_equal(nearest_name("nembd", names, N_NAMES), "n_embd");
    assert_string_equal(nearest_name("blok_sise", names, N_NAMES), "block_size");
    assert_string_equal(nearest_name("sede", names, N_NAMES), "seed");
    assert_string_equal(nearest_name("seed", names, N_NAMES), "seed");
}

static void test_ties_go_to_the_first(void **state)
{
    const char *const two[] = {"abcd", "abce"};
    assert_string_equal(nearest_name("abcx", two, 2), "abcd");
}

static void test_far_names_have_no_nearest(void **state)
{
    assert_null(nearest_name("learning_rate", names, N_NAMES));
    assert_null(nearest_name("", names, N_NAMES));
    assert_null(nearest_name("x", names, N_NAMES));
    assert_null(nearest_name("n_layer", names, 0));
}

static void test_overlong_names_have_no_nearest(void **state)
{
    char name[201];
    memset(name, 'n', 200);
    name[200] = 0;
    const char *const candidates[] = {name};
    assert_null(nearest_name(name, names, N_NAMES));
    assert_null(nearest_name("nnn", candidates, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest_by_edits),
        cmocka_unit_test(test_ties_go_to_the_first),
        cmocka_unit_test(test_far_names_have_no_nearest),
        cmocka_unit_test(test_overlong_names_have_no_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
