/* A tokenizer that came from GGUF as tokenizer.json, the format of Hugging Face's tokenizers
 * library. See tokenizer_export.h; read back by tokenizer_json.c. Components that always look alike
 * are text; strings of the model go through cJSON. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_export.h"
#include "model/tokenizer_export_internal.h"

/* Failures of the allocator stick in `ok`; the tree is dropped at the end. */
struct json {
    const struct tokenizer *t;
    struct cJSON *root;
    struct buf raw, line; /* scratch */
    bool ok;
};

static struct cJSON *kept(struct json *j, struct cJSON *item)
{
    j->ok = j->ok && item;
    return item;
}

static struct cJSON *put_object(struct json *j, struct cJSON *to, const char *key)
{
    return kept(j, cJSON_AddObjectToObject(to, key));
}

static struct cJSON *put_array(struct json *j, struct cJSON *to, const char *key)
{
    return kept(j, cJSON_AddArrayToObject(to, key));
}

static void put_string(struct json *j, struct cJSON *to, const char *key, const char *value)
{
    kept(j, cJSON_AddStringToObject(to, key, value));
}

static void put_bool(struct json *j, struct cJSON *to, const char *key, bool value)
{
    kept(j, cJSON_AddBoolToObject(to, key, value));
}

static void put_text(struct json *j, struct cJSON *to, const char *key, const char *json)
{
    kept(j, cJSON_AddRawToObject(to, key, json));
}

/* The token's string in the file; valid until the next call. */
static const char *raw(struct json *j, int32_t id)
{
    token_raw(j->t, id, &j->raw);
    j->ok = j->ok && !j->raw.failed;
    return j->raw.data ? j->raw.data : "";
}

/* ---- Components ---- */

static void put_added(struct json *j)
{
    struct cJSON *list = put_array(j, j->root, "added_tokens");
    for (int32_t id = 0; id < j->t->n_tokens && j->ok; id++) {
        uint32_t flags = j->t->tokens[id].flags;
        if (!(flags & TOKEN_ADDED)) continue;
        struct cJSON *item = kept(j, cJSON_CreateObject());
        kept(j, cJSON_AddNumberToObject(item, "id", id));
        put_string(j, item, "content", raw(j, id));
        put_bool(j, item, "single_word", flags & ADDED_SINGLE_WORD);
        put_bool(j, item, "lstrip", flags & ADDED_LSTRIP);
        put_bool(j, item, "rstrip", flags & ADDED_RSTRIP);
        put_bool(j, item, "normalized", flags & ADDED_NORMALIZED);
        put_bool(j, item, "special", flags & TOKEN_SPECIAL);
        cJSON_AddItemToArray(list, item);
    }
}

static void put_normalizer(struct json *j, struct cJSON *list, const struct normalizer *n)
{
    struct cJSON *item = kept(j, cJSON_CreateObject());
    switch (n->op) {
    case NORMALIZE_NFC: put_string(j, item, "type", "NFC"); break;
    case NORMALIZE_PREPEND:
        put_string(j, item, "type", "Prepend");
        put_string(j, item, "prepend", n->to);
        break;
    case NORMALIZE_REPLACE:
        put_string(j, item, "type", "Replace");
        put_string(j, put_object(j, item, "pattern"), "String", n->from);
        put_string(j, item, "content", n->to);
        break;
    }
    cJSON_AddItemToArray(list, item);
}

static void put_normalizers(struct json *j)
{
    if (j->t->n_normalizers == 0) {
        put_text(j, j->root, "normalizer", "null");
        return;
    }
    struct cJSON *sequence = put_object(j, j->root, "normalizer");
    put_string(j, sequence, "type", "Sequence");
    struct cJSON *list = put_array(j, sequence, "normalizers");
    for (int32_t i = 0; i < j->t->n_normalizers && j->ok; i++)
        put_normalizer(j, list, &j->t->normalizers[i]);
}

/* GGUF's byte-level models: named patterns, each isolating its matches. */
static void put_pretokenizer(struct json *j)
{
    static const char byte_level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                     "\"trim_offsets\":true,\"use_regex\":false}";
    if (!j->t->byte_level) {
        put_text(j, j->root, "pre_tokenizer", "null");
        return;
    }
    struct cJSON *sequence = put_object(j, j->root, "pre_tokenizer");
    put_string(j, sequence, "type", "Sequence");
    struct cJSON *list = put_array(j, sequence, "pretokenizers");
    for (int32_t i = 0; i < j->t->n_steps && j->ok; i++) {
        struct cJSON *item = kept(j, cJSON_CreateObject());
        put_string(j, item, "type", "Split");
        put_string(j, put_object(j, item, "pattern"), "Regex", j->t->steps[i].pattern);
        put_string(j, item, "behavior", "Isolated");
        put_bool(j, item, "invert", false);
        cJSON_AddItemToArray(list, item);
    }
    cJSON_AddItemToArray(list, kept(j, cJSON_CreateRaw(byte_level)));
}

/* One item of a template: {"Sequence": {"id": "A", "type_id": 0}}. */
static void put_piece(struct json *j, struct cJSON *list, const char *kind, const char *id,
                      int type_id)
{
    struct cJSON *item = kept(j, cJSON_CreateObject()), *piece = put_object(j, item, kind);
    put_string(j, piece, "id", id);
    kept(j, cJSON_AddNumberToObject(piece, "type_id", type_id));
    cJSON_AddItemToArray(list, item);
}

static void put_postprocessor(struct json *j)
{
    if (!j->t->adds_bos || j->t->bos < 0) {
        put_text(j, j->root, "post_processor", "null");
        return;
    }
    struct cJSON *template = put_object(j, j->root, "post_processor");
    put_string(j, template, "type", "TemplateProcessing");
    const char *bos = raw(j, j->t->bos);
    struct cJSON *single = put_array(j, template, "single"), *pair = put_array(j, template, "pair");
    put_piece(j, single, "SpecialToken", bos, 0);
    put_piece(j, single, "Sequence", "A", 0);
    put_piece(j, pair, "SpecialToken", bos, 0);
    put_piece(j, pair, "Sequence", "A", 0);
    put_piece(j, pair, "SpecialToken", bos, 1);
    put_piece(j, pair, "Sequence", "B", 1);
    struct cJSON *token = put_object(j, put_object(j, template, "special_tokens"), bos);
    put_string(j, token, "id", bos);
    double id = j->t->bos;
    kept(j, cJSON_AddItemToObject(token, "ids", cJSON_CreateDoubleArray(&id, 1)) ? token : NULL);
    kept(j, cJSON_AddItemToObject(token, "tokens", cJSON_CreateStringArray(&bos, 1)) ? token
                                                                                     : NULL);
}

static void put_decoder(struct json *j)
{
    static const char head[] =
        "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\""
        SPACE_MARK "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}";
    static const char strip[] = ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}";
    buf_clear(&j->line);
    if (j->t->byte_level)
        buf_puts(&j->line, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
                           "\"trim_offsets\":true,\"use_regex\":true}");
    else
        buf_printf(&j->line, "%s%s]}", head, j->t->strips_space ? strip : "");
    put_text(j, j->root, "decoder", j->line.data);
}

static void put_vocab_and_merges(struct json *j, struct cJSON *model,
                                 const struct merge_entries *merges)
{
    struct cJSON *vocab = put_object(j, model, "vocab");
    for (int32_t id = 0; id < j->t->n_tokens && j->ok; id++)
        if (j->t->tokens[id].flags & TOKEN_EXISTS)
            kept(j, cJSON_AddNumberToObject(vocab, raw(j, id), id));
    struct cJSON *list = put_array(j, model, "merges");
    for (size_t i = 0; i < merges->n && j->ok; i++) {
        buf_clear(&j->line);
        buf_puts(&j->line, raw(j, merges->at[i].left));
        buf_putc(&j->line, ' ');
        buf_puts(&j->line, raw(j, merges->at[i].right));
        cJSON_AddItemToArray(list, kept(j, cJSON_CreateString(j->line.data ? j->line.data : "")));
    }
}

static void put_model(struct json *j, const struct merge_entries *merges)
{
    const struct tokenizer *t = j->t;
    struct cJSON *model = put_object(j, j->root, "model");
    put_string(j, model, "type", "BPE");
    put_text(j, model, "dropout", "null");
    if (t->unk >= 0) put_string(j, model, "unk_token", raw(j, t->unk));
    else put_text(j, model, "unk_token", "null");
    put_text(j, model, "continuing_subword_prefix", "null");
    put_text(j, model, "end_of_word_suffix", "null");
    put_bool(j, model, "fuse_unk", t->fuse_unk);
    put_bool(j, model, "byte_fallback", t->byte_fallback);
    put_bool(j, model, "ignore_merges", t->ignore_merges);
    put_vocab_and_merges(j, model, merges);
}

/* ---- The files ---- */

static bool print(struct json *j, const char *name, struct buf *out, struct error *err)
{
    char *text = j->ok && !j->line.failed ? cJSON_Print(j->root) : NULL;
    if (text) {
        buf_puts(out, text);
        buf_putc(out, '\n');
    }
    bool printed = text != NULL;
    free(text);
    cJSON_Delete(j->root);
    buf_free(&j->raw);
    buf_free(&j->line);
    if (!printed) return error_set(err, ERR_MEMORY, NULL, "no memory for %s", name);
    return buf_check(out, name, err);
}

static struct json begin(const struct tokenizer *t)
{
    struct json j = {.t = t, .root = cJSON_CreateObject()};
    j.ok = j.root != NULL;
    buf_init(&j.raw, 4 * TOKENIZER_MAX_TEXT);
    buf_init(&j.line, 8 * TOKENIZER_MAX_TEXT + 1);
    return j;
}

bool tokenizer_export_json(const struct tokenizer *t, struct buf *out, struct error *err)
{
    struct merge_entries merges;
    if (!merge_entries_list(t, &merges, err)) return false;
    struct json j = begin(t);
    put_string(&j, j.root, "version", "1.0");
    put_text(&j, j.root, "truncation", "null");
    put_text(&j, j.root, "padding", "null");
    put_added(&j);
    put_normalizers(&j);
    put_pretokenizer(&j);
    put_postprocessor(&j);
    put_decoder(&j);
    put_model(&j, &merges);
    free(merges.at);
    return print(&j, "tokenizer.json", out, err);
}

bool tokenizer_export_config(const struct tokenizer *t, struct buf *out, struct error *err)
{
    struct json j = begin(t);
    put_string(&j, j.root, "tokenizer_class", "PreTrainedTokenizerFast");
    if (t->bos >= 0) put_string(&j, j.root, "bos_token", raw(&j, t->bos));
    if (t->eos >= 0) put_string(&j, j.root, "eos_token", raw(&j, t->eos));
    if (t->unk >= 0) put_string(&j, j.root, "unk_token", raw(&j, t->unk));
    put_bool(&j, j.root, "add_bos_token", t->adds_bos);
    put_bool(&j, j.root, "clean_up_tokenization_spaces", false);
    if (t->chat_template) put_string(&j, j.root, "chat_template", t->chat_template);
    return print(&j, "tokenizer_config.json", out, err);
}
