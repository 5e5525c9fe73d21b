/* Tokenizers written as GGUF metadata and, from there, as tokenizer.json: every hard text of the
 * golden files gets the same ids from all three. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "model/tokenizer_export.h"
#include "tests/model/checkpoint_util.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* Through a GGUF file for a model of vocab_size rows. */
static struct tokenizer *through_gguf(const struct tokenizer *t, int64_t vocab_size)
{
    struct gguf_meta m;
    struct gguf *g;
    struct tokenizer *read;
    struct error err = {0};
    gguf_meta_init(&m);
    must(tokenizer_export_gguf(t, vocab_size, &m, &err), &err);
    must(gguf_write(in_test_dir("t.gguf"), &m, NULL, 0, &err), &err);
    gguf_meta_free(&m);
    must(gguf_open(in_test_dir("t.gguf"), &g, &err), &err);
    must(tokenizer_open_gguf(g, &read, &err), &err);
    gguf_close(g);
    assert_non_null(read);
    return read;
}

/* Through a directory with tokenizer.json and tokenizer_config.json. */
static struct tokenizer *through_json(const struct tokenizer *t)
{
    struct buf text;
    struct tokenizer *read;
    struct error err = {0};
    buf_init(&text, 64 << 20);
    must(tokenizer_export_json(t, &text, &err), &err);
    write_text(test_dir(), "tokenizer.json", text.data);
    buf_clear(&text);
    must(tokenizer_export_config(t, &text, &err), &err);
    write_text(test_dir(), "tokenizer_config.json", text.data);
    buf_free(&text);
    must(tokenizer_open_dir(test_dir(), &read, &err), &err);
    assert_non_null(read);
    return read;
}

static void check_same_ids(const struct tokenizer *a, const struct tokenizer *b, const char *text,
                           size_t n, int flags, const char *name)
{
    struct token_ids x = {0}, y = {0};
    struct error err = {0};
    must(tokenizer_encode(a, text, n, flags, 1 << 20, &x, &err), &err);
    must(tokenizer_encode(b, text, n, flags, 1 << 20, &y, &err), &err);
    if (x.n != y.n || (x.n && memcmp(x.ids, y.ids, x.n * sizeof *x.ids) != 0))
        fail_msg("%s: other ids for \"%.*s\"", name, (int)n, text);
    token_ids_free(&x);
    token_ids_free(&y);
}

/* Hex digits are how the golden files write texts that JSON cannot. */
static size_t from_hex(const char *hex, char *out)
{
    size_t n = 0;
    unsigned byte;
    for (; hex[0] && sscanf(hex, "%2x", &byte) == 1; hex += 2) out[n++] = (char)byte;
    return n;
}

static int check_same(const struct tokenizer *a, const struct tokenizer *b, const char *name)
{
    char path[160];
    struct error err = {0};
    struct file_map map;
    int n_checked = 0;
    snprintf(path, sizeof path, "tests/golden/tokenizers/%s/cases.json", name);
    must(file_map_open(path, &map, &err), &err);
    struct cJSON *root = json_parse((const char *)map.data, map.size, 16, path, &err);
    must(root != NULL, &err);
    file_map_close(&map);
    const struct cJSON *item;
    cJSON_ArrayForEach(item, json_get(root, "encode")) {
        const char *hex = json_get(item, "text_hex")->valuestring;
        char *text = malloc(strlen(hex) + 1);
        size_t n = from_hex(hex, text);
        /* llama2's merges make special tokens of plain text; from GGUF none ever comes of it. */
        if (tokenizer_kind(a) != TOKENIZER_SENTENCEPIECE || !memmem(text, n, "<|", 2))
            check_same_ids(a, b, text, n, 0, name);
        /* How special tokens strip white space is what GGUF loses. */
        bool strips = memmem(text, n, "<mask>", 6) || memmem(text, n, "<sep>", 5);
        if (!strips) check_same_ids(a, b, text, n, ENCODE_PARSE_SPECIAL | ENCODE_ADD_BOS, name);
        free(text);
        n_checked++;
    }
    cJSON_Delete(root);
    assert_int_equal(tokenizer_bos(a), tokenizer_bos(b));
    assert_int_equal(tokenizer_eos(a), tokenizer_eos(b));
    assert_int_equal(tokenizer_adds_bos(a), tokenizer_adds_bos(b));
    for (int32_t id = 0; id < tokenizer_vocab_size(a); id++) {
        size_t n, m;
        const char *x = tokenizer_token_bytes(a, id, &n), *y = tokenizer_token_bytes(b, id, &m);
        if (x && (n != m || memcmp(x, y, n) != 0)) fail_msg("%s: token %d", name, id);
        if (x) assert_int_equal(tokenizer_is_special(a, id), tokenizer_is_special(b, id));
    }
    return n_checked;
}

static void test_golden_tokenizers_keep_their_ids(void **state)
{
    static const char *const names[] = {"gpt2", "llama2", "llama3", "qwen2", "smollm", "starcoder"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char dir[128];
        struct tokenizer *t;
        struct error err = {0};
        snprintf(dir, sizeof dir, "tests/golden/tokenizers/%s", names[i]);
        must(tokenizer_open_dir(dir, &t, &err), &err);
        /* A model with more rows than there are tokens, as padded vocabularies have. */
        struct tokenizer *gguf = through_gguf(t, tokenizer_vocab_size(t) + 13);
        assert_true(check_same(t, gguf, names[i]) > 20);
        struct tokenizer *json = through_json(gguf);
        assert_true(check_same(t, json, names[i]) > 20);
        tokenizer_free(json);
        tokenizer_free(gguf);
        tokenizer_free(t);
    }
}

static struct tokenizer *from_json(const char *json)
{
    struct tokenizer *t;
    struct error err = {0};
    must(tokenizer_open_json(json, strlen(json), "test", &t, &err), &err);
    return t;
}

static void test_characters(void **state)
{
    struct tokenizer *t = from_json("{\"model\":{\"type\":\"BPE\",\"vocab\":{\" \":0,\"a\":1,"
                                    "\"\\n\":2,\"é\":3,\"漢\":4},\"merges\":[]}}");
    assert_int_equal(tokenizer_kind(t), TOKENIZER_CHARACTER);
    struct tokenizer *gguf = through_gguf(t, 5);
    static const char text[] = " a\n漢é a  aé\n\n";
    check_same_ids(t, gguf, text, strlen(text), 0, "characters");
    assert_int_equal(tokenizer_bos(gguf), -1);
    assert_int_equal(tokenizer_eos(gguf), -1);
    tokenizer_free(gguf);
    tokenizer_free(t);
}

static void refuse_export(const char *json, int64_t vocab_size, const char *why)
{
    struct tokenizer *t = from_json(json);
    struct gguf_meta m;
    struct error err = {0};
    gguf_meta_init(&m);
    assert_false(tokenizer_export_gguf(t, vocab_size, &m, &err));
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    gguf_meta_free(&m);
    tokenizer_free(t);
}

static void test_tokenizers_that_gguf_cannot_express_are_refused(void **state)
{
#define BYTE_LEVEL(rest) "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":" rest "}"
#define MODEL \
    ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}"
    refuse_export("{" BYTE_LEVEL("true") MODEL, 3, "a space put before");
    refuse_export("{" BYTE_LEVEL("false") MODEL, 2, "ids up to 2, the model 2 rows");
    refuse_export("{\"normalizer\":{\"type\":\"NFC\"}," BYTE_LEVEL("false") MODEL, 3,
                  "its pre-tokenizer");
    refuse_export("{\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"x\"}," BYTE_LEVEL("false")
                  MODEL, 3, "its normalizers");
    refuse_export("{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                  "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},\"behavior\":\"Isolated\"},"
                  "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}" MODEL,
                  3, "its pre-tokenizer");
    refuse_export("{\"x\":0" MODEL, 3, "without byte fallback");
    refuse_export("{\"added_tokens\":[{\"id\":3,\"content\":\"<t>\",\"lstrip\":true,\"special\":"
                  "false}]," BYTE_LEVEL("false") MODEL, 4, "an added token that looks");
    refuse_export("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"▁\":0,\" \":1},\"merges\":[]}}", 2,
                  "U+2581");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_golden_tokenizers_keep_their_ids),
        TEST(test_characters),
        TEST(test_tokenizers_that_gguf_cannot_express_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
