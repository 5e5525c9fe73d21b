/* The kernels of cpu/amx.h beside their definitions: products to the last bit of the chain that
 * amx.h promises, squares word by word. Memory holds exactly what a call may read. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cpu/amx.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

static void need_amx(void)
{
    if (cpu_isa_best() != CPU_ISA_AMX) skip();
}

static uint16_t *random_bf16(struct cpu_rng *rng, int64_t n)
{
    uint16_t *x = device_bytes(n * 2);
    for (int64_t i = 0; i < n; i++) x[i] = f32_to_bf16(cpu_rng_float(rng));
    return x;
}

/* ---- products ---- */

struct problem {
    int64_t rows, pairs, n_panels;
    uint16_t *a;  /* [rows][steps][32] */
    uint16_t *b;  /* [n_panels][pairs][PANEL][2] */
    float *want, *got; /* [rows][n_panels][PANEL] */
    int64_t next_panel, next_row;
    int64_t n_rows; /* that are wanted: A may be filled up */
};

static int64_t steps_of(const struct problem *p) { return ceil_div(p->pairs, 16); }

/* Steps from zero, added up: within a step even and odd elements by themselves. */
static float plain_output(const struct problem *p, int64_t row, int64_t panel, int64_t n)
{
    float sum = 0;
    for (int64_t s = 0; s < steps_of(p); s++) {
        const uint16_t *a = p->a + (row * steps_of(p) + s) * 32;
        float even = 0, odd = 0;
        for (int64_t i = 0; i < 16 && s * 16 + i < p->pairs; i++) {
            const uint16_t *b = p->b + ((panel * p->pairs + s * 16 + i) * PANEL + n) * 2;
            even = fmaf(bf16_to_f32(a[2 * i]), bf16_to_f32(b[0]), even);
            odd = fmaf(bf16_to_f32(a[2 * i + 1]), bf16_to_f32(b[1]), odd);
        }
        sum += even + odd;
    }
    return sum;
}

static struct problem problem_new(int64_t rows, int64_t pairs, int64_t n_panels)
{
    struct cpu_rng rng = {41};
    struct problem p = {.rows = rows, .pairs = pairs, .n_panels = n_panels, .n_rows = rows};
    p.a = random_bf16(&rng, rows * steps_of(&p) * 32);
    p.b = random_bf16(&rng, n_panels * pairs * PANEL * 2);
    for (int64_t r = 0; r < rows; r++) /* nothing past the pairs */
        for (int64_t i = 2 * pairs; i < steps_of(&p) * 32; i++) p.a[r * steps_of(&p) * 32 + i] = 0;
    p.want = device_bytes(rows * n_panels * PANEL * 4);
    p.got = device_bytes(rows * n_panels * PANEL * 4);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < n_panels * PANEL; n++)
            p.want[r * n_panels * PANEL + n] = plain_output(&p, r, n / PANEL, n % PANEL);
    return p;
}

static void problem_free(struct problem *p) { free(p->a), free(p->b), free(p->want), free(p->got); }

/* Each row of each panel once, in order. */
static void take(const void *ctx, int64_t panel, int64_t row, int64_t n_rows, const float *tile)
{
    struct problem *p = (struct problem *)ctx;
    assert_int_equal(panel, p->next_panel);
    assert_int_equal(row, p->next_row);
    assert_true(n_rows > 0 && row + n_rows <= p->n_rows);
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(p->got + ((row + r) * p->n_panels + panel) * PANEL, tile + r * PANEL, PANEL * 4);
    p->next_row += n_rows;
    if (p->next_row < p->n_rows) return;
    p->next_row = 0;
    p->next_panel++;
}

static struct amx_product product_of(struct problem *p, bool far)
{
    int64_t row = steps_of(p) * 64;
    return (struct amx_product){
        .a = (const uint8_t *)p->a,
        .a_row = row,
        .a_step = 64,
        .a_block = 32 * row,
        .rows = p->rows,
        .b = (const uint8_t *)p->b,
        .b_panel = p->pairs * PANEL * 4,
        .pairs = p->pairs,
        .b_is_far = far,
        .write = take,
        .ctx = p,
    };
}

static void check_outputs(const struct problem *p)
{
    assert_int_equal(p->next_panel, p->n_panels);
    for (int64_t i = 0; i < p->n_rows * p->n_panels * PANEL; i++) {
        /* A processor has an order of its own within a step. */
        if (amx_emulator_count() == 0)
            assert_near(p->got[i], p->want[i], 1e-5, "product", i / PANEL, i % PANEL);
        else assert_memory_equal(&p->got[i], &p->want[i], 4);
    }
}

static void products_are_the_promised_chain(void **state)
{
    need_amx();
    static const struct { int64_t rows, pairs, n_panels; } shapes[] = {
        {1, 1, 1}, {1, 16, 2}, {2, 17, 3}, {15, 31, 2}, {16, 48, 2}, {17, 16, 2}, {31, 33, 1},
        {32, 16, 1}, {33, 15, 3}, {64, 40, 2}, {100, 16, 2}, {127, 50, 2}, {128, 288, 2},
        {150, 300, 3},
        {200, 530, 1}, {512, 5, 2}, {3, 700, 2},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int far = 0; far < 2; far++) {
            struct problem p = problem_new(shapes[i].rows, shapes[i].pairs, shapes[i].n_panels);
            struct amx_product product = product_of(&p, far);
            amx_multiply(&product, 0, p.n_panels);
            check_outputs(&p);
            problem_free(&p);
        }
}

/* From the middle to the end, and A as the backward product lays it out. */
static void ranges_and_layouts_change_nothing(void **state)
{
    need_amx();
    struct problem p = problem_new(96, 80, 4);
    struct amx_product product = product_of(&p, true);
    amx_multiply(&product, 0, 1);
    assert_int_equal(p.next_panel, 1);
    amx_multiply(&product, 1, 4);
    check_outputs(&p);
    uint16_t *blocks = device_bytes(96 * 5 * 64);
    for (int64_t r = 0; r < 96; r++)
        for (int64_t s = 0; s < 5; s++)
            memcpy(blocks + (((r / 32) * 5 + s) * 32 + r % 32) * 32, p.a + (r * 5 + s) * 32, 64);
    product.a = (const uint8_t *)blocks;
    product.a_row = 64;
    product.a_step = AMX_STEP_BYTES;
    product.a_block = 5 * AMX_STEP_BYTES;
    p.next_panel = 0;
    memset(p.got, 0xA5, (size_t)(96 * 4 * PANEL) * 4);
    amx_multiply(&product, 0, 4);
    check_outputs(&p);
    free(blocks);
    problem_free(&p);
}

/* A NaN beyond the pairs, in the panel that follows or past the rows, is nobody's. */
static void nothing_beyond_the_pairs_counts(void **state)
{
    need_amx();
    struct problem p = problem_new(40, 21, 3);
    for (int64_t i = 0; i < 21 * PANEL * 2; i++) p.b[2 * 21 * PANEL * 2 + i] = f32_to_bf16(NAN);
    struct amx_product product = product_of(&p, false);
    amx_multiply(&product, 0, 2);
    for (int64_t r = 0; r < 40; r++)
        for (int64_t n = 0; n < 2 * PANEL; n++) assert_true(isfinite(p.got[r * 3 * PANEL + n]));
    problem_free(&p);
}

/* ---- squares ---- */

static const int64_t sizes[] = {1, 2, 3, 15, 16, 17, 31, 32};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

static void rows_are_turned_and_paired(void **state)
{
    need_amx();
    struct cpu_rng rng = {43};
    uint16_t turned[32 * 32], paired[32 * 32];
    for (int i = 0; i < N_SIZES; i++)
        for (int j = 0; j < N_SIZES; j++) {
            int64_t rows = sizes[i], cols = sizes[j], stride = cols + 5 * (j % 2);
            uint16_t *x = random_bf16(&rng, (rows - 1) * stride + cols);
            amx_turn_rows((uint8_t *)turned, x, stride, rows, cols);
            amx_pair_rows((uint8_t *)paired, x, stride, rows, cols);
            for (int64_t r = 0; r < 32; r++)
                for (int64_t c = 0; c < 32; c++) {
                    uint16_t want = r < rows && c < cols ? x[r * stride + c] : 0;
                    assert_int_equal(turned[c * 32 + r], want);
                    assert_int_equal(paired[(r / 2 * 32 + c) * 2 + r % 2], want);
                }
            free(x);
        }
}

static void pairs_are_turned(void **state)
{
    need_amx();
    struct cpu_rng rng = {47};
    uint16_t turned[32 * 32];
    for (int64_t pairs = 1; pairs <= 16; pairs++) {
        uint16_t *square = random_bf16(&rng, pairs * PANEL * 2); /* [k / 2][n][2] */
        amx_turn_pairs((uint8_t *)turned, (const uint32_t *)square, pairs);
        for (int64_t n = 0; n < 32; n++)
            for (int64_t k = 0; k < 32; k++) {
                uint16_t want = k < 2 * pairs ? square[(k / 2 * PANEL + n) * 2 + k % 2] : 0;
                assert_int_equal(turned[(n / 2 * PANEL + k) * 2 + n % 2], want);
            }
        free(square);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_the_promised_chain),
        cmocka_unit_test(ranges_and_layouts_change_nothing),
        cmocka_unit_test(nothing_beyond_the_pairs_counts),
        cmocka_unit_test(rows_are_turned_and_paired),
        cmocka_unit_test(pairs_are_turned),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
