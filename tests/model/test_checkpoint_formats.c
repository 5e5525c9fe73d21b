/* Quantized matrices of a GGUF file as they are: which types the rows have, the blocks in the order
 * that the model wants, and a whole model of many types against the same file widened to f32. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/model/checkpoint_util.h"
#include "tests/model/gguf_writer.h"
#include "tests/model/model_runner.h"

/* Two layers; the second has what the first has not. */
enum { WIDE = 256, HEADS = 4, WORDS = 50, ROWS = 5 };
static const struct {
    const char *name;
    int64_t n_out;
    enum dtype type;
} matrices[] = {
    {"token_embd.weight", WORDS, DTYPE_Q6_K},
    {"blk.0.attn_q.weight", WIDE, DTYPE_Q4_K},       {"blk.0.attn_k.weight", 64, DTYPE_Q4_K},
    {"blk.0.attn_v.weight", 64, DTYPE_Q6_K},         {"blk.0.attn_output.weight", WIDE, DTYPE_Q5_0},
    {"blk.0.ffn_gate.weight", WIDE, DTYPE_Q5_K},     {"blk.0.ffn_up.weight", WIDE, DTYPE_Q4_1},
    {"blk.0.ffn_down.weight", WIDE, DTYPE_Q5_1},     {"blk.1.attn_q.weight", WIDE, DTYPE_Q8_0},
    {"blk.1.attn_k.weight", 64, DTYPE_Q8_0},         {"blk.1.attn_v.weight", 64, DTYPE_Q8_0},
    {"blk.1.attn_output.weight", WIDE, DTYPE_F32},   {"blk.1.ffn_gate.weight", WIDE, DTYPE_Q4_0},
    {"blk.1.ffn_up.weight", WIDE, DTYPE_Q4_0},       {"blk.1.ffn_down.weight", WIDE, DTYPE_Q4_K},
};

/* Numbers of GGML's for the types, the offset of their f16 scales in a block, and a size of them
 * that makes weights of about 0.05. */
static const struct {
    uint32_t number;
    int32_t scale, minimum;
    float size, minimum_size;
} ggml[N_DTYPES] = {
    [DTYPE_Q8_0] = {8, 0, -1, 1.f / 1500, 0},  [DTYPE_Q4_0] = {2, 0, -1, 1.f / 100, 0},
    [DTYPE_Q4_1] = {3, 0, 2, 1.f / 100, .1f},  [DTYPE_Q5_0] = {6, 0, -1, 1.f / 200, 0},
    [DTYPE_Q5_1] = {7, 0, 2, 1.f / 200, .1f},  [DTYPE_Q4_K] = {12, 0, 2, 1.f / 3000, 1.f / 1000},
    [DTYPE_Q5_K] = {13, 0, 2, 1.f / 6000, 1.f / 1000}, [DTYPE_Q6_K] = {14, 208, -1, 1.f / 20000, 0},
};

static void put_f16(uint8_t *to, float value)
{
    uint16_t half = f32_to_f16(value);
    memcpy(to, &half, sizeof half);
}

static void add_blocks(struct fake_model *m, const char *name, int64_t rows, enum dtype type)
{
    const struct dtype_info *info = dtype_info(type);
    gguf_write_padding(&m->data, 32);
    gguf_write_tensor(&m->infos, name, WIDE, (uint64_t)rows, ggml[type].number, m->data.len);
    uint8_t block[256];
    for (int64_t i = 0; i < rows * WIDE / info->block; i++) {
        for (int j = 0; j < info->block_bytes; j++)
            block[j] = (uint8_t)(int)(fake_value(name, i * 256 + j) * 128);
        put_f16(block + ggml[type].scale, ggml[type].size * fake_value(name, ~i));
        if (ggml[type].minimum >= 0)
            put_f16(block + ggml[type].minimum,
                    ggml[type].minimum_size * fake_value(name, ~i - 1000000));
        buf_append(&m->data, block, (size_t)info->block_bytes);
    }
    m->n_tensors++;
}

static const char *save_model(void)
{
    static const struct { const char *key; uint32_t value; } keys[] = {
        {"llama.block_count", 2},
        {"llama.embedding_length", WIDE},
        {"llama.feed_forward_length", WIDE},
        {"llama.attention.head_count", HEADS},
        {"llama.attention.head_count_kv", 1},
        {"llama.context_length", 16},
    };
    static const char *const norms[] = {"output_norm.weight", "blk.0.attn_norm.weight",
                                        "blk.0.ffn_norm.weight", "blk.1.attn_norm.weight",
                                        "blk.1.ffn_norm.weight"};
    struct fake_model m;
    fake_model_init(&m, true);
    gguf_write_key_string(&m.keys, "general.architecture", "llama");
    gguf_write_key_f32(&m.keys, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    for (size_t i = 0; i < 6; i++) gguf_write_key_u32(&m.keys, keys[i].key, keys[i].value);
    m.n_keys = 8;
    for (size_t i = 0; i < 5; i++) fake_model_add(&m, norms[i], WIDE, 0);
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        if (matrices[i].type == DTYPE_F32)
            fake_model_add(&m, matrices[i].name, matrices[i].n_out, WIDE);
        else add_blocks(&m, matrices[i].name, matrices[i].n_out, matrices[i].type);
    }
    return save_gguf(&m);
}

static void check_runs(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                       const struct weight_rows *want, int32_t n)
{
    struct weight_rows rows[CHECKPOINT_MAX_PARTS];
    int32_t got = weight_formats_rows(checkpoint_formats(ck), checkpoint_config(ck), role, layer,
                                      rows);
    assert_int_equal(got, n);
    for (int32_t i = 0; i < n; i++) {
        assert_int_equal(rows[i].dtype, want[i].dtype);
        assert_int_equal(rows[i].n_rows, want[i].n_rows);
    }
}

static void test_rows_come_in_runs_of_one_type(void **state)
{
    struct checkpoint *ck = open_good(save_model());
    check_runs(ck, WEIGHT_QKV, 0, (struct weight_rows[]){{DTYPE_Q4_K, 320}, {DTYPE_Q6_K, 64}}, 2);
    check_runs(ck, WEIGHT_QKV, 1, (struct weight_rows[]){{DTYPE_Q8_0, 384}}, 1);
    check_runs(ck, WEIGHT_MLP_UP, 0, (struct weight_rows[]){{DTYPE_Q5_K, 256}, {DTYPE_Q4_1, 256}},
               2);
    check_runs(ck, WEIGHT_MLP_UP, 1, (struct weight_rows[]){{DTYPE_Q4_0, 512}}, 1);
    check_runs(ck, WEIGHT_ATTN_OUT, 1, NULL, 0);
    check_runs(ck, WEIGHT_ATTN_NORM, 0, NULL, 0);
    check_runs(ck, WEIGHT_TOKEN_EMBEDDING, 0, (struct weight_rows[]){{DTYPE_Q6_K, WORDS}}, 1);
    check_runs(ck, WEIGHT_LM_HEAD, 0, NULL, 0);
    assert_int_equal(weight_formats_main(checkpoint_formats(ck), checkpoint_config(ck)),
                     DTYPE_Q4_K);
    checkpoint_close(ck);
}

static void test_a_file_without_blocks_has_no_formats(void **state)
{
    struct fake_model m = fake_gguf("llama");
    struct checkpoint *ck = open_good(save_gguf(&m));
    assert_null(checkpoint_formats(ck));
    checkpoint_close(ck);
}

/* The blocks are those of the rows that reading gives, heads in the model's order. */
static void test_blocks_are_the_rows(void **state)
{
    struct checkpoint *ck = open_good(save_model());
    struct weight_rows runs[CHECKPOINT_MAX_PARTS];
    static float want[64 * WIDE], got[64 * WIDE];
    static uint8_t blocks[64 * WIDE * 2];
    for (int64_t layer = 0; layer < 2; layer++)
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            int64_t row = 0;
            int32_t n = weight_formats_rows(checkpoint_formats(ck), checkpoint_config(ck),
                                            (enum weight_role)role, layer, runs);
            for (int32_t i = 0; i < n; row += runs[i++].n_rows)
                for (int64_t r = 0; r + 50 <= runs[i].n_rows; r += 50) {
                    checkpoint_read_rows(ck, (enum weight_role)role, layer, row + r, 50, want);
                    checkpoint_read_blocks(ck, (enum weight_role)role, layer, row + r, 50, blocks);
                    dtype_to_f32(runs[i].dtype, blocks, 50 * WIDE, got);
                    assert_memory_equal(got, want, 50 * WIDE * sizeof *got);
                }
        }
    checkpoint_close(ck);
}

/* Weights are the same; rows of activations are rounded to bf16 and to 8 bits:
 * half a percent each way. */
static void test_a_model_of_many_types(void **state)
{
    static const int32_t tokens[ROWS] = {3, 49, 0, 17, 17};
    float *want = malloc(ROWS * WORDS * sizeof *want), *got = malloc(ROWS * WORDS * sizeof *got);
    float *alone = malloc(WORDS * sizeof *alone);
    const char *path = save_model();
    struct cpu_options cpu = {.n_threads = 2, .isa = CPU_ISA_BEST};
    struct model_runner r;
    runner_open(&r, path, DTYPE_F32, &cpu, ROWS);
    int64_t wide_bytes = r.plan.component[MEMORY_WEIGHTS];
    runner_forward(&r, tokens, ROWS, 0, want, NULL);
    runner_close(&r);
    runner_open_kept(&r, path, &cpu, ROWS);
    assert_true(r.plan.component[MEMORY_WEIGHTS] < wide_bytes / 3);
    runner_forward(&r, tokens, ROWS, 0, got, NULL);
    double error = 0, size = 0;
    for (int i = 0; i < ROWS * WORDS; i++) {
        error += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    assert_true(size > 0 && error < 0.03 * 0.03 * size);
    /* One at a time: the same bits. */
    for (int32_t i = 0; i < ROWS; i++) {
        runner_forward(&r, tokens + i, 1, i, alone, NULL);
        assert_memory_equal(alone, got + i * WORDS, WORDS * sizeof *alone);
    }
    runner_close(&r);
    free(want), free(got), free(alone);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_rows_come_in_runs_of_one_type),
        TEST(test_a_file_without_blocks_has_no_formats),
        TEST(test_blocks_are_the_rows),
        TEST(test_a_model_of_many_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
