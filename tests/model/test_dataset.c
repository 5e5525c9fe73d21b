/* Data sets: what a step sees, and what is refused with which words. The tokenizer of most tests
 * has a token a character: ids are easy to read off. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/dataset_internal.h"
#include "model/dataset_order.h"

/* ---- fixture ---- */

enum { MAX_ROWS = 4096, MAX_SPANS = 64, VOCAB = 30, EOS = 0 };

static const struct gpt_train_options train_options = {.max_rows = MAX_ROWS,
                                                       .max_spans = MAX_SPANS};

struct fixture {
    char dir[32], path[8][48];
    const char *inputs[8];
    int32_t n_files;
    struct tokenizer *tokenizer;
    struct gpt_rows rows;
    struct dataset_options options;
    struct error err;
};

/* "<|endoftext|>" 0, '\n' 1, ' ' 2, 'a'..'z' 3..28. */
static struct tokenizer *letters(void)
{
    char json[2048];
    int n = snprintf(json, sizeof json, "{\"added_tokens\": [{\"id\": 0, \"content\": "
                     "\"<|endoftext|>\", \"special\": true}], \"model\": {\"type\": \"BPE\", "
                     "\"merges\": [], \"vocab\": {\"<|endoftext|>\": 0, \"\\n\": 1, \" \": 2");
    for (int i = 0; i < 26; i++)
        n += snprintf(json + n, sizeof json - (size_t)n, ", \"%c\": %d", 'a' + i, 3 + i);
    n += snprintf(json + n, sizeof json - (size_t)n, "}}}");
    struct tokenizer *t;
    struct error err;
    if (!tokenizer_open_json(json, (size_t)n, "letters", &t, &err)) fail_msg("%s", err.text);
    return t;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/test_dataset.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->tokenizer = letters();
    assert_int_equal(tokenizer_eos(f->tokenizer), EOS);
    f->rows = (struct gpt_rows){
        .tokens = calloc(MAX_ROWS, 4), .positions = calloc(MAX_ROWS, 4),
        .slots = calloc(MAX_ROWS, 4), .targets = calloc(MAX_ROWS, 4),
        .spans = calloc(MAX_SPANS, sizeof(struct span)),
        .pages = calloc((size_t)gpt_train_pages(&train_options), 4),
    };
    f->options = (struct dataset_options){.inputs = f->inputs, .tokenizer = f->tokenizer,
                                          .block_size = 4, .vocab_size = VOCAB, .seed = 1};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    for (int32_t i = 0; i < f->n_files; i++) unlink(f->path[i]);
    rmdir(f->dir);
    tokenizer_free(f->tokenizer);
    free(f->rows.tokens);
    free(f->rows.positions);
    free(f->rows.slots);
    free(f->rows.targets);
    free(f->rows.spans);
    free(f->rows.pages);
    free(f);
    return 0;
}

/* Writes a file and makes it one more input. */
static void add_file(struct fixture *f, const char *name, const char *bytes, size_t n)
{
    char path[48];
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    strcpy(f->path[f->n_files], path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
    f->inputs[f->n_files] = f->path[f->n_files];
    f->n_files++;
    f->options.n_inputs = f->n_files;
}

static void add_text(struct fixture *f, const char *name, const char *text)
{
    add_file(f, name, text, strlen(text));
}

static struct dataset *open_data(struct fixture *f)
{
    struct dataset *ds = NULL;
    if (!dataset_open(&f->options, &ds, &f->err)) fail_msg("%s", f->err.text);
    return ds;
}

static void refused(struct fixture *f, enum error_code code, const char *says)
{
    struct dataset *ds = NULL;
    assert_false(dataset_open(&f->options, &ds, &f->err));
    assert_null(ds);
    if (f->err.code != code || !strstr(f->err.text, says))
        fail_msg("%d \"%s\" instead of %d \"%s\"", f->err.code, f->err.text, code, says);
}

static char letter(int32_t id)
{
    return id < 0 ? '-' : id == EOS ? '.' : id == 1 ? '/' : id == 2 ? '_' : (char)('a' + id - 3);
}

/* Sequence `index` as "tokens>targets", spans parted by '|'; borrowed until the next call. */
static const char *sequence(struct fixture *f, const struct dataset *ds, enum dataset_split split,
                            int64_t index, int64_t *targets)
{
    static char text[4 * MAX_ROWS];
    char *out = text;
    gpt_rows_clear(&f->rows);
    *targets = dataset_add(ds, split, index, &f->rows, &train_options);
    assert_true(*targets >= 0);
    for (int32_t s = 0; s < f->rows.n_spans; s++) {
        const struct span *span = &f->rows.spans[s];
        if (s > 0) *out++ = '|';
        for (int32_t i = 0; i < span->n_rows; i++) *out++ = letter(f->rows.tokens[span->row0 + i]);
        *out++ = '>';
        for (int32_t i = 0; i < span->n_rows; i++) {
            *out++ = letter(f->rows.targets[span->row0 + i]);
            assert_int_equal(f->rows.positions[span->row0 + i], i);
        }
    }
    *out = 0;
    return text;
}

static void expect(struct fixture *f, const struct dataset *ds, enum dataset_split split,
                   int64_t index, const char *text, int64_t targets)
{
    int64_t learned;
    assert_string_equal(sequence(f, ds, split, index, &learned), text);
    assert_int_equal(learned, targets);
}

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz";

/* ---- order ---- */

static void test_order_is_a_permutation(void **state)
{
    static const int64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 100, 1000};
    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int64_t n = sizes[k];
        bool *seen = calloc((size_t)n, sizeof *seen);
        for (int64_t i = 0; i < n; i++) {
            int64_t to = dataset_order(7, 3, n, i);
            assert_true(to >= 0 && to < n);
            assert_false(seen[to]);
            seen[to] = true;
        }
        free(seen);
    }
    assert_in_range(dataset_order(1, 0, INT64_C(1) << 62, 12345), 0, (INT64_C(1) << 62) - 1);
}

/* Every element goes everywhere about equally often over epochs, and neighbours part. */
static void test_order_is_even(void **state)
{
    enum { N = 10, EPOCHS = 4000 };
    int counts[N][N] = {0}, neighbours = 0;
    (void)state;
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        int64_t before = -1;
        for (int i = 0; i < N; i++) {
            int64_t to = dataset_order(5, epoch, N, i);
            counts[i][to]++;
            neighbours += i > 0 && to == before + 1;
            before = to;
        }
    }
    /* 400 each, standard deviation 19; of 9 neighbours 0.9 stay such. */
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) assert_in_range(counts[i][j], 400 - 5 * 19, 400 + 5 * 19);
    assert_in_range(neighbours, EPOCHS * 8 / 10, EPOCHS * 10 / 10);
}

static void test_order_differs_by_seed_and_epoch(void **state)
{
    enum { N = 1000 };
    int same_seed = 0, same_epoch = 0;
    (void)state;
    for (int64_t i = 0; i < N; i++) {
        same_epoch += dataset_order(1, 0, N, i) == dataset_order(1, 1, N, i);
        same_seed += dataset_order(1, 0, N, i) == dataset_order(2, 0, N, i);
    }
    assert_in_range(same_epoch, 0, 10);
    assert_in_range(same_seed, 0, 10);
}

/* What a run saw must never change: a resumed run would see other data. */
static void test_order_known_answers(void **state)
{
    static const int64_t expected[8] = {286, 860, 902, 731, 495, 891, 698, 958};
    (void)state;
    for (int64_t i = 0; i < 8; i++) assert_int_equal(dataset_order(42, 1, 1000, i), expected[i]);
    assert_int_equal(dataset_phase(42, 1, 1000), 83);
}

/* ---- documents as they flow ---- */

static void test_one_epoch_covers_the_text(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", alphabet); /* 26 and EOS: 27 tokens, 6 sequences of 4 */
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_tokens(ds, SPLIT_TRAIN), 27);
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 1);
    assert_int_equal(dataset_sequences(ds, SPLIT_TRAIN), 6);
    assert_int_equal(dataset_sequences(ds, SPLIT_VALIDATION), 0);
    assert_int_equal(dataset_max_spans(ds), 1);
    assert_false(dataset_has_mask(ds));
    int phases[4] = {0};
    for (int64_t epoch = 0; epoch < 40; epoch++) {
        int64_t learned, phase = dataset_phase(1, epoch, 4);
        bool seen[27] = {false};
        phases[phase]++;
        for (int64_t i = 0; i < 6; i++) {
            const char *text = sequence(f, ds, SPLIT_TRAIN, epoch * 6 + i, &learned);
            assert_int_equal(learned, 4);
            int begin = text[0] - 'a';
            assert_true(begin == 0 || begin % 4 == phase);
            for (int k = 0; k < 4; k++) {
                assert_int_equal(text[k], alphabet[begin + k]);
                assert_int_equal(text[5 + k], begin + k + 1 < 26 ? alphabet[begin + k + 1] : '.');
                seen[begin + k] = true;
            }
        }
        /* Six blocks of four leave two of 26 tokens out; where the last block is taken from the
         * beginning, it may meet the first. */
        int missed = 0;
        for (int i = 0; i < 26; i++) missed += !seen[i];
        assert_in_range(missed, 2, 3);
    }
    for (int i = 0; i < 4; i++) assert_true(phases[i] > 0);
    dataset_close(ds);
}

static void test_order_depends_on_seed_epoch_and_index_alone(void **state)
{
    struct fixture *f = *state;
    int64_t learned;
    add_text(f, "a.txt", alphabet);
    struct dataset *one = open_data(f), *two = open_data(f);
    char late[64];
    strcpy(late, sequence(f, two, SPLIT_TRAIN, 1000001, &learned));
    for (int64_t i = 0; i < 100; i++) sequence(f, one, SPLIT_TRAIN, i, &learned);
    assert_string_equal(sequence(f, one, SPLIT_TRAIN, 1000001, &learned), late);
    assert_string_equal(dataset_fingerprint(one), dataset_fingerprint(two));
    assert_int_equal(strlen(dataset_fingerprint(one)), 64);
    dataset_close(one);
    dataset_close(two);
}

static void test_fingerprint_follows_the_data(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", alphabet);
    struct dataset *one = open_data(f);
    add_text(f, "b.txt", "b");
    struct dataset *two = open_data(f);
    assert_string_not_equal(dataset_fingerprint(one), dataset_fingerprint(two));
    dataset_close(one);
    dataset_close(two);
}

static void test_documents_flow_with_eos_between(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "ab");
    add_text(f, "b.txt", "c");
    f->options.val_fraction = 0;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_tokens(ds, SPLIT_TRAIN), 5);
    expect(f, ds, SPLIT_TRAIN, 0, "ab.c>b.c.", 4);
    expect(f, ds, SPLIT_TRAIN, 9, "ab.c>b.c.", 4);
    dataset_close(ds);
}

static void test_text_is_parted_at_the_end_of_text(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "ab\n<|endoftext|>\ncd<|endoftext|><|endoftext|>\r\ne");
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 3);
    f->options.block_size = 8;
    struct dataset *whole = open_data(f);
    expect(f, whole, SPLIT_TRAIN, 0, "ab/.cd.e>b/.cd.e.", 8);
    dataset_close(ds);
    dataset_close(whole);
}

static void test_a_byte_order_mark_is_skipped(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "\xEF\xBB\xBF" "abcd");
    struct dataset *ds = open_data(f);
    expect(f, ds, SPLIT_TRAIN, 0, "abcd>bcd.", 4);
    dataset_close(ds);
}

/* ---- validation ---- */

static void test_few_documents_are_split_inside(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "abcdefghijklmnopqrs"); /* 19 and EOS */
    add_text(f, "b.txt", "zyxwvutsr");           /* 9 and EOS */
    f->options.val_fraction = 0.2;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_tokens(ds, SPLIT_TRAIN), 16 + 1 + 8 + 1);
    assert_int_equal(dataset_tokens(ds, SPLIT_VALIDATION), 4 + 2);
    /* In file order; the last sequence holds what is left; the same in each epoch. */
    assert_int_equal(dataset_sequences(ds, SPLIT_VALIDATION), 2);
    for (int64_t epoch = 0; epoch < 3; epoch++) {
        expect(f, ds, SPLIT_VALIDATION, 2 * epoch, "qrs.>rs.r", 4);
        expect(f, ds, SPLIT_VALIDATION, 2 * epoch + 1, "r>.", 1);
    }
    dataset_close(ds);
}

static void write_many(struct fixture *f, int n)
{
    char text[4096];
    int at = 0;
    for (int i = 0; i < n; i++)
        at += snprintf(text + at, sizeof text - (size_t)at, "%c%c<|endoftext|>", 'a' + i / 26,
                       'a' + i % 26);
    add_text(f, "many.txt", text);
}

static void test_many_documents_are_split_whole(void **state)
{
    struct fixture *f = *state;
    write_many(f, 100);
    f->options.val_fraction = 0.1;
    f->options.keep_documents_apart = true;
    f->options.block_size = 2;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 90);
    assert_int_equal(dataset_documents(ds, SPLIT_VALIDATION), 10);
    /* Each document is in one of them, and the seed does not matter. */
    bool seen[100] = {false};
    int64_t learned;
    f->options.seed = 99;
    struct dataset *other = open_data(f);
    for (int split = 0; split < 2; split++)
        for (int64_t i = 0; i < dataset_sequences(ds, split); i++) {
            const char *text = sequence(f, ds, split, i, &learned);
            int number = (text[0] - 'a') * 26 + text[1] - 'a';
            assert_in_range(number, 0, 99);
            assert_false(seen[number]);
            seen[number] = true;
        }
    for (int i = 0; i < 100; i++) assert_true(seen[i]);
    assert_string_equal(dataset_fingerprint(ds), dataset_fingerprint(other));
    dataset_close(ds);
    dataset_close(other);
}

/* However small or large the fraction, neither part is empty. */
static void test_two_documents_are_one_each(void **state)
{
    static const double fractions[] = {0.01, 0.5, 0.99};
    struct fixture *f = *state;
    add_text(f, "a.jsonl", "{\"text\": \"abcd\"}\n{\"text\": \"efgh\"}");
    for (int i = 0; i < 3; i++) {
        f->options.val_fraction = fractions[i];
        struct dataset *ds = open_data(f);
        assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 1);
        assert_int_equal(dataset_documents(ds, SPLIT_VALIDATION), 1);
        dataset_close(ds);
    }
}

static void test_all_can_be_validation(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "abc");
    f->options.val_fraction = 1;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_tokens(ds, SPLIT_TRAIN), 0);
    assert_int_equal(dataset_sequences(ds, SPLIT_TRAIN), 0);
    expect(f, ds, SPLIT_VALIDATION, 0, "abc>bc.", 3);
    dataset_close(ds);
}

/* ---- documents kept apart ---- */

static void test_documents_apart_are_packed_whole(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "ab<|endoftext|>c<|endoftext|>defg<|endoftext|>hijklmnop");
    f->options.keep_documents_apart = true;
    struct dataset *ds = open_data(f);
    /* Rows: 2, 1, 4, 9: the first two together, the third alone, the last in pieces 4 4 1. */
    static const char *const expected[] = {"ab>b.|c>.", "defg>efg.", "hijk>ijkl", "lmno>mnop",
                                           "p>."};
    bool seen[5] = {false};
    int64_t learned;
    assert_int_equal(dataset_sequences(ds, SPLIT_TRAIN), 5);
    assert_int_equal(dataset_max_spans(ds), 2);
    for (int64_t i = 0; i < 5; i++) {
        const char *text = sequence(f, ds, SPLIT_TRAIN, i, &learned);
        int k = 0;
        while (k < 5 && strcmp(text, expected[k]) != 0) k++;
        if (k == 5) fail_msg("unexpected sequence %s", text);
        assert_false(seen[k]);
        seen[k] = true;
    }
    dataset_close(ds);
}

/* Without an end of text a document of one character has nothing to learn. */
static void test_documents_of_one_token_are_left_out(void **state)
{
    static const char json[] = "{\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": "
                               "{\"a\": 3, \"b\": 4}}}";
    struct fixture *f = *state;
    struct tokenizer *t;
    assert_true(tokenizer_open_json(json, sizeof json - 1, "a b", &t, &f->err));
    f->options.tokenizer = t;
    f->options.keep_documents_apart = true;
    add_text(f, "a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}");
    refused(f, ERR_INVALID, "no document of two tokens");
    add_text(f, "b.jsonl", "{\"text\": \"ab\"}\n{\"text\": \"b\"}");
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_sequences(ds, SPLIT_TRAIN), 1);
    expect(f, ds, SPLIT_TRAIN, 0, "a>b", 1);
    dataset_close(ds);
    tokenizer_free(t);
}

static void test_no_room_changes_nothing(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "ab<|endoftext|>c");
    f->options.keep_documents_apart = true;
    struct dataset *ds = open_data(f);
    struct gpt_train_options o = {.max_rows = 4, .max_spans = 1};
    assert_int_equal(dataset_add(ds, SPLIT_TRAIN, 0, &f->rows, &o), DATASET_NO_ROOM);
    assert_int_equal(f->rows.n_rows, 0);
    assert_int_equal(f->rows.n_spans, 0);
    assert_int_equal(f->rows.n_pages, 0);
    o = (struct gpt_train_options){.max_rows = 2, .max_spans = 2};
    assert_int_equal(dataset_add(ds, SPLIT_TRAIN, 0, &f->rows, &o), DATASET_NO_ROOM);
    assert_int_equal(f->rows.n_rows, 0);
    o.max_rows = 3;
    assert_int_equal(dataset_add(ds, SPLIT_TRAIN, 0, &f->rows, &o), 3);
    assert_int_equal(f->rows.n_rows, 3);
    dataset_close(ds);
}

/* ---- JSON lines ---- */

/* Renders "<role's first letter>: content " and lets the assistant's content be learned. */
static bool fake_chat(void *ctx, const struct dataset_message *messages, size_t n,
                      struct token_ids *ids, struct buf *loss, struct error *err)
{
    const struct tokenizer *t = ctx;
    for (size_t i = 0; i < n; i++) {
        bool learn = strcmp(messages[i].role, "assistant") == 0 && !messages[i].unlearned;
        if (!tokenizer_encode(t, messages[i].role, 1, 0, SIZE_MAX, ids, err) ||
            !tokenizer_encode(t, messages[i].content, messages[i].n_content, 0, SIZE_MAX, ids, err))
            return false;
        buf_putc(loss, 0);
        for (size_t k = 0; k < messages[i].n_content; k++) buf_putc(loss, learn);
    }
    return true;
}

static void test_json_lines(void **state)
{
    struct fixture *f = *state;
    const struct dataset_chat chat = {fake_chat, f->tokenizer};
    add_text(f, "a.jsonl", "{\"text\": \"ab\\nc\", \"id\": 7}\r\n\n"
             "{\"prompt\": \"de\", \"completion\": \"fg\"}\n  \n"
             "{\"messages\": [{\"role\": \"user\", \"content\": \"xy\"},"
             " {\"role\": \"assistant\", \"content\": \"zz\"}]}");
    f->options.chat = &chat;
    f->options.block_size = 15;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 3);
    assert_true(dataset_has_mask(ds));
    expect(f, ds, SPLIT_TRAIN, 0, "ab/c.defg.uxyaz>b/c.--fg.----zz", 9);
    dataset_close(ds);

    f->options.keep_documents_apart = true;
    f->options.block_size = 5;
    ds = open_data(f);
    assert_int_equal(dataset_sequences(ds, SPLIT_TRAIN), 3);
    int64_t learned, all = 0;
    for (int64_t i = 0; i < 3; i++) {
        const char *text = sequence(f, ds, SPLIT_TRAIN, i, &learned);
        assert_true(strcmp(text, "ab/c>b/c.") == 0 || strcmp(text, "defg>-fg.") == 0 ||
                    strcmp(text, "uxyaz>---zz") == 0);
        all += learned;
    }
    assert_int_equal(all, 4 + 3 + 2);
    dataset_close(ds);
}

static void test_messages_of_weight_0_are_context(void **state)
{
    struct fixture *f = *state;
    const struct dataset_chat chat = {fake_chat, f->tokenizer};
    add_text(f, "a.jsonl", "{\"messages\": [{\"role\": \"developer\", \"content\": \"xy\"},"
             " {\"role\": \"assistant\", \"content\": \"zz\", \"weight\": 0},"
             " {\"role\": \"user\", \"content\": \"c\", \"weight\": 1},"
             " {\"role\": \"assistant\", \"content\": \"de\", \"weight\": 1}]}");
    f->options.chat = &chat;
    f->options.block_size = 10;
    struct dataset *ds = open_data(f);
    expect(f, ds, SPLIT_TRAIN, 0, "dxyazzucad>--------de", 2);
    dataset_close(ds);
}

static void test_bad_json_lines(void **state)
{
    static const struct { const char *line, *says; enum error_code code; } cases[] = {
        {"{\"text\": \"a\"", "bad.jsonl: line 3: invalid JSON at byte 12", ERR_FORMAT},
        {"{", "expected a key in quotes; each line must be one JSON object", ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0}]}",
         "nothing to learn", ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0.5}]}",
         "\"weight\" must be 0 or 1", ERR_FORMAT},
        {"[1]", "line 3 is an array; each line must be one JSON object", ERR_FORMAT},
        {"{}", "line 3: must have either", ERR_FORMAT},
        {"{\"text\": \"a\", \"prompt\": \"b\"}", "line 3: must have either", ERR_FORMAT},
        {"{\"text\": 1}", "\"text\" is a number; it must be a string", ERR_FORMAT},
        {"{\"prompt\": \"a\"}", "\"completion\" is missing", ERR_FORMAT},
        {"{\"prompt\": \"a\", \"completion\": \"\"}", "\"completion\" is empty", ERR_FORMAT},
        {"{\"completion\": \"a\"}", "\"prompt\" is missing", ERR_FORMAT},
        {"{\"text\": \"A\"}", "line 3: ", ERR_INVALID},
        {"{\"messages\": []}", "must be an array of messages", ERR_FORMAT},
        {"{\"messages\": {}}", "must be an array of messages", ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "nothing to learn",
         ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}", "the role \"tool\"",
         ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"user\"}]}", "\"content\" is missing", ERR_FORMAT},
        {"{\"messages\": [7]}", "\"role\" is missing", ERR_FORMAT},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
         "need a model with a chat template", ERR_FORMAT},
    };
    struct fixture *f = *state;
    char text[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "{\"text\": \"ok\"}\n\n%s\n", cases[i].line);
        add_text(f, "bad.jsonl", text);
        refused(f, cases[i].code, cases[i].says);
        f->n_files--;
    }
    add_text(f, "bad.jsonl", "\n\n");
    refused(f, ERR_FORMAT, "bad.jsonl has no documents");
}

static bool join_texts(void *ctx, const char *text, size_t n, struct error *err)
{
    struct buf *all = ctx;
    (void)err;
    buf_append(all, text, n);
    buf_putc(all, '|');
    return true;
}

static void test_texts_are_visited(void **state)
{
    struct fixture *f = *state;
    struct buf all;
    buf_init(&all, 1000);
    add_text(f, "a.txt", "One<|endoftext|>Two");
    add_text(f, "b.jsonl", "{\"prompt\": \"P\", \"completion\": \"C\"}\n{\"messages\": "
             "[{\"role\": \"user\", \"content\": \"U\"}, {\"role\": \"assistant\","
             " \"content\": \"A\"}]}");
    assert_true(dataset_visit_texts(f->inputs, f->n_files, join_texts, &all, &f->err));
    assert_string_equal(all.data, "One<|endoftext|>Two|P|C|U|A|");
    buf_free(&all);
}

/* ---- long texts ---- */

static void test_where_long_texts_are_cut(void **state)
{
    static const struct { const char *text; size_t limit, near_end, cut; } cases[] = {
        {"one\ntwo\nthree", 10, 9, 8},     /* the last line's end */
        {"one\ntwo\nthree", 8, 7, 8},
        {"one\ntwo\nthree", 7, 6, 4},
        {"one\ntwo\n\nthree", 11, 10, 4},  /* not beside a blank line */
        {"one\ntwo\n three", 11, 10, 4},   /* nor before or behind a space */
        {"one\ntwo \nthree", 11, 10, 4},
        {"one\ntwo \nthree", 11, 4, 9},    /* unless there is no other nearby */
        {"one two three", 8, 7, 8},
        {"a\xF0\x9F\x99\x82z", 4, 3, 1},   /* never inside a character */
        {"a\xF0\x9F\x99\x82z", 5, 4, 5},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(dataset_text_cut(cases[i].text, cases[i].limit, cases[i].near_end),
                         cases[i].cut);
}

/* Over 16 MiB: in pieces, cut between lines, with nothing put between them. */
static void test_a_long_text_comes_in_pieces(void **state)
{
    struct fixture *f = *state;
    enum { N = 17 << 20 };
    char *text = malloc(N);
    for (size_t i = 0; i < N; i++) text[i] = i % 1000 == 999 ? '\n' : (char)('a' + i % 23);
    add_file(f, "long.txt", text, N);
    f->options.block_size = 1000;
    f->options.val_fraction = 0.25;
    struct dataset *ds = open_data(f);
    int64_t train = dataset_tokens(ds, SPLIT_TRAIN), val = dataset_tokens(ds, SPLIT_VALIDATION);
    /* Two pieces; each part held out is followed by an EOS where it was. */
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 2);
    assert_int_equal(train + val, N + 1 + 2);
    f->options.val_fraction = 0;
    struct dataset *whole = open_data(f);
    assert_int_equal(dataset_tokens(whole, SPLIT_TRAIN), N + 1);
    int64_t learned;
    for (int64_t i = 0; i < dataset_sequences(whole, SPLIT_TRAIN); i++) {
        const char *at = sequence(f, whole, SPLIT_TRAIN, i, &learned);
        assert_int_equal(learned, 1000);
        assert_ptr_equal(strchr(at, '>'), at + 1000);
        const char *end = memchr(at, '.', 1000), *line = memchr(at, '/', 1000);
        assert_null(end);
        assert_non_null(line);
        for (int k = 0; k < 998; k++) { /* letters go round, and a line's end takes one's place */
            int step = at[k] == '/' || at[k + 1] == '/' ? 0 : at[k + 1] - at[k];
            assert_true(step == 0 || step == 1 || step == -22);
            assert_true(step != 0 || at + k == line || at + k + 1 == line);
        }
    }
    dataset_close(ds);
    dataset_close(whole);
    free(text);
}

static void test_bos_begins_documents(void **state)
{
    static const char json[] =
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"<s>\": 0, \"</s>\": 1, \"a\": 2, "
        "\"b\": 3}, \"merges\": []}, \"added_tokens\": [{\"id\": 0, \"content\": \"<s>\", "
        "\"special\": true}, {\"id\": 1, \"content\": \"</s>\", \"special\": true}], "
        "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "
        "{\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}], \"special_tokens\": "
        "{\"<s>\": {\"ids\": [0]}}}}";
    struct fixture *f = *state;
    struct tokenizer *t;
    if (!tokenizer_open_json(json, sizeof json - 1, "bos", &t, &f->err))
        fail_msg("%s", f->err.text);
    add_text(f, "a.jsonl", "{\"text\": \"ab\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}");
    f->options.tokenizer = t;
    f->options.block_size = 7;
    struct dataset *ds = open_data(f);
    gpt_rows_clear(&f->rows);
    assert_int_equal(dataset_add(ds, SPLIT_TRAIN, 0, &f->rows, &train_options), 5);
    static const int32_t tokens[] = {0, 2, 3, 1, 0, 2, 3}, targets[] = {2, 3, 1, -1, -1, 3, 1};
    assert_memory_equal(f->rows.tokens, tokens, sizeof tokens);
    assert_memory_equal(f->rows.targets, targets, sizeof targets);
    dataset_close(ds);
    tokenizer_free(t);
}

/* ---- what is refused ---- */

static void test_too_short(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", "abc");
    refused(f, ERR_INVALID, "have 4 tokens; a sequence of block_size 4 needs 5");
}

static void test_bad_text(void **state)
{
    static const struct { const char *bytes; size_t n; const char *says; } cases[] = {
        {"", 0, "bad.txt is empty"},
        {"\xEF\xBB\xBF", 3, "bad.txt is empty"},
        {"ab\ncd\xFF" "e", 7, "bad.txt: line 2, byte 5 of the file (0xFF) is not UTF-8"},
        {"\xEF\xBB\xBF" "a\n\nb\xC3", 8, "line 3, byte 7 of the file (0xC3) is not UTF-8"},
        {"\xFF\xFE" "a\0b\0", 6, "is UTF-16"},
        {"a\0b\0c\0d\0", 8, "is UTF-16"},
        {"\0a\0b\0c\0d", 8, "is UTF-16"},
        {"abcdefg\nabc\0", 12, "line 2, byte 11 of the file is NUL"},
        {"<|endoftext|>", 13, "bad.txt has no documents"},
        {"aBc", 3, "bad.txt: the text at byte 0"},
    };
    struct fixture *f = *state;
    add_text(f, "good.txt", alphabet);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        add_file(f, "bad.txt", cases[i].bytes, cases[i].n);
        refused(f, cases[i].says[0] == 'b' && i == 9 ? ERR_INVALID : ERR_FORMAT, cases[i].says);
        f->n_files--;
    }
    f->n_files++;
}

static void test_missing_inputs(void **state)
{
    struct fixture *f = *state;
    refused(f, ERR_INVALID, "no input files");
    f->inputs[0] = "/tmp/no_such_file.txt";
    f->options.n_inputs = 1;
    refused(f, ERR_NOT_FOUND, "there is no file /tmp/no_such_file.txt");
    f->inputs[0] = f->dir;
    refused(f, ERR_INVALID, "is a directory without manifest.json");
}

static void test_globs(void **state)
{
    struct fixture *f = *state;
    char pattern[64];
    add_text(f, "b.txt", "cd");
    add_text(f, "a.txt", "ab");
    add_text(f, "c.text", "xyz");
    snprintf(pattern, sizeof pattern, "%s/*.txt", f->dir);
    f->inputs[0] = pattern;
    f->options.n_inputs = 1;
    struct dataset *ds = open_data(f);
    assert_int_equal(dataset_documents(ds, SPLIT_TRAIN), 2);
    const char *text = sequence(f, ds, SPLIT_TRAIN, 0, &(int64_t){0});
    assert_string_equal(text, text[0] == 'a' ? "ab.c>b.cd" : "b.cd>.cd.");
    dataset_close(ds);
}

static void test_bad_options(void **state)
{
    struct fixture *f = *state;
    add_text(f, "a.txt", alphabet);
    f->options.vocab_size = 20;
    refused(f, ERR_INVALID, "the tokenizer has 29 tokens, the model's vocab_size is 20");
    f->options.vocab_size = VOCAB;
    f->options.val_fraction = 1.5;
    refused(f, ERR_INVALID, "val_fraction is 1.5");
    f->options.val_fraction = 0;
    f->options.block_size = 0;
    refused(f, ERR_INVALID, "block_size is 0");
    f->options.block_size = 4;
    f->options.tokenizer = NULL;
    refused(f, ERR_INVALID, "text needs a tokenizer");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_is_a_permutation),
        cmocka_unit_test(test_order_is_even),
        cmocka_unit_test(test_order_differs_by_seed_and_epoch),
        cmocka_unit_test(test_order_known_answers),
        TEST(test_one_epoch_covers_the_text),
        TEST(test_order_depends_on_seed_epoch_and_index_alone),
        TEST(test_fingerprint_follows_the_data),
        TEST(test_documents_flow_with_eos_between),
        TEST(test_text_is_parted_at_the_end_of_text),
        TEST(test_a_byte_order_mark_is_skipped),
        TEST(test_few_documents_are_split_inside),
        TEST(test_many_documents_are_split_whole),
        TEST(test_two_documents_are_one_each),
        TEST(test_all_can_be_validation),
        TEST(test_documents_apart_are_packed_whole),
        TEST(test_documents_of_one_token_are_left_out),
        TEST(test_no_room_changes_nothing),
        TEST(test_json_lines),
        TEST(test_messages_of_weight_0_are_context),
        TEST(test_bad_json_lines),
        TEST(test_texts_are_visited),
        cmocka_unit_test(test_where_long_texts_are_cut),
        TEST(test_a_long_text_comes_in_pieces),
        TEST(test_bos_begins_documents),
        TEST(test_too_short),
        TEST(test_bad_text),
        TEST(test_missing_inputs),
        TEST(test_globs),
        TEST(test_bad_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
