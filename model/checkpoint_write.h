/* Writing checkpoints that other programs read: a Hugging Face directory. Every file goes to a temporary name, is
 * synced and renamed; `manifest.json` with the SHA-256 of each comes last. A directory is complete exactly when
 * its manifest is there and agrees. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/gpt.h"

/* What goes into a safetensors file: written in the order given. */
struct tensor_source {
    char name[128];
    enum dtype dtype;      /* F32 or BF16; `raw` below overrides the type's name */
    const char *raw_type;  /* e.g. "U8": bytes as they are; NULL: by dtype */
    int32_t n_dims;
    int64_t dims[4];       /* outermost first */
    int64_t bytes;
    /* Fills `out` with bytes [offset, offset + n) of the tensor. */
    bool (*read)(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n, uint8_t *out,
                 struct error *err);
    void *ctx;
    int64_t tag;           /* the reader's own */
};
bool safetensors_write(const char *path, const struct tensor_source *tensors, int64_t n,
                       const char *const *metadata, struct error *err) MUST_CHECK;

/* A whole file: temporary name, fsync, rename, fsync of the folder. */
bool file_write_atomic(const char *path, const void *bytes, size_t n, struct error *err) MUST_CHECK;

/* config.json and model.safetensors of the model as it stands, in the layout and with the names of its family (arch
 * gpt2: Conv1D and zero biases where the model has none; llama, mistral, qwen2, qwen3), stored as g->dtype
 * (f32 or bf16). The directory is made. What gptd writes, transformers and gptd load. */
bool checkpoint_write(const struct gpt *g, struct device *d, const char *dir, struct error *err)
    MUST_CHECK;
/* Copies tokenizer.json and its kind from the source directory, and writes generation_config.json. */
bool checkpoint_write_tokenizer(const char *from_dir, const char *dir, struct error *err) MUST_CHECK;
/* manifest.json over all regular files of dir; checkpoint_verify reads it back and compares. */
bool checkpoint_seal(const char *dir, struct error *err) MUST_CHECK;
bool checkpoint_verify(const char *dir, struct error *err) MUST_CHECK;
