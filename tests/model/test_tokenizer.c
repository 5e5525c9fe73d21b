/* The tokenizer's face: encoding with limits, special tokens, decoding by pieces, long pieces
 * against plain BPE, characters, threads. Families as a whole are test_tokenizer_golden.c's. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/clock.h"
#include "model/tokenizer.h"
#include "tests/model/token_util.h"

static struct tokenizer *open_json(const char *json)
{
    struct tokenizer *t = NULL;
    struct error err = {0};
    if (!tokenizer_open_json(json, strlen(json), "test.json", &t, &err)) fail_msg("%s", err.text);
    return t;
}

static void encode(const struct tokenizer *t, const char *text, size_t n, int flags,
                   struct token_ids *ids)
{
    struct error err = {0};
    if (!tokenizer_encode(t, text, n, flags, SIZE_MAX, ids, &err)) fail_msg("%s", err.text);
}

/* decode(encode(text)) == text, whole and token by token. */
static void assert_round_trip(const struct tokenizer *t, const char *text, size_t n)
{
    struct token_ids ids = {0};
    struct token_decoder d = {0};
    struct buf out;
    buf_init(&out, 64 << 20);
    encode(t, text, n, 0, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        size_t length;
        const char *bytes = token_decode(t, &d, ids.ids[i], &length);
        buf_append(&out, bytes, length);
    }
    assert_int_equal(out.len, n);
    if (n) assert_memory_equal(out.data, text, n);
    buf_free(&out);
    token_ids_free(&ids);
}

/* ---- Characters ---- */

static const char characters[] =
    "{\"added_tokens\": [{\"id\": 5, \"content\": \"<end>\", \"special\": true}],"
    "\"model\": {\"type\": \"BPE\", \"merges\": [],"
    "\"vocab\": {\"a\": 0, \"b\": 1, \" \": 2, \"\\u00e9\": 3, \"\\n\": 4}}}";

static void test_characters(void **state)
{
    struct tokenizer *t = open_json(characters);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_CHARACTER);
    assert_string_equal(tokenizer_description(t), "characters, 6 tokens");
    assert_int_equal(tokenizer_vocab_size(t), 6);
    ASSERT_IDS(t, "ab \xC3\xA9\n", 0, 0, 1, 2, 3, 4);
    ASSERT_IDS(t, "a<end>b", ENCODE_PARSE_SPECIAL, 0, 5, 1);
    assert_round_trip(t, "b\xC3\xA9 a\n\n", 7);
    assert_round_trip(t, "", 0);
    tokenizer_free(t);
}

static void test_unknown_character_is_named(void **state)
{
    struct tokenizer *t = open_json(characters);
    struct token_ids ids = {0};
    struct error err = {0};
    assert_false(tokenizer_encode(t, "ab\xC3\xA9\xE6\x97\xA5" "a", 8, 0, 100, &ids, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "\"\xE6\x97\xA5\" (U+65E5) at byte 4"));
    /* Without parsing, a special token is its characters. */
    assert_false(tokenizer_encode(t, "a<end>", 6, 0, 100, &ids, &err));
    assert_non_null(strstr(err.text, "\"<\" (U+003C) at byte 1"));
    assert_false(tokenizer_encode(t, "a\tb", 3, 0, 100, &ids, &err));
    assert_non_null(strstr(err.text, "character (U+0009) at byte 1"));
    assert_int_equal(ids.n, 0);
    token_ids_free(&ids);
    tokenizer_free(t);
}

/* ---- Limits ---- */

static void test_invalid_utf8_has_an_offset(void **state)
{
    struct tokenizer *t = open_json(characters);
    struct token_ids ids = {0};
    struct error err = {0};
    assert_true(token_ids_push(&ids, 7));
    assert_false(tokenizer_encode(t, "ab\xFF" "a", 4, 0, 100, &ids, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.text, "byte 2"));
    assert_false(tokenizer_encode(t, "ab\xC3", 3, 0, 100, &ids, &err));
    assert_non_null(strstr(err.text, "byte 2"));
    assert_int_equal(ids.n, 1); /* what was there stays, nothing is added */
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_max_ids(void **state)
{
    struct tokenizer *t = open_json(characters);
    struct token_ids ids = {0};
    struct error err = {0};
    assert_true(token_ids_push(&ids, 7));
    assert_true(tokenizer_encode(t, "abab", 4, 0, 4, &ids, &err));
    assert_int_equal(ids.n, 5);
    assert_false(tokenizer_encode(t, "ababa", 5, 0, 4, &ids, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_int_equal(ids.n, 5);
    /* 5 bytes are the most of a token ("<end>"): 4 * 5 + 1 bytes are too many at a glance, even
     * when they are no text at all. */
    assert_int_equal(tokenizer_max_token_bytes(t), 5);
    char junk[21];
    memset(junk, 0xFF, sizeof junk);
    assert_false(tokenizer_encode(t, junk, 21, 0, 4, &ids, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_false(tokenizer_encode(t, junk, 20, 0, 4, &ids, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_true(tokenizer_encode(t, "", 0, 0, 0, &ids, &err));
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_ids_out_of_range(void **state)
{
    struct tokenizer *t = open_json(characters);
    struct token_decoder d = {0};
    const int32_t bad[] = {-1, 6, INT32_MAX, INT32_MIN};
    size_t n = 99;
    for (int i = 0; i < 4; i++) {
        assert_null(tokenizer_token_bytes(t, bad[i], &n));
        assert_int_equal(n, 0);
        assert_non_null(token_decode(t, &d, bad[i], &n));
        assert_int_equal(n, 0);
        assert_false(tokenizer_is_special(t, bad[i]));
    }
    tokenizer_free(t);
    tokenizer_free(NULL);
}

/* ---- Special and added tokens ---- */

static const char markers[] =
    "{\"added_tokens\": ["
    "{\"id\": 10, \"content\": \"<s>\", \"special\": true},"
    "{\"id\": 11, \"content\": \"</s>\", \"special\": true},"
    "{\"id\": 12, \"content\": \"<s>>\", \"special\": true},"
    "{\"id\": 13, \"content\": \"ab\", \"special\": false, \"single_word\": true},"
    "{\"id\": 14, \"content\": \"<l>\", \"special\": true, \"lstrip\": true},"
    "{\"id\": 15, \"content\": \"<r>\", \"special\": true, \"rstrip\": true}],"
    "\"post_processor\": {\"type\": \"TemplateProcessing\","
    "  \"single\": [{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}},"
    "               {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}],"
    "  \"special_tokens\": {\"<s>\": {\"id\": \"<s>\", \"ids\": [10], \"tokens\": [\"<s>\"]}}},"
    "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {"
    "\"a\": 0, \"b\": 1, \" \": 2, \"<\": 3, \">\": 4, \"s\": 5, \"/\": 6, \"l\": 7, \"r\": 8,"
    "\"\\u00e9\": 9}}}";

static void test_special_tokens(void **state)
{
    struct tokenizer *t = open_json(markers);
    assert_int_equal(tokenizer_special_id(t, "<s>", 3), 10);
    assert_int_equal(tokenizer_special_id(t, "<s>>", 3), 10);
    assert_int_equal(tokenizer_special_id(t, "ab", 2), -1); /* added, not special */
    assert_true(tokenizer_is_special(t, 12));
    assert_false(tokenizer_is_special(t, 13));
    assert_int_equal(tokenizer_bos(t), 10);
    assert_true(tokenizer_adds_bos(t));
    assert_int_equal(tokenizer_eos(t), 11); /* the usual one, when no file says */
    int32_t stops[4];
    assert_int_equal(tokenizer_stop_ids(t, stops, 4), 1);
    assert_int_equal(stops[0], 11);
    assert_int_equal(tokenizer_stop_ids(t, stops, 0), 0);

    ASSERT_IDS(t, "a<s>", ENCODE_PARSE_SPECIAL, 0, 10);
    ASSERT_IDS(t, "a<s>", 0, 0, 3, 5, 4);
    ASSERT_IDS(t, "a", ENCODE_ADD_BOS, 10, 0);
    ASSERT_IDS(t, "", ENCODE_ADD_BOS | ENCODE_PARSE_SPECIAL, 10);
    ASSERT_IDS(t, "<s>>", ENCODE_PARSE_SPECIAL, 12); /* the longest */
    ASSERT_IDS(t, "<s><s", ENCODE_PARSE_SPECIAL, 10, 3, 5);
    tokenizer_free(t);
}

static void test_added_tokens_strip_and_stand_alone(void **state)
{
    struct tokenizer *t = open_json(markers);
    ASSERT_IDS(t, "ab", 0, 13);
    ASSERT_IDS(t, "s ab>", 0, 5, 2, 13, 4);
    ASSERT_IDS(t, "sab", 0, 5, 0, 1);
    ASSERT_IDS(t, "ab\xC3\xA9", 0, 0, 1, 9);
    ASSERT_IDS(t, "\xC3\xA9" "ab", 0, 9, 0, 1);
    ASSERT_IDS(t, "a   <l>  a", ENCODE_PARSE_SPECIAL, 0, 14, 2, 2, 0);
    ASSERT_IDS(t, "a <r> \xE3\x80\x80 a", ENCODE_PARSE_SPECIAL, 0, 2, 15, 0);
    ASSERT_IDS(t, "a\xE3\x80\x80\t<l>", ENCODE_PARSE_SPECIAL, 0, 14);
    ASSERT_IDS(t, "<r> <l>", ENCODE_PARSE_SPECIAL, 15, 14);
    /* White space that vanishes: no number of bytes is too many for one token. */
    assert_int_equal(tokenizer_max_token_bytes(t), INT32_MAX);
    tokenizer_free(t);
}

static void test_decoding_leaves_special_tokens_out(void **state)
{
    struct tokenizer *t = open_json(markers);
    struct token_decoder skip = {0}, keep = {.keep_special = true};
    size_t n;
    token_decode(t, &skip, 10, &n);
    assert_int_equal(n, 0);
    assert_false(skip.started);
    assert_memory_equal(token_decode(t, &keep, 10, &n), "<s>", 3);
    assert_int_equal(n, 3);
    assert_memory_equal(token_decode(t, &skip, 13, &n), "ab", 2);
    assert_int_equal(n, 2);
    assert_true(skip.started);
    assert_memory_equal(tokenizer_token_bytes(t, 14, &n), "<l>", 3);
    assert_int_equal(n, 3);
    tokenizer_free(t);
}

/* ---- Merging against plain BPE ---- */

static const char *const merge_list[][2] = {
    {"a", "b"}, {"b", "a"}, {"c", "a"}, {"ab", "ab"}, {"a", "a"}, {"aa", "aa"}, {"ab", "c"},
    {"c", "c"}, {"b", "c"}, {"abab", "ab"}, {"cc", "ab"}, {"aaaa", "aa"}, {"a", "bc"},
};
enum { N_MERGES = sizeof merge_list / sizeof merge_list[0], N_WORDS = N_MERGES + 3 };

struct plain_bpe { char words[N_WORDS][16]; };

static int word_id(const struct plain_bpe *p, const char *word)
{
    for (int i = 0; i < N_WORDS; i++)
        if (strcmp(p->words[i], word) == 0) return i;
    return -1;
}

static struct tokenizer *merging_tokenizer(struct plain_bpe *p)
{
    struct buf json;
    buf_init(&json, 1 << 16);
    for (int i = 0; i < 3; i++) snprintf(p->words[i], 16, "%c", 'a' + i);
    for (int i = 0; i < N_MERGES; i++)
        snprintf(p->words[i + 3], 16, "%s%s", merge_list[i][0], merge_list[i][1]);
    /* "abc" comes of two merges: the second time under another name, with the same id. */
    buf_puts(&json, "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false},"
                    "\"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int i = 0; i < N_WORDS; i++)
        if (word_id(p, p->words[i]) == i)
            buf_printf(&json, "%s\"%s\": %d", i ? ", " : "", p->words[i], i);
    buf_puts(&json, "}, \"merges\": [");
    for (int i = 0; i < N_MERGES; i++)
        buf_printf(&json, "%s[\"%s\", \"%s\"]", i ? ", " : "", merge_list[i][0], merge_list[i][1]);
    buf_puts(&json, "]}}");
    struct tokenizer *t = open_json(json.data);
    buf_free(&json);
    return t;
}

/* The definition: over and over, merge the leftmost pair of the lowest rank. */
static size_t plain_encode(const struct plain_bpe *p, const char *text, size_t n, int *ids)
{
    for (size_t i = 0; i < n; i++) ids[i] = text[i] - 'a';
    for (;;) {
        int best = N_MERGES;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            for (int m = 0; m < best; m++) {
                if (ids[i] != word_id(p, merge_list[m][0])) continue;
                if (ids[i + 1] != word_id(p, merge_list[m][1])) continue;
                best = m;
                at = i;
            }
        }
        if (best == N_MERGES) return n;
        ids[at] = word_id(p, p->words[best + 3]);
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

static void test_merging_equals_the_definition(void **state)
{
    struct plain_bpe p;
    struct tokenizer *t = merging_tokenizer(&p);
    uint32_t random = 12345;
    char text[200];
    int expected[200];
    for (int round = 0; round < 300; round++) {
        size_t n = 1 + (size_t)round * 199 / 300; /* both sides of what counts as short */
        for (size_t i = 0; i < n; i++) {
            random = random * 1664525 + 1013904223;
            text[i] = (char)('a' + (random >> 24) % 3);
        }
        struct token_ids ids = {0};
        encode(t, text, n, 0, &ids);
        size_t n_expected = plain_encode(&p, text, n, expected);
        assert_int_equal(ids.n, n_expected);
        assert_memory_equal(ids.ids, expected, n_expected * sizeof *expected);
        token_ids_free(&ids);
    }
    tokenizer_free(t);
}

/* Merging takes n log n on the most regular text: a quadratic one would need hours for this. */
static void test_a_megabyte_of_one_letter(void **state)
{
    enum { N = 1 << 20 };
    struct plain_bpe p;
    struct tokenizer *t = merging_tokenizer(&p);
    char *text = malloc(N);
    memset(text, 'a', N);
    struct token_ids ids = {0};
    int64_t start = clock_ns();
    encode(t, text, N, 0, &ids);
    assert_true(clock_ns() - start < INT64_C(20) * 1000 * 1000 * 1000);
    assert_int_equal(ids.n, N / 4);
    token_ids_free(&ids);
    free(text);
    tokenizer_free(t);
}

/* ---- Patterns ---- */

static struct tokenizer *with_pattern(const char *split)
{
    struct buf json;
    buf_init(&json, 1 << 16);
    buf_printf(&json,
               "{\"pre_tokenizer\": %s, \"model\": {\"merges\": [[\"a\", \"b\"]],"
               "\"vocab\": {\"a\": 0, \"b\": 1, \" \": 2, \"ab\": 3, \"-\": 4, \"x\": 5}}}",
               split);
    struct tokenizer *t = open_json(json.data);
    buf_free(&json);
    return t;
}

#define SPLIT(pattern, behavior, invert)                                                           \
    "{\"type\": \"Split\", \"pattern\": " pattern ", \"behavior\": \"" behavior                    \
    "\", \"invert\": " invert "}"

static void test_split_behaviors(void **state)
{
    struct tokenizer *t = with_pattern(SPLIT("{\"String\": \"-\"}", "Removed", "false"));
    ASSERT_IDS(t, "ab-a-b", 0, 3, 0, 1);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"[^-]+\"}", "Removed", "true"));
    ASSERT_IDS(t, "--ab-a-b-", 0, 3, 0, 1);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"b\"}", "Isolated", "false"));
    ASSERT_IDS(t, "ab", 0, 0, 1);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"b\"}", "MergedWithPrevious", "false"));
    ASSERT_IDS(t, "abab", 0, 3, 3);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"a\"}", "MergedWithNext", "false"));
    ASSERT_IDS(t, "abaxab", 0, 3, 0, 5, 3);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"[ab]\"}", "Contiguous", "false"));
    ASSERT_IDS(t, "xabab", 0, 5, 3, 3);
    tokenizer_free(t);
    /* An empty match cuts between characters. */
    t = with_pattern(SPLIT("{\"Regex\": \"(?=b)\"}", "Isolated", "false"));
    ASSERT_IDS(t, "abab", 0, 0, 1, 0, 1);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"(?=b)\"}", "Contiguous", "false"));
    ASSERT_IDS(t, "abab", 0, 0, 1, 0, 1);
    tokenizer_free(t);
}

/* Oniguruma's \s has no U+180E, its \w has circled letters and raised digits, its $ is a line's
 * end. */
static void test_patterns_mean_what_oniguruma_means(void **state)
{
    struct tokenizer *t = with_pattern(SPLIT("{\"Regex\": \"\\\\s+\"}", "Removed", "false"));
    struct token_ids ids = {0};
    struct error err = {0};
    ASSERT_IDS(t, "a\xC2\x85" "b\xE3\x80\x80" "ab", 0, 0, 1, 3);
    assert_false(tokenizer_encode(t, "a\xE1\xA0\x8E" "b", 5, 0, 9, &ids, &err));
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"\\\\w+\"}", "Removed", "false"));
    ASSERT_IDS(t, "ab_\xC2\xB2\xE2\x93\x90-\xCC\x81\xD9\xA3", 0, 4);
    tokenizer_free(t);
    t = with_pattern(SPLIT("{\"Regex\": \"b$\\n\"}", "Removed", "false"));
    ASSERT_IDS(t, "ab\nab", 0, 0, 3);
    tokenizer_free(t);
    token_ids_free(&ids);
}

static void test_a_slow_pattern_gives_up(void **state)
{
    enum { N = 1 << 20 };
    struct tokenizer *t = with_pattern(SPLIT("{\"Regex\": \" +$\"}", "Removed", "false"));
    struct token_ids ids = {0};
    struct error err = {0};
    char *text = malloc(N);
    memset(text, ' ', N);
    text[N - 1] = 'x';
    int64_t start = clock_ns();
    assert_false(tokenizer_encode(t, text, N, 0, SIZE_MAX, &ids, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_non_null(strstr(err.text, "too regular"));
    assert_true(clock_ns() - start < INT64_C(60) * 1000 * 1000 * 1000);
    assert_int_equal(ids.n, 0);
    tokenizer_free(t);

    /* The same with a match at every place. */
    t = with_pattern(SPLIT("{\"Regex\": \" (?= *y)| \"}", "Removed", "false"));
    assert_false(tokenizer_encode(t, text, N, 0, SIZE_MAX, &ids, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_int_equal(ids.n, 0);
    token_ids_free(&ids);
    free(text);
    tokenizer_free(t);
}

/* ---- Threads ---- */

struct worker { const struct tokenizer *t; size_t n_ids; };

static void *encode_often(void *arg)
{
    struct worker *w = arg;
    static const char text[] =
        "Some text, 123 of it.\n\n  And a little more: it's \xC3\xA9t\xC3\xA9!";
    for (int i = 0; i < 200; i++) {
        struct token_ids ids = {0};
        struct error err = {0};
        if (!tokenizer_encode(w->t, text, sizeof text - 1, 0, 1000, &ids, &err)) return NULL;
        w->n_ids = ids.n;
        token_ids_free(&ids);
    }
    return w;
}

static void test_threads_share_a_tokenizer(void **state)
{
    struct tokenizer *t;
    struct error err = {0};
    pthread_t threads[4];
    struct worker workers[4];
    if (!tokenizer_open_dir("tests/golden/tokenizers/llama3", &t, &err)) fail_msg("%s", err.text);
    for (int i = 0; i < 4; i++) {
        workers[i] = (struct worker){.t = t};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *done;
        pthread_join(threads[i], &done);
        assert_non_null(done);
        assert_int_equal(workers[i].n_ids, workers[0].n_ids);
    }
    assert_true(workers[0].n_ids > 10);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_characters),
        cmocka_unit_test(test_unknown_character_is_named),
        cmocka_unit_test(test_invalid_utf8_has_an_offset),
        cmocka_unit_test(test_max_ids),
        cmocka_unit_test(test_ids_out_of_range),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_added_tokens_strip_and_stand_alone),
        cmocka_unit_test(test_decoding_leaves_special_tokens_out),
        cmocka_unit_test(test_merging_equals_the_definition),
        cmocka_unit_test(test_a_megabyte_of_one_letter),
        cmocka_unit_test(test_split_behaviors),
        cmocka_unit_test(test_patterns_mean_what_oniguruma_means),
        cmocka_unit_test(test_a_slow_pattern_gives_up),
        cmocka_unit_test(test_threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
