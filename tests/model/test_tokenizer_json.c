/* tokenizer.json: what is refused, with which words, and the parts that no golden family has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "model/tokenizer.h"

#define MODEL(members) "{\"model\": {\"type\": \"BPE\", " members "}}"
#define VOCAB "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"\xE2\x96\x81\": 3, \" \": 4}"
#define AROUND(members)                                                                            \
    "{" members ", \"model\": {\"type\": \"BPE\", " VOCAB ", \"merges\": [\"a b\"]}}"

static const struct {
    const char *json;
    enum error_code code;
    const char *says;
} refused[] = {
    {"", ERR_FORMAT, "test.json"},
    {"[]", ERR_FORMAT, "\"model\" is missing"},
    {"{}", ERR_FORMAT, "\"model\" is missing"},
    {"{\"model\": 1}", ERR_FORMAT, "\"model\" is a number"},
    {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}", ERR_UNSUPPORTED, "\"WordPiece\""},
    {"{\"model\": {\"type\": \"Unigram\", \"vocab\": []}}", ERR_UNSUPPORTED, "\"Unigram\""},
    {"{\"model\": {\"type\": 3}}", ERR_FORMAT, "\"type\" is a number"},
    {"{\"model\": {\"vocab\": {}}}", ERR_UNSUPPORTED, "(none)"},
    {MODEL("\"vocab\": {}, \"merges\": []"), ERR_FORMAT, "no tokens"},
    {MODEL("\"vocab\": [\"a\"], \"merges\": []"), ERR_FORMAT, "\"vocab\" is an array"},
    {MODEL("\"vocab\": {\"b\": 1, \"a\": \"0\"}, \"merges\": []"), ERR_FORMAT, "\"a\" is a string"},
    {MODEL("\"vocab\": {\"a\": -1}, \"merges\": []"), ERR_FORMAT, "no tokens"},
    {MODEL("\"vocab\": {\"a\": 0, \"b\": -1}, \"merges\": []"), ERR_FORMAT, "id -1"},
    {MODEL("\"vocab\": {\"b\": 1, \"a\": 0.5}, \"merges\": []"), ERR_FORMAT, "token id"},
    {MODEL("\"vocab\": {\"a\": 1e15}, \"merges\": []"), ERR_FORMAT, "out of range"},
    {MODEL("\"vocab\": {\"a\": 4000000}, \"merges\": []"), ERR_FORMAT, "out of range"},
    {MODEL("\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []"), ERR_FORMAT, "share the id 0"},
    {MODEL("\"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []"), ERR_FORMAT, "duplicate key"},
    {MODEL(VOCAB), ERR_FORMAT, "\"merges\" is missing"},
    {MODEL(VOCAB ", \"merges\": [1]"), ERR_FORMAT, "\"merges\" is a number"},
    {MODEL(VOCAB ", \"merges\": [[\"a\"]]"), ERR_FORMAT, "\"merges\" is an array"},
    {MODEL(VOCAB ", \"merges\": [[\"a\", \"b\", \"a\"]]"), ERR_FORMAT, "\"merges\" is an array"},
    {MODEL(VOCAB ", \"merges\": [\"ab\"]"), ERR_FORMAT, "not two tokens"},
    {MODEL(VOCAB ", \"merges\": [\"a b c\"]"), ERR_FORMAT, "not two tokens"},
    {MODEL(VOCAB ", \"merges\": [\"a \"]"), ERR_FORMAT, "not two tokens"},
    {MODEL(VOCAB ", \"merges\": [\"x b\"]"), ERR_FORMAT, "its left part"},
    {MODEL(VOCAB ", \"merges\": [\"a x\"]"), ERR_FORMAT, "its right part"},
    {MODEL(VOCAB ", \"merges\": [\"b a\"]"), ERR_FORMAT, "what the two make"},
    {MODEL(VOCAB ", \"merges\": [], \"unk_token\": \"?\""), ERR_FORMAT, "unk_token \"?\""},
    {MODEL(VOCAB ", \"merges\": [], \"dropout\": 0.1"), ERR_UNSUPPORTED, "\"dropout\""},
    {MODEL(VOCAB ", \"merges\": [], \"end_of_word_suffix\": \"</w>\""), ERR_UNSUPPORTED,
     "end_of_word_suffix"},
    {MODEL(VOCAB ", \"merges\": [], \"byte_fallback\": 1"), ERR_FORMAT, "true or false"},
    {AROUND("\"normalizer\": {\"type\": \"NFKC\"}"), ERR_UNSUPPORTED, "normalizer \"NFKC\""},
    {AROUND("\"normalizer\": \"NFC\""), ERR_FORMAT, "\"normalizer\" is a string"},
    {AROUND("\"normalizer\": {\"type\": \"Sequence\"}"), ERR_FORMAT, "\"normalizers\" is missing"},
    {AROUND("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a+\"},"
            "\"content\": \"\"}"), ERR_UNSUPPORTED, "\"a+\""},
    {AROUND("\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \"\"},"
            "\"content\": \"\"}"), ERR_FORMAT, "empty pattern"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}"), ERR_UNSUPPORTED,
     "\"BertPreTokenizer\""},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\"}"), ERR_FORMAT, "\"pattern\" is missing"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}}"),
     ERR_UNSUPPORTED, "\"(\" is not one that gptd can use"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a&&b]\"}}"),
     ERR_UNSUPPORTED, "intersection"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[a[b]]\"}}"),
     ERR_UNSUPPORTED, "within a [class]"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(*UTF)a\"}}"),
     ERR_UNSUPPORTED, "begins with (*"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\"}}"),
     ERR_UNSUPPORTED, "is empty"},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"String\": \"a\"},"
            "\"behavior\": \"Sideways\"}"), ERR_UNSUPPORTED, "\"Sideways\""},
    {AROUND("\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": ["
            "{\"type\": \"ByteLevel\"}, {\"type\": \"Digits\"}]}"), ERR_UNSUPPORTED,
     "behind ByteLevel"},
    {AROUND("\"decoder\": {\"type\": \"WordPiece\"}"), ERR_UNSUPPORTED, "decoder \"WordPiece\""},
    {AROUND("\"post_processor\": {\"type\": \"BertProcessing\"}"), ERR_UNSUPPORTED,
     "\"BertProcessing\""},
    {AROUND("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": ["
            "{\"SpecialToken\": {\"id\": \"x\"}}], \"special_tokens\": {}}"), ERR_FORMAT,
     "\"special_tokens\""},
    {AROUND("\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": ["
            "{\"Sequence\": {\"id\": \"A\"}}, {\"SpecialToken\": {\"id\": \"x\"}}]}"),
     ERR_UNSUPPORTED, "more than a BOS"},
    {AROUND("\"added_tokens\": {}"), ERR_FORMAT, "\"added_tokens\" is an object"},
    {AROUND("\"added_tokens\": [3]"), ERR_FORMAT, "\"id\" is missing"},
    {AROUND("\"added_tokens\": [{\"id\": 5}]"), ERR_FORMAT, "\"content\" is missing"},
    {AROUND("\"added_tokens\": [{\"id\": 5, \"content\": \"\"}]"), ERR_FORMAT, "empty"},
    {AROUND("\"added_tokens\": [{\"id\": -5, \"content\": \"x\"}]"), ERR_FORMAT, "-5"},
    {AROUND("\"added_tokens\": [{\"id\": 5, \"content\": \"x\"}, {\"id\": 5, \"content\": \"y\"}]"),
     ERR_FORMAT, "the id of another (5)"},
};

static void test_refused_files_say_why(void **state)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct tokenizer *t = NULL;
        struct error err = {0};
        const char *json = refused[i].json;
        if (tokenizer_open_json(json, strlen(json), "test.json", &t, &err))
            fail_msg("accepted: %s", json);
        if (err.code != refused[i].code || !strstr(err.text, refused[i].says))
            fail_msg("%s: %s: %s", json, error_code_name(err.code), err.text);
        assert_null(t);
    }
}

static struct tokenizer *open_json(const char *json)
{
    struct tokenizer *t = NULL;
    struct error err = {0};
    if (!tokenizer_open_json(json, strlen(json), "test.json", &t, &err)) fail_msg("%s", err.text);
    return t;
}

static void assert_ids(const struct tokenizer *t, const char *text, size_t n,
                       const int32_t *expected)
{
    struct token_ids ids = {0};
    struct error err = {0};
    if (!tokenizer_encode(t, text, strlen(text), 0, 1000, &ids, &err)) fail_msg("%s", err.text);
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.ids, expected, n * sizeof *expected);
    token_ids_free(&ids);
}
#define ASSERT_IDS(t, text, ...)                                                                   \
    assert_ids(t, text, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t),                        \
               (int32_t[]){__VA_ARGS__})

static void test_gaps_between_ids(void **state)
{
    struct tokenizer *t = open_json(MODEL("\"vocab\": {\"a\": 3, \"b\": 900}, \"merges\": []"));
    size_t n;
    assert_int_equal(tokenizer_vocab_size(t), 901);
    assert_null(tokenizer_token_bytes(t, 4, &n));
    assert_memory_equal(tokenizer_token_bytes(t, 900, &n), "b", 1);
    ASSERT_IDS(t, "ba", 900, 3);
    tokenizer_free(t);
}

static void test_metaspace(void **state)
{
    static const char format[] =
        "{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\","
        "  \"prepend_scheme\": \"%s\", \"split\": %s},"
        "\"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\","
        "  \"prepend_scheme\": \"%s\", \"split\": true},"
        "\"added_tokens\": [{\"id\": 5, \"content\": \"<x>\", \"normalized\": false}],"
        "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"\xE2\x96\x81\": 2,"
        "  \"\xE2\x96\x81" "a\": 3, \"a\xE2\x96\x81\": 4},"
        "\"merges\": [[\"a\", \"\xE2\x96\x81\"], [\"\xE2\x96\x81\", \"a\"]]}}";
    char json[1024];
    size_t n;

    snprintf(json, sizeof json, format, "first", "false", "first");
    struct tokenizer *t = open_json(json);
    ASSERT_IDS(t, "a b<x>a", 2, 4, 1, 5, 0);
    ASSERT_IDS(t, "<x>a", 5, 0); /* not the beginning of the text */
    ASSERT_IDS(t, " a", 3); /* one that is there is not doubled */
    struct token_decoder d = {0};
    assert_memory_equal(token_decode(t, &d, 3, &n), "a", 1);
    assert_int_equal(n, 1);
    assert_memory_equal(token_decode(t, &d, 3, &n), " a", 2);
    assert_int_equal(n, 2);
    tokenizer_free(t);

    snprintf(json, sizeof json, format, "always", "true", "always");
    t = open_json(json);
    ASSERT_IDS(t, "a b<x>a", 3, 2, 1, 5, 3); /* split before each mark: "a_" cannot form */
    tokenizer_free(t);

    snprintf(json, sizeof json, format, "never", "true", "never");
    t = open_json(json);
    ASSERT_IDS(t, "a b<x>a", 0, 2, 1, 5, 0);
    d = (struct token_decoder){0};
    token_decode(t, &d, 3, &n);
    assert_int_equal(n, 2);
    tokenizer_free(t);
}

static void test_byte_level_prefix_space(void **state)
{
    struct tokenizer *t = open_json(
        "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true},"
        "\"model\": {\"merges\": [], \"vocab\": {\"a\": 0, \"\xC4\xA0\": 1}}}");
    ASSERT_IDS(t, "a", 1, 0);
    ASSERT_IDS(t, " a", 1, 0);
    assert_string_equal(tokenizer_description(t), "byte-level BPE, gpt2, 2 tokens");
    tokenizer_free(t);
}

/* A byte without a token is an error that names it, never a gap in the text. */
static void test_missing_byte(void **state)
{
    struct tokenizer *t = open_json("{\"pre_tokenizer\": {\"type\": \"ByteLevel\"},"
                                    "\"model\": {\"merges\": [], \"vocab\": {\"a\": 0}}}");
    struct token_ids ids = {0};
    struct error err = {0};
    assert_false(tokenizer_encode(t, "\xC3\xA9", 2, 0, 9, &ids, &err));
    assert_int_equal(err.code, ERR_INVALID);
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_unknown_tokens(void **state)
{
    static const char format[] =
        MODEL("\"vocab\": {\"a\": 0, \"<unk>\": 1, \"ab\": 2, \"b\": 3}, \"merges\": [\"a b\"],"
              "\"unk_token\": \"<unk>\", \"fuse_unk\": %s");
    char json[512];
    snprintf(json, sizeof json, format, "false");
    struct tokenizer *t = open_json(json);
    ASSERT_IDS(t, "ab\xC3\xA9\xC3\xA9" "a\xC3\xA9", 2, 1, 1, 0, 1);
    tokenizer_free(t);
    snprintf(json, sizeof json, format, "true");
    t = open_json(json);
    ASSERT_IDS(t, "ab\xC3\xA9\xC3\xA9" "a\xC3\xA9", 2, 1, 0, 1);
    assert_int_equal(tokenizer_max_token_bytes(t), INT32_MAX); /* one unk, any number of bytes */
    tokenizer_free(t);
}

/* A token in the vocabulary that the merges do not make is not used, unless the file says so. */
static void test_ignore_merges(void **state)
{
    static const char format[] =
        "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
        "\"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"ba\": 2}, \"merges\": [],"
        "\"ignore_merges\": %s}}";
    char json[512];
    snprintf(json, sizeof json, format, "false");
    struct tokenizer *t = open_json(json);
    ASSERT_IDS(t, "ba", 1, 0);
    tokenizer_free(t);
    snprintf(json, sizeof json, format, "true");
    t = open_json(json);
    ASSERT_IDS(t, "ba", 2);
    ASSERT_IDS(t, "baa", 1, 0, 0);
    tokenizer_free(t);
}

/* The text of a special token that stands in the vocabulary is text, however pieces are found. */
static void test_special_text_is_never_a_piece(void **state)
{
    struct tokenizer *t = open_json(
        "{\"added_tokens\": [{\"id\": 2, \"content\": \"ab\", \"special\": true}],"
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
        "\"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [],"
        "\"ignore_merges\": true}}");
    ASSERT_IDS(t, "ab", 0, 1);
    tokenizer_free(t);
}

static void test_nfc(void **state)
{
    struct tokenizer *t =
        open_json("{\"normalizer\": {\"type\": \"NFC\"}, \"model\": {\"merges\": [],"
                  "\"vocab\": {\"e\": 0, \"\\u00e9\": 1, \"\\u0301\": 2, \"\\ud55c\": 3}}}");
    ASSERT_IDS(t, "e\xCC\x81" "e\xC3\xA9", 1, 0, 1);
    ASSERT_IDS(t, "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", 3); /* Hangul from its letters */
    ASSERT_IDS(t, "\xCC\x81" "e", 2, 0);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused_files_say_why),
        cmocka_unit_test(test_gaps_between_ids),
        cmocka_unit_test(test_metaspace),
        cmocka_unit_test(test_byte_level_prefix_space),
        cmocka_unit_test(test_missing_byte),
        cmocka_unit_test(test_unknown_tokens),
        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_special_text_is_never_a_piece),
        cmocka_unit_test(test_nfc),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
