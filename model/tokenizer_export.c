/* Tokenizers as GGUF metadata (the GGUF specification, "Tokenizer"), and what both exporters need
 * to know of one: its strings and its merges. See tokenizer_export.h. */
#include "model/tokenizer_export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_export_internal.h"

/* tokenizer.ggml.token_type */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

/* ---- What a tokenizer is made of ---- */

static void put_marked(const char *s, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        if (s[i] == ' ') buf_puts(out, SPACE_MARK);
        else buf_putc(out, s[i]);
    }
}

static void put_alphabet(const char *s, size_t n, struct buf *out)
{
    int16_t byte_of[BYTE_ALPHABET_END];
    uint16_t letter_of[256];
    char utf8[4];
    byte_alphabet(byte_of);
    for (int cp = 0; cp < BYTE_ALPHABET_END; cp++)
        if (byte_of[cp] >= 0) letter_of[byte_of[cp]] = (uint16_t)cp;
    for (size_t i = 0; i < n; i++)
        buf_append(out, utf8, (size_t)utf8_encode(letter_of[(uint8_t)s[i]], utf8));
}

void token_raw(const struct tokenizer *t, int32_t id, struct buf *out)
{
    const struct token *token = &t->tokens[id];
    buf_clear(out);
    if (!(token->flags & TOKEN_EXISTS)) buf_printf(out, "[PAD%d]", id);
    else if (token->flags & TOKEN_ADDED && t->byte_level)
        buf_append(out, token->text, token->n_text);
    else if (token->flags & TOKEN_ADDED)
        put_marked(token->text, token->n_text, out);
    else if (t->kind == TOKENIZER_CHARACTER) put_marked(token->piece, token->n_piece, out);
    else if (t->byte_level && !(token->flags & TOKEN_LITERAL))
        put_alphabet(token->piece, token->n_piece, out);
    else buf_append(out, token->piece, token->n_piece);
}

static int compare_ranks(const void *a, const void *b)
{
    const struct merge_entry *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return (x->left > y->left) - (x->left < y->left);
}

static bool list_explicit(const struct tokenizer *t, struct merge_entries *out)
{
    for (size_t i = 0; t->merges.slots && i <= t->merges.mask; i++) {
        const struct pair_slot *s = &t->merges.slots[i];
        if (s->key != PAIR_EMPTY)
            out->at[out->n++] = (struct merge_entry){s->rank, s->id, (int32_t)(s->key >> 32),
                                                     (int32_t)(uint32_t)s->key};
    }
    return true;
}

/* Every way to put a piece together from two pieces, by the rank of the whole. */
static bool list_scored(const struct tokenizer *t, struct merge_entries *out, size_t capacity)
{
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const struct token *token = &t->tokens[id];
        if (text_map_get(&t->pieces, token->piece ? token->piece : "", token->n_piece) != id)
            continue;
        for (uint32_t cut = 1; cut < token->n_piece; cut++) {
            if (((uint8_t)token->piece[cut] & 0xC0) == 0x80) continue; /* inside a character */
            int32_t left = text_map_get(&t->pieces, token->piece, cut);
            int32_t right = text_map_get(&t->pieces, token->piece + cut, token->n_piece - cut);
            if (left < 0 || right < 0) continue;
            if (out->n == capacity) return false;
            out->at[out->n++] = (struct merge_entry){token->rank, id, left, right};
        }
    }
    return true;
}

bool merge_entries_list(const struct tokenizer *t, struct merge_entries *out, struct error *err)
{
    size_t capacity = t->n_merges;
    for (int32_t id = 0; t->scored && id < t->n_tokens; id++) capacity += t->tokens[id].n_piece;
    *out = (struct merge_entries){.at = calloc(capacity + 1, sizeof *out->at)};
    if (!out->at) return error_set(err, ERR_MEMORY, NULL, "no memory for %zu merges", capacity);
    bool all = t->scored ? list_scored(t, out, capacity) : list_explicit(t, out);
    ASSERT(all && out->n <= capacity);
    qsort(out->at, out->n, sizeof *out->at, compare_ranks);
    return true;
}

/* ---- Can GGUF say it? ---- */

static bool unsaid(struct error *err, const char *what)
{
    return error_set(err, ERR_UNSUPPORTED, "tokenizer",
                     "the tokenizer cannot be written to GGUF, which has no words for %s", what);
}

/* The name of the pre-tokenizer that reading turns into the same steps, NULL for none. */
static const char *pre_name(const struct tokenizer *t)
{
    static const char *const names[][2] = {
        {"gpt2", "gpt-2"},     {"smollm", "smollm"},   {"llama3", "smaug-bpe"},
        {"qwen2", "stablelm2"}, {"qwen35", "qwen35"},  {"gpt4o", "gpt-4o"},
        {"bloom", "bloom"},    {"viking", "viking"},   {"falcon", "falcon"},
        {"default", "default"},
    };
    const char *family = pretokenize_family(t);
    bool nfc = t->n_normalizers == 1 && t->normalizers[0].op == NORMALIZE_NFC;
    if (!family) return NULL;
    if (t->ignore_merges)
        return strcmp(family, "llama3") == 0 ? "llama-bpe"
               : strcmp(family, "tekken") == 0 ? "tekken" : NULL;
    if (nfc) return strcmp(family, "qwen2") == 0 ? "qwen2" : NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(family, names[i][0]) == 0) return names[i][1];
    return NULL;
}

static bool check_byte_level(const struct tokenizer *t, struct error *err)
{
    if (t->prefix_when != PREFIX_NEVER) return unsaid(err, "a space put before a byte-level text");
    bool nfc = t->n_normalizers == 1 && t->normalizers[0].op == NORMALIZE_NFC;
    if (t->n_normalizers > 0 && !nfc) return unsaid(err, "its normalizers");
    if (!pre_name(t)) return unsaid(err, "its pre-tokenizer");
    return true;
}

static bool is_space_replacement(const struct normalizer *n)
{
    return n->op == NORMALIZE_REPLACE && n->n_from == 1 && n->from[0] == ' ' && n->n_to == 3 &&
           memcmp(n->to, SPACE_MARK, 3) == 0;
}

static bool is_mark_prefix(const struct normalizer *n)
{
    return n->op == NORMALIZE_PREPEND && n->n_to == 3 && memcmp(n->to, SPACE_MARK, 3) == 0;
}

/* Spaces become marks, maybe with one before the text: by normalizers, or by Metaspace. */
static bool check_sentencepiece(const struct tokenizer *t, bool *prefix, struct error *err)
{
    int32_t n = t->n_normalizers;
    *prefix = false;
    if (!t->byte_fallback) return unsaid(err, "a SentencePiece model without byte fallback");
    if (t->metaspace) {
        *prefix = t->prefix_when != PREFIX_NEVER;
        if (n > 0 || t->n_steps > 1) return unsaid(err, "normalizers or splits beside Metaspace");
        return true;
    }
    if (t->n_steps > 0) return unsaid(err, "a pre-tokenizer of a SentencePiece model");
    if (n == 2) *prefix = is_mark_prefix(&t->normalizers[0]);
    bool known = n > 0 && is_space_replacement(&t->normalizers[n - 1]) && (n == 1 || *prefix);
    return (known && n <= 2) || unsaid(err, "its normalizers");
}

static bool check_characters(const struct tokenizer *t, struct error *err)
{
    if (t->n_normalizers > 0 || t->n_steps > 0)
        return unsaid(err, "normalizers or splits of a character model");
    for (int32_t id = 0; id < t->n_tokens; id++)
        if (t->tokens[id].n_piece == 3 && memcmp(t->tokens[id].piece, SPACE_MARK, 3) == 0)
            return unsaid(err, "the character U+2581, which stands for the space there");
    return true;
}

/* Special tokens never come from a user's text; the others do, wherever they stand. */
static bool check_added(const struct tokenizer *t, struct error *err)
{
    for (int32_t id = 0; id < t->n_tokens; id++) {
        uint32_t flags = t->tokens[id].flags;
        if (!(flags & TOKEN_SPECIAL) && flags & (ADDED_LSTRIP | ADDED_RSTRIP | ADDED_SINGLE_WORD))
            return unsaid(err, "an added token that looks at what lies beside it");
    }
    return true;
}

/* ---- Metadata ---- */

static void put_text(struct gguf_meta *m, const char *key, const char *value)
{
    gguf_meta_string(m, key, value, strlen(value));
}

/* Rows of the embedding that no token has: named, and typed as unused. */
static void put_tokens(const struct tokenizer *t, int64_t vocab_size, struct gguf_meta *m)
{
    struct buf raw;
    buf_init(&raw, 4 * TOKENIZER_MAX_TEXT);
    gguf_meta_array(m, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)vocab_size);
    for (int64_t id = 0; id < vocab_size; id++) {
        if (id < t->n_tokens) {
            token_raw(t, (int32_t)id, &raw);
        } else {
            buf_clear(&raw);
            buf_printf(&raw, "[PAD%d]", (int)id);
        }
        m->bytes.failed |= raw.failed;
        gguf_item_string(m, raw.data ? raw.data : "", raw.len);
    }
    buf_free(&raw);
}

static int32_t type_of(const struct tokenizer *t, int64_t id)
{
    uint32_t flags = id < t->n_tokens ? t->tokens[id].flags : 0;
    if (!(flags & TOKEN_EXISTS)) return TYPE_UNUSED;
    if (id == t->unk && !t->byte_level) return TYPE_UNKNOWN;
    if (flags & TOKEN_SPECIAL) return TYPE_CONTROL;
    if (flags & TOKEN_ADDED) return TYPE_USER_DEFINED;
    return flags & TOKEN_BYTE ? TYPE_BYTE : TYPE_NORMAL;
}

static void put_types(const struct tokenizer *t, int64_t vocab_size, struct gguf_meta *m)
{
    gguf_meta_array(m, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)vocab_size);
    for (int64_t id = 0; id < vocab_size; id++) gguf_item_i32(m, type_of(t, id));
}

static void put_merges(const struct tokenizer *t, const struct merge_entries *merges,
                       struct gguf_meta *m)
{
    struct buf left, right;
    buf_init(&left, 4 * TOKENIZER_MAX_TEXT);
    buf_init(&right, 8 * TOKENIZER_MAX_TEXT);
    gguf_meta_array(m, "tokenizer.ggml.merges", GGUF_STRING, merges->n);
    for (size_t i = 0; i < merges->n; i++) {
        token_raw(t, merges->at[i].left, &left);
        token_raw(t, merges->at[i].right, &right);
        buf_putc(&left, ' ');
        buf_append(&left, right.data, right.len);
        m->bytes.failed |= left.failed || right.failed;
        gguf_item_string(m, left.data ? left.data : "", left.len);
    }
    buf_free(&left);
    buf_free(&right);
}

/* A token's score is the negated rank of the first merge that makes it: the same merges in the same
 * order. Single characters are never merged into; theirs does not matter. */
static bool put_scores(const struct tokenizer *t, const struct merge_entries *merges,
                       int64_t vocab_size, struct gguf_meta *m, struct error *err)
{
    float *scores = calloc((size_t)vocab_size, sizeof *scores);
    if (!scores) return error_set(err, ERR_MEMORY, NULL, "no memory for the tokens' scores");
    /* By rank backwards, so that the first one stays. Floats tell 2^24 ranks apart. */
    for (size_t i = merges->n; i-- > 0;)
        if (merges->at[i].id < vocab_size) scores[merges->at[i].id] = -(float)(i + 1);
    gguf_meta_array(m, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)vocab_size);
    for (int64_t id = 0; id < vocab_size; id++) gguf_item_f32(m, scores[id]);
    free(scores);
    return true;
}

static void put_id(struct gguf_meta *m, const char *key, int32_t id)
{
    if (id >= 0) gguf_meta_u32(m, key, (uint32_t)id);
}

/* The markers. Readers fill in ids of their own where a key is absent: say "none" as others do. */
static void put_markers(const struct tokenizer *t, struct gguf_meta *m)
{
    int32_t eot = -1;
    for (int i = 0; i < t->n_stops && eot < 0; i++)
        if (t->stops[i] != t->eos) eot = t->stops[i];
    gguf_meta_u32(m, "tokenizer.ggml.bos_token_id", t->bos < 0 ? UINT32_MAX : (uint32_t)t->bos);
    gguf_meta_u32(m, "tokenizer.ggml.eos_token_id", t->eos < 0 ? UINT32_MAX : (uint32_t)t->eos);
    put_id(m, "tokenizer.ggml.eot_token_id", eot);
    put_id(m, "tokenizer.ggml.unknown_token_id", t->unk);
    gguf_meta_bool(m, "tokenizer.ggml.add_bos_token", t->adds_bos);
    gguf_meta_bool(m, "tokenizer.ggml.add_eos_token", false);
    if (t->chat_template) put_text(m, "tokenizer.chat_template", t->chat_template);
}

static bool put_model(const struct tokenizer *t, const struct merge_entries *merges, bool prefix,
                      int64_t vocab_size, struct gguf_meta *m, struct error *err)
{
    put_text(m, "tokenizer.ggml.model", t->byte_level ? "gpt2" : "llama");
    put_text(m, "tokenizer.ggml.pre", t->byte_level ? pre_name(t) : "default");
    put_tokens(t, vocab_size, m);
    put_types(t, vocab_size, m);
    if (t->byte_level) {
        put_merges(t, merges, m);
    } else {
        if (!put_scores(t, merges, vocab_size, m, err)) return false;
        gguf_meta_bool(m, "tokenizer.ggml.add_space_prefix", prefix);
    }
    put_markers(t, m);
    return true;
}

bool tokenizer_export_gguf(const struct tokenizer *t, int64_t vocab_size, struct gguf_meta *m,
                           struct error *err)
{
    struct merge_entries merges;
    bool prefix = false;
    bool said = t->byte_level                      ? check_byte_level(t, err)
                : t->kind == TOKENIZER_CHARACTER ? check_characters(t, err)
                                                   : check_sentencepiece(t, &prefix, err);
    if (!said || !check_added(t, err)) return false;
    if (t->n_tokens > vocab_size)
        return error_set(err, ERR_FORMAT, "tokenizer",
                         "the tokenizer has ids up to %d, the model %lld rows: GGUF wants a row "
                         "for each token", t->n_tokens - 1, (long long)vocab_size);
    if (!merge_entries_list(t, &merges, err)) return false;
    bool ok = put_model(t, &merges, prefix, vocab_size, m, err);
    free(merges.at);
    return ok;
}

void tokenizer_copy_gguf(const struct gguf *g, struct gguf_meta *m)
{
    static const char prefix[] = "tokenizer.";
    size_t n = sizeof prefix - 1;
    for (size_t i = 0; i < g->n_values; i++)
        if (g->values[i].key.len >= n && memcmp(g->values[i].key.data, prefix, n) == 0)
            gguf_meta_copy(m, &g->values[i]);
}
