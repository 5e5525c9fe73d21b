/* The builder: what all readers of tokenizer files share. It takes tokens and merges as the file
 * has them, refuses what contradicts itself, and at the end builds the indexes that encoding
 * reads. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

static bool no_memory(struct builder *b)
{
    return error_set(b->err, ERR_MEMORY, NULL, "%s: no memory for the tokenizer", b->where);
}

/* For messages: the bytes of a token that fit on a line. */
static int shown(size_t n) { return (int)(n < 60 ? n : 60); }

bool builder_init(struct builder *b, size_t n_max, int64_t max_id, const char *where,
                  struct error *err)
{
    *b = (struct builder){.where = where, .err = err};
    buf_init(&b->joined, 2 * TOKENIZER_MAX_TEXT);
    if (max_id < 0)
        return error_set(err, ERR_FORMAT, NULL, "%s: the tokenizer has no tokens", where);
    /* Gaps between ids are fine, but memory must not follow one absurd id. */
    if (max_id >= TOKENIZER_MAX_TOKENS || (uint64_t)max_id > 64 * (uint64_t)n_max + 65536)
        return error_set(err, ERR_FORMAT, NULL, "%s: token id %lld is out of range (%zu tokens)",
                         where, (long long)max_id, n_max);
    struct tokenizer *t = b->t = calloc(1, sizeof *t);
    if (!t) return no_memory(b);
    arena_init(&t->arena, SIZE_MAX / 2);
    t->n_tokens = (int32_t)max_id + 1;
    t->bos = t->eos = t->unk = -1;
    memset(t->byte_ids, -1, sizeof t->byte_ids);
    t->tokens = calloc((size_t)t->n_tokens, sizeof *t->tokens);
    b->raw = calloc((size_t)t->n_tokens, sizeof *b->raw);
    if (!t->tokens || !b->raw || !text_map_init(&b->by_raw, n_max)) {
        builder_free(b);
        return no_memory(b);
    }
    return true;
}

void builder_free(struct builder *b)
{
    tokenizer_free(b->t);
    b->t = NULL;
    free(b->raw);
    b->raw = NULL;
    text_map_free(&b->by_raw);
    buf_free(&b->joined);
}

static bool check_id(struct builder *b, int64_t id, const char *text, size_t n)
{
    if (id >= 0 && id < b->t->n_tokens) return true;
    return error_set(b->err, ERR_FORMAT, NULL, "%s: token \"%.*s\" has the id %lld, out of range",
                     b->where, shown(n), text, (long long)id);
}

bool builder_token(struct builder *b, int64_t id, const char *raw, size_t n)
{
    if (!check_id(b, id, raw, n)) return false;
    if (n == 0) return true; /* stands for nothing: as good as a gap between ids */
    if (n > TOKENIZER_MAX_TEXT)
        return error_set(b->err, ERR_FORMAT, NULL, "%s: token %lld is %zu bytes long, over %d",
                         b->where, (long long)id, n, TOKENIZER_MAX_TEXT);
    if (!utf8_valid(raw, n, NULL))
        return error_set(b->err, ERR_FORMAT, NULL, "%s: token %lld is not valid UTF-8", b->where,
                         (long long)id);
    if (b->raw[id].s)
        return error_set(b->err, ERR_FORMAT, NULL,
                         "%s: tokens \"%.*s\" and \"%.*s\" share the id %lld", b->where,
                         shown(b->raw[id].n), b->raw[id].s, shown(n), raw, (long long)id);
    int32_t other = text_map_add(&b->by_raw, raw, n, (int32_t)id);
    if (other != (int32_t)id)
        return error_set(b->err, ERR_FORMAT, NULL, "%s: tokens %d and %lld are both \"%.*s\"",
                         b->where, other, (long long)id, shown(n), raw);
    b->raw[id] = (struct raw_token){raw, n};
    b->t->tokens[id].flags |= TOKEN_EXISTS;
    return true;
}

int32_t builder_find(const struct builder *b, const char *raw, size_t n)
{
    return text_map_get(&b->by_raw, raw, n);
}

/* ---- What a token stands for ---- */

/* GPT-2's alphabet: printable Latin-1 bytes are themselves, the other 68 in order U+0100... */
void byte_alphabet(int16_t byte_of[BYTE_ALPHABET_END])
{
    int next = 0x100;
    memset(byte_of, -1, BYTE_ALPHABET_END * sizeof byte_of[0]);
    for (int byte = 0; byte < 256; byte++) {
        bool printable =
            (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        byte_of[printable ? byte : next++] = (int16_t)byte;
    }
}

/* The bytes that a token in GPT-2's alphabet spells; false when it is not all in that alphabet. */
static bool alphabet_decode(const int16_t byte_of[BYTE_ALPHABET_END], const struct raw_token *raw,
                            char *out, size_t *n_out)
{
    *n_out = 0;
    for (size_t i = 0; i < raw->n;) {
        uint32_t cp;
        i += (size_t)utf8_decode(raw->s + i, raw->n - i, &cp);
        if (cp >= BYTE_ALPHABET_END || byte_of[cp] < 0) return false;
        out[(*n_out)++] = (char)byte_of[cp];
    }
    return true;
}

/* "<0x0A>" -> 10; -1 for any other string. */
static int byte_token(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || !s[3] || !s[4]) return -1;
    const char *high = strchr(digits, s[3]), *low = strchr(digits, s[4]);
    return high && low ? (int)(high - digits) * 16 + (int)(low - digits) : -1;
}

static size_t spaces_for_marks(const char *s, size_t n, char *out)
{
    size_t length = 0;
    for (size_t i = 0; i < n;) {
        bool mark = n - i >= 3 && memcmp(s + i, SPACE_MARK, 3) == 0;
        out[length++] = mark ? ' ' : s[i];
        i += mark ? 3 : 1;
    }
    return length;
}

/* Text and piece of one token; `scratch` has room for its raw bytes. */
static bool derive_text(struct builder *b, const int16_t byte_of[BYTE_ALPHABET_END], int32_t id,
                        char *scratch)
{
    struct tokenizer *t = b->t;
    struct token *token = &t->tokens[id];
    const struct raw_token *raw = &b->raw[id];
    size_t n = raw->n;
    int byte;
    if (t->byte_level) {
        if (!alphabet_decode(byte_of, raw, scratch, &n)) {
            token->flags |= TOKEN_LITERAL;
            memcpy(scratch, raw->s, n = raw->n);
        }
    } else if (t->byte_fallback && (byte = byte_token(raw->s, raw->n)) >= 0) {
        token->flags |= TOKEN_BYTE;
        scratch[0] = (char)byte;
        n = 1;
    } else if (b->marks_spaces) {
        n = spaces_for_marks(raw->s, raw->n, scratch);
    } else {
        memcpy(scratch, raw->s, n);
    }
    token->n_text = (uint32_t)n;
    token->text = arena_copy(&t->arena, scratch, n);
    token->n_piece = t->byte_level ? (uint32_t)n : (uint32_t)raw->n;
    bool same = token->n_piece == n && memcmp(raw->s, scratch, n) == 0;
    token->piece = t->byte_level || same ? token->text : arena_copy(&t->arena, raw->s, raw->n);
    return (token->text && token->piece) || no_memory(b);
}

bool builder_texts(struct builder *b)
{
    int16_t byte_of[BYTE_ALPHABET_END];
    byte_alphabet(byte_of);
    char *scratch = malloc(TOKENIZER_MAX_TEXT + 1);
    if (!scratch) return no_memory(b);
    bool ok = true;
    for (int32_t id = 0; ok && id < b->t->n_tokens; id++)
        ok = !b->raw[id].s || derive_text(b, byte_of, id, scratch);
    free(scratch);
    return ok;
}

/* ---- Merges ---- */

bool builder_merges(struct builder *b, size_t n)
{
    return pair_map_init(&b->t->merges, n) || no_memory(b);
}

bool builder_merge(struct builder *b, const char *left, size_t n_left, const char *right,
                   size_t n_right)
{
    buf_clear(&b->joined);
    buf_append(&b->joined, left, n_left);
    buf_append(&b->joined, right, n_right);
    int32_t left_id = builder_find(b, left, n_left);
    int32_t right_id = builder_find(b, right, n_right);
    if (b->joined.failed) return no_memory(b);
    int32_t id = builder_find(b, b->joined.data, b->joined.len);
    if (left_id < 0 || right_id < 0 || id < 0)
        return error_set(b->err, ERR_FORMAT, NULL,
                         "%s: merge %zu (\"%.*s\" and \"%.*s\") needs %s, which is no token",
                         b->where, b->t->n_merges, shown(n_left), left, shown(n_right), right,
                         left_id < 0    ? "its left part"
                         : right_id < 0 ? "its right part"
                                        : "what the two make together");
    uint64_t key = (uint64_t)(uint32_t)left_id << 32 | (uint32_t)right_id;
    pair_map_put(&b->t->merges, key, (uint32_t)b->t->n_merges++, id);
    return true;
}

bool builder_merge_line(struct builder *b, const char *line, size_t n)
{
    const char *space = memchr(line, ' ', n);
    size_t left = space ? (size_t)(space - line) : 0;
    if (!space || left == 0 || left + 1 == n || memchr(space + 1, ' ', n - left - 1))
        return error_set(b->err, ERR_FORMAT, NULL,
                         "%s: merge %zu (\"%.*s\") is not two tokens with a space between",
                         b->where, b->t->n_merges, shown(n), line);
    return builder_merge(b, line, left, space + 1, n - left - 1);
}

bool builder_normalizer(struct builder *b, enum normalizer_op op, const char *from, size_t n_from,
                        const char *to, size_t n_to)
{
    struct tokenizer *t = b->t;
    if (t->n_normalizers == TOKENIZER_MAX_STEPS)
        return error_set(b->err, ERR_UNSUPPORTED, NULL, "%s: over %d normalizers", b->where,
                         TOKENIZER_MAX_STEPS);
    if (op == NORMALIZE_REPLACE && n_from == 0)
        return error_set(b->err, ERR_FORMAT, NULL, "%s: a Replace normalizer with an empty pattern",
                         b->where);
    if (n_from > 256 || n_to > 256)
        return error_set(b->err, ERR_UNSUPPORTED, NULL, "%s: a normalizer's text is over 256 bytes",
                         b->where);
    struct normalizer *n = &t->normalizers[t->n_normalizers++];
    *n = (struct normalizer){.op = op, .n_from = n_from, .n_to = n_to};
    n->from = arena_copy(&t->arena, from, n_from);
    n->to = arena_copy(&t->arena, to, n_to);
    return (n->from && n->to) || no_memory(b);
}

/* ---- Added tokens ---- */

bool builder_added(struct builder *b, int64_t id, const char *content, size_t n, uint32_t flags)
{
    if (!check_id(b, id, content, n)) return false;
    if (n == 0 || n > TOKENIZER_MAX_TEXT || !utf8_valid(content, n, NULL))
        return error_set(b->err, ERR_FORMAT, NULL,
                         "%s: the added token %lld is empty, too long or not valid UTF-8", b->where,
                         (long long)id);
    struct token *token = &b->t->tokens[id];
    if (token->flags & TOKEN_ADDED)
        return error_set(b->err, ERR_FORMAT, NULL,
                         "%s: the added token \"%.*s\" has the id of another (%lld)", b->where,
                         shown(n), content, (long long)id);
    token->flags |= flags | TOKEN_ADDED | TOKEN_EXISTS;
    if (token->text && token->n_text == n && memcmp(token->text, content, n) == 0) return true;
    token->text = arena_copy(&b->t->arena, content, n);
    token->n_text = (uint32_t)n;
    return token->text || no_memory(b);
}

/* What an added token is looked for by: its content, normalized if it asks for that. The raw
 * strings are no longer needed by now, so it goes to their array. */
static bool added_content(struct builder *b, int32_t id, struct buf *from, struct buf *to)
{
    struct tokenizer *t = b->t;
    const struct token *token = &t->tokens[id];
    b->raw[id] = (struct raw_token){token->text, token->n_text};
    if (!(token->flags & ADDED_NORMALIZED) || t->n_normalizers == 0) return true;
    buf_clear(from);
    buf_append(from, token->text, token->n_text);
    for (int32_t i = 0; i < t->n_normalizers; i++) {
        if (!buf_check(from, "an added token", b->err)) return false;
        buf_clear(to);
        if (!normalize_once(&t->normalizers[i], from->data, from->len, to, b->err)) return false;
        struct buf swap = *from;
        *from = *to;
        *to = swap;
    }
    b->raw[id] = (struct raw_token){arena_copy(&t->arena, from->data, from->len), from->len};
    return b->raw[id].s || no_memory(b);
}

static bool index_contents(struct builder *b)
{
    struct tokenizer *t = b->t;
    size_t n_bytes[2] = {0, 0}, n_special = 0;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        uint32_t flags = t->tokens[id].flags;
        if (!(flags & TOKEN_ADDED)) continue;
        n_bytes[(flags & ADDED_NORMALIZED) != 0] += b->raw[id].n;
        n_special += (flags & TOKEN_SPECIAL) != 0;
    }
    if (!added_set_init(&t->added, n_bytes[0]) ||
        !added_set_init(&t->added_normalized, n_bytes[1]) ||
        !text_map_init(&t->specials, n_special))
        return no_memory(b);
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const struct token *token = &t->tokens[id];
        if (!(token->flags & TOKEN_ADDED)) continue;
        bool normalized = token->flags & ADDED_NORMALIZED;
        added_set_add(normalized ? &t->added_normalized : &t->added, b->raw[id].s, b->raw[id].n,
                      id);
        if (token->flags & TOKEN_SPECIAL)
            text_map_add(&t->specials, token->text, token->n_text, id);
        if (token->flags & (ADDED_LSTRIP | ADDED_RSTRIP)) t->drops_text = true;
    }
    return true;
}

static bool index_added(struct builder *b)
{
    struct buf from, to;
    buf_init(&from, TOKENIZER_MAX_TEXT);
    buf_init(&to, TOKENIZER_MAX_TEXT);
    bool ok = true;
    for (int32_t id = 0; ok && id < b->t->n_tokens; id++)
        if (b->t->tokens[id].flags & TOKEN_ADDED) ok = added_content(b, id, &from, &to);
    buf_free(&from);
    buf_free(&to);
    return ok && index_contents(b);
}

/* ---- Finishing ---- */

/* May merging give this token? */
static bool is_piece(const struct token *token)
{
    return token->piece && token->n_piece > 0 &&
           !(token->flags & (TOKEN_SPECIAL | TOKEN_BYTE | TOKEN_LITERAL));
}

/* A U+2581 behind another character. */
static bool joins_words(const struct token *token)
{
    const char *s = token->piece, *end = s + token->n_piece;
    while (end - s >= 3 && memcmp(s, SPACE_MARK, 3) == 0) s += 3;
    return memmem(s, (size_t)(end - s), SPACE_MARK, 3) != NULL;
}

static bool is_one_character(const struct token *token)
{
    uint32_t cp;
    return utf8_decode(token->piece, token->n_piece, &cp) == (int)token->n_piece;
}

/* Everything about pieces that one look at each of them tells. */
static void survey_pieces(struct builder *b, size_t *n_pieces)
{
    struct tokenizer *t = b->t;
    bool characters = true, apart = true;
    *n_pieces = 0;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        const struct token *token = &t->tokens[id];
        if (token->n_text > t->max_token_bytes) t->max_token_bytes = token->n_text;
        if (token->flags & TOKEN_BYTE) t->byte_ids[(uint8_t)token->text[0]] = id;
        if (!is_piece(token)) continue;
        ++*n_pieces;
        if (token->n_piece > t->max_piece) t->max_piece = token->n_piece;
        if (t->byte_level && token->n_piece == 1) t->byte_ids[(uint8_t)token->piece[0]] = id;
        characters = characters && is_one_character(token);
        apart = apart && !t->byte_level && !joins_words(token);
    }
    bool plain = t->n_merges == 0 && !t->scored && !t->byte_fallback;
    t->kind = t->byte_level          ? TOKENIZER_BYTE_BPE
              : plain && characters  ? TOKENIZER_CHARACTER
                                     : TOKENIZER_SENTENCEPIECE;
    /* The mark itself must be known: a run of unknown characters may span words. */
    t->words_apart = t->kind == TOKENIZER_SENTENCEPIECE && apart &&
                     builder_find(b, SPACE_MARK, 3) >= 0;
}

static bool index_pieces(struct builder *b, size_t n_pieces)
{
    struct tokenizer *t = b->t;
    if (!text_map_init(&t->pieces, t->byte_level ? 0 : n_pieces) ||
        !text_map_init(&t->whole, n_pieces))
        return no_memory(b);
    for (int32_t id = 0; id < t->n_tokens && !t->byte_level; id++)
        if (is_piece(&t->tokens[id]))
            text_map_add(&t->pieces, t->tokens[id].piece, t->tokens[id].n_piece, id);
    for (int32_t id = 0; id < t->n_tokens && t->kind != TOKENIZER_CHARACTER; id++) {
        const struct token *token = &t->tokens[id];
        if (is_piece(token) && (t->ignore_merges || bpe_keeps_whole(t, id)))
            text_map_add(&t->whole, token->piece, token->n_piece, id);
    }
    return true;
}

/* How many bytes of text one token can stand for, at the most. */
static void bound_token_bytes(struct tokenizer *t)
{
    if (t->unk >= 0 && !t->byte_level && !t->byte_fallback) t->drops_text = true;
    for (int32_t i = 0; i < t->n_normalizers; i++) {
        const struct normalizer *n = &t->normalizers[i];
        /* Composition never makes less than a third of a text's UTF-8. */
        if (n->op == NORMALIZE_NFC) t->max_token_bytes *= 3;
        if (n->op == NORMALIZE_REPLACE && n->n_to < n->n_from &&
            !(n->n_from == 3 && memcmp(n->from, SPACE_MARK, 3) == 0))
            t->drops_text = true;
    }
    if (t->max_token_bytes == 0) t->max_token_bytes = 1;
    if (t->drops_text || t->max_token_bytes > INT32_MAX) t->max_token_bytes = INT32_MAX;
}

void builder_stop(struct tokenizer *t, int32_t id)
{
    if (id < 0 || t->n_stops == TOKENIZER_MAX_STOPS) return;
    for (int i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id) return;
    t->stops[t->n_stops++] = id;
}

/* For a file that does not say which token ends a text. */
static int32_t usual_eos(const struct tokenizer *t)
{
    static const char *const names[] = {"</s>",  "<|endoftext|>", "<|end_of_text|>",
                                        "<eos>", "<|im_end|>",    "<|eot_id|>"};
    int32_t id = -1;
    for (size_t i = 0; id < 0 && i < sizeof names / sizeof names[0]; i++)
        id = text_map_get(&t->specials, names[i], strlen(names[i]));
    return id;
}

static void usual_stops(struct tokenizer *t)
{
    static const char *const names[] = {
        "<|im_end|>",  "<|eot_id|>",    "<|end_of_text|>", "<|endoftext|>",
        "</s>",        "<end_of_turn>", "<|end|>",
    };
    if (t->eos < 0) t->eos = usual_eos(t);
    builder_stop(t, t->eos);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        builder_stop(t, text_map_get(&t->specials, names[i], strlen(names[i])));
}

/* Writes description from kind, steps and n_tokens. */
static void describe(struct tokenizer *t)
{
    static const char *const kinds[] = {"byte-level BPE", "SentencePiece BPE", "characters"};
    const char *family = pretokenize_family(t);
    bool named = t->kind == TOKENIZER_BYTE_BPE;
    snprintf(t->description, sizeof t->description, "%s%s%s, %d tokens", kinds[t->kind],
             named ? ", " : "", !named ? "" : family ? family : "own pattern", t->n_tokens);
}

bool builder_finish(struct builder *b, struct tokenizer **out)
{
    struct tokenizer *t = b->t;
    size_t n_pieces;
    survey_pieces(b, &n_pieces);
    if (!t->merges.slots && !builder_merges(b, 0)) return false;
    if (!index_pieces(b, n_pieces) || !index_added(b)) return false;
    bound_token_bytes(t);
    usual_stops(t);
    describe(t);
    *out = t;
    b->t = NULL;
    return true;
}
