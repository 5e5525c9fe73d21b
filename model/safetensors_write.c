/* Writing a safetensors file: u64 header length, a JSON header padded with spaces to 8 bytes, then
 * the tensors in the order given, streamed through one buffer. Source: the format's description in
 * huggingface/safetensors. */
#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/checked.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"

enum { CHUNK_BYTES = 1 << 20, HEADER_LIMIT = 16 << 20 };

static const char *type_name(const struct tensor_source *t)
{
    if (t->raw_type) return t->raw_type;
    switch (t->dtype) {
    case DTYPE_F32: return "F32";
    case DTYPE_F16: return "F16";
    case DTYPE_BF16: return "BF16";
    default: ASSERT(!"an element type of safetensors"); return NULL;
    }
}

/* JSON numbers are doubles: offsets go in as text, exact at any size. */
static bool add_numbers(struct cJSON *object, const char *key, const int64_t *numbers, int n)
{
    char text[160] = "[";
    int len = 1;
    for (int i = 0; i < n; i++)
        len += snprintf(text + len, sizeof text - (size_t)len, "%s%" PRId64, i ? "," : "",
                        numbers[i]);
    snprintf(text + len, sizeof text - (size_t)len, "]");
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

/* One tensor's entry; its bytes begin where the previous one's end, at[1]. */
static bool add_tensor(struct cJSON *root, const struct tensor_source *t, int64_t at[2])
{
    ASSERT(t->n_dims >= 0 && t->n_dims <= 4 && t->bytes >= 0);
    at[0] = at[1];
    struct cJSON *entry = cJSON_AddObjectToObject(root, t->name);
    return entry && checked_add(at[0], t->bytes, &at[1]) &&
           cJSON_AddStringToObject(entry, "dtype", type_name(t)) &&
           add_numbers(entry, "shape", t->dims, t->n_dims) &&
           add_numbers(entry, "data_offsets", at, 2);
}

/* The header's JSON; NULL when there is no memory or the sizes do not fit. */
static char *header_text(const struct tensor_source *tensors, int64_t n,
                         const char *const *metadata)
{
    struct cJSON *root = cJSON_CreateObject();
    struct cJSON *meta = metadata ? cJSON_AddObjectToObject(root, "__metadata__") : NULL;
    int64_t at[2] = {0, 0};
    bool ok = root && (meta || !metadata);
    for (; ok && meta && metadata[0]; metadata += 2)
        ok = cJSON_AddStringToObject(meta, metadata[0], metadata[1]) != NULL;
    for (int64_t i = 0; i < n && ok; i++) ok = add_tensor(root, &tensors[i], at);
    char *text = ok ? cJSON_PrintUnformatted(root) : NULL;
    cJSON_Delete(root);
    return text;
}

static bool write_header(struct file_writer *w, const struct tensor_source *tensors, int64_t n,
                         const char *const *metadata, struct error *err)
{
    struct buf b;
    char *text = header_text(tensors, n, metadata);
    if (!text)
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory for the header of %" PRId64
                         " tensors", w->path, n);
    uint64_t length = (uint64_t)round_up((int64_t)strlen(text), 8);
    buf_init(&b, HEADER_LIMIT);
    buf_append(&b, &length, sizeof length);
    buf_puts(&b, text);
    while (!b.failed && b.len % 8) buf_putc(&b, ' ');
    free(text);
    bool ok = buf_check(&b, w->path, err) && file_writer_append(w, b.data, b.len, err);
    buf_free(&b);
    return ok;
}

static bool write_tensor(struct file_writer *w, const struct tensor_source *t, uint8_t *chunk,
                         struct error *err)
{
    for (int64_t at = 0; at < t->bytes; at += CHUNK_BYTES) {
        int64_t n = min_i64(CHUNK_BYTES, t->bytes - at);
        if (!t->read(t->ctx, t, at, n, chunk, err) ||
            !file_writer_append(w, chunk, (size_t)n, err))
            return false;
    }
    return true;
}

bool safetensors_write(const char *path, const struct tensor_source *tensors, int64_t n,
                       const char *const *metadata, struct error *err)
{
    struct file_writer w;
    uint8_t *chunk = malloc(CHUNK_BYTES);
    if (!chunk) return error_set(err, ERR_MEMORY, NULL, "%s: no memory to write it", path);
    if (!file_writer_open(&w, path, err)) {
        free(chunk);
        return false;
    }
    bool ok = write_header(&w, tensors, n, metadata, err);
    for (int64_t i = 0; i < n && ok; i++) ok = write_tensor(&w, &tensors[i], chunk, err);
    free(chunk);
    return file_writer_close(&w, ok, err) && ok;
}
