/* Products at every instruction set: against sums in double, and bit for bit against themselves in
 * other company (more rows, more threads, another order). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "model/device_train.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

struct shape { int64_t n_out, n_in; };

static const struct shape shapes[] = {
    {1, 1}, {15, 2}, {16, 3}, {17, 7}, {31, 16}, {32, 15}, {33, 17}, {64, 64}, {65, 33}, {100, 129},
    {257, 48},
};
static const int64_t row_counts[] = {1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 25, 40};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_COUNTS = sizeof row_counts / sizeof *row_counts,
       MAX_ROWS = 40 };

static struct workspace_shape plan_for(int64_t rows, int64_t n_in)
{
    return (struct workspace_shape){.max_rows = rows, .max_logit_rows = 1, .n_embd = n_in,
                                    .n_ff = 1, .n_head = 1, .n_kv_head = 1, .head_dim = 1,
                                    .vocab_size = 1, .block_size = 1};
}

/* Random values that both types hold exactly. */
static float *random_values(struct cpu_rng *r, int64_t n, enum dtype dtype)
{
    float *x = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) x[i] = rounded(dtype, cpu_rng_float(r));
    return x;
}

/* Written in two parts where the matrix is large enough, as loading does. */
static struct matrix packed(struct device *d, enum dtype dtype, struct shape s, const float *values)
{
    struct matrix w = {.dtype = dtype, .n_out = s.n_out, .n_in = s.n_in};
    w.data = device_bytes(d->ops->matrix_bytes(d, dtype, s.n_out, s.n_in));
    memset(w.data, 0, (size_t)d->ops->matrix_bytes(d, dtype, s.n_out, s.n_in)); /* as an arena */
    int64_t first = min_i64(64, s.n_out);
    d->ops->matrix_write(d, &w, 0, first, values);
    if (first < s.n_out) d->ops->matrix_write(d, &w, 64, s.n_out - 64, values + 64 * s.n_in);
    return w;
}

static double activation(double y, enum epilogue e)
{
    if (e == EPILOGUE_GELU_TANH)
        return 0.5 * y * (1 + tanh(0.79788456080286536 * (y + 0.044715 * y * y * y)));
    if (e == EPILOGUE_GELU_EXACT) return 0.5 * y * erfc(-y * 0.70710678118654752);
    return y;
}

/* Sums of n_in products below 1: f32 rounding adds at most n_in * 2^-24 of their size. */
static void check_product(struct device *d, enum dtype dtype, struct shape s, int64_t rows,
                          enum dtype out_dtype, enum epilogue e, bool with_bias,
                          struct cpu_rng *rng)
{
    float *wv = random_values(rng, s.n_out * s.n_in, dtype);
    float *xv = random_values(rng, rows * s.n_in, dtype), *bias = random_values(rng, s.n_out, 0);
    float *before = random_values(rng, rows * s.n_out, 0);
    struct matrix w = packed(d, dtype, s, wv);
    struct tensor x = tensor_from(dtype, rows, s.n_in, xv);
    struct tensor out = tensor_from(out_dtype, rows, s.n_out, before);
    d->ops->matmul(d, out, x, &w, with_bias ? bias : NULL, e);
    double tolerance = out_dtype == DTYPE_F32 ? 2e-6 + 1e-7 * (double)s.n_in : 5e-3;
    bool gelu = e == EPILOGUE_GELU_TANH || e == EPILOGUE_GELU_EXACT;
    if (gelu && out_dtype == DTYPE_BF16) tolerance *= 2; /* rounded before and after */
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < s.n_out; n++) {
            double y = with_bias ? bias[n] : 0;
            for (int64_t k = 0; k < s.n_in; k++)
                y += (double)xv[r * s.n_in + k] * wv[n * s.n_in + k];
            y = activation(y, e) + (e == EPILOGUE_ADD ? before[r * s.n_out + n] : 0);
            assert_near(tensor_at(out, r, n), y, tolerance, d->ops->description(d), r, n);
        }
    free(wv), free(xv), free(bias), free(before), free(w.data), free(x.data), free(out.data);
}

static void products_are_right(void **state)
{
    struct cpu_rng rng = {1};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        struct workspace_shape plan = plan_for(MAX_ROWS, 129);
        cpu_fixture_open(&f, (enum cpu_isa)isa, 2, &plan);
        for (int s = 0; s < N_SHAPES; s++)
            for (int c = 0; c < N_COUNTS; c++) {
                enum epilogue e = (enum epilogue)((s + c) % 4);
                enum dtype out = e == EPILOGUE_ADD || c % 2 ? DTYPE_F32 : DTYPE_BF16;
                check_product(f.d, DTYPE_F32, shapes[s], row_counts[c], DTYPE_F32, e, s % 2, &rng);
                check_product(f.d, DTYPE_BF16, shapes[s], row_counts[c], out, e, c % 3, &rng);
            }
        cpu_fixture_close(&f);
    }
}

/* Values far out, where a sloppy exp or erf shows. */
static void activations_hold_at_extremes(void **state)
{
    static const float at[] = {0, 1e-30f, -1e-30f, 0.5f, -0.5f, 1, -1, 3, -3, 5, -5, 9, -9, 13, -13,
                               30, -30, 100, -100, 1e5f, -1e5f, 1e20f, -1e20f, 3e38f, -3e38f};
    enum { N = sizeof at / sizeof *at };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        struct workspace_shape plan = plan_for(1, 1);
        cpu_fixture_open(&f, (enum cpu_isa)isa, 1, &plan);
        float one = 1, out[N];
        struct matrix w = packed(f.d, DTYPE_F32, (struct shape){N, 1}, at);
        for (enum epilogue e = EPILOGUE_GELU_TANH; e <= EPILOGUE_GELU_EXACT; e++) {
            f.d->ops->matmul(f.d, (struct tensor){out, DTYPE_F32, 1, N},
                             (struct tensor){&one, DTYPE_F32, 1, 1}, &w, NULL, e);
            for (int i = 0; i < N; i++)
                assert_near(out[i], activation(at[i], e), 4e-7, f.d->ops->description(f.d), e, i);
        }
        free(w.data);
        cpu_fixture_close(&f);
    }
}

/* ---- quantized ---- */

static const enum dtype quantized[] = {DTYPE_Q8_0, DTYPE_Q4_0};
enum { N_QUANTIZED = 2 };

/* A row as the kernels see it: codes times scale, blocks of 32. */
static void quantize_row(const float *x, int64_t n, double *out)
{
    for (int64_t k0 = 0; k0 < n; k0 += 32) {
        float largest = 0;
        int64_t end = min_i64(k0 + 32, n);
        for (int64_t k = k0; k < end; k++) largest = fmaxf(largest, fabsf(x[k]));
        for (int64_t k = k0; k < end; k++)
            out[k] = largest > 0
                         ? nearbyintf(x[k] * (127.0f / largest)) * (double)(largest / 127.0f)
                         : 0;
    }
}

static void check_quantized(struct device *d, enum dtype dtype, struct shape s, int64_t rows,
                            struct cpu_rng *rng)
{
    float *wv = random_values(rng, s.n_out * s.n_in, 0);
    float *read = malloc((size_t)(s.n_out * s.n_in) * 4);
    float *xv = random_values(rng, rows * s.n_in, DTYPE_BF16);
    float *bias = random_values(rng, s.n_out, 0);
    double *xq = malloc((size_t)(rows * s.n_in) * sizeof *xq);
    struct matrix w = packed(d, dtype, s, wv);
    d->train->matrix_read(d, &w, 0, s.n_out, read);
    /* What is stored is the nearest code away from what was meant,
     * or half a step of the block's extreme. */
    for (int64_t i = 0; i < s.n_out * s.n_in; i++)
        assert_near(read[i], wv[i], dtype == DTYPE_Q8_0 ? 0.0045 : 0.13, "stored", i / s.n_in,
                    i % s.n_in);
    struct tensor x = tensor_from(DTYPE_BF16, rows, s.n_in, xv);
    struct tensor out = tensor_blank(DTYPE_F32, rows, s.n_out);
    d->ops->matmul(d, out, x, &w, bias, EPILOGUE_NONE);
    for (int64_t r = 0; r < rows; r++) quantize_row(xv + r * s.n_in, s.n_in, xq + r * s.n_in);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < s.n_out; n++) {
            double y = bias[n];
            for (int64_t k = 0; k < s.n_in; k++) y += xq[r * s.n_in + k] * read[n * s.n_in + k];
            assert_near(tensor_at(out, r, n), y, 2e-6 + 1e-7 * (double)s.n_in,
                        d->ops->description(d), r, n);
        }
    free(wv), free(read), free(xv), free(bias), free(xq), free(w.data), free(x.data);
    free(out.data);
}

static void quantized_products_are_right(void **state)
{
    struct cpu_rng rng = {11};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        struct workspace_shape plan = plan_for(MAX_ROWS, 129);
        cpu_fixture_open(&f, (enum cpu_isa)isa, 2, &plan);
        for (int q = 0; q < N_QUANTIZED; q++)
            for (int s = 0; s < N_SHAPES; s++)
                for (int c = 0; c < N_COUNTS; c++)
                    check_quantized(f.d, quantized[q], shapes[s], row_counts[c], &rng);
        cpu_fixture_close(&f);
    }
}

/* Weights that are exact in a format come back as they were: files of that format lose nothing. */
static void quantizing_again_changes_nothing(void **state)
{
    enum { N_OUT = 40, N_IN = 96 };
    struct cpu_rng rng = {13};
    struct cpu_fixture f;
    struct workspace_shape plan = plan_for(1, N_IN);
    cpu_fixture_open(&f, CPU_ISA_BEST, 2, &plan);
    for (int q = 0; q < N_QUANTIZED; q++) {
        float *values = random_values(&rng, N_OUT * N_IN, 0), again[N_OUT * N_IN];
        struct matrix w = packed(f.d, quantized[q], (struct shape){N_OUT, N_IN}, values);
        f.d->train->matrix_read(f.d, &w, 0, N_OUT, values);
        struct matrix copy = packed(f.d, quantized[q], (struct shape){N_OUT, N_IN}, values);
        f.d->train->matrix_read(f.d, &copy, 0, N_OUT, again);
        assert_memory_equal(again, values, sizeof again);
        assert_memory_equal(copy.data, w.data,
                            (size_t)f.d->ops->matrix_bytes(f.d, quantized[q], N_OUT, N_IN));
        free(values), free(w.data), free(copy.data);
    }
    cpu_fixture_close(&f);
}

/* Block sums are exact and what follows is one chain: no instruction set differs in a bit,
 * whatever the size of a row's values. */
static void quantized_bits_know_no_instruction_set(void **state)
{
    enum { N_OUT = 70, N_IN = 300, ROWS = 13 };
    struct cpu_rng rng = {19};
    float *wv = random_values(&rng, N_OUT * N_IN, 0);
    float *xv = random_values(&rng, ROWS * N_IN, DTYPE_BF16);
    static const float scales[ROWS] = {0, -1, 1e-38f, 1e-40f, 3e-37f, 1e30f, 1e-20f, 1, 1, 1, 1, 1,
                                       1};
    for (int64_t i = 0; i < ROWS * N_IN; i++) xv[i] *= scales[i / N_IN];
    struct tensor x = tensor_from(DTYPE_BF16, ROWS, N_IN, xv);
    struct workspace_shape plan = plan_for(ROWS, N_IN);
    for (int q = 0; q < N_QUANTIZED; q++) {
        struct tensor want = tensor_blank(DTYPE_F32, ROWS, N_OUT);
        struct tensor out = tensor_blank(DTYPE_F32, ROWS, N_OUT);
        for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
            struct cpu_fixture f;
            cpu_fixture_open(&f, (enum cpu_isa)isa, 2, &plan);
            struct matrix w = packed(f.d, quantized[q], (struct shape){N_OUT, N_IN}, wv);
            f.d->ops->matmul(f.d, isa == 0 ? want : out, x, &w, NULL, EPILOGUE_NONE);
            if (isa > 0) assert_memory_equal(out.data, want.data, ROWS * N_OUT * 4);
            free(w.data);
            cpu_fixture_close(&f);
        }
        free(want.data), free(out.data);
    }
    free(wv), free(xv), free(x.data);
}

/* Numbers that no code stands for: nothing breaks, and the other rows and outputs are as they
 * were. */
static void quantized_poison_does_not_spread(void **state)
{
    enum { ROWS = 20, N_OUT = 40, N_IN = 64 };
    struct cpu_rng rng = {17};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int q = 0; q < N_QUANTIZED; q++) {
            struct cpu_fixture f;
            struct workspace_shape plan = plan_for(ROWS, N_IN);
            cpu_fixture_open(&f, (enum cpu_isa)isa, 2, &plan);
            float *wv = random_values(&rng, N_OUT * N_IN, 0);
            float *xv = random_values(&rng, ROWS * N_IN, 0);
            struct tensor clean = tensor_blank(DTYPE_F32, ROWS, N_OUT);
            struct tensor out = tensor_blank(DTYPE_F32, ROWS, N_OUT);
            struct matrix w = packed(f.d, quantized[q], (struct shape){N_OUT, N_IN}, wv);
            struct tensor x = tensor_from(DTYPE_BF16, ROWS, N_IN, xv);
            f.d->ops->matmul(f.d, clean, x, &w, NULL, EPILOGUE_NONE);
            wv[33 * N_IN + 2] = NAN;
            wv[33 * N_IN + 3] = 1e38f;
            ((uint16_t *)x.data)[2 * N_IN + 5] = f32_to_bf16(INFINITY);
            ((uint16_t *)x.data)[2 * N_IN + 6] = f32_to_bf16(NAN);
            struct matrix bad = packed(f.d, quantized[q], (struct shape){N_OUT, N_IN}, wv);
            f.d->ops->matmul(f.d, out, x, &bad, NULL, EPILOGUE_NONE);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t n = 0; n < N_OUT; n++)
                    if (r != 2 && n != 33)
                        assert_true(tensor_at(out, r, n) == tensor_at(clean, r, n));
            free(wv), free(xv), free(w.data), free(bad.data), free(x.data), free(out.data);
            free(clean.data);
            cpu_fixture_close(&f);
        }
}

/* The same rows in calls of every size, at every offset, with other threads: the same bits. */
static void check_bits(enum cpu_isa isa, enum dtype dtype, struct shape s, int64_t rows)
{
    struct cpu_rng rng = {7};
    struct workspace_shape plan = plan_for(rows, s.n_in);
    struct cpu_fixture one, many;
    cpu_fixture_open(&one, isa, 1, &plan);
    cpu_fixture_open(&many, isa, 3, &plan);
    bool plain = dtype == DTYPE_F32 || dtype == DTYPE_BF16;
    enum dtype act = plain ? dtype : DTYPE_BF16;
    float *wv = random_values(&rng, s.n_out * s.n_in, act);
    float *xv = random_values(&rng, rows * s.n_in, act);
    struct matrix w = packed(one.d, dtype, s, wv);
    struct tensor x = tensor_from(act, rows, s.n_in, xv);
    struct tensor whole = tensor_blank(DTYPE_F32, rows, s.n_out);
    struct tensor part = tensor_blank(DTYPE_F32, rows, s.n_out);
    many.d->ops->matmul(many.d, whole, x, &w, NULL, EPILOGUE_NONE);
    int64_t step = isa == CPU_ISA_AMX ? 5 : 1; /* emulated, rows take time; 16 is among them */
    for (int64_t size = 1; size <= rows; size = size < 20 ? size + step : size * 2 + 1) {
        struct device *d = size % 2 ? one.d : many.d;
        memset(part.data, 0xA5, (size_t)(rows * s.n_out) * 4);
        for (int64_t r = 0; r < rows; r += size) {
            int64_t n = min_i64(size, rows - r);
            d->ops->matmul(d, (struct tensor){tensor_row(part, r), DTYPE_F32, n, s.n_out},
                           (struct tensor){tensor_row(x, r), act, n, s.n_in}, &w, NULL,
                           EPILOGUE_NONE);
        }
        assert_memory_equal(part.data, whole.data, (size_t)(rows * s.n_out) * 4);
    }
    free(wv), free(xv), free(w.data), free(x.data), free(whole.data), free(part.data);
    cpu_fixture_close(&one);
    cpu_fixture_close(&many);
}

static void rows_do_not_know_their_neighbours(void **state)
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int i = 0; i < 4; i++) {
            check_bits((enum cpu_isa)isa, types[i], (struct shape){100, 129}, 40);
            check_bits((enum cpu_isa)isa, types[i], (struct shape){64, 1536}, 200); /* row groups */
        }
}

/* A product with the norm before it and SwiGLU after it has the bits of the three by themselves,
 * whoever packs the rows: each thread for itself (few), or all together. */
static void check_fused(struct device *d, enum dtype dtype, int64_t rows, struct shape s,
                        bool swiglu)
{
    struct cpu_rng rng = {(uint64_t)(rows + s.n_out)};
    enum dtype act = dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
    float *wv = random_values(&rng, s.n_out * s.n_in, 0);
    float *xv = random_values(&rng, rows * s.n_in, 0);
    float *weight = random_values(&rng, s.n_in, 0), *bias = random_values(&rng, s.n_out, 0);
    struct norm norm = {weight, NULL, 1e-5f, true};
    struct matrix w = packed(d, dtype, s, wv);
    int64_t n = swiglu ? s.n_out / 2 : s.n_out;
    enum epilogue e = swiglu ? EPILOGUE_NONE : EPILOGUE_GELU_TANH;
    struct tensor x = tensor_from(DTYPE_F32, rows, s.n_in, xv), h = tensor_blank(act, rows, s.n_in);
    struct tensor between = tensor_blank(act, rows, s.n_out);
    struct tensor want = tensor_blank(act, rows, n), out = tensor_blank(act, rows, n);
    d->ops->norm(d, h, x, &norm);
    d->ops->matmul(d, swiglu ? between : want, h, &w, bias, e);
    if (swiglu) d->ops->swiglu(d, want, between);
    memset(h.data, 0xA5, (size_t)(rows * s.n_in) * element_bytes(act));
    struct norm_matmul m = {.x = x, .norm = &norm, .h = h, .w = &w, .bias = bias, .epilogue = e};
    if (swiglu) m.gate_up = between;
    d->ops->norm_matmul(d, out, &m);
    assert_memory_equal(out.data, want.data, (size_t)(rows * n) * element_bytes(act));
    free(wv), free(xv), free(weight), free(bias), free(w.data), free(x.data), free(h.data);
    free(between.data);
    free(want.data), free(out.data);
}

static void fused_products_have_the_bits_of_their_parts(void **state)
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
    /* Packed by each thread; shared out by rows, of quantized matrices and of all; at 512 inputs
     * and 5 threads the last are packed once. */
    static const int64_t rows[] = {1, 3, 16, 24, 150};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int i = 0; i < 15; i++) {
            int32_t threads = 1 + i % 3 * 2;
            if (isa == CPU_ISA_AMX && threads != 3) continue; /* emulated, they take time */
            struct cpu_fixture f;
            struct workspace_shape plan = plan_for(rows[i / 3], 512);
            cpu_fixture_open(&f, (enum cpu_isa)isa, threads, &plan);
            for (int t = 0; t < 4; t++) {
                check_fused(f.d, types[t], rows[i / 3], (struct shape){192, 512}, true);
                /* halves of 50 */
                check_fused(f.d, types[t], rows[i / 3], (struct shape){100, 35}, true);
                check_fused(f.d, types[t], rows[i / 3], (struct shape){70, 129}, false);
            }
            cpu_fixture_close(&f);
        }
}

/* The embedding reads its rows back out of the packed matrix. */
static void embedding_reads_packed_rows(void **state)
{
    enum { N_VOCAB = 77, WIDTH = 35, ROWS = 9, POSITIONS = 4 };
    static const int32_t tokens[ROWS] = {0, 1, 31, 32, 33, 63, 64, 76, 76};
    static const int32_t positions[ROWS] = {0, 1, 2, 3, 0, 1, 2, 3, 0};
    struct cpu_rng rng = {3};
    for (int dtype = 0; dtype <= DTYPE_BF16; dtype += DTYPE_BF16) {
        struct cpu_fixture f;
        struct workspace_shape plan = plan_for(ROWS, WIDTH);
        cpu_fixture_open(&f, CPU_ISA_BEST, 2, &plan);
        float *values = random_values(&rng, N_VOCAB * WIDTH, 0);
        float *wpe = random_values(&rng, POSITIONS * WIDTH, 0);
        struct matrix w = packed(f.d, (enum dtype)dtype, (struct shape){N_VOCAB, WIDTH}, values);
        struct tensor out = tensor_blank(DTYPE_F32, ROWS, WIDTH);
        struct batch b = {.n_rows = ROWS, .tokens = tokens, .positions = positions};
        for (int with = 0; with < 2; with++) {
            f.d->ops->embed(f.d, out, &b, &w, with ? wpe : NULL);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t k = 0; k < WIDTH; k++) {
                    float want = rounded((enum dtype)dtype, values[tokens[r] * WIDTH + k]);
                    if (with) want += wpe[positions[r] * WIDTH + k];
                    assert_true(tensor_at(out, r, k) == want);
                }
        }
        free(values), free(wpe), free(w.data), free(out.data);
        cpu_fixture_close(&f);
    }
}

/* A NaN or infinity in one row or one output stays there. */
static void poison_does_not_spread(void **state)
{
    enum { ROWS = 5, N_OUT = 40, N_IN = 6 };
    struct cpu_rng rng = {5};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int dtype = 0; dtype <= DTYPE_BF16; dtype += DTYPE_BF16) {
            struct cpu_fixture f;
            struct workspace_shape plan = plan_for(ROWS, N_IN);
            cpu_fixture_open(&f, (enum cpu_isa)isa, 2, &plan);
            float *wv = random_values(&rng, N_OUT * N_IN, 0);
            float *xv = random_values(&rng, ROWS * N_IN, 0);
            wv[33 * N_IN + 2] = NAN;
            xv[2 * N_IN + 5] = INFINITY;
            struct matrix w = packed(f.d, (enum dtype)dtype, (struct shape){N_OUT, N_IN}, wv);
            struct tensor x = tensor_from((enum dtype)dtype, ROWS, N_IN, xv);
            struct tensor out = tensor_blank(DTYPE_F32, ROWS, N_OUT);
            f.d->ops->matmul(f.d, out, x, &w, NULL, EPILOGUE_NONE);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t n = 0; n < N_OUT; n++)
                    assert_int_equal(isfinite(tensor_at(out, r, n)), r != 2 && n != 33);
            free(wv), free(xv), free(w.data), free(x.data), free(out.data);
            cpu_fixture_close(&f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(quantized_products_are_right),
        cmocka_unit_test(quantizing_again_changes_nothing),
        cmocka_unit_test(quantized_bits_know_no_instruction_set),
        cmocka_unit_test(quantized_poison_does_not_spread),
        cmocka_unit_test(activations_hold_at_extremes),
        cmocka_unit_test(rows_do_not_know_their_neighbours),
        cmocka_unit_test(fused_products_have_the_bits_of_their_parts),
        cmocka_unit_test(embedding_reads_packed_rows),
        cmocka_unit_test(poison_does_not_spread),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
