/* Text to words, words to merges, merges to a file: see tokenizer_train.h. */
#include "model/tokenizer_train.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/tokenizer_words.h"
#include "model/tokenizer_write.h"

enum { N_BYTES = 256, MAX_SPECIALS = 256 };

/* The distinct words of the text. */
struct words {
    const char **text; /* [capacity] in the arena */
    uint32_t *length;  /* [capacity] */
    int64_t *count;    /* [capacity] */
    int64_t n, capacity, n_symbols, total;
    struct text_map ids;
    struct arena arena;
};

struct trainer {
    struct special_texts specials;
    struct tokenizer *cutter; /* has pre-tokenizer steps and nothing else */
    struct words words;
    int64_t text_bytes;
};

/* ---- words ---- */

static void words_free(struct words *w)
{
    free(w->text);
    free(w->length);
    free(w->count);
    text_map_free(&w->ids);
    arena_free(&w->arena);
}

static bool words_grow(struct words *w)
{
    int64_t capacity = max_i64(1 << 14, 2 * w->capacity);
    if (capacity > INT32_MAX) return false; /* ids of text_map */
    const char **text = realloc(w->text, (size_t)capacity * sizeof *text);
    if (text) w->text = text;
    uint32_t *length = realloc(w->length, (size_t)capacity * sizeof *length);
    if (length) w->length = length;
    int64_t *count = realloc(w->count, (size_t)capacity * sizeof *count);
    if (count) w->count = count;
    struct text_map ids;
    if (!text || !length || !count || !text_map_init(&ids, (size_t)capacity)) return false;
    for (int64_t i = 0; i < w->n; i++) text_map_add(&ids, text[i], length[i], (int32_t)i);
    text_map_free(&w->ids);
    w->ids = ids;
    w->capacity = capacity;
    return true;
}

static bool words_add(struct words *w, const char *s, size_t n)
{
    int32_t id = w->ids.slots ? text_map_get(&w->ids, s, n) : -1;
    if (id >= 0) {
        w->count[id]++;
        return true;
    }
    if (n > UINT32_MAX || (w->n == w->capacity && !words_grow(w))) return false;
    char *copy = arena_copy(&w->arena, s, n);
    if (!copy) return false;
    w->text[w->n] = copy;
    w->length[w->n] = (uint32_t)n;
    w->count[w->n] = 1;
    w->n_symbols += (int64_t)n;
    text_map_add(&w->ids, copy, n, (int32_t)w->n++);
    return true;
}

static bool take_word(struct encoder *e, const char *s, size_t n)
{
    struct words *w = e->piece_ctx;
    w->total++;
    return words_add(w, s, n) ||
           error_set(e->err, ERR_MEMORY, NULL, "no memory for %lld distinct words",
                     (long long)w->n);
}

static bool take_text(void *ctx, const char *text, size_t n, struct error *err)
{
    struct trainer *t = ctx;
    t->text_bytes += (int64_t)n;
    return tokenizer_pieces(t->cutter, text, n, take_word, &t->words, err);
}

static bool visit(void *ctx, const char *text, size_t n, struct error *err)
{
    struct trainer *t = ctx;
    return special_texts_skip(&t->specials, text, n, take_text, t, err);
}

/* ---- merges ---- */

/* Special tokens, then bytes in the order of their characters; byte_id: the id of each. */
static bool list_first_tokens(const struct trainer *t, struct token_list *tokens,
                              int32_t *special_ids, int32_t byte_id[N_BYTES])
{
    int16_t byte_of[BYTE_ALPHABET_END];
    byte_alphabet(byte_of);
    for (int32_t i = 0; i < t->specials.n; i++) {
        const char *text = t->specials.at[i];
        special_ids[i] = token_list_add(tokens, text, strlen(text));
        if (special_ids[i] < 0) return false;
    }
    for (int cp = 0; cp < BYTE_ALPHABET_END; cp++) {
        if (byte_of[cp] < 0) continue;
        char byte = (char)byte_of[cp];
        byte_id[byte_of[cp]] = token_list_add(tokens, &byte, 1);
        if (byte_id[byte_of[cp]] < 0) return false;
    }
    return true;
}

static bool find_merges(const struct trainer *t, const int32_t byte_id[N_BYTES], int64_t min_count,
                        struct token_list *tokens, struct merge_list *merges, struct error *err)
{
    const struct words *from = &t->words;
    uint64_t *starts = malloc(((size_t)from->n + 1) * sizeof *starts);
    int32_t *symbols = malloc(((size_t)from->n_symbols + 1) * sizeof *symbols);
    bool ok = starts && symbols;
    if (!ok) error_set(err, ERR_MEMORY, NULL, "no memory for %lld words", (long long)from->n);
    uint64_t at = 0;
    for (int64_t i = 0; ok && i < from->n; i++) {
        starts[i] = at;
        for (uint32_t k = 0; k < from->length[i]; k++)
            symbols[at++] = byte_id[(uint8_t)from->text[i][k]];
        starts[i + 1] = at;
    }
    struct merge_words w = {symbols, starts, from->count, from->n};
    ok = ok && merges_find(&w, min_count, tokens, merges, err);
    free(starts);
    free(symbols);
    return ok;
}

static bool make(const struct trainer *t, const struct tokenizer_train_options *o, struct buf *json,
                 struct tokenizer_train_report *report, struct error *err)
{
    struct token_list tokens = {0};
    struct merge_list merges = {0};
    int32_t special_ids[MAX_SPECIALS], byte_id[N_BYTES];
    bool ok = (token_list_init(&tokens, o->vocab_size) &&
               list_first_tokens(t, &tokens, special_ids, byte_id)) ||
              error_set(err, ERR_MEMORY, NULL, "no memory for a tokenizer");
    ok = ok && find_merges(t, byte_id, o->min_count, &tokens, &merges, err);
    struct tokenizer_parts parts = {.tokens = &tokens, .specials = special_ids,
                                    .n_specials = t->specials.n, .merges = &merges,
                                    .cutter = t->cutter};
    ok = ok && tokenizer_parts_json(&parts, json, err);
    *report = (struct tokenizer_train_report){
        .text_bytes = t->text_bytes, .words = t->words.total, .distinct_words = t->words.n,
        .vocab_size = tokens.count, .merges = merges.n};
    free(merges.at);
    token_list_free(&tokens);
    return ok;
}

/* ---- the whole ---- */

static bool check_options(const struct tokenizer_train_options *o, struct error *err)
{
    if (o->n_specials < 0 || o->n_specials > MAX_SPECIALS)
        return error_set(err, ERR_INVALID, "special", "over %d special tokens", MAX_SPECIALS);
    if (o->vocab_size < N_BYTES + o->n_specials || o->vocab_size > TOKENIZER_MAX_TOKENS)
        return error_set(err, ERR_INVALID, "vocab_size", "vocab_size is %d; it must be %d (256 "
                         "bytes and the special tokens) to %d", o->vocab_size,
                         N_BYTES + o->n_specials, TOKENIZER_MAX_TOKENS);
    if (o->min_count < 1)
        return error_set(err, ERR_INVALID, "min_count", "min_count is %lld; it must be at least 1",
                         (long long)o->min_count);
    return true;
}

bool tokenizer_train(const struct tokenizer_train_options *o, struct buf *json,
                     struct tokenizer_train_report *report, struct error *err)
{
    struct trainer t = {.specials = {o->specials, o->n_specials}};
    if (!check_options(o, err) || !special_texts_check(&t.specials, err)) return false;
    t.cutter = calloc(1, sizeof *t.cutter);
    if (!t.cutter) return error_set(err, ERR_MEMORY, NULL, "no memory for a tokenizer");
    arena_init(&t.cutter->arena, 1 << 20);
    arena_init(&t.words.arena, SIZE_MAX);
    const char *name = o->pretokenizer;
    bool ok = pretokenize_add_family(t.cutter, name, err) &&
              dataset_visit_texts(o->inputs, o->n_inputs, visit, &t, err) &&
              make(&t, o, json, report, err);
    words_free(&t.words);
    tokenizer_free(t.cutter);
    return ok;
}
