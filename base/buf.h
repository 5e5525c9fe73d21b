/* A growing byte buffer that names its limit at birth. An append past the limit, or one the
 * allocator refuses, sticks: the contents are freed, `failed` is set, every later append is
 * a no-op. So a run of appends is checked once, at its end. The bytes are always followed
 * by a NUL that does not count. Owned by one thread at a time. */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct buf {
    char *data; /* NULL until the first append; then NUL-terminated */
    size_t len;
    size_t capacity;
    size_t limit;
    bool failed;
    bool no_memory; /* failed because the allocator refused, not for the limit */
};

void buf_init(struct buf *b, size_t limit);
void buf_free(struct buf *b); /* back to empty, same limit */
void buf_clear(struct buf *b); /* len = 0, keeps the memory; clears `failed` */
void buf_append(struct buf *b, const void *bytes, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* ERR_TOO_LARGE or ERR_MEMORY, with `what` in the text, when an append failed. */
bool buf_check(const struct buf *b, const char *what, struct error *err) MUST_CHECK;
/* The contents (malloc'd, NUL-terminated, never NULL unless failed); the buffer is empty after. */
char *buf_take(struct buf *b, size_t *len);
