/* Memory that dies all at once: what a request, or one load of a file, allocates. Chunked
 * bump allocation up to a limit named at birth. Not for threads: one owner at a time. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used;                /* bytes handed out, alignment included */
    size_t limit;
};

void arena_init(struct arena *a, size_t limit);
void arena_free(struct arena *a); /* everything; the arena may be used again */
/* Zeroed bytes, 16-byte aligned; NULL past the limit or when the allocator refuses. */
void *arena_alloc(struct arena *a, size_t n);
/* count * size with an overflow check. */
void *arena_array(struct arena *a, size_t count, size_t size);
/* A copy with a NUL after it. */
char *arena_copy(struct arena *a, const void *bytes, size_t n);
char *arena_strdup(struct arena *a, const char *s);
