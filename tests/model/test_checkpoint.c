/* Checkpoints: every golden model opens; names, transposition, fusing and RoPE order are those of
 * each format; whatever does not belong is refused by name. */
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/checkpoint.h"
#include "tests/model/fake_model.h"
#include "tests/model/gguf_writer.h"

/* ---- A directory of our own ---- */

static char dir[64];

static int set_up(void **state)
{
    strcpy(dir, "/tmp/gptd-test-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static int tear_down(void **state) { return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

static const char *in_dir(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static struct checkpoint *open_good(const char *path)
{
    struct checkpoint *ck;
    struct error err;
    if (!checkpoint_open(path, &ck, &err)) fail_msg("%s", err.text);
    return ck;
}

static void refuse(const char *path, const char *why)
{
    struct checkpoint *ck;
    struct error err = {0};
    if (checkpoint_open(path, &ck, &err)) fail_msg("opened, expected: %s", why);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
}

/* The whole weight; freed by the caller. */
static float *read_all(const struct checkpoint *ck, enum weight_role role, int64_t layer, int64_t *n)
{
    int64_t n_out, n_in;
    assert_true(weight_role_shape(checkpoint_config(ck), role, &n_out, &n_in));
    float *rows = malloc((size_t)(n_out * n_in) * sizeof *rows);
    assert_non_null(rows);
    checkpoint_read_rows(ck, role, layer, 0, n_out, rows);
    *n = n_out * n_in;
    return rows;
}

/* The weight is exactly the tensors' values, one after the other; NULL ends the names. */
static void check_weight(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                         const char *const *names, const int64_t *counts)
{
    int64_t n, at = 0;
    float *rows = read_all(ck, role, layer, &n);
    for (; *names; names++, counts++)
        for (int64_t i = 0; i < *counts; i++, at++)
            if (rows[at] != fake_value(*names, i))
                fail_msg("%s[%d] is not %s[%d]", weight_role_name(role), (int)at, *names, (int)i);
    assert_int_equal(at, n);
    free(rows);
}

static void check_one(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                      const char *name)
{
    int64_t n_out, n_in;
    assert_true(weight_role_shape(checkpoint_config(ck), role, &n_out, &n_in));
    check_weight(ck, role, layer, (const char *[]){name, NULL}, (int64_t[]){n_out * n_in});
}

/* ---- Models of the wild ---- */

/* All weights are there, are finite, and come out the same in pieces as in one. */
static void check_readable(const char *path)
{
    struct checkpoint *ck = open_good(path);
    const struct gpt_config *c = checkpoint_config(ck);
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        int64_t n_out, n_in, n, last = weight_role_is_layer(role) ? c->n_layer - 1 : 0;
        if (!weight_role_shape(c, role, &n_out, &n_in)) continue;
        float *whole = read_all(ck, role, last, &n), *pieces = malloc((size_t)n * sizeof *pieces);
        for (int64_t i = 0; i < n; i++) assert_true(isfinite(whole[i]));
        for (int64_t row = 0, step = 1; row < n_out; row += step, step = step * 2 + 1) {
            if (step > n_out - row) step = n_out - row;
            checkpoint_read_rows(ck, role, last, row, step, pieces + row * n_in);
        }
        assert_memory_equal(whole, pieces, (size_t)n * sizeof *whole);
        free(whole);
        free(pieces);
    }
    assert_true(checkpoint_file_bytes(ck) > 0);
    checkpoint_close(ck);
}

static void test_golden_models_open(void **state)
{
    static const char *const paths[] = {
        "tests/golden/gpt2", "tests/golden/gpt2_untied", "tests/golden/llama",
        "tests/golden/llama3", "tests/golden/llama_linear", "tests/golden/mistral",
        "tests/golden/qwen2", "tests/golden/qwen3", "models/shakespeare",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) check_readable(paths[i]);
}

static void test_element_types_of_golden_models(void **state)
{
    struct checkpoint *ck = open_good("tests/golden/qwen2");
    assert_int_equal(checkpoint_dtype(ck), DTYPE_BF16);
    assert_int_equal(checkpoint_format(ck), CHECKPOINT_HF);
    assert_null(checkpoint_gguf(ck));
    assert_string_equal(checkpoint_path(ck), "tests/golden/qwen2");
    checkpoint_close(ck);
    ck = open_good("tests/golden/llama3");
    assert_int_equal(checkpoint_dtype(ck), DTYPE_F16);
    checkpoint_close(ck);
}

/* ---- GPT-2 from Hugging Face ---- */

enum { C = 16, V = 40, T = 12, F = 24, L = 2 };

static const char gpt2_config[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,\"n_positions\":12,"
    "\"vocab_size\":40,\"n_inner\":24}";

static struct fake_model gpt2(const char *prefix, bool biases)
{
    struct fake_model m;
    char name[96];
    fake_model_init(&m, false);
    snprintf(name, sizeof name, "%swte.weight", prefix);
    fake_model_add(&m, name, V, C);
    snprintf(name, sizeof name, "%swpe.weight", prefix);
    fake_model_add(&m, name, T, C);
    snprintf(name, sizeof name, "%sln_f.weight", prefix);
    fake_model_add(&m, name, C, 0);
    static const struct { const char *name; int64_t rows, cols; } tensors[] = {
        {"ln_1", C, 0}, {"ln_2", C, 0}, {"attn.c_attn", C, 3 * C}, {"attn.c_proj", C, C},
        {"mlp.c_fc", C, F}, {"mlp.c_proj", F, C},
    };
    for (int layer = 0; layer < L; layer++) {
        for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
            snprintf(name, sizeof name, "%sh.LAYER.%s.weight", prefix, tensors[i].name);
            fake_model_add_layer(&m, name, layer, tensors[i].rows, tensors[i].cols);
            if (!biases) continue;
            snprintf(name, sizeof name, "%sh.LAYER.%s.bias", prefix, tensors[i].name);
            int64_t n = tensors[i].cols ? tensors[i].cols : tensors[i].rows;
            fake_model_add_layer(&m, name, layer, n, 0);
        }
    }
    snprintf(name, sizeof name, "%sln_f.bias", prefix);
    if (biases) fake_model_add(&m, name, C, 0);
    return m;
}

static void save_hf(struct fake_model *m, const char *config)
{
    write_text(dir, "config.json", config);
    fake_model_write(m, in_dir("model.safetensors"));
    fake_model_free(m);
}

static void check_gpt2(const char *prefix)
{
    char name[96];
    struct checkpoint *ck = open_good(dir);
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(c->tie_weights && c->bias_qkv && c->bias_norm && !c->bias_lm_head);
    snprintf(name, sizeof name, "%swte.weight", prefix);
    check_one(ck, WEIGHT_TOKEN_EMBEDDING, 0, name);
    snprintf(name, sizeof name, "%sh.1.attn.c_attn.bias", prefix);
    check_one(ck, WEIGHT_QKV_BIAS, 1, name);
    snprintf(name, sizeof name, "%sh.1.mlp.c_fc.weight", prefix);
    int64_t n;
    float *up = read_all(ck, WEIGHT_MLP_UP, 1, &n);
    for (int64_t out = 0; out < F; out++)
        for (int64_t in = 0; in < C; in++)
            assert_true(up[out * C + in] == fake_value(name, in * F + out));
    free(up);
    checkpoint_close(ck);
}

static void test_gpt2_conv1d_is_transposed_with_and_without_prefix(void **state)
{
    struct fake_model m = gpt2("transformer.", true);
    save_hf(&m, gpt2_config);
    check_gpt2("transformer.");
    m = gpt2("", true);
    save_hf(&m, gpt2_config);
    check_gpt2("");
}

static void test_gpt2_without_biases_switches_them_off(void **state)
{
    struct fake_model m = gpt2("transformer.", false);
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(dir);
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(!c->bias_qkv && !c->bias_attn_out && !c->bias_mlp && !c->bias_norm);
    assert_int_equal(gpt_config_parameters(c), V * C + T * C + C + L * (2 * C + 4 * C * C + 2 * C * F));
    checkpoint_close(ck);
}

/* Awkward sizes: beyond a tile, not multiples of it. */
static void test_transposition_of_large_matrices(void **state)
{
    struct fake_model m;
    const char *config = "{\"model_type\":\"gpt2\",\"n_layer\":1,\"n_head\":9,\"n_embd\":144,"
                         "\"n_positions\":2,\"vocab_size\":3,\"n_inner\":201}";
    fake_model_init(&m, false);
    fake_model_add(&m, "wte.weight", 3, 144);
    fake_model_add(&m, "wpe.weight", 2, 144);
    fake_model_add(&m, "ln_f.weight", 144, 0);
    fake_model_add(&m, "h.0.ln_1.weight", 144, 0);
    fake_model_add(&m, "h.0.ln_2.weight", 144, 0);
    fake_model_add(&m, "h.0.attn.c_attn.weight", 144, 432);
    fake_model_add(&m, "h.0.attn.c_proj.weight", 144, 144);
    fake_model_add(&m, "h.0.mlp.c_fc.weight", 144, 201);
    fake_model_add(&m, "h.0.mlp.c_proj.weight", 201, 144);
    save_hf(&m, config);
    struct checkpoint *ck = open_good(dir);
    float rows[70 * 201];
    checkpoint_read_rows(ck, WEIGHT_MLP_DOWN, 0, 70, 70, rows);
    for (int64_t r = 0; r < 70; r++)
        for (int64_t i = 0; i < 201; i++)
            assert_true(rows[r * 201 + i] == fake_value("h.0.mlp.c_proj.weight", i * 144 + r + 70));
    checkpoint_close(ck);
}

static void test_needless_tensors_are_listed_but_not_needed(void **state)
{
    struct fake_model m = gpt2("transformer.", true);
    fake_model_add(&m, "transformer.h.0.attn.bias", T, T);
    fake_model_add(&m, "transformer.h.1.attn.masked_bias", 1, 0);
    fake_model_add(&m, "lm_head.weight", V, C); /* tied: transformers ignores it too */
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(dir);
    assert_true(checkpoint_config(ck)->tie_weights);
    assert_int_equal(checkpoint_n_tensors(ck), 3 + 1 + L * 12 + 3);
    struct checkpoint_tensor t;
    checkpoint_tensor(ck, 0, &t);
    assert_string_equal(t.name, "transformer.wte.weight");
    assert_string_equal(t.type, "F32");
    assert_true(t.usable && t.n_dims == 2 && t.dims[0] == V && t.dims[1] == C);
    assert_int_equal(t.bytes, V * C * 4);
    checkpoint_close(ck);
}

static void test_untied_head_without_its_tensor_is_tied(void **state)
{
    struct fake_model m = gpt2("transformer.", true);
    const char *untied = "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,"
                         "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24,"
                         "\"tie_word_embeddings\":false}";
    save_hf(&m, untied);
    struct checkpoint *ck = open_good(dir);
    assert_true(checkpoint_config(ck)->tie_weights);
    checkpoint_close(ck);
    m = gpt2("transformer.", true);
    fake_model_add(&m, "lm_head.weight", V, C);
    save_hf(&m, untied);
    ck = open_good(dir);
    assert_false(checkpoint_config(ck)->tie_weights);
    check_one(ck, WEIGHT_LM_HEAD, 0, "lm_head.weight");
    checkpoint_close(ck);
}

static void test_missing_extra_and_misshapen_tensors_are_refused_by_name(void **state)
{
    struct fake_model m = gpt2("transformer.", true);
    fake_model_add(&m, "transformer.h.2.ln_1.weight", C, 0);
    save_hf(&m, gpt2_config);
    refuse(dir, "tensor transformer.h.2.ln_1.weight [16] has no place");

    m = gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":3,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24}");
    refuse(dir, "lack tensor transformer.h.2.ln_1.weight");

    m = gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":41,\"n_inner\":24}");
    refuse(dir, "transformer.wte.weight has shape [40, 16], but the config calls for [41, 16]");

    m = gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":900,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24}");
    refuse(dir, "900 layers cannot lie in");
}

/* One bias of a kind makes the kind; the others must then be there. */
static void test_a_bias_in_some_layers_only_is_refused(void **state)
{
    struct fake_model m = gpt2("", false);
    fake_model_add(&m, "h.0.attn.c_attn.bias", 3 * C, 0);
    save_hf(&m, gpt2_config);
    refuse(dir, "lack tensor h.1.attn.c_attn.bias");
    m = gpt2("", false);
    fake_model_add(&m, "h.1.attn.c_attn.bias", 3 * C, 0);
    save_hf(&m, gpt2_config);
    refuse(dir, "tensor h.1.attn.c_attn.bias [48] has no place");
}

static void test_weights_of_another_element_type_are_refused(void **state)
{
    struct fake_model m = gpt2("", true);
    char *type = strstr(m.infos.data, "F32"); /* of wte */
    memcpy(type, "I32", 3);
    save_hf(&m, gpt2_config);
    refuse(dir, "tensor wte.weight has element type I32");
}

/* ---- Llama from Hugging Face, in shards ---- */

static const char llama_config[] =
    "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"num_attention_heads\":2,"
    "\"num_key_value_heads\":1,\"hidden_size\":16,\"intermediate_size\":24,"
    "\"max_position_embeddings\":12,\"vocab_size\":40}";

static const struct { const char *name; int64_t rows, cols; } llama_layer[] = {
    {"input_layernorm.weight", C, 0},  {"post_attention_layernorm.weight", C, 0},
    {"self_attn.q_proj.weight", C, C}, {"self_attn.k_proj.weight", C / 2, C},
    {"self_attn.v_proj.weight", C / 2, C}, {"self_attn.o_proj.weight", C, C},
    {"mlp.gate_proj.weight", F, C},    {"mlp.up_proj.weight", F, C}, {"mlp.down_proj.weight", C, F},
};

static void add_llama_layer(struct fake_model *m, int layer)
{
    char name[96];
    for (size_t i = 0; i < sizeof llama_layer / sizeof *llama_layer; i++) {
        snprintf(name, sizeof name, "model.layers.LAYER.%s", llama_layer[i].name);
        fake_model_add_layer(m, name, layer, llama_layer[i].rows, llama_layer[i].cols);
    }
}

static void add_llama_rest(struct fake_model *m)
{
    fake_model_add(m, "model.embed_tokens.weight", V, C);
    fake_model_add(m, "model.norm.weight", C, 0);
    fake_model_add(m, "lm_head.weight", V, C);
}

static void write_shards(void)
{
    struct fake_model m;
    fake_model_init(&m, false);
    add_llama_rest(&m);
    add_llama_layer(&m, 0);
    fake_model_write(&m, in_dir("model-00001-of-00002.safetensors"));
    fake_model_free(&m);
    fake_model_init(&m, false);
    add_llama_layer(&m, 1);
    fake_model_write(&m, in_dir("model-00002-of-00002.safetensors"));
    fake_model_free(&m);
    write_text(dir, "config.json", llama_config);
    remove(in_dir("model.safetensors"));
}

#define INDEX(first, second) "{\"metadata\":{\"total_size\":1},\"weight_map\":{" \
                             "\"a\":\"" first "\",\"b\":\"" second "\",\"c\":\"" first "\"}}"
#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"

static void test_shards_fuse_and_stack(void **state)
{
    write_shards();
    write_text(dir, "model.safetensors.index.json", INDEX(SHARD_1, SHARD_2));
    struct checkpoint *ck = open_good(dir);
    check_weight(ck, WEIGHT_QKV, 1,
                 (const char *[]){"model.layers.1.self_attn.q_proj.weight",
                                  "model.layers.1.self_attn.k_proj.weight",
                                  "model.layers.1.self_attn.v_proj.weight", NULL},
                 (int64_t[]){C * C, C / 2 * C, C / 2 * C});
    check_weight(ck, WEIGHT_MLP_UP, 0,
                 (const char *[]){"model.layers.0.mlp.gate_proj.weight",
                                  "model.layers.0.mlp.up_proj.weight", NULL},
                 (int64_t[]){F * C, F * C});
    check_one(ck, WEIGHT_LM_HEAD, 0, "lm_head.weight");
    check_one(ck, WEIGHT_FINAL_NORM, 0, "model.norm.weight");
    checkpoint_close(ck);
}

static void test_bad_indices_are_refused(void **state)
{
    write_shards();
    refuse(dir, "neither model.safetensors nor");
    write_text(dir, "model.safetensors.index.json", INDEX("../x.safetensors", SHARD_2));
    refuse(dir, "shards must lie beside it");
    write_text(dir, "model.safetensors.index.json", INDEX("/etc/passwd", SHARD_2));
    refuse(dir, "shards must lie beside it");
    write_text(dir, "model.safetensors.index.json", INDEX("..", SHARD_2));
    refuse(dir, "shards must lie beside it");
    write_text(dir, "model.safetensors.index.json", INDEX("gone.safetensors", SHARD_2));
    refuse(dir, "gone.safetensors");
    write_text(dir, "model.safetensors.index.json", INDEX(SHARD_2, SHARD_2));
    refuse(dir, "lack tensor");
    write_text(dir, "model.safetensors.index.json", "{}");
    refuse(dir, "weight_map is missing");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
    refuse(dir, "a number");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":");
    refuse(dir, "invalid JSON");
}

static void test_a_tensor_in_two_shards_is_refused(void **state)
{
    write_shards();
    struct fake_model m;
    fake_model_init(&m, false);
    add_llama_layer(&m, 1);
    fake_model_add(&m, "lm_head.weight", V, C);
    fake_model_write(&m, in_dir(SHARD_2));
    fake_model_free(&m);
    write_text(dir, "model.safetensors.index.json", INDEX(SHARD_1, SHARD_2));
    refuse(dir, "tensor lm_head.weight is in two files");
}

static void test_paths_that_are_no_model_are_refused(void **state)
{
    refuse(dir, "has no config.json");
    refuse(in_dir("nowhere"), "No such file");
    write_text(dir, "model.safetensors", "");
    refuse(in_dir("model.safetensors"), "give the directory");
    write_text(dir, "x.gguf", "");
    refuse(in_dir("x.gguf"), "ends inside the magic number");
    write_text(dir, "config.json", llama_config);
    refuse(dir, "too few for a safetensors file");
}

/* ---- GGUF ---- */

static struct fake_model gguf(const char *arch)
{
    struct fake_model m;
    char key[64];
    static const struct { const char *key; uint32_t value; } sizes[] = {
        {"block_count", L}, {"embedding_length", C}, {"feed_forward_length", 32},
        {"attention.head_count", 2}, {"attention.head_count_kv", 1}, {"context_length", T},
    };
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", arch);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].key);
        gguf_write_key_u32(&m.keys, key, sizes[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_write_key_f32(&m.keys, key, 1e-5f);
    m.n_keys = 8;
    fake_model_add(&m, "token_embd.weight", V, C);
    fake_model_add(&m, "output_norm.weight", C, 0);
    for (int layer = 0; layer < L; layer++) {
        fake_model_add_layer(&m, "blk.LAYER.attn_norm.weight", layer, C, 0);
        fake_model_add_layer(&m, "blk.LAYER.ffn_norm.weight", layer, C, 0);
        fake_model_add_layer(&m, "blk.LAYER.attn_q.weight", layer, C, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_k.weight", layer, C / 2, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_v.weight", layer, C / 2, C);
        fake_model_add_layer(&m, "blk.LAYER.attn_output.weight", layer, C, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_gate.weight", layer, 32, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_up.weight", layer, 32, C);
        fake_model_add_layer(&m, "blk.LAYER.ffn_down.weight", layer, C, 32);
    }
    return m;
}

static const char *save_gguf(struct fake_model *m)
{
    fake_model_write(m, in_dir("model.gguf"));
    fake_model_free(m);
    return in_dir("model.gguf");
}

/* Where a pair-ordered head of 8 keeps the rows 0..7 of the rotate-half order. */
static const int64_t pairs_of_8[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static void test_llama_gguf_rows_come_in_rotate_half_order(void **state)
{
    struct fake_model m = gguf("llama");
    for (int layer = 0; layer < L; layer++) {
        fake_model_add_layer(&m, "blk.LAYER.attn_q.bias", layer, C, 0);
        fake_model_add_layer(&m, "blk.LAYER.attn_k.bias", layer, C / 2, 0);
        fake_model_add_layer(&m, "blk.LAYER.attn_v.bias", layer, C / 2, 0);
    }
    struct checkpoint *ck = open_good(save_gguf(&m));
    const struct gpt_config *c = checkpoint_config(ck);
    assert_string_equal(c->arch, "llama");
    assert_true(c->head_dim == 8 && c->n_kv_head == 1 && c->vocab_size == V && c->tie_weights);
    assert_true(c->bias_qkv && !c->bias_attn_out && c->norm_eps == 1e-5f);
    assert_true(c->rope_theta == 10000.0f && c->mlp_type == MLP_SWIGLU && c->block_size == T);
    assert_int_equal(checkpoint_format(ck), CHECKPOINT_GGUF);
    assert_non_null(checkpoint_gguf(ck));
    int64_t n;
    float *qkv = read_all(ck, WEIGHT_QKV, 1, &n), *bias = read_all(ck, WEIGHT_QKV_BIAS, 1, &n);
    for (int64_t r = 0; r < 2 * C; r++) {
        static const char *const names[] = {"q", "q", "k", "v"}; /* of each 8 rows */
        char weight[32], vector[32];
        int64_t in_tensor = r < C ? r : (r - C) % 8;
        int64_t row = r < 3 * 8 ? in_tensor / 8 * 8 + pairs_of_8[r % 8] : in_tensor;
        snprintf(weight, sizeof weight, "blk.1.attn_%s.weight", names[r / 8]);
        snprintf(vector, sizeof vector, "blk.1.attn_%s.bias", names[r / 8]);
        for (int64_t i = 0; i < C; i++)
            assert_true(qkv[r * C + i] == fake_value(weight, row * C + i));
        assert_true(bias[r] == fake_value(vector, row));
    }
    free(qkv);
    free(bias);
    check_one(ck, WEIGHT_ATTN_OUT, 0, "blk.0.attn_output.weight");
    checkpoint_close(ck);
}

static void test_qwen2_gguf_rows_stay_in_order(void **state)
{
    struct fake_model m = gguf("qwen2");
    fake_model_add(&m, "output.weight", V, C);
    struct checkpoint *ck = open_good(save_gguf(&m));
    assert_false(checkpoint_config(ck)->tie_weights);
    check_weight(ck, WEIGHT_QKV, 0,
                 (const char *[]){"blk.0.attn_q.weight", "blk.0.attn_k.weight",
                                  "blk.0.attn_v.weight", NULL},
                 (int64_t[]){C * C, C / 2 * C, C / 2 * C});
    check_one(ck, WEIGHT_LM_HEAD, 0, "output.weight");
    checkpoint_close(ck);
}

static void test_qwen3_gguf_has_head_norms(void **state)
{
    struct fake_model m = gguf("qwen3");
    refuse(save_gguf(&m), "lack tensor blk.0.attn_q_norm.weight");
    m = gguf("qwen3");
    for (int layer = 0; layer < L; layer++) {
        fake_model_add_layer(&m, "blk.LAYER.attn_q_norm.weight", layer, 8, 0);
        fake_model_add_layer(&m, "blk.LAYER.attn_k_norm.weight", layer, 8, 0);
    }
    struct checkpoint *ck = open_good(save_gguf(&m));
    check_one(ck, WEIGHT_K_NORM, 1, "blk.1.attn_k_norm.weight");
    checkpoint_close(ck);
}

static void test_gpt2_gguf_is_fused_and_not_transposed(void **state)
{
    struct fake_model m;
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", "gpt2");
    gguf_write_key_u32(&m.keys, "gpt2.block_count", 1);
    gguf_write_key_u32(&m.keys, "gpt2.embedding_length", C);
    gguf_write_key_u32(&m.keys, "gpt2.feed_forward_length", F);
    gguf_write_key_u32(&m.keys, "gpt2.attention.head_count", 2);
    gguf_write_key_u32(&m.keys, "gpt2.context_length", T);
    gguf_write_key_f32(&m.keys, "gpt2.attention.layer_norm_epsilon", 1e-5f);
    m.n_keys = 7;
    fake_model_add(&m, "token_embd.weight", V, C);
    fake_model_add(&m, "position_embd.weight", T, C);
    static const struct { const char *name; int64_t rows, cols; } tensors[] = {
        {"output_norm", C, 0}, {"blk.0.attn_norm", C, 0}, {"blk.0.ffn_norm", C, 0},
        {"blk.0.attn_qkv", 3 * C, C}, {"blk.0.attn_output", C, C}, {"blk.0.ffn_up", F, C},
        {"blk.0.ffn_down", C, F},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.weight", tensors[i].name);
        fake_model_add(&m, name, tensors[i].rows, tensors[i].cols);
        snprintf(name, sizeof name, "%s.bias", tensors[i].name);
        fake_model_add(&m, name, tensors[i].rows, 0);
    }
    struct checkpoint *ck = open_good(save_gguf(&m));
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(c->pos_encoding == POS_LEARNED && c->norm_type == NORM_LAYERNORM);
    assert_true(c->mlp_type == MLP_GELU_TANH && c->bias_qkv && c->bias_norm && c->bias_mlp);
    check_one(ck, WEIGHT_QKV, 0, "blk.0.attn_qkv.weight");
    check_one(ck, WEIGHT_QKV_BIAS, 0, "blk.0.attn_qkv.bias");
    check_one(ck, WEIGHT_MLP_UP, 0, "blk.0.ffn_up.weight");
    check_one(ck, WEIGHT_POSITION_EMBEDDING, 0, "position_embd.weight");
    check_one(ck, WEIGHT_FINAL_NORM_BIAS, 0, "output_norm.bias");
    checkpoint_close(ck);
}

static void test_gguf_rope_settings(void **state)
{
    struct fake_model m = gguf("qwen2");
    gguf_write_key_f32(&m.keys, "qwen2.rope.freq_base", 5e5f);
    gguf_write_key_string(&m.keys, "qwen2.rope.scaling.type", "linear");
    gguf_write_key_f32(&m.keys, "qwen2.rope.scaling.factor", 4);
    m.n_keys += 3;
    struct checkpoint *ck = open_good(save_gguf(&m));
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(c->rope_theta == 5e5f && c->rope_scaling == ROPE_SCALING_LINEAR);
    assert_true(c->rope_factor == 4.0f);
    checkpoint_close(ck);

    m = gguf("qwen2");
    gguf_write_key_string(&m.keys, "qwen2.rope.scaling.type", "yarn");
    m.n_keys++;
    refuse(save_gguf(&m), "qwen2.rope.scaling.type is not supported");
    m = gguf("qwen2");
    gguf_write_key_u32(&m.keys, "qwen2.rope.dimension_count", 4);
    m.n_keys++;
    refuse(save_gguf(&m), "partial rotary");
}

static void test_gguf_sliding_window_limits_the_context(void **state)
{
    struct fake_model m = gguf("llama");
    gguf_write_key_u32(&m.keys, "llama.attention.sliding_window", 5);
    m.n_keys++;
    struct checkpoint *ck = open_good(save_gguf(&m));
    assert_int_equal(checkpoint_config(ck)->block_size, 5);
    checkpoint_close(ck);
}

static void test_gguf_refusals(void **state)
{
    struct fake_model m = gguf("mamba");
    refuse(save_gguf(&m), "\"mamba\" is not supported");
    m = gguf("llama");
    gguf_write_key_u32(&m.keys, "llama.expert_count", 8);
    m.n_keys++;
    refuse(save_gguf(&m), "mixtures of experts");
    m = gguf("llama");
    fake_model_add(&m, "blk.0.ffn_gate_inp.weight", 4, C);
    refuse(save_gguf(&m), "blk.0.ffn_gate_inp.weight [4, 16] has no place");
    m = gguf("llama");
    m.n_keys = 1; /* the rest is read as tensors */
    refuse(save_gguf(&m), "model.gguf");
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", "llama");
    m.n_keys = 1;
    fake_model_add(&m, "token_embd.weight", V, C);
    refuse(save_gguf(&m), "key llama.block_count is missing");
}

/* A matrix of q8_0: block b is (b odd ? 0.25 : 0.5) times the bytes b, b + 1, ... */
static void add_q8_0(struct fake_model *m, const char *name, uint64_t rows, uint64_t cols)
{
    gguf_write_padding(&m->data, 32);
    gguf_write_tensor(&m->infos, name, cols, rows, GGML_Q8_0, m->data.len);
    for (uint64_t block = 0; block < rows * cols / 32; block++) {
        buf_append(&m->data, block % 2 ? "\x00\x34" : "\x00\x38", 2);
        for (uint64_t j = 0; j < 32; j++) buf_putc(&m->data, (char)(block + j));
    }
    m->n_tensors++;
}

static float q8_0_value(int64_t i)
{
    int64_t block = i / 32;
    return (block % 2 ? 0.25f : 0.5f) * (float)(int8_t)(block + i % 32);
}

static void test_quantized_rows_are_read_by_blocks(void **state)
{
    static const struct { const char *key; uint32_t value; } keys[] = {
        {"llama.block_count", 1}, {"llama.embedding_length", 64},
        {"llama.feed_forward_length", 32}, {"llama.attention.head_count", 4},
        {"llama.attention.head_count_kv", 1}, {"llama.context_length", 8},
    };
    static const struct { const char *name; uint64_t rows, cols; } matrices[] = {
        {"token_embd.weight", 3, 64},    {"blk.0.attn_q.weight", 64, 64},
        {"blk.0.attn_k.weight", 16, 64}, {"blk.0.attn_v.weight", 16, 64},
        {"blk.0.ffn_up.weight", 32, 64}, {"blk.0.attn_output.weight", 64, 64},
        {"blk.0.ffn_gate.weight", 32, 64}, {"blk.0.ffn_down.weight", 64, 32},
    };
    struct fake_model m;
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", "llama");
    gguf_write_key_f32(&m.keys, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (size_t i = 0; i < 6; i++) gguf_write_key_u32(&m.keys, keys[i].key, keys[i].value);
    m.n_keys = 8;
    fake_model_add(&m, "output_norm.weight", 64, 0);
    fake_model_add(&m, "blk.0.attn_norm.weight", 64, 0);
    fake_model_add(&m, "blk.0.ffn_norm.weight", 64, 0);
    for (size_t i = 0; i < 8; i++) add_q8_0(&m, matrices[i].name, matrices[i].rows, matrices[i].cols);
    struct checkpoint *ck = open_good(save_gguf(&m));
    assert_int_equal(checkpoint_dtype(ck), DTYPE_Q8_0);
    float rows[5 * 64];
    checkpoint_read_rows(ck, WEIGHT_MLP_DOWN, 0, 59, 5, rows);
    for (int64_t i = 0; i < 5 * 32; i++) assert_true(rows[i] == q8_0_value(59 * 32 + i));
    /* Row 10 of the first head of 16 is odd pair 2: the file's row 5. */
    checkpoint_read_rows(ck, WEIGHT_QKV, 0, 10, 1, rows);
    for (int64_t i = 0; i < 64; i++) assert_true(rows[i] == q8_0_value(5 * 64 + i));
    checkpoint_close(ck);
}

/* ---- Fingerprints and damage ---- */

static void test_fingerprint_names_the_weights(void **state)
{
    char first[17], again[17], other[17];
    struct fake_model m = gpt2("", true);
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(dir);
    checkpoint_fingerprint(ck, first);
    checkpoint_fingerprint(ck, again);
    checkpoint_close(ck);
    assert_string_equal(first, again);
    assert_int_equal(strspn(first, "0123456789abcdef"), 16);
    m = gpt2("", true);
    m.data.data[m.data.len - 1] ^= 1;
    save_hf(&m, gpt2_config);
    ck = open_good(dir);
    checkpoint_fingerprint(ck, other);
    checkpoint_close(ck);
    assert_string_not_equal(first, other);
}

/* Copies the file with one byte changed and opens it: an error, or a model that reads. */
static void open_damaged(const char *from, const char *to, size_t at, uint8_t mask)
{
    struct buf b;
    struct checkpoint *ck;
    struct error err = {0};
    buf_init(&b, 64 << 20);
    assert_true(file_read(from, &b, &err));
    b.data[at % b.len] ^= (char)mask;
    write_file(to, b.data, b.len);
    buf_free(&b);
    if (checkpoint_open(file_is_dir(dir) && strstr(to, ".gguf") ? to : dir, &ck, &err))
        checkpoint_close(ck);
    else
        assert_true(err.text[0]);
}

static void test_flipped_bits_in_a_header_are_survived(void **state)
{
    struct fake_model m = gguf("llama");
    char whole[128], damaged[128];
    fake_model_write(&m, in_dir("whole.gguf"));
    fake_model_free(&m);
    strcpy(whole, in_dir("whole.gguf"));
    strcpy(damaged, in_dir("damaged.gguf"));
    for (size_t i = 0; i < 400; i++) open_damaged(whole, damaged, i * 5, (uint8_t)(1 << i % 8));

    m = gpt2("", true);
    write_text(dir, "config.json", gpt2_config);
    fake_model_write(&m, in_dir("whole.safetensors"));
    fake_model_free(&m);
    strcpy(whole, in_dir("whole.safetensors"));
    strcpy(damaged, in_dir("model.safetensors"));
    for (size_t i = 0; i < 400; i++) open_damaged(whole, damaged, i * 5, (uint8_t)(1 << i % 8));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_golden_models_open),
        TEST(test_element_types_of_golden_models),
        TEST(test_gpt2_conv1d_is_transposed_with_and_without_prefix),
        TEST(test_gpt2_without_biases_switches_them_off),
        TEST(test_transposition_of_large_matrices),
        TEST(test_needless_tensors_are_listed_but_not_needed),
        TEST(test_untied_head_without_its_tensor_is_tied),
        TEST(test_missing_extra_and_misshapen_tensors_are_refused_by_name),
        TEST(test_a_bias_in_some_layers_only_is_refused),
        TEST(test_weights_of_another_element_type_are_refused),
        TEST(test_shards_fuse_and_stack),
        TEST(test_bad_indices_are_refused),
        TEST(test_a_tensor_in_two_shards_is_refused),
        TEST(test_paths_that_are_no_model_are_refused),
        TEST(test_llama_gguf_rows_come_in_rotate_half_order),
        TEST(test_qwen2_gguf_rows_stay_in_order),
        TEST(test_qwen3_gguf_has_head_norms),
        TEST(test_gpt2_gguf_is_fused_and_not_transposed),
        TEST(test_gguf_rope_settings),
        TEST(test_gguf_sliding_window_limits_the_context),
        TEST(test_gguf_refusals),
        TEST(test_quantized_rows_are_read_by_blocks),
        TEST(test_fingerprint_names_the_weights),
        TEST(test_flipped_bits_in_a_header_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
