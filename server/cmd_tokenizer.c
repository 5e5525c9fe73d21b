/* `gptd tokenizer train`: a byte-level BPE or a character tokenizer from text. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "model/tokenizer_char.h"
#include "model/tokenizer_train.h"
#include "model/tokenizer_write.h"
#include "server/command.h"

enum { JSON_LIMIT = 1 << 30, N_TOKENIZER_OPTIONS = 8 };

struct tokenizer_options {
    struct option_list input, special;
    const char *inputs[COMMAND_MAX_INPUTS + OPTION_LIST_MAX];
    int32_t n_inputs;
    const char *output, *kind, *pattern;
    int64_t vocab_size, min_count;
    bool no_special;
};

static size_t options_table(struct tokenizer_options *o, struct option *table)
{
    const struct option entries[] = {
        {"input", OPTION_LIST, &o->input, 0, 0, "FILE",
         "Text files, JSON lines, or a glob; more may follow."},
        {"output", OPTION_STRING, &o->output, 0, 0, "DIR", "Where tokenizer.json goes."},
        {"vocab-size", OPTION_INT, &o->vocab_size, 0, 1 << 22, "N",
         "How many tokens, special ones and the 256 bytes included; byte-bpe only."},
        {"kind", OPTION_STRING, &o->kind, 0, 0, "byte-bpe|char",
         "Byte-level BPE, or a token a character."},
        {"pattern", OPTION_STRING, &o->pattern, 0, 0, "NAME",
         "How text is cut into words: gpt2, llama3, qwen2, gpt4o, ...; byte-bpe only."},
        {"special", OPTION_LIST, &o->special, 0, 0, "TEXT",
         "A special token; the first ends a text. byte-bpe: <|endoftext|> unless given."},
        {"no-special", OPTION_FLAG, &o->no_special, 0, 0, NULL,
         "No special tokens, so no end of text."},
        {"min-count", OPTION_INT, &o->min_count, 1, 1e12, "N",
         "Leave pairs alone that occur less often; byte-bpe only."},
    };
    memcpy(table, entries, sizeof entries);
    return sizeof entries / sizeof *entries;
}

static bool check_options(struct tokenizer_options *o, struct error *err)
{
    bool characters = strcmp(o->kind, "char") == 0;
    if (!characters && strcmp(o->kind, "byte-bpe") != 0)
        return error_set(err, ERR_INVALID, "kind", "there is no kind %.40s; there are byte-bpe and "
                         "char", o->kind);
    if (o->n_inputs == 0)
        return error_set(err, ERR_INVALID, "input", "say what to learn from: --input FILE");
    if (!o->output)
        return error_set(err, ERR_INVALID, "output", "say where it goes: --output DIR");
    if (!characters && o->vocab_size == 0)
        return error_set(err, ERR_INVALID, "vocab-size", "say how many tokens: --vocab-size N");
    if (characters && o->vocab_size != 0)
        return error_set(err, ERR_INVALID, "vocab-size", "--vocab-size does not go with --kind "
                         "char: the text decides");
    if (o->no_special && o->special.n > 0)
        return error_set(err, ERR_INVALID, "no-special", "--special and --no-special exclude each "
                         "other");
    if (!o->no_special && !characters && o->special.n == 0)
        o->special = (struct option_list){.n = 1, .at = {"<|endoftext|>"}};
    return true;
}

static bool make_characters(const struct tokenizer_options *o, struct buf *json, struct error *err)
{
    int32_t vocab_size;
    if (!tokenizer_char_make(o->inputs, o->n_inputs, o->special.at, o->special.n, json, &vocab_size,
                             err))
        return false;
    printf("%d tokens: %d characters, %d special\n", vocab_size, vocab_size - o->special.n,
           o->special.n);
    return true;
}

static bool make_bpe(const struct tokenizer_options *o, struct buf *json, struct error *err)
{
    struct tokenizer_train_report r;
    const struct tokenizer_train_options options = {
        .inputs = o->inputs, .n_inputs = o->n_inputs, .specials = o->special.at,
        .n_specials = o->special.n, .vocab_size = (int32_t)o->vocab_size,
        .min_count = o->min_count, .pretokenizer = o->pattern,
    };
    int64_t begin_ns = clock_ns();
    if (!tokenizer_train(&options, json, &r, err)) return false;
    printf("%" PRId64 " bytes of text, %" PRId64 " words, %" PRId64 " distinct\n", r.text_bytes,
           r.words, r.distinct_words);
    printf("%d tokens: %d special, 256 bytes, %" PRId64 " merges; %.2f s\n", r.vocab_size,
           o->special.n, r.merges, (double)(clock_ns() - begin_ns) / 1e9);
    if (r.vocab_size < o->vocab_size)
        printf("fewer than %" PRId64 ": no other pair occurs %" PRId64 " times\n", o->vocab_size,
               o->min_count);
    return true;
}

/* A tokenizer that is there may belong to a model: it is not replaced. */
static bool check_output(const char *dir, struct error *err)
{
    char path[4096];
    if (!path_join(path, sizeof path, dir, "tokenizer.json", err)) return false;
    return !file_exists(path) ||
           error_set(err, ERR_INVALID, NULL, "%s is there already; choose another --output", path);
}

static bool train(const struct tokenizer_options *o, struct error *err)
{
    struct buf json;
    if (!check_output(o->output, err)) return false;
    buf_init(&json, JSON_LIMIT);
    bool characters = strcmp(o->kind, "char") == 0;
    bool ok = (characters ? make_characters(o, &json, err) : make_bpe(o, &json, err)) &&
              tokenizer_write(o->output, &json, o->special.n > 0 ? o->special.at[0] : NULL, err);
    buf_free(&json);
    if (ok) printf("wrote %s/tokenizer.json\n", o->output);
    return ok;
}

int cmd_tokenizer(int argc, char **argv)
{
    struct option table[N_TOKENIZER_OPTIONS];
    struct tokenizer_options o = {.kind = "byte-bpe", .pattern = "gpt2", .min_count = 2};
    size_t n = options_table(&o, table);
    struct error err;
    bool help = false, train_given = argc > 2 && strcmp(argv[2], "train") == 0;
    int n_positional = 0;
    if (!options_parse(table, n, argc, argv, train_given ? 3 : 2, o.inputs, COMMAND_MAX_INPUTS,
                       &n_positional, &help, &err))
        return command_usage("tokenizer", &err);
    if (help) {
        options_print_help(stdout, "gptd tokenizer train --input FILES --output DIR [OPTIONS]",
                           "Makes a tokenizer from text and writes it as tokenizer.json.", table,
                           n);
        return EXIT_DONE;
    }
    if (!train_given) {
        error_set(&err, ERR_INVALID, NULL, "say what to do: gptd tokenizer train ...");
        return command_usage("tokenizer", &err);
    }
    o.n_inputs = command_inputs(&o.input, o.inputs, n_positional);
    if (!check_options(&o, &err)) return command_usage("tokenizer", &err);
    return train(&o, &err) ? EXIT_DONE : command_fail("tokenizer", &err);
}
