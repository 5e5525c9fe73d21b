/* See tokenizer_words.h. */
#include "model/tokenizer_words.h"

#include <string.h>

#include "base/utf8.h"

bool special_texts_check(const struct special_texts *s, struct error *err)
{
    for (int32_t i = 0; i < s->n; i++) {
        size_t n = strlen(s->at[i]);
        uint32_t cp;
        /* One character alone would be a token of the text's own. */
        bool long_enough = n > 0 && (size_t)utf8_decode(s->at[i], n, &cp) < n;
        if (!long_enough || n > 256 || !utf8_valid(s->at[i], n, NULL))
            return error_set(err, ERR_INVALID, NULL, "a special token must be two characters to "
                             "256 bytes of UTF-8, not \"%.80s\"", s->at[i]);
        for (int32_t k = 0; k < i; k++)
            if (strcmp(s->at[i], s->at[k]) == 0)
                return error_set(err, ERR_INVALID, NULL, "the special token \"%.80s\" is given "
                                 "twice", s->at[i]);
    }
    return true;
}

/* The first special token in the text (of those that begin there the longest). NULL: none. */
static const char *find_first(const struct special_texts *s, const char *text, size_t n,
                              size_t *n_found)
{
    const char *first = NULL;
    for (int32_t i = 0; i < s->n; i++) {
        size_t length = strlen(s->at[i]);
        const char *at = memmem(text, n, s->at[i], length);
        if (!at || (first && (at > first || (at == first && length < *n_found)))) continue;
        first = at;
        *n_found = length;
    }
    return first;
}

bool special_texts_skip(const struct special_texts *s, const char *text, size_t n,
                        dataset_text_fn rest, void *ctx, struct error *err)
{
    while (n > 0) {
        size_t n_special = 0;
        const char *special = find_first(s, text, n, &n_special);
        size_t before = special ? (size_t)(special - text) : n;
        if (before > 0 && !rest(ctx, text, before, err)) return false;
        text += before + n_special;
        n -= before + n_special;
    }
    return true;
}
