/* One safetensors file: u64 header length, a JSON header, the data. Opening maps the file and
 * checks the whole header against the file's size; tensors of every element type are listed,
 * those that gptd cannot compute with (masks, indices) as unusable. Their bytes are borrowed from
 * the map. Read-only after open: any thread. Source: the format's description in
 * huggingface/safetensors. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/error.h"
#include "base/file.h"
#include "model/dtype.h"

enum { SAFETENSORS_MAX_DIMS = 8 };

struct safetensors_tensor {
    const char *name;    /* printable UTF-8 */
    const char *type;    /* as the file calls it: "F32", "I64", ... */
    bool usable;         /* F32, F16 or BF16: then `dtype` says which */
    enum dtype dtype;
    int32_t n_dims;      /* 0: a scalar */
    int64_t dims[SAFETENSORS_MAX_DIMS]; /* outermost first */
    const uint8_t *data; /* inside the map, `size` bytes, any alignment */
    int64_t size;
};

struct safetensors {
    struct file_map map;
    struct arena names;
    size_t header_size; /* length word included: where the data begins */
    struct safetensors_tensor *tensors; /* in the header's order */
    size_t n_tensors;
};

bool safetensors_open(const char *path, struct safetensors **out, struct error *err) MUST_CHECK;
/* The same on bytes that the caller keeps alive (fuzzing, tests). `path` is for messages. */
bool safetensors_open_bytes(const uint8_t *data, size_t size, const char *path,
                            struct safetensors **out, struct error *err) MUST_CHECK;
void safetensors_close(struct safetensors *s); /* NULL-safe */
