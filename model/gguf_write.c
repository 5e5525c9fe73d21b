/* Writing GGUF files: see gguf_write.h; the layout is drawn in gguf.c. */
#include "model/gguf_write.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/file_write.h"

enum {
    ALIGNMENT = 32, /* the format's default, so that general.alignment need not be written */
    META_LIMIT = 1 << 30,
    INFO_LIMIT = 64 << 20,
    NAME_MAX_BYTES = 63, /* 64 with the NUL that ggml adds */
    CHUNK_BYTES = 4 << 20,
};

/* ---- Values ---- */

static void put_u32(struct buf *b, uint32_t v) { buf_append(b, &v, sizeof v); }
static void put_u64(struct buf *b, uint64_t v) { buf_append(b, &v, sizeof v); }

static void put_string(struct buf *b, const char *s, size_t n)
{
    put_u64(b, n);
    buf_append(b, s, n);
}

/* ---- Metadata ---- */

void gguf_meta_init(struct gguf_meta *m)
{
    *m = (struct gguf_meta){0};
    buf_init(&m->bytes, META_LIMIT);
}

void gguf_meta_free(struct gguf_meta *m) { buf_free(&m->bytes); }

static void begin_key(struct gguf_meta *m, const char *key, size_t n, enum gguf_type type)
{
    ASSERT(m->items == 0);
    put_string(&m->bytes, key, n);
    put_u32(&m->bytes, type);
    m->n++;
}

void gguf_meta_u32(struct gguf_meta *m, const char *key, uint32_t value)
{
    begin_key(m, key, strlen(key), GGUF_U32);
    put_u32(&m->bytes, value);
}

void gguf_meta_f32(struct gguf_meta *m, const char *key, float value)
{
    begin_key(m, key, strlen(key), GGUF_F32);
    buf_append(&m->bytes, &value, sizeof value);
}

void gguf_meta_bool(struct gguf_meta *m, const char *key, bool value)
{
    begin_key(m, key, strlen(key), GGUF_BOOL);
    buf_putc(&m->bytes, value ? 1 : 0);
}

void gguf_meta_string(struct gguf_meta *m, const char *key, const char *s, size_t n)
{
    begin_key(m, key, strlen(key), GGUF_STRING);
    put_string(&m->bytes, s, n);
}

void gguf_meta_array(struct gguf_meta *m, const char *key, enum gguf_type item_type, uint64_t n)
{
    begin_key(m, key, strlen(key), GGUF_ARRAY);
    put_u32(&m->bytes, item_type);
    put_u64(&m->bytes, n);
    m->items = n;
    m->item_type = item_type;
}

static void take_item(struct gguf_meta *m, enum gguf_type type)
{
    ASSERT(m->items > 0 && m->item_type == type);
    m->items--;
}

void gguf_item_string(struct gguf_meta *m, const char *s, size_t n)
{
    take_item(m, GGUF_STRING);
    put_string(&m->bytes, s, n);
}

void gguf_item_i32(struct gguf_meta *m, int32_t value)
{
    take_item(m, GGUF_I32);
    buf_append(&m->bytes, &value, sizeof value);
}

void gguf_item_f32(struct gguf_meta *m, float value)
{
    take_item(m, GGUF_F32);
    buf_append(&m->bytes, &value, sizeof value);
}

void gguf_meta_copy(struct gguf_meta *m, const struct gguf_value *v)
{
    begin_key(m, v->key.data, v->key.len, v->type);
    if (v->type == GGUF_ARRAY) {
        put_u32(&m->bytes, v->item_type);
        put_u64(&m->bytes, v->count);
    }
    buf_append(&m->bytes, v->data, v->size);
}

/* ---- Tensors ---- */

static uint32_t ggml_type(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32: return 0;
    case DTYPE_F16: return 1;
    case DTYPE_Q8_0: return 8;
    case DTYPE_BF16: return 30;
    default: ASSERT(!"an element type that gptd writes to GGUF"); return 0;
    }
}

/* The tensor's entry; *offset moves to where the next one's data begin. */
static bool put_info(struct buf *b, const struct tensor_source *t, int64_t *offset)
{
    size_t n = strlen(t->name);
    ASSERT(n <= NAME_MAX_BYTES && !t->raw_type && t->n_dims >= 1 && t->n_dims <= 4);
    put_string(b, t->name, n);
    put_u32(b, (uint32_t)t->n_dims);
    for (int32_t i = t->n_dims - 1; i >= 0; i--) put_u64(b, (uint64_t)t->dims[i]);
    put_u32(b, ggml_type(t->dtype));
    put_u64(b, (uint64_t)*offset);
    return checked_add(*offset, round_up(t->bytes, ALIGNMENT), offset);
}

static bool write_head(struct file_writer *w, const struct gguf_meta *m,
                       const struct tensor_source *tensors, int64_t n, struct error *err)
{
    struct buf b;
    int64_t offset = 0;
    bool fits = true;
    ASSERT(m->items == 0);
    if (!buf_check(&m->bytes, "the metadata", err)) return false;
    buf_init(&b, META_LIMIT + (size_t)INFO_LIMIT);
    buf_append(&b, "GGUF", 4);
    put_u32(&b, 3);
    put_u64(&b, (uint64_t)n);
    put_u64(&b, m->n);
    if (m->bytes.len) buf_append(&b, m->bytes.data, m->bytes.len);
    for (int64_t i = 0; i < n && fits; i++) fits = put_info(&b, &tensors[i], &offset);
    while (!b.failed && b.len % ALIGNMENT) buf_putc(&b, 0);
    bool ok = fits ? buf_check(&b, w->path, err) && file_writer_append(w, b.data, b.len, err)
                   : error_set(err, ERR_TOO_LARGE, NULL, "%s: the tensors do not fit", w->path);
    buf_free(&b);
    return ok;
}

static bool write_tensor(struct file_writer *w, const struct tensor_source *t, uint8_t *chunk,
                         struct error *err)
{
    static const uint8_t zeros[ALIGNMENT];
    for (int64_t at = 0; at < t->bytes; at += CHUNK_BYTES) {
        int64_t n = min_i64(CHUNK_BYTES, t->bytes - at);
        if (!t->read(t->ctx, t, at, n, chunk, err) ||
            !file_writer_append(w, chunk, (size_t)n, err))
            return false;
    }
    return file_writer_append(w, zeros, (size_t)(round_up(t->bytes, ALIGNMENT) - t->bytes), err);
}

bool gguf_write(const char *path, const struct gguf_meta *m, const struct tensor_source *tensors,
                int64_t n, struct error *err)
{
    struct file_writer w;
    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk) return error_set(err, ERR_MEMORY, NULL, "%s: no memory to write it", path);
    if (!file_writer_open(&w, path, err)) {
        free(chunk);
        return false;
    }
    bool ok = write_head(&w, m, tensors, n, err);
    for (int64_t i = 0; i < n && ok; i++) ok = write_tensor(&w, &tensors[i], chunk, err);
    free(chunk);
    return file_writer_close(&w, ok, err) && ok;
}
