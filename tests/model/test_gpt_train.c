/* The backward pass: gradients against float64 autograd (tests/golden/NAME/grads, made and
 * checked against finite differences by scripts/make_grad_goldens.py), recompute levels
 * equal to the bit, documents in one micro-batch that do not see each other, and
 * log-probabilities that are serving's to the bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/gpt_train.h"
#include "model/sampler.h"
#include "tests/cpu/amx_emulator.h"
#include "tests/cpu/cpu_util.h"
#include "tests/model/golden.h"
#include "tests/model/model_runner.h"

enum { MAX_ROWS = 64, MAX_SPANS = 8 };

#ifdef __SANITIZE_THREAD__ /* which finds the same in all, slowly */
static enum cpu_isa first_isa(void) { return cpu_isa_best(); }
#else
static enum cpu_isa first_isa(void) { return CPU_ISA_REFERENCE; }
#endif

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* ---- a trainer without an optimizer ---- */

struct fixture {
    struct device *device;
    struct checkpoint *checkpoint;
    struct gpt gpt;
    struct gpt_train train;
    struct gpt_rows host, rows;
    struct plan plan;
    void *arena, *workspace;
    int64_t workspace_bytes;
};

static void layout(struct fixture *f)
{
    const struct gpt_train_options *o = &f->train.options;
    gpt_layout(&f->gpt, f->device, MEMORY_WEIGHTS, &f->plan);
    gpt_train_layout(&f->train, f->device, &f->plan);
    gpt_rows_layout(&f->host, o, &f->plan);
    gpt_rows_layout(&f->rows, o, &f->plan);
    struct workspace_shape shape = gpt_workspace_shape(&f->gpt, o->max_rows, o->loss_rows,
                                                       f->gpt.config.block_size);
    shape.gradients = o->gradients;
    f->workspace_bytes = f->device->train->workspace_bytes(f->device, &shape);
    f->workspace = plan_take(&f->plan, MEMORY_WORKSPACE, "workspace", f->workspace_bytes, 1);
}

struct settings {
    enum dtype dtype;
    enum cpu_isa isa;
    int32_t n_threads;
    struct gpt_train_options train;
};

static const struct gpt_train_options plain = {
    .max_rows = MAX_ROWS, .max_spans = MAX_SPANS, .loss_rows = 10,
};

static void fixture_open_at(struct fixture *f, const char *path, const struct settings *s)
{
    struct error err = {0};
    *f = (struct fixture){0};
    struct cpu_options cpu = {.n_threads = s->n_threads, .isa = s->isa};
    must(cpu_device_open(&cpu, &f->device, &err), &err);
    must(checkpoint_open(path, &f->checkpoint, &err), &err);
    f->gpt.config = *checkpoint_config(f->checkpoint);
    f->gpt.dtype = s->dtype;
    f->gpt.max_context = f->gpt.config.block_size;
    size_t n = (size_t)f->gpt.config.n_layer;
    f->gpt.layers = calloc(n, sizeof *f->gpt.layers);
    f->train = (struct gpt_train){.gpt = &f->gpt, .options = s->train};
    f->train.grads.layers = calloc(n, sizeof *f->gpt.layers);
    f->train.blocks = calloc(n, sizeof *f->train.blocks);

    plan_init(&f->plan);
    layout(f);
    f->arena = f->device->ops->alloc(f->device, (size_t)f->plan.total, &err);
    must(f->arena != NULL, &err);
    plan_restart(&f->plan, f->arena);
    layout(f);
    assert_true(plan_matches(&f->plan));
    f->device->ops->set_workspace(f->device, f->workspace, f->workspace_bytes);
    float *staging = malloc((size_t)gpt_load_staging_bytes(&f->gpt));
    assert_non_null(staging);
    must(gpt_load(&f->gpt, f->device, f->checkpoint, staging, &err), &err);
    free(staging);
    gpt_train_zero_grads(&f->train, f->device);
}

static void fixture_close_all(struct fixture *f)
{
    f->device->ops->free(f->device, f->arena, (size_t)f->plan.total);
    f->device->ops->close(f->device);
    checkpoint_close(f->checkpoint);
    free(f->gpt.layers);
    free(f->train.grads.layers);
    free(f->train.blocks);
}

/* Spans of the given lengths over consecutive tokens; each predicts its next token. */
static struct gpt_micro_batch batch_of_spans(struct fixture *f, const int32_t *tokens,
                                             const int32_t *lengths, int32_t n, float scale)
{
    gpt_rows_clear(&f->host);
    for (int32_t i = 0; i < n; i++) {
        assert_true(gpt_rows_add(&f->host, &f->train.options, tokens, tokens + 1, lengths[i]));
        tokens += lengths[i];
    }
    *f->host.scalars = (struct gpt_micro_scalars){12345, scale};
    return gpt_rows_upload(&f->host, &f->rows, f->device);
}

static void run_spans(struct fixture *f, const int32_t *tokens, const int32_t *lengths, int32_t n,
                      float scale)
{
    struct gpt_micro_batch m = batch_of_spans(f, tokens, lengths, n, scale);
    gpt_train_micro_step(&f->train, f->device, &m);
}

/* Gradient i as plain rows; free it. */
static float *read_gradient(struct fixture *f, int64_t i, int64_t *n)
{
    struct gpt_param p = gpt_param(&f->train.grads, i);
    *n = p.n_out * p.n_in;
    float *out = malloc((size_t)*n * sizeof *out);
    if (p.matrix) f->device->train->matrix_read(f->device, p.matrix, 0, p.n_out, out);
    else f->device->ops->download(f->device, out, p.vector, (size_t)*n * sizeof *out);
    return out;
}

/* ---- against autograd ---- */

/* Sums of squares, over one tensor or over many. */
struct distance { double difference, size; };

static void measure(struct distance *s, const float *got, const float *want, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        s->difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        s->size += (double)want[i] * want[i];
    }
}

static double relative(struct distance s)
{
    return sqrt(s.difference / (s.size > 0 ? s.size : 1));
}

static double relative_error(const float *got, const float *want, int64_t n)
{
    struct distance s = {0};
    measure(&s, got, want, n);
    return relative(s);
}

static void read_tokens(const char *name, int32_t *tokens, int32_t *n)
{
    char dir[128];
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    cJSON *json = golden_read(dir);
    const cJSON *prompt;
    *n = 0;
    cJSON_ArrayForEach(prompt, cJSON_GetObjectItem(json, "prompts"))
    {
        const cJSON *list = cJSON_GetObjectItem(prompt, "tokens"), *item;
        if (cJSON_GetArraySize(list) <= *n) continue;
        *n = 0;
        cJSON_ArrayForEach(item, list) tokens[(*n)++] = item->valueint;
    }
    assert_true(*n > 16 && *n <= MAX_ROWS);
    cJSON_Delete(json);
}

/* The biases that a family always stores are there in the golden;
 * those it lacks have no gradient to check. */
static void check_gradients(const char *name, const struct settings *s, double tolerance)
{
    char dir[128], grads[160];
    struct error err;
    struct fixture f;
    struct checkpoint *want;
    int32_t tokens[MAX_ROWS], n_tokens;
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    snprintf(grads, sizeof grads, "%s/grads", dir);
    read_tokens(name, tokens, &n_tokens);
    fixture_open_at(&f, dir, s);
    must(checkpoint_open(grads, &want, &err), &err);

    int32_t length = n_tokens - 1;
    run_spans(&f, tokens, &length, 1, 1.0f / (float)length);
    struct distance all = {0};
    for (int64_t i = 0; i < gpt_n_params(&f.gpt); i++) {
        struct gpt_param p = gpt_param(&f.gpt, i);
        int64_t n;
        float *got = read_gradient(&f, i, &n), *exact = malloc((size_t)n * sizeof *exact);
        checkpoint_read_rows(want, p.role, p.layer, 0, p.n_out, exact);
        double error = relative_error(got, exact, n);
        if (s->dtype == DTYPE_F32 && !(error <= tolerance))
            fail_msg("%s, %s of layer %d, %s: relative error %g", name, weight_role_name(p.role),
                     (int)p.layer, f.device->ops->description(f.device), error);
        measure(&all, got, exact, n);
        free(got);
        free(exact);
    }
    if (!(relative(all) <= tolerance))
        fail_msg("%s: relative error of all gradients %g", name, relative(all));
    checkpoint_close(want);
    fixture_close_all(&f);
}

static const char *const golden_names[] = {"gpt2", "gpt2_untied", "llama", "qwen2", "qwen3"};
enum { N_GOLDEN = 5 };

static void test_f32_gradients_equal_float64_autograd(void **state)
{
    for (enum cpu_isa isa = first_isa(); isa <= cpu_isa_best(); isa++) {
        struct settings s = {DTYPE_F32, isa, 2, plain};
        for (int i = 0; i < N_GOLDEN; i++) check_gradients(golden_names[i], &s, 1e-5);
    }
}

/* These models are sensitive on purpose: rounding their weights to bf16 and nothing else moves the
 * gradients by up to 1.9e-2. The bounds are what PyTorch's autocast comes to on them (1.5e-2,
 * 1.05e-2, 2.8e-2, 2.0e-2; qwen3 is new to it), rounded up. */
static void test_bf16_gradients_are_near(void **state)
{
    static const double bounds[N_GOLDEN] = {1.2e-2, 1.2e-2, 2.8e-2, 2e-2, 2e-2};
    for (enum cpu_isa isa = first_isa(); isa <= cpu_isa_best(); isa++) {
        struct settings s = {DTYPE_BF16, isa, 2, plain};
        for (int i = 0; i < N_GOLDEN; i++) check_gradients(golden_names[i], &s, bounds[i]);
    }
}

/* The matrices of an f32 model take the values that bf16 has for them. */
static void round_weights(struct fixture *f)
{
    for (int64_t i = 0; i < gpt_n_params(&f->gpt); i++) {
        struct gpt_param p = gpt_param(&f->gpt, i);
        if (!p.matrix) continue;
        int64_t n = p.n_out * p.n_in;
        float *w = malloc((size_t)n * sizeof *w);
        f->device->train->matrix_read(f->device, p.matrix, 0, p.n_out, w);
        for (int64_t k = 0; k < n; k++) w[k] = bf16_to_f32(f32_to_bf16(w[k]));
        f->device->ops->matrix_write(f->device, p.matrix, 0, p.n_out, w);
        free(w);
    }
}

static void widen(struct tensor to, struct tensor from)
{
    if (from.data) dtype_to_f32(from.dtype, from.data, from.rows * from.cols, to.data);
}

/* An f32 backward pass is to begin with what a bf16 forward pass found. */
static void take_forward(struct gpt_train *to, const struct gpt_train *from)
{
    for (int64_t i = 0; i < from->gpt->config.n_layer; i++) {
        struct gpt_block *a = &to->blocks[i];
        const struct gpt_block *b = &from->blocks[i];
        widen(a->x_in, b->x_in), widen(a->x_mid, b->x_mid);
        widen(a->h_attn, b->h_attn), widen(a->h_mlp, b->h_mlp);
        widen(a->qkv_kept, b->qkv_kept), widen(a->qkv_pre, b->qkv_pre);
        widen(a->attn, b->attn), widen(a->up, b->up), widen(a->mlp, b->mlp);
        memcpy(a->lse, b->lse,
               (size_t)(from->options.max_rows * from->gpt->config.n_head) * sizeof(float));
    }
    widen(to->shared.x_out, from->shared.x_out);
    widen(to->h_final, from->h_final);
}

/* Both gradients from the bf16 model's forward pass over the golden's tokens. */
static void both_backwards(const char *name, struct fixture *half, struct fixture *full)
{
    int32_t tokens[MAX_ROWS], length;
    read_tokens(name, tokens, &length);
    length--;
    round_weights(full);
    struct gpt_micro_batch a = batch_of_spans(half, tokens, &length, 1, 1.0f / (float)length);
    struct gpt_micro_batch b = batch_of_spans(full, tokens, &length, 1, 1.0f / (float)length);
    gpt_train_forward(&half->train, half->device, &a);
    gpt_train_forward(&full->train, full->device, &b);
    take_forward(&full->train, &half->train);
    gpt_train_backward(&half->train, half->device, &a);
    gpt_train_backward(&full->train, full->device, &b);
}

static void check_bf16_backward(const char *name, enum cpu_isa isa)
{
    struct fixture half, full;
    struct distance all = {0};
    char dir[128];
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    fixture_open_at(&half, dir, &(struct settings){DTYPE_BF16, isa, 2, plain});
    fixture_open_at(&full, dir, &(struct settings){DTYPE_F32, isa, 2, plain});
    both_backwards(name, &half, &full);
    for (int64_t i = 0; i < gpt_n_params(&half.gpt); i++) {
        int64_t n;
        float *got = read_gradient(&half, i, &n), *want = read_gradient(&full, i, &n);
        double error = relative_error(got, want, n);
        if (!(error <= 1e-2))
            fail_msg("%s, %s: relative error %g", name,
                     weight_role_name(gpt_param(&half.gpt, i).role), error);
        measure(&all, got, want, n);
        free(got);
        free(want);
    }
    if (!(relative(all) <= 5e-3))
        fail_msg("%s: relative error of all gradients %g", name, relative(all));
    fixture_close_all(&half);
    fixture_close_all(&full);
}

/* The backward pass's own roundings, of the operands of its products: with the same weights and
 * from the same forward pass, bf16 and f32 agree. */
static void test_bf16_backward_is_near_f32(void **state)
{
    for (enum cpu_isa isa = first_isa(); isa <= cpu_isa_best(); isa++)
        for (int i = 0; i < N_GOLDEN; i++)
            check_bf16_backward(golden_names[i], isa);
}

/* ---- bits ---- */

/* All gradients and losses of two runs are the same bytes. */
static void assert_same(struct fixture *a, struct fixture *b)
{
    for (int64_t i = 0; i < gpt_n_params(&a->gpt); i++) {
        int64_t n, m;
        float *x = read_gradient(a, i, &n), *y = read_gradient(b, i, &m);
        assert_int_equal(n, m);
        if (memcmp(x, y, (size_t)n * sizeof *x) != 0)
            fail_msg("%s differs", weight_role_name(gpt_param(&a->gpt, i).role));
        free(x);
        free(y);
    }
    assert_memory_equal(a->train.losses, b->train.losses,
                        (size_t)a->host.n_rows * sizeof *a->train.losses);
}

static void some_tokens(int32_t *tokens, int64_t n_vocab)
{
    for (int32_t i = 0; i <= MAX_ROWS; i++) tokens[i] = (int32_t)((i * 37 + 11) % n_vocab);
}

static void compare_settings(const char *path, const struct settings *a, const struct settings *b)
{
    static const int32_t lengths[] = {17, 1, 30};
    int32_t tokens[MAX_ROWS + 1];
    struct fixture x, y;
    fixture_open_at(&x, path, a);
    fixture_open_at(&y, path, b);
    some_tokens(tokens, x.gpt.config.vocab_size);
    run_spans(&x, tokens, lengths, 3, 1.0f / 48);
    run_spans(&y, tokens, lengths, 3, 1.0f / 48);
    assert_same(&x, &y);
    fixture_close_all(&x);
    fixture_close_all(&y);
}

static void test_recompute_levels_change_no_bit(void **state)
{
    static const char *const paths[] = {"tests/golden/gpt2", "tests/golden/qwen3"};
    for (int p = 0; p < 2; p++)
        for (int dtype = 0; dtype < 3; dtype++)
            for (int level = RECOMPUTE_SELECTIVE; level <= RECOMPUTE_BLOCK; level++) {
                struct settings a = {dtype ? DTYPE_BF16 : DTYPE_F32, CPU_ISA_BEST, 2, plain};
                a.train.dropout = 0.2f;
                a.train.gradients = dtype == 2 ? DTYPE_BF16 : DTYPE_F32;
                struct settings b = a;
                b.train.recompute = (enum recompute)level;
                compare_settings(paths[p], &a, &b);
            }
}

static void test_threads_change_no_bit(void **state)
{
    struct settings a = {DTYPE_BF16, CPU_ISA_BEST, 1, plain}, b = a;
    b.n_threads = 3;
    compare_settings("tests/golden/llama", &a, &b);
    a.train.gradients = b.train.gradients = DTYPE_BF16;
    compare_settings("tests/golden/llama", &a, &b);
}

/* bf16 gradients differ from f32 ones in the blocks' matrices alone, by their rounding;
 * and they take half the bytes. */
static void test_bf16_accumulators_round_the_same_sums(void **state)
{
    static const int32_t lengths[] = {17, 1, 30};
    int32_t tokens[MAX_ROWS + 1];
    struct settings s = {DTYPE_F32, CPU_ISA_BEST, 2, plain};
    struct fixture exact, small;
    fixture_open_at(&exact, "tests/golden/gpt2", &s);
    s.train.gradients = DTYPE_BF16;
    fixture_open_at(&small, "tests/golden/gpt2", &s);
    some_tokens(tokens, exact.gpt.config.vocab_size);
    for (int i = 0; i < 2; i++) {
        run_spans(&exact, tokens, lengths, 3, 1.0f / 48);
        run_spans(&small, tokens, lengths, 3, 1.0f / 48);
    }
    for (int64_t i = 0; i < gpt_n_params(&exact.gpt); i++) {
        struct gpt_param p = gpt_param(&small.train.grads, i);
        int64_t n;
        float *want = read_gradient(&exact, i, &n), *got = read_gradient(&small, i, &n);
        double error = relative_error(got, want, n);
        bool rounds = p.matrix && weight_role_is_layer(p.role);
        if (rounds ? !(error > 1e-4 && error < 5e-3) : error != 0)
            fail_msg("%s: relative error %g", weight_role_name(p.role), error);
        free(want);
        free(got);
    }
    fixture_close_all(&exact);
    fixture_close_all(&small);
}

/* Adding gradients of two documents in one micro-batch equals one after the other, up to rounding;
 * and a document's losses do not depend on its neighbours at all. */
static void test_documents_do_not_see_each_other(void **state)
{
    static const int32_t lengths[] = {20, 23};
    int32_t tokens[MAX_ROWS + 1];
    struct settings s = {DTYPE_F32, CPU_ISA_BEST, 2, plain};
    struct fixture both, one;
    fixture_open_at(&both, "tests/golden/llama", &s);
    fixture_open_at(&one, "tests/golden/llama", &s);
    some_tokens(tokens, both.gpt.config.vocab_size);
    run_spans(&both, tokens, lengths, 2, 1.0f / 43);
    run_spans(&one, tokens, lengths, 1, 1.0f / 43);
    assert_memory_equal(one.train.losses, both.train.losses, 20 * sizeof *one.train.losses);
    run_spans(&one, tokens + 20, lengths + 1, 1, 1.0f / 43);
    assert_memory_equal(one.train.losses, both.train.losses + 20, 23 * sizeof *one.train.losses);
    for (int64_t i = 0; i < gpt_n_params(&both.gpt); i++) {
        int64_t n;
        float *x = read_gradient(&both, i, &n), *y = read_gradient(&one, i, &n);
        assert_true(relative_error(x, y, n) < 1e-5);
        free(x);
        free(y);
    }
    fixture_close_all(&both);
    fixture_close_all(&one);
}

/* ---- one model ---- */

/* What sampling reports for a token is what training computes, to the bit. */
static void check_one_model(const char *path, enum dtype dtype, enum cpu_isa isa)
{
    struct settings s = {dtype, isa, 2, plain};
    struct fixture f;
    struct model_runner r;
    /* emulated, rows take time */
    int32_t tokens[MAX_ROWS + 1], length = isa == CPU_ISA_AMX ? 20 : 50;
    fixture_open_at(&f, path, &s);
    runner_open(&r, path, dtype, &(struct cpu_options){.n_threads = 1, .isa = isa}, MAX_ROWS);
    some_tokens(tokens, f.gpt.config.vocab_size);
    run_spans(&f, tokens, &length, 1, 1.0f / (float)length);
    struct sample_params params;
    sample_params_init(&params);
    for (int32_t i = 0; i < length; i++) {
        runner_forward(&r, tokens + i, 1, i, r.state.logits.data, NULL);
        struct sample_row row = {.params = &params, .history = tokens, .n_prompt = i + 1,
                                 .n_history = i + 1, .forced = tokens[i + 1]};
        struct sample_out out;
        struct tensor logits = r.state.logits;
        logits.rows = 1;
        sample_rows(r.device, logits, &row, &out);
        assert_memory_equal(&out.logprob, &f.train.losses[i].logprob, sizeof(float));
    }
    runner_close(&r);
    fixture_close_all(&f);
}

static void test_serving_and_training_agree_to_the_bit(void **state)
{
    static const char *const paths[] = {"tests/golden/gpt2", "tests/golden/qwen3",
                                        "models/shakespeare"};
    for (enum cpu_isa isa = first_isa(); isa <= cpu_isa_best(); isa++) {
        for (int p = 0; p < 3; p++) {
            check_one_model(paths[p], DTYPE_F32, isa);
            check_one_model(paths[p], DTYPE_BF16, isa);
        }
    }
}

/* ---- the loss ---- */

/* Smoothing and z-loss: the gradient is the slope of the loss that is reported. */
static void test_loss_options_are_differentiated(void **state)
{
    int32_t tokens[MAX_ROWS + 1], length = 30;
    struct settings s = {DTYPE_F32, CPU_ISA_REFERENCE, 1, plain};
    s.train.label_smoothing = 0.1f;
    s.train.z_loss = 0.01f;
    struct fixture f;
    fixture_open_at(&f, "tests/golden/gpt2", &s);
    some_tokens(tokens, f.gpt.config.vocab_size);
    run_spans(&f, tokens, &length, 1, 1);
    /* Along the final norm's weight, by central differences. */
    int64_t C = f.gpt.config.n_embd;
    float *weight = (float *)f.gpt.final_norm.weight;
    float *grad = (float *)f.train.grads.final_norm.weight;
    double slope = 0, want = 0, loss[2];
    for (int64_t i = 0; i < C; i++) want += grad[i] * (i % 3 - 1.0);
    const float step = 1e-2f;
    for (int side = 0; side < 2; side++) {
        float by = side ? -2 * step : step;
        for (int64_t i = 0; i < C; i++) weight[i] += by * (float)(i % 3 - 1.0);
        run_spans(&f, tokens, &length, 1, 1);
        loss[side] = 0;
        for (int32_t i = 0; i < length; i++) loss[side] += f.train.losses[i].loss;
    }
    slope = (loss[0] - loss[1]) / (2 * step);
    assert_true(fabs(want) > 1);
    if (fabs(slope - want) > 1e-2 * fabs(want)) fail_msg("slope %g, gradient %g", slope, want);
    fixture_close_all(&f);
}

static void test_ignored_targets_have_no_loss(void **state)
{
    int32_t tokens[20], targets[20];
    struct settings s = {DTYPE_BF16, CPU_ISA_BEST, 2, plain};
    struct fixture f;
    fixture_open_at(&f, "tests/golden/llama", &s);
    for (int i = 0; i < 20; i++) tokens[i] = i, targets[i] = -1;
    gpt_rows_clear(&f.host);
    assert_true(gpt_rows_add(&f.host, &f.train.options, tokens, targets, 20));
    f.host.scalars->grad_scale = 1;
    struct gpt_micro_batch m = gpt_rows_upload(&f.host, &f.rows, f.device);
    gpt_train_micro_step(&f.train, f.device, &m);
    for (int64_t i = 0; i < gpt_n_params(&f.gpt); i++) {
        int64_t n;
        float *g = read_gradient(&f, i, &n);
        for (int64_t k = 0; k < n; k++) assert_true(g[k] == 0);
        free(g);
    }
    for (int i = 0; i < 20; i++) assert_true(f.train.losses[i].loss == 0);
    fixture_close_all(&f);
}

static void test_rows_refuse_what_has_no_room(void **state)
{
    int32_t tokens[MAX_ROWS + 1] = {0};
    struct settings s = {DTYPE_F32, CPU_ISA_BEST, 1, plain};
    struct fixture f;
    fixture_open_at(&f, "tests/golden/llama", &s);
    gpt_rows_clear(&f.host);
    assert_false(gpt_rows_add(&f.host, &f.train.options, tokens, tokens, MAX_ROWS + 1));
    assert_true(gpt_rows_add(&f.host, &f.train.options, tokens, tokens, MAX_ROWS - 1));
    assert_false(gpt_rows_add(&f.host, &f.train.options, tokens, tokens, 2));
    assert_true(gpt_rows_add(&f.host, &f.train.options, tokens, tokens, 1));
    assert_int_equal(f.host.n_rows, MAX_ROWS);
    assert_int_equal(f.host.n_pages, 5); /* 63 rows take 4, the last row one of its own */
    fixture_close_all(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32_gradients_equal_float64_autograd),
        cmocka_unit_test(test_bf16_gradients_are_near),
        cmocka_unit_test(test_bf16_backward_is_near_f32),
        cmocka_unit_test(test_recompute_levels_change_no_bit),
        cmocka_unit_test(test_threads_change_no_bit),
        cmocka_unit_test(test_bf16_accumulators_round_the_same_sums),
        cmocka_unit_test(test_documents_do_not_see_each_other),
        cmocka_unit_test(test_serving_and_training_agree_to_the_bit),
        cmocka_unit_test(test_loss_options_are_differentiated),
        cmocka_unit_test(test_ignored_targets_have_no_loss),
        cmocka_unit_test(test_rows_refuse_what_has_no_room),
    };
    amx_emulator_use();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
