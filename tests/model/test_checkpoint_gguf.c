/* GGUF files as checkpoints: metadata, names, the order of rotary rows, quantized rows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/gguf.h"
#include "tests/model/checkpoint_util.h"
#include "tests/model/gguf_writer.h"

/* Where a pair-ordered head of 8 keeps the rows 0..7 of the rotate-half order. */
static const int64_t pairs_of_8[8] = {0, 2, 4, 6, 1, 3, 5, 7};

static void test_llama_gguf_rows_come_in_rotate_half_order(void **state)
{
    struct fake_model m = fake_gguf("llama");
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
    struct fake_model m = fake_gguf("qwen2");
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
    struct fake_model m = fake_gguf("qwen3");
    refuse(save_gguf(&m), "lack tensor blk.0.attn_q_norm.weight");
    m = fake_gguf("qwen3");
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
    struct fake_model m = fake_gguf("qwen2");
    gguf_write_key_f32(&m.keys, "qwen2.rope.freq_base", 5e5f);
    gguf_write_key_string(&m.keys, "qwen2.rope.scaling.type", "linear");
    gguf_write_key_f32(&m.keys, "qwen2.rope.scaling.factor", 4);
    m.n_keys += 3;
    struct checkpoint *ck = open_good(save_gguf(&m));
    const struct gpt_config *c = checkpoint_config(ck);
    assert_true(c->rope_theta == 5e5f && c->rope_scaling == ROPE_SCALING_LINEAR);
    assert_true(c->rope_factor == 4.0f);
    checkpoint_close(ck);

    m = fake_gguf("qwen2");
    gguf_write_key_string(&m.keys, "qwen2.rope.scaling.type", "yarn");
    m.n_keys++;
    refuse(save_gguf(&m), "qwen2.rope.scaling.type is not supported");
    m = fake_gguf("qwen2");
    gguf_write_key_u32(&m.keys, "qwen2.rope.dimension_count", 4);
    m.n_keys++;
    refuse(save_gguf(&m), "partial rotary");
}

static void test_gguf_sliding_window_limits_the_context(void **state)
{
    struct fake_model m = fake_gguf("llama");
    gguf_write_key_u32(&m.keys, "llama.attention.sliding_window", 5);
    m.n_keys++;
    struct checkpoint *ck = open_good(save_gguf(&m));
    assert_int_equal(checkpoint_config(ck)->block_size, 5);
    checkpoint_close(ck);
}

static void test_settings_of_other_arithmetic_are_refused(void **state)
{
    struct fake_model m = fake_gguf("llama");
    gguf_write_key_f32(&m.keys, "llama.logit_scale", 1); /* without effect */
    gguf_write_key_f32(&m.keys, "llama.attention.scale", 0);
    m.n_keys += 2;
    checkpoint_close(open_good(save_gguf(&m)));
    static const char *const keys[] = {"llama.logit_scale", "llama.attention.scale",
                                       "llama.final_logit_softcapping"};
    for (size_t i = 0; i < 3; i++) {
        m = fake_gguf("llama");
        gguf_write_key_f32(&m.keys, keys[i], 0.5f);
        m.n_keys++;
        refuse(save_gguf(&m), keys[i]);
    }
    m = fake_gguf("llama");
    gguf_write_key(&m.keys, "llama.attention.causal", GGUF_BOOL);
    buf_putc(&m.keys, 0);
    m.n_keys++;
    refuse(save_gguf(&m), "does not generate text");
}

static void test_one_of_several_files_is_refused(void **state)
{
    struct fake_model m = fake_gguf("llama");
    gguf_write_key_u32(&m.keys, "split.count", 3);
    m.n_keys++;
    refuse(save_gguf(&m), "one of 3 files");
}

static void test_layers_that_differ_are_refused(void **state)
{
    struct fake_model m;
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", "llama");
    gguf_write_key(&m.keys, "llama.block_count", GGUF_ARRAY);
    gguf_write_u32(&m.keys, GGUF_U32);
    gguf_write_u64(&m.keys, 1);
    gguf_write_u32(&m.keys, 1);
    m.n_keys = 2;
    fake_model_add(&m, "token_embd.weight", V, C);
    refuse(save_gguf(&m), "llama.block_count differs between layers");
}

static void test_gguf_refusals(void **state)
{
    struct fake_model m = fake_gguf("mamba");
    refuse(save_gguf(&m), "\"mamba\" is not supported");
    m = fake_gguf("llama");
    gguf_write_key_u32(&m.keys, "llama.expert_count", 8);
    m.n_keys++;
    refuse(save_gguf(&m), "mixtures of experts");
    m = fake_gguf("llama");
    fake_model_add(&m, "blk.0.ffn_gate_inp.weight", 4, C);
    refuse(save_gguf(&m), "blk.0.ffn_gate_inp.weight [4, 16] has no place");
    m = fake_gguf("llama");
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
    for (size_t i = 0; i < 8; i++)
        add_q8_0(&m, matrices[i].name, matrices[i].rows, matrices[i].cols);
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

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_llama_gguf_rows_come_in_rotate_half_order),
        TEST(test_qwen2_gguf_rows_stay_in_order),
        TEST(test_qwen3_gguf_has_head_norms),
        TEST(test_gpt2_gguf_is_fused_and_not_transposed),
        TEST(test_gguf_rope_settings),
        TEST(test_gguf_sliding_window_limits_the_context),
        TEST(test_settings_of_other_arithmetic_are_refused),
        TEST(test_one_of_several_files_is_refused),
        TEST(test_layers_that_differ_are_refused),
        TEST(test_gguf_refusals),
        TEST(test_quantized_rows_are_read_by_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
