/* AdamW over all weights of a model against the formula in float64: which tensors decay, which
 * are frozen, clipping by the global norm, every format of moments and masters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "model/optimizer.h"

enum { MAX_PARAMS = 64, MAX_ELEMENTS = 8192 };

struct fixture {
    struct device *device;
    struct gpt gpt, grads;
    enum dtype gradients; /* of the layers' matrices */
    struct gpt_layer layers[2], grad_layers[2];
    struct optimizer o;
    struct adamw_tensor tensors[MAX_PARAMS];
    bool frozen[MAX_PARAMS];
    struct plan plan;
    void *arena, *workspace;
    int64_t workspace_bytes;
};

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

static void layout(struct fixture *f)
{
    gpt_layout(&f->gpt, f->device, MEMORY_WEIGHTS, &f->plan);
    gpt_gradients_layout(&f->grads, f->gradients, f->device, &f->plan);
    optimizer_layout(&f->o, &f->gpt, &f->grads, f->device, &f->plan);
    struct workspace_shape shape = gpt_workspace_shape(&f->gpt, 1, 1, f->gpt.config.block_size);
    f->workspace_bytes = f->device->train->workspace_bytes(f->device, &shape);
    f->workspace = plan_take(&f->plan, MEMORY_WORKSPACE, "workspace", f->workspace_bytes, 1);
}

static void fixture_open_with(struct fixture *f, enum dtype dtype, enum dtype gradients,
                              const struct optimizer_options *o)
{
    static const char model[] = "{\"n_layer\":2,\"n_head\":2,\"n_embd\":32,\"block_size\":12,"
                                "\"vocab_size\":140,\"bias\":true,\"tie_weights\":false}";
    struct error err;
    struct gpt_config c;
    must(gpt_config_from_preset(model, strlen(model), "test", &c, &err), &err);
    *f = (struct fixture){.gradients = gradients};
    f->gpt = (struct gpt){.config = c, .dtype = dtype, .max_context = 12, .layers = f->layers};
    f->grads = f->gpt;
    f->grads.dtype = DTYPE_F32;
    f->grads.layers = f->grad_layers;
    f->o = (struct optimizer){.options = *o, .tensors = f->tensors, .frozen = f->frozen};
    assert_true(gpt_n_params(&f->gpt) <= MAX_PARAMS);
    must(cpu_device_open(&(struct cpu_options){.n_threads = 2}, &f->device, &err), &err);
    plan_init(&f->plan);
    layout(f);
    f->arena = f->device->ops->alloc(f->device, (size_t)f->plan.total, &err);
    must(f->arena != NULL, &err);
    plan_restart(&f->plan, f->arena);
    layout(f);
    assert_true(plan_matches(&f->plan));
    f->device->ops->set_workspace(f->device, f->workspace, f->workspace_bytes);
    float *staging = malloc((size_t)gpt_load_staging_bytes(&f->gpt));
    must(gpt_init(&f->gpt, f->device, 1, staging, &err), &err);
    free(staging);
    optimizer_start(&f->o, f->device);
}

static void fixture_open(struct fixture *f, enum dtype dtype, const struct optimizer_options *o)
{
    fixture_open_with(f, dtype, DTYPE_F32, o);
}

static void fixture_close(struct fixture *f)
{
    f->device->ops->free(f->device, f->arena, (size_t)f->plan.total);
    f->device->ops->close(f->device);
}

/* Parameter i as plain rows. */
static int64_t read_param(struct fixture *f, int64_t i, float *out)
{
    struct gpt_param p = gpt_param(&f->gpt, i);
    int64_t n = p.n_out * p.n_in;
    assert_true(n <= MAX_ELEMENTS);
    if (p.matrix) f->device->train->matrix_read(f->device, p.matrix, 0, p.n_out, out);
    else f->device->ops->download(f->device, out, p.vector, (size_t)n * sizeof *out);
    return n;
}

/* A gradient that differs in every element, tensor and step. */
static float gradient(int64_t i, int64_t k, int64_t step)
{
    return (float)(0.3 * sin(0.37 * (double)k + 1.7 * (double)i) + 0.05 * cos((double)(k * step)));
}

static void write_grad(struct fixture *f, const struct gpt_param *p, const float *rows)
{
    if (p->matrix) f->device->ops->matrix_write(f->device, p->matrix, 0, p->n_out, rows);
    else f->device->ops->upload(f->device, p->vector, rows, (size_t)(p->n_out * p->n_in) * 4);
}

static void write_grads(struct fixture *f, int64_t step)
{
    static float rows[MAX_ELEMENTS];
    for (int64_t i = 0; i < f->o.n; i++) {
        struct gpt_param p = gpt_param(&f->grads, i);
        for (int64_t k = 0; k < p.n_out * p.n_in; k++) rows[k] = gradient(i, k, step);
        write_grad(f, &p, rows);
    }
}

static bool is_matrix(enum weight_role role)
{
    return role == WEIGHT_TOKEN_EMBEDDING || role == WEIGHT_POSITION_EMBEDDING ||
           role == WEIGHT_LM_HEAD || role == WEIGHT_QKV || role == WEIGHT_ATTN_OUT ||
           role == WEIGHT_MLP_UP || role == WEIGHT_MLP_DOWN;
}

/* float64, straight from the paper. */
struct reference { double w[MAX_ELEMENTS], m[MAX_ELEMENTS], v[MAX_ELEMENTS]; };

static void reference_step(struct reference *r, int64_t n, int64_t i, int64_t step, double lr,
                           double scale, double decay, const struct optimizer_options *o)
{
    double b1 = o->beta1, b2 = o->beta2;
    for (int64_t k = 0; k < n; k++) {
        double g = scale * gradient(i, k, step);
        r->m[k] = b1 * r->m[k] + (1 - b1) * g;
        r->v[k] = b2 * r->v[k] + (1 - b2) * g * g;
        double m = r->m[k] / (1 - pow(b1, (double)step)), v = r->v[k] / (1 - pow(b2, (double)step));
        r->w[k] -= lr * (m / (sqrt(v) + o->eps) + decay * r->w[k]);
    }
}

static double global_norm(struct fixture *f, int64_t step)
{
    double sum = 0;
    for (int64_t i = 0; i < f->o.n; i++) {
        struct gpt_param p = gpt_param(&f->gpt, i);
        for (int64_t k = 0; !f->frozen[i] && k < p.n_out * p.n_in; k++)
            sum += pow(gradient(i, k, step), 2);
    }
    return sqrt(sum);
}

static double grad_norm(struct fixture *f, double grad_scale)
{
    double squares;
    struct error err;
    optimizer_sum_squares(&f->o, f->device, &squares);
    assert_true(f->device->ops->sync(f->device, &err));
    return optimizer_grad_norm(squares, grad_scale);
}

/* Runs `steps` steps; every weight must be within `tolerance` of the updates' size (lr x steps)
 * of the reference. */
static void check_steps(enum dtype dtype, const struct optimizer_options *o, int64_t steps,
                        double tolerance)
{
    static struct fixture f;
    static struct reference refs[MAX_PARAMS];
    static float w[MAX_ELEMENTS];
    const double lr = 1e-2;
    fixture_open(&f, dtype, o);
    for (int64_t i = 0; i < f.o.n; i++) {
        int64_t n = read_param(&f, i, w);
        for (int64_t k = 0; k < n; k++) refs[i].w[k] = w[k];
        memset(refs[i].m, 0, sizeof refs[i].m);
        memset(refs[i].v, 0, sizeof refs[i].v);
    }
    for (int64_t step = 1; step <= steps; step++) {
        write_grads(&f, step);
        double norm = grad_norm(&f, 0.5);
        double expected = 0.5 * global_norm(&f, step);
        if (fabs(norm - expected) > 1e-5 * expected)
            fail_msg("norm is %.9g, not %.9g", norm, expected);
        double clip = o->grad_clip > 0 && norm > o->grad_clip ? o->grad_clip / norm : 1;
        optimizer_step(&f.o, f.device, (float)lr, step, 0.5, norm);
        for (int64_t i = 0; i < f.o.n; i++) {
            struct gpt_param p = gpt_param(&f.gpt, i);
            double decay = is_matrix(p.role) ? o->weight_decay : 0;
            if (!f.frozen[i])
                reference_step(&refs[i], p.n_out * p.n_in, i, step, lr, 0.5 * clip, decay, o);
        }
    }
    for (int64_t i = 0; i < f.o.n; i++) {
        int64_t n = read_param(&f, i, w);
        for (int64_t k = 0; k < n; k++) {
            /* What bf16 weights show is rounded; their masters are not. */
            double rounding = dtype == DTYPE_BF16 && f.tensors[i].packed ? fabs(refs[i].w[k]) / 256
                                                                          : 0;
            if (fabs(w[k] - refs[i].w[k]) > tolerance * lr * (double)steps + rounding)
                fail_msg("parameter %lld[%lld] is %g, not %g", (long long)i, (long long)k, w[k],
                         refs[i].w[k]);
        }
    }
    fixture_close(&f);
}

static const struct optimizer_options plain = {
    .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f,
};

static void test_f32(void **state) { check_steps(DTYPE_F32, &plain, 10, 1e-5); }

static void test_clipping(void **state)
{
    struct optimizer_options o = plain;
    o.eps = 0.1f; /* else Adam does not see the gradients' scale */
    o.grad_clip = 1;
    check_steps(DTYPE_F32, &o, 5, 1e-5);
    o.grad_clip = 1e6f; /* never reached */
    check_steps(DTYPE_F32, &o, 5, 1e-5);
}

static void test_no_decay(void **state)
{
    struct optimizer_options o = plain;
    o.weight_decay = 0;
    check_steps(DTYPE_F32, &o, 3, 1e-5);
}

static void test_bf16_with_masters(void **state)
{
    struct optimizer_options o = plain;
    o.master = MASTER_F32;
    check_steps(DTYPE_BF16, &o, 10, 1e-5);
    o.master = MASTER_REMAINDER;
    check_steps(DTYPE_BF16, &o, 10, 1e-5);
}

/* Two runs that must have come to the same weights, to the bit. */
static void close_same_weights(struct fixture f[2])
{
    static float w[2][MAX_ELEMENTS];
    for (int64_t i = 0; i < f[0].o.n; i++) {
        int64_t n = read_param(&f[0], i, w[0]);
        read_param(&f[1], i, w[1]);
        assert_memory_equal(w[0], w[1], (size_t)n * sizeof(float));
    }
    fixture_close(&f[0]);
    fixture_close(&f[1]);
}

/* The two masters are the same numbers: exactly the same weights come of them. */
static void test_masters_agree(void **state)
{
    static struct fixture f[2];
    for (int way = 0; way < 2; way++) {
        struct optimizer_options o = plain;
        o.master = way ? MASTER_F32 : MASTER_REMAINDER;
        fixture_open(&f[way], DTYPE_BF16, &o);
        for (int64_t step = 1; step <= 20; step++) {
            write_grads(&f[way], step);
            optimizer_step(&f[way].o, f[way].device, 1e-3f, step, 1, 1);
        }
    }
    close_same_weights(f);
}

/* bf16 gradients give the weights that f32 gradients of the very same values give,
 * and their norm. */
static void test_bf16_gradients(void **state)
{
    static float rows[MAX_ELEMENTS];
    static struct fixture f[2];
    struct optimizer_options o = plain;
    o.master = MASTER_REMAINDER;
    for (int dtype = 0; dtype < 2; dtype++) {
        double norm[2];
        for (int way = 0; way < 2; way++) {
            fixture_open_with(&f[way], dtype ? DTYPE_BF16 : DTYPE_F32,
                              way ? DTYPE_BF16 : DTYPE_F32, &o);
            for (int64_t step = 1; step <= 5; step++) {
                for (int64_t i = 0; i < f[way].o.n; i++) {
                    struct gpt_param p = gpt_param(&f[way].grads, i);
                    for (int64_t k = 0; k < p.n_out * p.n_in; k++)
                        rows[k] = bf16_to_f32(f32_to_bf16(gradient(i, k, step)));
                    write_grad(&f[way], &p, rows);
                }
                norm[way] = grad_norm(&f[way], 1);
                optimizer_step(&f[way].o, f[way].device, 1e-3f, step, 1, 1);
            }
        }
        if (!(fabs(norm[0] - norm[1]) <= 1e-6 * norm[0]))
            fail_msg("norm is %.9g, not %.9g", norm[1], norm[0]);
        assert_true(f[1].plan.component[MEMORY_GRADIENTS] < f[0].plan.component[MEMORY_GRADIENTS]);
        close_same_weights(f);
    }
}

static void test_small_moments(void **state)
{
    struct optimizer_options o = plain;
    o.moments = MOMENT_BF16;
    check_steps(DTYPE_F32, &o, 10, 0.02);
    o.moments = MOMENT_Q8;
    check_steps(DTYPE_F32, &o, 10, 0.1);
}

/* Under Q8 what is small keeps f32 and embeddings bf16; the other formats are everyone's. */
static void test_which_moments(void **state)
{
    static struct fixture f;
    struct optimizer_options o = plain;
    bool seen[3] = {false};
    o.moments = MOMENT_Q8;
    fixture_open(&f, DTYPE_F32, &o);
    for (int64_t i = 0; i < f.o.n; i++) {
        struct gpt_param p = gpt_param(&f.gpt, i);
        enum moment_format want = MOMENT_Q8;
        if (p.role == WEIGHT_TOKEN_EMBEDDING) want = MOMENT_BF16;
        if (p.n_out * p.n_in < 4096) want = MOMENT_F32;
        seen[want] = true;
        assert_int_equal(f.tensors[i].m_format, want);
        assert_int_equal(f.tensors[i].v_format, want);
    }
    fixture_close(&f);
    assert_true(seen[MOMENT_F32] && seen[MOMENT_BF16] && seen[MOMENT_Q8]);
    o.moments = MOMENT_BF16;
    fixture_open(&f, DTYPE_F32, &o);
    for (int64_t i = 0; i < f.o.n; i++) assert_int_equal(f.tensors[i].m_format, MOMENT_BF16);
    fixture_close(&f);
}

static void test_frozen(void **state)
{
    static struct fixture f;
    static float before[MAX_PARAMS][MAX_ELEMENTS], after[MAX_ELEMENTS];
    struct optimizer_options o = plain;
    o.freeze_layers = 1;
    o.freeze_embeddings = true;
    fixture_open(&f, DTYPE_F32, &o);
    for (int64_t i = 0; i < f.o.n; i++) read_param(&f, i, before[i]);
    write_grads(&f, 1);
    optimizer_step(&f.o, f.device, 1e-2f, 1, 1, 1);
    for (int64_t i = 0; i < f.o.n; i++) {
        struct gpt_param p = gpt_param(&f.gpt, i);
        bool frozen = p.role == WEIGHT_TOKEN_EMBEDDING || p.role == WEIGHT_POSITION_EMBEDDING ||
                      (weight_role_is_layer(p.role) && p.layer == 0);
        int64_t n = read_param(&f, i, after);
        assert_int_equal(memcmp(before[i], after, (size_t)n * sizeof(float)) == 0, frozen);
        assert_int_equal(f.frozen[i], frozen);
    }
    fixture_close(&f);
}

/* Every array once, by a name of its own, with the bytes that the plan gave it. */
static void test_arrays(void **state)
{
    static struct fixture f;
    struct optimizer_options o = plain;
    o.moments = MOMENT_Q8;
    o.master = MASTER_REMAINDER;
    o.freeze_layers = 1;
    fixture_open(&f, DTYPE_BF16, &o);
    int64_t n = optimizer_n_arrays(&f.o), bytes = 0, expected = 0;
    for (int64_t i = 0; i < f.o.n; i++)
        if (!f.frozen[i]) expected += f.tensors[i].packed ? 3 : 2;
    assert_int_equal(n, expected);
    for (int64_t i = 0; i < n; i++) {
        struct optimizer_array a = optimizer_array(&f.o, f.device, i);
        assert_non_null(a.data);
        assert_true(a.bytes > 0);
        bytes += (a.bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN;
        for (int64_t j = 0; j < i; j++)
            assert_string_not_equal(a.name, optimizer_array(&f.o, f.device, j).name);
    }
    assert_int_equal(bytes, f.plan.component[MEMORY_OPTIMIZER] + f.plan.component[MEMORY_MASTER]);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),           cmocka_unit_test(test_clipping),
        cmocka_unit_test(test_no_decay),      cmocka_unit_test(test_bf16_with_masters),
        cmocka_unit_test(test_masters_agree), cmocka_unit_test(test_small_moments),
        cmocka_unit_test(test_bf16_gradients), cmocka_unit_test(test_which_moments),
        cmocka_unit_test(test_frozen),        cmocka_unit_test(test_arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
