/* Matrices that stay as a file has quantized them: every type at every instruction set against sums
 * in double over what model/dtype.c reads, and bit for bit against each other. */
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

static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0,
                                   DTYPE_Q5_1, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
/* In blocks of the type. */
static const struct shape shapes[] = {{1, 1}, {31, 2}, {33, 1}, {64, 3}, {100, 2}};
static const int64_t row_counts[] = {1, 2, 5, 6, 7, 12, 13, 40};
enum { N_TYPES = sizeof types / sizeof *types, N_SHAPES = sizeof shapes / sizeof *shapes,
       N_COUNTS = sizeof row_counts / sizeof *row_counts, MAX_ROWS = 40, MAX_IN = 768 };

static void open_device(struct cpu_fixture *f, int isa, int32_t n_threads)
{
    struct workspace_shape plan = {.max_rows = MAX_ROWS, .max_logit_rows = 1, .n_embd = MAX_IN,
                                   .n_ff = 1, .n_head = 1, .n_kv_head = 1, .head_dim = 1,
                                   .vocab_size = 1, .block_size = 1};
    cpu_fixture_open(f, (enum cpu_isa)isa, n_threads, &plan);
}

/* Blocks of any bits whatever, but for their f16 scales (at most two a block),
 * which are sane: about 2^-6. */
static uint8_t *random_blocks(struct cpu_rng *rng, enum dtype type, int64_t n, bool sane)
{
    const struct dtype_info *info = dtype_info(type);
    int64_t bytes = dtype_bytes(type, n);
    uint8_t *b = malloc((size_t)bytes);
    for (int64_t i = 0; i < bytes; i++) b[i] = (uint8_t)cpu_rng_next(rng);
    bool two = type == DTYPE_Q4_1 || type == DTYPE_Q5_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K;
    for (int64_t i = 0; i < bytes && sane; i += info->block_bytes)
        for (int s = 0; s < 1 + two; s++) {
            uint16_t scale = f32_to_f16(cpu_rng_float(rng) / 64);
            memcpy(b + i + (type == DTYPE_Q6_K ? 208 : 2 * s), &scale, sizeof scale);
        }
    return b;
}

/* Written in two parts where the matrix is large enough, as loading does. */
static void write_rows(struct device *d, struct matrix *w, const uint8_t *blocks)
{
    int64_t first = min_i64(64, w->n_out);
    d->ops->matrix_write_blocks(d, w, 0, first, blocks);
    if (first < w->n_out)
        d->ops->matrix_write_blocks(d, w, first, w->n_out - first,
                                    blocks + first * dtype_bytes(w->dtype, w->n_in));
}

static struct matrix packed(struct device *d, enum dtype type, struct shape s,
                            const uint8_t *blocks)
{
    struct matrix w = {.dtype = type, .n_out = s.n_out, .n_in = s.n_in};
    w.data = device_bytes(device_matrix_bytes(d, &w));
    memset(w.data, 0, (size_t)device_matrix_bytes(d, &w)); /* as an arena */
    write_rows(d, &w, blocks);
    return w;
}

static struct shape in_blocks(struct shape s, enum dtype type)
{
    return (struct shape){s.n_out, s.n_in * dtype_info(type)->block};
}

static void nothing_is_lost(void **state)
{
    struct cpu_rng rng = {1};
    struct cpu_fixture f;
    open_device(&f, CPU_ISA_BEST, 2);
    for (int t = 0; t < N_TYPES; t++)
        for (int i = 0; i < N_SHAPES; i++) {
            struct shape s = in_blocks(shapes[i], types[t]);
            int64_t n = s.n_out * s.n_in;
            uint8_t *blocks = random_blocks(&rng, types[t], n, true);
            float *want = malloc((size_t)n * 4), *got = malloc((size_t)n * 4);
            struct matrix w = packed(f.d, types[t], s, blocks);
            /* As many bytes as the file takes, but for whole panels. */
            assert_int_equal(device_matrix_bytes(f.d, &w),
                             dtype_bytes(types[t], round_up(s.n_out, PANEL) * s.n_in));
            dtype_to_f32(types[t], blocks, n, want);
            f.d->train->matrix_read(f.d, &w, 0, s.n_out, got);
            assert_memory_equal(got, want, (size_t)n * 4);
            free(blocks), free(want), free(got), free(w.data);
        }
    cpu_fixture_close(&f);
}

/* A row as the kernels see it: codes times scale, blocks of 32. */
static void quantize_row(const float *x, int64_t n, double *out)
{
    for (int64_t k0 = 0; k0 < n; k0 += 32) {
        float largest = 0;
        for (int64_t k = k0; k < k0 + 32; k++) largest = fmaxf(largest, fabsf(x[k]));
        for (int64_t k = k0; k < k0 + 32; k++)
            out[k] = nearbyintf(x[k] * (127.0f / largest)) * (double)(largest / 127.0f);
    }
}

struct product {
    struct shape s;
    uint8_t *blocks;
    struct matrix w;
    struct tensor x, out;
    float *bias;
};

static struct product new_product(struct device *d, enum dtype type, struct shape s, int64_t rows,
                                  struct cpu_rng *rng, bool sane)
{
    struct product p = {.s = s};
    float *x = malloc((size_t)(rows * s.n_in) * 4);
    p.bias = malloc((size_t)s.n_out * 4);
    cpu_rng_fill(rng, x, rows * s.n_in);
    cpu_rng_fill(rng, p.bias, s.n_out);
    p.blocks = random_blocks(rng, type, s.n_out * s.n_in, sane);
    p.w = packed(d, type, s, p.blocks);
    p.x = tensor_from(DTYPE_BF16, rows, s.n_in, x);
    p.out = tensor_blank(DTYPE_F32, rows, s.n_out);
    free(x);
    return p;
}

static void free_product(struct product *p)
{
    free(p->blocks), free(p->w.data), free(p->x.data), free(p->out.data), free(p->bias);
}

static void check_product(struct device *d, const struct product *p)
{
    int64_t n_in = p->s.n_in, n = p->s.n_out * n_in, rows = p->x.rows;
    float *w = malloc((size_t)n * 4), *row = malloc((size_t)n_in * 4);
    double *x = malloc((size_t)n_in * sizeof *x);
    dtype_to_f32(p->w.dtype, p->blocks, n, w);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < n_in; k++) row[k] = tensor_at(p->x, r, k);
        quantize_row(row, n_in, x);
        for (int64_t o = 0; o < p->s.n_out; o++) {
            double y = p->bias[o], size = 1;
            for (int64_t k = 0; k < n_in; k++) {
                y += x[k] * w[o * n_in + k];
                size += fabs(x[k] * w[o * n_in + k]);
            }
            assert_near(tensor_at(p->out, r, o), y, 1e-6 * size, d->ops->description(d), r, o);
        }
    }
    free(w), free(row), free(x);
}

static void products_are_right(void **state)
{
    struct cpu_rng rng = {2};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        open_device(&f, isa, 2);
        for (int t = 0; t < N_TYPES; t++)
            for (int c = 0; c < N_COUNTS; c++) {
                struct shape s = in_blocks(shapes[(t + c) % N_SHAPES], types[t]);
                struct product p = new_product(f.d, types[t], s, row_counts[c], &rng, true);
                f.d->ops->matmul(f.d, p.out, p.x, &p.w, p.bias, EPILOGUE_NONE);
                check_product(f.d, &p);
                free_product(&p);
            }
        cpu_fixture_close(&f);
    }
}

/* Rows alone and together, at every instruction set: the same bits. */
static void bits_are_the_same_everywhere(void **state)
{
    for (int t = 0; t < N_TYPES; t++) {
        struct tensor first = {0};
        for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
            struct cpu_rng rng = {3};
            struct cpu_fixture f;
            open_device(&f, isa, 3);
            struct shape s = in_blocks((struct shape){100, 2}, types[t]);
            struct product p = new_product(f.d, types[t], s, MAX_ROWS, &rng, true);
            f.d->ops->matmul(f.d, p.out, p.x, &p.w, p.bias, EPILOGUE_NONE);
            if (!first.data) first = tensor_from(DTYPE_F32, MAX_ROWS, s.n_out, p.out.data);
            size_t bytes = (size_t)(MAX_ROWS * s.n_out) * 4;
            assert_memory_equal(p.out.data, first.data, bytes);
            for (int64_t size = 1; size <= 12; size++) {
                memset(p.out.data, 0xA5, bytes);
                for (int64_t r = 0; r < MAX_ROWS; r += size) {
                    int64_t n = min_i64(size, MAX_ROWS - r);
                    f.d->ops->matmul(f.d,
                                     (struct tensor){tensor_row(p.out, r), DTYPE_F32, n, s.n_out},
                                     (struct tensor){tensor_row(p.x, r), DTYPE_BF16, n, s.n_in},
                                     &p.w, p.bias, EPILOGUE_NONE);
                }
                assert_memory_equal(p.out.data, first.data, bytes);
            }
            free_product(&p);
            cpu_fixture_close(&f);
        }
        free(first.data);
    }
}

/* A matrix of three parts is the three under each other. */
static void check_parts(const struct matrix_part parts[MATRIX_PARTS], enum cpu_isa isa)
{
    enum { N_IN = 512, ROWS = 37 };
    struct cpu_rng rng = {4};
    struct cpu_fixture f;
    open_device(&f, isa, 3);
    struct matrix w = {.dtype = parts[0].dtype, .n_out = 149, .n_in = N_IN}, part;
    memcpy(w.parts, parts, sizeof w.parts);
    w.data = device_bytes(device_matrix_bytes(f.d, &w));
    memset(w.data, 0, (size_t)device_matrix_bytes(f.d, &w));
    float *bias = malloc(149 * 4), *x = malloc(ROWS * N_IN * 4);
    cpu_rng_fill(&rng, bias, 149);
    cpu_rng_fill(&rng, x, ROWS * N_IN);
    struct tensor in = tensor_from(DTYPE_BF16, ROWS, N_IN, x);
    struct tensor out = tensor_blank(DTYPE_BF16, ROWS, 149);
    struct tensor want = tensor_blank(DTYPE_BF16, ROWS, 149);
    int64_t row0;
    for (int i = 0; matrix_part_of(f.d, &w, i, &part, &row0); i++) {
        struct tensor alone = tensor_blank(DTYPE_BF16, ROWS, part.n_out);
        uint8_t *blocks = random_blocks(&rng, part.dtype, part.n_out * N_IN, true);
        write_rows(f.d, &part, blocks);
        f.d->ops->matmul(f.d, alone, in, &part, bias + row0, EPILOGUE_GELU_TANH);
        for (int64_t r = 0; r < ROWS; r++)
            memcpy((uint16_t *)tensor_row(want, r) + row0, tensor_row(alone, r),
                   (size_t)part.n_out * 2);
        free(blocks), free(alone.data);
    }
    f.d->ops->matmul(f.d, out, in, &w, bias, EPILOGUE_GELU_TANH);
    assert_memory_equal(out.data, want.data, ROWS * 149 * 2);
    free(w.data), free(bias), free(x), free(in.data), free(out.data), free(want.data);
    cpu_fixture_close(&f);
}

static void parts_are_matrices_of_their_own(void **state)
{
    static const struct matrix_part mixed[MATRIX_PARTS] = {
        {DTYPE_Q4_K, 100}, {DTYPE_Q8_0, 16}, {DTYPE_Q6_K, 33}};
    static const struct matrix_part plain[MATRIX_PARTS] = { /* which AMX takes too */
        {DTYPE_Q8_0, 100}, {DTYPE_Q4_0, 16}, {DTYPE_Q8_0, 33}};
    check_parts(mixed, CPU_ISA_BEST);
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) check_parts(plain, (enum cpu_isa)isa);
}

/* Any bytes whatever, NaN and infinite scales among them: nothing breaks,
 * and a bad output stays alone. */
static void broken_blocks_hurt_their_outputs_alone(void **state)
{
    enum { N_OUT = 70, ROWS = 3 };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int t = 0; t < N_TYPES; t++) {
            struct cpu_rng rng = {5};
            struct cpu_fixture f;
            open_device(&f, isa, 2);
            struct shape s = in_blocks((struct shape){N_OUT, 2}, types[t]);
            struct product p = new_product(f.d, types[t], s, ROWS, &rng, true);
            f.d->ops->matmul(f.d, p.out, p.x, &p.w, NULL, EPILOGUE_NONE);
            struct product bad = new_product(f.d, types[t], s, ROWS, &rng, false);
            f.d->ops->matmul(f.d, bad.out, p.x, &bad.w, NULL, EPILOGUE_NONE);
            /* One broken row among good ones. */
            size_t row = (size_t)dtype_bytes(types[t], s.n_in);
            memset(p.blocks + 33 * row, 0xFF, row);
            write_rows(f.d, &p.w, p.blocks);
            f.d->ops->matmul(f.d, bad.out, p.x, &p.w, NULL, EPILOGUE_NONE);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t n = 0; n < N_OUT; n++)
                    assert_int_equal(tensor_at(bad.out, r, n) == tensor_at(p.out, r, n), n != 33);
            free_product(&p);
            free_product(&bad);
            cpu_fixture_close(&f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_lost),
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(bits_are_the_same_everywhere),
        cmocka_unit_test(parts_are_matrices_of_their_own),
        cmocka_unit_test(broken_blocks_hurt_their_outputs_alone),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
