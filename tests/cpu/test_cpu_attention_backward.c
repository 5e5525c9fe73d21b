/* Attention's backward pass at every instruction set, in f32 and bf16, against its definition in
 * double; with dropout, the ways of computing it against each other; and the same bits with any
 * number of threads and whoever else is in the batch. Workspaces begin as NaN. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"

enum { MAX_T = 550, N_SPANS = 3 };

struct shape { int32_t h, g, k, lengths[N_SPANS]; };

static const struct shape shapes[] = {
    {4, 4, 8, {1, 7, 8}}, {6, 2, 16, {9, 31, 33}}, {3, 1, 48, {97, 32, 1}},
    {9, 3, 64, {100, 5, 130}},
    {2, 1, 80, {64, 96, 15}}, {1, 1, 128, {210, 3, 47}}, {2, 1, 16, {MAX_T, 17, 2}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* A training step's tensors around attention; spans lie one behind the other. */
struct problem {
    struct shape s;
    int64_t rows, cols;
    struct tensor qkv, out, dout;
    float *lse;
    double *want; /* [rows, cols] dqkv */
    struct span spans[N_SPANS];
};

static int64_t column(const struct shape *s, int part, int32_t head)
{
    return ((part > 0 ? s->h : 0) + (part > 1 ? s->g : 0) + head) * s->k;
}

static double at(struct tensor t, int64_t row, int64_t col) { return tensor_at(t, row, col); }

/* One head of one span: o and lse, then the gradients, all by definition. */
static void solve_head(struct problem *x, const struct span *span, int32_t head)
{
    static double p[MAX_T][MAX_T];
    const struct shape *s = &x->s;
    int32_t n = span->n_rows, kv = head / (s->h / s->g);
    int64_t q0 = column(s, 0, head), k0 = column(s, 1, kv), v0 = column(s, 2, kv);
    double scale = 1 / sqrt(s->k);
    for (int32_t i = 0; i < n; i++) {
        int64_t r = span->row0 + i;
        double sum = 0, delta = 0, out[128] = {0};
        for (int32_t j = 0; j <= i; j++) {
            double dot = 0;
            for (int32_t k = 0; k < s->k; k++)
                dot += at(x->qkv, r, q0 + k) * at(x->qkv, span->row0 + j, k0 + k);
            sum += p[i][j] = exp(scale * dot);
        }
        x->lse[r * s->h + head] = (float)log(sum);
        for (int32_t j = 0; j <= i; j++) {
            p[i][j] /= sum;
            for (int32_t k = 0; k < s->k; k++)
                out[k] += p[i][j] * at(x->qkv, span->row0 + j, v0 + k);
        }
        for (int32_t k = 0; k < s->k; k++) {
            float o = (float)out[k];
            int64_t place = r * s->h * s->k + head * s->k + k;
            if (x->out.dtype == DTYPE_F32) ((float *)x->out.data)[place] = o;
            else ((uint16_t *)x->out.data)[place] = f32_to_bf16(o);
            delta += at(x->dout, r, head * s->k + k) * out[k];
        }
        for (int32_t j = 0; j <= i; j++) {
            int64_t c = span->row0 + j;
            double dp = 0;
            for (int32_t k = 0; k < s->k; k++) {
                double d = at(x->dout, r, head * s->k + k);
                dp += d * at(x->qkv, c, v0 + k);
                x->want[c * x->cols + v0 + k] += p[i][j] * d;
            }
            double ds = p[i][j] * (dp - delta) * scale;
            for (int32_t k = 0; k < s->k; k++) {
                x->want[r * x->cols + q0 + k] += ds * at(x->qkv, c, k0 + k);
                x->want[c * x->cols + k0 + k] += ds * at(x->qkv, r, q0 + k);
            }
        }
    }
}

static struct problem problem_new(struct shape s, enum dtype act)
{
    struct problem x = {.s = s, .cols = (s.h + 2 * s.g) * s.k};
    struct cpu_rng rng = {29};
    for (int i = 0; i < N_SPANS; i++) {
        x.spans[i] = (struct span){.row0 = (int32_t)x.rows, .n_rows = s.lengths[i]};
        x.rows += s.lengths[i];
    }
    float *values = malloc((size_t)(x.rows * x.cols) * sizeof *values);
    cpu_rng_fill(&rng, values, x.rows * x.cols);
    for (int64_t i = 0; i < x.rows * x.cols; i++) values[i] *= 2;
    x.qkv = tensor_from(act, x.rows, x.cols, values);
    cpu_rng_fill(&rng, values, x.rows * s.h * s.k);
    x.dout = tensor_from(DTYPE_F32, x.rows, s.h * s.k, values);
    x.out = tensor_blank(act, x.rows, s.h * s.k);
    x.lse = malloc((size_t)(x.rows * s.h) * sizeof *x.lse);
    x.want = calloc((size_t)(x.rows * x.cols), sizeof *x.want);
    for (int i = 0; i < N_SPANS; i++)
        for (int32_t head = 0; head < s.h; head++) solve_head(&x, &x.spans[i], head);
    free(values);
    return x;
}

static void problem_free(struct problem *x)
{
    free(x->qkv.data), free(x->out.data), free(x->dout.data), free(x->lse), free(x->want);
}

/* dqkv of spans [first, first + n_spans), at their rows of a whole tensor. */
static float *backward(const struct problem *x, enum cpu_isa isa, int32_t n_threads, float dropout,
                       int first, int n_spans)
{
    struct cpu_options o = {.n_threads = n_threads, .isa = isa};
    struct workspace_shape shape = {.dtype = x->qkv.dtype, .max_rows = x->rows, .max_logit_rows = 1,
                                    .n_embd = 1, .n_ff = 1, .n_head = x->s.h, .n_kv_head = x->s.g,
                                    .head_dim = x->s.k, .vocab_size = 1, .block_size = MAX_T};
    const uint64_t base = 77 << 4;
    struct attention a = {.n_head = x->s.h, .n_kv_head = x->s.g, .head_dim = x->s.k,
                          .scale = 1 / sqrtf((float)x->s.k), .dropout = dropout,
                          .dropout_key = {.base = &base}};
    struct batch b = {.n_rows = (int32_t)x->rows, .n_spans = n_spans, .spans = x->spans + first};
    struct tensor dqkv = tensor_blank(DTYPE_F32, x->rows, x->cols);
    struct device *d;
    struct error err;
    if (!cpu_device_open(&o, &d, &err)) fail_msg("%s", err.text);
    int64_t bytes = d->train->workspace_bytes(d, &shape);
    void *workspace = device_bytes(bytes);
    memset(workspace, 0xFF, (size_t)bytes);
    d->ops->set_workspace(d, workspace, bytes);
    d->train->attention_backward(d, dqkv, x->dout, x->qkv, x->out, x->lse, &b, &a);
    d->ops->close(d);
    free(workspace);
    return dqkv.data;
}

/* |got - want| / |want| over one part's columns: 0 of q, 1 of k, 2 of v. */
static double distance(const struct problem *x, int part, const float *got, const double *want)
{
    int64_t begin = column(&x->s, part, 0), end = part == 2 ? x->cols : column(&x->s, part + 1, 0);
    double error = 0, size = 0;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = begin; c < end; c++) {
            double w = want[r * x->cols + c], e = got[r * x->cols + c] - w;
            error += e * e, size += w * w;
        }
    return sqrt(error / size);
}

static void gradients_are_right(void **state)
{
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < N_SHAPES; i++) {
            struct problem x = problem_new(shapes[i], t ? DTYPE_BF16 : DTYPE_F32);
            for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
                float *got = backward(&x, (enum cpu_isa)isa, 2, 0, 0, N_SPANS);
                for (int part = 0; part < 3; part++) {
                    double error = distance(&x, part, got, x.want);
                    if (!(error <= (t ? 5e-3 : 1e-5)))
                        fail_msg("shape %d, part %d, %s, %s: off by %g", i, part,
                                 t ? "bf16" : "f32", cpu_isa_name((enum cpu_isa)isa), error);
                }
                free(got);
            }
            problem_free(&x);
        }
}

static void dropout_is_the_same_for_all(void **state)
{
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem x = problem_new(shapes[i], DTYPE_BF16);
        float *reference = backward(&x, CPU_ISA_REFERENCE, 1, 0.3f, 0, N_SPANS);
        for (int64_t n = 0; n < x.rows * x.cols; n++) x.want[n] = reference[n];
        for (int isa = 1; isa <= (int)cpu_isa_best(); isa++) {
            float *got = backward(&x, (enum cpu_isa)isa, 2, 0.3f, 0, N_SPANS);
            for (int part = 0; part < 3; part++)
                assert_true(distance(&x, part, got, x.want) <= 5e-3);
            free(got);
        }
        free(reference);
        problem_free(&x);
    }
}

static void threads_and_company_change_no_bit(void **state)
{
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem x = problem_new(shapes[i], i % 3 ? DTYPE_BF16 : DTYPE_F32);
        float *all = backward(&x, CPU_ISA_BEST, 3, 0, 0, N_SPANS);
        for (int s = 0; s < N_SPANS; s++) {
            float *alone = backward(&x, CPU_ISA_BEST, 1, 0, s, 1);
            int64_t begin = x.spans[s].row0 * x.cols;
            assert_memory_equal(all + begin, alone + begin,
                                (size_t)(x.spans[s].n_rows * x.cols) * sizeof *all);
            free(alone);
        }
        free(all);
        problem_free(&x);
    }
}

int main(void)
{
    amx_emulator_use();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_right),
        cmocka_unit_test(dropout_is_the_same_for_all),
        cmocka_unit_test(threads_and_company_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
