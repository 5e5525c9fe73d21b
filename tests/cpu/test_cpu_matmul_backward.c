/* The gradients of products: dx = dy W, and dw += dy^T x into f32 and into bf16, whose rounding is
 * stochastic, fixed by the element and its key alone, and right on average. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "model/sampler.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

enum { N_OUT = 70, N_IN = 37 };

/* The workspace of exactly the bytes that were planned for these rows. */
static void open_for(struct cpu_fixture *f, enum cpu_isa isa, int32_t n_threads, enum dtype dtype,
                     enum dtype gradients, int64_t rows)
{
    struct workspace_shape s = {.dtype = dtype, .max_rows = rows, .max_logit_rows = 1,
                                .n_embd = N_IN, .n_ff = N_IN, .n_head = 1, .n_kv_head = 1,
                                .head_dim = 16, .vocab_size = 1, .block_size = 1,
                                .gradients = gradients};
    cpu_fixture_open(f, isa, n_threads, &s);
    free(f->workspace);
    int64_t bytes = f->d->train->workspace_bytes(f->d, &s);
    f->workspace = device_bytes(bytes);
    f->d->ops->set_workspace(f->d, f->workspace, bytes);
}

/* dw, which begins as 0.75, after dy^T x with these values; unpacked. */
static float *gradient(enum cpu_isa isa, int32_t n_threads, enum dtype dtype, enum dtype gradients,
                       int64_t rows, uint64_t key)
{
    struct cpu_fixture f;
    struct cpu_rng rng = {3};
    open_for(&f, isa, n_threads, dtype, gradients, rows);
    float *dy = malloc((size_t)(rows * N_OUT) * 4), *x = malloc((size_t)(rows * N_IN) * 4);
    float *out = malloc(N_OUT * N_IN * 4);
    cpu_rng_fill(&rng, dy, rows * N_OUT);
    cpu_rng_fill(&rng, x, rows * N_IN);
    for (int i = 0; i < N_OUT * N_IN; i++) out[i] = 0.75f;
    struct matrix dw = {.dtype = gradients, .n_out = N_OUT, .n_in = N_IN};
    int64_t bytes = f.d->ops->matrix_bytes(f.d, gradients, N_OUT, N_IN);
    dw.data = device_bytes(bytes);
    memset(dw.data, 0, (size_t)bytes);
    f.d->ops->matrix_write(f.d, &dw, 0, N_OUT, out);
    struct tensor tdy = tensor_from(dtype, rows, N_OUT, dy), tx = tensor_from(dtype, rows, N_IN, x);
    uint64_t base = key << 4;
    f.d->train->matmul_backward_w(f.d, &dw, NULL, tdy, tx, (struct random_key){.base = &base});
    f.d->train->matrix_read(f.d, &dw, 0, N_OUT, out);
    free(dy), free(x), free(dw.data), free(tdy.data), free(tx.data);
    cpu_fixture_close(&f);
    return out;
}

/* ---- both gradients, beside sums in f64 ---- */

struct shape { int64_t rows, n_out, n_in; };

static float *numbers(struct cpu_rng *rng, enum dtype dtype, int64_t n)
{
    float *x = malloc((size_t)n * 4);
    cpu_rng_fill(rng, x, n);
    for (int64_t i = 0; i < n; i++) x[i] = rounded(dtype, x[i]);
    return x;
}

static void check_products(enum cpu_isa isa, enum dtype dtype, const struct shape *s)
{
    struct cpu_fixture f;
    struct cpu_rng rng = {11};
    int64_t R = s->rows, O = s->n_out, I = s->n_in;
    struct workspace_shape shape = {.dtype = dtype, .max_rows = R, .max_logit_rows = 1, .n_embd = I,
                                    .n_ff = I, .n_head = 1, .n_kv_head = 1, .head_dim = 1,
                                    .vocab_size = 1, .block_size = 1};
    cpu_fixture_open(&f, isa, 2, &shape);
    free(f.workspace);
    int64_t room = f.d->train->workspace_bytes(f.d, &shape);
    f.workspace = device_bytes(room);
    f.d->ops->set_workspace(f.d, f.workspace, room);
    float *dy = numbers(&rng, dtype, R * O), *x = numbers(&rng, dtype, R * I);
    float *w = numbers(&rng, dtype, O * I), *got = malloc((size_t)(O * I) * 4);
    struct tensor tdy = tensor_from(dtype, R, O, dy), tx = tensor_from(dtype, R, I, x);
    struct tensor dx = tensor_blank(DTYPE_F32, R, I);
    struct matrix m = {.data = device_bytes(f.d->ops->matrix_bytes(f.d, dtype, O, I)),
                       .dtype = dtype, .n_out = O, .n_in = I};
    int64_t bytes = f.d->ops->matrix_bytes(f.d, DTYPE_F32, O, I);
    struct matrix dw = {.data = device_bytes(bytes), .n_out = O, .n_in = I};
    memset(m.data, 0, (size_t)f.d->ops->matrix_bytes(f.d, dtype, O, I));
    memset(dw.data, 0, (size_t)bytes);
    f.d->ops->matrix_write(f.d, &m, 0, O, w);
    f.d->train->matmul_backward_x(f.d, dx, tdy, &m);
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t o = 0; o < O; o++) sum += (double)dy[r * O + o] * w[o * I + i];
            assert_near(tensor_at(dx, r, i), sum, 1e-4, "dx", r, i);
        }
    f.d->train->matmul_backward_w(f.d, &dw, NULL, tdy, tx, (struct random_key){0});
    f.d->train->matrix_read(f.d, &dw, 0, O, got);
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < I; i++) {
            double sum = 0;
            for (int64_t r = 0; r < R; r++) sum += (double)dy[r * O + o] * x[r * I + i];
            assert_near(got[o * I + i], sum, 1e-4, "dw", o, i);
        }
    free(dy), free(x), free(w), free(got), free(m.data), free(dw.data);
    free(tdy.data), free(tx.data), free(dx.data);
    cpu_fixture_close(&f);
}

/* One row, tiles that are not full, panels that are not, odd numbers of each, and more
 * outputs or rows than are summed at once. */
static void products_are_right(void **state)
{
    static const struct shape shapes[] = {{1, 1, 1},   {2, 33, 3},    {13, 31, 65}, {25, 64, 203},
                                          {5, 1057, 7}, {37, 40, 50}, {515, 34, 200}};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            check_products((enum cpu_isa)isa, DTYPE_F32, &shapes[i]);
            check_products((enum cpu_isa)isa, DTYPE_BF16, &shapes[i]);
        }
}

static const int64_t row_counts[] = {1, 2, 31, 512, 513, 2048, 2049, 5000};
enum { N_COUNTS = sizeof row_counts / sizeof *row_counts };

/* A bf16 gradient is the f32 one rounded up or down, once for every 2,048 rows. */
static void bf16_is_near_f32(void **state)
{
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int i = 0; i < N_COUNTS; i++) {
            int64_t rows = row_counts[i], parts = ceil_div(rows, 2048);
            if (isa == 0 && rows > 513) continue; /* slow */
            enum dtype dtype = i % 2 ? DTYPE_BF16 : DTYPE_F32;
            float *exact = gradient((enum cpu_isa)isa, 2, dtype, DTYPE_F32, rows, 0);
            float *got = gradient((enum cpu_isa)isa, 2, dtype, DTYPE_BF16, rows, 5);
            int differ = 0;
            for (int k = 0; k < N_OUT * N_IN; k++) {
                double step = fmax(fabs(exact[k]), 8) / 128 * (double)parts;
                if (!(fabs(got[k] - exact[k]) <= step))
                    fail_msg("%lld rows: %g, not %g", (long long)rows, got[k], exact[k]);
                differ += got[k] != exact[k];
            }
            assert_true(differ > N_OUT * N_IN / 2);
            free(exact), free(got);
        }
}

static void threads_change_no_bit_and_keys_do(void **state)
{
    float *a = gradient(CPU_ISA_BEST, 1, DTYPE_BF16, DTYPE_BF16, 2100, 5);
    float *b = gradient(CPU_ISA_BEST, 3, DTYPE_BF16, DTYPE_BF16, 2100, 5);
    float *c = gradient(CPU_ISA_BEST, 3, DTYPE_BF16, DTYPE_BF16, 2100, (uint64_t)1 << 40 | 5);
    assert_memory_equal(a, b, N_OUT * N_IN * 4);
    assert_memory_not_equal(a, c, N_OUT * N_IN * 4);
    free(a), free(b), free(c);
}

/* ---- the kernel ---- */

enum { PAIRS = 6, ROWS = 2 * PAIRS };

static void add(enum cpu_isa isa, uint32_t panel[PAIRS * PANEL], const float tile[ROWS * PANEL],
                int64_t k0, int64_t k1, uint64_t key)
{
    struct cpu_kernels kernels;
    cpu_kernels_init(&kernels, isa);
    struct bf16_tile t = {.panel = panel, .tile = tile + k0 * PANEL, .k0 = k0, .rows = k1 - k0,
                          .pair0 = (int64_t)1 << 33, .part = 3, .key = key};
    kernels.bf16_add(&t);
}

static float element(const uint32_t *panel, int64_t k, int64_t j)
{
    return bf16_to_f32((uint16_t)(panel[k / 2 * PANEL + j] >> (k % 2 ? 16 : 0)));
}

/* However a panel is cut into tiles, and with whatever instructions: the same bits. */
static void tiles_and_instructions_change_no_bit(void **state)
{
    struct cpu_rng rng = {9};
    float tile[ROWS * PANEL];
    uint32_t want[PAIRS * PANEL], start[PAIRS * PANEL];
    cpu_rng_fill(&rng, tile, ROWS * PANEL);
    for (int i = 0; i < PAIRS * PANEL; i++) start[i] = 0x3F80BF00; /* 1 and -0.5 */
    memcpy(want, start, sizeof want);
    add(CPU_ISA_REFERENCE, want, tile, 0, ROWS, 7);
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int64_t cut = 1; cut < ROWS; cut++) {
            uint32_t got[PAIRS * PANEL];
            memcpy(got, start, sizeof got);
            add((enum cpu_isa)isa, got, tile, cut, ROWS, 7);
            add((enum cpu_isa)isa, got, tile, 0, cut, 7);
            assert_memory_equal(got, want, sizeof want);
        }
}

/* The bits added below a value are Philox's: with 1 in the accumulator, what is added
 * rounds up exactly when noise carries. */
static void noise_is_philox(void **state)
{
    const uint64_t key = 0x0123456789ABCDEF;
    uint32_t k[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
    float tile[ROWS * PANEL];
    uint32_t panel[PAIRS * PANEL];
    for (int i = 0; i < PAIRS * PANEL; i++) panel[i] = 0x3F803F80;
    for (int i = 0; i < ROWS * PANEL; i++) tile[i] = 0x1p-8f; /* half of the last bit */
    add(CPU_ISA_BEST, panel, tile, 0, ROWS, key);
    for (int64_t pair = 0; pair < PAIRS; pair++)
        for (uint32_t c = 0; c < 8; c++) {
            uint64_t n = (((uint64_t)1 << 33) + (uint64_t)pair) * 8 + c;
            uint32_t counter[4] = {(uint32_t)n, (uint32_t)(n >> 32), 3, 0x67726164}, words[4];
            philox4x32(counter, k, words);
            for (int w = 0; w < 4; w++) {
                bool even = (words[w] & 0xFFFF) >= 0x8000, odd = words[w] >= 0x80000000;
                assert_true(element(panel, 2 * pair, c * 4 + w) == (even ? 1.0078125f : 1.0f));
                assert_true(element(panel, 2 * pair + 1, c * 4 + w) == (odd ? 1.0078125f : 1.0f));
            }
        }
}

/* What many small additions come to, each far below the last bit of the sum. */
static void the_mean_is_kept(void **state)
{
    enum { TIMES = 4000 };
    float tile[ROWS * PANEL];
    uint32_t panel[PAIRS * PANEL];
    for (int i = 0; i < PAIRS * PANEL; i++) panel[i] = 0x42C842C8; /* 100: the last bit is 0.5 */
    for (int i = 0; i < ROWS * PANEL; i++) tile[i] = 0.003f;
    for (uint64_t i = 0; i < TIMES; i++) add(CPU_ISA_BEST, panel, tile, 0, ROWS, i);
    double sum = 0;
    for (int64_t k = 0; k < ROWS; k++)
        for (int64_t j = 0; j < PANEL; j++) sum += element(panel, k, j);
    double mean = sum / (ROWS * PANEL);
    if (fabs(mean - 112) > 0.5) fail_msg("the mean is %g, not 112", mean); /* 4 standard errors */
}

static void extremes_stay_what_they_are(void **state)
{
    static const float values[] = {0, -0.0f, 1, -256, INFINITY, -INFINITY, 0x1p-130f, 3.38e38f};
    enum { N = sizeof values / sizeof *values };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        float tile[ROWS * PANEL] = {0};
        uint32_t panel[PAIRS * PANEL] = {0};
        for (int i = 0; i < N; i++) tile[i] = rounded(DTYPE_BF16, values[i]);
        uint32_t nan = 0x7FFFFFFF; /* the one to which noise would give another sign */
        memcpy(&tile[N], &nan, 4);
        for (uint64_t key = 0; key < 50; key++) {
            memset(panel, 0, sizeof panel);
            add((enum cpu_isa)isa, panel, tile, 0, ROWS, key);
            for (int i = 0; i < N; i++)
                assert_true(element(panel, 0, i) == rounded(DTYPE_BF16, values[i]));
            assert_true(isnan(element(panel, 0, N)));
            for (int i = N + 1; i < ROWS * PANEL; i++)
                assert_true(element(panel, i / PANEL, i % PANEL) == 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(bf16_is_near_f32),
        cmocka_unit_test(threads_change_no_bit_and_keys_do),
        cmocka_unit_test(tiles_and_instructions_change_no_bit),
        cmocka_unit_test(noise_is_philox),
        cmocka_unit_test(the_mean_is_kept),
        cmocka_unit_test(extremes_stay_what_they_are),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
