// The interpreter's instructions: one case each, or more, with results that are known without it;
// and no kernel of cuda/ has an instruction without a case.
#include <cmath>
#include <cstdarg>
#include <csetjmp>
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

using std::string;
using std::to_string;

// Registers of every kernel here.
#define REGISTERS                                                                                                      \
    ".reg .b64 %rd<9>; .reg .b32 %r<17>; .reg .f32 %f<9>; .reg .f64 %fd<9>; .reg .b16 %rs<9>; .reg .pred %p<9>;\n"

static string module_text(const string &body)
{
    return ".version 8.7\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 k_param_0, "
           ".param .align 16 .b8 words[32])\n{\n" REGISTERS
           ".shared .align 16 .b8 shared[2048]; .local .align 16 .b8 own[32];\n"
           "ld.param.u64 %rd0, [k_param_0];\n" + body + "ret;\n}\n";
}

// ---- one thread: memory and parameters hold {0, a, b, c}; so do registers 1 to 3 of each type
// ----

// The result: register 8 of a type, s f r d D (f64) p; or all of the registers 4 to 7 of a type, S
// F R, or all of memory, M, of which `want` is the hash.
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

static uint64_t f2(float low, float high) { return f(low) | f(high) << 32; }

// Of four values, in their order.
static uint64_t hash(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t h = 0;
    for (uint64_t v : {a, b, c, d}) h = h * 1000003 + v;
    return h;
}

static string store_of_result(char result)
{
    switch (result) {
    case 'r': return "st.global.u32 [%rd0], %r8;\n";
    case 'f': return "st.global.f32 [%rd0], %f8;\n";
    case 's': return "st.global.u16 [%rd0], %rs8;\n";
    case 'D': return "st.global.f64 [%rd0], %fd8;\n";
    case 'd': return "st.global.u64 [%rd0], %rd8;\n";
    case 'p': return "selp.b32 %r8, 1, 0, %p8;\nst.global.u32 [%rd0], %r8;\n";
    case 'M': return "";
    }
    string store, type = result == 'S' ? "u16" : result == 'F' ? "f32" : "u32";
    for (int i = 0; i < 4; i++)
        store += "st.global." + type + " [%rd0+" + to_string(8 * i) + "], "
                 + (result == 'S' ? "%rs" : result == 'F' ? "%f" : "%r") + to_string(4 + i) + ";\n";
    return store;
}

static string text_of(const operation &o)
{
    string text;
    const char *const loads[] = {"u64 %rd", "u32 %r", "f32 %f", "f64 %fd", "u16 %rs"};
    for (const char *load : loads)
        for (int i = 1; i <= 3; i++)
            text += string("ld.global.") + load + to_string(i) + ", [%rd0+" + to_string(8 * i) + "];\n";
    // Vectors of two leave the others 0, in memory too.
    for (int i = 4; i < 8; i++)
        text += "mov.u32 %r" + to_string(i) + ", 0; mov.f32 %f" + to_string(i) + ", 0f00000000; mov.u16 %rs"
                + to_string(i) + ", 0;\n";
    text += string(o.text) + "\n";
    if (strchr("SFR", o.result))
        for (int i = 0; i < 4; i++) text += "st.global.u64 [%rd0+" + to_string(8 * i) + "], 0;\n";
    return module_text(text + store_of_result(o.result));
}

static uint64_t run_operation(const operation &o)
{
    uint64_t values[4] = {0, o.a, o.b, o.c};
    void *memory = ptxsim_alloc(sizeof values), *arguments[] = {&memory, values};
    ptxsim_fill(memory, values, sizeof values);
    const uint32_t one[3] = {1, 1, 1};
    uint64_t result[4];
    assert_true(ptxsim_launch(ptxsim_load(text_of(o).c_str()), "k", one, one, 0, arguments));
    memcpy(result, memory, sizeof result);
    ptxsim_free(memory);
    return strchr("SFRM", o.result) ? hash(result[0], result[1], result[2], result[3]) : result[0];
}

static void check(const operation *operations, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const operation &o = operations[i];
        uint64_t got = run_operation(o);
        if (got != o.want)
            fail_msg("%s: got %llx, want %llx", o.text, (unsigned long long)got, (unsigned long long)o.want);
    }
}
#define CHECK(operations) check(operations, sizeof operations / sizeof *operations)

static const uint32_t minus = 0xFFFFFFFF, nan32 = 0x7FC00000; // -1 in 32 bits

static void test_integers(void **)
{
    const operation operations[] = {
        {"add.s16 %rs8, %rs1, %rs2;", 's', 0xFFFF, 3, 0, 2},
        {"add.s32 %r8, %r1, %r2;", 'r', minus, 3, 0, 2},
        {"add.s64 %rd8, %rd1, %rd2;", 'd', ~0ull, 1ull << 40, 0, (1ull << 40) - 1},
        {"add.u64 %rd8, %rd1, %rd2;", 'd', minus, 1, 0, 1ull << 32},
        {"sub.s32 %r8, %r1, %r2;", 'r', 1, 2, 0, minus},
        {"sub.s64 %rd8, %rd1, %rd2;", 'd', 1, 2, 0, ~0ull},
        {"mul.lo.s32 %r8, %r1, %r2;", 'r', 0x10001, 0x10001, 0, 0x20001},
        {"mul.lo.s64 %rd8, %rd1, %rd2;", 'd', minus, minus, 0, 0xFFFFFFFE00000001},
        {"mul.hi.s32 %r8, %r1, %r2;", 'r', (uint32_t)-3, 0x40000000, 0, minus},
        {"mul.hi.u32 %r8, %r1, %r2;", 'r', minus, 2, 0, 1},
        {"mul.wide.s32 %rd8, %r1, %r2;", 'd', minus, 5, 0, (uint64_t)-5},
        {"mul.wide.u32 %rd8, %r1, %r2;", 'd', minus, 5, 0, 0x4FFFFFFFB},
        {"mul.wide.u16 %r8, %rs1, %rs2;", 'r', 0xFFFF, 0x1000, 0, 0xFFFF000},
        {"mad.lo.s32 %r8, %r1, %r2, %r3;", 'r', 3, 4, 5, 17},
        {"div.s32 %r8, %r1, %r2;", 'r', (uint32_t)-7, 2, 0, (uint32_t)-3},
        {"div.s64 %rd8, %rd1, %rd2;", 'd', (uint64_t)-7, 2, 0, (uint64_t)-3},
        {"div.u32 %r8, %r1, %r2;", 'r', minus, 16, 0, 0xFFFFFFF},
        {"div.u32 %r8, %r1, %r2;", 'r', minus, 0, 0, minus},
        {"div.u64 %rd8, %rd1, %rd2;", 'd', ~0ull, 1ull << 60, 0, 15},
        {"rem.s32 %r8, %r1, %r2;", 'r', (uint32_t)-7, 4, 0, (uint32_t)-3},
        {"rem.s64 %rd8, %rd1, %rd2;", 'd', (uint64_t)-7, 4, 0, (uint64_t)-3},
        {"rem.u32 %r8, %r1, %r2;", 'r', minus, 16, 0, 15},
        {"min.s32 %r8, %r1, %r2;", 'r', minus, 1, 0, minus},
        {"min.u32 %r8, %r1, %r2;", 'r', minus, 1, 0, 1},
        {"min.s64 %rd8, %rd1, %rd2;", 'd', ~0ull, 1, 0, ~0ull},
        {"max.s32 %r8, %r1, %r2;", 'r', minus, 1, 0, 1},
        {"max.u32 %r8, %r1, %r2;", 'r', minus, 1, 0, minus},
        {"max.s64 %rd8, %rd1, %rd2;", 'd', ~0ull, 1, 0, 1},
        {"neg.s32 %r8, %r1;", 'r', 5, 0, 0, (uint32_t)-5},
        {"neg.s64 %rd8, %rd1;", 'd', 5, 0, 0, (uint64_t)-5},
        {"and.b16 %rs8, %rs1, %rs2;", 's', 0xF00C, 0x800A, 0, 0x8008},
        {"and.b32 %r8, %r1, %r2;", 'r', 12, 10, 0, 8},
        {"and.b64 %rd8, %rd1, %rd2;", 'd', 12ull << 40, 10ull << 40, 0, 8ull << 40},
        {"or.b32 %r8, %r1, %r2;", 'r', 12, 10, 0, 14},
        {"or.b64 %rd8, %rd1, %rd2;", 'd', 12ull << 40, 10, 0, 12ull << 40 | 10},
        {"xor.b32 %r8, %r1, %r2;", 'r', 12, 10, 0, 6},
        {"xor.b64 %rd8, %rd1, %rd2;", 'd', 12ull << 40, 10ull << 40, 0, 6ull << 40},
        {"not.b16 %rs8, %rs1;", 's', 0xF00F, 0, 0, 0x0FF0},
        {"not.b32 %r8, %r1;", 'r', 0xF00F, 0, 0, 0xFFFF0FF0},
        {"not.b64 %rd8, %rd1;", 'd', 0, 0, 0, ~0ull},
        {"shl.b16 %rs8, %rs1, 9;", 's', 0x81, 0, 0, 0x200},
        {"shl.b64 %rd8, %rd1, 33;", 'd', 1, 0, 0, 1ull << 33},
        {"shl.b32 %r8, %r1, %r2;", 'r', 1, 32, 0, 0},
        {"shr.s32 %r8, %r1, 31;", 'r', 0x80000000, 0, 0, minus},
        {"shr.u32 %r8, %r1, 31;", 'r', 0x80000000, 0, 0, 1},
        {"shr.s64 %rd8, %rd1, 60;", 'd', 0x9ull << 60, 0, 0, (uint64_t)-7},
        {"shr.u64 %rd8, %rd1, 60;", 'd', 0x9ull << 60, 0, 0, 9},
        {"shr.u16 %rs8, %rs1, 4;", 's', 0x8000, 0, 0, 0x800},
        {"shr.s16 %rs8, %rs1, 4;", 's', 0x8000, 0, 0, 0xF800},
        {"brev.b32 %r8, %r1;", 'r', 0x13, 0, 0, 0xC8000000},
        {"bfind.shiftamt.u32 %r8, %r1;", 'r', 0x10, 0, 0, 27},
        {"bfind.shiftamt.u32 %r8, %r1;", 'r', 0, 0, 0, minus},
        {"bfi.b32 %r8, %r1, %r2, 8, 4;", 'r', 0xFF, 0x12345678, 0, 0x12345F78},
        {"bfi.b64 %rd8, %rd1, %rd2, 40, 4;", 'd', 0xFF, 0x123456789ABCDEF0, 0, 0x12345F789ABCDEF0},
        {"bfe.u32 %r8, %r1, 4, 8;", 'r', 0x12345F78, 0, 0, 0xF7},
        {"bfe.s32 %r8, %r1, 4, 8;", 'r', 0x12345F78, 0, 0, 0xFFFFFFF7},
        {"bfe.s32 %r8, %r1, 28, 8;", 'r', 0x82345F78, 0, 0, 0xFFFFFFF8},
        {"bfe.u64 %rd8, %rd1, 36, 8;", 'd', 0x12345F78ull << 32, 0, 0, 0xF7},
        {"clz.b32 %r8, %r1;", 'r', 0x10, 0, 0, 27},
        {"clz.b32 %r8, %r1;", 'r', 0, 0, 0, 32},
        {"popc.b32 %r8, %r1;", 'r', 0xF0F, 0, 0, 8},
        {"prmt.b32 %r8, %r1, %r2, 0x7610;", 'r', 0x33221100, 0x77665544, 0, 0x77661100},
    };
    CHECK(operations);
}

static void test_floats(void **)
{
    const float third = 1.0f / 3;
    const operation operations[] = {
        {"add.f32 %f8, %f1, %f2;", 'f', f(1.5f), f(2), 0, f(3.5f)},
        {"add.rn.f32 %f8, %f1, %f2;", 'f', f(1), f(0x1.8p-23f), 0, f(1 + 0x1p-22f)},
        {"add.rz.f32 %f8, %f1, %f2;", 'f', f(-1), f(0x1p-30f), 0, f(-0x1.fffffep-1f)},
        {"add.f64 %fd8, %fd1, %fd2;", 'D', d(1), d(0x1p-40), 0, d(1 + 0x1p-40)},
        {"sub.f32 %f8, %f1, %f2;", 'f', f(1.5f), f(2), 0, f(-0.5f)},
        {"sub.f64 %fd8, %fd1, %fd2;", 'D', d(1), d(0x1p-40), 0, d(1 - 0x1p-40)},
        {"mul.f32 %f8, %f1, %f2;", 'f', f(3), f(third), 0, f(1)},
        {"mul.rn.f32 %f8, %f1, %f2;", 'f', f(1 + 0x1p-23f), f(1 + 0x1p-23f), 0, f(1 + 0x1p-22f)},
        {"mul.f64 %fd8, %fd1, %fd2;", 'D', d(1 + 0x1p-30), d(1 - 0x1p-30), 0, d(1)},
        {"div.rn.f32 %f8, %f1, %f2;", 'f', f(1), f(3), 0, f(third)},
        {"fma.rn.f32 %f8, %f1, %f2, %f3;", 'f', f(1 + 0x1p-23f), f(1 + 0x1p-23f), f(-1), f(0x1.000001p-22f)},
        {"fma.rm.f32 %f8, %f1, %f2, %f3;", 'f', f(1), f(1), f(-0x1p-30f), f(0x1.fffffep-1f)},
        {"fma.rn.f64 %fd8, %fd1, %fd2, %fd3;", 'D', d(3), d(4), d(5), d(17)},
        {"min.f32 %f8, %f1, %f2;", 'f', nan32, f(2), 0, f(2)},
        {"min.f32 %f8, %f1, %f2;", 'f', f(0.0f), f(-0.0f), 0, f(-0.0f)},
        {"max.f32 %f8, %f1, %f2;", 'f', nan32, f(2), 0, f(2)},
        {"max.f32 %f8, %f1, %f2;", 'f', f(-3), f(2), 0, f(2)},
        {"neg.f32 %f8, %f1;", 'f', f(2), 0, 0, f(-2)},
        {"abs.f32 %f8, %f1;", 'f', f(-2), 0, 0, f(2)},
        {"copysign.f32 %f8, %f1, %f2;", 'f', f(-1), f(3), 0, f(-3)},
        {"ex2.approx.f32 %f8, %f1;", 'f', f(-149), 0, 0, f(0x1p-149f)},
        {"ex2.approx.ftz.f32 %f8, %f1;", 'f', f(3), 0, 0, f(8)},
        {"ex2.approx.ftz.f32 %f8, %f1;", 'f', f(-149), 0, 0, f(0)},
        {"rcp.approx.ftz.f32 %f8, %f1;", 'f', f(4), 0, 0, f(0.25f)},
        {"rcp.approx.ftz.f32 %f8, %f1;", 'f', f(0x1p-140f), 0, 0, f(INFINITY)},
        {"rcp.rn.f32 %f8, %f1;", 'f', f(3), 0, 0, f(third)},
        {"rsqrt.approx.f32 %f8, %f1;", 'f', f(4), 0, 0, f(0.5f)},
        {"sqrt.rn.f32 %f8, %f1;", 'f', f(9), 0, 0, f(3)},
        {"cvt.rmi.f32.f32 %f8, %f1;", 'f', f(-2.5f), 0, 0, f(-3)},
        {"cvt.rzi.f32.f32 %f8, %f1;", 'f', f(-2.5f), 0, 0, f(-2)},
        {"cvt.sat.f32.f32 %f8, %f1;", 'f', f(2), 0, 0, f(1)},
        {"cvt.sat.f32.f32 %f8, %f1;", 'f', nan32, 0, 0, f(0)},
    };
    CHECK(operations);
}

static void test_conversions(void **)
{
    const operation operations[] = {
        {"cvt.s16.s8 %rs8, %rs1;", 's', 0x80, 0, 0, 0xFF80},
        {"cvt.s32.s16 %r8, %rs1;", 'r', 0x8000, 0, 0, 0xFFFF8000},
        {"cvt.s64.s32 %rd8, %r1;", 'd', minus, 0, 0, ~0ull},
        {"cvt.u16.u32 %rs8, %r1;", 's', 0x12345678, 0, 0, 0x5678},
        {"cvt.u16.u64 %rs8, %rd1;", 's', 0x123456789ABC, 0, 0, 0x9ABC},
        {"cvt.u32.u16 %r8, %rs1;", 'r', 0x8000, 0, 0, 0x8000},
        {"cvt.u32.u64 %r8, %rd1;", 'r', 0x123456789ABC, 0, 0, 0x56789ABC},
        {"cvt.u64.u16 %rd8, %rs1;", 'd', 0x8000, 0, 0, 0x8000},
        {"cvt.u64.u32 %rd8, %r1;", 'd', minus, 0, 0, minus},
        {"cvt.rn.f32.s16 %f8, %rs1;", 'f', 0x8000, 0, 0, f(-32768)},
        {"cvt.rn.f32.u16 %f8, %rs1;", 'f', 0x8000, 0, 0, f(32768)},
        {"cvt.rn.f32.s32 %f8, %r1;", 'f', minus, 0, 0, f(-1)},
        {"cvt.rn.f32.u32 %f8, %r1;", 'f', minus, 0, 0, f(0x1p32f)},
        {"cvt.rn.f32.s64 %f8, %rd1;", 'f', (uint64_t) - (1ll << 40), 0, 0, f(-0x1p40f)},
        {"cvt.rzi.s32.f32 %r8, %f1;", 'r', f(-2.7f), 0, 0, (uint32_t)-2},
        {"cvt.rzi.u32.f32 %r8, %f1;", 'r', f(-2.7f), 0, 0, 0},
        {"cvt.rzi.u32.f32 %r8, %f1;", 'r', f(0x1.8p31f), 0, 0, 0xC0000000},
        {"cvt.f64.f32 %fd8, %f1;", 'D', f(0.1f), 0, 0, d(0.1f)},
        {"cvt.rn.f64.u64 %fd8, %rd1;", 'D', 1ull << 63 | 1, 0, 0, d(0x1p63)},
        {"cvt.rzi.u64.f64 %rd8, %fd1;", 'd', d(0x1.8p63), 0, 0, 0x3ull << 62},
        {"cvt.rzi.u64.f64 %rd8, %fd1;", 'd', d(2.7), 0, 0, 2},
        {"cvt.rn.bf16.f32 %rs8, %f1;", 's', 0x3F818000, 0, 0, 0x3F82},
        {"cvt.rn.bf16.f32 %rs8, %f1;", 's', 0x3F808000, 0, 0, 0x3F80},
        {"cvt.rn.f16.f32 %rs8, %f1;", 's', f(1.5f), 0, 0, 0x3E00},
        {"cvt.rn.f16.f32 %rs8, %f1;", 's', f(0x1p-24f), 0, 0, 1},
        {"cvt.f32.f16 %f8, %rs1;", 'f', 0x3E00, 0, 0, f(1.5f)},
        {"cvt.f32.bf16 %f8, %rs1;", 'f', 0xBFC0, 0, 0, f(-1.5f)},
    };
    CHECK(operations);
}

static void test_predicates(void **)
{
    const uint64_t low = (uint64_t) - (1ll << 40);
    const operation operations[] = {
        {"setp.eq.b16 %p8, %rs1, %rs2;", 'p', 0x12345, 0x2345, 0, 1},
        {"setp.eq.s16 %p8, %rs1, %rs2;", 'p', 0x12345, 0x2345, 0, 1},
        {"setp.ne.s16 %p8, %rs1, %rs2;", 'p', 0x12345, 0x2345, 0, 0},
        {"setp.eq.b32 %p8, %r1, %r2;", 'p', 0x80000000, 0x80000000, 0, 1},
        {"setp.eq.s32 %p8, %r1, %r2;", 'p', 5, 6, 0, 0},
        {"setp.ne.s32 %p8, %r1, %r2;", 'p', 5, 6, 0, 1},
        {"setp.ge.s32 %p8, %r1, %r2;", 'p', 0, minus, 0, 1},
        {"setp.gt.s32 %p8, %r1, %r2;", 'p', minus, 0, 0, 0},
        {"setp.le.s32 %p8, %r1, %r2;", 'p', minus, 0, 0, 1},
        {"setp.lt.s32 %p8, %r1, %r2;", 'p', minus, 0, 0, 1},
        {"setp.ge.u32 %p8, %r1, %r2;", 'p', 0, minus, 0, 0},
        {"setp.gt.u32 %p8, %r1, %r2;", 'p', minus, 0, 0, 1},
        {"setp.lt.u32 %p8, %r1, %r2;", 'p', minus, 0, 0, 0},
        {"setp.le.u32 %p8, %r1, %r2;", 'p', minus, 0, 0, 0},
        {"setp.ne.u32 %p8, %r1, %r2;", 'p', minus, 0, 0, 1},
        {"setp.eq.b64 %p8, %rd1, %rd2;", 'p', 1ull << 40, 0, 0, 0},
        {"setp.eq.s64 %p8, %rd1, %rd2;", 'p', 1ull << 40, 0, 0, 0},
        {"setp.ne.s64 %p8, %rd1, %rd2;", 'p', 1ull << 40, 0, 0, 1},
        {"setp.ge.s64 %p8, %rd1, %rd2;", 'p', low, 0, 0, 0},
        {"setp.gt.s64 %p8, %rd1, %rd2;", 'p', 0, low, 0, 1},
        {"setp.le.s64 %p8, %rd1, %rd2;", 'p', low, low, 0, 1},
        {"setp.lt.s64 %p8, %rd1, %rd2;", 'p', low, 0, 0, 1},
        {"setp.ge.u64 %p8, %rd1, %rd2;", 'p', low, 0, 0, 1},
        {"setp.gt.u64 %p8, %rd1, %rd2;", 'p', 0, low, 0, 0},
        {"setp.lt.u64 %p8, %rd1, %rd2;", 'p', low, 0, 0, 0},
        {"setp.gt.f64 %p8, %fd1, %fd2;", 'p', d(1 + 0x1p-40), d(1), 0, 1},
        {"setp.eq.f32 %p8, %f1, %f2;", 'p', f(0), f(-0.0f), 0, 1},
        {"setp.eq.f32 %p8, %f1, %f2;", 'p', nan32, nan32, 0, 0},
        {"setp.ge.f32 %p8, %f1, %f2;", 'p', nan32, f(0), 0, 0},
        {"setp.ge.f32 %p8, %f1, %f2;", 'p', f(-1), f(-2), 0, 1},
        {"setp.geu.f32 %p8, %f1, %f2;", 'p', nan32, f(0), 0, 1},
        {"setp.geu.f32 %p8, %f1, %f2;", 'p', f(-2), f(-1), 0, 0},
        {"setp.gt.f32 %p8, %f1, %f2;", 'p', f(2), f(1), 0, 1},
        {"setp.gtu.f32 %p8, %f1, %f2;", 'p', f(1), f(1), 0, 0},
        {"setp.gtu.f32 %p8, %f1, %f2;", 'p', f(1), nan32, 0, 1},
        {"setp.leu.f32 %p8, %f1, %f2;", 'p', f(2), f(1), 0, 0},
        {"setp.leu.f32 %p8, %f1, %f2;", 'p', nan32, f(1), 0, 1},
        {"setp.lt.f32 %p8, %f1, %f2;", 'p', f(-2), f(-1), 0, 1},
        {"setp.ltu.f32 %p8, %f1, %f2;", 'p', nan32, f(0), 0, 1},
        {"setp.neu.f32 %p8, %f1, %f2;", 'p', f(1), f(1), 0, 0},
        {"setp.neu.f32 %p8, %f1, %f2;", 'p', nan32, nan32, 0, 1},
        {"setp.eq.s32 %p1, %r1, %r2; not.pred %p8, %p1;", 'p', 1, 2, 0, 1},
        {"setp.eq.s32 %p1, %r1, %r2; setp.eq.s32 %p2, %r1, %r3; and.pred %p8, %p1, %p2;", 'p', 1, 1, 2, 0},
        {"setp.eq.s32 %p1, %r1, %r2; setp.eq.s32 %p2, %r1, %r3; or.pred %p8, %p1, %p2;", 'p', 1, 1, 2, 1},
        {"setp.eq.s32 %p1, %r1, %r2; setp.eq.s32 %p2, %r1, %r3; xor.pred %p8, %p1, %p2;", 'p', 1, 1, 2, 1},
        {"setp.eq.s32 %p1, %r1, %r2; mov.pred %p8, %p1;", 'p', 1, 1, 0, 1},
        {"setp.eq.s32 %p1, %r1, %r2; selp.b16 %rs8, %rs1, %rs3, %p1;", 's', 1, 2, 7, 7},
        {"setp.eq.s32 %p1, %r1, %r2; selp.u16 %rs8, %rs3, %rs1, %p1;", 's', 1, 1, 7, 7},
        {"setp.eq.s32 %p1, %r1, %r2; selp.b32 %r8, %r1, %r3, %p1;", 'r', 1, 2, 7, 7},
        {"setp.eq.s32 %p1, %r1, %r2; selp.u32 %r8, %r3, %r1, %p1;", 'r', 1, 1, 7, 7},
        {"setp.eq.s32 %p1, %r1, %r2; selp.b64 %rd8, %rd1, %rd3, %p1;", 'd', 1, 2, low, low},
        {"setp.eq.s32 %p1, %r1, %r2; selp.u64 %rd8, %rd1, %rd3, %p1;", 'd', 1, 2, low, low},
        {"setp.eq.s32 %p1, %r1, %r2; selp.f32 %f8, %f1, %f3, %p1;", 'f', 1, 2, f(7), f(7)},
        {"setp.eq.s32 %p1, %r1, 0; mov.u32 %r8, 1; @%p1 bra L; mov.u32 %r8, 2; L:", 'r', 0, 0, 0, 1},
        {"setp.eq.s32 %p1, %r1, 0; mov.u32 %r8, 1; @!%p1 bra L; mov.u32 %r8, 2; L:", 'r', 0, 0, 0, 2},
        {"mov.u32 %r8, 1; bra.uni L; mov.u32 %r8, 2; L:", 'r', 0, 0, 0, 1},
    };
    CHECK(operations);
}

static void test_moves(void **)
{
    const operation operations[] = {
        {"mov.b32 %r8, %f1;", 'r', f(1), 0, 0, f(1)},
        {"mov.u32 %r8, %r1;", 'r', minus, 0, 0, minus},
        {"mov.u32 %r8, %ntid.x;", 'r', 0, 0, 0, 1},
        {"mov.f32 %f8, 0fBF800000;", 'f', 0, 0, 0, f(-1)},
        {"mov.f64 %fd8, 0dBFF0000000000000;", 'D', 0, 0, 0, d(-1)},
        {"mov.u16 %rs8, %rs1;", 's', 0x12345678, 0, 0, 0x5678},
        {"mov.b64 %rd8, %fd1;", 'd', d(-1), 0, 0, d(-1)},
        {"mov.u64 %rd8, %rd1;", 'd', ~5ull, 0, 0, ~5ull},
        {"mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r8, {%rs2, %rs1};", 'r', 0x12345678, 0, 0, 0x56781234},
        {"mov.b64 {%r1, %r2}, %rd1; mov.b64 %rd8, {%r2, %r1};", 'd', 0x123456789ABCDEF0, 0, 0, 0x9ABCDEF012345678},
        {"mov.b64 %rd8, {%rs1, %rs2, %rs3, %rs1};", 'd', 0x1111, 0x2222, 0x3333, 0x1111333322221111},
    };
    CHECK(operations);
}

// b and c are the sixteen bytes at %rd0 + 16, and at words + 16.
static void test_memory(void **)
{
    const uint64_t b = 0x8877665544332211, c = 0x00FFEEDDCCBBAA99;
    const uint64_t b0 = 0x44332211, b1 = 0x88776655, c0 = 0xCCBBAA99, c1 = 0x00FFEEDD;
    const uint64_t four = hash(b0, b1, c0, c1), two = hash(b0, b1, 0, 0), bytes = hash(0x11, 0x22, 0x33, 0x44);
    const uint64_t halves = hash(0x2211, 0x4433, 0x6655, 0x8877), floats = hash(f(1), f(2), f(3), f(4));
    const operation loads[] = {
        {"ld.global.s8 %r8, [%rd0+31];", 'r', 0, b, 0x80ull << 56, 0xFFFFFF80},
        {"ld.global.u8 %r8, [%rd0+23];", 'r', 0, b, c, 0x88},
        {"ld.global.s32 %r8, [%rd0+20];", 'r', 0, b, c, b1},
        {"ld.global.v4.u8 {%rs4, %rs5, %rs6, %rs7}, [%rd0+16];", 'S', 0, b, c, bytes},
        {"ld.global.v2.u16 {%rs4, %rs5}, [%rd0+16];", 'S', 0, b, c, hash(0x2211, 0x4433, 0, 0)},
        {"ld.global.v4.u16 {%rs4, %rs5, %rs6, %rs7}, [%rd0+16];", 'S', 0, b, c, halves},
        {"ld.global.v2.u32 {%r4, %r5}, [%rd0+16];", 'R', 0, b, c, two},
        {"ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0+16];", 'R', 0, b, c, four},
        {"ld.global.v2.f32 {%f4, %f5}, [%rd0+16];", 'F', 0, f2(1, 2), 0, hash(f(1), f(2), 0, 0)},
        {"ld.global.v4.f32 {%f4, %f5, %f6, %f7}, [%rd0+16];", 'F', 0, f2(1, 2), f2(3, 4), floats},
        {"ld.global.nc.u16 %rs8, [%rd0+18];", 's', 0, b, c, 0x4433},
        {"ld.global.nc.u64 %rd8, [%rd0+24];", 'd', 0, b, c, c},
        {"ld.global.nc.v2.u32 {%r4, %r5}, [%rd0+16];", 'R', 0, b, c, two},
        {"ld.global.nc.L1::no_allocate.u16 %rs8, [%rd0+18];", 's', 0, b, c, 0x4433},
        {"ld.global.nc.L1::no_allocate.v2.u32 {%r4, %r5}, [%rd0+16];", 'R', 0, b, c, two},
        {"ld.global.nc.L1::no_allocate.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0+16];", 'R', 0, b, c, four},
        {"ld.param.s8 %r8, [words+31];", 'r', 0, b, 0x80ull << 56, 0xFFFFFF80},
        {"ld.param.u8 %r8, [words+23];", 'r', 0, b, c, 0x88},
        {"ld.param.s32 %r8, [words+20];", 'r', 0, b, c, b1},
        {"ld.param.u32 %r8, [words+20];", 'r', 0, b, c, b1},
        {"ld.param.u64 %rd8, [words+24];", 'd', 0, b, c, c},
        {"ld.param.f32 %f8, [words+20];", 'f', 0, f2(1, 2), c, f(2)},
        {"ld.param.v2.u8 {%rs4, %rs5}, [words+16];", 'S', 0, b, c, hash(0x11, 0x22, 0, 0)},
        {"ld.param.v4.u8 {%rs4, %rs5, %rs6, %rs7}, [words+16];", 'S', 0, b, c, bytes},
        {"ld.param.v2.u32 {%r4, %r5}, [words+16];", 'R', 0, b, c, two},
        {"ld.param.v4.u32 {%r4, %r5, %r6, %r7}, [words+16];", 'R', 0, b, c, four},
        {"ld.param.v2.f32 {%f4, %f5}, [words+16];", 'F', 0, f2(1, 2), 0, hash(f(1), f(2), 0, 0)},
        // Generic addresses, of global, local and shared memory.
        {"ld.u32 %r8, [%rd0+20];", 'r', 0, b, c, b1},
        {"ld.f32 %f8, [%rd0+20];", 'f', 0, f2(1, 2), c, f(2)},
        {"ld.v4.u32 {%r4, %r5, %r6, %r7}, [%rd0+16];", 'R', 0, b, c, four},
        {"ld.v4.f32 {%f4, %f5, %f6, %f7}, [%rd0+16];", 'F', 0, f2(1, 2), f2(3, 4), floats},
        {"cvta.to.global.u64 %rd4, %rd0; ld.global.u64 %rd8, [%rd4+16];", 'd', 0, b, c, b},
        {"st.local.v4.u32 [own+16], {%r1, %r2, %r3, %r1}; mov.u64 %rd4, own; cvta.local.u64 %rd5, %rd4; "
         "ld.v4.u32 {%r4, %r5, %r6, %r7}, [%rd5+16];", 'R', 1, 2, 3, hash(1, 2, 3, 1)},
        {"mov.u64 %rd4, own; cvta.local.u64 %rd5, %rd4; st.u32 [%rd5+4], %r1; cvta.to.local.u64 %rd6, %rd5; "
         "ld.local.u32 %r8, [%rd6+4];", 'r', 77, 0, 0, 77},
        {"mov.u64 %rd4, shared; cvta.shared.u64 %rd5, %rd4; st.f32 [%rd5+4], %f1; ld.shared.f32 %f8, [shared+4];", 'f',
         f(5), 0, 0, f(5)},
    };
    CHECK(loads);
    const operation stores[] = {
        {"st.global.u8 [%rd0+17], %r1;", 'M', 0xAB, 0, 0, hash(0, 0xAB, 0xAB00, 0)},
        {"st.global.v2.u16 [%rd0+16], {%rs1, %rs2};", 'M', 1, 2, 3, hash(0, 1, 0x20001, 3)},
        {"st.global.v4.u8 [%rd0+16], {%rs1, %rs2, %rs3, %rs1};", 'M', 1, 2, 3, hash(0, 1, 0x1030201, 3)},
        {"st.global.v4.u16 [%rd0+16], {%rs1, %rs2, %rs3, %rs1};", 'M', 1, 2, 3, hash(0, 1, 0x1000300020001, 3)},
        {"st.global.v2.u32 [%rd0+16], {%r1, %r2};", 'M', 1, 2, 3, hash(0, 1, 0x200000001, 3)},
        {"st.global.v4.u32 [%rd0+16], {%r1, %r2, %r3, %r1};", 'M', 1, 2, 3, hash(0, 1, 0x200000001, 0x100000003)},
        {"st.global.v2.f32 [%rd0+16], {%f1, %f2};", 'M', f(1), f(2), 3, hash(0, f(1), f2(1, 2), 3)},
        {"st.global.v4.f32 [%rd0+16], {%f1, %f2, %f3, %f1};", 'M', f(1), f(2), f(3), hash(0, f(1), f2(1, 2), f2(3, 1))},
        {"st.u32 [%rd0+16], %r1;", 'M', 7, 0, 0, hash(0, 7, 7, 0)},
        {"st.f32 [%rd0+16], %f1;", 'M', f(7), 0, 0, hash(0, f(7), f(7), 0)},
        {"st.local.u16 [own+2], %rs1; ld.local.u16 %rs8, [own+2];", 's', 0x1234, 0, 0, 0x1234},
        {"st.local.v4.u16 [own+8], {%rs1, %rs2, %rs3, %rs1}; ld.local.u16 %rs8, [own+12];", 's', 1, 2, 3, 3},
        {"st.local.f32 [own+4], %f1; ld.local.f32 %f8, [own+4];", 'f', f(3), 0, 0, f(3)},
        {"st.local.v4.f32 [own+16], {%f1, %f2, %f3, %f1}; ld.local.v4.f32 {%f4, %f5, %f6, %f7}, [own+16];", 'F', f(1),
         f(2), f(3), hash(f(1), f(2), f(3), f(1))},
        {"st.shared.u8 [shared+3], %r1; ld.shared.u8 %r8, [shared+3];", 'r', 0x1FF, 0, 0, 0xFF},
        {"st.shared.u16 [shared+2], %rs1; ld.shared.u16 %rs8, [shared+2];", 's', 0x1234, 0, 0, 0x1234},
        {"st.shared.u32 [shared+4], %r1; ld.shared.u32 %r8, [shared+4];", 'r', minus, 0, 0, minus},
        {"st.shared.u32 [shared+4], %r1; ld.shared.s32 %r8, [shared+4];", 'r', minus, 0, 0, minus},
        {"st.shared.u32 [shared+4], %r1; bar.sync 0; atom.shared.add.u32 %r8, [shared+4], %r2;", 'r', 5, minus, 0, 5},
        {"st.shared.u32 [shared+4], %r1; bar.sync 0; atom.shared.add.u32 %r7, [shared+4], %r2; bar.sync 0; "
         "ld.shared.u32 %r8, [shared+4];", 'r', 5, minus, 0, 4},
        {"st.shared.u32 [shared+4], %r1; bar.sync 0; red.shared.add.u32 [shared+4], %r2; bar.sync 0; "
         "ld.shared.u32 %r8, [shared+4];", 'r', 5, minus, 0, 4},
        {"st.shared.u64 [shared+8], %rd1; ld.shared.u64 %rd8, [shared+8];", 'd', ~1ull, 0, 0, ~1ull},
        {"st.shared.f32 [shared+4], %f1; ld.shared.f32 %f8, [shared+4];", 'f', f(3), 0, 0, f(3)},
        {"st.shared.f64 [shared+8], %fd1; ld.shared.f64 %fd8, [shared+8];", 'D', d(3), 0, 0, d(3)},
        {"st.shared.v2.u32 [shared+8], {%r1, %r2}; ld.shared.u64 %rd8, [shared+8];", 'd', 1, 2, 0, 0x200000001},
        {"st.shared.v2.f32 [shared+8], {%f1, %f2}; ld.shared.v2.f32 {%f4, %f5}, [shared+8];", 'F', f(1), f(2), 0,
         hash(f(1), f(2), 0, 0)},
        {"st.shared.v4.f32 [shared+16], {%f1, %f2, %f3, %f1}; ld.shared.v4.f32 {%f4, %f5, %f6, %f7}, [shared+16];", 'F',
         f(1), f(2), f(3), hash(f(1), f(2), f(3), f(1))},
        {"st.shared.v4.u16 [shared+8], {%rs1, %rs2, %rs3, %rs1}; ld.shared.v2.u32 {%r4, %r5}, [shared+8];", 'R', 1, 2,
         3, hash(0x20001, 0x10003, 0, 0)},
        {"st.shared.v4.u32 [shared+16], {%r1, %r2, %r3, %r1}; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [shared+16];", 'R',
         1, 2, 3, hash(1, 2, 3, 1)},
    };
    CHECK(stores);
}

// ---- a block of two warps: registers 1 to 8 hold a thread's words, 9 to 12 its results ----

enum { THREADS = 64, WORDS = 8, RESULTS = 4 };
struct thread_words { uint32_t in[WORDS], out[RESULTS]; };
typedef void (*answer)(const thread_words *all, int thread, uint32_t out[RESULTS]);

static float bf16_of(uint32_t bits)
{
    uint32_t u = bits << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float f16_of(uint32_t bits) // of 0, 1, 2 and -3 alone
{
    return bits == 0x3C00 ? 1 : bits == 0x4000 ? 2 : bits == 0xC200 ? -3 : 0;
}

// PTX ISA, "Matrix Fragments for mma.m16n8k16" and m16n8k8: element i of a lane's registers of A
// (row, column).
static uint32_t half_of(const uint32_t *registers, int i) { return registers[i / 2] >> i % 2 * 16 & 0xFFFF; }

static void product_of(const thread_words *all, int thread, uint32_t out[RESULTS], int depth, float value(uint32_t))
{
    float a[16][16] = {}, b[16][8] = {};
    const thread_words *warp = all + thread / 32 * 32;
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, in_group = lane % 4;
        for (int i = 0; i < depth / 2; i++)
            a[i / 2 % 2 ? group + 8 : group][in_group * 2 + i % 2 + (i < 4 ? 0 : 8)] = value(half_of(warp[lane].in, i));
        for (int i = 0; i < depth / 4; i++)
            b[in_group * 2 + i % 2 + (i < 2 ? 0 : 8)][group] = value(half_of(warp[lane].in + depth / 4, i));
    }
    for (int i = 0; i < 4; i++) {
        int row = thread % 32 / 4 + (i < 2 ? 0 : 8), column = thread % 4 * 2 + i % 2;
        float sum = 1;
        for (int j = 0; j < depth; j++) sum += a[row][j] * b[j][column];
        out[i] = (uint32_t)f(sum);
    }
}

static void products_bf16(const thread_words *all, int t, uint32_t *out) { product_of(all, t, out, 16, bf16_of); }
static void products_f16(const thread_words *all, int t, uint32_t *out) { product_of(all, t, out, 16, f16_of); }
static void products_f16_k8(const thread_words *all, int t, uint32_t *out) { product_of(all, t, out, 8, f16_of); }

// Row r of matrix m is what thread 8 m + r of the warp has stored.
static void matrices(const thread_words *all, int t, uint32_t out[RESULTS])
{
    for (int m = 0; m < 4; m++) out[m] = all[t / 32 * 32 + 8 * m + t % 32 / 4].in[t % 4];
}

static void transposed(const thread_words *all, int t, uint32_t out[RESULTS])
{
    for (int m = 0; m < 4; m++) {
        out[m] = 0;
        for (int e = 0; e < 2; e++) {
            const thread_words &row = all[t / 32 * 32 + 8 * m + t % 4 * 2 + e];
            out[m] |= half_of(row.in, t % 32 / 4) << 16 * e;
        }
    }
}

static void from_xor_5(const thread_words *all, int t, uint32_t out[RESULTS])
{
    out[0] = all[t ^ 5].in[0];
    out[1] = 1;
}

static void from_3_before(const thread_words *all, int t, uint32_t out[RESULTS])
{
    out[1] = t % 32 >= 3;
    out[0] = all[t - (out[1] ? 3 : 0)].in[0];
}

static void from_3_behind(const thread_words *all, int t, uint32_t out[RESULTS])
{
    out[1] = t % 32 + 3 < 32;
    out[0] = all[t + (out[1] ? 3 : 0)].in[0];
}

static void from_2_of_8(const thread_words *all, int t, uint32_t out[RESULTS])
{
    out[0] = all[t / 8 * 8 + 2].in[0];
    out[1] = 1;
}

static void who_is_odd(const thread_words *, int, uint32_t out[RESULTS]) { out[0] = 0xAAAAAAAA; }
static void neighbours(const thread_words *all, int t, uint32_t out[RESULTS]) { out[0] = all[t ^ 1].in[0]; }
static void other_warps(const thread_words *all, int t, uint32_t out[RESULTS]) { out[0] = all[t ^ 32].in[0]; }
static void own_four(const thread_words *all, int t, uint32_t out[RESULTS]) { memcpy(out, all[t].in, 16); }
static void yes(const thread_words *, int, uint32_t out[RESULTS]) { out[0] = 1; }
static void no(const thread_words *, int, uint32_t[RESULTS]) {}

static void own_two_and_zeros(const thread_words *all, int t, uint32_t out[RESULTS])
{
    memcpy(out, all[t].in, 8);
}

// %r13: the thread; %r16: its lane; %rd1: its words; %r15: shared memory; %rd2 and %r14: the
// thread's 16 bytes of it; %p1: is the thread's number odd?
static const struct { const char *text; answer want; } together[] = {
    {"shfl.sync.bfly.b32 %r9, %r1, 5, 31, -1; mov.u32 %r10, 1;", from_xor_5},
    {"shfl.sync.bfly.b32 %r9|%p2, %r1, 5, 31, -1; selp.u32 %r10, 1, 0, %p2;", from_xor_5},
    {"shfl.sync.up.b32 %r9|%p2, %r1, 3, 0, -1; selp.u32 %r10, 1, 0, %p2;", from_3_before},
    {"shfl.sync.up.b32 %r9, %r1, 3, 0, -1; setp.ge.u32 %p2, %r16, 3; selp.u32 %r10, 1, 0, %p2;", from_3_before},
    {"shfl.sync.down.b32 %r9|%p2, %r1, 3, 31, -1; selp.u32 %r10, 1, 0, %p2;", from_3_behind},
    {"shfl.sync.down.b32 %r9, %r1, 3, 31, -1; setp.lt.u32 %p2, %r16, 29; selp.u32 %r10, 1, 0, %p2;", from_3_behind},
    {"shfl.sync.idx.b32 %r9|%p2, %r1, 2, 6175, -1; selp.u32 %r10, 1, 0, %p2;", from_2_of_8},
    {"shfl.sync.idx.b32 %r9, %r1, 2, 6175, -1; mov.u32 %r10, 1;", from_2_of_8},
    {"vote.sync.ballot.b32 %r9, %p1, -1;", who_is_odd},
    {"vote.sync.any.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;", yes},
    {"vote.sync.all.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;", no},
    {"st.shared.u32 [%rd2], %r1; bar.warp.sync -1; xor.b32 %r14, %r13, 1; shl.b32 %r14, %r14, 4; "
     "add.s32 %r14, %r14, %r15; cvt.u64.u32 %rd3, %r14; ld.shared.u32 %r9, [%rd3];", neighbours},
    {"st.shared.u32 [%rd2], %r1; bar.sync 0; xor.b32 %r14, %r13, 32; shl.b32 %r14, %r14, 4; "
     "add.s32 %r14, %r14, %r15; cvt.u64.u32 %rd3, %r14; ld.shared.u32 %r9, [%rd3];", other_warps},
    {"setp.eq.s32 %p2, %r13, 40; bar.red.or.pred %p3, 0, %p2; selp.u32 %r9, 1, 0, %p3;", yes},
    {"setp.eq.s32 %p2, %r13, 64; bar.red.or.pred %p3, 0, %p2; selp.u32 %r9, 1, 0, %p3;", no},
    {"setp.ne.s32 %p2, %r13, 64; bar.red.and.pred %p3, 0, %p2; selp.u32 %r9, 1, 0, %p3;", yes},
    {"setp.ne.s32 %p2, %r13, 40; bar.red.and.pred %p3, 0, %p2; selp.u32 %r9, 1, 0, %p3;", no},
    {"cp.async.cg.shared.global [%r14], [%rd1], 16; cp.async.commit_group; cp.async.wait_group 0; "
     "ld.shared.v4.u32 {%r9, %r10, %r11, %r12}, [%rd2];", own_four},
    {"cp.async.cg.shared.global [%r14], [%rd1], 16, 8; cp.async.wait_all; "
     "ld.shared.v4.u32 {%r9, %r10, %r11, %r12}, [%rd2];", own_two_and_zeros},
    {"st.shared.v4.u32 [%rd2], {%r1, %r2, %r3, %r4}; bar.sync 0; "
     "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r9, %r10, %r11, %r12}, [%r14];", matrices},
    {"st.shared.v4.u32 [%rd2], {%r1, %r2, %r3, %r4}; bar.sync 0; "
     "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r9, %r10, %r11, %r12}, [%r14];", transposed},
    {"mov.b32 %f1, 0f3F800000; mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r9, %r10, %r11, %r12}, "
     "{%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f1, %f1, %f1};", products_bf16},
    {"mov.b32 %f1, 0f3F800000; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r9, %r10, %r11, %r12}, "
     "{%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f1, %f1, %f1};", products_f16},
    {"mov.b32 %f1, 0f3F800000; mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r9, %r10, %r11, %r12}, "
     "{%r1, %r2}, {%r3}, {%f1, %f1, %f1, %f1};", products_f16_k8},
    // Kernels run one after the other here: these order nothing.
    {"griddepcontrol.wait; mov.u32 %r9, 1; griddepcontrol.launch_dependents;", yes},
    {"mov.u32 %r9, 1;", yes},
};

// 16-bit halves that are 0, 1, 2 and -3, in bf16 or f16: as operands of products they give exact
// sums.
static void fill(thread_words *all, bool f16)
{
    static const uint32_t bf16_bits[] = {0, 0x3F80, 0x4000, 0xC040}, f16_bits[] = {0, 0x3C00, 0x4000, 0xC200};
    const uint32_t *bits = f16 ? f16_bits : bf16_bits;
    for (int t = 0; t < THREADS; t++)
        for (int i = 0; i < WORDS; i++)
            all[t].in[i] = bits[(t * 5 + i * 3 + t / 7) % 4] | bits[(t * 3 + i + t / 5) % 4] << 16;
}

static void run_together(const char *text, answer want)
{
    string body = "mov.u32 %r13, %tid.x; mov.u32 %r16, %laneid; mul.wide.u32 %rd1, %r13, "
                  + to_string(sizeof(thread_words)) + "; add.s64 %rd1, %rd0, %rd1; shl.b32 %r14, %r13, 4; "
                  "mov.u64 %rd3, shared; cvt.u32.u64 %r15, %rd3; add.s32 %r14, %r14, %r15; cvt.u64.u32 %rd2, %r14; "
                  "and.b32 %r9, %r13, 1; setp.ne.s32 %p1, %r9, 0;\n";
    for (int i = 0; i < WORDS; i++)
        body += "ld.global.u32 %r" + to_string(1 + i) + ", [%rd1+" + to_string(4 * i) + "];\n";
    for (int i = 0; i < RESULTS; i++) body += "mov.u32 %r" + to_string(1 + WORDS + i) + ", 0;\n";
    body += string(text) + "\n";
    for (int i = 0; i < RESULTS; i++)
        body += "st.global.u32 [%rd1+" + to_string(4 * (WORDS + i)) + "], %r" + to_string(1 + WORDS + i) + ";\n";
    thread_words all[THREADS] = {};
    fill(all, strstr(text, ".f16.f16"));
    uint64_t words[4] = {};
    void *memory = ptxsim_alloc(sizeof all), *arguments[] = {&memory, words};
    ptxsim_fill(memory, all, sizeof all);
    const uint32_t one[3] = {1, 1, 1}, block[3] = {THREADS, 1, 1};
    assert_true(ptxsim_launch(ptxsim_load(module_text(body).c_str()), "k", one, block, 0, arguments));
    memcpy(all, memory, sizeof all);
    ptxsim_free(memory);
    for (int t = 0; t < THREADS; t++) {
        uint32_t expected[RESULTS] = {};
        want(all, t, expected);
        for (int i = 0; i < RESULTS; i++)
            if (all[t].out[i] != expected[i])
                fail_msg("%s: thread %d's result %d is %x, not %x", text, t, i, all[t].out[i], expected[i]);
    }
}

static void test_lanes_together(void **)
{
    for (uint32_t seed = 0; seed < 3; seed++) {
        ptxsim_set_seed(seed);
        for (const auto &c : together) run_together(c.text, c.want);
    }
}

// ---- what ends the process, or what was left out ----

static void launch_trap(int) { run_operation({"trap;", 'r', 0, 0, 0, 0}); }

static void test_traps(void **)
{
    int status;
    string said = last_words(launch_trap, 0, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 87);
    assert_true(said.find("TRAP") != string::npos);
}

static void leave_one_out(int)
{
    ptxsim_load(module_text("abs.s64 %rd8, %rd1;\n").c_str());
    ptxsim_every_form_was_run();
}

static void load_unknown(int) { ptxsim_load(module_text("frobnicate.u32 %r1, %r2;\n").c_str()); }

static void test_what_is_not_known_is_named(void **)
{
    int status;
    string unknown = last_words(load_unknown, 0, &status), left_out;
    assert_int_equal(WEXITSTATUS(status), 87);
    assert_true(unknown.find("the instruction 'frobnicate.u32' is not supported") != string::npos);
    left_out = last_words(leave_one_out, 0, &status);
    assert_true(left_out.find("'abs.s64' was never run; the kernel k has it") != string::npos);
}

// Last: the kernels of cuda/ are in this program, and none of them was run; what they are made of
// was, above.
static void test_every_form_has_a_case(void **) { assert_true(ptxsim_every_form_was_run()); }

int main()
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_floats),
        cmocka_unit_test(test_conversions),
        cmocka_unit_test(test_predicates),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_lanes_together),
        cmocka_unit_test(test_traps),
        cmocka_unit_test(test_what_is_not_known_is_named),
        cmocka_unit_test(test_every_form_has_a_case),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
