/* Text files: documents are what lies between spelled-out ends of text. */
#include <stdio.h>
#include <string.h>

#include "model/dataset_internal.h"

enum {
    PIECE = 16 << 20, /* bytes of text that are encoded at once */
    NEAR_END = 64 << 10,
};

/* Walks a file. A document of more than PIECE bytes comes in several pieces, so that memory does
 * not grow with the file; each counts as a document, but nothing is put between them. */
struct cursor {
    size_t at;       /* behind the piece at hand */
    size_t end;      /* of its document */
    size_t next;     /* where the next document begins */
    const char *text; /* the piece at hand */
    size_t n;
    bool first, last; /* of its document */
};

size_t dataset_text_cut(const char *text, size_t limit, size_t near_end)
{
    size_t newline = 0;
    for (size_t i = limit; i > limit - near_end && i > 1; i--) {
        if (text[i - 1] != '\n') continue;
        if (newline == 0) newline = i;
        if ((uint8_t)text[i - 2] > ' ' && (uint8_t)text[i] > ' ') return i;
    }
    if (newline > 0) return newline;
    size_t i = limit;
    while (((uint8_t)text[i] & 0xC0) == 0x80) i--;
    return i;
}

/* Finds the document that begins at c->next. The line break behind a separator, which usually has
 * a line of its own, belongs to neither. */
static void next_document(const struct dataset_reader *r, const struct dataset_file *f,
                          struct cursor *c)
{
    const char *begin = f->text + c->next, *end = NULL;
    size_t rest = f->n - c->next;
    if (r->separator) end = memmem(begin, rest, r->separator, r->n_separator);
    c->at = c->next;
    c->end = end ? (size_t)(end - f->text) : f->n;
    c->next = end ? c->end + r->n_separator : f->n;
    if (end && c->next < f->n && f->text[c->next] == '\r') c->next++;
    if (end && c->next < f->n && f->text[c->next] == '\n') c->next++;
}

/* Moves on to the next piece; false at the end. Empty documents are passed over. */
static bool next_piece(const struct dataset_reader *r, const struct dataset_file *f,
                       struct cursor *c)
{
    c->first = c->at == c->end;
    while (c->at == c->end && c->next < f->n) next_document(r, f, c);
    if (c->at == c->end) return false;
    c->text = f->text + c->at;
    c->n = c->end - c->at > PIECE ? dataset_text_cut(c->text, PIECE, NEAR_END) : c->end - c->at;
    c->at += c->n;
    c->last = c->at == c->end;
    return true;
}

int64_t dataset_text_count(const struct dataset_reader *r, const struct dataset_file *f)
{
    struct cursor c = {0};
    int64_t count = 0;
    while (next_piece(r, f, &c)) count++;
    return count;
}

bool dataset_text_read(struct dataset_reader *r, const struct dataset_file *f, struct error *err)
{
    struct cursor c = {0};
    while (next_piece(r, f, &c)) {
        char where[300];
        snprintf(where, sizeof where, "%.200s: the text at byte %zu", f->path,
                 (size_t)(c.text - f->text) + f->skipped);
        if (!dataset_document_begin(r, c.first, err) ||
            !dataset_document_text(r, where, c.text, c.n, true, err) ||
            (c.last && !dataset_document_end(r, err)) || !dataset_document_finish(r, where, err))
            return false;
    }
    return true;
}
