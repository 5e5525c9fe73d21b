/* GGUF v2 and v3: a mapped file's metadata and tensor table, checked in full against the
 * file's size at open; nothing is allocated in proportion to a count before that count is known to
 * fit the file. Values and strings are borrowed from the map. Source: the GGUF specification
 * (ggml, docs/gguf.md). Read-only after open: any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "model/dtype.h"

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, N_GGUF_TYPES,
};

struct gguf_string { const char *data; size_t len; };

struct gguf_value {
    struct gguf_string key;
    enum gguf_type type;      /* GGUF_ARRAY: see item_type, count */
    enum gguf_type item_type; /* arrays of arrays are refused */
    uint64_t count;           /* items of an array; 1 otherwise */
    const uint8_t *data;      /* first byte of the value (little endian, unaligned) */
    size_t size;              /* bytes of the value */
};

struct gguf_tensor {
    struct gguf_string name;
    int32_t n_dims;           /* 1..4 */
    int64_t dims[4];          /* GGUF order: dims[0] is the innermost (columns) */
    enum dtype dtype;
    const uint8_t *data;      /* inside the map, `size` bytes */
    int64_t size;
};

struct gguf {
    struct file_map map;
    uint32_t version;
    struct gguf_value *values; size_t n_values;
    struct gguf_tensor *tensors; size_t n_tensors;
};

bool gguf_open(const char *path, struct gguf **out, struct error *err) MUST_CHECK;
/* The same on bytes that the caller keeps alive (fuzzing, tests). `path` is for messages. */
bool gguf_open_bytes(const uint8_t *data, size_t size, const char *path, struct gguf **out,
                     struct error *err) MUST_CHECK;
void gguf_close(struct gguf *g); /* NULL-safe */

const struct gguf_value *gguf_find(const struct gguf *g, const char *key); /* NULL: absent */

/* Typed readers: false when the value is absent (NULL) or of another kind or out of range. */
bool gguf_get_i64(const struct gguf_value *v, int64_t *out); /* any integer type */
bool gguf_get_f64(const struct gguf_value *v, double *out);  /* any float or integer type */
bool gguf_get_bool(const struct gguf_value *v, bool *out);
bool gguf_get_string(const struct gguf_value *v, struct gguf_string *out);

/* Walks an array of strings: start with *cursor = 0; returns false past the end. */
bool gguf_next_string(const struct gguf_value *v, size_t *cursor, struct gguf_string *out);
/* Item i of a numeric array. */
bool gguf_item_i64(const struct gguf_value *v, uint64_t i, int64_t *out);
bool gguf_item_f64(const struct gguf_value *v, uint64_t i, double *out);
