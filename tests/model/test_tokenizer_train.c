/* Making tokenizers: the merges that Hugging Face's trainer finds (tests/golden/tokenizer_train),
 * ties, special tokens, and that what is written opens again. */
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
#include "model/tokenizer_char.h"
#include "model/tokenizer_train.h"
#include "model/tokenizer_write.h"

#define GOLDEN "tests/golden/tokenizer_train/"

struct fixture {
    char dir[40], path[64];
    const char *input;
    struct tokenizer_train_options options;
    struct tokenizer_train_report report;
    struct buf json;
    struct error err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/test_tokenizer_train.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/text.txt", f->dir);
    f->input = f->path;
    f->options = (struct tokenizer_train_options){.inputs = &f->input, .n_inputs = 1,
                                                  .vocab_size = 300, .min_count = 1,
                                                  .pretokenizer = "gpt2"};
    buf_init(&f->json, 64 << 20);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    assert_int_equal(system(command), 0);
    buf_free(&f->json);
    free(f);
    return 0;
}

static void write_text(struct fixture *f, const char *text)
{
    FILE *file = fopen(f->path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void train(struct fixture *f)
{
    buf_clear(&f->json);
    if (!tokenizer_train(&f->options, &f->json, &f->report, &f->err)) fail_msg("%s", f->err.text);
}

static struct tokenizer *open_json(struct fixture *f)
{
    struct tokenizer *t;
    if (!tokenizer_open_json(f->json.data, f->json.len, "made", &t, &f->err))
        fail_msg("%s", f->err.text);
    return t;
}

static const struct cJSON *model_of(const struct cJSON *root, const char *key)
{
    const struct cJSON *item = json_get(json_get(root, "model"), key);
    assert_non_null(item);
    return item;
}

/* The first merges, joined by '|'. */
static const char *merges(struct fixture *f, int n)
{
    static char text[1024];
    struct cJSON *root = json_parse(f->json.data, f->json.len, 16, "made", &f->err);
    assert_non_null(root);
    const struct cJSON *each = model_of(root, "merges")->child;
    text[0] = 0;
    for (int i = 0; i < n && each; i++, each = each->next) {
        if (i > 0) strcat(text, "|");
        strcat(text, each->valuestring);
    }
    cJSON_Delete(root);
    return text;
}

/* ---- golden ---- */

static void assert_same_model(const struct cJSON *made, const struct cJSON *golden)
{
    const struct cJSON *a = model_of(made, "vocab")->child, *b;
    const struct cJSON *vocab = model_of(golden, "vocab");
    int n = 0;
    for (; a; a = a->next, n++) {
        b = json_get(vocab, a->string);
        if (!b || a->valueint != b->valueint) fail_msg("token %s", a->string);
    }
    assert_int_equal(n, cJSON_GetArraySize(vocab));
    a = model_of(made, "merges")->child;
    b = model_of(golden, "merges")->child;
    for (; a && b; a = a->next, b = b->next) {
        char pair[256];
        const struct cJSON *left = b->child;
        snprintf(pair, sizeof pair, "%s %s", left->valuestring, left->next->valuestring);
        assert_string_equal(a->valuestring, pair);
    }
    assert_ptr_equal(a, b); /* both at the end */
}

/* The two encode the text the same. */
static void assert_same_ids(struct fixture *f, const char *golden)
{
    struct tokenizer *made = open_json(f), *other;
    struct token_ids a = {0}, b = {0};
    struct file_map text, json;
    assert_true(file_map_open(GOLDEN "text.txt", &text, &f->err));
    assert_true(file_map_open(golden, &json, &f->err));
    assert_true(tokenizer_open_json((const char *)json.data, json.size, golden, &other, &f->err));
    assert_true(tokenizer_encode(made, (const char *)text.data, text.size, 0, SIZE_MAX, &a,
                                 &f->err));
    assert_true(tokenizer_encode(other, (const char *)text.data, text.size, 0, SIZE_MAX, &b,
                                 &f->err));
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.ids, b.ids, a.n * sizeof *a.ids);
    assert_true(a.n < text.size / 2);
    token_ids_free(&a);
    token_ids_free(&b);
    tokenizer_free(made);
    tokenizer_free(other);
    file_map_close(&text);
    file_map_close(&json);
}

static void test_merges_of_hugging_face(void **state)
{
    static const struct { const char *family, *golden; int32_t vocab_size; int64_t min_count; }
    cases[] = {
        {"gpt2", GOLDEN "gpt2.json", 900, 2},
        {"llama3", GOLDEN "llama3.json", 1200, 1},
    };
    struct fixture *f = *state;
    f->input = GOLDEN "text.txt";
    f->options.specials = (const char *const[]){"<|endoftext|>"};
    f->options.n_specials = 1;
    for (int i = 0; i < 2; i++) {
        struct buf golden;
        f->options.pretokenizer = cases[i].family;
        f->options.vocab_size = cases[i].vocab_size;
        f->options.min_count = cases[i].min_count;
        train(f);
        assert_int_equal(f->report.vocab_size, cases[i].vocab_size);
        buf_init(&golden, 1 << 20);
        assert_true(file_read(cases[i].golden, &golden, &f->err));
        struct cJSON *made = json_parse(f->json.data, f->json.len, 16, "made", &f->err);
        struct cJSON *theirs = json_parse(golden.data, golden.len, 16, "golden", &f->err);
        assert_non_null(made);
        assert_non_null(theirs);
        assert_same_model(made, theirs);
        cJSON_Delete(made);
        cJSON_Delete(theirs);
        buf_free(&golden);
        assert_same_ids(f, cases[i].golden);
    }
}

/* ---- merging ---- */

static void test_the_highest_count_comes_first(void **state)
{
    struct fixture *f = *state;
    write_text(f, "low low low low low lower lower newest newest newest newest newest newest"
               " widest widest widest");
    f->options.vocab_size = 256 + 6;
    train(f);
    /* The example of Sennrich et al.: es 9, est 9, lo 7, low 7; here the space counts, too. */
    assert_string_equal(merges(f, 2), "e s|es t");
    assert_int_equal(f->report.merges, 6);
    assert_int_equal(f->report.words, 16);
    assert_int_equal(f->report.distinct_words, 5);
}

static void test_ties_go_to_the_lower_ids(void **state)
{
    struct fixture *f = *state;
    write_text(f, "dc\nba\nbb\nac");
    train(f);
    /* Each pair occurs once: the lowest left letter first, then the lowest right one. */
    assert_string_equal(merges(f, 10), "a c|b a|b b|d c");
}

static void test_overlapping_pairs(void **state)
{
    struct fixture *f = *state;
    write_text(f, "aaaaa");
    train(f);
    /* aa at 4 places; merged from the left, "aa aa a"; then aa aa, once, and aaaa a. */
    assert_string_equal(merges(f, 10), "a a|aa a|aa aaa");
}

static void test_min_count(void **state)
{
    struct fixture *f = *state;
    write_text(f, "xy\nxy\nzw");
    f->options.min_count = 2;
    train(f);
    assert_string_equal(merges(f, 10), "x y");
    assert_int_equal(f->report.vocab_size, 257);
}

static void test_the_same_text_gives_the_same_file(void **state)
{
    struct fixture *f = *state;
    struct buf first;
    f->input = GOLDEN "text.txt";
    train(f);
    buf_init(&first, 64 << 20);
    buf_append(&first, f->json.data, f->json.len);
    train(f);
    assert_int_equal(first.len, f->json.len);
    assert_memory_equal(first.data, f->json.data, first.len);
    buf_free(&first);
}

static void test_special_tokens(void **state)
{
    struct fixture *f = *state;
    struct token_ids ids = {0};
    write_text(f, "ab<|end|>ab<|end of all|>ab");
    f->options.specials = (const char *const[]){"<|end|>", "<|end of all|>", "<|e"};
    f->options.n_specials = 3;
    train(f);
    assert_string_equal(merges(f, 10), "a b"); /* nothing of "end" is learned */
    struct tokenizer *t = open_json(f);
    assert_int_equal(tokenizer_special_id(t, "<|end|>", 7), 0);
    assert_int_equal(tokenizer_special_id(t, "<|end of all|>", 14), 1);
    assert_true(tokenizer_encode(t, "ab<|end|>", 9, ENCODE_PARSE_SPECIAL, 9, &ids, &f->err));
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 3 + 256);
    assert_int_equal(ids.ids[1], 0);
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_every_byte_is_a_token(void **state)
{
    struct fixture *f = *state;
    write_text(f, "a");
    f->options.vocab_size = 256;
    train(f);
    struct tokenizer *t = open_json(f);
    bool seen[256] = {false};
    for (int32_t id = 0; id < 256; id++) {
        size_t n;
        const char *text = tokenizer_token_bytes(t, id, &n);
        assert_int_equal(n, 1);
        assert_false(seen[(uint8_t)text[0]]);
        seen[(uint8_t)text[0]] = true;
        if (id == 0) assert_int_equal(text[0], '!');
    }
    assert_int_equal(tokenizer_kind(t), TOKENIZER_BYTE_BPE);
    tokenizer_free(t);
}

static void test_what_is_written_opens(void **state)
{
    struct fixture *f = *state;
    char dir[64];
    struct tokenizer *t;
    write_text(f, "ab ab");
    f->options.specials = (const char *const[]){"<eot>"};
    f->options.n_specials = 1;
    train(f);
    snprintf(dir, sizeof dir, "%s/made", f->dir);
    assert_true(tokenizer_write(dir, &f->json, "<eot>", &f->err));
    assert_true(tokenizer_open_dir(dir, &t, &f->err));
    assert_non_null(t);
    assert_int_equal(tokenizer_eos(t), 0);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_false(tokenizer_adds_bos(t));
    tokenizer_free(t);
}

/* ---- characters ---- */

static void test_characters(void **state)
{
    static const char text[] = "ba\n\xF4\x8F\xBF\xBF\xC3\xA9\"\\ab";
    static const int32_t expected[] = {4, 3, 0, 6, 5, 1, 2, 3, 4};
    struct fixture *f = *state;
    struct token_ids ids = {0};
    int32_t vocab_size;
    write_text(f, text);
    assert_true(tokenizer_char_make(&f->input, 1, NULL, 0, &f->json, &vocab_size, &f->err));
    assert_int_equal(vocab_size, 7); /* \n " \ a b é U+10FFFF */
    struct tokenizer *t = open_json(f);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_CHARACTER);
    assert_int_equal(tokenizer_vocab_size(t), 7);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_true(tokenizer_encode(t, text, sizeof text - 1, 0, 100, &ids, &f->err));
    assert_int_equal(ids.n, 9);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    assert_false(tokenizer_encode(t, "z", 1, 0, 100, &ids, &f->err));
    token_ids_free(&ids);
    tokenizer_free(t);
}

static void test_characters_with_special_tokens(void **state)
{
    struct fixture *f = *state;
    int32_t vocab_size;
    write_text(f, "ab<eot>ba");
    const char *const specials[] = {"<eot>"};
    assert_true(tokenizer_char_make(&f->input, 1, specials, 1, &f->json, &vocab_size, &f->err));
    assert_int_equal(vocab_size, 3);
    struct tokenizer *t = open_json(f);
    assert_int_equal(tokenizer_kind(t), TOKENIZER_CHARACTER);
    assert_int_equal(tokenizer_special_id(t, "<eot>", 5), 2);
    tokenizer_free(t);
}

/* ---- what is refused ---- */

static void refused(struct fixture *f, const char *says)
{
    assert_false(tokenizer_train(&f->options, &f->json, &f->report, &f->err));
    if (!strstr(f->err.text, says)) fail_msg("\"%s\" instead of \"%s\"", f->err.text, says);
    assert_int_equal(f->json.len, 0);
}

static void test_bad_options(void **state)
{
    struct fixture *f = *state;
    static const char *const special[][2] = {{""}, {"x"}, {"\xC3\xA9"}, {"<\xFF"}, {"<a>", "<a>"}};
    write_text(f, "text");
    f->options.vocab_size = 255;
    refused(f, "vocab_size is 255; it must be 256");
    f->options.vocab_size = 256;
    f->options.min_count = 0;
    refused(f, "min_count is 0");
    f->options.min_count = 1;
    f->options.pretokenizer = "gpt";
    refused(f, "there is no pre-tokenizer \"gpt\"; there are gpt2 smollm llama3");
    f->options.pretokenizer = "gpt2";
    f->options.n_specials = 1;
    f->options.specials = special[4];
    refused(f, "vocab_size is 256; it must be 257");
    f->options.vocab_size = 300;
    for (int i = 0; i < 4; i++) {
        f->options.specials = special[i];
        refused(f, "a special token must be two characters");
    }
    f->options.n_specials = 2;
    f->options.specials = special[4];
    refused(f, "the special token \"<a>\" is given twice");
    f->options.n_specials = 0;
    write_text(f, "bad \xFF");
    refused(f, "line 1, byte 4 of the file (0xFF) is not UTF-8");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_merges_of_hugging_face),
        TEST(test_the_highest_count_comes_first),
        TEST(test_ties_go_to_the_lower_ids),
        TEST(test_overlapping_pairs),
        TEST(test_min_count),
        TEST(test_the_same_text_gives_the_same_file),
        TEST(test_special_tokens),
        TEST(test_every_byte_is_a_token),
        TEST(test_what_is_written_opens),
        TEST(test_characters),
        TEST(test_characters_with_special_tokens),
        TEST(test_bad_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
