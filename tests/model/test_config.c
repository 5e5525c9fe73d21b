/* Configs: every family's keys and defaults, what is refused and by which name, and the presets'
 * exact parameter counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/config.h"

#define GPT2 "\"model_type\":\"gpt2\",\"n_layer\":12,\"n_head\":12,\"n_embd\":768," \
             "\"n_positions\":1024,\"vocab_size\":50257"
#define GEOMETRY "\"hidden_size\":512,\"intermediate_size\":1024,\"num_hidden_layers\":3," \
                 "\"num_attention_heads\":8,\"max_position_embeddings\":8192,\"vocab_size\":1000"
#define LLAMA "\"model_type\":\"llama\"," GEOMETRY

static struct gpt_config from_hf(const char *members)
{
    char json[1024];
    struct gpt_config c;
    struct error err;
    int n = snprintf(json, sizeof json, "{%s}", members);
    assert_true(n < (int)sizeof json);
    if (!gpt_config_from_hf(json, (size_t)n, "config.json", &c, &err)) fail_msg("%s", err.text);
    return c;
}

static void refuse_hf(const char *members, const char *param, const char *why)
{
    char json[1024];
    struct gpt_config c;
    struct error err = {0};
    int n = snprintf(json, sizeof json, "{%s}", members);
    assert_true(n < (int)sizeof json);
    if (gpt_config_from_hf(json, (size_t)n, "config.json", &c, &err)) fail_msg("taken: %s", json);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_string_equal(err.param, param);
}

static struct gpt_config from_preset(const char *json)
{
    struct gpt_config c;
    struct error err;
    if (!gpt_config_from_preset(json, strlen(json), "own.json", &c, &err)) fail_msg("%s", err.text);
    return c;
}

static void refuse_preset(const char *json, const char *param, const char *why)
{
    struct gpt_config c;
    struct error err = {0};
    if (gpt_config_from_preset(json, strlen(json), "own.json", &c, &err))
        fail_msg("taken: %s", json);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_string_equal(err.param, param);
}

static void test_gpt2(void **state)
{
    struct gpt_config c = from_hf(GPT2);
    assert_string_equal(c.arch, "gpt2");
    assert_true(c.n_layer == 12 && c.n_head == 12 && c.n_kv_head == 12 && c.head_dim == 64);
    assert_true(c.n_embd == 768 && c.n_ff == 3072);
    assert_true(c.block_size == 1024 && c.vocab_size == 50257);
    assert_true(c.pos_encoding == POS_LEARNED && c.norm_type == NORM_LAYERNORM);
    assert_true(c.mlp_type == MLP_GELU_TANH && c.norm_eps == 1e-5f && c.tie_weights);
    assert_true(c.bias_qkv && c.bias_attn_out && c.bias_mlp && c.bias_norm && !c.bias_lm_head);
    assert_int_equal(gpt_config_parameters(&c), 124439808); /* as published */

    c = from_hf(GPT2 ",\"n_inner\":100,\"activation_function\":\"gelu\","
                     "\"layer_norm_epsilon\":1e-6,\"tie_word_embeddings\":false");
    assert_true(c.n_ff == 100 && c.mlp_type == MLP_GELU_EXACT && c.norm_eps == 1e-6f);
    assert_false(c.tie_weights);
    assert_int_equal(from_hf(GPT2 ",\"n_inner\":null").n_ff, 3072);
    assert_int_equal(from_hf(GPT2 ",\"activation_function\":\"gelu_pytorch_tanh\"").mlp_type,
                     MLP_GELU_TANH);
}

static void test_gpt2_settings_that_change_the_result_are_refused(void **state)
{
    refuse_hf(GPT2 ",\"activation_function\":\"relu\"", "activation_function", "\"relu\"");
    refuse_hf(GPT2 ",\"scale_attn_weights\":false", "scale_attn_weights", "false");
    refuse_hf(GPT2 ",\"scale_attn_by_inverse_layer_idx\":true", "scale_attn_by_inverse_layer_idx",
              "true");
    refuse_hf(GPT2 ",\"add_cross_attention\":true", "add_cross_attention", "true");
    refuse_hf("\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":3,\"n_embd\":64,"
              "\"n_positions\":8,\"vocab_size\":9", "n_head", "not a multiple");
}

static void test_llama_defaults(void **state)
{
    struct gpt_config c = from_hf(LLAMA);
    assert_string_equal(c.arch, "llama");
    assert_true(c.n_kv_head == 8 && c.head_dim == 64 && c.n_ff == 1024 && c.block_size == 8192);
    assert_true(c.pos_encoding == POS_ROPE && c.norm_type == NORM_RMSNORM);
    assert_true(c.mlp_type == MLP_SWIGLU && c.norm_eps == 1e-6f && c.rope_theta == 10000.0f);
    assert_true(!c.bias_qkv && !c.bias_attn_out && !c.bias_mlp && !c.bias_norm && !c.qk_norm);
    assert_true(!c.tie_weights && c.rope_scaling == ROPE_SCALING_NONE);
    c = from_hf(LLAMA ",\"num_key_value_heads\":2,\"head_dim\":32,\"attention_bias\":true,"
                      "\"mlp_bias\":true,\"tie_word_embeddings\":true,\"rms_norm_eps\":1e-5,"
                      "\"rope_theta\":500000,\"hidden_act\":\"silu\",\"torch_dtype\":\"bfloat16\"");
    assert_true(c.n_kv_head == 2 && c.head_dim == 32 && c.bias_qkv && c.bias_attn_out);
    assert_true(c.bias_mlp && c.tie_weights && c.norm_eps == 1e-5f && c.rope_theta == 500000.0f);
    assert_int_equal(from_hf(LLAMA ",\"num_key_value_heads\":null").n_kv_head, 8);
}

static void test_llama_refusals(void **state)
{
    refuse_hf(LLAMA ",\"hidden_act\":\"gelu\"", "hidden_act", "\"gelu\"");
    refuse_hf(LLAMA ",\"quantization_config\":{}", "quantization_config", "quantized");
    refuse_hf(LLAMA ",\"partial_rotary_factor\":0.5", "partial_rotary_factor", "partial");
    refuse_hf(LLAMA ",\"num_key_value_heads\":3", "n_kv_head", "not a multiple");
    refuse_hf(LLAMA ",\"num_key_value_heads\":0", "n_kv_head", "not within");
    refuse_hf(LLAMA ",\"head_dim\":40", "head_dim", "40");
    refuse_hf("\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":8,"
              "\"num_hidden_layers\":1,\"num_attention_heads\":2048,\"head_dim\":128,"
              "\"max_position_embeddings\":8,\"vocab_size\":9", "n_head", "over 131072");
    refuse_hf(LLAMA ",\"rms_norm_eps\":\"x\"", "rms_norm_eps", "a string, not a number");
    refuse_hf(LLAMA ",\"attention_bias\":1", "attention_bias", "true or false");
    refuse_hf(LLAMA ",\"rope_theta\":0", "rope_theta", "rope_theta");
}

static void test_mistral(void **state)
{
    const char *base = "\"model_type\":\"mistral\"," GEOMETRY;
    char json[512];
    struct gpt_config c = from_hf(base);
    assert_true(c.n_kv_head == 8);        /* the family's default */
    assert_int_equal(c.block_size, 4096); /* so is its window */
    snprintf(json, sizeof json, "%s,\"sliding_window\":null", base);
    assert_int_equal(from_hf(json).block_size, 8192);
    snprintf(json, sizeof json, "%s,\"sliding_window\":16384", base);
    assert_int_equal(from_hf(json).block_size, 8192);
    snprintf(json, sizeof json, "%s,\"sliding_window\":100", base);
    assert_int_equal(from_hf(json).block_size, 100);
}

static void test_qwen2(void **state)
{
    const char *base = "\"model_type\":\"qwen2\",\"num_key_value_heads\":2," GEOMETRY;
    char json[512];
    struct gpt_config c = from_hf(base);
    assert_true(c.bias_qkv && !c.bias_attn_out && !c.bias_mlp && !c.qk_norm);
    assert_int_equal(c.block_size, 8192); /* use_sliding_window is off */
    snprintf(json, sizeof json, "%s,\"sliding_window\":64,\"use_sliding_window\":false", base);
    assert_int_equal(from_hf(json).block_size, 8192);
    snprintf(json, sizeof json, "%s,\"sliding_window\":64,\"use_sliding_window\":true", base);
    assert_int_equal(from_hf(json).block_size, 64);
    snprintf(json, sizeof json, "%s,\"sliding_window\":64,\"use_sliding_window\":true,"
             "\"layer_types\":[\"full_attention\",\"full_attention\"]", base);
    assert_int_equal(from_hf(json).block_size, 8192);
    snprintf(json, sizeof json, "%s,\"attention_bias\":true", base);
    assert_false(from_hf(json).bias_attn_out); /* the family has none */
    snprintf(json, sizeof json, "%s,\"layer_types\":[\"linear_attention\"]", base);
    refuse_hf(json, "layer_types", "linear_attention");
}

static void test_qwen3(void **state)
{
    struct gpt_config c = from_hf("\"model_type\":\"qwen3\",\"num_key_value_heads\":4," GEOMETRY);
    assert_true(c.qk_norm && !c.bias_qkv && c.head_dim == 128);
    c = from_hf("\"model_type\":\"qwen3\",\"num_key_value_heads\":4,\"attention_bias\":true,"
                "\"head_dim\":64," GEOMETRY);
    assert_true(c.bias_qkv && c.bias_attn_out && c.head_dim == 64);
}

static void check_llama3(const struct gpt_config *c)
{
    assert_int_equal(c->rope_scaling, ROPE_SCALING_LLAMA3);
    assert_true(c->rope_factor == 8.0f && c->rope_low_freq == 1.0f && c->rope_high_freq == 4.0f);
    assert_int_equal(c->rope_original_context, 4096);
}

#define LLAMA3 "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0," \
               "\"original_max_position_embeddings\":4096"

static void test_rope_scaling_in_every_spelling(void **state)
{
    struct gpt_config c = from_hf(LLAMA ",\"rope_scaling\":null");
    assert_int_equal(c.rope_scaling, ROPE_SCALING_NONE);
    c = from_hf(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}");
    assert_true(c.rope_scaling == ROPE_SCALING_LINEAR && c.rope_factor == 2.0f);
    c = from_hf(LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}");
    assert_true(c.rope_scaling == ROPE_SCALING_LINEAR && c.rope_factor == 4.0f);
    c = from_hf(LLAMA ",\"rope_scaling\":{\"rope_type\":\"default\"}");
    assert_int_equal(c.rope_scaling, ROPE_SCALING_NONE);
    c = from_hf(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "}");
    check_llama3(&c);
    c = from_hf(LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":5e5,"
                LLAMA3 "}");
    check_llama3(&c);
    assert_true(c.rope_theta == 5e5f);
}

static void test_rope_scaling_refusals(void **state)
{
    refuse_hf(LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}", "rope_scaling", "yarn");
    refuse_hf(LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}", "factor", "missing");
    refuse_hf(LLAMA ",\"rope_scaling\":\"linear\"", "rope_scaling", "a string");
    refuse_hf(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}", "rope_factor",
              "within");
    refuse_hf(LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
              "\"high_freq_factor\":4,\"original_max_position_embeddings\":8}", "low_freq_factor",
              "not below");
    refuse_hf(LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
              "\"high_freq_factor\":4,\"original_max_position_embeddings\":0}",
              "original_max_position_embeddings", "0");
    refuse_hf(LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}",
              "rope_parameters", "per layer type");
}

static void test_hf_bounds(void **state)
{
    refuse_hf("\"model_type\":\"bert\"", "model_type", "\"bert\"");
    refuse_hf("", "model_type", "not supported");
    refuse_hf("\"model_type\":\"llama\"", "num_hidden_layers", "missing");
    refuse_hf("\"model_type\":\"gpt2\",\"n_layer\":1e15,\"n_head\":1,\"n_embd\":64,"
              "\"n_positions\":8,\"vocab_size\":9", "n_layer", "not within");
    refuse_hf("\"model_type\":\"gpt2\",\"n_layer\":1.5", "n_layer", "not an integer");
    refuse_hf("\"model_type\":\"gpt2\",\"n_layer\":1,\"n_head\":0,\"n_embd\":64,"
              "\"n_positions\":8,\"vocab_size\":9", "n_head", "not within");
    refuse_hf("\"model_type\":\"gpt2\",\"n_layer\":1,\"n_head\":1,\"n_embd\":9e15,"
              "\"n_positions\":8,\"vocab_size\":9", "n_embd", "not within");
    struct gpt_config c;
    struct error err;
    assert_false(gpt_config_from_hf("[]", 2, "config.json", &c, &err));
    assert_non_null(strstr(err.text, "an array"));
    assert_false(gpt_config_from_hf("{", 1, "config.json", &c, &err));
}

static void test_preset_defaults_and_switches(void **state)
{
    struct gpt_config c = from_preset("{\"n_layer\":2,\"n_head\":4,\"n_embd\":64,\"block_size\":32,"
                                      "\"vocab_size\":100}");
    assert_string_equal(c.arch, "gpt2");
    assert_true(c.n_kv_head == 4 && c.head_dim == 16 && c.n_ff == 256 && c.tie_weights);
    assert_true(!c.bias_qkv && !c.bias_norm && c.norm_eps == 1e-5f && c.dropout == 0.0f);
    c = from_preset("{\"n_layer\":2,\"n_head\":4,\"n_embd\":64,\"block_size\":32,"
                    "\"vocab_size\":100,\"bias\":true,\"bias_mlp\":false,\"dropout\":0.25}");
    assert_true(c.bias_qkv && c.bias_attn_out && !c.bias_mlp && c.bias_norm && !c.bias_lm_head);
    assert_true(c.dropout == 0.25f);
    c = from_preset("{\"n_layer\":2,\"n_head\":4,\"n_kv_head\":2,\"n_embd\":64,\"block_size\":32,"
                    "\"vocab_size\":100,\"pos_encoding\":\"rope\",\"norm_type\":\"rmsnorm\","
                    "\"mlp_type\":\"swiglu\",\"rope_scaling\":\"linear\",\"rope_factor\":2,"
                    "\"bias\":true,\"tie_weights\":false}");
    assert_string_equal(c.arch, "llama");
    assert_true(c.n_kv_head == 2 && c.mlp_type == MLP_SWIGLU && c.n_ff == 192);
    assert_true(c.rope_scaling == ROPE_SCALING_LINEAR && c.rope_factor == 2.0f);
    assert_true(c.bias_qkv && !c.bias_norm && !c.tie_weights); /* RMSNorm has no bias */
}

#define OWN "{\"n_layer\":2,\"n_head\":4,\"n_embd\":64,\"block_size\":32"

static void test_preset_unknown_key_names_the_nearest(void **state)
{
    refuse_preset(OWN ",\"n_layers\":3}", "n_layers", "did you mean \"n_layer\"?");
    refuse_preset(OWN ",\"batchsize\":3}", "batchsize", "did you mean \"batch_size\"?");
    refuse_preset(OWN ",\"entirely_else\":3}", "entirely_else", "unknown key");
}

static void test_preset_wrong_values_are_refused(void **state)
{
    refuse_preset(OWN ",\"mlp_type\":\"relu\"}", "mlp_type", "gelu, gelu_exact, swiglu");
    refuse_preset(OWN ",\"mlp_type\":3}", "mlp_type", "a number, not a string");
    refuse_preset(OWN ",\"n_ff\":-1}", "n_ff", "not within");
    refuse_preset(OWN ",\"dropout\":1.5}", "dropout", "must be from");
    refuse_preset(OWN ",\"seed\":-1}", "seed", "must be from 0");
    refuse_preset(OWN ",\"max_iters\":1.5}", "max_iters", "not an integer");
    refuse_preset(OWN ",\"learning_rate\":\"x\"}", "learning_rate", "a string");
    refuse_preset(OWN ",\"norm_type\":\"rmsnorm\",\"bias_norm\":true}", "bias_norm", "layernorm");
    refuse_preset("{\"n_layer\":2,\"n_head\":5,\"n_embd\":64,\"block_size\":32}", "n_head",
                  "set head_dim");
    refuse_preset("{}", "n_layer", "not within");
    refuse_preset("3", "", "a number");
}

static void test_vocabulary_from_the_data_is_open_until_set(void **state)
{
    struct gpt_config c = from_preset(OWN "}");
    struct error err;
    assert_int_equal(c.vocab_size, 0);
    assert_false(gpt_config_check(&c, "own.json", &err));
    assert_string_equal(err.param, "vocab_size");
    c.vocab_size = 65;
    assert_true(gpt_config_check(&c, "own.json", &err));
}

static struct gpt_config preset_file(const char *name)
{
    char path[64];
    struct buf text;
    struct error err;
    struct gpt_config c;
    snprintf(path, sizeof path, "configs/%s.json", name);
    buf_init(&text, 1 << 16);
    if (!file_read(path, &text, &err) ||
        !gpt_config_from_preset(text.data, text.len, path, &c, &err))
        fail_msg("%s", err.text);
    buf_free(&text);
    return c;
}

static void test_presets_have_their_exact_parameter_counts(void **state)
{
    static const struct { const char *name; int64_t parameters; } presets[] = {
        {"tiny", 11454144},       {"small", 30036864},      {"150M", 152101632},
        {"200M", 199472000},      {"250M", 253133824},      {"150M_1024", 152691456},
        {"200M_1024", 200160128}, {"250M_1024", 253920256}, {"350M_1024", 354599936},
        {"500M_1024", 537621760}, {"750M_1024", 758392320},
    };
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        struct gpt_config c = preset_file(presets[i].name);
        struct error err;
        if (!gpt_config_check(&c, presets[i].name, &err)) fail_msg("%s", err.text);
        if (gpt_config_parameters(&c) != presets[i].parameters)
            fail_msg("%s: %lld parameters, expected %lld", presets[i].name,
                     (long long)gpt_config_parameters(&c), (long long)presets[i].parameters);
    }
    struct gpt_config c = preset_file("tiny_char");
    assert_int_equal(c.vocab_size, 0);
    c.vocab_size = 65;
    assert_int_equal(gpt_config_parameters(&c), 1808256);
    c = preset_file("small_char");
    c.vocab_size = 65;
    assert_int_equal(gpt_config_parameters(&c), 10745088);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),
        cmocka_unit_test(test_gpt2_settings_that_change_the_result_are_refused),
        cmocka_unit_test(test_llama_defaults),
        cmocka_unit_test(test_llama_refusals),
        cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_qwen2),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_rope_scaling_in_every_spelling),
        cmocka_unit_test(test_rope_scaling_refusals),
        cmocka_unit_test(test_hf_bounds),
        cmocka_unit_test(test_preset_defaults_and_switches),
        cmocka_unit_test(test_preset_unknown_key_names_the_nearest),
        cmocka_unit_test(test_preset_wrong_values_are_refused),
        cmocka_unit_test(test_vocabulary_from_the_data_is_open_until_set),
        cmocka_unit_test(test_presets_have_their_exact_parameter_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
