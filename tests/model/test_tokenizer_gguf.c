/* Tokenizers from GGUF metadata, written here byte by byte: SentencePiece's merging against its
 * definition, GPT-2's model, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "tests/model/token_util.h"

/* ---- A GGUF file in memory ---- */

struct writer {
    struct buf body;
    uint64_t n_values;
};

static void put(struct buf *b, const void *bytes, size_t n) { buf_append(b, bytes, n); }
static void put_u32(struct buf *b, uint32_t v) { put(b, &v, 4); }
static void put_u64(struct buf *b, uint64_t v) { put(b, &v, 8); }

static void put_string(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static void key(struct writer *w, const char *name, enum gguf_type type)
{
    put_string(&w->body, name);
    put_u32(&w->body, type);
    w->n_values++;
}

static void add_string(struct writer *w, const char *name, const char *value)
{
    key(w, name, GGUF_STRING);
    put_string(&w->body, value);
}

static void add_u32(struct writer *w, const char *name, uint32_t value)
{
    key(w, name, GGUF_U32);
    put_u32(&w->body, value);
}

static void add_bool(struct writer *w, const char *name, bool value)
{
    key(w, name, GGUF_BOOL);
    put(&w->body, &(uint8_t){value}, 1);
}

static void add_array(struct writer *w, const char *name, enum gguf_type type, uint64_t n)
{
    key(w, name, GGUF_ARRAY);
    put_u32(&w->body, type);
    put_u64(&w->body, n);
}

static void add_strings(struct writer *w, const char *name, const char *const *items, size_t n)
{
    add_array(w, name, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) put_string(&w->body, items[i]);
}

/* Opens what was written, frees it. */
static bool finish(struct writer *w, struct tokenizer **t, struct error *err)
{
    struct buf file;
    struct gguf *g;
    buf_init(&file, 1 << 20);
    put(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, 0);
    put_u64(&file, w->n_values);
    buf_append(&file, w->body.data, w->body.len);
    for (int i = 0; i < 64; i++) buf_putc(&file, 0);
    if (!gguf_open_bytes((const uint8_t *)file.data, file.len, "test.gguf", &g, err))
        fail_msg("%s", err->text);
    *t = NULL;
    bool ok = tokenizer_open_gguf(g, t, err);
    gguf_close(g);
    buf_free(&file); /* the tokenizer borrows nothing */
    buf_free(&w->body);
    return ok;
}

static struct tokenizer *open_written(struct writer *w)
{
    struct tokenizer *t;
    struct error err = {0};
    if (!finish(w, &t, &err)) fail_msg("%s", err.text);
    assert_non_null(t);
    return t;
}

/* ---- SentencePiece ---- */

#define MARK "\xE2\x96\x81"
static const struct { const char *text; float score; int32_t type; } pieces[] = {
    {"<unk>", 0, 2},     {"<s>", 0, 3},       {"</s>", 0, 3},     {"<0xC3>", 0, 6},
    {"<0xA9>", 0, 6},    {MARK, -10, 1},      {"a", -11, 1},      {"b", -12, 1},
    {"c", -13, 1},       {"ab", -3, 1},       {"bc", -2, 1},      {MARK "a", -4, 1},
    {"abc", -5, 1},      {"aa", -3, 1},       {MARK "b", -1, 4},  {"<", -14, 1},
    {"/", -15, 1},       {"s", -16, 1},       {">", -17, 1},      {"</", -6, 1},
    {"s>", -7, 1},       {"\xC3\xAA" "b", -1, 1}, {"-0", -0.0f, 1},
};
enum { N_PIECES = sizeof pieces / sizeof pieces[0] };

static void write_pieces(struct writer *w)
{
    *w = (struct writer){0};
    buf_init(&w->body, 1 << 20);
    add_string(w, "tokenizer.ggml.model", "llama");
    add_array(w, "tokenizer.ggml.tokens", GGUF_STRING, N_PIECES);
    for (int i = 0; i < N_PIECES; i++) put_string(&w->body, pieces[i].text);
    add_array(w, "tokenizer.ggml.scores", GGUF_F32, N_PIECES);
    for (int i = 0; i < N_PIECES; i++) put(&w->body, &pieces[i].score, 4);
    add_array(w, "tokenizer.ggml.token_type", GGUF_I32, N_PIECES);
    for (int i = 0; i < N_PIECES; i++) put(&w->body, &pieces[i].type, 4);
    add_u32(w, "tokenizer.ggml.bos_token_id", 1);
    add_u32(w, "tokenizer.ggml.eos_token_id", 2);
    add_u32(w, "tokenizer.ggml.unknown_token_id", 0);
}

static void test_sentencepiece(void **state)
{
    struct writer w;
    write_pieces(&w);
    struct tokenizer *t = open_written(&w);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_SENTENCEPIECE);
    assert_int_equal(tokenizer_bos(t), 1);
    assert_true(tokenizer_adds_bos(t));
    ASSERT_IDS(t, "a", ENCODE_ADD_BOS, 1, 11);
    ASSERT_IDS(t, "abc", 0, 11, 10);        /* bc before ab; then _a; a_bc is no piece */
    ASSERT_IDS(t, "ca", 0, 5, 8, 6);        /* nothing merges */
    ASSERT_IDS(t, "aaa", 0, 5, 13, 6); /* of equals the leftmost: aa + a, and _ is left alone */
    ASSERT_IDS(t, "c\xC3\xA9", 0, 5, 8, 3, 4); /* the bytes of what has no piece */
    ASSERT_IDS(t, "c\xC3\xAA" "b", 0, 5, 8, 21); /* unless it is part of a piece */
    ASSERT_IDS(t, "c\xC4\x80\xC4\x81" "c", 0, 5, 8, 0, 8); /* no bytes: one unk for the run */
    tokenizer_free(t);
}

/* The text of a control token is text, even where its parts are pieces whose sum it would be. */
static void test_control_tokens_do_not_come_out_of_text(void **state)
{
    struct writer w;
    write_pieces(&w);
    struct tokenizer *t = open_written(&w);
    ASSERT_IDS(t, "c</s>", 0, 5, 8, 19, 20);
    ASSERT_IDS(t, "c</s>", ENCODE_PARSE_SPECIAL, 5, 8, 2);
    ASSERT_IDS(t, "</s>c", ENCODE_PARSE_SPECIAL, 2, 5, 8); /* a prefix space after it, too */
    ASSERT_IDS(t, "c b", 0, 5, 8, 14);       /* user-defined "_b" matches the text " b" first */
    tokenizer_free(t);
}

static void test_leading_space_is_stripped_once(void **state)
{
    struct writer w;
    size_t n;
    write_pieces(&w);
    struct tokenizer *t = open_written(&w);
    struct token_decoder d = {0};
    token_decode(t, &d, 1, &n); /* <s> is left out and does not count */
    assert_int_equal(n, 0);
    assert_memory_equal(token_decode(t, &d, 11, &n), "a", 1);
    assert_int_equal(n, 1);
    assert_memory_equal(token_decode(t, &d, 11, &n), " a", 2);
    assert_int_equal(n, 2);
    assert_memory_equal(token_decode(t, &d, 3, &n), "\xC3", 1);
    assert_int_equal(n, 1);
    tokenizer_free(t);

    write_pieces(&w);
    add_bool(&w, "tokenizer.ggml.add_space_prefix", false);
    add_bool(&w, "tokenizer.ggml.add_bos_token", false);
    t = open_written(&w);
    assert_false(tokenizer_adds_bos(t));
    ASSERT_IDS(t, "a a", 0, 6, 11);
    d = (struct token_decoder){0};
    token_decode(t, &d, 11, &n);
    assert_int_equal(n, 2);
    tokenizer_free(t);
}

/* ---- GPT-2's model ---- */

static void write_gpt2(struct writer *w, const char *pre)
{
    static const char *const tokens[] = {"a", "b", "\xC4\xA0", "ab", "\xC4\xA0" "ab", "1", "11",
                                         "<|im_end|>", "<|start|>", "<|endoftext|>", "[tool]"};
    static const char *const merges[] = {"a b", "\xC4\xA0 ab", "1 1"};
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 4};
    *w = (struct writer){0};
    buf_init(&w->body, 1 << 20);
    add_string(w, "tokenizer.ggml.model", "gpt2");
    if (pre) add_string(w, "tokenizer.ggml.pre", pre);
    add_strings(w, "tokenizer.ggml.tokens", tokens, 11);
    add_strings(w, "tokenizer.ggml.merges", merges, 3);
    add_array(w, "tokenizer.ggml.token_type", GGUF_I32, 11);
    put(&w->body, types, sizeof types);
    add_u32(w, "tokenizer.ggml.eos_token_id", 9);
    add_string(w, "tokenizer.chat_template", "{{ messages }}");
}

static void test_gpt2_model(void **state)
{
    struct writer w;
    int32_t stops[8];
    write_gpt2(&w, "gpt-2");
    struct tokenizer *t = open_written(&w);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_BYTE_BPE);
    assert_string_equal(tokenizer_description(t), "byte-level BPE, gpt2, 11 tokens");
    assert_string_equal(tokenizer_chat_template(t), "{{ messages }}");
    ASSERT_IDS(t, "ab ab11", 0, 3, 4, 6);
    ASSERT_IDS(t, "ab<|im_end|>", ENCODE_PARSE_SPECIAL, 3, 7);
    ASSERT_IDS(t, "ab[tool]ab", 0, 3, 10, 3);
    assert_int_equal(tokenizer_eos(t), 9);
    assert_int_equal(tokenizer_bos(t), -1);
    assert_false(tokenizer_adds_bos(t));
    assert_int_equal(tokenizer_stop_ids(t, stops, 8), 2);
    assert_int_equal(stops[0], 9);
    assert_int_equal(stops[1], 7);
    tokenizer_free(t);
}

/* SmolLM2 names its end of text as the unknown token, and lacks a few control characters. */
static void test_unknown_bytes_do_not_become_the_end_of_text(void **state)
{
    struct writer w;
    struct token_ids ids = {0};
    struct error err = {0};
    write_gpt2(&w, "smollm");
    add_u32(&w, "tokenizer.ggml.unknown_token_id", 9);
    struct tokenizer *t = open_written(&w);
    assert_false(tokenizer_encode(t, "ab\x04", 3, 0, 10, &ids, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "U+0004"));
    assert_non_null(strstr(err.text, "byte 2"));
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_named_pretokenizers(void **state)
{
    static const struct { const char *pre, *description; } names[] = {
        {"smollm", "byte-level BPE, smollm, 11 tokens"},
        {"llama-bpe", "byte-level BPE, llama3, 11 tokens"},
        {"qwen2", "byte-level BPE, qwen2, 11 tokens"},
        {"starcoder", "byte-level BPE, smollm, 11 tokens"},
        {"tekken", "byte-level BPE, tekken, 11 tokens"},
        {"gpt-4o", "byte-level BPE, gpt4o, 11 tokens"},
        {"falcon", "byte-level BPE, falcon, 11 tokens"},
        {"bloom", "byte-level BPE, bloom, 11 tokens"},
        {NULL, "byte-level BPE, default, 11 tokens"},
    };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct writer w;
        write_gpt2(&w, names[i].pre);
        struct tokenizer *t = open_written(&w);
        assert_string_equal(tokenizer_description(t), names[i].description);
        ASSERT_IDS(t, "ab ab", 0, 3, 4);
        tokenizer_free(t);
    }
    struct writer w;
    write_gpt2(&w, "smollm"); /* digits one by one */
    struct tokenizer *t = open_written(&w);
    ASSERT_IDS(t, "11", 0, 5, 5);
    tokenizer_free(t);
}

/* ---- Refusals ---- */

static void assert_refused(struct writer *w, enum error_code code, const char *says)
{
    struct tokenizer *t;
    struct error err = {0};
    if (finish(w, &t, &err)) fail_msg("accepted what should fail with: %s", says);
    if (err.code != code || !strstr(err.text, says))
        fail_msg("%s: %s; not: %s", error_code_name(err.code), err.text, says);
    assert_null(t);
}

static void begin(struct writer *w, const char *model)
{
    *w = (struct writer){0};
    buf_init(&w->body, 1 << 20);
    add_string(w, "tokenizer.ggml.model", model);
}

static void test_refused(void **state)
{
    static const char *const tokens[] = {"a", "b", "ab"}, *const twice[] = {"a", "a"};
    static const char *const invalid[] = {"a\xFF"}, *const merge[] = {"a x"};
    struct writer w;
    begin(&w, "t5");
    assert_refused(&w, ERR_UNSUPPORTED, "\"t5\"");
    begin(&w, "gpt2");
    assert_refused(&w, ERR_FORMAT, "tokenizer.ggml.tokens must be");
    begin(&w, "gpt2");
    add_strings(&w, "tokenizer.ggml.tokens", tokens, 0);
    assert_refused(&w, ERR_FORMAT, "no tokens");
    begin(&w, "gpt2");
    add_strings(&w, "tokenizer.ggml.tokens", twice, 2);
    assert_refused(&w, ERR_FORMAT, "tokens 0 and 1 are both \"a\"");
    begin(&w, "gpt2");
    add_strings(&w, "tokenizer.ggml.tokens", invalid, 1);
    assert_refused(&w, ERR_FORMAT, "token 0 is not valid UTF-8");
    begin(&w, "gpt2");
    add_strings(&w, "tokenizer.ggml.tokens", tokens, 3);
    assert_refused(&w, ERR_FORMAT, "tokenizer.ggml.merges must be");
    begin(&w, "gpt2");
    add_strings(&w, "tokenizer.ggml.tokens", tokens, 3);
    add_strings(&w, "tokenizer.ggml.merges", merge, 1);
    assert_refused(&w, ERR_FORMAT, "its right part");
    write_gpt2(&w, "some-new-one");
    assert_refused(&w, ERR_UNSUPPORTED, "\"some-new-one\"");
    write_gpt2(&w, "gpt-2 phi-2"); /* two names in a row are none */
    assert_refused(&w, ERR_UNSUPPORTED, "\"gpt-2 phi-2\"");
    write_gpt2(&w, "gpt-2");
    add_u32(&w, "tokenizer.ggml.bos_token_id", 11);
    assert_refused(&w, ERR_FORMAT, "bos_token_id must be the id of one of the tokens");
    begin(&w, "llama");
    add_strings(&w, "tokenizer.ggml.tokens", tokens, 3);
    assert_refused(&w, ERR_FORMAT, "tokenizer.ggml.scores must be");
    begin(&w, "llama");
    add_strings(&w, "tokenizer.ggml.tokens", tokens, 3);
    add_array(&w, "tokenizer.ggml.scores", GGUF_F32, 3);
    put(&w.body, (const float[]){0, __builtin_nanf(""), 1}, 12);
    assert_refused(&w, ERR_FORMAT, "finite");
}

static void test_no_tokenizer(void **state)
{
    struct writer w;
    struct tokenizer *t;
    struct error err = {0};
    begin(&w, "no_vocab");
    assert_true(finish(&w, &t, &err));
    assert_null(t);
    w = (struct writer){0};
    buf_init(&w.body, 1 << 20);
    add_string(&w, "general.architecture", "llama");
    assert_true(finish(&w, &t, &err));
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentencepiece),
        cmocka_unit_test(test_control_tokens_do_not_come_out_of_text),
        cmocka_unit_test(test_leading_space_is_stripped_once),
        cmocka_unit_test(test_gpt2_model),
        cmocka_unit_test(test_unknown_bytes_do_not_become_the_end_of_text),
        cmocka_unit_test(test_named_pretokenizers),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
