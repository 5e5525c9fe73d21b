/* Small model files with known values, for tests: every element is a function of its tensor's
 * name and its index in the file. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

struct fake_model {
    bool gguf;
    int n_tensors, n_keys;
    struct buf keys;  /* GGUF metadata: write with gguf_write_key_*, and count n_keys */
    struct buf infos; /* tensor entries, or the JSON header so far */
    struct buf data;
};

void fake_model_init(struct fake_model *m, bool gguf);
void fake_model_free(struct fake_model *m);
/* An f32 tensor of [rows, cols] (outermost first); cols 0: a vector of `rows`. */
void fake_model_add(struct fake_model *m, const char *name, int64_t rows, int64_t cols);
/* The same with "LAYER" in the name replaced by the layer's number. */
void fake_model_add_layer(struct fake_model *m, const char *name, int layer, int64_t rows,
                          int64_t cols);
/* Element i of the tensor: multiples of 2^-8 within +-1, so that half precision is exact too. */
float fake_value(const char *name, int64_t i);
/* Writes a GGUF file or a safetensors file. */
void fake_model_write(const struct fake_model *m, const char *path);

void write_file(const char *path, const void *data, size_t n);
void write_text(const char *dir, const char *name, const char *text);
