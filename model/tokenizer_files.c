/* Opens the tokenizer of a model directory: tokenizer.json, or GPT-2's vocab.json + merges.txt, and
 * what the files beside it say: tokenizer_config.json, special_tokens_map.json,
 * generation_config.json, config.json, chat_template.jinja. */
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "model/tokenizer_internal.h"

enum {
    MAX_DEPTH = 64, /* configurations hold whole schemas at times */
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_TEMPLATE_BYTES = 1 << 20,
    MAX_VOCAB_BYTES = 256 << 20,
};

/* One JSON file of the directory; *out is NULL (and the result true) when it is not there. */
static bool read_json(const char *dir, const char *name, size_t max_bytes, struct cJSON **out,
                      struct error *err)
{
    char path[4096];
    struct file_map map;
    *out = NULL;
    if (!path_join(path, sizeof path, dir, name, err)) return false;
    if (!file_exists(path)) return true;
    if (!file_map_open(path, &map, err)) return false;
    if (map.size > max_bytes)
        error_set(err, ERR_TOO_LARGE, NULL, "%s is %zu bytes, over %zu", path, map.size, max_bytes);
    else
        /* An empty file has no map: "" is as good, and no JSON either. */
        *out = json_parse(map.data ? (const char *)map.data : "", map.size, MAX_DEPTH, path, err);
    file_map_close(&map);
    return *out != NULL;
}

/* ---- tokenizer.json ---- */

static bool open_tokenizer_json(const char *path, struct tokenizer **out, struct error *err)
{
    struct file_map map;
    if (!file_map_open(path, &map, err)) return false;
    bool ok = tokenizer_open_json(map.data ? (const char *)map.data : "", map.size, path, out, err);
    file_map_close(&map);
    return ok;
}

/* ---- vocab.json + merges.txt ---- */

static bool read_vocab(struct builder *b, const struct cJSON *vocab)
{
    const struct cJSON *item;
    cJSON_ArrayForEach(item, vocab) {
        int64_t id;
        if (!json_to_i64(item, &id))
            return error_set(b->err, ERR_FORMAT, NULL, "%s: \"%.80s\" is %s; it must be a token id",
                             b->where, item->string, json_type_name(item));
        if (!builder_token(b, id, item->string, strlen(item->string))) return false;
    }
    return true;
}

/* Lines "left right", the first one maybe "#version: 0.2". A merge may begin with #, too. */
static bool read_merge_lines(struct builder *b, const char *text, size_t n)
{
    const char *end = text + n;
    size_t n_lines = 1;
    for (const char *s = text; s < end && (s = memchr(s, '\n', (size_t)(end - s))); s++) n_lines++;
    if (!builder_merges(b, n_lines)) return false;
    for (const char *s = text; s < end;) {
        const char *eol = memchr(s, '\n', (size_t)(end - s));
        const char *next = eol ? eol + 1 : end;
        size_t length = (size_t)((eol ? eol : end) - s);
        if (length > 0 && s[length - 1] == '\r') length--;
        bool comment = length >= 8 && memcmp(s, "#version", 8) == 0;
        if (length > 0 && !comment && !builder_merge_line(b, s, length)) return false;
        s = next;
    }
    return true;
}

static int64_t highest_id(const struct cJSON *object, int64_t highest, size_t *count)
{
    const struct cJSON *item;
    cJSON_ArrayForEach(item, object) {
        int64_t id;
        ++*count;
        if (json_to_i64(item, &id) && id > highest) highest = id;
    }
    return highest;
}

/* GPT-2's <|endoftext|>, and added_tokens.json ({content: id}), whose tokens written <|...|> are
 * special. */
static bool read_added(struct builder *b, const struct cJSON *added)
{
    static const char end_of_text[] = "<|endoftext|>";
    size_t n = sizeof end_of_text - 1;
    int32_t eos = builder_find(b, end_of_text, n);
    b->t->bos = b->t->eos = eos;
    if (eos >= 0 && !builder_added(b, eos, end_of_text, n, TOKEN_SPECIAL)) return false;
    const struct cJSON *item;
    cJSON_ArrayForEach(item, added) {
        int64_t id;
        if (!json_to_i64(item, &id))
            return error_set(b->err, ERR_FORMAT, NULL,
                             "%s: added_tokens.json: \"%.80s\" is %s; it must be a token id",
                             b->where, item->string, json_type_name(item));
        if (id == eos && strcmp(item->string, end_of_text) == 0) continue;
        bool special = strncmp(item->string, "<|", 2) == 0;
        if (!builder_added(b, id, item->string, strlen(item->string), special ? TOKEN_SPECIAL : 0))
            return false;
    }
    return true;
}

static bool build_gpt2(struct builder *b, const struct cJSON *vocab, const struct cJSON *added,
                       const struct file_map *merges, const char *where, struct tokenizer **out,
                       struct error *err)
{
    size_t count = 0;
    if (!cJSON_IsObject(vocab))
        return error_set(err, ERR_FORMAT, NULL, "%s is %s; it must be an object", where,
                         json_type_name(vocab));
    int64_t highest = highest_id(added, highest_id(vocab, -1, &count), &count);
    if (!builder_init(b, count, highest, where, err) || !read_vocab(b, vocab)) return false;
    b->t->byte_level = true;
    return builder_texts(b) && read_merge_lines(b, (const char *)merges->data, merges->size) &&
           pretokenize_add(b->t, pretokenize_gpt2, strlen(pretokenize_gpt2), false, SPLIT_ISOLATED,
                           false, where, err) &&
           read_added(b, added) && builder_finish(b, out);
}

static bool open_gpt2(const char *dir, const char *vocab_path, const char *merges_path,
                      struct tokenizer **out, struct error *err)
{
    struct cJSON *vocab = NULL, *added = NULL;
    struct file_map merges = {0};
    struct builder b = {0};
    bool ok = read_json(dir, "vocab.json", MAX_VOCAB_BYTES, &vocab, err) &&
              read_json(dir, "added_tokens.json", MAX_CONFIG_BYTES, &added, err) &&
              file_map_open(merges_path, &merges, err) &&
              build_gpt2(&b, vocab, added, &merges, vocab_path, out, err);
    builder_free(&b);
    file_map_close(&merges);
    cJSON_Delete(added);
    cJSON_Delete(vocab);
    return ok;
}

/* ---- What the other files say ---- */

/* A token named by its text, or by an object with the text as "content"; -1 when it is absent or
 * unknown. */
static int32_t named_token(const struct tokenizer *t, const struct cJSON *config, const char *key)
{
    const struct cJSON *item = json_get(config, key);
    if (cJSON_IsObject(item)) item = json_get(item, "content");
    if (!cJSON_IsString(item)) return -1;
    size_t n = strlen(item->valuestring);
    int32_t id = tokenizer_special_id(t, item->valuestring, n);
    for (int32_t i = 0; id < 0 && i < t->n_tokens; i++)
        if (t->tokens[i].text && t->tokens[i].n_text == n &&
            memcmp(t->tokens[i].text, item->valuestring, n) == 0)
            id = i;
    return id;
}

/* Takes over the markers that the file names. Does it name eos? */
static bool read_named(struct tokenizer *t, const struct cJSON *config)
{
    int32_t bos = named_token(t, config, "bos_token"), eos = named_token(t, config, "eos_token");
    if (bos >= 0 && !t->adds_bos) t->bos = bos; /* a post-processor has named its own */
    if (eos >= 0) t->eos = eos;
    builder_stop(t, eos);
    return eos >= 0;
}

static int32_t valid_id(const struct tokenizer *t, const struct cJSON *item)
{
    int64_t id;
    return json_to_i64(item, &id) && id >= 0 && id < t->n_tokens ? (int32_t)id : -1;
}

/* eos_token_id is one id or a list: all end a reply. Returns the first, or -1. */
static int32_t read_stop_ids(struct tokenizer *t, const struct cJSON *config)
{
    const struct cJSON *ids = json_get(config, "eos_token_id"), *item;
    int32_t first = valid_id(t, ids);
    builder_stop(t, first);
    if (!cJSON_IsArray(ids)) return first;
    cJSON_ArrayForEach(item, ids) {
        int32_t id = valid_id(t, item);
        builder_stop(t, id);
        if (first < 0) first = id;
    }
    return first;
}

/* A template by itself, or the one called "default" of a list of {name, template}. */
static bool read_template(struct tokenizer *t, const struct cJSON *config, struct error *err)
{
    const struct cJSON *template = json_get(config, "chat_template"), *item;
    if (cJSON_IsArray(template)) {
        const struct cJSON *list = template;
        template = NULL;
        cJSON_ArrayForEach(item, list) {
            const struct cJSON *name = json_get(item, "name");
            if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0)
                template = json_get(item, "template");
        }
    }
    if (!cJSON_IsString(template)) return true;
    t->chat_template = arena_strdup(&t->arena, template->valuestring);
    return t->chat_template || error_set(err, ERR_MEMORY, NULL, "no memory for a chat template");
}

/* chat_template.jinja goes before what tokenizer_config.json has. */
static bool read_template_file(struct tokenizer *t, const char *dir, struct error *err)
{
    char path[4096];
    struct buf text;
    if (!path_join(path, sizeof path, dir, "chat_template.jinja", err)) return false;
    if (!file_exists(path)) return true;
    buf_init(&text, MAX_TEMPLATE_BYTES);
    bool ok = file_read(path, &text, err);
    if (ok) {
        t->chat_template = arena_copy(&t->arena, text.data, text.len);
        ok = t->chat_template || error_set(err, ERR_MEMORY, NULL, "no memory for %s", path);
    }
    buf_free(&text);
    return ok;
}

struct configs { struct cJSON *tokenizer, *specials, *generation, *model; };

static void apply_configs(struct tokenizer *t, const struct configs *c, bool has_postprocessor)
{
    bool named = read_named(t, c->specials);
    named |= read_named(t, c->tokenizer); /* where both do, this one's stays */
    int32_t first = read_stop_ids(t, c->generation);
    if (first < 0) first = read_stop_ids(t, c->model);
    if (!named && first >= 0) t->eos = first;
    if (t->bos < 0) t->bos = valid_id(t, json_get(c->model, "bos_token_id"));
    /* Where tokenizer.json has a post-processor of its own, byte-level classes leave it alone; the
     * SentencePiece ones rebuild it from this flag. */
    const struct cJSON *adds_bos = json_get(c->tokenizer, "add_bos_token");
    if (cJSON_IsBool(adds_bos) && (!has_postprocessor || t->kind == TOKENIZER_SENTENCEPIECE))
        t->adds_bos = cJSON_IsTrue(adds_bos);
}

static bool read_configs(struct tokenizer *t, const char *dir, bool has_postprocessor,
                         struct error *err)
{
    struct configs c = {0};
    bool ok = read_json(dir, "tokenizer_config.json", MAX_CONFIG_BYTES, &c.tokenizer, err) &&
              read_json(dir, "special_tokens_map.json", MAX_CONFIG_BYTES, &c.specials, err) &&
              read_json(dir, "generation_config.json", MAX_CONFIG_BYTES, &c.generation, err) &&
              read_json(dir, "config.json", MAX_CONFIG_BYTES, &c.model, err) &&
              read_template(t, c.tokenizer, err) && read_template_file(t, dir, err);
    if (ok) apply_configs(t, &c, has_postprocessor);
    cJSON_Delete(c.tokenizer);
    cJSON_Delete(c.specials);
    cJSON_Delete(c.generation);
    cJSON_Delete(c.model);
    return ok;
}

bool tokenizer_open_dir(const char *dir, struct tokenizer **out, struct error *err)
{
    char json[4096], vocab[4096], merges[4096];
    struct tokenizer *t = NULL;
    *out = NULL;
    if (!path_join(json, sizeof json, dir, "tokenizer.json", err) ||
        !path_join(vocab, sizeof vocab, dir, "vocab.json", err) ||
        !path_join(merges, sizeof merges, dir, "merges.txt", err))
        return false;
    bool whole = file_exists(json);
    if (whole) {
        if (!open_tokenizer_json(json, &t, err)) return false;
    } else if (file_exists(vocab) && file_exists(merges)) {
        if (!open_gpt2(dir, vocab, merges, &t, err)) return false;
    } else {
        return true;
    }
    if (!read_configs(t, dir, whole, err)) {
        tokenizer_free(t);
        return false;
    }
    *out = t;
    return true;
}
