/* Token shards: what is written is what is read, and what training sees is the same as without
 * them; damage is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/utf8.h"
#include "model/token_shards.h"

enum { MAX_ROWS = 256, N_DOCUMENTS = 200 };

struct fixture {
    char dir[40], input[64], shards[64];
    const char *inputs[2];
    struct tokenizer *tokenizer;
    struct dataset_options options;
    struct token_shards_report report;
    struct error err;
};

/* A character tokenizer for 'a'..'z' whose ids begin at `first`; EOS is 0, and what lies between
 * are characters from U+10000 on. */
static struct tokenizer *letters(int first)
{
    struct buf json;
    char utf8[4];
    buf_init(&json, 4 << 20);
    buf_puts(&json, "{\"added_tokens\": [{\"id\": 0, \"content\": \"<|endoftext|>\", \"special\": "
             "true}], \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": "
             "{\"<|endoftext|>\": 0");
    for (int id = 1; id < first; id++)
        buf_printf(&json, ", \"%.*s\": %d", utf8_encode(0x10000 + (uint32_t)id, utf8), utf8, id);
    for (int i = 0; i < 26; i++) buf_printf(&json, ", \"%c\": %d", 'a' + i, first + i);
    buf_puts(&json, "}}}");
    struct tokenizer *t;
    struct error err;
    if (!tokenizer_open_json(json.data, json.len, "letters", &t, &err)) fail_msg("%s", err.text);
    buf_free(&json);
    return t;
}

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->dir, "/tmp/test_token_shards.XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->input, sizeof f->input, "%s/input.jsonl", f->dir);
    snprintf(f->shards, sizeof f->shards, "%s/shards", f->dir);
    f->tokenizer = letters(1);
    f->inputs[0] = f->input;
    f->options = (struct dataset_options){.inputs = f->inputs, .n_inputs = 1,
                                          .tokenizer = f->tokenizer, .val_fraction = 0.1,
                                          .block_size = 16, .vocab_size = 27, .seed = 3};
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", f->dir);
    assert_int_equal(system(command), 0);
    tokenizer_free(f->tokenizer);
    free(f);
    return 0;
}

/* Documents of 1 to 21 letters; with masks, every seventh of the first half has a prompt. */
static void write_input(struct fixture *f, bool masks)
{
    struct buf text;
    buf_init(&text, 1 << 20);
    for (int i = 0; i < N_DOCUMENTS; i++) {
        bool masked = masks && i % 7 == 0 && i < N_DOCUMENTS / 2;
        buf_puts(&text, masked ? "{\"prompt\": \"pq\", \"completion\": \"" : "{\"text\": \"");
        for (int k = 0; k <= i % 21; k++) buf_putc(&text, (char)('a' + (i + k) % 26));
        buf_puts(&text, "\"}\n");
    }
    write_file(f->input, text.data, text.len);
    buf_free(&text);
}

static void write_shards(struct fixture *f, int64_t shard_bytes)
{
    if (!token_shards_write(&f->options, f->shards, shard_bytes, &f->report, &f->err))
        fail_msg("%s", f->err.text);
}

static struct dataset *open_data(struct fixture *f, const char *path)
{
    struct dataset_options o = f->options;
    struct dataset *ds = NULL;
    o.inputs = &path;
    if (!dataset_open(&o, &ds, &f->err)) fail_msg("%s", f->err.text);
    return ds;
}

static void shard_path(const struct fixture *f, const char *name, char path[128])
{
    snprintf(path, 128, "%s/%s", f->shards, name);
}

/* ---- the same as without ---- */

struct view { int32_t tokens[MAX_ROWS], targets[MAX_ROWS], n_rows, n_spans; int64_t learned; };

static void look(const struct dataset *ds, enum dataset_split split, int64_t index, struct view *v)
{
    static const struct gpt_train_options o = {.max_rows = MAX_ROWS, .max_spans = MAX_ROWS};
    int32_t positions[MAX_ROWS], slots[MAX_ROWS], pages[2 * MAX_ROWS];
    struct span spans[MAX_ROWS];
    *v = (struct view){.n_rows = 0};
    struct gpt_rows rows = {.tokens = v->tokens, .targets = v->targets, .positions = positions,
                            .slots = slots, .pages = pages, .spans = spans};
    v->learned = dataset_add(ds, split, index, &rows, &o);
    v->n_rows = rows.n_rows;
    v->n_spans = rows.n_spans;
}

static void assert_same(struct fixture *f)
{
    struct dataset *files = open_data(f, f->input), *shards = open_data(f, f->shards);
    assert_int_equal(dataset_has_mask(files), dataset_has_mask(shards));
    assert_int_equal(dataset_max_spans(files), dataset_max_spans(shards));
    for (int split = 0; split < N_DATASET_SPLITS; split++) {
        int64_t n = dataset_sequences(files, split);
        assert_true(n > 0);
        assert_int_equal(dataset_sequences(shards, split), n);
        assert_int_equal(dataset_tokens(files, split), dataset_tokens(shards, split));
        assert_int_equal(dataset_documents(files, split), dataset_documents(shards, split));
        for (int64_t i = 0; i < 2 * n; i++) {
            struct view a, b;
            look(files, split, i, &a);
            look(shards, split, i, &b);
            assert_memory_equal(&a, &b, sizeof a);
            assert_true(a.learned >= 0);
        }
    }
    dataset_close(files);
    dataset_close(shards);
}

static void test_training_sees_the_same(void **state)
{
    struct fixture *f = *state;
    write_input(f, true);
    write_shards(f, 700);
    assert_true(f->report.shards[SPLIT_TRAIN] > 5);
    assert_true(f->report.shards[SPLIT_VALIDATION] == 1);
    assert_int_equal(f->report.documents[SPLIT_TRAIN], 180);
    assert_int_equal(f->report.documents[SPLIT_VALIDATION], 20);
    assert_int_equal(f->report.id_bytes, 2);
    assert_true(f->report.has_mask);
    assert_same(f);
    f->options.keep_documents_apart = true;
    assert_same(f);
}

static void test_large_vocabularies_take_four_bytes(void **state)
{
    struct fixture *f = *state;
    struct tokenizer *large = letters(70000);
    tokenizer_free(f->tokenizer);
    f->options.tokenizer = f->tokenizer = large;
    f->options.vocab_size = 70026;
    write_input(f, false);
    write_shards(f, 1 << 20);
    assert_int_equal(f->report.id_bytes, 4);
    assert_false(f->report.has_mask);
    assert_same(f);
}

static void test_directories_add_up(void **state)
{
    struct fixture *f = *state;
    char more[80];
    write_input(f, true);
    write_shards(f, 1 << 20);
    int64_t tokens = f->report.tokens[SPLIT_TRAIN];
    snprintf(more, sizeof more, "%s/more", f->dir);
    write_input(f, false);
    assert_true(token_shards_write(&f->options, more, 1 << 20, &f->report, &f->err));
    const char *inputs[2] = {f->shards, more};
    f->options.inputs = inputs;
    f->options.n_inputs = 2;
    struct dataset *ds = NULL;
    assert_true(dataset_open(&f->options, &ds, &f->err));
    assert_int_equal(dataset_tokens(ds, SPLIT_TRAIN), tokens + f->report.tokens[SPLIT_TRAIN]);
    assert_true(dataset_has_mask(ds)); /* of the first */
    dataset_close(ds);
    inputs[1] = f->input;
    assert_false(dataset_open(&f->options, &ds, &f->err));
    assert_non_null(strstr(f->err.text, "cannot be mixed"));
}

/* ---- what they say of themselves ---- */

static void test_report_and_verify(void **state)
{
    struct fixture *f = *state;
    struct token_shards s;
    write_input(f, true);
    f->options.val_fraction = 0;
    write_shards(f, 700);
    assert_true(f->report.has_mask);
    if (!token_shards_open(f->shards, true, &s, &f->err)) fail_msg("%s", f->err.text);
    assert_memory_equal(&s.report, &f->report, sizeof s.report);
    assert_int_equal(s.report.files, 1);
    assert_int_equal(s.vocab_size, 27);
    int64_t letters_written = 0;
    for (int i = 0; i < N_DOCUMENTS; i++)
        letters_written += i % 21 + 1 + (i % 7 == 0 && i < N_DOCUMENTS / 2 ? 2 : 0);
    assert_int_equal(s.report.text_bytes, letters_written);
    assert_int_equal(s.report.tokens[0] + s.report.tokens[1], letters_written + N_DOCUMENTS);
    token_shards_close(&s);
}

static void test_fingerprints_tell_data_apart(void **state)
{
    struct fixture *f = *state;
    write_input(f, false);
    write_shards(f, 700);
    struct dataset *ds = open_data(f, f->shards);
    char before[65];
    strcpy(before, dataset_fingerprint(ds));
    assert_int_equal(strlen(before), 64);
    dataset_close(ds);
    snprintf(f->shards, sizeof f->shards, "%s/other", f->dir);
    write_input(f, true);
    write_shards(f, 700);
    ds = open_data(f, f->shards);
    assert_string_not_equal(dataset_fingerprint(ds), before);
    dataset_close(ds);
}

static void test_another_tokenizer_is_refused(void **state)
{
    struct fixture *f = *state;
    write_input(f, false);
    write_shards(f, 700);
    struct tokenizer *other = letters(2);
    struct dataset *ds = NULL;
    f->inputs[0] = f->shards;
    f->options.tokenizer = other;
    f->options.vocab_size = 100;
    assert_false(dataset_open(&f->options, &ds, &f->err));
    assert_non_null(strstr(f->err.text, "another tokenizer"));
    f->options.tokenizer = NULL;
    assert_true(dataset_open(&f->options, &ds, &f->err));
    dataset_close(ds);
    f->options.vocab_size = 26;
    assert_false(dataset_open(&f->options, &ds, &f->err));
    assert_non_null(strstr(f->err.text, "has 27 tokens, the model's vocab_size is 26"));
    tokenizer_free(other);
}

static void test_nothing_is_written_twice(void **state)
{
    struct fixture *f = *state;
    write_input(f, false);
    write_shards(f, 700);
    assert_false(token_shards_write(&f->options, f->shards, 700, &f->report, &f->err));
    assert_non_null(strstr(f->err.text, "is there already"));
}

/* A failure in the middle leaves no manifest: the directory is not taken for a data set. */
static void test_failure_leaves_no_manifest(void **state)
{
    struct fixture *f = *state;
    static const char text[] = "{\"text\": \"abc\"}\n{\"text\": \"?\"}\n";
    write_file(f->input, text, sizeof text - 1);
    assert_false(token_shards_write(&f->options, f->shards, 1, &f->report, &f->err));
    assert_non_null(strstr(f->err.text, "line 2"));
    assert_false(token_shards_is_dir(f->shards));
}

/* ---- damage ---- */

static void test_damaged_files_are_found(void **state)
{
    struct fixture *f = *state;
    struct token_shards s;
    struct buf bytes;
    char path[128];
    write_input(f, false);
    write_shards(f, 700);
    shard_path(f, "train-00001.tokens", path);
    buf_init(&bytes, 1 << 20);
    assert_true(file_read(path, &bytes, &f->err));
    bytes.data[3] ^= 1; /* the high byte of an id */
    write_file(path, bytes.data, bytes.len);
    assert_true(token_shards_open(f->shards, false, &s, &f->err));
    token_shards_close(&s);
    assert_false(token_shards_open(f->shards, true, &s, &f->err));
    assert_non_null(strstr(f->err.text, "train-00001.tokens is damaged"));
    /* Training meets the id when it comes to it, and stops there. */
    struct dataset *ds = open_data(f, f->shards);
    struct view v;
    bool met = false;
    for (int64_t i = 0; i < dataset_sequences(ds, SPLIT_TRAIN); i++) {
        look(ds, SPLIT_TRAIN, i, &v);
        met |= v.learned == DATASET_BAD_TOKEN;
        assert_true(v.learned != DATASET_BAD_TOKEN || v.n_rows == 0);
    }
    assert_true(met);
    dataset_close(ds);
    write_file(path, bytes.data, bytes.len - 1);
    assert_false(token_shards_open(f->shards, false, &s, &f->err));
    assert_non_null(strstr(f->err.text, "train-00001.tokens has"));
    unlink(path);
    assert_false(token_shards_open(f->shards, false, &s, &f->err));
    assert_int_equal(f->err.code, ERR_NOT_FOUND);
    buf_free(&bytes);
}

/* A damaged id at a document's end is nothing but a target when documents are kept apart. */
static void test_damaged_targets_are_met(void **state)
{
    struct fixture *f = *state;
    struct buf bytes;
    struct view v;
    char path[128];
    write_input(f, false);
    write_shards(f, 1 << 20);
    shard_path(f, "train-00000.tokens", path);
    buf_init(&bytes, 1 << 20);
    assert_true(file_read(path, &bytes, &f->err));
    for (size_t i = 0; i < (size_t)f->report.tokens[SPLIT_TRAIN]; i++)
        if (bytes.data[2 * i] == 0) bytes.data[2 * i + 1] = 1; /* EOS */
    write_file(path, bytes.data, bytes.len);
    f->options.keep_documents_apart = true;
    struct dataset *ds = open_data(f, f->shards);
    int64_t bad = 0, n = dataset_sequences(ds, SPLIT_TRAIN);
    for (int64_t i = 0; i < n; i++) {
        look(ds, SPLIT_TRAIN, i, &v);
        bad += v.learned == DATASET_BAD_TOKEN;
    }
    assert_in_range(bad, n / 2, n); /* all but the beginnings of long documents */
    dataset_close(ds);
    buf_free(&bytes);
}

/* Where documents begin is read from the file, too: nonsense there crashes nobody. */
static void test_damaged_documents_crash_nobody(void **state)
{
    struct fixture *f = *state;
    struct buf bytes;
    char path[128];
    write_input(f, false);
    write_shards(f, 1 << 20);
    shard_path(f, "train-00000.tokens", path);
    buf_init(&bytes, 1 << 20);
    assert_true(file_read(path, &bytes, &f->err));
    size_t starts = ((size_t)f->report.tokens[SPLIT_TRAIN] * 2 + 7) / 8 * 8;
    for (size_t i = starts; i < bytes.len; i++) bytes.data[i] = (char)(i * 2654435761u >> 13);
    write_file(path, bytes.data, bytes.len);
    f->options.keep_documents_apart = true;
    struct dataset *ds = open_data(f, f->shards);
    struct view v;
    for (int64_t i = 0; i < dataset_sequences(ds, SPLIT_TRAIN); i++) {
        look(ds, SPLIT_TRAIN, i, &v);
        assert_true(v.learned >= 0 && v.n_rows > 0 && v.n_rows <= 16);
    }
    dataset_close(ds);
    buf_free(&bytes);
}

#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define HEAD "{\"format\": \"gptd token shards 1\", \"vocab_size\": 27, \"id_bytes\": 2, " \
             "\"files\": 1, \"text_bytes\": 9, \"tokenizer\": \"" DIGEST "\", "
#define SHARD(members) HEAD "\"splits\": {\"train\": [{\"sha256\": \"" DIGEST "\", " members \
                       "}], \"validation\": []}}"

static void test_bad_manifests(void **state)
{
    static const struct { const char *json, *says; } cases[] = {
        {"", "manifest.json"},
        {"[]", "\"format\" is not"},
        {"{\"format\": \"other\"}", "\"format\" is not"},
        {"{\"format\": \"gptd token shards 1\"}", "\"vocab_size\" is missing"},
        {"{\"format\": \"gptd token shards 1\", \"vocab_size\": 0}", "it must be 1 to"},
        {"{\"format\": \"gptd token shards 1\", \"vocab_size\": 1, \"id_bytes\": 3, \"files\": 1, "
         "\"text_bytes\": 1, \"tokenizer\": \"" DIGEST "\"}", "it must be 2 or 4"},
        {HEAD "\"splits\": {}}", "\"train\" is missing"},
        {HEAD "\"splits\": {\"train\": [7], \"validation\": []}}", "\"file\" is missing"},
        {SHARD("\"file\": \"../x\""), "without a folder"},
        {SHARD("\"file\": \"\""), "without a folder"},
        {SHARD("\"file\": \"x\", \"tokens\": 0"), "\"tokens\" is 0"},
        {SHARD("\"file\": \"x\", \"tokens\": 1.5"), "a whole number"},
        {SHARD("\"file\": \"x\", \"tokens\": 2, \"documents\": 3"), "\"documents\" is 3"},
        {SHARD("\"file\": \"x\", \"tokens\": 2, \"documents\": 1"), "\"mask\" is missing"},
        {SHARD("\"file\": \"x\", \"tokens\": 2, \"documents\": 1, \"mask\": true"), "cannot open"},
        {SHARD("\"file\": \"manifest.json\", \"tokens\": 2, \"documents\": 1, \"mask\": true"),
         "bytes, not the 17 that"},
        {SHARD("\"file\": \"manifest.json\", \"tokens\": 9007199254740992, \"documents\": "
               "9007199254740992, \"mask\": true"), "bytes, not the 91"},
    };
    struct fixture *f = *state;
    struct token_shards s;
    char path[128];
    snprintf(f->shards, sizeof f->shards, "%s", f->dir);
    shard_path(f, "manifest.json", path);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(path, cases[i].json, strlen(cases[i].json));
        assert_false(token_shards_open(f->dir, false, &s, &f->err));
        if (!strstr(f->err.text, cases[i].says))
            fail_msg("%zu: \"%s\" instead of \"%s\"", i, f->err.text, cases[i].says);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_training_sees_the_same),
        TEST(test_large_vocabularies_take_four_bytes),
        TEST(test_directories_add_up),
        TEST(test_report_and_verify),
        TEST(test_fingerprints_tell_data_apart),
        TEST(test_another_tokenizer_is_refused),
        TEST(test_nothing_is_written_twice),
        TEST(test_failure_leaves_no_manifest),
        TEST(test_damaged_files_are_found),
        TEST(test_damaged_targets_are_met),
        TEST(test_damaged_documents_crash_nobody),
        TEST(test_bad_manifests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
