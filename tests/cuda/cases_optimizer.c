/* AdamW and the norm on the CUDA device, in every format of the state, against the CPU's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"

enum { STEPS = 3, MAX_VALUES = 70 * 1030 };

static const struct workspace_shape plan = {
    .dtype = DTYPE_BF16, .max_rows = 8, .max_logit_rows = 1, .n_embd = 1030, .n_ff = 16, .n_head = 1,
    .n_kv_head = 1, .head_dim = 16, .vocab_size = 70, .block_size = 16,
};

struct formats {
    enum dtype dtype, grad;
    enum master_format master;
    enum moment_format m, v;
};

static const struct formats formats[] = {
    {DTYPE_F32, DTYPE_F32, MASTER_NONE, MOMENT_F32, MOMENT_F32},
    {DTYPE_F32, DTYPE_BF16, MASTER_NONE, MOMENT_BF16, MOMENT_F32},
    {DTYPE_BF16, DTYPE_F32, MASTER_F32, MOMENT_F32, MOMENT_F32},
    {DTYPE_BF16, DTYPE_BF16, MASTER_REMAINDER, MOMENT_F32, MOMENT_BF16},
    {DTYPE_BF16, DTYPE_F32, MASTER_REMAINDER, MOMENT_Q8, MOMENT_Q8},
    {DTYPE_F16, DTYPE_F32, MASTER_F32, MOMENT_BF16, MOMENT_Q8},
    {DTYPE_F32, DTYPE_F32, MASTER_NONE, MOMENT_Q8, MOMENT_Q8},
};
enum { N_FORMATS = sizeof formats / sizeof *formats };

static int64_t state_elements(struct side *s, int64_t n_out, int64_t n_in, bool packed)
{
    return packed ? s->d->ops->matrix_bytes(s->d, DTYPE_F32, n_out, n_in) / 4 : n_out * n_in;
}

static void *zeros(struct side *s, int64_t bytes)
{
    void *p = side_bytes(s, bytes, NULL);
    s->d->train->zero(s->d, p, bytes);
    return p;
}

/* Some steps from `w` with gradients `grads` [STEPS][n]; the weights afterwards. */
static void optimize(struct side *s, struct formats f, int64_t n_out, int64_t n_in, bool packed,
                     const float *w, const float *grads, float *out)
{
    int64_t values = n_out * n_in, n = state_elements(s, n_out, n_in, packed);
    struct matrix weight = {.n_out = n_out, .n_in = n_in};
    if (packed) weight = side_matrix(s, f.dtype, n_out, n_in, w);
    else weight.data = side_floats(s, w, values);
    struct adamw_tensor t = {
        .weight = weight.data, .dtype = weight.dtype, .n_out = n_out, .n_in = n_in, .packed = packed,
        .grad_dtype = f.grad, .master_format = weight.dtype == DTYPE_F32 ? MASTER_NONE : f.master,
        .m_format = f.m, .v_format = f.v, .weight_decay = 0.1f,
        .m = zeros(s, s->d->train->moment_bytes(s->d, f.m, n)),
        .v = zeros(s, s->d->train->moment_bytes(s->d, f.v, n)),
    };
    if (t.master_format != MASTER_NONE) {
        t.master = side_bytes(s, n * (t.master_format == MASTER_F32 ? 4 : 2), NULL);
        s->d->train->master_init(s->d, &t);
    }
    for (int i = 0; i < STEPS; i++) {
        struct adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = i + 1,
                                  .grad_scale = 0.5f};
        const float *g = grads + i * values;
        t.grad = packed ? side_matrix(s, f.grad, n_out, n_in, g).data : side_floats(s, g, values);
        if (!packed) t.grad_dtype = DTYPE_F32;
        s->d->train->adamw(s->d, &t, &(bool){false}, 1, &step);
    }
    if (packed) s->d->train->matrix_read(s->d, &weight, 0, n_out, out);
    else s->d->ops->download(s->d, out, weight.data, (size_t)values * 4);
    side_sync(s);
    side_clear(s);
}

void test_adamw(void **state)
{
    static const struct { int64_t n_out, n_in; bool packed; } shapes[] = {
        {1, 1, false}, {1, 255, false}, {1, 1030, false}, {3, 5, true}, {70, 33, true}, {4, 1030, true},
    };
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct cpu_rng rng = {1};
    float *w = malloc(MAX_VALUES * sizeof *w), *grads = malloc(STEPS * MAX_VALUES * sizeof *grads);
    float *uneven = malloc(STEPS * MAX_VALUES * sizeof *uneven), *out[N_SIDES];
    for (int s = 0; s < N_SIDES; s++) out[s] = malloc(MAX_VALUES * sizeof(float));
    cpu_rng_fill(&rng, w, MAX_VALUES);
    cpu_rng_fill(&rng, grads, STEPS * MAX_VALUES);
    for (int f = 0; f < N_FORMATS; f++) {
        const struct side *cuda = &sides[SIDE_CUDA]; /* formats of GPUs that compute in bf16 */
        if (side_dtype(cuda, formats[f].dtype) != formats[f].dtype) continue;
        if (side_dtype(cuda, formats[f].grad) != formats[f].grad) continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            int64_t values = shapes[i].n_out * shapes[i].n_in;
            /* Where the noise is the CPU's, some elements' second moments are less than 8 bits hold
             * beside others'. */
            for (int64_t k = 0; k < STEPS * values; k++) uneven[k] = k % values % 7 == 3 ? grads[k] * 1e-6f : grads[k];
            for (int s = 0; s < N_SIDES; s++)
                optimize(&sides[s], formats[f], shapes[i].n_out, shapes[i].n_in, shapes[i].packed, w,
                         shapes[i].packed ? grads : uneven, out[s]);
            bool noisy = formats[f].m != MOMENT_F32 || formats[f].v != MOMENT_F32;
            /* Elements of a packed matrix count otherwise on the CPU, and with them the noise of
             * the moments; a step moves a weight by 0.01. */
            double tolerance = formats[f].dtype == DTYPE_F32 ? 1e-6 : tolerance_of(formats[f].dtype);
            if (noisy && shapes[i].packed) tolerance += 2e-3;
            if (noisy && !shapes[i].packed) tolerance = 1e-5;
            assert_all_near(out[1], out[0], values, shapes[i].n_in, tolerance, "adamw");
        }
    }
    for (int s = 0; s < N_SIDES; s++) free(out[s]);
    free(w), free(grads), free(uneven);
    sides_close(sides);
}

enum { N_VECTORS = 100 }; /* more than one launch takes */

/* Vectors of many lengths in one call, in two formats by turns; every seventh is skipped. */
static void optimize_many(struct side *s, const float *w, const float *grads, float *out)
{
    enum { ROOM = 640 };
    struct adamw_tensor tensors[N_VECTORS];
    bool skip[N_VECTORS];
    float *weights = side_floats(s, w, N_VECTORS * ROOM), *g = side_floats(s, grads, N_VECTORS * ROOM);
    uint8_t *m = zeros(s, N_VECTORS * ROOM * 4), *v = zeros(s, N_VECTORS * ROOM * 4);
    for (int64_t i = 0; i < N_VECTORS; i++) {
        enum moment_format format = i % 2 ? MOMENT_BF16 : MOMENT_F32;
        tensors[i] = (struct adamw_tensor){
            .weight = weights + i * ROOM, .grad = g + i * ROOM, .n_out = 1, .n_in = i * 37 % ROOM,
            .m = m + i * ROOM * 4, .v = v + i * ROOM * 4, .m_format = format, .v_format = format,
            .weight_decay = i % 3 ? 0.1f : 0,
        };
        skip[i] = i % 7 == 3;
    }
    struct adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = 1,
                              .grad_scale = 0.5f};
    s->d->train->adamw(s->d, tensors, skip, N_VECTORS, &step);
    side_read_floats(s, weights, N_VECTORS * ROOM, out);
    side_clear(s);
    for (int64_t i = 0; i < N_VECTORS; i++)
        if (skip[i]) assert_memory_equal(out + i * ROOM, w + i * ROOM, ROOM * sizeof *w);
}

void test_adamw_of_many_tensors(void **state)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    struct cpu_rng rng = {3};
    float *w = malloc(MAX_VALUES * sizeof *w), *grads = malloc(MAX_VALUES * sizeof *grads);
    float *out[N_SIDES];
    cpu_rng_fill(&rng, w, MAX_VALUES);
    cpu_rng_fill(&rng, grads, MAX_VALUES);
    for (int s = 0; s < N_SIDES; s++) {
        out[s] = malloc(MAX_VALUES * sizeof(float));
        optimize_many(&sides[s], w, grads, out[s]);
    }
    assert_all_near(out[1], out[0], N_VECTORS * 640, 640, 1e-6, "adamw");
    for (int s = 0; s < N_SIDES; s++) free(out[s]);
    free(w), free(grads);
    sides_close(sides);
}

enum { N_TENSORS = 230 }; /* more than one launch takes */

static double sum_of(struct side *s, const struct adamw_tensor *tensors, const bool *skip, int64_t n)
{
    double sum, *to = side_bytes(s, sizeof *to, NULL);
    s->d->train->grad_squares(s->d, tensors, skip, n, to);
    s->d->ops->download(s->d, &sum, to, sizeof sum);
    side_sync(s);
    return sum;
}

/* Tensors of many lengths in the three types of gradients, padded matrices too; some are left
 * out. */
static double grad_squares(struct side *s, const float *x)
{
    static const int64_t counts[] = {1, 255, 256, 257, 5000, 0, 70000, 32768, 65536, 3};
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    enum { N_COUNTS = sizeof counts / sizeof *counts };
    struct adamw_tensor tensors[N_TENSORS];
    bool skip[N_TENSORS];
    void *data[3];
    for (int t = 0; t < 3; t++) data[t] = side_tensor(s, types[t], 1, MAX_VALUES, x).data;
    struct matrix packed = side_matrix(s, DTYPE_BF16, 70, 33, x);
    for (int i = 0; i < N_TENSORS; i++) {
        tensors[i] = (struct adamw_tensor){
            .grad = data[i % 3], .grad_dtype = side_dtype(s, types[i % 3]), .n_out = 1,
            .n_in = counts[i % N_COUNTS],
        };
        skip[i] = i % 7 == 3;
        if (i % 50 != 0) continue;
        tensors[i] = (struct adamw_tensor){.grad = packed.data, .grad_dtype = packed.dtype, .n_out = 70,
                                           .n_in = 33, .packed = true};
    }
    double sum = sum_of(s, tensors, skip, N_TENSORS);
    side_clear(s);
    return sum;
}

void test_grad_squares(void **state)
{
    struct side sides[N_SIDES];
    double sums[N_SIDES];
    sides_open(sides, &plan);
    struct cpu_rng rng = {2};
    float *x = malloc(MAX_VALUES * sizeof *x);
    cpu_rng_fill(&rng, x, MAX_VALUES);
    for (int s = 0; s < N_SIDES; s++) sums[s] = grad_squares(&sides[s], x);
    assert_true(sums[0] > 1e5);
    assert_true(fabs(sums[1] - sums[0]) <= 1e-12 * sums[0]);
    bool none = true;
    struct adamw_tensor t = {.n_out = 1, .n_in = 1, .grad_dtype = DTYPE_F32};
    assert_true(sum_of(&sides[SIDE_CUDA], &t, &none, 1) == 0);
    side_clear(&sides[SIDE_CUDA]);
    free(x);
    sides_close(sides);
}
