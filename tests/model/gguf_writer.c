#include "tests/model/gguf_writer.h"

#include <string.h>

#include "model/gguf.h"

void gguf_write_u32(struct buf *b, uint32_t v) { buf_append(b, &v, sizeof v); }
void gguf_write_u64(struct buf *b, uint64_t v) { buf_append(b, &v, sizeof v); }

void gguf_write_string(struct buf *b, const char *s)
{
    gguf_write_u64(b, strlen(s));
    buf_puts(b, s);
}

void gguf_write_head(struct buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
    buf_puts(b, "GGUF");
    gguf_write_u32(b, version);
    gguf_write_u64(b, n_tensors);
    gguf_write_u64(b, n_values);
}

void gguf_write_key(struct buf *b, const char *key, uint32_t type)
{
    gguf_write_string(b, key);
    gguf_write_u32(b, type);
}

void gguf_write_key_u32(struct buf *b, const char *key, uint32_t v)
{
    gguf_write_key(b, key, GGUF_U32);
    gguf_write_u32(b, v);
}

void gguf_write_key_f32(struct buf *b, const char *key, float v)
{
    gguf_write_key(b, key, GGUF_F32);
    buf_append(b, &v, sizeof v);
}

void gguf_write_key_string(struct buf *b, const char *key, const char *v)
{
    gguf_write_key(b, key, GGUF_STRING);
    gguf_write_string(b, v);
}

void gguf_write_tensor(struct buf *b, const char *name, uint64_t dim0, uint64_t dim1,
                       uint32_t type, uint64_t offset)
{
    gguf_write_string(b, name);
    gguf_write_u32(b, dim1 ? 2 : 1);
    gguf_write_u64(b, dim0);
    if (dim1) gguf_write_u64(b, dim1);
    gguf_write_u32(b, type);
    gguf_write_u64(b, offset);
}

void gguf_write_padding(struct buf *b, size_t alignment)
{
    while (b->len % alignment) buf_putc(b, 0);
}
