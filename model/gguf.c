/* GGUF files: see gguf.h. One reader that cannot step past the end walks the header once;
 * everything after works on pointers that this walk has checked.
 *
 *   "GGUF" u32 version  u64 n_tensors  u64 n_values
 *   n_values  x (string key, u32 type, value)          string: u64 length, bytes
 *   n_tensors x (string name, u32 n_dims, u64 dims[], u32 type, u64 offset)
 *   padding to general.alignment, then the data that the offsets count from */
#include "model/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"

enum {
    MAX_VALUES = 1 << 16,
    MAX_TENSORS = 1 << 16,
    MAX_NAME = 64,      /* of a tensor, by the specification */
    MAX_KEY = 256,
    MIN_VALUE_BYTES = 8 + 1 + 4 + 1,          /* the shortest key, type and value */
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8, /* the shortest tensor entry, one dimension */
    DEFAULT_ALIGNMENT = 32,
};

static const uint8_t type_sizes[N_GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2,  [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

struct reader {
    const uint8_t *data;
    size_t size, at;
    const char *path; /* for messages */
    struct error *err;
};

/* ---- Reading ---- */

static bool ends_inside(struct reader *r, const char *what)
{
    return error_set(r->err, ERR_FORMAT, NULL,
                     "%s: the GGUF file ends inside %s (at byte %zu of %zu): truncated or damaged",
                     r->path, what, r->at, r->size);
}

static bool read_bytes(struct reader *r, uint64_t n, const char *what, const uint8_t **out)
{
    if (n > r->size - r->at) return ends_inside(r, what);
    *out = r->data + r->at;
    r->at += n;
    return true;
}

static bool read_u32(struct reader *r, const char *what, uint32_t *out)
{
    const uint8_t *p = NULL;
    if (!read_bytes(r, sizeof *out, what, &p)) return false;
    memcpy(out, p, sizeof *out);
    return true;
}

static bool read_u64(struct reader *r, const char *what, uint64_t *out)
{
    const uint8_t *p = NULL;
    if (!read_bytes(r, sizeof *out, what, &p)) return false;
    memcpy(out, p, sizeof *out);
    return true;
}

static bool read_string(struct reader *r, const char *what, struct gguf_string *out)
{
    uint64_t len;
    const uint8_t *p = NULL;
    if (!read_u64(r, what, &len) || !read_bytes(r, len, what, &p)) return false;
    *out = (struct gguf_string){(const char *)p, (size_t)len};
    return true;
}

/* A key or a tensor's name: short, UTF-8, no control characters, so that it may be printed. */
static bool read_name(struct reader *r, const char *what, size_t max, struct gguf_string *out)
{
    size_t at = r->at;
    if (!read_string(r, what, out)) return false;
    bool good = out->len >= 1 && out->len <= max && utf8_valid(out->data, out->len, NULL);
    for (size_t i = 0; good && i < out->len; i++)
        good = (uint8_t)out->data[i] >= 0x20 && out->data[i] != 0x7F;
    if (good) return true;
    return error_set(r->err, ERR_FORMAT, NULL,
                     "%s: %s at byte %zu is not 1 to %zu bytes of printable UTF-8", r->path, what,
                     at, max);
}

/* ---- Values ---- */

/* An array's items; `v->item_type` and `v->count` are read here. */
static bool read_array(struct reader *r, struct gguf_value *v)
{
    uint32_t item_type;
    if (!read_u32(r, "an array", &item_type) || !read_u64(r, "an array", &v->count)) return false;
    if (item_type >= N_GGUF_TYPES || item_type == GGUF_ARRAY)
        return error_set(r->err, ERR_UNSUPPORTED, NULL, "%s: key %.*s is an array of type %u: %s",
                         r->path, (int)v->key.len, v->key.data, item_type,
                         item_type == GGUF_ARRAY ? "arrays of arrays are not supported"
                                                 : "no such type");
    v->item_type = (enum gguf_type)item_type;
    v->data = r->data + r->at;
    if (v->item_type == GGUF_STRING) {
        struct gguf_string item;
        if (v->count > (r->size - r->at) / 8) return ends_inside(r, "an array of strings");
        for (uint64_t i = 0; i < v->count; i++)
            if (!read_string(r, "an array of strings", &item)) return false;
    } else {
        size_t size = type_sizes[item_type];
        if (v->count > (r->size - r->at) / size) return ends_inside(r, "an array");
        r->at += (size_t)v->count * size;
    }
    v->size = (size_t)(r->data + r->at - v->data);
    return true;
}

static bool read_value(struct reader *r, struct gguf_value *v)
{
    uint32_t type;
    if (!read_name(r, "a key", MAX_KEY, &v->key) || !read_u32(r, "a value's type", &type))
        return false;
    if (type >= N_GGUF_TYPES)
        return error_set(r->err, ERR_FORMAT, NULL, "%s: key %.*s has the unknown value type %u",
                         r->path, (int)v->key.len, v->key.data, type);
    v->type = v->item_type = (enum gguf_type)type;
    if (v->type == GGUF_ARRAY) return read_array(r, v);
    v->count = 1;
    v->data = r->data + r->at;
    if (v->type == GGUF_STRING) {
        struct gguf_string s;
        if (!read_string(r, "a string", &s)) return false;
    } else {
        const uint8_t *p;
        if (!read_bytes(r, type_sizes[type], "a value", &p)) return false;
    }
    v->size = (size_t)(r->data + r->at - v->data);
    return true;
}

/* ---- Tensors ---- */

static bool dtype_of_ggml(uint32_t id, enum dtype *out)
{
    static const struct { uint32_t id; enum dtype dtype; } known[] = {
        {0, DTYPE_F32},   {1, DTYPE_F16},   {2, DTYPE_Q4_0},  {3, DTYPE_Q4_1},
        {6, DTYPE_Q5_0},  {7, DTYPE_Q5_1},  {8, DTYPE_Q8_0},  {12, DTYPE_Q4_K},
        {13, DTYPE_Q5_K}, {14, DTYPE_Q6_K}, {30, DTYPE_BF16},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].id != id) continue;
        *out = known[i].dtype;
        return true;
    }
    return false;
}

/* Shape and type, and from them t->size. */
static bool read_shape(struct reader *r, struct gguf_tensor *t)
{
    uint32_t n_dims, type;
    int64_t n = 1;
    if (!read_u32(r, "a tensor's shape", &n_dims)) return false;
    if (n_dims < 1 || n_dims > 4)
        return error_set(r->err, ERR_FORMAT, NULL, "%s: tensor %.*s has %u dimensions, not 1 to 4",
                         r->path, (int)t->name.len, t->name.data, n_dims);
    t->n_dims = (int32_t)n_dims;
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t dim;
        if (!read_u64(r, "a tensor's shape", &dim)) return false;
        if (dim == 0 || dim > INT64_MAX || !checked_mul(n, (int64_t)dim, &n))
            return error_set(r->err, ERR_FORMAT, NULL,
                             "%s: tensor %.*s has an impossible shape (dimension %u is %llu)",
                             r->path, (int)t->name.len, t->name.data, i, (unsigned long long)dim);
        t->dims[i] = (int64_t)dim;
    }
    if (!read_u32(r, "a tensor's type", &type)) return false;
    if (!dtype_of_ggml(type, &t->dtype))
        return error_set(r->err, ERR_UNSUPPORTED, NULL,
                         "%s: tensor %.*s has element type %u, which is not supported (F32, F16, "
                         "BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K are)",
                         r->path, (int)t->name.len, t->name.data, type);
    const struct dtype_info *info = dtype_info(t->dtype);
    if (t->dims[0] % info->block != 0)
        return error_set(r->err, ERR_FORMAT, NULL,
                         "%s: tensor %.*s has rows of %lld elements, not a multiple of %s's %d",
                         r->path, (int)t->name.len, t->name.data, (long long)t->dims[0],
                         info->name, info->block);
    if (!checked_mul(n / info->block, info->block_bytes, &t->size))
        return error_set(r->err, ERR_FORMAT, NULL, "%s: tensor %.*s is larger than any file",
                         r->path, (int)t->name.len, t->name.data);
    return true;
}

/* The entry; t->data stays unset until the data section's begin is known. */
static bool read_tensor(struct reader *r, struct gguf_tensor *t, uint64_t *offset)
{
    return read_name(r, "a tensor's name", MAX_NAME, &t->name) && read_shape(r, t) &&
           read_u64(r, "a tensor's offset", offset);
}

static bool find_alignment(const struct gguf *g, const char *path, int64_t *out, struct error *err)
{
    const struct gguf_value *v = gguf_find(g, "general.alignment");
    *out = DEFAULT_ALIGNMENT;
    if (!v) return true;
    if (gguf_get_i64(v, out) && *out >= 8 && *out <= 65536 && (*out & (*out - 1)) == 0) return true;
    return error_set(err, ERR_FORMAT, "general.alignment",
                     "%s: general.alignment must be a power of two from 8 to 65536", path);
}

/* Points every tensor at its bytes. The offsets come in file order. */
static bool place_tensors(struct reader *r, struct gguf *g, const uint64_t *offsets)
{
    int64_t alignment;
    if (!find_alignment(g, r->path, &alignment, r->err)) return false;
    int64_t begin = round_up((int64_t)r->at, alignment);
    int64_t room = (int64_t)r->size - begin;
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (offsets[i] % (uint64_t)alignment != 0)
            return error_set(r->err, ERR_FORMAT, NULL,
                             "%s: tensor %.*s lies at offset %llu, not a multiple of %lld",
                             r->path, (int)t->name.len, t->name.data,
                             (unsigned long long)offsets[i], (long long)alignment);
        if (t->size > room || offsets[i] > (uint64_t)(room - t->size))
            return error_set(r->err, ERR_FORMAT, NULL,
                             "%s: tensor %.*s (%lld bytes at offset %llu of the data) reaches past "
                             "the end of the file (%zu bytes): truncated or damaged",
                             r->path, (int)t->name.len, t->name.data, (long long)t->size,
                             (unsigned long long)offsets[i], r->size);
        t->data = r->data + begin + offsets[i];
    }
    return true;
}

/* ---- Opening ---- */

static int compare_strings(const struct gguf_string *a, const struct gguf_string *b)
{
    int order = memcmp(a->data, b->data, a->len < b->len ? a->len : b->len);
    return order ? order : (a->len > b->len) - (a->len < b->len);
}

static int compare_entries(const void *a, const void *b)
{
    return compare_strings(*(const struct gguf_string *const *)a,
                           *(const struct gguf_string *const *)b);
}

/* The names of n entries, each the first member of a struct of `stride` bytes, are distinct. */
static bool check_distinct(const void *entries, size_t n, size_t stride, const char *path,
                           const char *what, struct error *err)
{
    const struct gguf_string **names = malloc((n + 1) * sizeof *names);
    if (!names) return error_set(err, ERR_MEMORY, NULL, "%s: no memory for %zu names", path, n);
    for (size_t i = 0; i < n; i++)
        names[i] = (const struct gguf_string *)((const char *)entries + i * stride);
    qsort(names, n, sizeof *names, compare_entries);
    const struct gguf_string *twice = NULL;
    for (size_t i = 1; i < n && !twice; i++)
        if (compare_strings(names[i - 1], names[i]) == 0) twice = names[i];
    free(names);
    if (!twice) return true;
    return error_set(err, ERR_FORMAT, NULL, "%s: %s %.*s occurs twice", path, what,
                     (int)twice->len, twice->data);
}

/* Magic, version and counts. */
static bool read_head(struct reader *r, struct gguf *g, uint64_t *n_tensors, uint64_t *n_values)
{
    const uint8_t *magic = NULL;
    if (!read_bytes(r, 4, "the magic number", &magic)) return false;
    if (memcmp(magic, "GGUF", 4) != 0)
        return error_set(r->err, ERR_FORMAT, NULL,
                         "%s is not a GGUF file (it does not begin with \"GGUF\")", r->path);
    if (!read_u32(r, "the version", &g->version)) return false;
    if (g->version != 2 && g->version != 3) {
        bool swapped = g->version == 2u << 24 || g->version == 3u << 24;
        return error_set(r->err, ERR_UNSUPPORTED, NULL, "%s: %s (versions 2 and 3, little endian, "
                         "are supported)", r->path,
                         swapped ? "this GGUF file is big endian" : "unknown GGUF version");
    }
    if (!read_u64(r, "the counts", n_tensors) || !read_u64(r, "the counts", n_values)) return false;
    size_t room = r->size - r->at;
    if (*n_values > MAX_VALUES || *n_tensors > MAX_TENSORS ||
        *n_values * MIN_VALUE_BYTES + *n_tensors * MIN_TENSOR_BYTES > room)
        return error_set(r->err, ERR_FORMAT, NULL,
                         "%s: %llu keys and %llu tensors cannot fit in a GGUF file of %zu bytes "
                         "(at most %d and %d are read)", r->path, (unsigned long long)*n_values,
                         (unsigned long long)*n_tensors, r->size, MAX_VALUES, MAX_TENSORS);
    return true;
}

static bool read_values(struct reader *r, struct gguf *g, size_t n)
{
    for (; g->n_values < n; g->n_values++)
        if (!read_value(r, &g->values[g->n_values])) return false;
    return check_distinct(g->values, n, sizeof *g->values, r->path, "key", r->err);
}

static bool read_tensors(struct reader *r, struct gguf *g, size_t n)
{
    uint64_t *offsets = calloc(n + 1, sizeof *offsets);
    if (!offsets) return error_set(r->err, ERR_MEMORY, NULL, "%s: no memory", r->path);
    bool ok = true;
    for (; ok && g->n_tensors < n; g->n_tensors++)
        ok = read_tensor(r, &g->tensors[g->n_tensors], &offsets[g->n_tensors]);
    ok = ok && check_distinct(g->tensors, n, sizeof *g->tensors, r->path, "tensor", r->err) &&
         place_tensors(r, g, offsets);
    free(offsets);
    return ok;
}

static bool read_file(struct reader *r, struct gguf *g)
{
    uint64_t n_tensors, n_values;
    if (!read_head(r, g, &n_tensors, &n_values)) return false;
    g->values = calloc(n_values + 1, sizeof *g->values);
    g->tensors = calloc(n_tensors + 1, sizeof *g->tensors);
    if (!g->values || !g->tensors)
        return error_set(r->err, ERR_MEMORY, NULL, "%s: no memory for the tables", r->path);
    return read_values(r, g, n_values) && read_tensors(r, g, n_tensors);
}

bool gguf_open_bytes(const uint8_t *data, size_t size, const char *path, struct gguf **out,
                     struct error *err)
{
    struct reader r = {.data = data, .size = size, .path = path, .err = err};
    struct gguf *g = calloc(1, sizeof *g);
    if (!g) return error_set(err, ERR_MEMORY, NULL, "%s: no memory", path);
    if (!read_file(&r, g)) {
        gguf_close(g);
        return false;
    }
    *out = g;
    return true;
}

bool gguf_open(const char *path, struct gguf **out, struct error *err)
{
    struct file_map map;
    if (!file_map_open(path, &map, err)) return false;
    if (!gguf_open_bytes(map.data, map.size, path, out, err)) {
        file_map_close(&map);
        return false;
    }
    (*out)->map = map;
    return true;
}

void gguf_close(struct gguf *g)
{
    if (!g) return;
    file_map_close(&g->map);
    free(g->values);
    free(g->tensors);
    free(g);
}

/* ---- Asking ---- */

static bool string_is(const struct gguf_string *s, const char *text, size_t len)
{
    return s->len == len && memcmp(s->data, text, len) == 0;
}

const struct gguf_value *gguf_find(const struct gguf *g, const char *key)
{
    size_t len = strlen(key);
    for (size_t i = 0; i < g->n_values; i++)
        if (string_is(&g->values[i].key, key, len)) return &g->values[i];
    return NULL;
}

static bool load_i64(enum gguf_type type, const uint8_t *p, int64_t *out)
{
    union { uint8_t u8; int8_t i8; uint16_t u16; int16_t i16; uint32_t u32; int32_t i32;
            uint64_t u64; int64_t i64; } v;
    memcpy(&v, p, type_sizes[type]);
    switch (type) {
    case GGUF_U8: *out = v.u8; return true;
    case GGUF_I8: *out = v.i8; return true;
    case GGUF_U16: *out = v.u16; return true;
    case GGUF_I16: *out = v.i16; return true;
    case GGUF_U32: *out = v.u32; return true;
    case GGUF_I32: *out = v.i32; return true;
    case GGUF_I64: *out = v.i64; return true;
    case GGUF_U64:
        if (v.u64 > INT64_MAX) return false;
        *out = (int64_t)v.u64;
        return true;
    default: return false;
    }
}

static bool load_f64(enum gguf_type type, const uint8_t *p, double *out)
{
    int64_t integer;
    float f;
    if (type == GGUF_F64) {
        memcpy(out, p, sizeof *out);
    } else if (type == GGUF_F32) {
        memcpy(&f, p, sizeof f);
        *out = (double)f;
    } else {
        if (!load_i64(type, p, &integer)) return false;
        *out = (double)integer;
    }
    return true;
}

static bool is_numeric(enum gguf_type type) { return type != GGUF_STRING && type != GGUF_ARRAY; }

bool gguf_get_i64(const struct gguf_value *v, int64_t *out)
{
    return v && is_numeric(v->type) && load_i64(v->type, v->data, out);
}

bool gguf_get_f64(const struct gguf_value *v, double *out)
{
    return v && is_numeric(v->type) && load_f64(v->type, v->data, out);
}

bool gguf_get_bool(const struct gguf_value *v, bool *out)
{
    if (!v || v->type != GGUF_BOOL || v->data[0] > 1) return false;
    *out = v->data[0] == 1;
    return true;
}

bool gguf_get_string(const struct gguf_value *v, struct gguf_string *out)
{
    if (!v || v->type != GGUF_STRING) return false;
    *out = (struct gguf_string){(const char *)v->data + 8, v->size - 8};
    return true;
}

bool gguf_next_string(const struct gguf_value *v, size_t *cursor, struct gguf_string *out)
{
    if (!v || v->type != GGUF_ARRAY || v->item_type != GGUF_STRING || *cursor >= v->size)
        return false;
    uint64_t len; /* checked at open */
    memcpy(&len, v->data + *cursor, sizeof len);
    *out = (struct gguf_string){(const char *)v->data + *cursor + 8, (size_t)len};
    *cursor += 8 + (size_t)len;
    return true;
}

static const uint8_t *array_item(const struct gguf_value *v, uint64_t i)
{
    if (!v || v->type != GGUF_ARRAY || !is_numeric(v->item_type) || i >= v->count) return NULL;
    return v->data + i * type_sizes[v->item_type];
}

bool gguf_item_i64(const struct gguf_value *v, uint64_t i, int64_t *out)
{
    const uint8_t *p = array_item(v, i);
    return p && load_i64(v->item_type, p, out);
}

bool gguf_item_f64(const struct gguf_value *v, uint64_t i, double *out)
{
    const uint8_t *p = array_item(v, i);
    return p && load_f64(v->item_type, p, out);
}
