/* Directories that gptd writes: every weight of every golden model comes back to the bit, through
 * zero biases and transposition; what is cut short, changed or missing is named; a failure leaves
 * no file. */
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
#include "model/file_write.h"
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
    float *staging = malloc((size_t)gpt_load_staging_bytes(&f->gpt));
    must(gpt_init(&f->gpt, f->device, 1, staging, &err), &err);
    free(staging);
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

/* Writes a model of the preset and opens it: its config goes to *read. Biases that the family adds
 * are zero; all else is as in the model. */
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

static void test_a_config_in_gptds_words_is_read_strictly(void **state)
{
    static const struct { const char *json, *why; } cases[] = {
        {"{\"model_type\":\"gptd\"}", "the object \"gptd\" is missing"},
        {"{\"model_type\":\"gptd\",\"gptd\":[]}", "the object \"gptd\" is an array"},
        {"{\"model_type\":\"gptd\",\"gptd\":{\"n_layers\":2}}", "n_layer"},
        {"{\"model_type\":\"gptd\",\"gptd\":{\"n_layer\":2,\"n_head\":2,\"n_embd\":32,"
         "\"block_size\":8}}", "vocab_size"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gpt_config c;
        struct error err = {0};
        assert_false(gpt_config_from_hf(cases[i].json, strlen(cases[i].json), "x", &c, &err));
        if (!strstr(err.text, cases[i].why))
            fail_msg("expected \"%s\" in \"%s\"", cases[i].why, err.text);
    }
}

/* Matrices larger than what is in transit at a time: they go in pieces, transposed ones too. */
static void test_matrices_go_in_pieces(void **state)
{
    static const char json[] = "{\"n_layer\":1,\"n_head\":11,\"n_embd\":1056,\"block_size\":8,"
                               "\"vocab_size\":4100}";
    struct gpt_config c;
    struct fresh f;
    struct error err;
    must(gpt_config_from_preset(json, strlen(json), "preset", &c, &err), &err);
    fresh_open(&f, &c, DTYPE_F32);
    must(checkpoint_write(&f.gpt, f.device, in_test_dir("out"), &err), &err);
    struct checkpoint *ck = open_good(in_test_dir("out"));
    for (int64_t i = 0; i < gpt_n_params(&f.gpt); i++) {
        struct gpt_param p = gpt_param(&f.gpt, i);
        int64_t n;
        if (!p.matrix) continue;
        float *read = read_all(ck, p.role, p.layer, &n), *x = malloc((size_t)n * sizeof *x);
        f.device->train->matrix_read(f.device, p.matrix, 0, p.n_out, x);
        if (memcmp(x, read, (size_t)n * sizeof *x) != 0)
            fail_msg("%s differs", weight_role_name(p.role));
        free(read);
        free(x);
    }
    checkpoint_close(ck);
    fresh_close(&f);
}

/* ---- Tokenizers and configs ---- */

static char *read_text(const char *name)
{
    struct buf b;
    struct error err;
    char path[200];
    snprintf(path, sizeof path, "%s/out/%s", test_dir(), name);
    buf_init(&b, 1 << 24);
    must(file_read(path, &b, &err), &err);
    return buf_take(&b, NULL);
}

static bool out_has(const char *name)
{
    char path[200];
    snprintf(path, sizeof path, "%s/out/%s", test_dir(), name);
    return file_exists(path);
}

static void write_golden(const char *path)
{
    struct model_runner r;
    struct error err;
    runner_open(&r, path, DTYPE_F32, &one_thread, 1);
    must(checkpoint_write(&r.gpt, r.device, in_test_dir("out"), &err), &err);
    runner_close(&r);
}

static void expect_text(const char *name, const char *wanted)
{
    char *text = read_text(name);
    if (!strstr(text, wanted)) fail_msg("no %s in %s", wanted, text);
    free(text);
}

static void test_config_has_the_keys_that_transformers_reads(void **state)
{
    static const char *const wanted[] = {
        "\"architectures\": [\"GPT2LMHeadModel\"]", "\"model_type\": \"gpt2\"",
        "\"n_inner\": 192", "\"n_positions\": 96", "\"n_ctx\": 96", "\"vocab_size\": 150",
        "\"activation_function\": \"gelu_new\"", "\"layer_norm_epsilon\": 1e-05",
        "\"tie_word_embeddings\": true", "\"torch_dtype\": \"float32\"", "\"resid_pdrop\": 0.0",
        "\"bos_token_id\": null", "\"eos_token_id\": null",
    };
    write_golden("tests/golden/gpt2");
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        expect_text("config.json", wanted[i]);
    write_golden("tests/golden/llama3");
    expect_text("config.json", "\"rope_type\": \"llama3\",\n    \"factor\": 8.0,");
    expect_text("config.json", "\"rope_theta\": 10000.0");
}

/* The tokenizer's markers reach config.json, and stay when the weights are written again. */
static void test_the_tokenizer_comes_along(void **state)
{
    struct error err;
    write_golden("tests/golden/llama");
    must(checkpoint_write_tokenizer("models/shakespeare", in_test_dir("out"), &err), &err);
    for (int again = 0; again < 2; again++) {
        expect_text("config.json", "\"bos_token_id\": 0,\n  \"eos_token_id\": 0");
        expect_text("config.json", "\"torch_dtype\": \"float32\"");
        expect_text("generation_config.json", "\"eos_token_id\": 0");
        assert_true(out_has("tokenizer.json"));
        write_golden("tests/golden/llama");
    }
    /* Into itself: nothing changes. */
    char dir[96];
    snprintf(dir, sizeof dir, "%s", in_test_dir("out"));
    char *before = read_text("tokenizer.json");
    must(checkpoint_write_tokenizer(dir, dir, &err), &err);
    char *after = read_text("tokenizer.json");
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void test_a_source_without_tokenizer_is_fine(void **state)
{
    struct error err;
    write_golden("tests/golden/qwen3");
    must(checkpoint_write_tokenizer("tests/golden/qwen3", in_test_dir("out"), &err), &err);
    assert_false(out_has("tokenizer.json"));
}

/* ---- The manifest ---- */

static void refuse_verify(const char *why, enum error_code code)
{
    struct error err = {0};
    if (checkpoint_verify(in_test_dir("out"), &err)) fail_msg("verified, expected: %s", why);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_int_equal(err.code, code);
}

static void seal(void)
{
    struct error err;
    must(checkpoint_seal(in_test_dir("out"), &err), &err);
    must(checkpoint_verify(in_test_dir("out"), &err), &err);
}

static void test_a_sealed_directory_verifies_until_it_changes(void **state)
{
    struct error err;
    char dir[96];
    write_golden("tests/golden/gpt2");
    snprintf(dir, sizeof dir, "%s", in_test_dir("out"));
    refuse_verify("is incomplete: it has no manifest.json", ERR_NOT_FOUND);
    write_text(dir, "a.txt", "hello");
    seal();
    write_text(dir, "a.txt", "hellO");
    refuse_verify("a.txt is not the file that manifest.json lists: its SHA-256", ERR_FORMAT);
    write_text(dir, "a.txt", "hell");
    refuse_verify("a.txt has 4 bytes, but manifest.json says 5", ERR_FORMAT);
    remove(in_test_dir("out/a.txt"));
    refuse_verify("a.txt is missing", ERR_FORMAT);
    write_text(dir, "a.txt", "hello");
    must(checkpoint_verify(dir, &err), &err);
    assert_int_equal(truncate(in_test_dir("out/model.safetensors"), 1000), 0);
    refuse_verify("model.safetensors has 1000 bytes", ERR_FORMAT);
}

/* Files that come later do not matter; what a crash left behind is not listed. */
static void test_the_manifest_lists_whole_files_only(void **state)
{
    char dir[96];
    write_golden("tests/golden/gpt2");
    snprintf(dir, sizeof dir, "%s", in_test_dir("out"));
    write_text(dir, "config.json.tmp", "half");
    assert_int_equal(mkdir(in_test_dir("out/checkpoints"), 0755), 0);
    seal();
    char *text = read_text("manifest.json");
    assert_null(strstr(text, "tmp"));
    assert_null(strstr(text, "checkpoints"));
    assert_null(strstr(text, "manifest"));
    assert_non_null(strstr(text, "config.json"));
    /* sha256sum of an empty file, to know that it is that digest. */
    free(text);
    write_text(dir, "empty", "");
    seal();
    expect_text("manifest.json",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    write_text(dir, "later.txt", "x");
    struct error err;
    must(checkpoint_verify(dir, &err), &err);
}

static void test_writing_again_takes_the_old_manifest_away(void **state)
{
    write_golden("tests/golden/gpt2");
    seal();
    write_golden("tests/golden/gpt2");
    refuse_verify("has no manifest.json", ERR_NOT_FOUND);
    seal();
}

static void test_a_strange_manifest_is_refused(void **state)
{
    static const struct { const char *text, *why; } cases[] = {
        {"", "the text ends"},
        {"{}", "no object \"files\""},
        {"{\"files\":[]}", "no object \"files\""},
        {"{\"files\":{\"../x\":{\"bytes\":1,\"sha256\":\"00\"}}}", "not a file's name"},
        {"{\"files\":{\"x\":{\"bytes\":\"1\",\"sha256\":\"00\"}}}", "not a file's name"},
        {"{\"files\":{\"x\":{\"bytes\":1}}}", "not a file's name"},
        {"{\"files\":{\"x\":3}}", "not a file's name"},
    };
    write_golden("tests/golden/gpt2");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[96];
        snprintf(dir, sizeof dir, "%s", in_test_dir("out"));
        write_text(dir, "manifest.json", cases[i].text);
        refuse_verify(cases[i].why, ERR_FORMAT);
    }
}

/* ---- A full disk, a directory that may not be written ---- */

/* Runs f while no file may grow past `bytes`. */
static void with_file_limit(int64_t bytes, void (*f)(void))
{
    struct rlimit old, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = (rlim_t)bytes;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    f();
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, handler);
}

static void write_past_the_limit(void)
{
    struct model_runner r;
    struct error err = {0};
    runner_open(&r, "tests/golden/gpt2", DTYPE_F32, &one_thread, 1);
    assert_false(checkpoint_write(&r.gpt, r.device, in_test_dir("out"), &err));
    assert_int_equal(err.code, ERR_DISK_FULL);
    assert_non_null(strstr(err.text, "model.safetensors"));
    assert_non_null(strstr(err.text, "File too large"));
    runner_close(&r);
}

static void test_a_full_disk_leaves_no_file(void **state)
{
    with_file_limit(10000, write_past_the_limit);
    assert_false(out_has("model.safetensors"));
    assert_false(out_has("model.safetensors.tmp"));
    assert_false(out_has("config.json"));
}

/* The old file is still whole. */
static void test_a_full_disk_leaves_the_old_file(void **state)
{
    write_golden("tests/golden/llama");
    with_file_limit(10000, write_past_the_limit);
    struct checkpoint *ck = open_good(in_test_dir("out"));
    assert_string_equal(checkpoint_config(ck)->arch, "llama");
    checkpoint_close(ck);
}

static void write_long_text(void)
{
    static char bytes[5000];
    struct error err = {0};
    assert_false(file_write_atomic(in_test_dir("x"), bytes, sizeof bytes, &err));
    assert_non_null(strstr(err.text, "cannot write"));
}

static void test_whole_files(void **state)
{
    struct error err = {0};
    must(file_write_atomic(in_test_dir("x"), "one", 3, &err), &err);
    with_file_limit(4096, write_long_text);
    struct buf b;
    buf_init(&b, 100);
    must(file_read(in_test_dir("x"), &b, &err), &err);
    assert_string_equal(b.data, "one");
    buf_free(&b);
    assert_false(file_exists(in_test_dir("x.tmp")));
    must(file_write_atomic(in_test_dir("empty"), NULL, 0, &err), &err);
    assert_true(file_exists(in_test_dir("empty")));
    /* What a crash left is taken over. */
    write_text(test_dir(), "y.tmp", "a longer text of a writer that died");
    must(file_write_atomic(in_test_dir("y"), "two", 3, &err), &err);
    struct stat st;
    assert_int_equal(stat(in_test_dir("y"), &st), 0);
    assert_int_equal(st.st_size, 3);
    assert_int_equal(st.st_mode & 0777, 0644 & ~022);
}

static void test_places_that_cannot_be_written(void **state)
{
    struct error err = {0};
    char long_path[5000];
    assert_false(file_write_atomic(in_test_dir("no/such/x"), "a", 1, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no/such/x"));
    memset(long_path, 'a', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = 0;
    assert_false(file_write_atomic(long_path, "a", 1, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    /* A directory by that name. */
    assert_int_equal(mkdir(in_test_dir("d"), 0755), 0);
    assert_false(file_write_atomic(in_test_dir("d"), "a", 1, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_false(file_exists(in_test_dir("d.tmp")));
    /* A file where a directory should be made. */
    struct model_runner r;
    write_text(test_dir(), "out", "a file");
    runner_open(&r, "tests/golden/gpt2", DTYPE_F32, &one_thread, 1);
    assert_false(checkpoint_write(&r.gpt, r.device, in_test_dir("out"), &err));
    assert_non_null(strstr(err.text, "cannot make the directory"));
    runner_close(&r);
    if (geteuid() == 0) return; /* nothing is read-only to root */
    assert_int_equal(chmod(in_test_dir("d"), 0555), 0);
    assert_false(file_write_atomic(in_test_dir("d/x"), "a", 1, &err));
    assert_non_null(strstr(err.text, "Permission denied"));
    assert_int_equal(chmod(in_test_dir("d"), 0755), 0);
}

static void test_two_writers_of_one_file(void **state)
{
    struct file_writer first, second;
    struct error err = {0};
    must(file_writer_open(&first, in_test_dir("x"), &err), &err);
    assert_false(file_writer_open(&second, in_test_dir("x"), &err));
    assert_int_equal(err.code, ERR_BUSY);
    must(file_writer_append(&first, "one", 3, &err), &err);
    must(file_writer_close(&first, true, &err), &err);
    must(file_writer_open(&second, in_test_dir("x"), &err), &err);
    must(file_writer_close(&second, false, &err), &err);
    struct buf b;
    buf_init(&b, 100);
    must(file_read(in_test_dir("x"), &b, &err), &err);
    assert_string_equal(b.data, "one");
    buf_free(&b);
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
        TEST(test_a_config_in_gptds_words_is_read_strictly),
        TEST(test_matrices_go_in_pieces),
        TEST(test_config_has_the_keys_that_transformers_reads),
        TEST(test_the_tokenizer_comes_along),
        TEST(test_a_source_without_tokenizer_is_fine),
        TEST(test_a_sealed_directory_verifies_until_it_changes),
        TEST(test_the_manifest_lists_whole_files_only),
        TEST(test_writing_again_takes_the_old_manifest_away),
        TEST(test_a_strange_manifest_is_refused),
        TEST(test_a_full_disk_leaves_no_file),
        TEST(test_a_full_disk_leaves_the_old_file),
        TEST(test_whole_files),
        TEST(test_places_that_cannot_be_written),
        TEST(test_two_writers_of_one_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
