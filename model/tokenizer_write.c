/* tokenizer.json and tokenizer_config.json: see tokenizer_write.h. */
#include "model/tokenizer_write.h"

#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"

/* What a reader assumes that is not in the file: byte-level vocabularies are written in an alphabet
 * of printable characters, one a byte. */
struct writer {
    const struct tokenizer_parts *p;
    char character[256][4]; /* UTF-8 of each byte's character */
    int length[256];
    struct buf spelled;     /* scratch of `spell` */
};

static void writer_init(struct writer *w, const struct tokenizer_parts *p)
{
    int16_t byte_of[BYTE_ALPHABET_END];
    *w = (struct writer){.p = p};
    byte_alphabet(byte_of);
    for (uint32_t cp = 0; cp < BYTE_ALPHABET_END; cp++)
        if (byte_of[cp] >= 0) w->length[byte_of[cp]] = utf8_encode(cp, w->character[byte_of[cp]]);
    buf_init(&w->spelled, 4 * TOKENIZER_MAX_TEXT);
}

static bool is_special(const struct tokenizer_parts *p, int32_t id)
{
    for (int32_t i = 0; i < p->n_specials; i++)
        if (p->specials[i] == id) return true;
    return false;
}

/* Appends a token as the file spells it. */
static void spell(struct writer *w, int32_t id)
{
    const struct token_list *l = w->p->tokens;
    if (!w->p->merges || is_special(w->p, id)) {
        buf_append(&w->spelled, l->text[id], l->n[id]);
        return;
    }
    for (uint32_t i = 0; i < l->n[id]; i++) {
        uint8_t byte = (uint8_t)l->text[id][i];
        buf_append(&w->spelled, w->character[byte], (size_t)w->length[byte]);
    }
}

static const char *spelled(struct writer *w, int32_t id)
{
    buf_clear(&w->spelled);
    spell(w, id);
    return w->spelled.failed ? NULL : w->spelled.data;
}

/* ---- the parts; each returns false when there is no memory ---- */

/* A string, number, boolean or null as a member. */
static bool put(struct cJSON *to, const char *key, struct cJSON *item)
{
    if (item && cJSON_AddItemToObject(to, key, item)) return true;
    cJSON_Delete(item);
    return false;
}

static bool put_all_null(struct cJSON *to, const char *const *keys, int n)
{
    bool ok = true;
    for (int i = 0; i < n; i++) ok = ok && put(to, keys[i], cJSON_CreateNull());
    return ok;
}

static bool put_added(struct cJSON *root, const struct tokenizer_parts *p)
{
    static const char *const no[] = {"single_word", "lstrip", "rstrip", "normalized"};
    struct cJSON *list = cJSON_AddArrayToObject(root, "added_tokens");
    bool ok = list != NULL;
    for (int32_t i = 0; ok && i < p->n_specials; i++) {
        struct cJSON *item = cJSON_CreateObject();
        ok = item && cJSON_AddItemToArray(list, item) &&
             put(item, "id", cJSON_CreateNumber(p->specials[i])) &&
             put(item, "content", cJSON_CreateString(p->tokens->text[p->specials[i]]));
        for (int k = 0; k < 4; k++) ok = ok && put(item, no[k], cJSON_CreateFalse());
        ok = ok && put(item, "special", cJSON_CreateTrue());
    }
    return ok;
}

static bool put_byte_level(struct cJSON *to, bool cuts)
{
    return put(to, "type", cJSON_CreateString("ByteLevel")) &&
           put(to, "add_prefix_space", cJSON_CreateFalse()) &&
           put(to, "trim_offsets", cJSON_CreateTrue()) &&
           put(to, "use_regex", cJSON_CreateBool(cuts));
}

static bool put_split(struct cJSON *list, const struct split_step *step)
{
    struct cJSON *item = cJSON_CreateObject(), *pattern;
    return item && cJSON_AddItemToArray(list, item) &&
           put(item, "type", cJSON_CreateString("Split")) &&
           (pattern = cJSON_AddObjectToObject(item, "pattern")) &&
           put(pattern, "Regex", cJSON_CreateString(step->pattern)) &&
           put(item, "behavior", cJSON_CreateString("Isolated")) &&
           put(item, "invert", cJSON_CreateFalse());
}

/* GPT-2's pattern is part of ByteLevel; others are steps before it. */
static bool put_pretokenizer(struct cJSON *root, const struct tokenizer *cutter)
{
    if (!cutter) return put(root, "pre_tokenizer", cJSON_CreateNull());
    struct cJSON *to = cJSON_AddObjectToObject(root, "pre_tokenizer"), *list, *last;
    if (!to) return false;
    if (cutter->n_steps == 1 && strcmp(cutter->steps[0].pattern, pretokenize_gpt2) == 0)
        return put_byte_level(to, true);
    bool ok = put(to, "type", cJSON_CreateString("Sequence")) &&
              (list = cJSON_AddArrayToObject(to, "pretokenizers"));
    for (int32_t i = 0; ok && i < cutter->n_steps; i++) ok = put_split(list, &cutter->steps[i]);
    return ok && (last = cJSON_CreateObject()) && cJSON_AddItemToArray(list, last) &&
           put_byte_level(last, false);
}

/* Without a decoder tokenizers would put spaces between tokens. */
static bool put_decoder(struct cJSON *root, bool byte_level)
{
    struct cJSON *to = cJSON_AddObjectToObject(root, "decoder");
    if (!to) return false;
    return byte_level ? put_byte_level(to, true) : put(to, "type", cJSON_CreateString("Fuse"));
}

static bool put_merges(struct writer *w, struct cJSON *model)
{
    struct cJSON *list = cJSON_AddArrayToObject(model, "merges"), *item;
    bool ok = list != NULL;
    for (int64_t i = 0; ok && w->p->merges && i < w->p->merges->n; i++) {
        buf_clear(&w->spelled);
        spell(w, w->p->merges->at[i].left);
        buf_putc(&w->spelled, ' ');
        spell(w, w->p->merges->at[i].right);
        ok = !w->spelled.failed && (item = cJSON_CreateString(w->spelled.data)) &&
             cJSON_AddItemToArray(list, item);
    }
    return ok;
}

static bool put_model(struct writer *w, struct cJSON *root)
{
    static const char *const none[] = {"dropout", "unk_token", "continuing_subword_prefix",
                                       "end_of_word_suffix"};
    static const char *const no[] = {"fuse_unk", "byte_fallback", "ignore_merges"};
    struct cJSON *model = cJSON_AddObjectToObject(root, "model"), *vocab;
    bool ok = model && put(model, "type", cJSON_CreateString("BPE")) &&
              put_all_null(model, none, 4);
    for (int i = 0; i < 3; i++) ok = ok && put(model, no[i], cJSON_CreateFalse());
    ok = ok && (vocab = cJSON_AddObjectToObject(model, "vocab"));
    for (int32_t id = 0; ok && id < w->p->tokens->count; id++) {
        const char *text = spelled(w, id);
        ok = text && put(vocab, text, cJSON_CreateNumber(id));
    }
    return ok && put_merges(w, model);
}

static bool build(struct writer *w, struct cJSON *root)
{
    static const char *const begin[] = {"truncation", "padding"}, *const middle[] = {"normalizer"},
                      *const after[] = {"post_processor"};
    return put(root, "version", cJSON_CreateString("1.0")) && put_all_null(root, begin, 2) &&
           put_added(root, w->p) && put_all_null(root, middle, 1) &&
           put_pretokenizer(root, w->p->cutter) && put_all_null(root, after, 1) &&
           put_decoder(root, w->p->merges != NULL) && put_model(w, root);
}

/* Appends the tree's text and frees the tree. */
static bool print(struct cJSON *root, bool ok, struct buf *out, struct error *err)
{
    char *text = ok ? cJSON_Print(root) : NULL;
    cJSON_Delete(root);
    if (!text) return error_set(err, ERR_MEMORY, NULL, "no memory to write a tokenizer");
    buf_puts(out, text);
    buf_putc(out, '\n');
    cJSON_free(text);
    return buf_check(out, "a tokenizer", err);
}

bool tokenizer_parts_json(const struct tokenizer_parts *p, struct buf *out, struct error *err)
{
    struct writer w;
    writer_init(&w, p);
    struct cJSON *root = cJSON_CreateObject();
    bool ok = root && build(&w, root);
    buf_free(&w.spelled);
    return print(root, ok, out, err);
}

bool tokenizer_write(const char *dir, const struct buf *json, const char *eos, struct error *err)
{
    char path[4096], config_path[4096];
    struct buf config;
    if (!path_join(path, sizeof path, dir, "tokenizer.json", err) ||
        !path_join(config_path, sizeof config_path, dir, "tokenizer_config.json", err) ||
        !directory_make(dir, err))
        return false;
    struct cJSON *root = cJSON_CreateObject();
    bool ok = root &&
              put(root, "tokenizer_class", cJSON_CreateString("PreTrainedTokenizerFast")) &&
              put(root, "clean_up_tokenization_spaces", cJSON_CreateFalse());
    if (eos)
        ok = ok && put(root, "bos_token", cJSON_CreateString(eos)) &&
             put(root, "eos_token", cJSON_CreateString(eos));
    buf_init(&config, 1 << 20);
    ok = print(root, ok, &config, err) &&
         file_write_atomic(config_path, config.data, config.len, err) &&
         file_write_atomic(path, json->data, json->len, err);
    buf_free(&config);
    return ok;
}
