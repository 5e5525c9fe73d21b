/* Growing byte buffer: see buf.h. */
#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t limit) { *b = (struct buf){.limit = limit}; }

void buf_free(struct buf *b)
{
    free(b->data);
    buf_init(b, b->limit);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = b->no_memory = false;
    if (b->data) b->data[0] = 0;
}

static bool buf_fail(struct buf *b, bool no_memory)
{
    buf_free(b);
    b->failed = true;
    b->no_memory = no_memory;
    return false;
}

/* Makes room for n more bytes and the NUL. */
static bool buf_grow(struct buf *b, size_t n)
{
    if (b->failed) return false;
    if (n > b->limit || b->len > b->limit - n) return buf_fail(b, false);
    size_t need = b->len + n + 1;
    if (need <= b->capacity) return true;
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need) capacity *= 2;
    char *data = realloc(b->data, capacity);
    if (!data) return buf_fail(b, true);
    b->data = data;
    b->capacity = capacity;
    return true;
}

void buf_append(struct buf *b, const void *bytes, size_t n)
{
    if (!buf_grow(b, n)) return;
    if (n) memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = 0;
}

void buf_puts(struct buf *b, const char *s) { buf_append(b, s, strlen(s)); }
void buf_putc(struct buf *b, char c) { buf_append(b, &c, 1); }

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    ASSERT(n >= 0);
    if (!buf_grow(b, (size_t)n)) return;
    va_start(args, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, args);
    va_end(args);
    b->len += (size_t)n;
}

bool buf_check(const struct buf *b, const char *what, struct error *err)
{
    if (!b->failed) return true;
    if (b->no_memory) return error_set(err, ERR_MEMORY, NULL, "no memory for %s", what);
    return error_set(err, ERR_TOO_LARGE, NULL, "%s is over its limit of %zu bytes", what,
                     b->limit);
}

char *buf_take(struct buf *b, size_t *len)
{
    if (!buf_grow(b, 0)) return NULL;
    b->data[b->len] = 0;
    char *data = b->data;
    if (len) *len = b->len;
    buf_init(b, b->limit);
    return data;
}
