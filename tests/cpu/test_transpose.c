/* Packing's inner loops beside their definitions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "cpu/transpose.h"
#include "tests/cpu/cpu_util.h"

/* Exactly as many words as are read, with one's index as its value. */
static uint32_t *counted(int64_t n)
{
    uint32_t *x = device_bytes(n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = (uint32_t)i * 0x10001u;
    return x;
}

static void test_words(void **state)
{
    static const int64_t sizes[] = {1, 3, 4, 5, 8, 11, 12, 31, 32};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int a = 0; a < N; a++)
        for (int b = 0; b < N; b++) {
            int64_t rows = sizes[a], n = sizes[b], stride = n + b % 2;
            uint32_t *in = counted((rows - 1) * stride + n), *out = device_bytes(rows * n * 4);
            transpose_words(out, in, stride, rows, n);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t s = 0; s < n; s++)
                    assert_int_equal(out[s * rows + r], in[r * stride + s]);
            free(in), free(out);
        }
}

static void test_pairs(void **state)
{
    uint16_t low[37], high[37];
    for (int n = 0; n <= 37; n++) {
        uint32_t *out = device_bytes(n * 4);
        for (int i = 0; i < n; i++) low[i] = (uint16_t)(i * 7), high[i] = (uint16_t)(0xFFFF - i);
        pair_words(out, low, high, n);
        for (int i = 0; i < n; i++) assert_int_equal(out[i], low[i] | (uint32_t)high[i] << 16);
        free(out);
    }
}

static void test_squares(void **state)
{
    uint32_t *in = counted(16 * 32);
    const uint16_t *halves = (const uint16_t *)in; /* [k pair][output][2] */
    for (int64_t n = 1; n <= 16; n++) {
        uint32_t *out = device_bytes(n * 32 * 4);
        for (int i = 0; i < 16 * 32; i++) in[i] = (uint32_t)i * 2654435761u;
        turn_pairs(out, in, n);
        for (int64_t j = 0; j < n; j++)
            for (int64_t k = 0; k < 32; k++) {
                const uint16_t *even = halves + (k / 2 * 32 + 2 * j) * 2 + k % 2;
                assert_int_equal(out[j * 32 + k], even[0] | (uint32_t)even[2] << 16);
            }
        free(out);
    }
    free(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_squares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
