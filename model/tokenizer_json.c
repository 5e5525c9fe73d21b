/* Reads tokenizer.json, the format of Hugging Face's tokenizers library: a BPE model with the
 * stages around it. Anything that would change ids and that gptd does not do is refused by name; so
 * is what contradicts itself. Big objects are walked, never searched. */
#include <string.h>

#include "base/json.h"
#include "model/tokenizer_internal.h"

/* \w of the regex crate, which the Whitespace pre-tokenizer is made with (Oniguruma's differs). */
#define RUST_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"

enum { MAX_JSON_BYTES = 256 << 20, MAX_DEPTH = 32 };

struct reader {
    struct builder b;
    const struct cJSON *root, *model;
    bool byte_level_seen; /* no pre-tokenizer may come after ByteLevel */
    const char *where;
    struct error *err;
};

static bool wrong(struct reader *r, const char *key, const struct cJSON *item, const char *right)
{
    error_set(r->err, ERR_FORMAT, NULL, "%s: \"%.80s\" is %s; it must be %s", r->where, key,
              item ? json_type_name(item) : "missing", right);
    return false;
}

static bool unsupported(struct reader *r, const char *what, const char *name)
{
    error_set(r->err, ERR_UNSUPPORTED, NULL, "%s: the %s \"%.80s\" is not supported", r->where,
              what, name);
    return false;
}

static bool is_null(const struct cJSON *item) { return !item || cJSON_IsNull(item); }

/* A boolean member; absent or null: `otherwise`. */
static bool get_bool(struct reader *r, const struct cJSON *object, const char *key, bool otherwise,
                     bool *out)
{
    const struct cJSON *item = json_get(object, key);
    *out = is_null(item) ? otherwise : cJSON_IsTrue(item);
    return is_null(item) || cJSON_IsBool(item) || wrong(r, key, item, "true or false");
}

static bool get_string(struct reader *r, const struct cJSON *object, const char *key,
                       const char **out)
{
    const struct cJSON *item = json_get(object, key);
    if (!cJSON_IsString(item)) return wrong(r, key, item, "a string");
    *out = item->valuestring;
    return true;
}

/* The "type" of a component; "" when the file leaves it out. */
static bool get_type(struct reader *r, const struct cJSON *object, const char *key,
                     const char **out)
{
    *out = "";
    if (!cJSON_IsObject(object)) return wrong(r, key, object, "an object or null");
    return !json_get(object, "type") || get_string(r, object, "type", out);
}

/* The items of a Sequence, each by `read_item`; MAX_DEPTH bounds how deep they nest. */
static bool read_sequence(struct reader *r, const struct cJSON *list, const char *key,
                          bool (*read_item)(struct reader *, const struct cJSON *))
{
    if (!cJSON_IsArray(list)) return wrong(r, key, list, "an array");
    const struct cJSON *item;
    cJSON_ArrayForEach(item, list) {
        if (!read_item(r, item)) return false;
    }
    return true;
}

/* ---- Vocabulary and merges ---- */

static int64_t highest_id(const struct cJSON *vocab, const struct cJSON *added, size_t *count)
{
    int64_t id, highest = -1;
    const struct cJSON *item;
    *count = 0;
    cJSON_ArrayForEach(item, vocab) {
        ++*count;
        if (json_to_i64(item, &id) && id > highest) highest = id;
    }
    cJSON_ArrayForEach(item, added) {
        ++*count;
        if (json_to_i64(json_get(item, "id"), &id) && id > highest) highest = id;
    }
    return highest;
}

static bool read_vocab(struct reader *r, const struct cJSON *vocab)
{
    const struct cJSON *item;
    cJSON_ArrayForEach(item, vocab) {
        int64_t id;
        if (!json_to_i64(item, &id)) return wrong(r, item->string, item, "a token id");
        if (!builder_token(&r->b, id, item->string, strlen(item->string))) return false;
    }
    return true;
}

static bool read_merge(struct reader *r, const struct cJSON *merge)
{
    if (cJSON_IsString(merge))
        return builder_merge_line(&r->b, merge->valuestring, strlen(merge->valuestring));
    const struct cJSON *left = cJSON_IsArray(merge) ? merge->child : NULL;
    const struct cJSON *right = left ? left->next : NULL;
    if (!cJSON_IsString(left) || !cJSON_IsString(right) || right->next)
        return wrong(r, "merges", merge, "strings \"left right\" or pairs of strings");
    return builder_merge(&r->b, left->valuestring, strlen(left->valuestring), right->valuestring,
                         strlen(right->valuestring));
}

static bool read_merges(struct reader *r, const struct cJSON *merges)
{
    if (!cJSON_IsArray(merges)) return wrong(r, "merges", merges, "an array");
    if (!builder_merges(&r->b, (size_t)cJSON_GetArraySize(merges))) return false;
    const struct cJSON *item;
    cJSON_ArrayForEach(item, merges) {
        if (!read_merge(r, item)) return false;
    }
    return true;
}

/* ---- The model ---- */

static bool refuse_setting(struct reader *r, const char *key)
{
    const struct cJSON *item = json_get(r->model, key);
    bool off = is_null(item) || (cJSON_IsString(item) && !item->valuestring[0]) ||
               (cJSON_IsNumber(item) && item->valuedouble == 0);
    return off || unsupported(r, "model setting", key);
}

static bool read_unk(struct reader *r)
{
    const struct cJSON *item = json_get(r->model, "unk_token");
    if (is_null(item)) return true;
    if (!cJSON_IsString(item)) return wrong(r, "unk_token", item, "a string or null");
    const char *unk = item->valuestring;
    r->b.t->unk = builder_find(&r->b, unk, strlen(unk));
    return r->b.t->unk >= 0 ||
           error_set(r->err, ERR_FORMAT, NULL, "%s: unk_token \"%.80s\" is not in the vocabulary",
                     r->where, unk);
}

static bool read_model_settings(struct reader *r)
{
    struct tokenizer *t = r->b.t;
    return refuse_setting(r, "dropout") && refuse_setting(r, "continuing_subword_prefix") &&
           refuse_setting(r, "end_of_word_suffix") && read_unk(r) &&
           get_bool(r, r->model, "fuse_unk", false, &t->fuse_unk) &&
           get_bool(r, r->model, "byte_fallback", false, &t->byte_fallback) &&
           get_bool(r, r->model, "ignore_merges", false, &t->ignore_merges);
}

/* ---- Normalizers ---- */

/* The text of {"String": text}, or of a {"Regex": text} that has no special characters. */
static bool plain_pattern(struct reader *r, const struct cJSON *pattern, const char **out)
{
    const struct cJSON *item = json_get(pattern, "String");
    if (!item) item = json_get(pattern, "Regex");
    if (!cJSON_IsString(item)) return wrong(r, "pattern", pattern, "{\"String\": text}");
    *out = item->valuestring;
    if (json_get(pattern, "Regex") && strpbrk(*out, "\\^$.|?*+()[]{}"))
        return unsupported(r, "replacement pattern", *out);
    return true;
}

static bool read_normalizer(struct reader *r, const struct cJSON *item)
{
    if (is_null(item)) return true;
    const char *type, *from = "", *to = "";
    if (!get_type(r, item, "normalizer", &type)) return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(r, json_get(item, "normalizers"), "normalizers", read_normalizer);
    enum normalizer_op op = NORMALIZE_NFC;
    if (strcmp(type, "Prepend") == 0) {
        op = NORMALIZE_PREPEND;
        if (!get_string(r, item, "prepend", &to)) return false;
    } else if (strcmp(type, "Replace") == 0) {
        op = NORMALIZE_REPLACE;
        if (!plain_pattern(r, json_get(item, "pattern"), &from) ||
            !get_string(r, item, "content", &to))
            return false;
    } else if (strcmp(type, "NFC") != 0) {
        return unsupported(r, "normalizer", type);
    }
    return builder_normalizer(&r->b, op, from, strlen(from), to, strlen(to));
}

/* ---- Pre-tokenizers ---- */

static bool add_step(struct reader *r, const char *pattern, bool literal,
                     enum split_behavior behavior, bool invert)
{
    return pretokenize_add(r->b.t, pattern, strlen(pattern), literal, behavior, invert, r->where,
                           r->err);
}

static bool get_behavior(struct reader *r, const struct cJSON *item, enum split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = "Isolated";
    if (json_get(item, "behavior") && !get_string(r, item, "behavior", &name)) return false;
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum split_behavior)i;
        return true;
    }
    return unsupported(r, "split behavior", name);
}

static bool read_split(struct reader *r, const struct cJSON *item)
{
    enum split_behavior behavior;
    bool invert;
    const struct cJSON *pattern = json_get(item, "pattern");
    const struct cJSON *regex = json_get(pattern, "Regex"), *text = json_get(pattern, "String");
    if (!cJSON_IsString(regex) && !cJSON_IsString(text))
        return wrong(r, "pattern", pattern, "{\"Regex\": text} or {\"String\": text}");
    if (!get_behavior(r, item, &behavior) || !get_bool(r, item, "invert", false, &invert))
        return false;
    bool literal = !cJSON_IsString(regex);
    return add_step(r, literal ? text->valuestring : regex->valuestring, literal, behavior, invert);
}

static bool read_byte_level(struct reader *r, const struct cJSON *item)
{
    struct tokenizer *t = r->b.t;
    bool prefix, pattern;
    if (!get_bool(r, item, "add_prefix_space", true, &prefix) ||
        !get_bool(r, item, "use_regex", true, &pattern))
        return false;
    t->byte_level = r->byte_level_seen = true;
    if (prefix && t->n_steps > 0)
        return unsupported(r, "pre-tokenizer setting", "add_prefix_space behind another split");
    if (prefix) {
        t->prefix_when = PREFIX_ALWAYS;
        t->prefix = " ";
        t->n_prefix = 1;
    }
    return !pattern || add_step(r, pretokenize_gpt2, false, SPLIT_ISOLATED, false);
}

/* When Metaspace puts its mark before a text; `scheme` is its word for that, older files have a
 * boolean instead. */
static bool get_prepend_scheme(struct reader *r, const struct cJSON *item, enum prefix_when *out)
{
    bool prefix;
    if (!get_bool(r, item, "add_prefix_space", true, &prefix)) return false;
    const char *scheme = prefix ? "always" : "never";
    if (json_get(item, "prepend_scheme") && !get_string(r, item, "prepend_scheme", &scheme))
        return false;
    if (strcmp(scheme, "always") == 0) *out = PREFIX_ALWAYS;
    else if (strcmp(scheme, "first") == 0) *out = PREFIX_FIRST;
    else if (strcmp(scheme, "never") == 0) *out = PREFIX_NEVER;
    else return unsupported(r, "prepend_scheme", scheme);
    return true;
}

static bool read_metaspace(struct reader *r, const struct cJSON *item)
{
    struct tokenizer *t = r->b.t;
    const char *mark;
    bool split;
    if (!get_string(r, item, "replacement", &mark) || !get_bool(r, item, "split", true, &split) ||
        !get_prepend_scheme(r, item, &t->prefix_when))
        return false;
    if (strcmp(mark, SPACE_MARK) != 0) return unsupported(r, "Metaspace replacement", mark);
    if (t->n_steps > 0)
        return unsupported(r, "pre-tokenizer setting", "Metaspace behind another split");
    t->metaspace = r->b.marks_spaces = true;
    t->prefix = SPACE_MARK;
    t->n_prefix = 3;
    return !split || add_step(r, SPACE_MARK, true, SPLIT_MERGED_WITH_NEXT, false);
}

static bool read_digits(struct reader *r, const struct cJSON *item)
{
    bool individual;
    if (!get_bool(r, item, "individual_digits", false, &individual)) return false;
    return add_step(r, individual ? "\\p{N}" : "\\p{N}+", false, SPLIT_ISOLATED, false);
}

static bool read_punctuation(struct reader *r, const struct cJSON *item)
{
    enum split_behavior behavior;
    return get_behavior(r, item, &behavior) &&
           add_step(r, "[\\p{P}!-/:-@\\[-`{-~]", false, behavior, false);
}

static bool read_pretokenizer(struct reader *r, const struct cJSON *item)
{
    if (is_null(item)) return true;
    const char *type;
    if (!get_type(r, item, "pre_tokenizer", &type)) return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(r, json_get(item, "pretokenizers"), "pretokenizers",
                             read_pretokenizer);
    /* Behind ByteLevel the text is written in another alphabet. */
    if (r->byte_level_seen) return unsupported(r, "pre-tokenizer behind ByteLevel", type);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(r, item);
    if (strcmp(type, "Split") == 0) return read_split(r, item);
    if (strcmp(type, "Digits") == 0) return read_digits(r, item);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(r, item);
    if (strcmp(type, "Punctuation") == 0) return read_punctuation(r, item);
    if (strcmp(type, "Whitespace") == 0)
        return add_step(r, "[" RUST_WORD "]+|[^" RUST_WORD "\\s]+", false, SPLIT_REMOVED, true);
    if (strcmp(type, "WhitespaceSplit") == 0)
        return add_step(r, "\\s+", false, SPLIT_REMOVED, false);
    return unsupported(r, "pre-tokenizer", type);
}

/* ---- Decoders ---- */

static bool read_replace_decoder(struct reader *r, const struct cJSON *item)
{
    const char *from, *to;
    if (!plain_pattern(r, json_get(item, "pattern"), &from) || !get_string(r, item, "content", &to))
        return false;
    if (strcmp(from, SPACE_MARK) != 0 || strcmp(to, " ") != 0)
        return unsupported(r, "decoder replacing", from);
    r->b.marks_spaces = true;
    return true;
}

static bool read_strip_decoder(struct reader *r, const struct cJSON *item)
{
    const char *content;
    int64_t start, stop;
    if (!get_string(r, item, "content", &content)) return false;
    if (!json_to_i64(json_get(item, "start"), &start) ||
        !json_to_i64(json_get(item, "stop"), &stop))
        return wrong(r, "decoder", item, "a Strip with numbers \"start\" and \"stop\"");
    if (strcmp(content, " ") != 0 || start < 0 || start > 1 || stop != 0)
        return unsupported(r, "decoder", "Strip of anything but one leading space");
    r->b.t->strips_space = start == 1;
    return true;
}

static bool read_decoder(struct reader *r, const struct cJSON *item)
{
    if (is_null(item)) return true;
    const char *type;
    if (!get_type(r, item, "decoder", &type)) return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(r, json_get(item, "decoders"), "decoders", read_decoder);
    if (strcmp(type, "Replace") == 0) return read_replace_decoder(r, item);
    if (strcmp(type, "Strip") == 0) return read_strip_decoder(r, item);
    if (strcmp(type, "Metaspace") == 0) {
        enum prefix_when when;
        if (!get_prepend_scheme(r, item, &when)) return false;
        r->b.marks_spaces = true;
        r->b.t->strips_space = when != PREFIX_NEVER;
        return true;
    }
    if (strcmp(type, "ByteLevel") == 0 || strcmp(type, "ByteFallback") == 0 ||
        strcmp(type, "Fuse") == 0)
        return true;
    return unsupported(r, "decoder", type);
}

/* ---- Post-processors: does a BOS go before the text? ---- */

/* The id that a template's special token stands for. */
static bool template_id(struct reader *r, const struct cJSON *template, const struct cJSON *special)
{
    const char *name;
    int64_t id;
    if (!get_string(r, special, "id", &name)) return false;
    const struct cJSON *entry = json_get(json_get(template, "special_tokens"), name);
    const struct cJSON *ids = json_get(entry, "ids");
    if (!cJSON_IsArray(ids) || !ids->child || ids->child->next || !json_to_i64(ids->child, &id) ||
        id < 0 || id >= r->b.t->n_tokens)
        return wrong(r, "special_tokens", entry,
                     "an entry with one valid id for each special token");
    r->b.t->bos = (int32_t)id;
    r->b.t->adds_bos = true;
    return true;
}

static bool read_template(struct reader *r, const struct cJSON *item)
{
    const struct cJSON *single = json_get(item, "single"), *each;
    if (!cJSON_IsArray(single)) return wrong(r, "single", single, "an array");
    bool text_seen = false;
    cJSON_ArrayForEach(each, single) {
        const struct cJSON *special = json_get(each, "SpecialToken");
        if (special && (text_seen || r->b.t->adds_bos))
            return unsupported(r, "post-processor", "TemplateProcessing with more than a BOS");
        if (special && !template_id(r, item, special)) return false;
        if (!special) text_seen = true;
    }
    return true;
}

static bool read_postprocessor(struct reader *r, const struct cJSON *item)
{
    if (is_null(item)) return true;
    const char *type;
    if (!get_type(r, item, "post_processor", &type)) return false;
    if (strcmp(type, "Sequence") == 0)
        return read_sequence(r, json_get(item, "processors"), "processors", read_postprocessor);
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(r, item);
    return strcmp(type, "ByteLevel") == 0 || unsupported(r, "post-processor", type);
}

/* ---- Added tokens ---- */

static bool read_added(struct reader *r, const struct cJSON *item)
{
    const char *content;
    int64_t id;
    bool special, lstrip, rstrip, single_word, normalized;
    if (!json_to_i64(json_get(item, "id"), &id))
        return wrong(r, "id", json_get(item, "id"), "an added token's id");
    if (!get_string(r, item, "content", &content) ||
        !get_bool(r, item, "special", false, &special) ||
        !get_bool(r, item, "lstrip", false, &lstrip) ||
        !get_bool(r, item, "rstrip", false, &rstrip) ||
        !get_bool(r, item, "single_word", false, &single_word) ||
        !get_bool(r, item, "normalized", !special, &normalized))
        return false;
    uint32_t flags = (special ? TOKEN_SPECIAL : 0u) | (lstrip ? ADDED_LSTRIP : 0u) |
                     (rstrip ? ADDED_RSTRIP : 0u) | (single_word ? ADDED_SINGLE_WORD : 0u) |
                     (normalized ? ADDED_NORMALIZED : 0u);
    return builder_added(&r->b, id, content, strlen(content), flags);
}

static bool read_all_added(struct reader *r)
{
    const struct cJSON *list = json_get(r->root, "added_tokens"), *each;
    if (is_null(list)) return true;
    if (!cJSON_IsArray(list)) return wrong(r, "added_tokens", list, "an array");
    cJSON_ArrayForEach(each, list) {
        if (!read_added(r, each)) return false;
    }
    return true;
}

/* ---- The whole ---- */

static bool read_model_type(struct reader *r)
{
    const char *type;
    if (!get_type(r, r->model, "model", &type)) return false;
    /* Old files leave the type out: BPE is the kind that has merges. */
    if (strcmp(type, "BPE") == 0 || (!type[0] && json_get(r->model, "merges"))) return true;
    return unsupported(r, "model type", type[0] ? type : "(none)");
}

static bool read_all(struct reader *r, struct tokenizer **out)
{
    r->model = json_get(r->root, "model");
    if (!read_model_type(r)) return false;
    const struct cJSON *vocab = json_get(r->model, "vocab");
    if (!cJSON_IsObject(vocab)) return wrong(r, "vocab", vocab, "an object");
    size_t count;
    int64_t highest = highest_id(vocab, json_get(r->root, "added_tokens"), &count);
    return builder_init(&r->b, count, highest, r->where, r->err) && read_vocab(r, vocab) &&
           read_pretokenizer(r, json_get(r->root, "pre_tokenizer")) &&
           read_decoder(r, json_get(r->root, "decoder")) && read_model_settings(r) &&
           read_normalizer(r, json_get(r->root, "normalizer")) && builder_texts(&r->b) &&
           read_merges(r, json_get(r->model, "merges")) && read_all_added(r) &&
           read_postprocessor(r, json_get(r->root, "post_processor")) &&
           builder_finish(&r->b, out);
}

bool tokenizer_open_json(const char *json, size_t n, const char *where, struct tokenizer **out,
                         struct error *err)
{
    struct reader r = {.where = where, .err = err};
    if (n > MAX_JSON_BYTES)
        return error_set(err, ERR_TOO_LARGE, NULL, "%s: %zu bytes, over %d for a tokenizer", where,
                         n, MAX_JSON_BYTES);
    struct cJSON *root = json_parse(json, n, MAX_DEPTH, where, err);
    if (!root) return false;
    r.root = root;
    bool ok = read_all(&r, out);
    builder_free(&r.b);
    cJSON_Delete(root);
    return ok;
}
