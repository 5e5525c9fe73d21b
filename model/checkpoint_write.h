/* Writing checkpoints that other programs read: a Hugging Face directory. Every file goes to a
 * temporary name, is synced and renamed; `manifest.json` with the SHA-256 of each comes last. A
 * directory is complete exactly when its manifest is there and agrees. */
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
/* metadata: keys and values in turn, NULL at the end; or NULL. */
bool safetensors_write(const char *path, const struct tensor_source *tensors, int64_t n,
                       const char *const *metadata, struct error *err) MUST_CHECK;

/* A whole file: temporary name, fsync, rename, fsync of the folder. */
bool file_write_atomic(const char *path, const void *bytes, size_t n, struct error *err) MUST_CHECK;

/* config.json and model.safetensors of the model as it stands, in the layout and with the names of
 * the family that can express it (hf_config_write.h; gpt2: Conv1D and zero biases where the model
 * has none). Matrices are stored as g->dtype (f32 or bf16), vectors and positions as f32: what the
 * model computes with, to the bit. The directory is made; a manifest that it has is removed first.
 * What gptd writes, gptd loads, and transformers too unless the family is "gptd". */
bool checkpoint_write(const struct gpt *g, struct device *d, const char *dir, struct error *err)
    MUST_CHECK;
/* Copies tokenizer.json and its kind from a model's path, and generation_config.json, or makes one;
 * from a GGUF file they are all made. Puts the markers' ids into the config.json that
 * checkpoint_write left in dir. A source without a tokenizer is fine. */
bool checkpoint_write_tokenizer(const char *from, const char *dir, struct error *err) MUST_CHECK;
/* manifest.json over all regular files of dir but itself and NAME.tmp, each synced;
 * checkpoint_verify reads it back and compares: ERR_NOT_FOUND without a manifest, ERR_FORMAT naming
 * the file that is missing, of another size or different. */
bool checkpoint_seal(const char *dir, struct error *err) MUST_CHECK;
bool checkpoint_verify(const char *dir, struct error *err) MUST_CHECK;
