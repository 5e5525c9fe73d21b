/* `gptd data`: text and JSON lines, encoded once, to token shards. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"
#include "model/token_shards.h"
#include "server/chat_data.h"
#include "server/command.h"

enum { N_DATA_OPTIONS = 8, REPORT_LIMIT = 1 << 20 };

struct data_options {
    struct option_list input;
    const char *inputs[COMMAND_MAX_INPUTS + OPTION_LIST_MAX];
    int32_t n_inputs;
    const char *tokenizer, *output, *verify;
    double val_fraction;
    int64_t shard_bytes;
    bool json;
};

static size_t options_table(struct data_options *o, struct option *table)
{
    const struct option entries[] = {
        {"input", OPTION_LIST, &o->input, 0, 0, "FILE",
         "Text files, JSON lines, or a glob; more may follow."},
        {"tokenizer", OPTION_STRING, &o->tokenizer, 0, 0, "PATH",
         "Whose tokens: a model's directory or .gguf file, or a tokenizer.json."},
        {"output", OPTION_STRING, &o->output, 0, 0, "DIR", "Where the shards go; made."},
        {"val-fraction", OPTION_DOUBLE, &o->val_fraction, 0, 0.999, "F",
         "The share of documents that is held out for validation."},
        {"shard-bytes", OPTION_BYTES, &o->shard_bytes, 4096, 1e15, "SIZE",
         "About how large a shard is; it takes as much memory while it is written."},
        {"verify", OPTION_STRING, &o->verify, 0, 0, "DIR",
         "Instead: check the digests of the shards in DIR, and print what they hold."},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "Print one JSON object."},
    };
    memcpy(table, entries, sizeof entries);
    return sizeof entries / sizeof *entries;
}

static bool check_options(const struct data_options *o, struct error *err)
{
    if (o->verify) {
        if (o->n_inputs == 0 && !o->output && !o->tokenizer) return true;
        return error_set(err, ERR_INVALID, "verify", "--verify goes alone: it reads what is there");
    }
    if (o->n_inputs == 0)
        return error_set(err, ERR_INVALID, "input", "say what to read: --input FILE");
    if (!o->tokenizer)
        return error_set(err, ERR_INVALID, "tokenizer", "say whose tokens: --tokenizer PATH");
    if (!o->output)
        return error_set(err, ERR_INVALID, "output", "say where the shards go: --output DIR");
    return true;
}

/* ---- the report ---- */

static double bytes_per_token(const struct token_shards_report *r)
{
    int64_t tokens = r->tokens[SPLIT_TRAIN] + r->tokens[SPLIT_VALIDATION];
    return tokens > 0 ? (double)r->text_bytes / (double)tokens : 0;
}

static void print_text(struct buf *out, const struct token_shards_report *r)
{
    buf_printf(out, "%" PRId64 " files, %" PRId64 " bytes of text, %.3f bytes a token%s\n",
               r->files, r->text_bytes, bytes_per_token(r),
               r->has_mask ? "; some tokens have no loss" : "");
    for (int i = 0; i < N_DATASET_SPLITS; i++)
        buf_printf(out, "%-10s  %12" PRId64 " documents  %14" PRId64 " tokens  %6" PRId64
                   " shards\n", dataset_split_name(i), r->documents[i], r->tokens[i], r->shards[i]);
}

static void print_json(struct buf *out, const struct token_shards_report *r, const char *dir)
{
    buf_puts(out, "{\"path\":");
    json_out_text(out, dir);
    buf_printf(out, ",\"files\":%" PRId64 ",\"text_bytes\":%" PRId64 ",\"bytes_per_token\":%.6g,"
               "\"id_bytes\":%d,\"mask\":%s", r->files, r->text_bytes, bytes_per_token(r),
               r->id_bytes, r->has_mask ? "true" : "false");
    for (int i = 0; i < N_DATASET_SPLITS; i++)
        buf_printf(out, ",\"%s\":{\"documents\":%" PRId64 ",\"tokens\":%" PRId64 ",\"shards\":%"
                   PRId64 "}", dataset_split_name(i), r->documents[i], r->tokens[i], r->shards[i]);
    buf_puts(out, "}\n");
}

static bool print_report(const struct token_shards_report *r, const char *dir, bool json,
                         struct error *err)
{
    struct buf out;
    buf_init(&out, REPORT_LIMIT);
    if (json) print_json(&out, r, dir);
    else print_text(&out, r);
    bool ok = buf_check(&out, "the report", err);
    if (ok && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0))
        ok = error_errno(err, "cannot write the report");
    buf_free(&out);
    return ok;
}

/* ---- the work ---- */

/* The tokenizer goes with the shards, so that training needs nothing else; the manifest makes them
 * whole and comes last. */
static bool write_shards(const struct data_options *o, struct error *err)
{
    char source[TOKENIZER_PATH_BYTES];
    struct tokenizer *t = NULL;
    struct token_shards_report report;
    struct chat_data chat_data;
    struct dataset_chat chat;
    if (token_shards_is_dir(o->output))
        return error_set(err, ERR_INVALID, NULL, "%s holds token shards already; choose another "
                         "--output", o->output);
    if (!command_tokenizer_path(o->tokenizer, source, err) || !tokenizer_open_path(source, &t, err))
        return false;
    if (!t) return error_set(err, ERR_NOT_FOUND, NULL, "%s has no tokenizer", source);
    chat_data_init(&chat_data, t, &chat);
    const struct dataset_options data = {.inputs = o->inputs, .n_inputs = o->n_inputs,
                                         .tokenizer = t, .chat = &chat,
                                         .val_fraction = o->val_fraction};
    bool ok = directory_make(o->output, err) &&
              checkpoint_write_tokenizer(source, o->output, err) &&
              token_shards_write(&data, o->output, o->shard_bytes, &report, err) &&
              print_report(&report, o->output, o->json, err);
    tokenizer_free(t);
    return ok;
}

static bool verify(const struct data_options *o, struct error *err)
{
    struct token_shards shards;
    if (!token_shards_open(o->verify, true, &shards, err)) return false;
    bool ok = print_report(&shards.report, o->verify, o->json, err);
    token_shards_close(&shards);
    return ok;
}

int cmd_data(int argc, char **argv)
{
    struct option table[N_DATA_OPTIONS];
    struct data_options o = {.val_fraction = 0.1, .shard_bytes = 256 << 20};
    size_t n = options_table(&o, table);
    struct error err;
    bool help = false;
    int n_positional = 0;
    if (!options_parse(table, n, argc, argv, 2, o.inputs, COMMAND_MAX_INPUTS, &n_positional, &help,
                       &err))
        return command_usage("data", &err);
    if (help) {
        options_print_help(stdout,
                           "gptd data --input FILES --tokenizer PATH --output DIR [OPTIONS]",
                           "Encodes text once, into token shards that training maps.", table, n);
        return EXIT_DONE;
    }
    o.n_inputs = command_inputs(&o.input, o.inputs, n_positional);
    if (!check_options(&o, &err)) return command_usage("data", &err);
    return (o.verify ? verify(&o, &err) : write_shards(&o, &err)) ? EXIT_DONE
                                                                 : command_fail("data", &err);
}
