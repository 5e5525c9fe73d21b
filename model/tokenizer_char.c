/* See tokenizer_char.h. */
#include "model/tokenizer_char.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer_words.h"
#include "model/tokenizer_write.h"

enum { N_CODE_POINTS = 0x110000, MAX_SPECIALS = 256 };

struct survey {
    struct special_texts specials;
    uint8_t *seen; /* [N_CODE_POINTS] */
};

static bool see(void *ctx, const char *text, size_t n, struct error *err)
{
    struct survey *s = ctx;
    (void)err;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int length = utf8_decode(text + i, n - i, &cp);
        ASSERT(length > 0); /* texts are valid UTF-8 */
        s->seen[cp] = 1;
        i += (size_t)length;
    }
    return true;
}

static bool visit(void *ctx, const char *text, size_t n, struct error *err)
{
    struct survey *s = ctx;
    return special_texts_skip(&s->specials, text, n, see, s, err);
}

static bool list_tokens(const struct survey *s, struct token_list *tokens, int32_t *special_ids)
{
    char utf8[4];
    for (uint32_t cp = 0; cp < N_CODE_POINTS; cp++)
        if (s->seen[cp] && token_list_add(tokens, utf8, (size_t)utf8_encode(cp, utf8)) < 0)
            return false;
    for (int32_t i = 0; i < s->specials.n; i++) {
        const char *text = s->specials.at[i];
        special_ids[i] = token_list_add(tokens, text, strlen(text));
        if (special_ids[i] < 0) return false;
    }
    return true;
}

static bool write_tokens(const struct survey *s, struct buf *json, int32_t *vocab_size,
                         struct error *err)
{
    struct token_list tokens = {0};
    int32_t special_ids[MAX_SPECIALS], capacity = s->specials.n;
    for (uint32_t cp = 0; cp < N_CODE_POINTS; cp++) capacity += s->seen[cp];
    if (capacity == s->specials.n)
        return error_set(err, ERR_INVALID, NULL, "the text has no characters");
    bool ok = (token_list_init(&tokens, capacity) && list_tokens(s, &tokens, special_ids)) ||
              error_set(err, ERR_MEMORY, NULL, "no memory for a tokenizer");
    struct tokenizer_parts parts = {.tokens = &tokens, .specials = special_ids,
                                    .n_specials = s->specials.n};
    ok = ok && tokenizer_parts_json(&parts, json, err);
    *vocab_size = tokens.count;
    token_list_free(&tokens);
    return ok;
}

bool tokenizer_char_make(const char *const *inputs, int32_t n_inputs, const char *const *specials,
                         int32_t n_specials, struct buf *json, int32_t *vocab_size,
                         struct error *err)
{
    struct survey s = {.specials = {specials, n_specials}};
    if (n_specials > MAX_SPECIALS)
        return error_set(err, ERR_INVALID, NULL, "over %d special tokens", MAX_SPECIALS);
    if (!special_texts_check(&s.specials, err)) return false;
    s.seen = calloc(N_CODE_POINTS, 1);
    if (!s.seen) return error_set(err, ERR_MEMORY, NULL, "no memory for a tokenizer");
    bool ok = dataset_visit_texts(inputs, n_inputs, visit, &s, err) &&
              write_tokens(&s, json, vocab_size, err);
    free(s.seen);
    return ok;
}
