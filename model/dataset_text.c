/* Text files: documents are what lies between spelled-out ends of text. */
#include <stdio.h>
#include <string.h>

#include "model/dataset_internal.h"

/* The next document at *at: false when there is none. Empty ones are passed over; so is the line
 * break behind a separator, which usually has a line of its own. */
static bool next_document(const struct dataset_reader *r, const struct dataset_file *f, size_t *at,
                          const char **text, size_t *n)
{
    while (*at < f->n) {
        const char *begin = f->text + *at, *end = NULL;
        size_t rest = f->n - *at;
        if (r->separator) end = memmem(begin, rest, r->separator, r->n_separator);
        *text = begin;
        *n = end ? (size_t)(end - begin) : rest;
        *at += *n;
        if (end) *at += r->n_separator;
        if (end && *at < f->n && f->text[*at] == '\r') ++*at;
        if (end && *at < f->n && f->text[*at] == '\n') ++*at;
        if (*n > 0) return true;
    }
    return false;
}

int64_t dataset_text_count(const struct dataset_reader *r, const struct dataset_file *f)
{
    const char *text;
    size_t at = 0, n;
    int64_t count = 0;
    while (next_document(r, f, &at, &text, &n)) count++;
    return count;
}

bool dataset_text_read(struct dataset_reader *r, const struct dataset_file *f, struct error *err)
{
    const char *text;
    size_t at = 0, n;
    while (next_document(r, f, &at, &text, &n)) {
        char where[300];
        snprintf(where, sizeof where, "%.200s: the document at byte %zu", f->path,
                 (size_t)(text - f->text) + f->skipped);
        if (!dataset_document_begin(r, err) ||
            !dataset_document_text(r, where, text, n, true, err) ||
            !dataset_document_end(r, err) || !dataset_document_finish(r, where, err))
            return false;
    }
    return true;
}
