/* Safetensors files: see safetensors.h. */
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/json.h"

enum {
    /* The format allows 100 MB. A thousand layers need two; JSON trees take some 40 times their
     * text, so that the lower cap bounds what a hostile header can allocate. */
    MAX_HEADER = 16 << 20,
    HEADER_DEPTH = 4,
};

static const struct element_type {
    const char *name;
    int8_t size;
    bool usable;
    enum dtype dtype;
} element_types[] = {
    {"F32", 4, true, DTYPE_F32},   {"F16", 2, true, DTYPE_F16}, {"BF16", 2, true, DTYPE_BF16},
    {"F64", 8, false, 0},          {"I64", 8, false, 0},        {"I32", 4, false, 0},
    {"I16", 2, false, 0},          {"I8", 1, false, 0},         {"U64", 8, false, 0},
    {"U32", 4, false, 0},          {"U16", 2, false, 0},        {"U8", 1, false, 0},
    {"BOOL", 1, false, 0},         {"F8_E4M3", 1, false, 0},    {"F8_E5M2", 1, false, 0},
};

struct header {
    const char *path;
    const uint8_t *data; /* the bytes after the header */
    int64_t data_size;
    struct error *err;
};

static bool bad_tensor(const struct header *h, const char *name, const char *why)
{
    return error_set(h->err, ERR_FORMAT, NULL, "%s: tensor %.100s %s", h->path, name, why);
}

static bool printable(const char *name)
{
    for (const char *c = name; *c; c++)
        if ((uint8_t)*c < 0x20 || *c == 0x7F) return false;
    return *name != 0;
}

static const struct element_type *find_type(const struct cJSON *item)
{
    for (size_t i = 0; i < sizeof element_types / sizeof *element_types; i++)
        if (cJSON_IsString(item) && strcmp(item->valuestring, element_types[i].name) == 0)
            return &element_types[i];
    return NULL;
}

/* "shape": [...], and from it the number of elements. */
static bool read_shape(const struct header *h, const struct cJSON *shape,
                       struct safetensors_tensor *t, int64_t *n)
{
    if (!cJSON_IsArray(shape)) return bad_tensor(h, t->name, "has no shape");
    *n = 1;
    for (const struct cJSON *item = shape->child; item; item = item->next) {
        int64_t dim;
        if (t->n_dims == SAFETENSORS_MAX_DIMS)
            return bad_tensor(h, t->name, "has more than 8 dimensions");
        if (!json_to_i64(item, &dim) || dim < 0 || !checked_mul(*n, dim, n))
            return bad_tensor(h, t->name, "has an impossible shape");
        t->dims[t->n_dims++] = dim;
    }
    return true;
}

/* "data_offsets": [begin, end], which must lie in the data and hold exactly t->size bytes. */
static bool place(const struct header *h, const struct cJSON *offsets, struct safetensors_tensor *t)
{
    int64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_to_i64(offsets->child, &begin) ||
        !json_to_i64(offsets->child->next, &end))
        return bad_tensor(h, t->name, "has no data_offsets [begin, end]");
    if (begin < 0 || end < begin || end > h->data_size)
        return error_set(h->err, ERR_FORMAT, NULL,
                         "%s: tensor %.100s lies at bytes %lld to %lld of %lld: the file is "
                         "truncated or damaged", h->path, t->name, (long long)begin,
                         (long long)end, (long long)h->data_size);
    if (end - begin != t->size)
        return error_set(h->err, ERR_FORMAT, NULL,
                         "%s: tensor %.100s has %lld bytes, but its shape and type need %lld",
                         h->path, t->name, (long long)(end - begin), (long long)t->size);
    t->data = h->data + begin;
    return true;
}

static bool read_tensor(const struct header *h, struct arena *names, const struct cJSON *item,
                        struct safetensors_tensor *t)
{
    if (!printable(item->string)) {
        return error_set(h->err, ERR_FORMAT, NULL,
                         "%s: a tensor's name is empty or holds control characters", h->path);
    }
    t->name = arena_strdup(names, item->string);
    if (!t->name) return error_set(h->err, ERR_MEMORY, NULL, "%s: no memory", h->path);
    if (!cJSON_IsObject(item)) return bad_tensor(h, t->name, "is not described by an object");
    const struct element_type *type = find_type(json_get(item, "dtype"));
    if (!type) return bad_tensor(h, t->name, "has no known dtype");
    t->type = type->name;
    t->usable = type->usable;
    t->dtype = type->dtype;
    int64_t n = 0;
    if (!read_shape(h, json_get(item, "shape"), t, &n)) return false;
    if (!checked_mul(n, type->size, &t->size))
        return bad_tensor(h, t->name, "has an impossible shape");
    return place(h, json_get(item, "data_offsets"), t);
}

static bool read_tensors(const struct header *h, const struct cJSON *root, struct safetensors *s)
{
    int n = cJSON_GetArraySize(root);
    s->tensors = calloc((size_t)n + 1, sizeof *s->tensors);
    if (!s->tensors) return error_set(h->err, ERR_MEMORY, NULL, "%s: no memory", h->path);
    for (const struct cJSON *item = root->child; item; item = item->next) {
        if (strcmp(item->string, "__metadata__") == 0) continue;
        if (!read_tensor(h, &s->names, item, &s->tensors[s->n_tensors++])) return false;
    }
    return true;
}

static bool read_file(const uint8_t *data, size_t size, const char *path, struct safetensors *s,
                      struct error *err)
{
    uint64_t n;
    if (size < sizeof n)
        return error_set(err, ERR_FORMAT, NULL,
                         "%s: %zu bytes are too few for a safetensors file", path, size);
    memcpy(&n, data, sizeof n);
    if (n > size - sizeof n)
        return error_set(err, ERR_FORMAT, NULL, "%s: the header has %llu bytes, the file %zu: "
                         "truncated, or not a safetensors file", path, (unsigned long long)n, size);
    if (n > MAX_HEADER)
        return error_set(err, ERR_TOO_LARGE, NULL, "%s: the header has %llu bytes, over %d", path,
                         (unsigned long long)n, MAX_HEADER);
    s->header_size = sizeof n + (size_t)n;
    struct cJSON *root = json_parse((const char *)data + sizeof n, (size_t)n, HEADER_DEPTH, path,
                                    err);
    if (!root) return false;
    struct header h = {path, data + s->header_size, (int64_t)(size - s->header_size), err};
    bool ok = cJSON_IsObject(root) ? read_tensors(&h, root, s)
                                   : error_set(err, ERR_FORMAT, NULL,
                                               "%s: the header is %s, not an object", path,
                                               json_type_name(root));
    cJSON_Delete(root);
    return ok;
}

bool safetensors_open_bytes(const uint8_t *data, size_t size, const char *path,
                            struct safetensors **out, struct error *err)
{
    struct safetensors *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, ERR_MEMORY, NULL, "%s: no memory", path);
    arena_init(&s->names, 2 * (size_t)MAX_HEADER);
    if (!read_file(data, size, path, s, err)) {
        safetensors_close(s);
        return false;
    }
    *out = s;
    return true;
}

bool safetensors_open(const char *path, struct safetensors **out, struct error *err)
{
    struct file_map map;
    if (!file_map_open(path, &map, err)) return false;
    if (!safetensors_open_bytes(map.data, map.size, path, out, err)) {
        file_map_close(&map);
        return false;
    }
    (*out)->map = map;
    return true;
}

void safetensors_close(struct safetensors *s)
{
    if (!s) return;
    file_map_close(&s->map);
    arena_free(&s->names);
    free(s->tensors);
    free(s);
}
