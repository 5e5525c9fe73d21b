/* Element types against an independent decoder's vectors (scripts/make_dtype_goldens.py) and
 * against the scalar definition of half precision. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/dtype.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static void read_golden(const char *name, const char *suffix, struct buf *out)
{
    char path[128];
    struct error err;
    snprintf(path, sizeof path, "tests/golden/dtype/%s.%s", name, suffix);
    buf_init(out, 1 << 20);
    if (!file_read(path, out, &err)) fail_msg("%s", err.text);
}

static void check_golden(enum dtype dtype)
{
    const struct dtype_info *info = dtype_info(dtype);
    struct buf blocks, expected;
    read_golden(info->name, "blocks", &blocks);
    read_golden(info->name, "f32", &expected);
    int64_t n = (int64_t)(expected.len / sizeof(float));
    assert_true(n >= 256 && dtype_bytes(dtype, n) == (int64_t)blocks.len);

    /* An odd address: tensors in a file need not be aligned. */
    char *unaligned = malloc(blocks.len + 1);
    float *got = malloc((size_t)n * sizeof *got);
    assert_true(unaligned && got);
    memcpy(unaligned + 1, blocks.data, blocks.len);
    dtype_to_f32(dtype, unaligned + 1, n, got);
    for (int64_t i = 0; i < n; i++) {
        float want;
        memcpy(&want, expected.data + i * (int64_t)sizeof want, sizeof want);
        if (bits_of(got[i]) != bits_of(want))
            fail_msg("%s[%d]: got %a, expected %a", info->name, (int)i, got[i], want);
    }
    free(got);
    free(unaligned);
    buf_free(&blocks);
    buf_free(&expected);
}

static void test_every_type_equals_its_golden_vector(void **state)
{
    for (int t = 0; t < N_DTYPES; t++)
        if (t != DTYPE_F32) check_golden((enum dtype)t);
}

static void test_f32_is_copied(void **state)
{
    const float src[3] = {1.5f, -0.0f, 3e-45f};
    float dst[3];
    dtype_to_f32(DTYPE_F32, src, 3, dst);
    assert_memory_equal(src, dst, sizeof src);
    dtype_to_f32(DTYPE_Q4_K, NULL, 0, NULL);
}

/* IEEE 754's definition, with no bit tricks. */
static float half_by_definition(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                      : exponent == 0 ? ldexpf((float)mantissa, -24)
                                      : ldexpf((float)(1024 + mantissa), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void test_every_half_converts_and_comes_back(void **state)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float want = half_by_definition((uint16_t)h), got = f16_to_f32((uint16_t)h);
        if (isnan(want)) {
            assert_true(isnan(got));
            assert_true(isnan(f16_to_f32(f32_to_f16(got))));
            continue;
        }
        if (bits_of(got) != bits_of(want)) fail_msg("f16 %04x: got %a, expected %a", h, got, want);
        assert_int_equal(f32_to_f16(got), h);
    }
}

/* Between each two neighbouring halves: just below the middle, the middle (to even), above. */
static void test_to_half_rounds_to_nearest_even(void **state)
{
    for (uint16_t h = 0; h < 0x7BFF; h++) {
        float low = half_by_definition(h), high = half_by_definition((uint16_t)(h + 1));
        float middle = low + (high - low) / 2; /* exact: one more bit than a half has */
        uint16_t even = h & 1 ? (uint16_t)(h + 1) : h;
        assert_int_equal(f32_to_f16(middle), even);
        assert_int_equal(f32_to_f16(-middle), even | 0x8000);
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
    }
    assert_int_equal(f32_to_f16(65519.99f), 0x7BFF);
    assert_int_equal(f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(f32_to_f16(-INFINITY), 0xFC00);
    assert_int_equal(f32_to_f16(1e-30f), 0);
}

static void test_to_bf16_rounds_to_nearest_even(void **state)
{
    assert_int_equal(f32_to_bf16(1.0f), 0x3F80);
    assert_int_equal(f32_to_bf16(0x1.01p0f), 0x3F80);      /* the middle: to even */
    assert_int_equal(f32_to_bf16(0x1.03p0f), 0x3F82);      /* the middle: to even */
    assert_int_equal(f32_to_bf16(0x1.010002p0f), 0x3F81);
    assert_int_equal(f32_to_bf16(-INFINITY), 0xFF80);
    assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
    union { uint32_t u; float f; } low_payload = {.u = 0x7F800001};
    assert_true(isnan(bf16_to_f32(f32_to_bf16(low_payload.f))));
}

static void test_names_parse_in_any_case(void **state)
{
    for (int t = 0; t < N_DTYPES; t++) {
        enum dtype got;
        assert_true(dtype_parse(dtype_info((enum dtype)t)->name, &got));
        assert_int_equal(got, t);
    }
    enum dtype got;
    assert_true(dtype_parse("Q4_k", &got));
    assert_int_equal(got, DTYPE_Q4_K);
    assert_false(dtype_parse("q4", &got));
    assert_false(dtype_parse("", &got));
}

static void test_sizes(void **state)
{
    assert_int_equal(dtype_bytes(DTYPE_BF16, 7), 14);
    assert_int_equal(dtype_bytes(DTYPE_Q8_0, 64), 68);
    assert_int_equal(dtype_bytes(DTYPE_Q6_K, 512), 420);
    assert_int_equal(dtype_bytes(DTYPE_Q4_0, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_equals_its_golden_vector),
        cmocka_unit_test(test_f32_is_copied),
        cmocka_unit_test(test_every_half_converts_and_comes_back),
        cmocka_unit_test(test_to_half_rounds_to_nearest_even),
        cmocka_unit_test(test_to_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_names_parse_in_any_case),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
