/* JSON out: values appended to a struct buf, always valid JSON whatever the input bytes. The
 * caller writes braces, commas and keys; `buf_check` at the end tells whether all of it fitted. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* U+FFFD, what stands for bytes that are not UTF-8. */
#define UTF8_REPLACEMENT "\xEF\xBF\xBD"

/* How many bytes at s[0..n), which do not begin with a valid code point, one U+FFFD stands for: the
 * longest beginning of a code point there, or one byte (Unicode 15, section 3.9, "substitution of
 * maximal subparts"). n > 0. */
size_t json_out_bad_utf8(const char *s, size_t n);

/* The inside of a string: escaped, without the quotes. Invalid UTF-8 becomes U+FFFD. */
void json_out_escape(struct buf *out, const char *s, size_t n);
void json_out_string(struct buf *out, const char *s, size_t n);
/* The string, or null for NULL. */
void json_out_text(struct buf *out, const char *s);
/* The shortest decimal that reads back as the same float or double; null when it is not finite. */
void json_out_float(struct buf *out, float value);
void json_out_double(struct buf *out, double value);
/* As json_out_float; -infinity (and NaN) become -9999.0, as clients know it from other servers. */
void json_out_logprob(struct buf *out, float value);
