/* Tests of base/utf8.c, against a decoder that is written from RFC 3629's table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"

static bool is_scalar(uint32_t cp) { return cp < 0x110000 && (cp < 0xD800 || cp > 0xDFFF); }

static void test_every_code_point_round_trips(void **state)
{
    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        if (!is_scalar(cp)) continue;
        char s[4];
        uint32_t back = ~cp;
        int n = utf8_encode(cp, s);
        assert_int_equal(n, cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4);
        assert_int_equal(utf8_decode(s, (size_t)n, &back), n);
        assert_int_equal(back, cp);
        for (int cut = 1; cut < n; cut++) assert_int_equal(utf8_decode(s, (size_t)cut, &back), -1);
    }
}

/* Two, three and four bytes read plainly, then checked for the shortest form and for being a
 * scalar. */
static bool reference_valid(const uint8_t *p, int n)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (n == 1) return p[0] < 0x80;
    static const uint8_t mask[] = {0, 0, 0xE0, 0xF0, 0xF8}, lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    if ((p[0] & mask[n]) != lead[n]) return false;
    uint32_t cp = (uint32_t)(p[0] & ~mask[n]);
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return false;
        cp = cp << 6 | (p[i] & 0x3F);
    }
    return cp >= least[n] && is_scalar(cp);
}

static void test_every_pair_of_bytes_like_the_table(void **state)
{
    static const uint8_t tails[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90,
                                    0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
    for (int first = 0; first < 256; first++)
        for (int second = 0; second < 256; second++)
            for (size_t i = 0; i < sizeof tails; i++)
                for (size_t j = 0; j < sizeof tails; j++) {
                    uint8_t p[4] = {(uint8_t)first, (uint8_t)second, tails[i], tails[j]};
                    uint32_t cp;
                    int expected = 0;
                    for (int n = 1; n <= 4; n++)
                        if (reference_valid(p, n)) expected = n;
                    assert_int_equal(utf8_decode((char *)p, 4, &cp), expected);
                }
}

static void test_valid_names_the_first_fault(void **state)
{
    size_t bad = 99;
    assert_true(utf8_valid("", 0, &bad));
    assert_true(utf8_valid("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 10, &bad));
    assert_int_equal(bad, 99);
    assert_false(utf8_valid("ab\xFF", 3, &bad));
    assert_int_equal(bad, 2);
    assert_false(utf8_valid("a\xE2\x82", 3, &bad)); /* cut short */
    assert_int_equal(bad, 1);
    assert_false(utf8_valid("\xED\xA0\x80", 3, NULL)); /* a surrogate */
}

static void test_complete(void **state)
{
    static const struct { const char *s; size_t n, complete; } cases[] = {
        {"", 0, 0},
        {"abc", 3, 3},
        {"a\xC3", 2, 1},
        {"a\xC3\xA9", 3, 3},
        {"a\xE2", 2, 1},
        {"a\xE2\x82", 3, 1},
        {"a\xE2\x82\xAC", 4, 4},
        {"\xF0\x9F\x98", 3, 0},
        {"\xF0\x9F\x98\x80", 4, 4},
        {"a\xFF", 2, 2},             /* invalid: nothing to wait for */
        {"\x80\x80\x80\x80", 4, 4},  /* the same */
        {"\xE2\xFF", 2, 2},
        {"\xED\xA0", 2, 2},          /* the beginning of a surrogate never becomes valid */
        {"\xC3\xA9\xC3", 3, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_complete(cases[i].s, cases[i].n), cases[i].complete);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point_round_trips),
        cmocka_unit_test(test_every_pair_of_bytes_like_the_table),
        cmocka_unit_test(test_valid_names_the_first_fault),
        cmocka_unit_test(test_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
