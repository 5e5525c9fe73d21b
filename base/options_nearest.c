/* The nearest known name to a mistyped one, for error messages. */
#include <string.h>

#include "base/options.h"

enum { NAME_MAX_BYTES = 63, MAX_EDITS = 3 };

/* Levenshtein's distance (insert, delete, replace one byte), one row of the table at a time.
 * Both at most NAME_MAX_BYTES long. */
static size_t edit_distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    size_t row[NAME_MAX_BYTES + 1];
    for (size_t j = 0; j <= n_b; j++) row[j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            size_t insert = row[j - 1] + 1, delete = row[j] + 1;
            diagonal = row[j];
            row[j] = replace < insert ? replace : insert;
            if (delete < row[j]) row[j] = delete;
        }
    }
    return row[n_b];
}

const char *nearest_name_within(const char *name, const char *const *candidates, size_t n,
                                size_t max_edits)
{
    size_t len = strlen(name), best = max_edits + 1;
    const char *nearest = NULL;
    if (len > NAME_MAX_BYTES) return NULL;
    for (size_t i = 0; i < n; i++) {
        size_t candidate_len = strlen(candidates[i]);
        if (candidate_len > NAME_MAX_BYTES) continue;
        size_t edits = edit_distance(name, len, candidates[i], candidate_len);
        /* Something of the name must remain, or "x" would be near every short name. */
        if (edits >= best || edits >= len) continue;
        best = edits;
        nearest = candidates[i];
    }
    return nearest;
}

const char *nearest_name(const char *name, const char *const *candidates, size_t n)
{
    return nearest_name_within(name, candidates, n, MAX_EDITS);
}
