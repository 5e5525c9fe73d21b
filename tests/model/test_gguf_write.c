/* GGUF files that gptd writes: keys and tensors come back; every golden model that GGUF can express
 * has the same weights and logits from the file; what it cannot express is refused. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/checkpoint_write_gguf.h"
#include "model/dtype_write.h"
#include "model/gguf_write.h"
#include "tests/model/checkpoint_util.h"
#include "tests/model/model_runner.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* ---- The format ---- */

static bool read_tag(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                     uint8_t *out, struct error *err)
{
    for (int64_t i = 0; i < n; i++) out[i] = (uint8_t)(offset + i + t->tag);
    return true;
}

static void put_all_kinds(struct gguf_meta *m)
{
    gguf_meta_string(m, "general.architecture", "llama", 5);
    gguf_meta_u32(m, "u", 4000000000u);
    gguf_meta_f32(m, "f", 0.1f);
    gguf_meta_bool(m, "yes", true);
    gguf_meta_bool(m, "no", false);
    gguf_meta_string(m, "text", "a\0b", 3);
    gguf_meta_array(m, "strings", GGUF_STRING, 3);
    gguf_item_string(m, "", 0);
    gguf_item_string(m, "é", 2);
    gguf_item_string(m, "abc", 3);
    gguf_meta_array(m, "ints", GGUF_I32, 2);
    gguf_item_i32(m, -5);
    gguf_item_i32(m, 7);
    gguf_meta_array(m, "floats", GGUF_F32, 1);
    gguf_item_f32(m, -0.5f);
    gguf_meta_array(m, "nothing", GGUF_STRING, 0);
}
enum { N_KINDS_PUT = 10 };

static void check_all_kinds(const struct gguf *g)
{
    int64_t i;
    double f;
    bool b;
    struct gguf_string s;
    size_t cursor = 0;
    assert_int_equal(g->n_values, N_KINDS_PUT);
    assert_true(gguf_get_i64(gguf_find(g, "u"), &i) && i == 4000000000);
    assert_true(gguf_get_f64(gguf_find(g, "f"), &f) && (float)f == 0.1f);
    assert_true(gguf_get_bool(gguf_find(g, "yes"), &b) && b);
    assert_true(gguf_get_bool(gguf_find(g, "no"), &b) && !b);
    assert_true(gguf_get_string(gguf_find(g, "text"), &s));
    assert_int_equal(s.len, 3);
    assert_memory_equal(s.data, "a\0b", 3);
    const struct gguf_value *strings = gguf_find(g, "strings");
    assert_true(gguf_next_string(strings, &cursor, &s) && s.len == 0);
    assert_true(gguf_next_string(strings, &cursor, &s) && s.len == 2);
    assert_true(gguf_next_string(strings, &cursor, &s) && memcmp(s.data, "abc", 3) == 0);
    assert_false(gguf_next_string(strings, &cursor, &s));
    assert_true(gguf_item_i64(gguf_find(g, "ints"), 0, &i) && i == -5);
    assert_true(gguf_item_f64(gguf_find(g, "floats"), 0, &f) && f == -0.5);
    assert_int_equal(gguf_find(g, "nothing")->count, 0);
}

static void test_keys_and_tensors_come_back(void **state)
{
    struct gguf_meta m, copy;
    struct gguf *g, *again;
    struct error err = {0};
    const struct tensor_source tensors[] = {
        {.name = "odd", .dtype = DTYPE_F32, .n_dims = 1, .dims = {3}, .bytes = 12, .read = read_tag,
         .tag = 1},
        {.name = "half", .dtype = DTYPE_F16, .n_dims = 2, .dims = {5, 2}, .bytes = 20,
         .read = read_tag, .tag = 2},
        {.name = "blocks", .dtype = DTYPE_Q8_0, .n_dims = 2, .dims = {3, 64}, .bytes = 204,
         .read = read_tag, .tag = 3},
    };
    gguf_meta_init(&m);
    put_all_kinds(&m);
    must(gguf_write(in_test_dir("x.gguf"), &m, tensors, 3, &err), &err);
    gguf_meta_free(&m);
    must(gguf_open(in_test_dir("x.gguf"), &g, &err), &err);
    check_all_kinds(g);
    assert_int_equal(g->version, 3);
    assert_int_equal(g->n_tensors, 3);
    for (size_t i = 0; i < 3; i++) {
        const struct gguf_tensor *t = &g->tensors[i];
        assert_int_equal(t->dtype, tensors[i].dtype);
        assert_int_equal(t->size, tensors[i].bytes);
        assert_int_equal(t->dims[0], tensors[i].dims[t->n_dims - 1]);
        assert_int_equal((t->data - g->map.data) % 32, 0);
        for (int64_t b = 0; b < t->size; b++)
            assert_int_equal(t->data[b], (uint8_t)(b + (int64_t)i + 1));
    }
    /* Values of another file, as they are. */
    gguf_meta_init(&copy);
    for (size_t i = 0; i < g->n_values; i++) gguf_meta_copy(&copy, &g->values[i]);
    must(gguf_write(in_test_dir("y.gguf"), &copy, NULL, 0, &err), &err);
    gguf_meta_free(&copy);
    must(gguf_open(in_test_dir("y.gguf"), &again, &err), &err);
    check_all_kinds(again);
    gguf_close(again);
    gguf_close(g);
}

/* ---- Element types ---- */

static void test_element_types_round_as_they_should(void **state)
{
    static const struct { enum dtype dtype; float error; } types[] = {
        {DTYPE_F32, 0}, {DTYPE_BF16, 1.0f / 256}, {DTYPE_F16, 1.0f / 2048},
    };
    enum { N = 96 };
    float x[N], y[N];
    uint8_t bytes[N * 4];
    for (int i = 0; i < N; i++) x[i] = sinf((float)i * 1.7f) * expf((float)(i % 7) - 3);
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        dtype_from_f32(types[t].dtype, x, N, bytes);
        dtype_to_f32(types[t].dtype, bytes, N, y);
        for (int i = 0; i < N; i++) assert_true(fabsf(x[i] - y[i]) <= fabsf(x[i]) * types[t].error);
    }
    /* A block of 32 shares a scale: the largest / 127, and each code is the nearest. */
    dtype_from_f32(DTYPE_Q8_0, x, N, bytes);
    dtype_to_f32(DTYPE_Q8_0, bytes, N, y);
    for (int block = 0; block < N; block += 32) {
        float largest = 0;
        for (int i = block; i < block + 32; i++) largest = fmaxf(largest, fabsf(x[i]));
        for (int i = block; i < block + 32; i++)
            assert_true(fabsf(x[i] - y[i]) <= largest / 127 * 0.5f + largest / 2000);
    }
    assert_true(dtype_is_written(DTYPE_Q8_0) && !dtype_is_written(DTYPE_Q4_K));
}

static void test_q8_0_of_odd_values(void **state)
{
    float x[64] = {0}, y[64];
    uint8_t bytes[68];
    x[33] = -254;
    x[34] = 127;
    x[35] = 1e-30f;
    dtype_from_f32(DTYPE_Q8_0, x, 64, bytes);
    dtype_to_f32(DTYPE_Q8_0, bytes, 64, y);
    for (int i = 0; i < 32; i++) assert_true(y[i] == 0);
    assert_true(y[32] == 0 && y[33] == -254 && y[34] == 128 && y[35] == 0);
    x[40] = NAN; /* its block has no scale */
    dtype_from_f32(DTYPE_Q8_0, x, 64, bytes);
    dtype_to_f32(DTYPE_Q8_0, bytes, 64, y);
    for (int i = 0; i < 64; i++) assert_true(i < 32 ? y[i] == 0 : isnan(y[i]));
    for (int i = 0; i < 64; i++) x[i] = 1e-43f; /* a scale below what f16 holds */
    dtype_from_f32(DTYPE_Q8_0, x, 64, bytes);
    dtype_to_f32(DTYPE_Q8_0, bytes, 64, y);
    for (int i = 0; i < 64; i++) assert_true(y[i] == 0);
}

static void test_rounding_in_place(void **state)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_Q8_0};
    for (size_t t = 0; t < 4; t++) {
        float x[64];
        uint8_t apart[256];
        for (int i = 0; i < 64; i++) x[i] = cosf((float)i);
        dtype_from_f32(dtypes[t], x, 64, apart);
        dtype_from_f32(dtypes[t], x, 64, x);
        assert_memory_equal(x, apart, (size_t)dtype_bytes(dtypes[t], 64));
    }
}

/* ---- Models ---- */

static struct checkpoint *write_and_open(const struct checkpoint *ck, enum dtype dtype)
{
    struct error err = {0};
    struct weight_source source = weight_source_of_checkpoint(ck);
    struct gguf_export e = {.source = &source, .dtype = dtype, .name = "test"};
    must(checkpoint_write_gguf(&e, in_test_dir("x.gguf"), &err), &err);
    return open_good(in_test_dir("x.gguf"));
}

/* Every weight of b is that of a as `dtype` rounds it: to the bit, or for q8_0 nearly. */
static void check_weights(const struct checkpoint *a, const struct checkpoint *b, enum dtype dtype)
{
    int64_t n_out, n_in, n, n_b;
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        if (!weight_role_shape(checkpoint_config(a), role, &n_out, &n_in)) continue;
        bool matrix = n_out > 1 && role != WEIGHT_POSITION_EMBEDDING;
        for (int64_t layer = 0; layer < (weight_role_is_layer(role) ? 2 : 1); layer++) {
            float *x = read_all(a, role, layer, &n), *y = read_all(b, role, layer, &n_b);
            assert_int_equal(n, n_b);
            for (int64_t i = 0; i < n; i++) {
                float expected = x[i];
                if (matrix && dtype == DTYPE_BF16) expected = bf16_to_f32(f32_to_bf16(x[i]));
                if (matrix && dtype == DTYPE_F16) expected = f16_to_f32(f32_to_f16(x[i]));
                bool same = matrix && dtype == DTYPE_Q8_0 ? fabsf(x[i] - y[i]) < 0.02f
                                                          : expected == y[i];
                if (!same) fail_msg("%s[%d]: %g is not %g", weight_role_name(role), (int)i,
                                    (double)y[i], (double)expected);
            }
            free(x);
            free(y);
        }
    }
}

static void check_logits(const char *path)
{
    static const struct cpu_options one_thread = {.n_threads = 1, .isa = CPU_ISA_BEST};
    const int32_t tokens[] = {5, 90, 7, 7, 31, 2, 64};
    const char *paths[2] = {path, NULL};
    float *logits[2];
    int64_t n = 0;
    char gguf[128];
    snprintf(gguf, sizeof gguf, "%s", in_test_dir("x.gguf"));
    paths[1] = gguf;
    for (int i = 0; i < 2; i++) {
        struct model_runner r;
        runner_open(&r, paths[i], DTYPE_F32, &one_thread, 7);
        n = 7 * r.gpt.config.vocab_size;
        logits[i] = malloc((size_t)n * sizeof *logits[i]);
        runner_forward(&r, tokens, 7, 0, logits[i], NULL);
        runner_close(&r);
    }
    assert_memory_equal(logits[0], logits[1], (size_t)n * sizeof *logits[0]);
    free(logits[0]);
    free(logits[1]);
}

static void test_golden_models_come_back(void **state)
{
    static const struct { const char *path, *arch; bool all_types; } goldens[] = {
        {"tests/golden/gpt2", "gpt2", true},
        {"tests/golden/llama", "llama", true},
        {"tests/golden/llama3", "llama", false},
        {"tests/golden/llama_linear", "llama", false},
        {"tests/golden/mistral", "llama", false},
        {"tests/golden/qwen2", "qwen2", true},
        {"tests/golden/qwen3", "qwen3", true},
    };
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_Q8_0};
    for (size_t i = 0; i < sizeof goldens / sizeof *goldens; i++) {
        struct checkpoint *ck = open_good(goldens[i].path);
        for (size_t t = 0; t < (goldens[i].all_types ? 4 : 1); t++) {
            struct checkpoint *gguf = write_and_open(ck, dtypes[t]);
            const struct gpt_config *a = checkpoint_config(ck), *b = checkpoint_config(gguf);
            assert_string_equal(b->arch, goldens[i].arch);
            assert_int_equal(b->block_size, a->block_size);
            assert_int_equal(b->head_dim, a->head_dim);
            assert_int_equal(b->tie_weights, a->tie_weights);
            assert_int_equal(b->rope_scaling, a->rope_scaling);
            assert_true(b->norm_eps == a->norm_eps);
            check_weights(ck, gguf, dtypes[t]);
            checkpoint_close(gguf);
            if (dtypes[t] == DTYPE_F32) check_logits(goldens[i].path);
        }
        checkpoint_close(ck);
    }
}

/* Rows of 24 do not fill blocks of 32: those matrices fall back to f16, the others do not. */
static void test_rows_that_do_not_fill_blocks_are_stored_as_f16(void **state)
{
    struct fake_model m = fake_gpt2("", true);
    struct checkpoint_tensor t;
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(test_dir());
    struct checkpoint *gguf = write_and_open(ck, DTYPE_Q8_0);
    for (int64_t i = 0; i < checkpoint_n_tensors(gguf); i++) {
        checkpoint_tensor(gguf, i, &t);
        bool vector = t.n_dims == 1 || strstr(t.name, "position");
        assert_int_equal(t.dtype, vector ? DTYPE_F32 : DTYPE_F16);
    }
    checkpoint_close(gguf);
    checkpoint_close(ck);
    ck = open_good("models/shakespeare");
    gguf = write_and_open(ck, DTYPE_Q8_0);
    assert_int_equal(checkpoint_dtype(gguf), DTYPE_Q8_0);
    checkpoint_close(gguf);
    checkpoint_close(ck);
}

static void refuse_config(const struct gpt_config *c, const char *why)
{
    struct error err = {0};
    struct weight_source source = {.config = c};
    struct gguf_export e = {.source = &source, .dtype = DTYPE_F32, .name = "test"};
    assert_false(checkpoint_write_gguf(&e, in_test_dir("x.gguf"), &err));
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_false(file_exists(in_test_dir("x.gguf")));
}

static void test_models_that_gguf_cannot_express_are_refused(void **state)
{
    struct checkpoint *ck = open_good("tests/golden/gpt2");
    struct gpt_config c = *checkpoint_config(ck);
    c.mlp_type = MLP_GELU_EXACT;
    refuse_config(&c, "the exact GELU");
    c = *checkpoint_config(ck);
    c.bias_lm_head = true;
    refuse_config(&c, "this combination");
    checkpoint_close(ck);
    ck = open_good("tests/golden/qwen3");
    c = *checkpoint_config(ck);
    c.bias_qkv = true;
    refuse_config(&c, "norms of q and k beside biases");
    c = *checkpoint_config(ck);
    c.rope_scaling = ROPE_SCALING_LLAMA3;
    refuse_config(&c, "norms of q and k beside Llama 3's");
    checkpoint_close(ck);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_keys_and_tensors_come_back),
        TEST(test_element_types_round_as_they_should),
        TEST(test_q8_0_of_odd_values),
        TEST(test_rounding_in_place),
        TEST(test_golden_models_come_back),
        TEST(test_rows_that_do_not_fill_blocks_are_stored_as_f16),
        TEST(test_models_that_gguf_cannot_express_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
