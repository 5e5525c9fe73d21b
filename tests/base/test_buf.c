/* Tests of base/buf.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"

static void test_appends(void **state)
{
    struct buf b;
    buf_init(&b, 1000);
    assert_null(b.data);
    buf_puts(&b, "one ");
    buf_putc(&b, '2');
    buf_printf(&b, " %s %d", "three", 4);
    buf_append(&b, "\0x", 2);
    assert_int_equal(b.len, 15);
    assert_memory_equal(b.data, "one 2 three 4\0x", 16); /* and a NUL after it */
    assert_true(buf_check(&b, "it", NULL));
    buf_free(&b);
    assert_null(b.data);
    assert_int_equal(b.limit, 1000);
}

static void test_growth_keeps_the_bytes(void **state)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    for (int i = 0; i < 10000; i++) buf_printf(&b, "%05d", i);
    assert_int_equal(b.len, 50000);
    for (int i = 0; i < 10000; i++) assert_int_equal(strtol((char[]){
        b.data[5 * i], b.data[5 * i + 1], b.data[5 * i + 2], b.data[5 * i + 3], b.data[5 * i + 4],
        0}, NULL, 10), i);
    buf_free(&b);
}

static void test_the_limit_is_exact_and_sticks(void **state)
{
    struct buf b;
    struct error err;
    buf_init(&b, 4);
    buf_puts(&b, "abcd");
    assert_true(buf_check(&b, "it", &err));
    buf_putc(&b, 'e');
    assert_true(b.failed);
    assert_null(b.data);
    buf_putc(&b, 'f');
    assert_true(b.failed);
    assert_int_equal(b.len, 0);
    assert_false(buf_check(&b, "the reply", &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_string_equal(err.text, "the reply is over its limit of 4 bytes");
    assert_null(buf_take(&b, NULL));
    buf_clear(&b);
    buf_puts(&b, "ok");
    assert_string_equal(b.data, "ok");
    buf_free(&b);
}

/* The allocator's refusal is not the limit's. */
static void test_no_memory_is_said(void **state)
{
#ifdef __SANITIZE_ADDRESS__
    skip(); /* it ends a program that asks for so much */
#endif
    struct buf b;
    struct error err;
    buf_init(&b, SIZE_MAX);
    buf_puts(&b, "x");
    buf_append(&b, "x", (size_t)1 << 60);
    assert_true(b.failed);
    assert_false(buf_check(&b, "the reply", &err));
    assert_int_equal(err.code, ERR_MEMORY);
    assert_string_equal(err.text, "no memory for the reply");
    buf_clear(&b);
    buf_puts(&b, "y");
    assert_true(buf_check(&b, "the reply", &err));
    buf_free(&b);
}

static void test_printf_past_the_limit_fails(void **state)
{
    struct buf b;
    buf_init(&b, 8);
    buf_printf(&b, "%s", "123456789");
    assert_true(b.failed);
    buf_free(&b);
}

static void test_huge_appends_do_not_wrap_around(void **state)
{
    struct buf b;
    buf_init(&b, SIZE_MAX - 1);
    buf_puts(&b, "x");
    buf_append(&b, "y", SIZE_MAX - 1);
    assert_true(b.failed);
    buf_free(&b);
}

static void test_take_hands_the_bytes_over(void **state)
{
    struct buf b;
    size_t n = 99;
    buf_init(&b, 100);
    char *empty = buf_take(&b, &n);
    assert_string_equal(empty, "");
    assert_int_equal(n, 0);
    free(empty);
    buf_puts(&b, "bytes");
    char *bytes = buf_take(&b, &n);
    assert_string_equal(bytes, "bytes");
    assert_int_equal(n, 5);
    assert_null(b.data);
    free(bytes);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_appends),
        cmocka_unit_test(test_growth_keeps_the_bytes),
        cmocka_unit_test(test_the_limit_is_exact_and_sticks),
        cmocka_unit_test(test_no_memory_is_said),
        cmocka_unit_test(test_printf_past_the_limit_fails),
        cmocka_unit_test(test_huge_appends_do_not_wrap_around),
        cmocka_unit_test(test_take_hands_the_bytes_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
