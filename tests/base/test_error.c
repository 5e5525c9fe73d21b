/* Tests of base/error.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

static void test_set_fills_everything(void **state)
{
    struct error err;
    assert_false(error_set(&err, ERR_FORMAT, "n_layer", "%s: %d", "config.json", 7));
    assert_int_equal(err.code, ERR_FORMAT);
    assert_string_equal(err.param, "n_layer");
    assert_string_equal(err.text, "config.json: 7");
    assert_false(error_set(&err, ERR_BUSY, NULL, "later"));
    assert_string_equal(err.param, "");
    assert_false(error_set(NULL, ERR_BUSY, NULL, "nobody listens"));
    assert_false(error_errno(NULL, "nobody listens"));
}

static void test_long_texts_end_in_dots(void **state)
{
    struct error err;
    char text[2000], param[200];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    memset(param, 'p', sizeof param - 1);
    param[sizeof param - 1] = 0;
    error_set(&err, ERR_INVALID, param, "%s", text);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    assert_string_equal(err.text + sizeof err.text - 5, "x...");
    assert_int_equal(strlen(err.param), sizeof err.param - 1);
}

static void test_a_text_may_be_part_of_itself(void **state)
{
    struct error err;
    error_set(&err, ERR_IO, NULL, "inner");
    error_set(&err, ERR_IO, NULL, "outer: %s", err.text);
    assert_string_equal(err.text, "outer: inner");
}

/* A name from outside must not begin a line of the log, or reach a terminal as a command. */
static void test_control_bytes_become_question_marks(void **state)
{
    struct error err;
    error_set(&err, ERR_INVALID, NULL, "no tensor %s\n", "a\nb\r\t\x1B[2J\x01\x7F z\xC3\xA9");
    assert_string_equal(err.text, "no tensor a?b???[2J?? z\xC3\xA9?");
}

static void test_errno_chooses_the_code(void **state)
{
    struct error err;
    errno = ENOENT;
    error_errno(&err, "cannot open %s", "x");
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_string_equal(err.text, "cannot open x: No such file or directory");
    errno = ENOMEM;
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_MEMORY);
    errno = EAGAIN; /* of a thread, or a process */
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_MEMORY);
    errno = ENOSPC;
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_DISK_FULL);
    errno = EDQUOT;
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_DISK_FULL);
    errno = EFBIG;
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_DISK_FULL);
    errno = EACCES;
    error_errno(&err, "x");
    assert_int_equal(err.code, ERR_IO);
}

static void test_every_code_has_its_own_name(void **state)
{
    for (int i = ERR_NONE; i <= ERR_INTERNAL; i++) {
        assert_string_not_equal(error_code_name((enum error_code)i), "unknown");
        for (int j = ERR_NONE; j < i; j++)
            assert_string_not_equal(error_code_name((enum error_code)i),
                                    error_code_name((enum error_code)j));
    }
    assert_string_equal(error_code_name((enum error_code)999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_fills_everything),
        cmocka_unit_test(test_long_texts_end_in_dots),
        cmocka_unit_test(test_a_text_may_be_part_of_itself),
        cmocka_unit_test(test_control_bytes_become_question_marks),
        cmocka_unit_test(test_errno_chooses_the_code),
        cmocka_unit_test(test_every_code_has_its_own_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
