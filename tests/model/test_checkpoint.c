/* Checkpoints of either kind: every golden model opens and reads; whatever does not belong is
 * refused by name; a damaged file is an error, never a crash. */
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
#include "tests/model/checkpoint_util.h"

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
    /* Models of others, where they are: tests/golden/README.md. */
    static const char *const others[] = {"stories260K/stories260K.gguf", "nano_sort"};
    const char *data = getenv("GPTD_TEST_DATA");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", data ? data : "tests/golden", others[i]);
        if (file_exists(path)) check_readable(path);
    }
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

/* ---- What does not belong ---- */

static void test_missing_extra_and_misshapen_tensors_are_refused_by_name(void **state)
{
    struct fake_model m = fake_gpt2("transformer.", true);
    fake_model_add(&m, "transformer.h.2.ln_1.weight", C, 0);
    save_hf(&m, gpt2_config);
    refuse(test_dir(), "tensor transformer.h.2.ln_1.weight [16] has no place");

    m = fake_gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":3,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24}");
    refuse(test_dir(), "lack tensor transformer.h.2.ln_1.weight");

    m = fake_gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":41,\"n_inner\":24}");
    refuse(test_dir(), "transformer.wte.weight has shape [40, 16], but the config calls for "
                       "[41, 16]");

    m = fake_gpt2("transformer.", true);
    save_hf(&m, "{\"model_type\":\"gpt2\",\"n_layer\":900,\"n_head\":2,\"n_embd\":16,"
                "\"n_positions\":12,\"vocab_size\":40,\"n_inner\":24}");
    refuse(test_dir(), "900 layers cannot lie in");
}

/* One bias of a kind makes the kind; the others must then be there. */
static void test_a_bias_in_some_layers_only_is_refused(void **state)
{
    struct fake_model m = fake_gpt2("", false);
    fake_model_add(&m, "h.0.attn.c_attn.bias", 3 * C, 0);
    save_hf(&m, gpt2_config);
    refuse(test_dir(), "lack tensor h.1.attn.c_attn.bias");
    m = fake_gpt2("", false);
    fake_model_add(&m, "h.1.attn.c_attn.bias", 3 * C, 0);
    save_hf(&m, gpt2_config);
    refuse(test_dir(), "tensor h.1.attn.c_attn.bias [48] has no place");
}

static void test_weights_of_another_element_type_are_refused(void **state)
{
    struct fake_model m = fake_gpt2("", true);
    char *type = strstr(m.infos.data, "F32"); /* of wte */
    memcpy(type, "I32", 3);
    save_hf(&m, gpt2_config);
    refuse(test_dir(), "tensor wte.weight has element type I32");
}

static void test_paths_that_are_no_model_are_refused(void **state)
{
    refuse(test_dir(), "has no config.json");
    refuse(in_test_dir("nowhere"), "No such file");
    write_text(test_dir(), "model.safetensors", "");
    refuse(in_test_dir("model.safetensors"), "give the directory");
    write_text(test_dir(), "x.gguf", "");
    refuse(in_test_dir("x.gguf"), "ends inside the magic number");
    write_text(test_dir(), "config.json", gpt2_config);
    refuse(test_dir(), "too few for a safetensors file");
    write_text(test_dir(), "config.json", "");
    refuse(test_dir(), "the text ends where a value should be");
}

/* ---- Fingerprints and damage ---- */

static void test_fingerprint_names_the_weights(void **state)
{
    char first[17], again[17], other[17];
    struct fake_model m = fake_gpt2("", true);
    save_hf(&m, gpt2_config);
    struct checkpoint *ck = open_good(test_dir());
    assert_true(checkpoint_fingerprint(ck, first, NULL));
    assert_true(checkpoint_fingerprint(ck, again, NULL));
    checkpoint_close(ck);
    assert_string_equal(first, again);
    assert_int_equal(strspn(first, "0123456789abcdef"), 16);
    m = fake_gpt2("", true);
    m.data.data[m.data.len - 1] ^= 1;
    save_hf(&m, gpt2_config);
    ck = open_good(test_dir());
    assert_true(checkpoint_fingerprint(ck, other, NULL));
    checkpoint_close(ck);
    assert_string_not_equal(first, other);
}

/* Above a megabyte only samples are read: sizes, headers and the ends always count. */
static void test_fingerprint_of_a_large_file(void **state)
{
    char digests[3][17];
    for (int i = 0; i < 3; i++) {
        struct fake_model m = fake_gpt2("", true);
        fake_model_add(&m, "lm_head.weight", 50000, C); /* not read: tied */
        if (i == 1) m.data.data[m.data.len - 1] ^= 1;
        if (i == 2) m.data.data[0] ^= 1;
        save_hf(&m, gpt2_config);
        struct checkpoint *ck = open_good(test_dir());
        assert_true(checkpoint_file_bytes(ck) > 2 << 20);
        assert_true(checkpoint_fingerprint(ck, digests[i], NULL));
        checkpoint_close(ck);
    }
    assert_string_not_equal(digests[0], digests[1]);
    assert_string_not_equal(digests[0], digests[2]);
    assert_string_not_equal(digests[1], digests[2]);
}

/* Copies the file with one byte changed and opens it. Returns 1 when it is refused, with words. */
static int open_damaged(const char *from, const char *to, size_t at, uint8_t mask)
{
    struct buf b;
    struct checkpoint *ck;
    struct error err = {0};
    buf_init(&b, 64 << 20);
    assert_true(file_read(from, &b, &err));
    b.data[at % b.len] ^= (char)mask;
    write_file(to, b.data, b.len);
    buf_free(&b);
    if (checkpoint_open(strstr(to, ".gguf") ? to : test_dir(), &ck, &err)) {
        checkpoint_close(ck);
        return 0;
    }
    assert_true(err.text[0]);
    return 1;
}

static void test_flipped_bits_in_a_header_are_survived(void **state)
{
    struct fake_model m = fake_gguf("llama");
    char whole[128], damaged[128];
    int refused = 0;
    fake_model_write(&m, in_test_dir("whole.gguf"));
    fake_model_free(&m);
    strcpy(whole, in_test_dir("whole.gguf"));
    strcpy(damaged, in_test_dir("damaged.gguf"));
    for (size_t i = 0; i < 400; i++)
        refused += open_damaged(whole, damaged, i * 5, (uint8_t)(1 << i % 8));

    m = fake_gpt2("", true);
    write_text(test_dir(), "config.json", gpt2_config);
    fake_model_write(&m, in_test_dir("whole.safetensors"));
    fake_model_free(&m);
    strcpy(whole, in_test_dir("whole.safetensors"));
    strcpy(damaged, in_test_dir("model.safetensors"));
    for (size_t i = 0; i < 400; i++)
        refused += open_damaged(whole, damaged, i * 5, (uint8_t)(1 << i % 8));
    assert_true(refused > 500);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_golden_models_open),
        TEST(test_element_types_of_golden_models),
        TEST(test_missing_extra_and_misshapen_tensors_are_refused_by_name),
        TEST(test_a_bias_in_some_layers_only_is_refused),
        TEST(test_weights_of_another_element_type_are_refused),
        TEST(test_paths_that_are_no_model_are_refused),
        TEST(test_fingerprint_names_the_weights),
        TEST(test_fingerprint_of_a_large_file),
        TEST(test_flipped_bits_in_a_header_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
