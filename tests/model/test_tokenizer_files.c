/* Tokenizers of model directories: GPT-2's own files, and what the configurations beside a
 * tokenizer say about markers, stops and templates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/tokenizer.h"
#include "tests/model/token_util.h"

/* ---- A directory that lives for one test ---- */

static const char *const file_names[] = {
    "tokenizer.json",          "vocab.json",  "merges.txt",          "added_tokens.json",
    "tokenizer_config.json",   "config.json", "chat_template.jinja", "generation_config.json",
    "special_tokens_map.json",
};

static int make_dir(void **state)
{
    char *dir = strdup("/tmp/test_tokenizer_files.XXXXXX");
    *state = dir;
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    char path[256];
    for (size_t i = 0; i < sizeof file_names / sizeof file_names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", (char *)*state, file_names[i]);
        unlink(path);
    }
    rmdir(*state);
    free(*state);
    return 0;
}

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    fclose(f);
}

static struct tokenizer *open_dir(const char *dir)
{
    struct tokenizer *t;
    struct error err = {0};
    if (!tokenizer_open_dir(dir, &t, &err)) fail_msg("%s", err.text);
    assert_non_null(t);
    return t;
}

static void assert_refused(const char *dir, enum error_code code, const char *says)
{
    struct tokenizer *t;
    struct error err = {0};
    if (tokenizer_open_dir(dir, &t, &err)) fail_msg("accepted what should fail with: %s", says);
    if (err.code != code || !strstr(err.text, says)) fail_msg("%s; not: %s", err.text, says);
    assert_null(t);
}

/* ---- vocab.json + merges.txt ---- */

static const char vocab[] = "{\"a\": 0, \"b\": 1, \"#\": 2, \"ab\": 3, \"##\": 4, \"\xC4\xA0\": 5,"
                            " \"\xC4\xA0" "ab\": 6, \"<|endoftext|>\": 7,"
                            " \"####\": 10, \"########\": 11}";
static const char merges[] = "#version: 0.2\na b\r\n# #\n\n\xC4\xA0 ab\n## ##\n#### ####";

static void test_gpt2_files(void **state)
{
    write_file(*state, "vocab.json", vocab);
    write_file(*state, "merges.txt", merges);
    struct tokenizer *t = open_dir(*state);
    assert_string_equal(tokenizer_description(t), "byte-level BPE, gpt2, 12 tokens");
    ASSERT_IDS(t, "ab ab##", 0, 3, 6, 4);
    ASSERT_IDS(t, "########", 0, 11); /* a merge that looks like a comment is none */
    ASSERT_IDS(t, "a<|endoftext|>", ENCODE_PARSE_SPECIAL, 0, 7);
    assert_int_equal(tokenizer_eos(t), 7);
    assert_int_equal(tokenizer_bos(t), 7);
    assert_false(tokenizer_adds_bos(t));
    assert_null(tokenizer_chat_template(t));
    tokenizer_free(t);

    write_file(*state, "added_tokens.json", "{\"<|im_end|>\": 9, \"aa\": 8}");
    write_file(*state, "tokenizer_config.json", "{\"add_bos_token\": true}");
    t = open_dir(*state);
    assert_int_equal(tokenizer_vocab_size(t), 12);
    ASSERT_IDS(t, "aaa", 0, 8, 0);
    ASSERT_IDS(t, "a<|im_end|>", ENCODE_PARSE_SPECIAL | ENCODE_ADD_BOS, 7, 0, 9);
    tokenizer_free(t);
}

static void test_gpt2_files_refused(void **state)
{
    write_file(*state, "vocab.json", vocab);
    write_file(*state, "merges.txt", "a b c\n");
    assert_refused(*state, ERR_FORMAT, "not two tokens");
    write_file(*state, "merges.txt", "a #\n");
    assert_refused(*state, ERR_FORMAT, "no token");
    write_file(*state, "merges.txt", "");
    write_file(*state, "vocab.json", "[1]");
    assert_refused(*state, ERR_FORMAT, "vocab.json is an array");
    write_file(*state, "vocab.json", "{\"a\": true}");
    assert_refused(*state, ERR_FORMAT, "no tokens");
    write_file(*state, "vocab.json", "");
    assert_refused(*state, ERR_FORMAT, "vocab.json");
    write_file(*state, "vocab.json", vocab);
    write_file(*state, "added_tokens.json", "{\"x\": \"y\"}");
    assert_refused(*state, ERR_FORMAT, "added_tokens.json");
    write_file(*state, "added_tokens.json", "{\"x\": -1}");
    assert_refused(*state, ERR_FORMAT, "-1");
}

static void test_no_tokenizer(void **state)
{
    struct tokenizer *t;
    struct error err = {0};
    write_file(*state, "config.json", "{}");
    write_file(*state, "vocab.json", vocab); /* half of one */
    assert_true(tokenizer_open_dir(*state, &t, &err));
    assert_null(t);
    assert_true(tokenizer_open_dir("/tmp/no/such/directory", &t, &err));
    assert_null(t);
}

/* ---- What stands beside tokenizer.json ---- */

static const char tokenizer_json[] =
    "{\"added_tokens\": [{\"id\": 2, \"content\": \"<s>\", \"special\": true},"
    "{\"id\": 3, \"content\": \"</s>\", \"special\": true},"
    "{\"id\": 4, \"content\": \"<|im_end|>\", \"special\": true},"
    "{\"id\": 5, \"content\": \"<stop>\", \"special\": true}],"
    "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": []}}";

static void assert_stops(const struct tokenizer *t, int n, const int32_t *expected)
{
    int32_t stops[16];
    assert_int_equal(tokenizer_stop_ids(t, stops, 16), n);
    for (int i = 0; i < n; i++) {
        bool found = false;
        for (int k = 0; k < n; k++) found = found || stops[k] == expected[i];
        assert_true(found);
    }
}

static void test_markers_by_name(void **state)
{
    write_file(*state, "tokenizer.json", tokenizer_json);
    struct tokenizer *t = open_dir(*state);
    assert_int_equal(tokenizer_eos(t), 3); /* the usual name */
    assert_stops(t, 2, (const int32_t[]){3, 4});
    tokenizer_free(t);

    write_file(*state, "special_tokens_map.json",
               "{\"eos_token\": \"<stop>\", \"bos_token\": \"<s>\"}");
    t = open_dir(*state);
    assert_int_equal(tokenizer_eos(t), 5);
    assert_int_equal(tokenizer_bos(t), 2);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_free(t);

    write_file(*state, "tokenizer_config.json",
               "{\"eos_token\": {\"content\": \"<|im_end|>\"}, \"bos_token\": null,"
               "\"add_bos_token\": true, \"chat_template\": \"from the config\"}");
    t = open_dir(*state);
    assert_int_equal(tokenizer_eos(t), 4);
    assert_int_equal(tokenizer_bos(t), 2);
    assert_false(tokenizer_adds_bos(t)); /* not this kind: test_add_bos_token */
    assert_string_equal(tokenizer_chat_template(t), "from the config");
    assert_stops(t, 3, (const int32_t[]){3, 4, 5});
    tokenizer_free(t);
}

static void test_stops_by_number(void **state)
{
    write_file(*state, "tokenizer.json", tokenizer_json);
    write_file(*state, "config.json", "{\"eos_token_id\": 1, \"bos_token_id\": 2}");
    struct tokenizer *t = open_dir(*state);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_bos(t), 2);
    assert_stops(t, 3, (const int32_t[]){1, 3, 4});
    tokenizer_free(t);

    /* generation_config.json goes before config.json; ids that are none are left out. */
    write_file(*state, "generation_config.json", "{\"eos_token_id\": [5, 0, 99, -1, 5, \"x\"]}");
    t = open_dir(*state);
    assert_int_equal(tokenizer_eos(t), 5);
    assert_stops(t, 4, (const int32_t[]){5, 0, 3, 4});
    tokenizer_free(t);
}

static void test_chat_templates(void **state)
{
    write_file(*state, "tokenizer.json", tokenizer_json);
    write_file(*state, "tokenizer_config.json",
               "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"R\"},"
               "{\"name\": \"default\", \"template\": \"D\"}]}");
    struct tokenizer *t = open_dir(*state);
    assert_string_equal(tokenizer_chat_template(t), "D");
    tokenizer_free(t);
    write_file(*state, "chat_template.jinja", "from the file");
    t = open_dir(*state);
    assert_string_equal(tokenizer_chat_template(t), "from the file");
    tokenizer_free(t);
}

static void test_broken_configurations(void **state)
{
    write_file(*state, "tokenizer.json", "");
    assert_refused(*state, ERR_FORMAT, "tokenizer.json");
    write_file(*state, "tokenizer.json", tokenizer_json);
    write_file(*state, "generation_config.json", "{\"eos_token_id\": 1,}");
    assert_refused(*state, ERR_FORMAT, "generation_config.json");
}

/* Where tokenizer.json says how to begin a text, only the SentencePiece classes listen to this
 * flag. */
static void test_add_bos_token(void **state)
{
    struct tokenizer *t;
    write_file(*state, "tokenizer.json",
               "{\"added_tokens\": [{\"id\": 2, \"content\": \"<s>\", \"special\": true}],"
               "\"decoder\": {\"type\": \"ByteFallback\"},"
               "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1}, \"merges\": [],"
               "\"byte_fallback\": true}}");
    write_file(*state, "tokenizer_config.json",
               "{\"add_bos_token\": true, \"bos_token\": \"<s>\"}");
    t = open_dir(*state);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_SENTENCEPIECE);
    assert_true(tokenizer_adds_bos(t));
    ASSERT_IDS(t, "a", ENCODE_ADD_BOS, 2, 0);
    tokenizer_free(t);
    write_file(*state, "tokenizer.json", tokenizer_json);
    t = open_dir(*state);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_free(t);
}

#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(test_gpt2_files),     IN_DIR(test_gpt2_files_refused),
        IN_DIR(test_no_tokenizer),   IN_DIR(test_markers_by_name),
        IN_DIR(test_stops_by_number), IN_DIR(test_chat_templates),
        IN_DIR(test_broken_configurations), IN_DIR(test_add_bos_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
