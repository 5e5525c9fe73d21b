// The interpreter itself: bugs that it has to find, and what it counts. Its instructions are
// test_opcodes.cc's.
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

extern "C" {
#include <cmocka.h>
}

#include "tests/ptxsim/child.h"
#include "tests/ptxsim/ptxsim.h"
#include "tests/ptxsim/seeded.h"

// 64 threads add themselves to 13 bins, in whatever order; no two get the same place in one.
static void test_atomic_sums(void **)
{
    for (uint32_t seed = 0; seed < 3; seed++) {
        ptxsim_set_seed(seed);
        assert_true(seeded_histogram());
    }
}

static void test_tensor_cores_and_copies(void **)
{
    if (!seeded_has_tensor_cores()) skip();
    assert_true(seeded_product(true));
}

// ---- what has to be found ----

static void expect_words(void (*body)(int), int argument, const char *words)
{
    int status;
    std::string said = last_words(body, argument, &status);
    bool found = said.find(words) != std::string::npos;
    if (!found || !WIFEXITED(status) || WEXITSTATUS(status) != 87)
        fail_msg("case %d: wanted '%s', got '%s'", argument, words, said.c_str());
}

static void run_bug(int bug) { seeded_run((enum seeded_bug)bug); }
static void run_early(int) { seeded_product(false); }

static void test_bugs_are_found(void **)
{
    static const struct { enum seeded_bug bug; const char *words; } bugs[] = {
        {BUG_NO_BARRIER, "RACE (shared"}, {BUG_NO_WARP_BARRIER, "RACE (shared"},
        {BUG_ONE_TOO_FAR, "OUT OF BOUNDS"}, {BUG_SHARED_TOO_FAR, "OUT OF BOUNDS"},
        {BUG_UNWRITTEN_SHARED, "UNWRITTEN"}, {BUG_UNWRITTEN_GLOBAL, "UNWRITTEN"},
        {BUG_RACE_OF_BLOCKS, "RACE (global"}, {BUG_DIVERGENT_BARRIER, "DIVERGED"},
        {BUG_SHUFFLE_MASK, "DIVERGED"}, {BUG_MISALIGNED, "MISALIGNED"}, {BUG_ATOMIC_AND_PLAIN, "RACE (shared"},
    };
    for (uint32_t seed = 0; seed < 3; seed++) {
        ptxsim_set_seed(seed);
        for (const auto &b : bugs) expect_words(run_bug, b.bug, b.words);
        if (seeded_copies_are_async()) expect_words(run_early, 0, "IN FLIGHT");
    }
    int status;
    assert_true(last_words(run_bug, BUG_NONE, &status).empty());
    assert_int_equal(status, 0);
}

static void test_kernels_that_start_early(void **)
{
    int status;
    std::string said = last_words(seeded_early, ORDER_RIGHT, &status);
    if (status != 0) fail_msg("what is right is refused: %s", said.c_str());
    expect_words(seeded_early, ORDER_READS_FIRST, "EARLY: reads");
    expect_words(seeded_early, ORDER_WRITES_FIRST, "EARLY: writes");
    expect_words(seeded_early, ORDER_NEVER_WAITS, "EARLY: exits");
    expect_words(seeded_stream_0, 0, "stream 0");
}

static void run_narrow(int) { seeded_ends(true); }

static void test_indices_of_more_than_32_bits(void **)
{
    assert_true(seeded_ends(false));
    expect_words(run_narrow, 0, "OUT OF BOUNDS");
}

static void test_what_the_runtime_refuses(void **)
{
    int status;
    expect_words(seeded_other_gpu, 0, "which nobody has opened");
    assert_true(last_words(seeded_other_gpu, 1, &status).empty());
    assert_int_equal(status, 0);
    const char *lenient = seeded_lenience(); // last: it opens GPU 0
    if (lenient) fail_msg("%s", lenient);
}

static void test_shared_memory_of_every_gpu(void **)
{
    static const struct { int sm, kib; } gpus[] = {
        {61, 48}, {70, 96}, {75, 64}, {80, 163}, {86, 99}, {89, 99}, {90, 227},
    };
    for (const auto &g : gpus) {
        ptxsim_set_compute_capability(g.sm);
        if (!seeded_gives_a_block(g.kib << 10)) fail_msg("sm_%d does not give a block %d KiB", g.sm, g.kib);
    }
    ptxsim_set_compute_capability(0);
}

// ---- what is counted ----

// What one more run of a kernel adds.
static struct ptxsim_traffic added(void (*run)(int), int stride, const char *kernel)
{
    run(stride);
    struct ptxsim_traffic a = ptxsim_traffic(kernel);
    run(stride);
    struct ptxsim_traffic b = ptxsim_traffic(kernel);
    return {b.wavefronts - a.wavefronts, b.least_wavefronts - a.least_wavefronts, b.sectors - a.sectors,
            b.least_sectors - a.least_sectors};
}

// 32 stores of a whole row of banks, and the load: of 4 bytes by the whole warp, of 16 by its
// quarters.
static void test_bank_conflicts_are_counted(void **)
{
    static const struct { int stride; uint64_t wavefronts; } cases[] = {{0, 1}, {1, 1}, {8, 8}, {32, 32}, {3, 1}};
    for (const auto &c : cases) {
        struct ptxsim_traffic t = added(seeded_conflicts, c.stride, "conflict_kernel");
        assert_int_equal(t.least_wavefronts, 32 + 1);
        assert_int_equal(t.wavefronts, 32 + c.wavefronts);
    }
    static const struct { int stride; uint64_t wavefronts; } wide[] = {{0, 4}, {1, 4}, {2, 8}, {8, 32}};
    for (const auto &c : wide) {
        struct ptxsim_traffic t = added(seeded_wide_conflicts, c.stride, "wide_conflict_kernel");
        assert_int_equal(t.least_wavefronts, 8 * 4 + 4);
        assert_int_equal(t.wavefronts, 8 * 4 + c.wavefronts);
    }
}

// The product's copies and ldmatrix: rows of 32 bytes, eight of which lie in two rows of banks.
static void run_product(int) { seeded_product(true); }

static void test_copies_and_matrices_are_counted(void **)
{
    if (!seeded_copies_are_async()) skip();
    struct ptxsim_traffic t = added(run_product, 0, "product_kernel");
    // Copies: 4 + 2 quarters of a warp. ldmatrix: 4 matrices, twice the least. Two loads of 8 rows
    // of 16 bytes each.
    assert_int_equal(t.least_wavefronts, 6 + 4 + 2);
    assert_int_equal(t.wavefronts, 6 + 8 + 4);
    // In: 512 and 256 bytes. Out: 4 stores, each of 8 rows of 16 bytes, one row a sector.
    assert_int_equal(t.least_sectors, 16 + 8 + 4 * 4);
    assert_int_equal(t.sectors, 16 + 8 + 4 * 8);
}

static void test_sectors_are_counted(void **)
{
    static const struct { int stride; uint64_t sectors, least; } cases[] = {
        {0, 1, 1}, {1, 4, 4}, {2, 8, 4}, {8, 32, 4},
    };
    for (const auto &c : cases) {
        struct ptxsim_traffic t = added(seeded_strides, c.stride, "strided_kernel");
        assert_int_equal(t.least_sectors, 4 + c.least);
        assert_int_equal(t.sectors, 4 + c.sectors);
    }
}

// ---- budgets ----

// In build/, which is there whatever architecture this was built for.
static const char budgets_path[] = "build/test_ptxsim_budgets.txt", report_path[] = "build/test_ptxsim_ptxas.txt";
static const char report_text[] =
    "ptxas info    : Compiling entry function '_Z14strided_kernelPiPKii' for 'sm_90'\n"
    "ptxas info    : Function properties for _Z14strided_kernelPiPKii\n"
    "    8 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads\n"
    "ptxas info    : Used 40 registers, used 0 barriers, 372 bytes cmem[0]\n";

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

// In a child, which exits with 1 when budgets are exceeded. The stride: a load of 32 sectors for 4,
// and a store of 4.
static void check_budgets(int with_report)
{
    seeded_strides(8);
    if (!ptxsim_budgets_hold(budgets_path, with_report ? report_path : NULL, false)) _exit(1);
}

static void expect_budgets(const char *rows, int with_report, const char *words)
{
    int status;
    write_text(budgets_path, rows);
    write_text(report_path, report_text);
    std::string said = last_words(check_budgets, with_report, &status);
    bool right = words ? WEXITSTATUS(status) == 1 && said.find(words) != std::string::npos
                       : status == 0 && said.empty();
    if (!right) fail_msg("%s: wanted '%s', got '%s'", rows, words ? words : "nothing", said.c_str());
}

// First of the tests: nothing else was run yet.
static void test_what_is_over_its_budget_is_named(void **)
{
    expect_budgets("1.00 4.50 - - - strided_kernel\n", 0, NULL);
    expect_budgets("1.00 4.40 - - - strided_kernel\n", 0,
                   "strided_kernel: 4.50 sectors of global memory over the least, over its budget of 4.40");
    expect_budgets("1.00 4.40 - - - strided_kernel\n", 0, "make cuda-budgets RENEW=1");
    expect_budgets("# none\n", 0, "strided_kernel: 4.50 sectors of global memory over the least, and no budget");
    expect_budgets("1.00 4.50 - - - strided_kernel\n1 1 9 9 0 gone_kernel\n", 0, "gone_kernel: a row, and no such");
    expect_budgets("1.00 4.50 9 30 16 strided_kernel\n", 1,
                   "strided_kernel: 40.00 registers on sm_90, over its budget of 30.00");
    expect_budgets("1.00 4.50 9 40 16 strided_kernel\n", 1, NULL);
    expect_budgets("1.00 4.50 9 40 0 strided_kernel\n", 1,
                   "strided_kernel: 16.00 bytes of spilled registers, over its budget of 0.00");
}

static void test_budgets_are_renewed(void **)
{
    write_text(budgets_path, "1.00 1.00 9 30 16 strided_kernel\n7 7 7 7 7 gone_kernel\n");
    write_text(report_path, report_text);
    seeded_strides(8);
    assert_true(ptxsim_budgets_hold(budgets_path, report_path, true));
    char text[1024] = {};
    FILE *f = fopen(budgets_path, "r");
    assert_non_null(f);
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    assert_non_null(strstr(text, "\n       1.00    4.50     9    40     16 strided_kernel\n"));
    assert_null(strstr(text, "gone_kernel"));
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_over_its_budget_is_named),
        cmocka_unit_test(test_budgets_are_renewed),
        cmocka_unit_test(test_bank_conflicts_are_counted),
        cmocka_unit_test(test_copies_and_matrices_are_counted),
        cmocka_unit_test(test_sectors_are_counted),
        cmocka_unit_test(test_atomic_sums),
        cmocka_unit_test(test_tensor_cores_and_copies),
        cmocka_unit_test(test_bugs_are_found),
        cmocka_unit_test(test_kernels_that_start_early),
        cmocka_unit_test(test_indices_of_more_than_32_bits),
        cmocka_unit_test(test_what_the_runtime_refuses),
        cmocka_unit_test(test_shared_memory_of_every_gpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
