/* UTF-8: decoding and validation (RFC 3629: no surrogates, no overlong forms, at most
 * U+10FFFF). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one code point at s[0..n). Returns its length 1..4 and sets *cp; 0 when the bytes
 * are not valid UTF-8; -1 when they are a valid beginning that n cuts short. n > 0. */
int utf8_decode(const char *s, size_t n, uint32_t *cp);

/* Writes cp (valid, not a surrogate) to out[4]; returns the length 1..4. */
int utf8_encode(uint32_t cp, char out[4]);

/* True when all n bytes are valid; otherwise *bad (if not NULL) is the offset of the fault. */
bool utf8_valid(const char *s, size_t n, size_t *bad);

/* How many of the n bytes end at a code point boundary: n less an unfinished (but so far
 * valid) last code point. Invalid bytes count as complete. */
size_t utf8_complete(const char *s, size_t n);
