/* The table of cards: every row makes sense, and people find theirs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "model/gpus.h"

#define GIB ((int64_t)1 << 30)

static void test_rows_make_sense(void **state)
{
    assert_true(n_gpus >= 40);
    for (size_t i = 0; i < n_gpus; i++) {
        const struct gpu *g = &gpus[i];
        if (g->memory_bytes < 3 * GIB || g->memory_bytes > 192 * GIB || g->sm < 61 || g->sm > 120
            || g->multiprocessors < 6 || g->multiprocessors > 200 || g->bf16 != (g->sm >= 80)
            || g->flops < 2e12 || g->flops > 3e15 || g->bytes_per_s < 1e11
            || g->bytes_per_s > 1e13)
            fail_msg("%s", g->name);
        /* A card's arithmetic and its bandwidth belong together: a slip of a digit would show. */
        double ratio = g->flops / g->bytes_per_s;
        if (ratio < 10 || ratio > 700) fail_msg("%s: %.0f operations a byte", g->name, ratio);
        for (size_t j = 0; j < i; j++) assert_string_not_equal(g->name, gpus[j].name);
        if (gpu_find(g->name) != g) fail_msg("%s is found as another", g->name);
    }
}

static void check_name(const char *name, const char *wanted)
{
    const struct gpu *g = gpu_find(name);
    if (!g || strcmp(g->name, wanted) != 0)
        fail_msg("%s: %s, expected %s", name, g ? g->name : "not found", wanted);
}

static void test_names_as_people_write_them(void **state)
{
    check_name("rtx3060", "RTX 3060");
    check_name("RTX 3060 12GB", "RTX 3060");
    check_name("rtx 3060 8gb", "RTX 3060 8GB");
    check_name("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti");
    check_name("GeForce-GTX-1060-6GB", "GTX 1060 6GB");
    check_name("Tesla T4", "T4");
    check_name("a100 80gb", "A100 80GB");
    check_name("H100 80GB", "H100");
    check_name("h200 141GB", "H200");
    assert_null(gpu_find("RTX 3060 24GB"));
    assert_null(gpu_find("RTX 9999"));
    assert_null(gpu_find("8GiB"));
    assert_null(gpu_find(""));
    assert_null(gpu_find("   "));
    char long_name[500];
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    assert_null(gpu_find(long_name));
    assert_null(gpu_nearest(long_name));
    assert_string_equal(gpu_nearest("RTX 3070 Tii"), "RTX 3070 Ti");
}

/* A context takes what its users report, within a fifth; see gpu_context_bytes. */
static void test_contexts(void **state)
{
    static const struct { const char *name; int64_t mib; } reported[] = {
        {"RTX 4060 Ti", 107}, {"RTX PRO 6000", 555}, {"RTX 3090", 256}, {"RTX 6000 Ada", 426},
    };
    const char *source = NULL;
    for (size_t i = 0; i < sizeof reported / sizeof *reported; i++) {
        int64_t bytes = gpu_context_bytes(gpu_find(reported[i].name), &source);
        double without_kernels = (double)(bytes >> 20) - 64;
        assert_true(without_kernels > (double)reported[i].mib);
        assert_true(without_kernels < 1.2 * (double)reported[i].mib);
    }
    assert_non_null(strstr(source, "estimate"));
}

static void test_budget_is_what_is_left(void **state)
{
    for (size_t i = 0; i < n_gpus; i++) {
        const struct gpu *g = &gpus[i];
        int64_t left = gpu_budget(g);
        assert_int_equal(left + gpu_context_bytes(g, NULL) + gpu_margin_bytes(g), g->memory_bytes);
        if (left < g->memory_bytes / 10 * 8) fail_msg("%s: only %lld", g->name, (long long)left);
        struct device_rates rates = gpu_rates(g);
        assert_true(rates.flops < g->flops && rates.bytes < g->bytes_per_s);
    }
    struct gpu tiny = gpu_of_size("64MiB", 64 << 20), eight = gpu_of_size("8GiB", 8 * GIB);
    assert_int_equal(gpu_budget(&tiny), 0);
    assert_true(gpu_budget(&eight) > 7 * GIB && gpu_budget(&eight) < 8 * GIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_make_sense),
        cmocka_unit_test(test_names_as_people_write_them),
        cmocka_unit_test(test_contexts),
        cmocka_unit_test(test_budget_is_what_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
