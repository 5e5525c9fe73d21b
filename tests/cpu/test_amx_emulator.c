/* The emulator of AMX, instruction by instruction, beside plain computations. On a processor
 * that has AMX this tests the processor, which must agree; what the definition leaves to the
 * emulator alone is asked only of it. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

struct config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static bool available(void) { return cpu_isa_best() == CPU_ISA_AMX; }

/* Every test begins here: cmocka has taken the signal, and asking for the best takes it back. */
static void need_amx(void)
{
    if (!available()) skip();
}

static void load_config(const struct config *c)
{
    __asm__ volatile("ldtilecfg %0" : : "m"(*c) : "memory");
}
static void release(void) { __asm__ volatile("tilerelease" : : : "memory"); }

/* Tile 0 is m x n words, tile 1 m x k, tile 2 k x n. */
static struct config shapes(int m, int n, int k)
{
    struct config c = {.palette = 1, .rows = {(uint8_t)m, (uint8_t)m, (uint8_t)k},
                       .row_bytes = {(uint16_t)(4 * n), (uint16_t)(4 * k), (uint16_t)(4 * n)}};
    return c;
}

/* Where AVX-512 BF16 is, the emulator makes AMX of it: else nothing tests it. */
static void amx_is_found(void **state)
{
#ifdef __SANITIZE_THREAD__
    skip();
#endif
    if (!__builtin_cpu_supports("avx512bf16")) skip();
    assert_int_equal(cpu_isa_best(), CPU_ISA_AMX);
}

static void configurations_come_back(void **state)
{
    need_amx();
    struct config c = shapes(3, 5, 7), got, zero = {0};
    load_config(&c);
    memset(&got, 0xA5, sizeof got);
    __asm__ volatile("sttilecfg %0" : "=m"(got) : : "memory");
    assert_memory_equal(&got, &c, sizeof c);
    release();
    __asm__ volatile("sttilecfg %0" : "=m"(got) : : "memory");
    assert_memory_equal(&got, &zero, sizeof c);
    load_config(&c);
    load_config(&zero); /* palette 0 is a release */
    __asm__ volatile("sttilecfg %0" : "=m"(got) : : "memory");
    assert_memory_equal(&got, &zero, sizeof c);
}

enum { ROOM = 4096 };

static void fill_bytes(uint8_t *p, int n)
{
    struct cpu_rng rng = {21};
    for (int i = 0; i < n; i++) p[i] = (uint8_t)cpu_rng_next(&rng);
}

/* Rows and columns of the configuration and no others, from and to memory. */
static void loads_and_stores_keep_to_the_configuration(void **state)
{
    need_amx();
    uint8_t from[ROOM], to[ROOM], whole[1024];
    fill_bytes(from, ROOM);
    for (int rows = 1; rows <= 16; rows += 5)
        for (int bytes = 4; bytes <= 64; bytes += 12)
            for (int64_t stride = 64; stride <= 200; stride += 67) {
                struct config c = {.palette = 1, .rows = {0, 0, 0, (uint8_t)rows},
                                   .row_bytes = {0, 0, 0, (uint16_t)bytes}};
                memset(to, 0x5A, sizeof to);
                load_config(&c);
                if (bytes % 8)
                    __asm__ volatile("tileloadd (%0,%1,1), %%tmm3"
                                     : : "r"(from), "r"(stride) : "memory");
                else
                    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm3"
                                     : : "r"(from), "r"(stride) : "memory");
                __asm__ volatile("tilestored %%tmm3, (%0,%1,1)"
                                 : : "r"(to), "r"(stride) : "memory");
                for (int i = 0; i < ROOM; i++) {
                    bool inside = i / stride < rows && i % stride < bytes;
                    assert_int_equal(to[i], inside ? from[i] : 0x5A);
                }
                release();
            }
    struct config full = shapes(16, 16, 16);
    int64_t stride = 64;
    load_config(&full);
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm0\n\ttilezero %%tmm0"
                     : : "r"(from), "r"(stride) : "memory");
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(whole), "r"(stride) : "memory");
    for (int i = 0; i < 1024; i++) assert_int_equal(whole[i], 0);
    release();
}

/* All forms of an address that a compiler may choose. */
static void addresses_are_understood(void **state)
{
    need_amx();
    static const struct config c = {.palette = 1, .rows = {2}, .row_bytes = {8}};
    uint8_t from[ROOM];
    uint64_t got[2];
    fill_bytes(from, ROOM);
    load_config(&c); /* static: from rip, or a register */
#define CHECK(row0, row1, text, ...)                                                             \
    do {                                                                                         \
        __asm__ volatile("tileloadd " text ", %%tmm0\n\ttilestored %%tmm0, (%[to],%[eight],1)"   \
                         : : [to] "r"(got), [eight] "r"((int64_t)8), __VA_ARGS__ : "memory");    \
        assert_memory_equal(&got[0], from + (row0), 8);                                          \
        assert_memory_equal(&got[1], from + (row1), 8);                                          \
    } while (0)
    CHECK(0, 16, "(%[b],%[i],1)", [b] "r"(from), [i] "r"((int64_t)16));
    CHECK(0, 32, "(%[b],%[i],2)", [b] "r"(from), [i] "r"((int64_t)16));
    CHECK(5, 69, "5(%[b],%[i],4)", [b] "r"(from), [i] "r"((int64_t)16));
    CHECK(900, 1028, "900(%[b],%[i],8)", [b] "r"(from), [i] "r"((int64_t)16));
    CHECK(88, 72, "-12(%[b],%[i],1)", [b] "r"(from + 100), [i] "r"((int64_t)-16));
    CHECK(7, 7, "7(%[b])", [b] "r"(from)); /* no index: a stride of zero */
    register uint8_t *r12 __asm__("r12") = from, *r13 __asm__("r13") = from;
    register int64_t r14 __asm__("r14") = 24;
    CHECK(0, 24, "(%[b],%[i],1)", [b] "r"(r12), [i] "r"(r14));
    CHECK(0, 24, "(%[b],%[i],1)", [b] "r"(r13), [i] "r"(r14));
    CHECK(640, 664, "640(%[b],%[i],1)", [b] "r"(r13), [i] "r"(r14));
    register int64_t r12i __asm__("r12") = 40;
    /* r12 can be an index, rsp cannot */
    CHECK(3, 43, "3(%[b],%[i],1)", [b] "r"(r13), [i] "r"(r12i));
#undef CHECK
    struct config back[4] = {{0}};
    int64_t sixteen = 16;
    __asm__ volatile("sttilecfg 192(%0)" : : "r"(back) : "memory");
    assert_memory_equal(&back[3], &c, sizeof c);
    __asm__ volatile("ldtilecfg 64(%0,%1,8)" : : "r"(back), "r"(sixteen) : "memory"); /* back[3] */
    __asm__ volatile("sttilecfg (%0,%1,4)" : : "r"(back), "r"(sixteen) : "memory");   /* back[1] */
    assert_memory_equal(&back[1], &c, sizeof c);
    release();
}

/* ---- products ---- */

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
static float widened(uint16_t x) { return flushed(bf16_to_f32(x)); }

/* The definition, one output: two chains of fma over k, joined at the end. */
static float plain_dot(float sum, const uint16_t *a, const uint16_t *b, int64_t b_stride, int k)
{
    float even = 0, odd = 0;
    for (int i = 0; i < k; i++) {
        even = flushed(fmaf(widened(a[2 * i]), widened(b[i * b_stride]), even));
        odd = flushed(fmaf(widened(a[2 * i + 1]), widened(b[i * b_stride + 1]), odd));
    }
    return flushed(flushed(sum) + flushed(even + odd));
}

enum values { SMALL_INTEGERS, ANY_SIZE, TINY };

static uint16_t value(struct cpu_rng *rng, enum values v)
{
    if (v == SMALL_INTEGERS) return f32_to_bf16((float)(cpu_rng_below(rng, 33) - 16));
    int exponent = v == TINY ? -62 - cpu_rng_below(rng, 12) : cpu_rng_below(rng, 40) - 20;
    if (cpu_rng_below(rng, 50) == 0) exponent = -130; /* denormal: as good as zero */
    return f32_to_bf16(ldexpf(cpu_rng_float(rng), exponent));
}

static void run_product(int m, int n, int k, const uint16_t *a, const uint16_t *b, float *c)
{
    struct config config = shapes(m, n, k);
    load_config(&config);
    int64_t stride = 64;
    __asm__ volatile("tileloadd (%0,%3,1), %%tmm0\n\ttileloadd (%1,%3,1), %%tmm1\n\t"
                     "tileloadd (%2,%3,1), %%tmm2\n\ttdpbf16ps %%tmm2, %%tmm1, %%tmm0\n\t"
                     "tilestored %%tmm0, (%0,%3,1)"
                     : : "r"(c), "r"(a), "r"(b), "r"(stride) : "memory");
    release();
}

static void check_product(int m, int n, int k, enum values v, struct cpu_rng *rng)
{
    uint16_t a[16 * 32], b[16 * 32];
    float c[16 * 16], before[16 * 16];
    for (int i = 0; i < 16 * 32; i++) a[i] = value(rng, v), b[i] = value(rng, v);
    for (int i = 0; i < 16 * 16; i++) before[i] = c[i] = bf16_to_f32(value(rng, v));
    run_product(m, n, k, a, b, c);
    /* Small integers are exact in any order; else order and denormals show,
     * which is for the emulator alone. */
    if (v != SMALL_INTEGERS && amx_emulator_count() == 0) return;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            float want = before[i * 16 + j];
            if (i < m && j < n) want = plain_dot(want, a + i * 32, b + j * 2, 32, k);
            assert_memory_equal(&c[i * 16 + j], &want, 4);
        }
}

static void products_are_the_definition(void **state)
{
    need_amx();
    struct cpu_rng rng = {31};
    static const int sizes[] = {1, 2, 7, 15, 16};
    for (int m = 0; m < 5; m++)
        for (int n = 0; n < 5; n++)
            for (int k = 0; k < 5; k++)
                for (enum values v = SMALL_INTEGERS; v <= TINY; v++)
                    check_product(sizes[m], sizes[n], sizes[k], v, &rng);
}

static void check_int8_product(int m, int n, int k, struct cpu_rng *rng)
{
    struct config config = shapes(m, n, k);
    int8_t a[16 * 64], b[16 * 64];
    int32_t c[16 * 16], before[16 * 16];
    int64_t stride = 64;
    for (int i = 0; i < 16 * 64; i++)
        a[i] = (int8_t)cpu_rng_next(rng), b[i] = (int8_t)cpu_rng_next(rng);
    for (int i = 0; i < 16 * 16; i++) before[i] = c[i] = (int32_t)cpu_rng_next(rng);
    load_config(&config);
    __asm__ volatile("tileloadd (%0,%3,1), %%tmm0\n\ttileloadd (%1,%3,1), %%tmm1\n\t"
                     "tileloadd (%2,%3,1), %%tmm2\n\ttdpbssd %%tmm2, %%tmm1, %%tmm0\n\t"
                     "tilestored %%tmm0, (%0,%3,1)"
                     : : "r"(c), "r"(a), "r"(b), "r"(stride) : "memory");
    release();
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            uint32_t want = (uint32_t)before[i * 16 + j];
            if (i < m && j < n)
                for (int l = 0; l < 4 * k; l++)
                    want += (uint32_t)(a[i * 64 + l] * b[l / 4 * 64 + 4 * j + l % 4]);
            assert_int_equal((uint32_t)c[i * 16 + j], want);
        }
}

static void products_of_bytes_are_exact(void **state)
{
    need_amx();
    struct cpu_rng rng = {37};
    static const int sizes[] = {1, 3, 8, 16};
    for (int m = 0; m < 4; m++)
        for (int n = 0; n < 4; n++)
            for (int k = 0; k < 4; k++) check_int8_product(sizes[m], sizes[n], sizes[k], &rng);
}

static void infinities_and_nan_stay_in_their_row_and_column(void **state)
{
    need_amx();
    uint16_t a[16 * 32], b[16 * 32];
    float c[16 * 16] = {0};
    for (int i = 0; i < 16 * 32; i++) a[i] = b[i] = f32_to_bf16(1);
    a[3 * 32 + 9] = f32_to_bf16(INFINITY);
    b[5 * 32 + 11 * 2 + 1] = f32_to_bf16(NAN);
    run_product(16, 16, 16, a, b, c);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            if (j == 11) assert_true(isnan(c[i * 16 + j]));
            else assert_true(c[i * 16 + j] == (i == 3 ? INFINITY : 32));
        }
}

/* ---- faults ---- */

enum act { LOAD_CONFIG, LOAD_TILE_3, ZERO_TILE_3, STORE_TILE_3, MULTIPLY, MULTIPLY_SAME, OTHER };

static void do_act(enum act act, const struct config *c)
{
    static uint8_t room[1024];
    int64_t stride = 64;
    load_config(c);
    switch (act) {
    case LOAD_CONFIG: break;
    case LOAD_TILE_3:
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm3" : : "r"(room), "r"(stride) : "memory");
        break;
    case ZERO_TILE_3: __asm__ volatile("tilezero %%tmm3" : : : "memory"); break;
    case STORE_TILE_3:
        __asm__ volatile("tilestored %%tmm3, (%0,%1,1)" : : "r"(room), "r"(stride) : "memory");
        break;
    case MULTIPLY: __asm__ volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" : : : "memory"); break;
    case MULTIPLY_SAME: /* tdpbf16ps %tmm2, %tmm2, %tmm0, which assemblers refuse */
        __asm__ volatile(".byte 0xC4, 0xE2, 0x6A, 0x5C, 0xC2" : : : "memory");
        break;
    case OTHER: __asm__ volatile("ud2" : : : "memory"); break;
    }
}

/* How a process ends that does this: the signal, or 0. */
static int fate(enum act act, const struct config *c)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGILL, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        if (!available()) _exit(1);
        do_act(act, c);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) return WTERMSIG(status);
    assert_int_equal(WEXITSTATUS(status), 0);
    return 0;
}

static void wrong_configurations_are_faults(void **state)
{
    need_amx();
    struct config good = shapes(16, 16, 16), c;
    assert_int_equal(fate(LOAD_CONFIG, &good), 0);
    c = good, c.palette = 2;
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
    c = good, c.reserved[13] = 1;
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
    c = good, c.rows[1] = 17;
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
    c = good, c.row_bytes[1] = 65;
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
    c = good, c.rows[1] = 0; /* but columns */
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
    c = good, c.rows[8] = 1, c.row_bytes[8] = 4; /* a ninth tile */
    assert_int_equal(fate(LOAD_CONFIG, &c), SIGSEGV);
}

static void wrong_uses_are_illegal(void **state)
{
    need_amx();
    struct config good = shapes(16, 16, 16), none = {0}, c;
    assert_int_equal(fate(MULTIPLY, &good), 0);
    assert_int_equal(fate(MULTIPLY, &none), SIGILL);
    assert_int_equal(fate(LOAD_TILE_3, &none), SIGILL);
    assert_int_equal(fate(LOAD_TILE_3, &good), SIGILL); /* not configured */
    assert_int_equal(fate(ZERO_TILE_3, &good), SIGILL);
    assert_int_equal(fate(STORE_TILE_3, &good), SIGILL);
    assert_int_equal(fate(MULTIPLY_SAME, &good), SIGILL);
    c = good, c.rows[1] = 15; /* not as many as the sums */
    assert_int_equal(fate(MULTIPLY, &c), SIGILL);
    c = good, c.row_bytes[2] = 60;
    assert_int_equal(fate(MULTIPLY, &c), SIGILL);
    c = good, c.rows[2] = 12;
    assert_int_equal(fate(MULTIPLY, &c), SIGILL);
    c = good, c.row_bytes[0] = c.row_bytes[2] = 62;
    assert_int_equal(fate(MULTIPLY, &c), SIGILL);
    assert_int_equal(fate(OTHER, &good), SIGILL); /* none of AMX's */
}

/* ---- threads ---- */

enum { TURNS = 200 };

struct worker { pthread_t handle; float value; pthread_barrier_t *turn; bool ok; };

/* Each keeps its own sums in tile 0 while the other works. */
static void *accumulate(void *arg)
{
    struct worker *w = arg;
    struct config c = shapes(4, 4, 1);
    uint16_t a[4 * 2], b[4 * 2];
    float sums[16];
    int64_t four = 4, sixteen = 16;
    for (int i = 0; i < 8; i++) a[i] = f32_to_bf16(w->value), b[i] = f32_to_bf16(1);
    load_config(&c);
    for (int i = 0; i < TURNS; i++) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm1\n\ttileloadd (%2,%3,1), %%tmm2\n\t"
                         "tdpbf16ps %%tmm2, %%tmm1, %%tmm0"
                         : : "r"(a), "r"(four), "r"(b), "r"(sixteen) : "memory");
        pthread_barrier_wait(w->turn);
    }
    __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(sums), "r"(sixteen) : "memory");
    release();
    w->ok = true;
    for (int i = 0; i < 16; i++) w->ok = w->ok && sums[i] == 2 * w->value * TURNS;
    return NULL;
}

static void threads_have_tiles_of_their_own(void **state)
{
    need_amx();
    pthread_barrier_t turn;
    struct worker workers[2] = {{.value = 1, .turn = &turn}, {.value = 3, .turn = &turn}};
    pthread_barrier_init(&turn, NULL, 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&workers[i].handle, NULL, accumulate, &workers[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(workers[i].handle, NULL);
    assert_true(workers[0].ok && workers[1].ok);
    pthread_barrier_destroy(&turn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(amx_is_found),
        cmocka_unit_test(configurations_come_back),
        cmocka_unit_test(loads_and_stores_keep_to_the_configuration),
        cmocka_unit_test(addresses_are_understood),
        cmocka_unit_test(products_are_the_definition),
        cmocka_unit_test(products_of_bytes_are_exact),
        cmocka_unit_test(infinities_and_nan_stay_in_their_row_and_column),
        cmocka_unit_test(wrong_configurations_are_faults),
        cmocka_unit_test(wrong_uses_are_illegal),
        cmocka_unit_test(threads_have_tiles_of_their_own),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
