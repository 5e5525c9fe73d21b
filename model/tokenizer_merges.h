/* The heart of training a byte-pair encoding (Sennrich, Haddow, Birch: "Neural machine translation
 * of rare words with subword units", ACL 2016): words and how often each occurs in, merges out.
 *
 * Again and again the pair of neighbouring tokens with the highest count becomes a token. Of pairs
 * with equal counts the one with the smaller left id is taken, then the one with the smaller right
 * id: the same text gives the same merges on every machine, and the ones that Hugging Face's
 * tokenizers finds. After a merge only the words that it touches are counted again. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"
#include "model/tokenizer_internal.h"

/* Tokens by id, each text once. */
struct token_list {
    const char **text; /* [capacity] */
    uint32_t *n;       /* [capacity] bytes */
    int32_t count, capacity;
    struct text_map ids;
    struct arena arena; /* the texts */
};
bool token_list_init(struct token_list *l, int32_t capacity) MUST_CHECK; /* false: no memory */
void token_list_free(struct token_list *l);
/* The id of the text, which is new unless the list has it already. -1: no memory. */
int32_t token_list_add(struct token_list *l, const char *text, size_t n);

struct merge_words {
    int32_t *symbols;       /* all words' ids, back to back; overwritten */
    const uint64_t *starts; /* [n_words + 1] */
    const int64_t *counts;  /* [n_words] > 0 */
    int64_t n_words;
};

struct merge { int32_t left, right; };

struct merge_list { /* malloc'd */
    struct merge *at;
    int64_t n;
};

/* Adds tokens until the list is at its capacity or no pair occurs min_count (>= 1) times. Two
 * merges may make one token (a bc, ab c): *out may be longer than what it adds. ERR_MEMORY, or
 * ERR_TOO_LARGE for more than 2^32 words. */
bool merges_find(struct merge_words *w, int64_t min_count, struct token_list *tokens,
                 struct merge_list *out, struct error *err) MUST_CHECK;
