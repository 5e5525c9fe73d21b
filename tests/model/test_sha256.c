/* SHA-256 in pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "model/sha256.h"

static void test_pieces_make_the_whole(void **state)
{
    /* FIPS 180-4's example. */
    const char *abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct sha256 s;
    char hex[SHA256_HEX];
    sha256_begin(&s);
    sha256_update(&s, "a", 1);
    sha256_update(&s, "bc", 2);
    assert_true(sha256_end(&s, hex, NULL));
    assert_string_equal(hex, abc);
    sha256_begin(&s);
    assert_true(sha256_end(&s, NULL, NULL));
}

static void test_what_could_not_begin_says_so_at_its_end(void **state)
{
    struct sha256 s = {NULL};
    struct error err;
    char hex[SHA256_HEX];
    sha256_update(&s, "abc", 3);
    assert_false(sha256_end(&s, hex, &err));
    assert_int_equal(err.code, ERR_MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_make_the_whole),
        cmocka_unit_test(test_what_could_not_begin_says_so_at_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
