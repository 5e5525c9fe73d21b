/* The tokenizer's face: what callers see (tokenizer.h), and the two pipelines, text to ids and
 * ids to text. See tokenizer_internal.h for the stages. */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

void tokenizer_free(struct tokenizer *t)
{
    if (!t) return;
    for (int32_t i = 0; i < t->n_steps; i++) pcre2_code_free(t->steps[i].code);
    pair_map_free(&t->merges);
    text_map_free(&t->pieces);
    text_map_free(&t->whole);
    text_map_free(&t->specials);
    added_set_free(&t->added);
    added_set_free(&t->added_normalized);
    free(t->tokens);
    arena_free(&t->arena);
    free(t);
}

/* ---- What it is ---- */

enum tokenizer_kind tokenizer_kind(const struct tokenizer *t) { return t->kind; }
const char *tokenizer_description(const struct tokenizer *t) { return t->description; }
int32_t tokenizer_vocab_size(const struct tokenizer *t) { return t->n_tokens; }
int32_t tokenizer_bos(const struct tokenizer *t) { return t->bos; }
int32_t tokenizer_eos(const struct tokenizer *t) { return t->eos; }
bool tokenizer_adds_bos(const struct tokenizer *t) { return t->adds_bos && t->bos >= 0; }
const char *tokenizer_chat_template(const struct tokenizer *t) { return t->chat_template; }
size_t tokenizer_max_token_bytes(const struct tokenizer *t) { return t->max_token_bytes; }

int tokenizer_stop_ids(const struct tokenizer *t, int32_t *ids, int max)
{
    int n = t->n_stops < max ? t->n_stops : max;
    for (int i = 0; i < n; i++) ids[i] = t->stops[i];
    return n;
}

int32_t tokenizer_special_id(const struct tokenizer *t, const char *text, size_t n)
{
    return text_map_get(&t->specials, text, n);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_tokens && t->tokens[id].flags & TOKEN_SPECIAL;
}

/* ---- Text to ids ---- */

void token_ids_free(struct token_ids *ids)
{
    free(ids->ids);
    *ids = (struct token_ids){0};
}

bool token_ids_push(struct token_ids *ids, int32_t id)
{
    if (ids->n == ids->capacity) {
        size_t capacity = ids->capacity ? 2 * ids->capacity : 64;
        int32_t *grown = realloc(ids->ids, capacity * sizeof *grown);
        if (!grown) return false;
        ids->ids = grown;
        ids->capacity = capacity;
    }
    ids->ids[ids->n++] = id;
    return true;
}

static bool too_many(struct encoder *e)
{
    return error_set(e->err, ERR_TOO_LARGE, NULL, "the text has more than %zu tokens", e->max_ids);
}

bool encoder_push(struct encoder *e, int32_t id)
{
    if (e->n_ids == e->max_ids) return too_many(e);
    e->n_ids++;
    return token_ids_push(e->out, id) ||
           error_set(e->err, ERR_MEMORY, NULL, "no memory for %zu tokens", e->out->n);
}

/* Between the added tokens that match the text as it is. */
static bool encode_plain(struct encoder *e, const char *s, size_t n)
{
    return normalize(e, &s, &n) && added_split(e, &e->t->added_normalized, s, n, pretokenize);
}

enum {
    /* Beyond these, one match costs more than any real text asks for. */
    MATCH_STEPS = 100 * 1000 * 1000,
    MATCH_HEAP_KIB = 64 * 1024,
};

static bool encoder_init(struct encoder *e)
{
    /* Every normalizer together grows a text by a few bytes for one; the limit stops the rest. */
    size_t limit = e->n_text > SIZE_MAX / 64 ? SIZE_MAX : 32 * e->n_text + 4096;
    buf_init(&e->normalized, limit);
    buf_init(&e->spare, limit);
    buf_init(&e->prefixed, limit);
    if (e->t->n_steps == 0) return true;
    e->match = pcre2_match_data_create(1, NULL);
    e->match_context = pcre2_match_context_create(NULL);
    if (!e->match || !e->match_context)
        return error_set(e->err, ERR_MEMORY, NULL, "no memory to tokenize");
    pcre2_set_match_limit(e->match_context, MATCH_STEPS);
    pcre2_set_heap_limit(e->match_context, MATCH_HEAP_KIB);
    return true;
}

static void encoder_free(struct encoder *e)
{
    pcre2_match_data_free(e->match);
    pcre2_match_context_free(e->match_context);
    pcre2_jit_stack_free(e->jit_stack);
    buf_free(&e->normalized);
    buf_free(&e->spare);
    buf_free(&e->prefixed);
    free(e->symbols);
    free(e->heap);
}

bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags,
                      size_t max_ids, struct token_ids *out, struct error *err)
{
    struct encoder e = {
        .t = t,
        .text = text,
        .n_text = n,
        .parse_special = flags & ENCODE_PARSE_SPECIAL,
        .out = out,
        .max_ids = max_ids,
        .err = err,
        .piece = bpe_encode,
    };
    size_t n_before = out->n, bad;
    if (max_ids < SIZE_MAX / t->max_token_bytes && n > max_ids * t->max_token_bytes)
        return too_many(&e);
    if (!utf8_valid(text, n, &bad))
        return error_set(err, ERR_INVALID, NULL, "the text is not valid UTF-8 at byte %zu", bad);
    bool ok = encoder_init(&e);
    if (ok && flags & ENCODE_ADD_BOS && tokenizer_adds_bos(t)) ok = encoder_push(&e, t->bos);
    ok = ok && added_split(&e, &t->added, text, n, encode_plain);
    encoder_free(&e);
    if (!ok) out->n = n_before;
    return ok;
}

bool tokenizer_pieces(const struct tokenizer *t, const char *text, size_t n, span_fn piece,
                      void *ctx, struct error *err)
{
    struct encoder e = {.t = t, .text = text, .n_text = n, .err = err, .piece = piece,
                        .piece_ctx = ctx};
    size_t bad;
    if (!utf8_valid(text, n, &bad))
        return error_set(err, ERR_INVALID, NULL, "the text is not valid UTF-8 at byte %zu", bad);
    bool ok = encoder_init(&e) && pretokenize(&e, text, n);
    encoder_free(&e);
    return ok;
}

/* ---- Ids to text ---- */

const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *n)
{
    bool known = id >= 0 && id < t->n_tokens && t->tokens[id].flags & TOKEN_EXISTS;
    *n = known ? t->tokens[id].n_text : 0;
    return known ? t->tokens[id].text : NULL;
}

const char *token_decode(const struct tokenizer *t, struct token_decoder *d, int32_t id, size_t *n)
{
    const char *text = tokenizer_token_bytes(t, id, n);
    if (!text || (!d->keep_special && tokenizer_is_special(t, id))) {
        *n = 0;
        return "";
    }
    if (!d->started && t->strips_space && *n > 0 && text[0] == ' ') {
        text++;
        --*n;
    }
    d->started = true;
    return text;
}
