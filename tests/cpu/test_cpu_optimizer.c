/* AdamW's block kernel on every instruction set, in every format, over awkward shapes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tests/cpu/cpu_util.h"

/* What a step is done on. */
struct formats {
    int64_t n_out, n_in;
    bool packed;
    enum dtype dtype, grad;
    enum master_format master;
    enum moment_format moments;
};

struct state {
    struct adamw_tensor t;
    int64_t n, weight_bytes, master_bytes, moment_bytes; /* n: padding included */
};

static const struct workspace_shape shape = {.max_rows = 1, .max_logit_rows = 1, .n_embd = 32,
                                             .n_ff = 32, .n_head = 1, .n_kv_head = 1,
                                             .head_dim = 16, .vocab_size = 32, .block_size = 16};

/* Values of few bits, so that sums and products of one step from nothing are exact. */
static float coarse(struct cpu_rng *rng)
{
    return (float)(cpu_rng_below(rng, 63) + 1) / 64 * (cpu_rng_below(rng, 2) ? 1 : -1);
}

static void *filled(enum dtype dtype, int64_t bytes, struct cpu_rng *rng, float scale)
{
    void *p = device_bytes(bytes);
    for (int64_t i = 0; i < bytes / (int64_t)element_bytes(dtype); i++) {
        float x = scale * coarse(rng);
        if (dtype == DTYPE_F32) ((float *)p)[i] = x;
        else ((uint16_t *)p)[i] = f32_to_bf16(x);
    }
    return p;
}

static int64_t bytes_of(struct device *d, const struct formats *f, enum dtype dtype)
{
    return f->packed ? d->ops->matrix_bytes(d, dtype, f->n_out, f->n_in) : f->n_out * f->n_in * 4;
}

static struct state state_new(struct device *d, const struct formats *f)
{
    struct cpu_rng rng = {7};
    struct state s = {.weight_bytes = bytes_of(d, f, f->dtype)};
    s.n = bytes_of(d, f, DTYPE_F32) / 4;
    s.master_bytes = f->master == MASTER_F32         ? 4 * s.n
                     : f->master == MASTER_REMAINDER ? 2 * s.n
                                                     : 0;
    s.moment_bytes = d->train->moment_bytes(d, f->moments, s.n);
    s.t = (struct adamw_tensor){
        .weight = filled(f->dtype, s.weight_bytes, &rng, 1),
        .dtype = f->dtype, .n_out = f->n_out, .n_in = f->n_in, .packed = f->packed,
        .grad = filled(f->grad, bytes_of(d, f, f->grad), &rng, 0.25f),
        .grad_dtype = f->grad,
        .master_format = f->master,
        .master = s.master_bytes ? device_bytes(s.master_bytes) : NULL,
        .m_format = f->moments, .v_format = f->moments,
        .m = device_bytes(s.moment_bytes), .v = device_bytes(s.moment_bytes),
    };
    memset(s.t.m, 0, (size_t)s.moment_bytes);
    memset(s.t.v, 0, (size_t)s.moment_bytes);
    d->train->master_init(d, &s.t);
    return s;
}

static void state_free(struct state *s)
{
    free(s->t.weight);
    free((void *)s->t.grad);
    free(s->t.master);
    free(s->t.m);
    free(s->t.v);
}

static void assert_same(const struct state *a, const struct state *b)
{
    assert_memory_equal(a->t.weight, b->t.weight, (size_t)a->weight_bytes);
    if (a->master_bytes) assert_memory_equal(a->t.master, b->t.master, (size_t)a->master_bytes);
    assert_memory_equal(a->t.m, b->t.m, (size_t)a->moment_bytes);
    assert_memory_equal(a->t.v, b->t.v, (size_t)a->moment_bytes);
}

/* Element i of the weight, from wherever its f32 value lies. */
static float weight_at(const struct state *s, int64_t i)
{
    const struct adamw_tensor *t = &s->t;
    if (t->dtype == DTYPE_F32) return ((const float *)t->weight)[i];
    if (t->master_format == MASTER_F32) return ((const float *)t->master)[i];
    union { uint32_t u; float f; } v;
    v.u = (uint32_t)packed_bf16_row(t->weight, t->n_in, i / PANEL * PANEL)[i % PANEL * 2] << 16;
    if (t->master_format == MASTER_REMAINDER)
        v.u += (uint32_t)(int32_t)((const int16_t *)t->master)[i];
    return v.f;
}

static void assert_close(const struct state *got, const struct state *want)
{
    bool rounded = want->t.dtype != DTYPE_F32 && want->t.master_format == MASTER_NONE;
    double tolerance = rounded ? 1e-2 : 1e-5;
    for (int64_t i = 0; i < want->n; i++)
        assert_near(weight_at(got, i), weight_at(want, i), tolerance, "weight", i, 0);
}

/* Constants that are powers of two and moments that begin at zero:
 * the reference's sums are exact, as the vectors'. */
static const struct adamw_step first = {.lr = 0x1p-9f, .beta1 = 0.5f, .beta2 = 0.5f, .eps = 0,
                                        .step = 1, .grad_scale = 0.5f};
/* As in training. */
static const struct adamw_step next = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
                                       .step = 2, .grad_scale = 0.7f};

static void step_once(struct device *d, const struct state *s, const struct adamw_step *step)
{
    bool skip = false;
    d->train->adamw(d, &s->t, &skip, 1, step);
}

/* One exact step has the reference's bits on every instruction set and number of threads; after
 * another one, which reads what the first stored, vectors have each other's bits and are near the
 * reference. */
static void check(const struct formats *f)
{
    struct cpu_fixture plain;
    cpu_fixture_open(&plain, CPU_ISA_REFERENCE, 1, &shape);
    struct state want = state_new(plain.d, f), vectors = {0};
    step_once(plain.d, &want, &first);
    struct state want_next = state_new(plain.d, f);
    step_once(plain.d, &want_next, &first);
    want_next.t.weight_decay = 0.1f;
    step_once(plain.d, &want_next, &next);
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++) {
        struct cpu_fixture x;
        cpu_fixture_open(&x, isa, 3, &shape);
        struct state got = state_new(x.d, f);
        step_once(x.d, &got, &first);
        assert_same(&got, &want);
        got.t.weight_decay = 0.1f;
        step_once(x.d, &got, &next);
        if (isa == CPU_ISA_REFERENCE) assert_same(&got, &want_next);
        assert_close(&got, &want_next);
        cpu_fixture_close(&x);
        if (isa == CPU_ISA_AVX2) {
            vectors = got;
            continue;
        }
        if (isa > CPU_ISA_AVX2) assert_same(&got, &vectors);
        state_free(&got);
    }
    if (vectors.n) state_free(&vectors);
    state_free(&want);
    state_free(&want_next);
    cpu_fixture_close(&plain);
}

static void test_vectors(void **state)
{
    static const int64_t sizes[] = {1, 5, 31, 255, 256, 257, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (enum moment_format m = MOMENT_F32; m <= MOMENT_Q8; m++)
            check(&(struct formats){1, sizes[i], false, DTYPE_F32, DTYPE_F32, MASTER_NONE, m});
}

/* 96 x 257: a border between threads' shares cuts a pair of rows. */
static void test_matrices(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {33, 3}, {32, 8}, {40, 7}, {64, 33}, {96, 257}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (enum moment_format m = MOMENT_F32; m <= MOMENT_Q8; m++)
            for (int half = 0; half < 2; half++)
                for (enum master_format master = MASTER_NONE; master <= MASTER_REMAINDER;
                     master++) {
                    struct formats f = {shapes[i][0], shapes[i][1], true, DTYPE_BF16,
                                        half ? DTYPE_BF16 : DTYPE_F32, master, m};
                    check(&f);
                    f.dtype = DTYPE_F32;
                    if (master == MASTER_NONE) check(&f);
                }
}

/* Of gradients of every type, near f64's sum on every instruction set;
 * the same bits on any number of threads. */
static void check_squares(int64_t n_out, int64_t n_in, enum dtype dtype)
{
    struct formats f = {n_out, n_in, dtype == DTYPE_BF16, DTYPE_F32, dtype, MASTER_NONE,
                        MOMENT_F32};
    for (enum cpu_isa isa = CPU_ISA_REFERENCE; isa <= cpu_isa_best(); isa++) {
        double sums[2], want = 0;
        for (int32_t i = 0; i < 2; i++) {
            struct cpu_fixture x;
            cpu_fixture_open(&x, isa, 1 + 2 * i, &shape);
            struct state s = state_new(x.d, &f);
            int64_t n = bytes_of(x.d, &f, dtype) / (int64_t)element_bytes(dtype);
            for (int64_t k = 0; i == 0 && k < n; k++) {
                double g = dtype == DTYPE_F32 ? ((const float *)s.t.grad)[k]
                                              : bf16_to_f32(((const uint16_t *)s.t.grad)[k]);
                want += g * g;
            }
            x.d->train->grad_squares(x.d, &s.t, &(bool){false}, 1, &sums[i]);
            state_free(&s);
            cpu_fixture_close(&x);
        }
        assert_near(sums[0], want, 1e-5, "squares", isa, 0);
        assert_true(sums[0] == sums[1]);
    }
}

static void test_squares(void **state)
{
    static const int64_t sizes[] = {1, 31, 4095, 4097, 70000, 200001};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_squares(1, sizes[i], DTYPE_F32);
    static const int64_t shapes[][2] = {{1, 1}, {33, 3}, {64, 33}, {96, 257}, {40, 2050}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_squares(shapes[i][0], shapes[i][1], DTYPE_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_squares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
