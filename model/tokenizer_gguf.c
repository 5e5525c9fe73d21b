/* Reads a tokenizer from GGUF metadata (tokenizer.ggml.*; the GGUF specification, "Tokenizer"):
 * byte-level BPE ("gpt2") with merges and a pre-tokenizer by name, or SentencePiece ("llama") with
 * scores. */
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "model/gguf.h"
#include "model/tokenizer_internal.h"

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

struct reader {
    struct builder b;
    const struct gguf *g;
    const struct gguf_value *tokens, *types; /* types may be NULL */
    bool sentencepiece;
    struct error *err;
};

static const char where[] = "the GGUF tokenizer";

static bool wrong(struct reader *r, const char *key, const char *right)
{
    return error_set(r->err, ERR_FORMAT, NULL, "%s: %s must be %s", where, key, right);
}

static bool is_array(const struct gguf_value *v, bool strings)
{
    return v && v->type == GGUF_ARRAY && (v->item_type == GGUF_STRING) == strings;
}

static bool is(const struct gguf_string *s, const char *text)
{
    return s->len == strlen(text) && memcmp(s->data, text, s->len) == 0;
}

/* A flag that is there keeps its value, an absent one becomes `otherwise`. */
static bool get_flag(struct reader *r, const char *key, bool otherwise, bool *out)
{
    const struct gguf_value *v = gguf_find(r->g, key);
    *out = otherwise;
    return !v || gguf_get_bool(v, out) || wrong(r, key, "true or false");
}

static bool get_id(struct reader *r, const char *key, int32_t *out)
{
    const struct gguf_value *v = gguf_find(r->g, key);
    int64_t id;
    *out = -1;
    if (!v) return true;
    if (!gguf_get_i64(v, &id)) return wrong(r, key, "a token id");
    /* 2^32 - 1 is how some writers say "none". */
    if (id == -1 || id == UINT32_MAX) return true;
    if (id < 0 || id >= r->b.t->n_tokens) return wrong(r, key, "the id of one of the tokens");
    *out = (int32_t)id;
    return true;
}

/* ---- Tokens ---- */

static bool read_tokens(struct reader *r)
{
    struct gguf_string s;
    size_t cursor = 0;
    for (int64_t id = 0; gguf_next_string(r->tokens, &cursor, &s); id++)
        if (!builder_token(&r->b, id, s.data, s.len)) return false;
    return true;
}

/* Adds CONTROL and UNKNOWN tokens as special ones, USER_DEFINED as such that always match. */
static bool read_types(struct reader *r)
{
    for (int32_t id = 0; r->types && id < r->b.t->n_tokens; id++) {
        int64_t type;
        if (!gguf_item_i64(r->types, (uint64_t)id, &type))
            return wrong(r, "tokenizer.ggml.token_type", "an array of integers");
        const struct raw_token *raw = &r->b.raw[id];
        const struct token *token = &r->b.t->tokens[id];
        if (raw->n == 0) continue;
        if (type == TYPE_CONTROL || type == TYPE_UNKNOWN) {
            if (!builder_added(&r->b, id, raw->s, raw->n, TOKEN_SPECIAL)) return false;
        } else if (type == TYPE_USER_DEFINED && r->sentencepiece) {
            /* Its spaces are spaces of the text, which has no marks yet. */
            if (!builder_added(&r->b, id, token->text, token->n_text, 0)) return false;
        } else if (type == TYPE_USER_DEFINED) {
            if (!builder_added(&r->b, id, raw->s, raw->n, 0)) return false;
        }
    }
    return true;
}

/* Higher scores merge first: a rank that orders as the negated float does. */
static uint32_t rank_of_score(double score)
{
    union { float f; uint32_t u; } v = {.f = (float)score + 0.0f}; /* -0 becomes 0 */
    uint32_t ascending = v.u & 0x80000000 ? ~v.u : v.u | 0x80000000;
    return ~ascending;
}

static bool read_scores(struct reader *r)
{
    const struct gguf_value *scores = gguf_find(r->g, "tokenizer.ggml.scores");
    if (!is_array(scores, false) || scores->count != r->tokens->count)
        return wrong(r, "tokenizer.ggml.scores", "an array with a number for each token");
    for (int32_t id = 0; id < r->b.t->n_tokens; id++) {
        double score;
        if (!gguf_item_f64(scores, (uint64_t)id, &score) || !isfinite((float)score))
            return wrong(r, "tokenizer.ggml.scores", "finite numbers");
        r->b.t->tokens[id].rank = rank_of_score(score);
    }
    return true;
}

static bool read_merges(struct reader *r)
{
    const struct gguf_value *merges = gguf_find(r->g, "tokenizer.ggml.merges");
    if (!is_array(merges, true)) return wrong(r, "tokenizer.ggml.merges", "an array of strings");
    if (!builder_merges(&r->b, merges->count)) return false;
    struct gguf_string s;
    size_t cursor = 0;
    while (gguf_next_string(merges, &cursor, &s))
        if (!builder_merge_line(&r->b, s.data, s.len)) return false;
    return true;
}

/* ---- The two models ---- */

static bool read_byte_level(struct reader *r)
{
    struct tokenizer *t = r->b.t;
    struct gguf_string pre = {"default", 7};
    const struct gguf_value *v = gguf_find(r->g, "tokenizer.ggml.pre");
    if (v && !gguf_get_string(v, &pre)) return wrong(r, "tokenizer.ggml.pre", "a string");
    if (!pretokenize_add_named(t, pre.data, pre.len, where, r->err)) return false;
    t->byte_level = true;
    const char *family = pretokenize_family(t);
    bool llama3 = strcmp(family, "llama3") == 0 && !is(&pre, "dbrx") && !is(&pre, "smaug-bpe") &&
                  !is(&pre, "chatglm-bpe");
    bool tekken = strcmp(family, "tekken") == 0;
    t->ignore_merges = llama3 || tekken;
    t->adds_bos = (llama3 && !is(&pre, "glm4")) || tekken;
    /* The format has no field for the normalizer; Qwen2's tokenizer.json has this one. */
    if (is(&pre, "qwen2") && !builder_normalizer(&r->b, NORMALIZE_NFC, "", 0, "", 0)) return false;
    return builder_texts(&r->b) && read_merges(r);
}

static bool read_sentencepiece(struct reader *r)
{
    struct tokenizer *t = r->b.t;
    bool prefix;
    t->scored = t->byte_fallback = t->fuse_unk = t->adds_bos = r->b.marks_spaces = true;
    if (!get_flag(r, "tokenizer.ggml.add_space_prefix", true, &prefix)) return false;
    t->strips_space = prefix;
    if (prefix && !builder_normalizer(&r->b, NORMALIZE_PREPEND, "", 0, SPACE_MARK, 3)) return false;
    return builder_normalizer(&r->b, NORMALIZE_REPLACE, " ", 1, SPACE_MARK, 3) &&
           builder_texts(&r->b) && read_scores(r);
}

/* ---- Around the model ---- */

/* Makes a token special that the file names as a marker but does not type as one. */
static bool mark_special(struct reader *r, int32_t id)
{
    int64_t type = 0;
    if (id < 0 || r->b.raw[id].n == 0 || r->b.t->tokens[id].flags & TOKEN_SPECIAL) return true;
    /* A model without a marker of its own may name an ordinary token. */
    if (r->types && gguf_item_i64(r->types, (uint64_t)id, &type) && type == TYPE_NORMAL)
        return true;
    if (r->b.t->tokens[id].flags & TOKEN_ADDED) {
        r->b.t->tokens[id].flags |= TOKEN_SPECIAL;
        return true;
    }
    return builder_added(&r->b, id, r->b.raw[id].s, r->b.raw[id].n, TOKEN_SPECIAL);
}

static bool read_markers(struct reader *r)
{
    struct tokenizer *t = r->b.t;
    int32_t eot, eom;
    bool adds_bos;
    if (!get_id(r, "tokenizer.ggml.bos_token_id", &t->bos) ||
        !get_id(r, "tokenizer.ggml.eos_token_id", &t->eos) ||
        !get_id(r, "tokenizer.ggml.unknown_token_id", &t->unk) ||
        !get_id(r, "tokenizer.ggml.eot_token_id", &eot) ||
        !get_id(r, "tokenizer.ggml.eom_token_id", &eom) ||
        !get_flag(r, "tokenizer.ggml.add_bos_token", t->adds_bos, &adds_bos))
        return false;
    t->adds_bos = adds_bos;
    int32_t unk = t->unk;
    /* Byte-level BPE has no use for it: writers fill in the end of text, which no text may
     * become. */
    if (!r->sentencepiece) t->unk = -1;
    if (!mark_special(r, t->bos) || !mark_special(r, t->eos) || !mark_special(r, unk) ||
        !mark_special(r, eot) || !mark_special(r, eom))
        return false;
    if (r->sentencepiece) {
        if (t->bos < 0) t->bos = builder_find(&r->b, "<s>", 3);
        if (t->eos < 0) t->eos = builder_find(&r->b, "</s>", 4);
    }
    builder_stop(t, t->eos);
    builder_stop(t, eot);
    builder_stop(t, eom);
    return true;
}

static bool read_template(struct reader *r)
{
    struct gguf_string s;
    const struct gguf_value *v = gguf_find(r->g, "tokenizer.chat_template");
    if (!v || !gguf_get_string(v, &s)) return true;
    r->b.t->chat_template = arena_copy(&r->b.t->arena, s.data, s.len);
    return r->b.t->chat_template ||
           error_set(r->err, ERR_MEMORY, NULL, "%s: no memory for the chat template", where);
}

static bool read_all(struct reader *r, struct tokenizer **out)
{
    r->tokens = gguf_find(r->g, "tokenizer.ggml.tokens");
    r->types = gguf_find(r->g, "tokenizer.ggml.token_type");
    if (!is_array(r->tokens, true)) return wrong(r, "tokenizer.ggml.tokens", "an array of strings");
    if (r->types && (!is_array(r->types, false) || r->types->count != r->tokens->count))
        return wrong(r, "tokenizer.ggml.token_type", "an array with an integer for each token");
    if (r->tokens->count > TOKENIZER_MAX_TOKENS)
        return wrong(r, "tokenizer.ggml.tokens", "at most 4194304 tokens");
    return builder_init(&r->b, r->tokens->count, (int64_t)r->tokens->count - 1, where, r->err) &&
           read_tokens(r) && (r->sentencepiece ? read_sentencepiece(r) : read_byte_level(r)) &&
           read_types(r) && read_markers(r) && read_template(r) && builder_finish(&r->b, out);
}

bool tokenizer_open_gguf(const struct gguf *g, struct tokenizer **out, struct error *err)
{
    struct reader r = {.g = g, .err = err};
    const struct gguf_value *v = gguf_find(g, "tokenizer.ggml.model");
    struct gguf_string model;
    *out = NULL;
    if (!v) return true;
    if (!gguf_get_string(v, &model)) return wrong(&r, "tokenizer.ggml.model", "a string");
    if (is(&model, "no_vocab") || is(&model, "none")) return true;
    r.sentencepiece = is(&model, "llama");
    if (!r.sentencepiece && !is(&model, "gpt2"))
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: the model \"%.*s\" is not supported (\"gpt2\" and \"llama\" are)",
                         where, (int)(model.len < 40 ? model.len : 40), model.data);
    bool ok = read_all(&r, out);
    builder_free(&r.b);
    return ok;
}

bool tokenizer_open_path(const char *path, struct tokenizer **out, struct error *err)
{
    struct gguf *g;
    *out = NULL;
    if (file_is_dir(path)) return tokenizer_open_dir(path, out, err);
    if (!gguf_open(path, &g, err)) return false;
    bool ok = tokenizer_open_gguf(g, out, err);
    gguf_close(g);
    return ok;
}
