/* Tokenizers against Hugging Face's library: ids and decoded text of hard texts, six families
 * (tests/golden/README.md says what is in the files). */
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
#include "base/utf8.h"
#include "model/tokenizer.h"

struct golden {
    struct tokenizer *t;
    struct cJSON *cases;
    const char *name;
    int n_checked;
};

static void open_golden(struct golden *g, const char *name)
{
    char dir[128], path[160];
    struct error err = {0};
    struct file_map map;
    *g = (struct golden){.name = name};
    snprintf(dir, sizeof dir, "tests/golden/tokenizers/%s", name);
    snprintf(path, sizeof path, "%s/cases.json", dir);
    if (!tokenizer_open_dir(dir, &g->t, &err)) fail_msg("%s", err.text);
    assert_non_null(g->t);
    if (!file_map_open(path, &map, &err)) fail_msg("%s", err.text);
    g->cases = json_parse((const char *)map.data, map.size, 16, path, &err);
    if (!g->cases) fail_msg("%s", err.text);
    file_map_close(&map);
}

static void close_golden(struct golden *g)
{
    cJSON_Delete(g->cases);
    tokenizer_free(g->t);
}

static size_t hex_bytes(const struct cJSON *item, struct buf *out)
{
    const char *hex = item->valuestring;
    unsigned byte;
    buf_clear(out);
    for (; hex[0] && sscanf(hex, "%2x", &byte) == 1; hex += 2) buf_putc(out, (char)byte);
    assert_false(out->failed);
    return out->len;
}

static void check_ids(const struct golden *g, const struct cJSON *item, const char *key, int flags,
                      const struct buf *text, struct token_ids *ids)
{
    const struct cJSON *expected = json_get(item, key), *id;
    struct error err = {0};
    ids->n = 0;
    if (!tokenizer_encode(g->t, text->data, text->len, flags, 1 << 20, ids, &err))
        fail_msg("%s: %s: %s", g->name, json_get(item, "text_hex")->valuestring, err.text);
    size_t i = 0;
    cJSON_ArrayForEach(id, expected) {
        if (i >= ids->n || ids->ids[i] != id->valueint)
            fail_msg("%s: %s: %s of %s: [%zu] is %d, not %d", g->name, key,
                     cJSON_IsString(json_get(item, "text")) ? json_get(item, "text")->valuestring
                                                            : "",
                     json_get(item, "text_hex")->valuestring, i, i < ids->n ? ids->ids[i] : -1,
                     id->valueint);
        i++;
    }
    assert_int_equal(i, ids->n);
}

static void decode(const struct golden *g, const int32_t *ids, size_t n, bool keep_special,
                   struct buf *out)
{
    struct token_decoder d = {.keep_special = keep_special};
    buf_clear(out);
    for (size_t i = 0; i < n; i++) {
        size_t length;
        const char *bytes = token_decode(g->t, &d, ids[i], &length);
        buf_append(out, bytes, length);
    }
    assert_false(out->failed);
}

/* The library's text has U+FFFD where ours has the bytes themselves; how many of them stand for
 * how many bytes differs between its decoders, so only what is valid is compared byte by byte. */
static void check_text(const struct golden *g, const struct cJSON *item, const char *key,
                       const int32_t *ids, size_t n, bool keep_special)
{
    struct buf ours, expected;
    buf_init(&ours, 1 << 20);
    buf_init(&expected, 1 << 20);
    decode(g, ids, n, keep_special, &ours);
    hex_bytes(json_get(item, key), &expected);
    if (!utf8_valid(ours.data ? ours.data : "", ours.len, NULL)) {
        assert_non_null(memmem(expected.data, expected.len, "\xEF\xBF\xBD", 3));
    } else if (ours.len != expected.len ||
               (ours.len && memcmp(ours.data, expected.data, ours.len))) {
        fail_msg("%s: %s: \"%s\", not \"%s\"", g->name, key, ours.data ? ours.data : "",
                 expected.data ? expected.data : "");
    }
    buf_free(&ours);
    buf_free(&expected);
}

static void check_encode_case(struct golden *g, const struct cJSON *item)
{
    struct token_ids ids = {0};
    struct buf text;
    buf_init(&text, 1 << 20);
    hex_bytes(json_get(item, "text_hex"), &text);
    check_ids(g, item, "ids", ENCODE_PARSE_SPECIAL, &text, &ids);
    check_text(g, item, "decoded_hex", ids.ids, ids.n, true);
    check_text(g, item, "decoded_skip_hex", ids.ids, ids.n, false);
    check_ids(g, item, "ids_added", ENCODE_PARSE_SPECIAL | ENCODE_ADD_BOS, &text, &ids);
    check_ids(g, item, "ids_plain", 0, &text, &ids);
    check_text(g, item, "decoded_plain_hex", ids.ids, ids.n, true);
    buf_free(&text);
    token_ids_free(&ids);
    g->n_checked++;
}

static void check_decode_case(struct golden *g, const struct cJSON *item)
{
    int32_t ids[256];
    size_t n = 0;
    const struct cJSON *id;
    cJSON_ArrayForEach(id, json_get(item, "ids")) {
        assert_true(n < 256);
        ids[n++] = id->valueint;
    }
    check_text(g, item, "decoded_hex", ids, n, true);
    g->n_checked++;
}

static void check_family(const char *name, enum tokenizer_kind kind)
{
    struct golden g;
    const struct cJSON *item;
    open_golden(&g, name);
    assert_int_equal(tokenizer_kind(g.t), kind);
    cJSON_ArrayForEach(item, json_get(g.cases, "encode")) check_encode_case(&g, item);
    cJSON_ArrayForEach(item, json_get(g.cases, "decode")) check_decode_case(&g, item);
    assert_true(g.n_checked > 50);
    close_golden(&g);
}

static void test_gpt2(void **state) { check_family("gpt2", TOKENIZER_BYTE_BPE); }
static void test_llama3(void **state) { check_family("llama3", TOKENIZER_BYTE_BPE); }
static void test_qwen2(void **state) { check_family("qwen2", TOKENIZER_BYTE_BPE); }
static void test_smollm(void **state) { check_family("smollm", TOKENIZER_BYTE_BPE); }
static void test_starcoder(void **state) { check_family("starcoder", TOKENIZER_BYTE_BPE); }
static void test_llama2(void **state) { check_family("llama2", TOKENIZER_SENTENCEPIECE); }

/* GPT-2's own files: the ids of whole texts, as tiktoken has them. Data of others: see
 * tests/golden/README.md. */
static void check_file(const struct tokenizer *t, const char *dir, const char *name)
{
    char path[512];
    struct error err = {0};
    struct file_map text, want;
    struct token_ids ids = {0};
    snprintf(path, sizeof path, "%s/%s.txt", dir, name);
    if (!file_map_open(path, &text, &err)) fail_msg("%s", err.text);
    snprintf(path, sizeof path, "%s/%s.u16", dir, name);
    if (!file_map_open(path, &want, &err)) fail_msg("%s", err.text);
    if (!tokenizer_encode(t, (const char *)text.data, text.size, 0, 1 << 20, &ids, &err))
        fail_msg("%s", err.text);
    assert_int_equal(ids.n * 2, want.size);
    assert_true(ids.n > 1000);
    for (size_t i = 0; i < ids.n; i++)
        assert_int_equal(ids.ids[i], want.data[2 * i] | want.data[2 * i + 1] << 8);
    token_ids_free(&ids);
    file_map_close(&text);
    file_map_close(&want);
}

static void test_gpt2_files_equal_tiktoken(void **state)
{
    struct error err = {0};
    struct tokenizer *t;
    char dir[256];
    const char *data = getenv("GPTD_TEST_DATA");
    snprintf(dir, sizeof dir, "%s/gpt2_tokenizer", data ? data : "");
    if (!data || !file_is_dir(dir)) skip();
    if (!tokenizer_open_dir(dir, &t, &err)) fail_msg("%s", err.text);
    assert_non_null(t);
    check_file(t, dir, "shakespeare");
    check_file(t, dir, "commedia");
    check_file(t, dir, "code");
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2),      cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_qwen2),     cmocka_unit_test(test_smollm),
        cmocka_unit_test(test_starcoder), cmocka_unit_test(test_llama2),
        cmocka_unit_test(test_gpt2_files_equal_tiktoken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
