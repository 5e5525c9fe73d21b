/* Writing GGUF v3: metadata is collected in memory, tensors are streamed. Source: the GGUF
 * specification (ggml, docs/gguf.md). One thread.
 *
 *     struct gguf_meta m;
 *     gguf_meta_init(&m);
 *     gguf_meta_string(&m, "general.architecture", "gpt2", 4);
 *     ...
 *     bool ok = gguf_write(path, &m, tensors, n, err);
 *     gguf_meta_free(&m);
 * */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/checkpoint_write.h"
#include "model/gguf.h"

struct gguf_meta {
    struct buf bytes; /* a failed append sticks; gguf_write reports it */
    uint64_t n;       /* keys so far */
    uint64_t items;   /* promised of the open array and not yet put */
    enum gguf_type item_type;
};

void gguf_meta_init(struct gguf_meta *m);
void gguf_meta_free(struct gguf_meta *m);
void gguf_meta_u32(struct gguf_meta *m, const char *key, uint32_t value);
void gguf_meta_f32(struct gguf_meta *m, const char *key, float value);
void gguf_meta_bool(struct gguf_meta *m, const char *key, bool value);
void gguf_meta_string(struct gguf_meta *m, const char *key, const char *s, size_t n);
/* An array of n items, which must follow: gguf_item_*. */
void gguf_meta_array(struct gguf_meta *m, const char *key, enum gguf_type item_type, uint64_t n);
void gguf_item_string(struct gguf_meta *m, const char *s, size_t n);
void gguf_item_i32(struct gguf_meta *m, int32_t value);
void gguf_item_f32(struct gguf_meta *m, float value);
/* A key and value as another file has them. */
void gguf_meta_copy(struct gguf_meta *m, const struct gguf_value *value);

/* The file, whole or not at all (file_write.h). Tensors of f32, f16, bf16 or q8_0 as
 * safetensors_write takes them; names of at most 63 bytes. */
bool gguf_write(const char *path, const struct gguf_meta *m, const struct tensor_source *tensors,
                int64_t n, struct error *err) MUST_CHECK;
