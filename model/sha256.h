/* SHA-256 of bytes that come in pieces. Where the allocator refuses at the beginning, updates do
 * nothing and the end says so: a run of updates is checked once. */
#pragma once

#include <stddef.h>

#include "base/error.h"

enum { SHA256_HEX = 65 }; /* 64 hexadecimal digits and the NUL */

struct sha256 {
    struct evp_md_ctx_st *ctx; /* OpenSSL's; NULL: no memory for it */
};

void sha256_begin(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *bytes, size_t n);
/* Once for each begin, whatever happened between; `out` may be NULL: what was digested does not
 * matter any more. */
bool sha256_end(struct sha256 *s, char out[SHA256_HEX], struct error *err) MUST_CHECK;
