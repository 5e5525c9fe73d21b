#include "tests/model/fake_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tests/model/gguf_writer.h"
#include "tests/model/safetensors_writer.h"

enum { FAKE_LIMIT = 16 << 20 };

void fake_model_init(struct fake_model *m, bool gguf)
{
    *m = (struct fake_model){.gguf = gguf};
    buf_init(&m->keys, FAKE_LIMIT);
    buf_init(&m->infos, FAKE_LIMIT);
    buf_init(&m->data, FAKE_LIMIT);
}

void fake_model_free(struct fake_model *m)
{
    buf_free(&m->keys);
    buf_free(&m->infos);
    buf_free(&m->data);
}

float fake_value(const char *name, int64_t i)
{
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211u;
    h = (h ^ (uint64_t)i) * 0x9E3779B97F4A7C15u;
    return (float)((int)(h >> 40 & 511) - 256) / 256;
}

void fake_model_add(struct fake_model *m, const char *name, int64_t rows, int64_t cols)
{
    int64_t n = cols ? rows * cols : rows;
    if (m->gguf) gguf_write_padding(&m->data, 32);
    size_t begin = m->data.len;
    for (int64_t i = 0; i < n; i++) {
        float value = fake_value(name, i);
        buf_append(&m->data, &value, sizeof value);
    }
    if (m->gguf) {
        gguf_write_tensor(&m->infos, name, (uint64_t)(cols ? cols : rows),
                          (uint64_t)(cols ? rows : 0), GGML_F32, begin);
    } else {
        buf_printf(&m->infos, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%" PRId64,
                   m->n_tensors ? "," : "", name, rows);
        if (cols) buf_printf(&m->infos, ",%" PRId64, cols);
        buf_printf(&m->infos, "],\"data_offsets\":[%zu,%zu]}", begin, m->data.len);
    }
    m->n_tensors++;
}

void fake_model_add_layer(struct fake_model *m, const char *name, int layer, int64_t rows,
                          int64_t cols)
{
    char full[128];
    const char *mark = strstr(name, "LAYER");
    snprintf(full, sizeof full, "%.*s%d%s", (int)(mark - name), name, layer, mark + 5);
    fake_model_add(m, full, rows, cols);
}

void write_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    ASSERT(f && fwrite(data, 1, n, f) == n);
    ASSERT(fclose(f) == 0);
}

void write_text(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    write_file(path, text, strlen(text));
}

void fake_model_write(const struct fake_model *m, const char *path)
{
    struct buf out;
    buf_init(&out, 3 * FAKE_LIMIT);
    if (m->gguf) {
        gguf_write_head(&out, 3, (uint64_t)m->n_tensors, (uint64_t)m->n_keys);
        if (m->keys.len) buf_append(&out, m->keys.data, m->keys.len);
        buf_append(&out, m->infos.data, m->infos.len);
        gguf_write_padding(&out, 32);
        buf_append(&out, m->data.data, m->data.len);
    } else {
        struct buf header;
        buf_init(&header, FAKE_LIMIT);
        buf_printf(&header, "{%s}", m->infos.data);
        safetensors_put(&out, header.data, m->data.data, m->data.len);
        buf_free(&header);
    }
    ASSERT(!out.failed);
    write_file(path, out.data, out.len);
    buf_free(&out);
}
