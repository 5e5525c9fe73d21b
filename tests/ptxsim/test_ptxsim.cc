// The interpreter itself: one case an operation, and bugs that it has to find.
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
#include <sys/wait.h>
#include <unistd.h>

#include "tests/ptxsim/ptxsim.h"
#include "tests/ptxsim/seeded.h"

// ---- operations: registers 1 to 3 hold the operands, register 8 the result ----

struct operation { const char *text; char result; uint64_t a, b, c, want; };

static uint64_t f(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint64_t d(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint64_t run_operation(const operation &o)
{
    std::string text = ".version 8.0\n.target sm_80\n.address_size 64\n"
                       ".visible .entry k(.param .u64 k_param_0)\n{\n"
                       ".reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;\n"
                       ".reg .b16 %rs<9>; .reg .pred %p<9>;\nld.param.u64 %rd0, [k_param_0];\n";
    const char *const loads[] = {"u64 %rd", "u32 %r", "f32 %f", "f64 %fd", "u16 %rs"};
    for (const char *load : loads)
        for (int i = 1; i <= 3; i++)
            text += std::string("ld.global.") + load + std::to_string(i) + ", [%rd0+" + std::to_string(8 * i)
                    + "];\n";
    text += std::string(o.text) + "\n";
    text += o.result == 'p' ? "selp.b32 %r8, 1, 0, %p8;\nst.global.u32 [%rd0], %r8;\n"
            : o.result == 'r' ? "st.global.u32 [%rd0], %r8;\n"
            : o.result == 'f' ? "st.global.f32 [%rd0], %f8;\n"
            : o.result == 's' ? "st.global.u16 [%rd0], %rs8;\n"
            : o.result == 'D' ? "st.global.f64 [%rd0], %fd8;\n" : "st.global.u64 [%rd0], %rd8;\n";
    text += "ret;\n}\n";
    uint64_t values[4] = {0, o.a, o.b, o.c};
    void *memory = ptxsim_alloc(sizeof values), *arguments[] = {&memory};
    ptxsim_fill(memory, values, sizeof values);
    const uint32_t one[3] = {1, 1, 1};
    assert_true(ptxsim_launch(ptxsim_load(text.c_str()), "k", one, one, 0, arguments));
    memcpy(values, memory, sizeof values);
    ptxsim_free(memory);
    return values[0];
}

static void test_operations(void **)
{
    const uint64_t minus = 0xFFFFFFFF; // -1 in 32 bits
    const operation operations[] = {
        {"add.s32 %r8, %r1, %r2;", 'r', minus, 3, 0, 2},
        {"sub.s64 %rd8, %rd1, %rd2;", 'd', 1, 2, 0, ~0ull},
        {"mul.lo.s32 %r8, %r1, %r2;", 'r', 0x10001, 0x10001, 0, 0x20001},
        {"mul.hi.u32 %r8, %r1, %r2;", 'r', minus, 2, 0, 1},
        {"mul.wide.s32 %rd8, %r1, %r2;", 'd', minus, 5, 0, (uint64_t)-5},
        {"mul.wide.u32 %rd8, %r1, %r2;", 'd', minus, 5, 0, 0x4FFFFFFFB},
        {"mad.lo.s32 %r8, %r1, %r2, %r3;", 'r', 3, 4, 5, 17},
        {"div.s32 %r8, %r1, %r2;", 'r', (uint32_t)-7, 2, 0, (uint32_t)-3},
        {"div.u32 %r8, %r1, %r2;", 'r', minus, 0, 0, minus},
        {"rem.s64 %rd8, %rd1, %rd2;", 'd', (uint64_t)-7, 4, 0, (uint64_t)-3},
        {"min.s32 %r8, %r1, %r2;", 'r', minus, 1, 0, minus},
        {"max.u32 %r8, %r1, %r2;", 'r', minus, 1, 0, minus},
        {"neg.s32 %r8, %r1;", 'r', 5, 0, 0, (uint32_t)-5},
        {"and.b32 %r8, %r1, %r2;", 'r', 12, 10, 0, 8},
        {"xor.b32 %r8, %r1, %r2;", 'r', 12, 10, 0, 6},
        {"not.b64 %rd8, %rd1;", 'd', 0, 0, 0, ~0ull},
        {"shl.b64 %rd8, %rd1, 33;", 'd', 1, 0, 0, 1ull << 33},
        {"shl.b32 %r8, %r1, %r2;", 'r', 1, 32, 0, 0},
        {"shr.s32 %r8, %r1, 31;", 'r', 0x80000000, 0, 0, minus},
        {"shr.u16 %rs8, %rs1, 4;", 's', 0x8000, 0, 0, 0x800},
        {"shr.s16 %rs8, %rs1, 4;", 's', 0x8000, 0, 0, 0xF800},
        {"brev.b32 %r8, %r1;", 'r', 1, 0, 0, 0x80000000},
        {"bfind.shiftamt.u32 %r8, %r1;", 'r', 0x10, 0, 0, 27},
        {"bfi.b32 %r8, %r1, %r2, 8, 4;", 'r', 0xFF, 0, 0, 0xF00},
        {"popc.b32 %r8, %r1;", 'r', 0xF0F, 0, 0, 8},
        {"add.f32 %f8, %f1, %f2;", 'f', f(1.5f), f(2), 0, f(3.5f)},
        {"fma.rn.f32 %f8, %f1, %f2, %f3;", 'f', f(3), f(4), f(5), f(17)},
        {"fma.rm.f32 %f8, %f1, %f2, %f3;", 'f', f(1), f(1), f(-0x1p-30f), f(0x1.fffffep-1f)},
        {"add.rz.f32 %f8, %f1, %f2;", 'f', f(-1), f(0x1p-30f), 0, f(-0x1.fffffep-1f)},
        {"max.f32 %f8, %f1, %f2;", 'f', 0x7FC00000, f(2), 0, f(2)},
        {"neg.f32 %f8, %f1;", 'f', f(2), 0, 0, f(-2)},
        {"abs.f32 %f8, %f1;", 'f', f(-2), 0, 0, f(2)},
        {"copysign.f32 %f8, %f1, %f2;", 'f', f(-1), f(3), 0, f(-3)},
        {"ex2.approx.ftz.f32 %f8, %f1;", 'f', f(3), 0, 0, f(8)},
        {"rcp.approx.ftz.f32 %f8, %f1;", 'f', f(4), 0, 0, f(0.25f)},
        {"rsqrt.approx.f32 %f8, %f1;", 'f', f(4), 0, 0, f(0.5f)},
        {"sqrt.rn.f32 %f8, %f1;", 'f', f(9), 0, 0, f(3)},
        {"fma.rn.f64 %fd8, %fd1, %fd2, %fd3;", 'D', d(3), d(4), d(5), d(17)},
        {"setp.lt.s32 %p8, %r1, %r2;", 'p', minus, 0, 0, 1},
        {"setp.lt.u32 %p8, %r1, %r2;", 'p', minus, 0, 0, 0},
        {"setp.ltu.f32 %p8, %f1, %f2;", 'p', 0x7FC00000, f(0), 0, 1},
        {"setp.neu.f32 %p8, %f1, %f2;", 'p', f(1), f(1), 0, 0},
        {"setp.eq.s32 %p1, %r1, %r2; not.pred %p8, %p1;", 'p', 1, 2, 0, 1},
        {"setp.eq.s32 %p1, %r1, %r2; selp.f32 %f8, %f1, %f3, %p1;", 'f', 1, 2, f(7), f(7)},
        {"mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r8, {%rs2, %rs1};", 'r', 0x12345678, 0, 0, 0x56781234},
        {"cvt.s64.s32 %rd8, %r1;", 'd', minus, 0, 0, ~0ull},
        {"cvt.u64.u32 %rd8, %r1;", 'd', minus, 0, 0, minus},
        {"cvt.rn.f32.s32 %f8, %r1;", 'f', minus, 0, 0, f(-1)},
        {"cvt.rzi.s32.f32 %r8, %f1;", 'r', f(-2.7f), 0, 0, (uint32_t)-2},
        {"cvt.rzi.u32.f32 %r8, %f1;", 'r', f(-2.7f), 0, 0, 0},
        {"cvt.rmi.f32.f32 %f8, %f1;", 'f', f(-2.5f), 0, 0, f(-3)},
        {"cvt.sat.f32.f32 %f8, %f1;", 'f', f(2), 0, 0, f(1)},
        {"cvt.s16.s8 %rs8, %rs1;", 's', 0x80, 0, 0, 0xFF80},
        {"cvt.rn.bf16.f32 %rs8, %f1;", 's', 0x3F818000, 0, 0, 0x3F82},
        {"cvt.rn.f16.f32 %rs8, %f1;", 's', f(1.5f), 0, 0, 0x3E00},
        {"cvt.f32.f16 %f8, %rs1;", 'f', 0x3E00, 0, 0, f(1.5f)},
        {"mov.u32 %r8, %ntid.x;", 'r', 0, 0, 0, 1},
        {"setp.eq.s32 %p1, %r1, 0; mov.u32 %r8, 1; @%p1 bra L; mov.u32 %r8, 2; L:", 'r', 0, 0, 0, 1},
    };
    for (const operation &o : operations) {
        uint64_t got = run_operation(o);
        if (got != o.want)
            fail_msg("%s: got %llx, want %llx", o.text, (unsigned long long)got, (unsigned long long)o.want);
    }
}

static void test_tensor_cores_and_copies(void **) { assert_true(seeded_product(true)); }

// sm_75 has half the depth of sm_80: two products of 8 add up to one of 16. griddepcontrol orders kernels, which run one
// after the other here.
static void test_products_of_half_depth(void **)
{
    struct lane { uint16_t a[8], b[4]; float deep[4], halves[4]; } lanes[32] = {};
    static const uint16_t small[] = {0, 0x3C00, 0x4000, 0xC200}; // 0, 1, 2, -3
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 8; i++) lanes[l].a[i] = small[(l * 5 + i * 3 + l / 7) % 4];
        for (int i = 0; i < 4; i++) lanes[l].b[i] = small[(l * 3 + i + l / 5) % 4];
    }
    std::string text = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 k_param_0)\n{\n"
                       ".reg .b64 %rd<3>; .reg .b32 %r<9>; .reg .f32 %f<17>;\ngriddepcontrol.wait;\n"
                       "ld.param.u64 %rd0, [k_param_0];\nmov.u32 %r0, %tid.x;\nmul.wide.u32 %rd1, %r0, 56;\n"
                       "add.s64 %rd2, %rd0, %rd1;\nmov.f32 %f0, 0f00000000;\n";
    for (int i = 1; i <= 6; i++)
        text += "ld.global.u32 %r" + std::to_string(i) + ", [%rd2+" + std::to_string(4 * (i - 1)) + "];\n";
    text += "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, "
            "{%f0,%f0,%f0,%f0};\n"
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f9,%f10,%f11,%f12}, {%r1,%r2}, {%r5}, "
            "{%f0,%f0,%f0,%f0};\n"
            "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f5,%f6,%f7,%f8}, {%r3,%r4}, {%r6}, "
            "{%f9,%f10,%f11,%f12};\ngriddepcontrol.launch_dependents;\n";
    for (int i = 1; i <= 8; i++)
        text += "st.global.f32 [%rd2+" + std::to_string(24 + 4 * (i - 1)) + "], %f" + std::to_string(i) + ";\n";
    text += "ret;\n}\n";
    void *memory = ptxsim_alloc(sizeof lanes), *arguments[] = {&memory};
    ptxsim_fill(memory, lanes, sizeof lanes);
    const uint32_t one[3] = {1, 1, 1}, warp[3] = {32, 1, 1};
    assert_true(ptxsim_launch(ptxsim_load(text.c_str()), "k", one, warp, 0, arguments));
    memcpy(lanes, memory, sizeof lanes);
    ptxsim_free(memory);
    float sum = 0;
    for (const lane &l : lanes) {
        assert_memory_equal(l.deep, l.halves, sizeof l.deep);
        for (float x : l.deep) sum += x * x;
    }
    assert_true(sum > 0);
}

// ---- what has to be found ----

// What a child says on stderr before it ends; its status to *status.
static std::string last_words(void (*body)(int), int argument, int *status)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        body(argument);
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char piece[512];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) said.append(piece, (size_t)n);
    close(ends[0]);
    assert_int_equal(waitpid(child, status, 0), child);
    return said;
}

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
        {BUG_SHUFFLE_MASK, "DIVERGED"}, {BUG_MISALIGNED, "MISALIGNED"},
    };
    for (uint32_t seed = 0; seed < 3; seed++) {
        ptxsim_set_seed(seed);
        for (const auto &b : bugs) expect_words(run_bug, b.bug, b.words);
        expect_words(run_early, 0, "IN FLIGHT");
    }
    int status;
    assert_true(last_words(run_bug, BUG_NONE, &status).empty());
    assert_int_equal(status, 0);
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

// 32 stores of a whole row of banks, and the load: of 4 bytes by the whole warp, of 16 by its quarters.
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
    struct ptxsim_traffic t = added(run_product, 0, "product_kernel");
    // Copies: 4 + 2 quarters of a warp. ldmatrix: 4 matrices, twice the least. Two loads of 8 rows of 16 bytes each.
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

static const char budgets_path[] = "build/ptxsim/budgets.txt", report_path[] = "build/ptxsim/ptxas.txt";
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

// In a child, which exits with 1 when budgets are exceeded. The stride: a load of 32 sectors for 4, and a store of 4.
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

static void load_unknown(int)
{
    ptxsim_load(".version 8.0\n.target sm_80\n.visible .entry k()\n{\n.reg .b32 %r<3>;\n"
                "frobnicate.u32 %r1, %r2;\nret;\n}\n");
}

static void test_unknown_instructions_are_named(void **)
{
    expect_words(load_unknown, 0, "the instruction 'frobnicate.u32' is not supported");
}

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_over_its_budget_is_named),
        cmocka_unit_test(test_budgets_are_renewed),
        cmocka_unit_test(test_bank_conflicts_are_counted),
        cmocka_unit_test(test_copies_and_matrices_are_counted),
        cmocka_unit_test(test_sectors_are_counted),
        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_tensor_cores_and_copies),
        cmocka_unit_test(test_products_of_half_depth),
        cmocka_unit_test(test_bugs_are_found),
        cmocka_unit_test(test_unknown_instructions_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
