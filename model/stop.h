/* Stop strings that span tokens. Feed the decoded bytes of each token; the matcher says whether a
 * stop string has been completed and how many bytes of the text so far are safe to show (cannot be
 * the beginning of one). Allocates nothing: the state is a few integers, one per stop string. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STOP_MAX = 16, STOP_MAX_BYTES = 256 };

struct stop_list { /* borrowed strings, each 1..STOP_MAX_BYTES bytes */
    int32_t n;
    struct { const char *bytes; size_t n; } at[STOP_MAX];
};

struct stop_matcher {
    int64_t n_seen;            /* bytes fed so far */
    int64_t safe;              /* bytes that may be shown; final (=
                                  begin of the match) once matched */
    bool matched;
    int32_t which;             /* index of the stop string matched */
    uint16_t state[STOP_MAX];  /* bytes of each stop string matched so far */
};

/* Feeds n bytes; returns matched. The earliest-ending match wins; among equal ends, the longest.
 * Bytes after a match are ignored. The bytes must come in the order of the text. */
bool stop_push(const struct stop_list *list, struct stop_matcher *m, const char *bytes, size_t n);
