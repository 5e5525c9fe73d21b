/* Strict JSON parsing: what RFC 8259 allows is taken, everything else is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

static struct cJSON *parse(const char *text, struct error *err)
{
    /* An exact heap copy, so that the sanitizers see a read past the end. */
    size_t n = strlen(text);
    char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, text, n);
    struct cJSON *root = json_parse(copy, n, 8, "test", err);
    free(copy);
    return root;
}

static void refuse(const char *text, const char *why)
{
    struct error err = {0};
    assert_null(parse(text, &err));
    assert_int_equal(err.code, ERR_FORMAT);
    if (!strstr(err.text, why)) fail_msg("%s: expected \"%s\" in \"%s\"", text, why, err.text);
}

static void accept(const char *text)
{
    struct error err = {0};
    struct cJSON *root = parse(text, &err);
    if (!root) fail_msg("%s: %s", text, err.text);
    cJSON_Delete(root);
}

static void test_values_arrive(void **state)
{
    struct error err;
    struct cJSON *root = parse(" {\"a\": [1, -2.5e1, true, null],"
                               " \"A\": \"\\u00e9\\ud83d\\ude00\"}\n", &err);
    assert_non_null(root);
    const struct cJSON *a = json_get(root, "a");
    assert_int_equal(cJSON_GetArraySize(a), 4);
    assert_true(cJSON_GetArrayItem(a, 1)->valuedouble == -25.0);
    assert_string_equal(json_get(root, "A")->valuestring, "\xC3\xA9\xF0\x9F\x98\x80");
    assert_null(json_get(root, "b"));
    assert_null(json_get(a, "a"));
    cJSON_Delete(root);
}

static void test_valid_forms_are_accepted(void **state)
{
    accept("0");
    accept("-0.0E+10");
    accept("\"\"");
    accept("[]");
    accept("{ }");
    accept("[[[[[[[[]]]]]]]]");
    accept("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"");
    accept("{\"a\":{\"a\":{\"a\":1}}}");
}

static void test_malformed_text_is_refused(void **state)
{
    refuse("", "ends");
    refuse("{", "key in quotes");
    refuse("[1,]", "expected a value");
    refuse("[1 2]", "expected ',' or ']'");
    refuse("{\"a\" 1}", "expected ':'");
    refuse("{\"a\":1,}", "key in quotes");
    refuse("{a:1}", "key in quotes");
    refuse("nul", "expected a value");
    refuse("'a'", "expected a value");
    refuse("\"abc", "not closed");
    refuse("\"abc\\", "not closed");
    refuse("\"\\x\"", "unknown escape");
    refuse("\"\t\"", "control character");
    refuse("1 1", "more text");
    refuse("{} x", "more text");
    refuse("\xEF\xBB\xBF{}", "expected a value");
    refuse("NaN", "expected a value");
}

static void test_malformed_numbers_are_refused(void **state)
{
    refuse("01", "more text");
    refuse("1.", "digit after");
    refuse(".5", "expected a value");
    refuse("+1", "expected a value");
    refuse("-", "expected a value");
    refuse("1e", "exponent");
    refuse("0x10", "more text");
}

static void test_infinite_number_is_refused(void **state)
{
    refuse("[1e999]", "too large");
    refuse("-1e400", "too large");
    accept("1e-999");
}

static void test_overlong_number_is_refused(void **state)
{
    char text[80];
    memset(text, '1', sizeof text);
    text[63] = 0;
    accept(text);
    text[63] = '1';
    text[64] = 0;
    refuse(text, "63 characters");
}

static void test_nul_and_bad_unicode_are_refused(void **state)
{
    struct error err;
    assert_null(json_parse("\"a\0b\"", 5, 8, "test", &err));
    assert_null(json_parse(NULL, 0, 8, "test", &err));
    refuse("\"\\u0000\"", "u0000");
    refuse("\"\\ud800\"", "high surrogate");
    refuse("\"\\ud800\\u0041\"", "high surrogate");
    refuse("\"\\udc00\"", "low surrogate");
    refuse("\"\\u12g4\"", "hexadecimal");
    refuse("\"\\u12", "hexadecimal");
    refuse("\"\xC0\x80\"", "UTF-8");
    refuse("\"\xED\xA0\x80\"", "UTF-8");
}

static void test_duplicate_key_is_refused_by_name(void **state)
{
    struct error err;
    assert_null(parse("{\"seed\":1,\"b\":2,\"seed\":3}", &err));
    assert_int_equal(err.code, ERR_FORMAT);
    assert_string_equal(err.param, "seed");
    refuse("[{\"x\":{\"y\":1,\"\\u0079\":2}}]", "duplicate key \"y\"");
    accept("{\"a\":1,\"A\":2}");
}

static void test_deep_nesting_is_refused_before_recursion(void **state)
{
    refuse("[[[[[[[[[]]]]]]]]]", "deeper than 8");
    size_t n = 1000000;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, '[', n);
    struct error err;
    assert_null(json_parse(text, n, JSON_MAX_DEPTH, "test", &err));
    assert_non_null(strstr(err.text, "deeper than 256"));
    free(text);
}

static void test_integers(void **state)
{
    struct error err;
    struct cJSON *root = parse("[9007199254740992, 1.5, 1e16, \"1\", -3, 1e0]", &err);
    int64_t v = 7;
    assert_true(json_to_i64(cJSON_GetArrayItem(root, 0), &v));
    assert_true(v == (int64_t)1 << 53);
    assert_false(json_to_i64(cJSON_GetArrayItem(root, 1), &v));
    assert_false(json_to_i64(cJSON_GetArrayItem(root, 2), &v));
    assert_false(json_to_i64(cJSON_GetArrayItem(root, 3), &v));
    assert_false(json_to_i64(NULL, &v));
    assert_true(json_to_i64(cJSON_GetArrayItem(root, 4), &v));
    assert_int_equal(v, -3);
    assert_true(json_to_i64(cJSON_GetArrayItem(root, 5), &v));
    assert_int_equal(v, 1);
    assert_string_equal(json_type_name(cJSON_GetArrayItem(root, 3)), "a string");
    cJSON_Delete(root);
}

/* 100,000 keys take a fraction of a second; a quadratic check would take minutes. */
static void test_large_object_is_not_quadratic(void **state)
{
    size_t room = 100000 * 16, n = 0;
    char *text = malloc(room);
    assert_non_null(text);
    for (int i = 0; i < 100000; i++)
        n += (size_t)snprintf(text + n, room - n, "%c\"k%d\":0", i ? ',' : '{', i);
    text[n++] = '}';
    struct error err;
    struct cJSON *root = json_parse(text, n, 1, "test", &err);
    assert_non_null(root);
    cJSON_Delete(root);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_valid_forms_are_accepted),
        cmocka_unit_test(test_malformed_text_is_refused),
        cmocka_unit_test(test_malformed_numbers_are_refused),
        cmocka_unit_test(test_infinite_number_is_refused),
        cmocka_unit_test(test_overlong_number_is_refused),
        cmocka_unit_test(test_nul_and_bad_unicode_are_refused),
        cmocka_unit_test(test_duplicate_key_is_refused_by_name),
        cmocka_unit_test(test_deep_nesting_is_refused_before_recursion),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_large_object_is_not_quadratic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
