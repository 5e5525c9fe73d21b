/* Normal deviates by their numbers: Box and Muller's formula as the C library computes it, and the
 * same bits on every instruction set, from any number of threads, in any pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "model/device_train.h"
#include "model/normal.h"
#include "model/sampler.h"
#include "tests/cpu/cpu_util.h"

enum { N = 1 << 18 };
static const uint32_t key[2] = {0x9E3779B9u, 7};
/* Counters past 2^32 too. */
static const int64_t beginnings[] = {0, ((int64_t)1 << 32) - N / 2, ((int64_t)1 << 52) + 3};

static double formula(int64_t index)
{
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0}, words[4];
    philox4x32(counter, key, words);
    double u = (words[0] + 1.0) / 4294967297.0, v = words[1] / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

static void test_formula(void **state)
{
    float *x = malloc(N * sizeof *x);
    int64_t n_rounded_otherwise = 0;
    for (size_t b = 0; b < sizeof beginnings / sizeof *beginnings; b++) {
        double sum = 0, squares = 0;
        normal_fill(x, N, key, beginnings[b], 1);
        for (int64_t i = 0; i < N; i++) {
            double want = formula(beginnings[b] + i);
            if (fabs(x[i] - want) > fabs(want) * 0x1p-24 + 2e-15)
                fail_msg("number %lld is %.9g, not %.9g", (long long)i, x[i], want);
            n_rounded_otherwise += x[i] != (float)want;
            sum += x[i];
            squares += (double)x[i] * x[i];
        }
        assert_true(fabs(sum / N) < 0.01 && fabs(squares / N - 1) < 0.01);
    }
    assert_true(n_rounded_otherwise <= 1);
    free(x);
}

/* The ends of the words: the longest radius, the shortest, and each quarter turn. */
static void test_extremes(void **state)
{
    assert_true(fabs(normal_log(1 / 4294967297.0) / log(1 / 4294967297.0) - 1) < 4e-16);
    const double below_one = 4294967296.0 / 4294967297.0;
    assert_true(fabs(normal_log(below_one) / log(below_one) - 1) < 4e-16);
    assert_true(normal_log(1) == 0);
    for (uint64_t w = 0; w < 0x100000000u; w += 0x20000000u)
        for (int step = -1; step <= 1; step++) {
            uint32_t word = (uint32_t)w + (uint32_t)step;
            assert_true(fabs(normal_cos(word) - cos(2 * M_PI * (word / 4294967296.0))) < 1e-15);
        }
    assert_true(normal_cos(0) == 1 && normal_cos(0x80000000u) == -1);
    assert_true(normal_cos(0x40000000u) == 0 && normal_cos(0xC0000000u) == 0);
}

/* Weights of a seed are the same for ever: these are their bits. */
static void test_bits_for_ever(void **state)
{
    float x[1000];
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a, by words */
    normal_fill(x, 1000, key, 5, 0.02f);
    for (int i = 0; i < 1000; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        hash = (hash ^ bits) * 0x100000001B3u;
    }
    assert_true(hash == 0xBDA35AE11E08A6F4u);
}

static void check_device(enum cpu_isa isa, int32_t n_threads, const float *want)
{
    struct workspace_shape shape = {.max_rows = 1, .max_logit_rows = 1, .n_embd = 32, .n_ff = 32,
                                    .n_head = 1, .n_kv_head = 1, .head_dim = 16, .vocab_size = 32,
                                    .block_size = 16};
    struct cpu_fixture f;
    float *x = malloc(N * sizeof *x);
    cpu_fixture_open(&f, isa, n_threads, &shape);
    /* Two calls that meet at no block's border. */
    f.d->train->normal(f.d, x, 10007, key, beginnings[1], 0.02f);
    f.d->train->normal(f.d, x + 10007, N - 10007, key, beginnings[1] + 10007, 0.02f);
    assert_memory_equal(x, want, N * sizeof *x);
    cpu_fixture_close(&f);
    free(x);
}

static void test_devices(void **state)
{
    float *want = malloc(N * sizeof *want);
    normal_fill(want, N, key, beginnings[1], 0.02f);
    for (enum cpu_isa isa = 0; isa <= cpu_isa_best(); isa++)
        for (int32_t n_threads = 1; n_threads <= 3; n_threads += 2)
            check_device(isa, n_threads, want);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_bits_for_ever),
        cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
