/* JSON in, strictly: RFC 8259 and nothing more lenient. cJSON builds the tree; a scan of our own
 * runs before it, because cJSON alone keeps duplicate keys, turns 1e999 into infinity, cuts
 * strings at \u0000, takes 01 and raw control characters, and nests (recursing) to 1000.
 *
 *     struct cJSON *root = json_parse(text, n, 32, "config.json", err);
 *     if (!root) return false;
 *     const struct cJSON *item = json_get(root, "n_layer");
 *     ...
 *     cJSON_Delete(root);
 *
 * A tree takes up to about 40 bytes per byte of text ("[0,0,0..."): bound n with that in mind.
 * No globals: any thread. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { JSON_MAX_DEPTH = 256 }; /* the most that max_depth may ask for */

/* The tree of exactly these n bytes (`text` may be NULL when n is 0); free with cJSON_Delete. NULL
 * with ERR_FORMAT (the message names `where` and the byte offset) for anything that is not one
 * valid UTF-8 JSON value: nesting over max_depth arrays and objects (a flat object is depth 1),
 * trailing bytes, NUL bytes and \u0000, lone surrogates, numbers that are not finite as doubles or
 * longer than 63 characters, and duplicate keys (err->param names the key). NULL with ERR_MEMORY
 * when the allocator refuses. */
struct cJSON *json_parse(const char *text, size_t n, int max_depth, const char *where,
                         struct error *err);

/* The member of an object, by exact name (cJSON_GetObjectItem ignores case); NULL when it is
 * absent or `object` is no object. */
const struct cJSON *json_get(const struct cJSON *object, const char *key);

/* True for a number without a fraction, within +-2^53, where doubles are exact. */
bool json_to_i64(const struct cJSON *item, int64_t *out);

/* "null", "a boolean", "a number", "a string", "an array", "an object": for messages. */
const char *json_type_name(const struct cJSON *item);
