/* Writes GGUF files piece by piece, for tests. The caller keeps the counts right (or wrong). */
#pragma once

#include <stdint.h>

#include "base/buf.h"

enum { GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q8_0 = 8, GGML_Q4_K = 12, GGML_BF16 = 30 };

void gguf_write_u32(struct buf *b, uint32_t v);
void gguf_write_u64(struct buf *b, uint64_t v);
void gguf_write_string(struct buf *b, const char *s);
void gguf_write_head(struct buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_values);
void gguf_write_key(struct buf *b, const char *key, uint32_t type); /* the value follows */
void gguf_write_key_u32(struct buf *b, const char *key, uint32_t v);
void gguf_write_key_f32(struct buf *b, const char *key, float v);
void gguf_write_key_string(struct buf *b, const char *key, const char *v);
/* dim0 is the innermost; dim1 0: a vector. */
void gguf_write_tensor(struct buf *b, const char *name, uint64_t dim0, uint64_t dim1,
                       uint32_t type, uint64_t offset);
void gguf_write_padding(struct buf *b, size_t alignment);
