/* Hugging Face directories: names with and without the prefix, Conv1D, fused weights, shards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/model/checkpoint_util.h"

/* ---- GPT-2 ---- */

static void check_gpt2(const char *prefix)
{
    char name[96];
    struct checkpoint *ck = open_good(test_dir());
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
    struct fake_model m = fake_gpt2("transformer.", true);
    save_hf(&m, gpt2_config);
    check_gpt2("transformer.");
    m = fake_gpt2("", true);
    save_hf(&m, gpt2_config);
    check_gpt2("");
}

static void test_gpt2_without_biases_switches_them_off(void **state)
{
    struct fake_model m = fake_gpt2("transformer.", false);
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(test_dir());
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(!c->bias_qkv && !c->bias_attn_out && !c->bias_mlp && !c->bias_norm);
    assert_int_equal(gpt_config_parameters(c),
                     V * C + T * C + C + L * (2 * C + 4 * C * C + 2 * C * F));
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
    struct checkpoint *ck = open_good(test_dir());
    float rows[70 * 201];
    checkpoint_read_rows(ck, WEIGHT_MLP_DOWN, 0, 70, 70, rows);
    for (int64_t r = 0; r < 70; r++)
        for (int64_t i = 0; i < 201; i++)
            assert_true(rows[r * 201 + i] == fake_value("h.0.mlp.c_proj.weight", i * 144 + r + 70));
    checkpoint_close(ck);
}

static void test_needless_tensors_are_listed_but_not_needed(void **state)
{
    struct fake_model m = fake_gpt2("transformer.", true);
    fake_model_add(&m, "transformer.h.0.attn.bias", T, T);
    fake_model_add(&m, "transformer.h.1.attn.masked_bias", 1, 0);
    fake_model_add(&m, "lm_head.weight", V, C); /* tied: transformers ignores it too */
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(test_dir());
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
    struct fake_model m = fake_gpt2("transformer.", true);
    const char *untied = "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,"
                         "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24,"
                         "\"tie_word_embeddings\":false}";
    save_hf(&m, untied);
    struct checkpoint *ck = open_good(test_dir());
    assert_true(checkpoint_config(ck)->tie_weights);
    checkpoint_close(ck);
    m = fake_gpt2("transformer.", true);
    fake_model_add(&m, "lm_head.weight", V, C);
    save_hf(&m, untied);
    ck = open_good(test_dir());
    assert_false(checkpoint_config(ck)->tie_weights);
    check_one(ck, WEIGHT_LM_HEAD, 0, "lm_head.weight");
    checkpoint_close(ck);
}

/* ---- Llama, in shards ---- */

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
    fake_model_write(&m, in_test_dir("model-00001-of-00002.safetensors"));
    fake_model_free(&m);
    fake_model_init(&m, false);
    add_llama_layer(&m, 1);
    fake_model_write(&m, in_test_dir("model-00002-of-00002.safetensors"));
    fake_model_free(&m);
    write_text(test_dir(), "config.json", llama_config);
    remove(in_test_dir("model.safetensors"));
}

#define INDEX(first, second) "{\"metadata\":{\"total_size\":1},\"weight_map\":{" \
                             "\"a\":\"" first "\",\"b\":\"" second "\",\"c\":\"" first "\"}}"
#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"

static void test_shards_fuse_and_stack(void **state)
{
    write_shards();
    write_text(test_dir(), "model.safetensors.index.json", INDEX(SHARD_1, SHARD_2));
    struct checkpoint *ck = open_good(test_dir());
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
    refuse(test_dir(), "neither model.safetensors nor");
    write_text(test_dir(), "model.safetensors.index.json", INDEX("../x.safetensors", SHARD_2));
    refuse(test_dir(), "shards must lie beside it");
    write_text(test_dir(), "model.safetensors.index.json", INDEX("/etc/passwd", SHARD_2));
    refuse(test_dir(), "shards must lie beside it");
    write_text(test_dir(), "model.safetensors.index.json", INDEX("..", SHARD_2));
    refuse(test_dir(), "shards must lie beside it");
    write_text(test_dir(), "model.safetensors.index.json", INDEX("gone.safetensors", SHARD_2));
    refuse(test_dir(), "gone.safetensors");
    write_text(test_dir(), "model.safetensors.index.json", INDEX(SHARD_2, SHARD_2));
    refuse(test_dir(), "lack tensor");
    write_text(test_dir(), "model.safetensors.index.json", "{}");
    refuse(test_dir(), "weight_map is missing");
    write_text(test_dir(), "model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
    refuse(test_dir(), "a number");
    write_text(test_dir(), "model.safetensors.index.json", "{\"weight_map\":");
    refuse(test_dir(), "invalid JSON");
}

static void test_a_tensor_in_two_shards_is_refused(void **state)
{
    write_shards();
    struct fake_model m;
    fake_model_init(&m, false);
    add_llama_layer(&m, 1);
    fake_model_add(&m, "lm_head.weight", V, C);
    fake_model_write(&m, in_test_dir(SHARD_2));
    fake_model_free(&m);
    write_text(test_dir(), "model.safetensors.index.json", INDEX(SHARD_1, SHARD_2));
    refuse(test_dir(), "tensor lm_head.weight is in two files");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_gpt2_conv1d_is_transposed_with_and_without_prefix),
        TEST(test_gpt2_without_biases_switches_them_off),
        TEST(test_transposition_of_large_matrices),
        TEST(test_needless_tensors_are_listed_but_not_needed),
        TEST(test_untied_head_without_its_tensor_is_tied),
        TEST(test_shards_fuse_and_stack),
        TEST(test_bad_indices_are_refused),
        TEST(test_a_tensor_in_two_shards_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
