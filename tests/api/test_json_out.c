/* The JSON writer: what it writes parses back, whatever the bytes and numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/json_out.h"
#include "base/json.h"
#include "base/utf8.h"

static struct buf out;

typedef void (*write_fn)(struct buf *, const char *, size_t);

static const char *written(write_fn write, const char *s, size_t n)
{
    buf_clear(&out);
    write(&out, s, n);
    return out.data;
}

static void test_escapes(void **state)
{
    static const struct { const char *in, *want; } cases[] = {
        {"", "\"\""}, {"abc", "\"abc\""},
        {"a\"b\\c", "\"a\\\"b\\\\c\""}, {"\n\r\t", "\"\\n\\r\\t\""},
        {"\x01\x1f\x7f", "\"\\u0001\\u001f\\u007f\""},
        {"\xC3\xA9\xF0\x9F\x98\x80/", "\"\xC3\xA9\xF0\x9F\x98\x80/\""}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *in = cases[i].in;
        assert_string_equal(written(json_out_string, in, strlen(in)), cases[i].want);
    }
    assert_string_equal(written(json_out_string, "a\0b", 3), "\"a\\u0000b\"");
}

/* As Python's bytes.decode("utf-8", "replace") does it. */
static void test_invalid_utf8_is_replaced(void **state)
{
    static const struct { const char *in, *want; } cases[] = {
        {"\xFF", "?"}, {"a\xC3", "a?"}, {"\xC3z", "?z"}, {"\xE2\x82", "?"}, {"\xE2\x82z", "?z"},
        {"\xF0\x9F\x98", "?"}, {"\xF0\x9F\x98\xC3\xA9", "?\xC3\xA9"}, {"\xED\xA0\x80", "???"},
        {"\xC0\x80", "??"}, {"\x80\x80", "??"}, {"\xF4\x90\x80\x80", "????"},
        {"\xE2\xE2\x82\xAC", "?\xE2\x82\xAC"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buf want;
        buf_init(&want, 100);
        for (const char *p = cases[i].want; *p; p++) {
            if (*p == '?') buf_puts(&want, UTF8_REPLACEMENT);
            else buf_putc(&want, *p);
        }
        assert_string_equal(written(json_out_escape, cases[i].in, strlen(cases[i].in)), want.data);
        buf_free(&want);
    }
}

static void test_any_bytes_make_valid_json(void **state)
{
    uint32_t rng = 1;
    for (int round = 0; round < 20000; round++) {
        char bytes[12];
        for (size_t i = 0; i < sizeof bytes; i++) {
            rng = rng * 1664525 + 1013904223;
            /* Mostly beginnings and continuations. */
            static const unsigned char often[] = {0xC3, 0xE2, 0xF0, 0x9F, 0x80, 0xA9, 0xED, '"'};
            bytes[i] = (char)(rng >> 31 ? often[rng >> 16 & 7] : rng >> 20 & 0xFF);
            if (bytes[i] == 0) bytes[i] = 1;
        }
        written(json_out_string, bytes, sizeof bytes);
        struct error err;
        struct cJSON *item = json_parse(out.data, out.len, 2, "written", &err);
        assert_non_null(item);
        if (utf8_valid(bytes, sizeof bytes, NULL))
            assert_memory_equal(item->valuestring, bytes, sizeof bytes);
        cJSON_Delete(item);
    }
}

static void test_floats_read_back(void **state)
{
    static const float values[] = {0, -0.0f, 1, -1.5f, 0.1f, 1e-30f, 3.4028235e38f,
                                   1.1754944e-38f, 1e-45f, -0.34657359f, 16777217.0f, 123456.789f};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        buf_clear(&out);
        json_out_float(&out, values[i]);
        assert_true(strtof(out.data, NULL) == values[i]);
        buf_clear(&out);
        json_out_double(&out, (double)values[i] / 3);
        assert_true(strtod(out.data, NULL) == (double)values[i] / 3);
    }
    buf_clear(&out);
    json_out_float(&out, 0.1f);
    assert_string_equal(out.data, "0.1");
}

static void test_what_is_not_finite(void **state)
{
    buf_clear(&out);
    json_out_float(&out, NAN);
    json_out_float(&out, INFINITY);
    json_out_double(&out, -INFINITY);
    assert_string_equal(out.data, "nullnullnull");
    buf_clear(&out);
    json_out_logprob(&out, -INFINITY);
    assert_string_equal(out.data, "-9999.0");
    buf_clear(&out);
    json_out_logprob(&out, NAN);
    assert_string_equal(out.data, "-9999.0");
    buf_clear(&out);
    json_out_logprob(&out, -0.5f);
    assert_string_equal(out.data, "-0.5");
}

static void test_text(void **state)
{
    buf_clear(&out);
    json_out_text(&out, NULL);
    json_out_text(&out, "x");
    assert_string_equal(out.data, "null\"x\"");
}

static int set_up(void **state)
{
    buf_init(&out, 1000);
    return 0;
}

static int tear_down(void **state)
{
    buf_free(&out);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_invalid_utf8_is_replaced),
        cmocka_unit_test(test_any_bytes_make_valid_json),
        cmocka_unit_test(test_floats_read_back),
        cmocka_unit_test(test_what_is_not_finite),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
