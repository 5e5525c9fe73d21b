/* Directories that gptd writes: every weight of every golden model comes back to the bit, through zero biases
 * and transposition; what is cut short, changed or missing is named; a failure leaves no file. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/checkpoint_write.h"
#include "model/device_train.h"
#include "model/hf_config_write.h"
#include "tests/model/checkpoint_util.h"
#include "tests/model/model_runner.h"

static const struct cpu_options one_thread = {.n_threads = 1, .isa = CPU_ISA_BEST};
enum { N_TOKENS = 9 };

static const char *const goldens[] = {
    "tests/golden/gpt2",         "tests/golden/gpt2_untied", "tests/golden/llama",
    "tests/golden/llama3",       "tests/golden/llama_linear", "tests/golden/mistral",
    "tests/golden/qwen2",        "tests/golden/qwen3",
};
enum { N_GOLDENS = sizeof goldens / sizeof *goldens };

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* ---- Weights and logits ---- */

static void check_same_config(const struct gpt_config *a, const struct gpt_config *b)
{
    assert_string_equal(a->arch, b->arch);
    assert_int_equal(a->n_layer, b->n_layer);
    assert_int_equal(a->n_head, b->n_head);
    assert_int_equal(a->n_kv_head, b->n_kv_head);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->n_embd, b->n_embd);
    assert_int_equal(a->n_ff, b->n_ff);
    assert_int_equal(a->vocab_size, b->vocab_size);
    assert_int_equal(a->block_size, b->block_size);
    assert_int_equal(a->pos_encoding, b->pos_encoding);
    assert_int_equal(a->norm_type, b->norm_type);
    assert_true(a->norm_eps == b->norm_eps);
    assert_int_equal(a->mlp_type, b->mlp_type);
    assert_int_equal(a->bias_qkv, b->bias_qkv);
    assert_int_equal(a->bias_attn_out, b->bias_attn_out);
    assert_int_equal(a->bias_mlp, b->bias_mlp);
    assert_int_equal(a->bias_norm, b->bias_norm);
    assert_int_equal(a->bias_lm_head, b->bias_lm_head);
    assert_int_equal(a->qk_norm, b->qk_norm);
    assert_int_equal(a->tie_weights, b->tie_weights);
    assert_true(a->rope_theta == b->rope_theta);
    assert_int_equal(a->rope_scaling, b->rope_scaling);
    assert_true(a->rope_factor == b->rope_factor);
    assert_true(a->rope_low_freq == b->rope_low_freq);
    assert_true(a->rope_high_freq == b->rope_high_freq);
    assert_int_equal(a->rope_original_context, b->rope_original_context);
    assert_true(a->dropout == b->dropout);
}

static bool is_matrix(enum weight_role role, int64_t n_out)
{
    return n_out > 1 && role != WEIGHT_POSITION_EMBEDDING;
}

/* Every weight of b is that of a; matrices as `dtype` rounds them. */
static void check_same_weights(const struct checkpoint *a, const struct checkpoint *b,
                               enum dtype dtype)
{
    const struct gpt_config *c = checkpoint_config(a);
    int64_t n_out, n_in, n, n_b;
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        if (!weight_role_shape(c, role, &n_out, &n_in)) continue;
        int64_t layers = weight_role_is_layer(role) ? c->n_layer : 1;
        for (int64_t layer = 0; layer < layers; layer++) {
            float *x = read_all(a, role, layer, &n), *y = read_all(b, role, layer, &n_b);
            assert_int_equal(n, n_b);
            if (dtype == DTYPE_BF16 && is_matrix(role, n_out))
                for (int64_t i = 0; i < n; i++) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
            if (memcmp(x, y, (size_t)n * sizeof *x) != 0)
                fail_msg("%s of layer %d differs", weight_role_name(role), (int)layer);
            free(x);
            free(y);
        }
    }
}

/* Logits [N_TOKENS, V] of some tokens; malloc'd. */
static float *logits_of(struct model_runner *r)
{
    int64_t vocab = r->gpt.config.vocab_size;
    int32_t tokens[N_TOKENS];
    float *logits = malloc((size_t)(N_TOKENS * vocab) * sizeof *logits);
    for (int i = 0; i < N_TOKENS; i++) tokens[i] = (int32_t)(i * 7 % vocab);
    runner_forward(r, tokens, N_TOKENS, 0, logits, NULL);
    return logits;
}

static float *logits_of_path(const char *path, enum dtype dtype)
{
    struct model_runner r;
    runner_open(&r, path, dtype, &one_thread, N_TOKENS);
    float *logits = logits_of(&r);
    runner_close(&r);
    return logits;
}

static void check_round_trip(const char *path, enum dtype dtype)
{
    struct model_runner r;
    struct error err;
    char dir[96];
    snprintf(dir, sizeof dir, "%s", in_test_dir("out"));
    runner_open(&r, path, dtype, &one_thread, N_TOKENS);
    must(checkpoint_write(&r.gpt, r.device, dir, &err), &err);
    struct checkpoint *ck = open_good(dir);
    check_same_config(checkpoint_config(r.checkpoint), checkpoint_config(ck));
    assert_int_equal(checkpoint_dtype(ck), dtype);
    check_same_weights(r.checkpoint, ck, dtype);
    checkpoint_close(ck);
    float *before = logits_of(&r), *after = logits_of_path(dir, dtype);
    assert_memory_equal(before, after,
                        (size_t)(N_TOKENS * r.gpt.config.vocab_size) * sizeof *before);
    free(before);
    free(after);
    runner_close(&r);
}

static void test_golden_models_come_back_to_the_bit(void **state)
{
    for (int i = 0; i < N_GOLDENS; i++) check_round_trip(goldens[i], DTYPE_F32);
}

static void test_bf16_models_come_back_to_the_bit(void **state)
{
    for (int i = 0; i < N_GOLDENS; i++) check_round_trip(goldens[i], DTYPE_BF16);
}

/* ---- Models from a preset ---- */

/* A model of random weights. */
struct fresh {
    struct device *device;
    struct gpt gpt;
    struct plan plan;
    void *arena;
};

static void fresh_open(struct fresh *f, const struct gpt_config *c, enum dtype dtype)
{
    struct error err;
    *f = (struct fresh){.gpt = {.config = *c, .dtype = dtype, .max_context = c->block_size}};
    must(cpu_device_open(&one_thread, &f->device, &err), &err);
    f->gpt.layers = calloc((size_t)c->n_layer, sizeof *f->gpt.layers);
    plan_init(&f->plan);
    gpt_layout(&f->gpt, f->device, MEMORY_WEIGHTS, &f->plan);
    f->arena = f->device->ops->alloc(f->device, (size_t)f->plan.total, &err);
    must(f->arena != NULL, &err);
    plan_restart(&f->plan, f->arena);
    gpt_layout(&f->gpt, f->device, MEMORY_WEIGHTS, &f->plan);
    must(gpt_init(&f->gpt, f->device, 1, &err), &err);
}

static void fresh_close(struct fresh *f)
{
    f->device->ops->free(f->device, f->arena, (size_t)f->plan.total);
    f->device->ops->close(f->device);
    free(f->gpt.layers);
}

static struct gpt_config preset(const char *keys)
{
    char json[600];
    struct gpt_config c;
    struct error err;
    snprintf(json, sizeof json, "{\"n_layer\":2,\"n_head\":2,\"n_embd\":32,\"block_size\":24,"
             "\"vocab_size\":50%s%s}", *keys ? "," : "", keys);
    must(gpt_config_from_preset(json, strlen(json), "preset", &c, &err), &err);
    return c;
}

static void check_same_param(const struct fresh *f, struct gpt_param a, struct gpt_param b)
{
    int64_t n = a.n_out * a.n_in;
    float *x = malloc((size_t)n * sizeof *x), *y = malloc((size_t)n * sizeof *y);
    if (a.matrix) {
        f->device->train->matrix_read(f->device, a.matrix, 0, a.n_out, x);
        f->device->train->matrix_read(f->device, b.matrix, 0, a.n_out, y);
    } else {
        memcpy(x, a.vector, (size_t)n * sizeof *x);
        memcpy(y, b.vector, (size_t)n * sizeof *y);
    }
    if (memcmp(x, y, (size_t)n * sizeof *x) != 0)
        fail_msg("%s of layer %d differs", weight_role_name(a.role), (int)a.layer);
    free(x);
    free(y);
}

/* Writes a model of the preset and opens it: its config goes to *read. Biases that the family adds are
 * zero; all else is as in the model. */
static void write_preset(const char *keys, enum dtype dtype, struct gpt_config *read)
{
    struct gpt_config c = preset(keys);
    struct fresh f;
    struct error err;
    fresh_open(&f, &c, dtype);
    must(checkpoint_write(&f.gpt, f.device, in_test_dir("out"), &err), &err);
    struct checkpoint *ck = open_good(in_test_dir("out"));
    *read = *checkpoint_config(ck);
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        int64_t n_out, n_in, n;
        if (weight_role_shape(&c, role, &n_out, &n_in) ||
            !weight_role_shape(read, role, &n_out, &n_in))
            continue;
        float *x = read_all(ck, role, 0, &n);
        for (int64_t i = 0; i < n; i++) assert_true(x[i] == 0);
        free(x);
    }
    /* Loading it as the preset has it, without those biases, gives the model back. */
    struct fresh again;
    fresh_open(&again, &c, dtype);
    memset(again.arena, 0xFF, (size_t)again.plan.total);
    float *staging = malloc((size_t)gpt_load_staging_bytes(&again.gpt));
    assert_non_null(staging);
    must(gpt_load(&again.gpt, again.device, ck, staging, &err), &err);
    free(staging);
    for (int64_t i = 0; i < gpt_n_params(&f.gpt); i++)
        check_same_param(&f, gpt_param(&f.gpt, i), gpt_param(&again.gpt, i));
    checkpoint_close(ck);
    fresh_close(&f);
    fresh_close(&again);
}

static void test_a_preset_without_biases_is_a_gpt2_with_zero_biases(void **state)
{
    struct gpt_config read;
    write_preset("", DTYPE_F32, &read);
    assert_string_equal(read.arch, "gpt2");
    assert_true(read.bias_qkv && read.bias_attn_out && read.bias_mlp && read.bias_norm);
    assert_true(read.tie_weights);
    write_preset("\"n_ff\":96,\"mlp_type\":\"gelu_exact\",\"tie_weights\":false,\"dropout\":0.2,"
                 "\"norm_eps\":1e-6", DTYPE_BF16, &read);
    assert_string_equal(read.arch, "gpt2");
    assert_int_equal(read.n_ff, 96);
    assert_int_equal(read.mlp_type, MLP_GELU_EXACT);
    assert_false(read.tie_weights);
    assert_true(read.dropout == 0.2f && read.norm_eps == 1e-6f);
}

static void test_the_family_follows_from_the_switches(void **state)
{
    static const char llama[] =
        "\"pos_encoding\":\"rope\",\"norm_type\":\"rmsnorm\",\"mlp_type\":\"swiglu\"";
    static const struct { const char *keys, *arch; } cases[] = {
        {"", "llama"},
        {",\"n_kv_head\":1,\"head_dim\":32", "llama"},
        {",\"bias\":true", "llama"},
        {",\"bias_mlp\":true", "llama"},
        {",\"bias_qkv\":true,\"bias_mlp\":true", "llama"}, /* with zeros at the output */
        {",\"bias_qkv\":true", "qwen2"},
        {",\"qk_norm\":true", "qwen3"},
        {",\"qk_norm\":true,\"bias_qkv\":true", "qwen3"},
        {",\"qk_norm\":true,\"bias_mlp\":true", "gptd"},
        {",\"bias_lm_head\":true", "gptd"},
        {",\"rope_scaling\":\"linear\",\"rope_factor\":2.5", "llama"},
    };
    struct gpt_config read;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char keys[400];
        snprintf(keys, sizeof keys, "%s%s", llama, cases[i].keys);
        write_preset(keys, DTYPE_F32, &read);
        if (strcmp(read.arch, cases[i].arch) != 0)
            fail_msg("%s: %s, expected %s", cases[i].keys, read.arch, cases[i].arch);
    }
}

/* What no family can say is said in gptd's own words, and comes back as it was. */
static void test_other_switches_are_kept_in_gptds_words(void **state)
{
    static const char *const cases[] = {
        "\"norm_type\":\"rmsnorm\"",
        "\"mlp_type\":\"swiglu\",\"bias\":true",
        "\"bias_lm_head\":true,\"bias_mlp\":true",
        "\"n_kv_head\":1,\"tie_weights\":false,\"dropout\":0.1",
        "\"pos_encoding\":\"rope\",\"rope_theta\":500000,\"mlp_type\":\"gelu_exact\"",
        "\"pos_encoding\":\"rope\",\"rope_scaling\":\"llama3\",\"rope_factor\":8,"
        "\"rope_low_freq\":1,\"rope_high_freq\":4,\"rope_original_context\":12",
        "\"pos_encoding\":\"rope\",\"qk_norm\":true",
        "\"head_dim\":8",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gpt_config read, c = preset(cases[i]);
        write_preset(cases[i], i % 2 ? DTYPE_BF16 : DTYPE_F32, &read);
        strcpy(c.arch, "gptd");
        check_same_config(&c, &read);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)
        TEST(test_golden_models_come_back_to_the_bit),
        TEST(test_bf16_models_come_back_to_the_bit),
        TEST(test_a_preset_without_biases_is_a_gpt2_with_zero_biases),
        TEST(test_the_family_follows_from_the_switches),
        TEST(test_other_switches_are_kept_in_gptds_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
