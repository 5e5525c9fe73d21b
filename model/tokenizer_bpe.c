/* Merging: one piece of text to ids. A piece that is a token (and that merging would leave so) is
 * one look-up. A short piece merges in an array: find the best pair, merge, repeat. A long one
 * keeps its pairs in a heap over a linked list of symbols, so that n symbols take n log n steps
 * however regular the text is.
 *
 * Two kinds of vocabulary share the loops and differ in `find_pair`: byte-pair merges have a rank
 * for a pair of ids (Sennrich et al. 2016); SentencePiece joins what spells a piece, best score
 * first (Kudo & Richardson 2018). In both the leftmost of equals goes first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

enum { NO_RANK = 0xFFFFFFFF };

struct pair { uint32_t rank; int32_t id; }; /* NO_RANK: does not merge */

static struct pair find_pair(const struct tokenizer *t, const char *s, const struct symbol *left,
                             const struct symbol *right)
{
    if (t->scored) {
        size_t n = (size_t)left->n + right->n;
        int32_t id = n <= t->max_piece ? text_map_get(&t->pieces, s + left->start, n) : -1;
        return (struct pair){id < 0 ? NO_RANK : t->tokens[id].rank, id};
    }
    uint64_t key = (uint64_t)(uint32_t)left->id << 32 | (uint32_t)right->id;
    const struct pair_slot *slot = pair_map_get(&t->merges, key);
    return slot ? (struct pair){slot->rank, slot->id} : (struct pair){NO_RANK, -1};
}

/* ---- The symbols that merging starts from ---- */

/* For a character that has no token and that nothing can stand for. */
static bool unknown_character(struct encoder *e, const char *s, size_t n)
{
    bool in_text = s >= e->text && s < e->text + e->n_text;
    char place[48] = "";
    if (in_text) snprintf(place, sizeof place, " at byte %zu", (size_t)(s - e->text));
    uint32_t cp = 0;
    if (utf8_decode(s, n, &cp) <= 0)
        return error_set(e->err, ERR_INVALID, NULL,
                         "the tokenizer has no token for the byte 0x%02X%s", (uint8_t)*s, place);
    bool shown = cp > 0x20 && (cp < 0x7F || cp > 0xA0);
    return error_set(e->err, ERR_INVALID, NULL,
                     "the tokenizer has no token for the character %s%.*s%s(U+%04X)%s",
                     shown ? "\"" : "", shown ? (int)n : 0, s, shown ? "\" " : "", cp, place);
}

/* Adds the symbols of one unknown character of n bytes to sym[*count...]. */
static bool add_unknown(struct encoder *e, const char *s, size_t at, size_t n, struct symbol *sym,
                        size_t *count)
{
    const struct tokenizer *t = e->t;
    if (t->scored) { /* may still become part of a longer piece; push_symbol does the rest */
        sym[(*count)++] = (struct symbol){.start = (uint32_t)at, .n = (uint32_t)n, .id = -1};
        return true;
    }
    bool fallback = t->byte_fallback;
    for (size_t i = 0; i < n; i++) fallback = fallback && t->byte_ids[(uint8_t)s[at + i]] >= 0;
    for (size_t i = 0; fallback && i < n; i++) {
        sym[(*count)++] = (struct symbol){
            .start = (uint32_t)(at + i), .n = 1, .id = t->byte_ids[(uint8_t)s[at + i]]};
    }
    if (fallback) return true;
    if (t->unk < 0 || t->kind == TOKENIZER_CHARACTER) return unknown_character(e, s + at, n);
    if (t->fuse_unk && *count > 0 && sym[*count - 1].id == t->unk) sym[*count - 1].n += (uint32_t)n;
    else sym[(*count)++] = (struct symbol){.start = (uint32_t)at, .n = (uint32_t)n, .id = t->unk};
    return true;
}

/* Fills sym (room for n) from the n bytes; *count symbols. */
static bool first_symbols(struct encoder *e, const char *s, size_t n, struct symbol *sym,
                          size_t *count)
{
    const struct tokenizer *t = e->t;
    *count = 0;
    for (size_t at = 0; at < n;) {
        int32_t id;
        size_t length = 1;
        if (t->byte_level) {
            id = t->byte_ids[(uint8_t)s[at]];
        } else {
            uint32_t cp;
            length = (size_t)utf8_decode(s + at, n - at, &cp);
            id = text_map_get(&t->pieces, s + at, length);
        }
        if (id < 0) {
            if (!add_unknown(e, s, at, length, sym, count)) return false;
        } else {
            sym[(*count)++] = (struct symbol){
                .start = (uint32_t)at, .n = (uint32_t)length, .id = id};
        }
        at += length;
    }
    return true;
}

/* The ids of what is left when nothing merges any more. */
static bool push_symbol(struct encoder *e, const char *s, const struct symbol *sym, bool *was_unk)
{
    const struct tokenizer *t = e->t;
    if (sym->id >= 0) {
        *was_unk = false;
        return encoder_push(e, sym->id);
    }
    bool fallback = t->byte_fallback;
    for (uint32_t i = 0; i < sym->n; i++)
        fallback = fallback && t->byte_ids[(uint8_t)s[sym->start + i]] >= 0;
    for (uint32_t i = 0; fallback && i < sym->n; i++)
        if (!encoder_push(e, t->byte_ids[(uint8_t)s[sym->start + i]])) return false;
    if (fallback) return true;
    if (t->unk < 0) return unknown_character(e, s + sym->start, sym->n);
    bool fused = *was_unk && t->fuse_unk;
    *was_unk = true;
    return fused || encoder_push(e, t->unk);
}

/* ---- Short pieces ---- */

/* Merges sym[0..*count) in place, *count <= BPE_SHORT. */
static void merge_short(const struct tokenizer *t, const char *s, struct symbol *sym, size_t *count)
{
    struct pair pairs[BPE_SHORT];
    size_t n = *count;
    for (size_t i = 0; i + 1 < n; i++) pairs[i] = find_pair(t, s, &sym[i], &sym[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pairs[i].rank < pairs[best].rank) best = i;
        if (pairs[best].rank == NO_RANK) break;
        sym[best].n += sym[best + 1].n;
        sym[best].id = pairs[best].id;
        n--;
        for (size_t i = best + 1; i < n; i++) {
            sym[i] = sym[i + 1];
            pairs[i - 1] = pairs[i];
        }
        if (best > 0) pairs[best - 1] = find_pair(t, s, &sym[best - 1], &sym[best]);
        if (best + 1 < n) pairs[best] = find_pair(t, s, &sym[best], &sym[best + 1]);
    }
    *count = n;
}

bool bpe_keeps_whole(const struct tokenizer *t, int32_t id)
{
    const struct token *token = &t->tokens[id];
    if (token->n_piece > BPE_WHOLE) return false;
    struct symbol sym[BPE_WHOLE];
    struct encoder e = {.t = t, .text = token->piece, .n_text = token->n_piece};
    size_t count;
    if (!first_symbols(&e, token->piece, token->n_piece, sym, &count)) return false;
    merge_short(t, token->piece, sym, &count);
    return count == 1 && sym[0].id == id;
}

/* ---- Long pieces ---- */

/* A heap of four children each: half the levels of a binary one, and the children of a node share
 * a cache line. */
static void sift_down(struct candidate *heap, size_t n, size_t i)
{
    struct candidate moving = heap[i];
    for (;;) {
        size_t first = 4 * i + 1, end = first + 4 < n ? first + 4 : n;
        if (first >= n) break;
        size_t least = first;
        for (size_t child = first + 1; child < end; child++)
            if (heap[child].order < heap[least].order) least = child;
        if (moving.order <= heap[least].order) break;
        heap[i] = heap[least];
        i = least;
    }
    heap[i] = moving;
}

static void heap_push(struct candidate *heap, size_t *n, struct candidate c)
{
    size_t i = (*n)++;
    while (i > 0 && c.order < heap[(i - 1) / 4].order) {
        heap[i] = heap[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    heap[i] = c;
}

static void heap_pop(struct candidate *heap, size_t *n)
{
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(heap, *n, 0);
}

/* The pair that begins with symbol `left`, if it merges. */
static bool make_candidate(const struct encoder *e, const char *s, int32_t left,
                           struct candidate *out)
{
    const struct symbol *sym = e->symbols;
    if (left < 0 || sym[left].next < 0) return false;
    const struct symbol *right = &sym[sym[left].next];
    struct pair pair = find_pair(e->t, s, &sym[left], right);
    if (pair.rank == NO_RANK) return false;
    *out = (struct candidate){.order = (uint64_t)pair.rank << 32 | (uint32_t)left,
                              .n = sym[left].n + right->n,
                              .id = pair.id};
    return true;
}

/* Scratch for n symbols. A heap entry is pushed for each of the n - 1 first pairs, and two for
 * each merge, which pops one and is one of at most n - 1: never over 2n at a time. */
static bool reserve_scratch(struct encoder *e, size_t n)
{
    if (n <= e->n_symbols) return true;
    free(e->symbols);
    free(e->heap);
    e->symbols = malloc(n * sizeof *e->symbols);
    e->heap = malloc(2 * n * sizeof *e->heap);
    e->n_symbols = e->symbols && e->heap ? n : 0;
    return e->n_symbols > 0 ||
           error_set(e->err, ERR_MEMORY, NULL, "no memory to tokenize a piece of %zu bytes", n);
}

static void merge_long(struct encoder *e, const char *s, size_t count)
{
    struct symbol *sym = e->symbols;
    size_t n_heap = 0;
    for (size_t i = 0; i < count; i++) {
        sym[i].prev = (int32_t)i - 1;
        sym[i].next = i + 1 < count ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < count; i++)
        n_heap += make_candidate(e, s, (int32_t)i, &e->heap[n_heap]);
    for (size_t i = n_heap / 4 + 1; i-- > 0 && n_heap > 0;) sift_down(e->heap, n_heap, i);
    while (n_heap > 0) {
        struct candidate best = e->heap[0];
        heap_pop(e->heap, &n_heap);
        int32_t left = (int32_t)(uint32_t)best.order;
        if (sym[left].n == 0 || sym[left].next < 0) continue;
        struct symbol *right = &sym[sym[left].next];
        /* Symbols only grow: the same length means the same two symbols. */
        if (sym[left].n + right->n != best.n) continue;
        sym[left].n = best.n;
        sym[left].id = best.id;
        sym[left].next = right->next;
        right->n = 0;
        if (right->next >= 0) sym[right->next].prev = left;
        struct candidate c;
        if (make_candidate(e, s, sym[left].prev, &c)) heap_push(e->heap, &n_heap, c);
        if (make_candidate(e, s, left, &c)) heap_push(e->heap, &n_heap, c);
    }
}

static bool encode_long(struct encoder *e, const char *s, size_t n)
{
    size_t count;
    if (n > INT32_MAX)
        return error_set(e->err, ERR_TOO_LARGE, NULL, "the text has a word of over 2 GiB");
    if (!reserve_scratch(e, n) || !first_symbols(e, s, n, e->symbols, &count)) return false;
    if (count > 0) merge_long(e, s, count);
    bool was_unk = false;
    for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = e->symbols[i].next)
        if (!push_symbol(e, s, &e->symbols[i], &was_unk)) return false;
    return true;
}

static bool encode_word(struct encoder *e, const char *s, size_t n)
{
    if (n <= e->t->max_piece) {
        int32_t id = text_map_get(&e->t->whole, s, n);
        if (id >= 0) return encoder_push(e, id);
    }
    if (n > BPE_SHORT) return encode_long(e, s, n);
    struct symbol sym[BPE_SHORT];
    size_t count;
    bool was_unk = false;
    if (!first_symbols(e, s, n, sym, &count)) return false;
    merge_short(e->t, s, sym, &count);
    for (size_t i = 0; i < count; i++)
        if (!push_symbol(e, s, &sym[i], &was_unk)) return false;
    return true;
}

/* ---- Characters: no merges at all, so no piece needs more than a look-up ---- */

static bool encode_characters(struct encoder *e, const char *s, size_t n)
{
    for (size_t at = 0; at < n;) {
        uint32_t cp;
        size_t length = (size_t)utf8_decode(s + at, n - at, &cp);
        int32_t id = text_map_get(&e->t->pieces, s + at, length);
        if (id < 0) return unknown_character(e, s + at, length);
        if (!encoder_push(e, id)) return false;
        at += length;
    }
    return true;
}

static bool begins_mark(const char *s, const char *end)
{
    return end - s >= 3 && memcmp(s, SPACE_MARK, 3) == 0;
}

bool bpe_encode(struct encoder *e, const char *s, size_t n)
{
    if (e->t->kind == TOKENIZER_CHARACTER) return encode_characters(e, s, n);
    if (!e->t->words_apart) return encode_word(e, s, n);
    /* A word: the marks before it and all up to the next mark. */
    const char *end = s + n;
    while (s < end) {
        const char *at = s;
        while (begins_mark(at, end)) at += 3;
        while (at < end && !begins_mark(at, end)) at++;
        if (!encode_word(e, s, (size_t)(at - s))) return false;
        s = at;
    }
    return true;
}
