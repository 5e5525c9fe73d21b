/* Products and their gradients on the CUDA device: against the CPU's over awkward shapes, and the
 * same bits whatever rows stand beside a row. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"
#include "tests/ptxsim/ptxsim.h"

#pragma weak ptxsim_set_compute_capability
#pragma weak ptxsim_set_multiprocessors
#pragma weak ptxsim_set_cublas
#pragma weak ptxsim_code
#pragma weak ptxsim_cublas_products

struct shape { int64_t rows, n_out, n_in; };

static const struct shape shapes[] = {
    {1, 1, 1},    {3, 5, 8},    {7, 16, 32},   {8, 17, 33},   {9, 64, 64},
    {16, 65, 48}, {17, 40, 104}, {64, 64, 256}, {65, 72, 264}, {66, 130, 300}, {65, 129, 136},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, MAX_ROWS = 130, MAX_OUT = 130, MAX_IN = 584 };
enum { MAX_VALUES = MAX_OUT * MAX_IN };

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
enum { N_TYPES = 3 };

static const struct workspace_shape plan = {
    .dtype = DTYPE_BF16, .max_rows = MAX_ROWS, .max_logit_rows = 1, .n_embd = MAX_IN, .n_ff = MAX_IN,
    .n_head = 4, .n_kv_head = 4, .head_dim = 16, .vocab_size = MAX_OUT, .block_size = 64,
};

struct operands { float x[MAX_ROWS * MAX_IN], w[MAX_VALUES], bias[MAX_OUT], out[MAX_ROWS * MAX_OUT]; };

static struct operands *operands_new(uint64_t seed)
{
    struct operands *o = malloc(sizeof *o);
    struct cpu_rng rng = {seed};
    cpu_rng_fill(&rng, o->x, MAX_ROWS * MAX_IN);
    cpu_rng_fill(&rng, o->w, MAX_VALUES);
    cpu_rng_fill(&rng, o->bias, MAX_OUT);
    cpu_rng_fill(&rng, o->out, MAX_ROWS * MAX_OUT);
    return o;
}

/* result [rows, n_out] */
static void product(struct side *s, const struct operands *o, struct shape sh, enum dtype x_type,
                    enum dtype w_type, enum dtype out_type, bool bias, enum epilogue epilogue,
                    float *result)
{
    struct tensor x = side_tensor(s, x_type, sh.rows, sh.n_in, o->x);
    struct matrix w = side_matrix(s, w_type, sh.n_out, sh.n_in, o->w);
    struct tensor out = side_tensor(s, out_type, sh.rows, sh.n_out, epilogue == EPILOGUE_ADD ? o->out : NULL);
    s->d->ops->matmul(s->d, out, x, &w, bias ? side_floats(s, o->bias, sh.n_out) : NULL, epilogue);
    side_read(s, out, result);
    side_clear(s);
}

/* All types, epilogues and types of the result, at every stride-th shape. */
static void check_products(int stride)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct operands *o = operands_new(1);
    float results[N_SIDES][MAX_ROWS * MAX_OUT];
    for (int t = 0; t < N_TYPES; t++)
        for (int i = 0; i < N_SHAPES; i += stride)
            for (int e = EPILOGUE_NONE; e <= EPILOGUE_ADD; e++)
                for (int wide = 0; wide < 2; wide++) {
                    if (!wide && (e == EPILOGUE_ADD || types[t] == DTYPE_F32)) continue;
                    enum dtype out = wide ? DTYPE_F32 : types[t];
                    schedule_seed((uint32_t)(i + e));
                    for (int s = 0; s < N_SIDES; s++)
                        product(&sides[s], o, shapes[i], types[t], types[t], out, (i + e) % 2,
                                (enum epilogue)e, results[s]);
                    assert_all_near(results[SIDE_CUDA], results[SIDE_CPU],
                                    shapes[i].rows * shapes[i].n_out, shapes[i].n_out, tolerance_of(out),
                                    "product");
                }
    free(o);
    sides_close(sides);
}

void test_products(void **state) { check_products(1); }

static void read_matrix(struct side *s, const struct matrix *w, float *out)
{
    s->d->train->matrix_read(s->d, w, 0, w->n_out, out);
    side_sync(s);
}

/* What was packed is what is read, as far as the type goes; quantized: within half a step. */
void test_weights_come_back(void **state)
{
    static const enum dtype all[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_Q8_0, DTYPE_Q4_0};
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct side *s = &sides[SIDE_CUDA];
    struct operands *o = operands_new(2);
    float *back = malloc(MAX_VALUES * sizeof *back);
    for (size_t t = 0; t < sizeof all / sizeof *all; t++)
        for (int i = 0; i < N_SHAPES; i++) {
            struct matrix w = side_matrix(s, all[t], shapes[i].n_out, shapes[i].n_in, o->w);
            read_matrix(s, &w, back);
            double step = all[t] == DTYPE_Q8_0 ? 1.0 / 127 : all[t] == DTYPE_Q4_0 ? 1.0 / 8 : 0;
            for (int64_t j = 0; j < w.n_out * w.n_in; j++) {
                double want = rounded_to(w.dtype, rounded_to(all[t], o->w[j]));
                /* q4_0 cannot reach the other end: up to a whole step there. */
                assert_near(back[j], want, step, "weight", j / w.n_in, j % w.n_in);
            }
            side_clear(s);
        }
    /* Of two that are as large, the first one's sign is that of -8. */
    float tie[32] = {[3] = -1, [20] = 1};
    struct matrix w = side_matrix(s, DTYPE_Q4_0, 1, 32, tie);
    read_matrix(s, &w, back);
    assert_true(back[3] == -1 && back[20] == 0.875f);
    /* A block with a NaN is broken as a whole, and its neighbour is not. */
    static const enum dtype quantized[] = {DTYPE_Q8_0, DTYPE_Q4_0};
    for (int t = 0; t < 2; t++) {
        float broken[64] = {[5] = 2, [9] = NAN, [40] = -1};
        w = side_matrix(s, quantized[t], 1, 64, broken);
        read_matrix(s, &w, back);
        assert_true(isnan(back[9]) && isnan(back[5]) && fabsf(back[40] + 1) < 0.01f);
    }
    side_clear(s);
    free(back);
    free(o);
    sides_close(sides);
}

/* Matrices larger than the workspace go through it, and come back, a few rows at a time. */
void test_weights_in_pieces(void **state)
{
    static const enum dtype all[] = {DTYPE_F32, DTYPE_F16, DTYPE_Q8_0, DTYPE_Q4_0};
    enum { OUTS = 10, INS = 33, ROOM = 4 * INS * (int)sizeof(float) + 20 /* four rows, and no fifth */ };
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct side *s = &sides[SIDE_CUDA];
    struct operands *o = operands_new(9);
    float whole[OUTS * INS], pieces[OUTS * INS];
    for (size_t t = 0; t < sizeof all / sizeof *all; t++) {
        struct matrix w = side_matrix(s, all[t], OUTS, INS, o->w);
        read_matrix(s, &w, whole);
        s->d->ops->set_workspace(s->d, side_bytes(s, ROOM, NULL), ROOM);
        w = side_matrix(s, all[t], OUTS, INS, o->w);
        read_matrix(s, &w, pieces);
        assert_memory_equal(pieces, whole, sizeof whole);
        s->d->ops->set_workspace(s->d, s->blocks[0].p, (int64_t)s->blocks[0].bytes);
        side_clear(s);
    }
    free(o);
    sides_close(sides);
}

/* Against the product with the very weights that are stored, in double. Operands of tensor cores
 * are rounded to the type of the rows first. */
static void check_quantized(int stride)
{
    static const enum dtype quantized[] = {DTYPE_Q8_0, DTYPE_Q4_0};
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct side *s = &sides[SIDE_CUDA];
    bool narrow = side_has_tensor_cores(s);
    struct operands *o = operands_new(3);
    float *w = malloc(MAX_VALUES * sizeof *w), *got = malloc(MAX_ROWS * MAX_OUT * sizeof *got);
    for (int q = 0; q < 2; q++)
        for (int t = 1; t < N_TYPES; t++)
            for (int i = 0; i < N_SHAPES; i += stride) {
                struct shape sh = shapes[i];
                enum dtype type = side_dtype(s, types[t]);
                struct matrix m = side_matrix(s, quantized[q], sh.n_out, sh.n_in, o->w);
                read_matrix(s, &m, w);
                product(s, o, sh, types[t], quantized[q], DTYPE_F32, true, EPILOGUE_NONE, got);
                for (int64_t at = 0; at < sh.rows * sh.n_out; at++) {
                    int64_t r = at / sh.n_out, n = at % sh.n_out;
                    double want = o->bias[n];
                    for (int64_t k = 0; k < sh.n_in; k++) {
                        float x = rounded_to(type, rounded_to(types[t], o->x[r * sh.n_in + k])), y = w[n * sh.n_in + k];
                        /* Rows that are not aligned to 16 bytes do without tensor cores. */
                        want += (double)x * (narrow && sh.n_in % 8 == 0 ? rounded_to(type, y) : y);
                    }
                    assert_near(got[at], want, 2e-5, "quantized product", r, n);
                }
            }
    free(got);
    free(w);
    free(o);
    sides_close(sides);
}

void test_quantized_products(void **state) { check_quantized(1); }

/* GPUs of other sizes spread the same work otherwise. */
static void set_multiprocessors(int32_t n)
{
    if (ptxsim_set_multiprocessors) ptxsim_set_multiprocessors(n);
}

static const enum dtype operand_types[][2] = {
    {DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16}, {DTYPE_F16, DTYPE_F16},
    {DTYPE_BF16, DTYPE_Q8_0}, {DTYPE_F16, DTYPE_Q4_0}, {DTYPE_BF16, DTYPE_Q4_0}, {DTYPE_F16, DTYPE_Q8_0},
};
enum { N_OPERAND_TYPES = 7 };

/* A GPU of one multiprocessor takes large tiles, one of many small ones. */
void test_rows_do_not_know_their_neighbours(void **state)
{
    static const int64_t counts[] = {1, 7, 8, 9, 16, 17, 33, 64, 65, 129};
    static const int64_t lengths[] = {520, 584, 250, 40};
    enum { ROWS = 129, OUTS = 70 };
    skip_without_cuda();
    struct operands *o = operands_new(4);
    float *all = malloc(ROWS * OUTS * sizeof *all), *some = malloc(ROWS * OUTS * sizeof *some);
    for (int size = 0; size < 2; size++) {
        struct side sides[N_SIDES];
        for (int t = 0; t < N_OPERAND_TYPES; t++)
            for (int l = (size + t) % 2; l < 4; l += t < 3 ? 2 : 4) {
                struct shape sh = {ROWS, OUTS, lengths[l]};
                schedule_seed(0);
                set_multiprocessors(1);
                sides_open(sides, &plan);
                product(&sides[SIDE_CUDA], o, sh, operand_types[t][0], operand_types[t][1], DTYPE_F32,
                        true, EPILOGUE_GELU_TANH, all);
                sides_close(sides);
                set_multiprocessors(size ? 64 : 1);
                sides_open(sides, &plan);
                for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                    schedule_seed((uint32_t)c + 1);
                    sh.rows = counts[c];
                    product(&sides[SIDE_CUDA], o, sh, operand_types[t][0], operand_types[t][1], DTYPE_F32,
                            true, EPILOGUE_GELU_TANH, some);
                    assert_memory_equal(some, all, (size_t)(sh.rows * sh.n_out) * sizeof *all);
                }
                sides_close(sides);
            }
    }
    set_multiprocessors(4);
    free(all), free(some), free(o);
}

/* As many outputs as a vocabulary has: one run of inputs, and tiles of their own. */
enum { WIDE_ROWS = 130, WIDE_OUTS = 16390, WIDE_INS = 328 };

/* Products of 2 rows and of more, up to `rows`: the same bits, and the values of the weights that
 * are stored. */
static void check_wide_product(struct side *s, const enum dtype types_of[2], int64_t rows, int64_t n_in,
                               const float *x, const float *w)
{
    static const int64_t counts[] = {2, 17, WIDE_ROWS};
    enum dtype type = side_dtype(s, types_of[0]);
    float *stored = malloc((size_t)(WIDE_OUTS * n_in) * sizeof *stored), *results[3] = {0};
    for (int c = 0; c < 3 && counts[c] <= rows; c++) {
        results[c] = malloc((size_t)(counts[c] * WIDE_OUTS) * sizeof **results);
        struct matrix m = side_matrix(s, types_of[1], WIDE_OUTS, n_in, w);
        struct tensor out = side_tensor(s, DTYPE_F32, counts[c], WIDE_OUTS, NULL);
        s->d->ops->matmul(s->d, out, side_tensor(s, types_of[0], counts[c], n_in, x), &m, NULL, EPILOGUE_NONE);
        side_read(s, out, results[c]);
        if (c == 0) read_matrix(s, &m, stored);
        side_clear(s);
        assert_memory_equal(results[c], results[0], (size_t)(counts[0] * WIDE_OUTS) * sizeof **results);
    }
    for (int64_t at = 0; at < counts[0] * WIDE_OUTS; at++) {
        double want = 0;
        int64_t r = at / WIDE_OUTS, n = at % WIDE_OUTS;
        for (int64_t k = 0; k < n_in; k++)
            want += (double)rounded_to(type, rounded_to(types_of[0], x[r * n_in + k]))
                    * rounded_to(type, stored[n * n_in + k]);
        assert_near(results[0][at], want, 2e-5, "wide product", r, n);
    }
    for (int c = 0; c < 3; c++) free(results[c]);
    free(stored);
}

/* Operands of 16 bits, of the types before `end`; of the first, more inputs too than kernels have
 * under way. */
static void check_wide_products(int end)
{
    struct cpu_rng rng = {7};
    float *x = malloc(WIDE_ROWS * WIDE_INS * sizeof *x), *w = malloc((size_t)WIDE_OUTS * WIDE_INS * sizeof *w);
    cpu_rng_fill(&rng, x, WIDE_ROWS * WIDE_INS);
    cpu_rng_fill(&rng, w, (int64_t)WIDE_OUTS * WIDE_INS);
    set_multiprocessors(1);
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    for (int t = 1; t < end; t++) {
        bool quantized = t >= 3; /* such weights have no tiles of their own */
        check_wide_product(&sides[SIDE_CUDA], operand_types[t], quantized ? 2 : WIDE_ROWS, 40, x, w);
    }
    check_wide_product(&sides[SIDE_CUDA], operand_types[1], 2, WIDE_INS, x, w);
    sides_close(sides);
    set_multiprocessors(4);
    free(x), free(w);
}

void test_wide_products(void **state)
{
    skip_without_cuda();
    check_wide_products(N_OPERAND_TYPES);
}

/* A GPU that runs the code of sm_80, but whose blocks have no room for the largest tiles. */
void test_wide_products_in_less_shared_memory(void **state)
{
    if (!ptxsim_set_compute_capability || ptxsim_code() < 80) skip();
    ptxsim_set_compute_capability(86);
    check_wide_products(2);
    ptxsim_set_compute_capability(0);
}

/* ---- with the norm before and SwiGLU after ---- */

struct fused { int64_t rows, n_out, n_in; enum dtype x_type, w_type; bool gated, rms, bias; };

/* result [rows, n_out], or half as many with gates: in one operation, or in two or three. */
static void norm_product(struct side *s, const struct operands *o, const struct fused *f, bool at_once,
                         float *result)
{
    struct norm norm = {.weight = side_floats(s, o->w, f->n_in), .eps = 1e-5f, .rms = f->rms,
                        .bias = f->bias ? side_floats(s, o->w + f->n_in, f->n_in) : NULL};
    struct matrix w = side_matrix(s, f->w_type, f->n_out, f->n_in, o->w);
    enum dtype out_type = f->gated ? f->x_type : DTYPE_F32;
    struct tensor out = side_tensor(s, out_type, f->rows, f->gated ? f->n_out / 2 : f->n_out, NULL);
    struct norm_matmul m = {
        .x = side_tensor(s, DTYPE_F32, f->rows, f->n_in, o->x), .norm = &norm,
        .h = side_tensor(s, f->x_type, f->rows, f->n_in, NULL), .w = &w,
        .bias = f->bias ? side_floats(s, o->bias, f->n_out) : NULL,
        .epilogue = f->gated ? EPILOGUE_NONE : EPILOGUE_GELU_TANH,
    };
    if (f->gated) m.gate_up = side_tensor(s, out_type, f->rows, f->n_out, NULL);
    if (at_once) {
        s->d->ops->norm_matmul(s->d, out, &m);
    } else {
        s->d->ops->norm(s->d, m.h, m.x, &norm);
        s->d->ops->matmul(s->d, f->gated ? m.gate_up : out, m.h, &w, m.bias, m.epilogue);
        if (f->gated) s->d->ops->swiglu(s->d, out, m.gate_up);
    }
    side_read(s, out, result);
    side_clear(s);
}

/* One operation has the bits of all, on either side of the numbers of rows from which it is several
 * kernels. */
void test_norms_and_gates_of_products(void **state)
{
    static const int64_t counts[] = {1, 3, 8, 9, 16, 17, 40, 64, 65};
    /* The last: of more elements than a warp has under way at a time. */
    static const struct { int64_t n_out, n_in; } sizes[] = {{42, 104}, {70, 584}, {22, 33}, {34, 1160}};
    skip_without_cuda();
    struct operands *o = operands_new(8);
    float *want = malloc(65 * MAX_OUT * sizeof *want), *got = malloc(65 * MAX_OUT * sizeof *got);
    for (int t = 0; t < N_OPERAND_TYPES; t++) {
        struct side sides[N_SIDES];
        set_multiprocessors(t % 2 ? 1 : 64);
        sides_open(sides, &plan);
        for (int c = 0; c < 9; c++)
            for (int i = c % 4; i < 4; i += t < 3 ? 2 : 4)
                for (int gated = 0; gated < 2; gated++) {
                    struct fused f = {counts[c], sizes[i].n_out, sizes[i].n_in, operand_types[t][0],
                                      operand_types[t][1], gated, (c + i) % 2, (c + i + gated) % 3 == 0};
                    int64_t n = f.rows * (gated ? f.n_out / 2 : f.n_out);
                    schedule_seed((uint32_t)(c + i));
                    norm_product(&sides[SIDE_CUDA], o, &f, false, want);
                    norm_product(&sides[SIDE_CUDA], o, &f, true, got);
                    assert_memory_equal(got, want, (size_t)n * sizeof *got);
                }
        sides_close(sides);
    }
    set_multiprocessors(4);
    free(want), free(got), free(o);
}

/* ---- gradients ---- */

enum { DX, DX_ROUNDED, DX_GELU, DX_GELU_EXACT, N_DX };

/* dx, or the gradient of what an activation before it had; the CPU takes two operations and rounds
 * once. */
static void backward_x(struct side *s, const struct operands *o, struct shape sh, enum dtype type, int what,
                       float *result)
{
    const struct device_train_ops *train = s->d->train;
    bool at_once = what != DX && train->writes_act;
    struct tensor dy = side_tensor(s, type, sh.rows, sh.n_out, o->out);
    struct tensor pre = side_tensor(s, type, sh.rows, sh.n_in, o->x);
    struct matrix w = side_matrix(s, type, sh.n_out, sh.n_in, o->w);
    struct tensor dx = side_tensor(s, at_once ? type : DTYPE_F32, sh.rows, sh.n_in, NULL);
    if (what >= DX_GELU && at_once)
        train->matmul_gelu_backward(s->d, dx, dy, &w, pre, what == DX_GELU_EXACT);
    else train->matmul_backward_x(s->d, dx, dy, &w);
    if (what >= DX_GELU && !at_once) {
        struct tensor dpre = side_tensor(s, type, sh.rows, sh.n_in, NULL);
        train->gelu_backward(s->d, dpre, dx, pre, what == DX_GELU_EXACT);
        dx = dpre;
    }
    side_read(s, dx, result);
    side_clear(s);
}

/* dw and dbias begin at w and bias. */
static void backward_w(struct side *s, const struct operands *o, struct shape sh, enum dtype type,
                       enum dtype grad_type, float *dw, float *dbias)
{
    struct tensor dy = side_tensor(s, type, sh.rows, sh.n_out, o->out);
    struct tensor x = side_tensor(s, type, sh.rows, sh.n_in, o->x);
    struct matrix grad = side_matrix(s, grad_type, sh.n_out, sh.n_in, o->w);
    float *bias = side_floats(s, o->bias, sh.n_out);
    s->d->train->matmul_backward_w(s->d, &grad, bias, dy, x, side_key(s, 77));
    s->d->train->matmul_backward_w(s->d, &grad, NULL, dy, x, side_key(s, 0x7000000000000078));
    read_matrix(s, &grad, dw);
    side_read_floats(s, bias, sh.n_out, dbias);
    side_clear(s);
}

/* Rounding up or down by chance keeps the mean: by how many units in the last place of bf16 are
 * values farther from 0 than the other side's, on average? Of those near 0 that says nothing. */
static double mean_excess(const float *got, const float *other, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabs(other[i]) >= 0.5) sum += ldexp(fabs(got[i]) - fabs(other[i]), 7 - ilogb(other[i]));
    return sum / (double)n;
}

static void check_backward(int stride)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct operands *o = operands_new(5);
    float *dx[N_SIDES], *dw[N_SIDES], dbias[N_SIDES][MAX_OUT];
    for (int s = 0; s < N_SIDES; s++) {
        dx[s] = malloc(MAX_ROWS * MAX_IN * sizeof **dx);
        dw[s] = malloc(MAX_VALUES * sizeof **dw);
    }
    for (int t = 0; t < N_TYPES; t++)
        for (int i = 0; i < N_SHAPES; i += stride) {
            struct shape sh = shapes[i];
            schedule_seed((uint32_t)i);
            for (int what = DX; what < N_DX; what++) {
                for (int s = 0; s < N_SIDES; s++) backward_x(&sides[s], o, sh, types[t], what, dx[s]);
                assert_all_near(dx[1], dx[0], sh.rows * sh.n_in, sh.n_in,
                                what == DX ? 2e-5 : tolerance_of(types[t]), "dx");
            }
            for (int half = 0; half < 2; half++) {
                enum dtype grad = half ? DTYPE_BF16 : DTYPE_F32;
                if (side_dtype(&sides[SIDE_CUDA], grad) != grad) continue; /* no such gradients without bf16 */
                for (int s = 0; s < N_SIDES; s++)
                    backward_w(&sides[s], o, sh, types[t], grad, dw[s], dbias[s]);
                /* Two roundings up or down, each by as much as a unit in the last place. */
                assert_all_near(dw[1], dw[0], sh.n_out * sh.n_in, sh.n_in, half ? 0x1p-5 : 2e-5, "dw");
                assert_all_near(dbias[1], dbias[0], sh.n_out, sh.n_out, 2e-5, "dbias");
                if (half && sh.n_out * sh.n_in > 8000)
                    assert_near(mean_excess(dw[1], dw[0], sh.n_out * sh.n_in), 0, 0.1, "mean of dw", i, t);
            }
        }
    for (int s = 0; s < N_SIDES; s++) {
        free(dx[s]);
        free(dw[s]);
    }
    free(o);
    sides_close(sides);
}

/* One multiprocessor, and large tiles suffice; many, and small ones are used. */
void test_products_backward(void **state)
{
    if (ptxsim_set_multiprocessors) ptxsim_set_multiprocessors(1);
    check_backward(1);
    if (ptxsim_set_multiprocessors) ptxsim_set_multiprocessors(64);
    check_backward(2);
    if (ptxsim_set_multiprocessors) ptxsim_set_multiprocessors(4);
}

/* dw where every element is to become halfway between two of bf16's numbers, 258 and 260. */
static void round_halves(struct side *s, uint64_t key, int64_t n_out, int64_t n_in, float *dw)
{
    enum { ROWS = 3 };
    float *ones = malloc((size_t)(n_out * n_in) * sizeof *ones), *before = malloc((size_t)(n_out * n_in) * sizeof *before);
    for (int64_t i = 0; i < n_out * n_in; i++) ones[i] = 1, before[i] = 256;
    struct matrix grad = side_matrix(s, DTYPE_BF16, n_out, n_in, before);
    s->d->train->matmul_backward_w(s->d, &grad, NULL, side_tensor(s, DTYPE_BF16, ROWS, n_out, ones),
                                   side_tensor(s, DTYPE_BF16, ROWS, n_in, ones), side_key(s, key));
    read_matrix(s, &grad, dw);
    side_clear(s);
    free(ones), free(before);
}

/* Half of them up; other ones in each row, and with each key. */
void test_gradients_are_rounded_by_place_and_key(void **state)
{
    enum { N_OUT = 24, N_IN = 64, N = N_OUT * N_IN };
    struct side sides[N_SIDES];
    float dw[N], again[N], other[N];
    int n_up = 0;
    sides_open(sides, &plan);
    struct side *s = &sides[SIDE_CUDA];
    if (side_dtype(s, DTYPE_BF16) != DTYPE_BF16) {
        sides_close(sides);
        skip();
    }
    round_halves(s, 77, N_OUT, N_IN, dw);
    round_halves(s, 77, N_OUT, N_IN, again);
    round_halves(s, 78, N_OUT, N_IN, other);
    for (int i = 0; i < N; i++) {
        assert_true(dw[i] == 258 || dw[i] == 260);
        n_up += dw[i] == 260;
    }
    assert_true(n_up > N * 45 / 100 && n_up < N * 55 / 100);
    for (int i = 0; i < N_OUT; i++)
        for (int j = 0; j < i; j++) assert_true(memcmp(dw + i * N_IN, dw + j * N_IN, N_IN * sizeof *dw) != 0);
    assert_memory_equal(again, dw, sizeof dw);
    assert_true(memcmp(other, dw, sizeof dw) != 0);
    sides_close(sides);
}

/* Products that the library did. */
static int64_t library_products(struct side *s, const struct operands *o, struct shape sh, enum dtype type,
                                int what)
{
    static float dx[MAX_ROWS * MAX_IN];
    int64_t before = ptxsim_cublas_products();
    backward_x(s, o, sh, type, what, dx);
    return ptxsim_cublas_products() - before;
}

/* Of two layers of one shape, whose activations lie in different places: by the library, which
 * keeps a plan for the shape, and by our own kernels. */
static void slopes_of_two_layers(const struct operands *o, bool library, float *result)
{
    struct side sides[N_SIDES], *s = &sides[SIDE_CUDA];
    struct shape sh = {16, 72, 64};
    ptxsim_set_cublas(library);
    sides_open(sides, &plan);
    struct tensor dy = side_tensor(s, DTYPE_BF16, sh.rows, sh.n_out, o->out);
    struct matrix w = side_matrix(s, DTYPE_BF16, sh.n_out, sh.n_in, o->w);
    struct tensor pre[2], dpre[2];
    for (int i = 0; i < 2; i++) {
        pre[i] = side_tensor(s, DTYPE_BF16, sh.rows, sh.n_in, o->x + i * sh.rows * sh.n_in);
        dpre[i] = side_tensor(s, DTYPE_BF16, sh.rows, sh.n_in, NULL);
    }
    int64_t before = ptxsim_cublas_products();
    for (int i = 0; i < 2; i++) {
        s->d->train->matmul_gelu_backward(s->d, dpre[i], dy, &w, pre[i], false);
        side_read(s, dpre[i], result + i * sh.rows * sh.n_in);
    }
    assert_int_equal(ptxsim_cublas_products() - before, library ? 2 : 0);
    sides_close(sides);
}

void test_slopes_of_two_layers_by_library(void **state)
{
    enum { N = 2 * 16 * 64 };
    if (!ptxsim_set_cublas) skip();
    struct operands *o = operands_new(6);
    float got[N], want[N];
    slopes_of_two_layers(o, true, got);
    slopes_of_two_layers(o, false, want);
    assert_all_near(got, want, N, 64, tolerance_of(DTYPE_BF16), "dpre");
    free(o);
}

/* However many shapes there were, the next one is the library's too: else the bits of a product
 * would depend on what came before, and a run that was resumed would go on otherwise than one that
 * was not. */
void test_more_shapes_than_plans_by_library(void **state)
{
    enum { N = 70 };
    if (!ptxsim_set_cublas) skip();
    struct side sides[N_SIDES];
    struct operands *o = operands_new(7);
    ptxsim_set_cublas(true);
    sides_open(sides, &plan);
    for (int rows = 1; rows <= N; rows++)
        assert_int_equal(library_products(&sides[SIDE_CUDA], o, (struct shape){rows, 16, 16}, DTYPE_BF16, DX), 1);
    assert_int_equal(library_products(&sides[SIDE_CUDA], o, (struct shape){1, 16, 16}, DTYPE_BF16, DX), 1);
    sides_close(sides);
    free(o);
    ptxsim_set_cublas(false);
}

/* With cuBLASLt's stand-in, which refuses rows that are not aligned: these fall to our own kernels,
 * and so does the slope that the library does not have. */
void test_products_backward_by_library(void **state)
{
    if (!ptxsim_set_cublas) skip();
    int64_t before = ptxsim_cublas_products();
    ptxsim_set_cublas(true);
    check_backward(1);
    int64_t done = ptxsim_cublas_products() - before;
    assert_true(done > N_SHAPES && done < 5 * N_TYPES * N_SHAPES);
    struct side sides[N_SIDES];
    struct operands *o = operands_new(5);
    struct shape aligned = {65, 72, 264};
    sides_open(sides, &plan);
    for (int what = DX; what < N_DX; what++)
        assert_int_equal(library_products(&sides[SIDE_CUDA], o, aligned, DTYPE_BF16, what), what != DX_GELU_EXACT);
    assert_int_equal(library_products(&sides[SIDE_CUDA], o, (struct shape){65, 72, 265}, DTYPE_BF16, DX_GELU), 0);
    sides_close(sides);
    free(o);
    ptxsim_set_cublas(false);
}

/* A GPU without tensor cores, which only the interpreter can be. */
void test_products_without_tensor_cores(void **state)
{
    if (!ptxsim_set_compute_capability) skip();
    ptxsim_set_compute_capability(61);
    check_products(3);
    check_quantized(3);
    check_backward(3);
    ptxsim_set_compute_capability(0);
}
