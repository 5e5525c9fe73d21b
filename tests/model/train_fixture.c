/* A small training run: see train_fixture.h. */
#include "tests/model/train_fixture.h"

#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/tokenizer_char.h"
#include "model/tokenizer_write.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

static void write_text(const char *path, int64_t n_bytes)
{
    static const char *const who[] = {"the cat", "a dog", "my bird", "the old man", "she"};
    static const char *const does[] = {"sees", "likes", "finds", "forgets"};
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    uint32_t x = 1;
    for (int64_t n = 0; n < n_bytes;) {
        x = x * 1664525 + 1013904223;
        n += fprintf(f, "%s %s %s.\n", who[x >> 8 & 3], does[x >> 16 & 3], who[(x >> 24) % 5]);
    }
    assert_int_equal(fclose(f), 0);
}

static void make_tokenizer(struct train_fixture *f)
{
    const char *const inputs[] = {f->text_path};
    struct buf json;
    struct error err;
    int32_t n;
    buf_init(&json, 1 << 20);
    must(tokenizer_char_make(inputs, 1, NULL, 0, &json, &n, &err), &err);
    must(tokenizer_write(f->run, &json, NULL, &err), &err);
    must(tokenizer_open_json(json.data, json.len, "tokenizer.json", &f->tokenizer, &err), &err);
    buf_free(&json);
    f->options.model.vocab_size = n;
}

static void set_options(struct train_fixture *f)
{
    static const char model[] = "{\"n_layer\":2,\"n_head\":2,\"n_embd\":32,\"block_size\":16}";
    struct error err;
    struct trainer_options *o = &f->options;
    must(gpt_config_from_preset(model, strlen(model), "test", &o->model, &err), &err);
    train_config_init(&o->config);
    o->config.batch_size = 4;
    o->config.max_iters = 20;
    o->config.learning_rate = 3e-3;
    o->config.eval_interval = o->config.save_interval = 0;
    o->config.sample_tokens = 0;
    o->config.val_fraction = 0.2;
    o->config.eval_iters = 2;
    o->dir = o->tokenizer_dir = f->run;
}

void train_fixture_open_data(struct train_fixture *f)
{
    const char *const inputs[] = {f->text_path};
    struct trainer_options *o = &f->options;
    struct error err;
    train_config_resolve(&o->config, o->model.block_size, o->model.vocab_size);
    struct dataset_options d = {
        .inputs = inputs, .n_inputs = 1, .tokenizer = f->tokenizer,
        .val_fraction = o->config.val_fraction, .block_size = o->config.sequence_length,
        .vocab_size = o->model.vocab_size, .seed = (uint64_t)o->config.seed,
        .keep_documents_apart = o->config.keep_documents_apart,
    };
    dataset_close(f->data);
    must(dataset_open(&d, &f->data, &err), &err);
    o->data = f->data;
    o->sets[0] = (struct trainer_set){"validation", f->data, SPLIT_VALIDATION};
    o->n_sets = dataset_sequences(f->data, SPLIT_VALIDATION) > 0;
}

void train_fixture_open(struct train_fixture *f, int64_t n_bytes)
{
    struct error err;
    struct cpu_options cpu = {.n_threads = 2, .isa = CPU_ISA_BEST};
    *f = (struct train_fixture){.dir = "/tmp/gptd-train-XXXXXX"};
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->text_path, sizeof f->text_path, "%s/text.txt", f->dir);
    write_text(f->text_path, n_bytes);
    snprintf(f->run, sizeof f->run, "%s/run", f->dir);
    assert_int_equal(mkdir(f->run, 0777), 0);
    must(cpu_device_open(&cpu, &f->device, &err), &err);
    set_options(f);
    make_tokenizer(f);
    f->options.tokenizer = f->tokenizer;
    train_fixture_open_data(f);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void train_fixture_close(struct train_fixture *f)
{
    train_fixture_end(f);
    dataset_close(f->data);
    tokenizer_free(f->tokenizer);
    f->device->ops->close(f->device);
    nftw(f->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

void train_fixture_begin(struct train_fixture *f)
{
    struct error err;
    must(trainer_open(f->device, &f->options, NULL, &f->trainer, &err), &err);
}

void train_fixture_resume(struct train_fixture *f)
{
    struct error err;
    char path[RUN_PATH_MAX];
    int64_t step = train_state_newest(f->run);
    assert_true(step >= 0);
    must(train_state_path(f->run, step, path, &err), &err);
    must(trainer_open(f->device, &f->options, path, &f->trainer, &err), &err);
    assert_int_equal(trainer_step_number(f->trainer), step);
}

void train_fixture_end(struct train_fixture *f)
{
    trainer_close(f->trainer);
    f->trainer = NULL;
}

void train_fixture_steps(struct train_fixture *f, int64_t n)
{
    struct error err;
    for (int64_t i = 0; i < n; i++) must(trainer_advance(f->trainer, &err), &err);
}

enum trainer_end train_fixture_run(struct train_fixture *f)
{
    struct error err;
    enum trainer_end end;
    must(trainer_run(f->trainer, &end, &err), &err);
    return end;
}

void train_fixture_use_run(struct train_fixture *f, const char *name)
{
    char from[128];
    struct error err;
    struct buf text;
    snprintf(from, sizeof from, "%s/tokenizer.json", f->run);
    buf_init(&text, 1 << 20);
    must(file_read(from, &text, &err), &err);
    snprintf(f->run, sizeof f->run, "%s/%s", f->dir, name);
    mkdir(f->run, 0777);
    must(tokenizer_write(f->run, &text, NULL, &err), &err);
    buf_free(&text);
}

char *train_fixture_read(const struct train_fixture *f, const char *path, size_t *n)
{
    char whole[RUN_PATH_MAX];
    struct buf text;
    struct error err;
    snprintf(whole, sizeof whole, "%s/%s", f->dir, path);
    buf_init(&text, 1 << 26);
    must(file_read(whole, &text, &err), &err);
    *n = text.len;
    return text.data ? text.data : calloc(1, 1);
}

void train_fixture_same(const struct train_fixture *f, const char *a, const char *b)
{
    size_t n, m;
    char *x = train_fixture_read(f, a, &n), *y = train_fixture_read(f, b, &m);
    if (n != m || memcmp(x, y, n) != 0) fail_msg("%s and %s differ", a, b);
    assert_true(n > 0);
    free(x);
    free(y);
}

bool train_fixture_has(const struct train_fixture *f, const char *path)
{
    char whole[RUN_PATH_MAX];
    snprintf(whole, sizeof whole, "%s/%s", f->dir, path);
    return file_exists(whole);
}

double train_fixture_metric(const struct train_fixture *f, int64_t line, const char *key)
{
    char quoted[64], path[160];
    size_t n;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    snprintf(path, sizeof path, "%s/metrics.jsonl", f->run + strlen(f->dir) + 1);
    char *text = train_fixture_read(f, path, &n), *at = text;
    for (int64_t i = 0; i < line && at; i++) {
        at = strchr(at, '\n');
        if (at) at++;
    }
    char *end = at ? strchr(at, '\n') : NULL, *found = end ? strstr(at, quoted) : NULL;
    double value = found && found < end ? strtod(found + strlen(quoted), NULL) : NAN;
    free(text);
    return value;
}
