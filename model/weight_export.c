/* Weights on their way into a file: see weight_export.h. */
#include "model/weight_export.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/device_train.h"
#include "model/dtype_write.h"

/* A block holds some rows of the file, a strip some rows of the weight. */
enum { BLOCK_FLOATS = 512 << 10, STRIP_FLOATS = 256 << 10 };

/* ---- Sources ---- */

static bool read_checkpoint(const struct weight_source *s, enum weight_role role, int64_t layer,
                            int64_t row0, int64_t n_rows, float *dst, struct error *err)
{
    checkpoint_read_rows(s->checkpoint, role, layer, row0, n_rows, dst);
    return true;
}

struct weight_source weight_source_of_checkpoint(const struct checkpoint *ck)
{
    return (struct weight_source){
        .config = checkpoint_config(ck), .read_rows = read_checkpoint, .checkpoint = ck};
}

static int64_t param_index(enum weight_role role, int64_t layer)
{
    return (weight_role_is_layer(role) ? 1 + layer : 0) * N_WEIGHT_ROLES + role;
}

static bool read_gpt(const struct weight_source *s, enum weight_role role, int64_t layer,
                     int64_t row0, int64_t n_rows, float *dst, struct error *err)
{
    const struct gpt_param *p = &s->params[param_index(role, layer)];
    struct device *d = s->device;
    ASSERT(p->n_in > 0 && row0 >= 0 && n_rows <= p->n_out - row0);
    if (p->matrix) d->train->matrix_read(d, p->matrix, row0, n_rows, dst);
    else
        d->ops->download(d, dst, p->vector + row0 * p->n_in,
                         (size_t)(n_rows * p->n_in) * sizeof *dst);
    return d->ops->sync(d, err);
}

bool weight_source_of_gpt(struct weight_source *s, const struct gpt *g, struct device *d,
                          struct error *err)
{
    *s = (struct weight_source){.config = &g->config, .read_rows = read_gpt, .device = d};
    if (!d->train)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "device %s cannot read weights back: it only serves", d->name);
    struct gpt *view = (struct gpt *)g; /* gpt_param hands out pointers to write through; we read */
    s->params = calloc((size_t)(1 + g->config.n_layer) * N_WEIGHT_ROLES, sizeof *s->params);
    if (!s->params) return error_set(err, ERR_MEMORY, NULL, "no memory for a table of weights");
    for (int64_t i = 0; i < gpt_n_params(view); i++) {
        struct gpt_param p = gpt_param(view, i);
        s->params[param_index(p.role, p.layer)] = p;
    }
    return true;
}

void weight_source_free(struct weight_source *s)
{
    free(s->params);
    *s = (struct weight_source){0};
}

/* ---- Tensors ---- */

static enum dtype file_dtype(enum weight_role role, enum dtype matrix_dtype)
{
    bool matrix = !weight_role_is_vector(role) && role != WEIGHT_POSITION_EMBEDDING;
    return matrix ? matrix_dtype : DTYPE_F32;
}

/* Appends the tensors of one role, if the file's config has it. */
static void list_role(const struct gpt_config *has, const struct tensor_names *names,
                      const struct gpt_config *as, enum dtype matrix_dtype, enum weight_role role,
                      int64_t layer, struct export_tensor *out, int64_t *n)
{
    int64_t n_out, n_in, row0 = 0;
    bool zeros = !weight_role_shape(has, role, &n_out, &n_in);
    if (!weight_role_shape(as, role, &n_out, &n_in)) return;
    bool vector = weight_role_is_vector(role);
    int n_parts = tensor_n_parts(names, role);
    ASSERT(n_parts > 0);
    for (int i = 0; i < n_parts; i++) {
        struct export_tensor *t = &out[(*n)++];
        *t = (struct export_tensor){
            .role = role, .layer = layer, .row0 = row0, .n_cols = vector ? 1 : n_in,
            .n_rows = tensor_part_rows(as, role, i, n_parts, vector ? n_in : n_out),
            .layout = tensor_part_layout(names, role, i), .vector = vector, .zeros = zeros,
            .dtype = file_dtype(role, matrix_dtype)};
        bool named = tensor_name(names, role, i, layer, t->name);
        ASSERT(named);
        row0 += t->n_rows;
    }
}

bool export_list(const struct weight_source *source, const struct tensor_names *names,
                 const struct gpt_config *as, enum dtype matrix_dtype, struct export_tensor **out,
                 int64_t *n, struct error *err)
{
    int64_t max = (1 + as->n_layer) * N_WEIGHT_ROLES * CHECKPOINT_MAX_PARTS;
    *n = 0;
    *out = calloc((size_t)max, sizeof **out);
    if (!*out)
        return error_set(err, ERR_MEMORY, NULL, "no memory for a list of %" PRId64 " tensors", max);
    for (int64_t i = 0; i <= as->n_layer; i++)
        for (int role = 0; role < N_WEIGHT_ROLES; role++)
            if (weight_role_is_layer((enum weight_role)role) == (i > 0))
                list_role(source->config, names, as, matrix_dtype, (enum weight_role)role,
                          i > 0 ? i - 1 : 0, *out, n);
    return true;
}

/* Rows and columns as the file has them; a vector is one row. */
static void file_dims(const struct export_tensor *t, int64_t *rows, int64_t *cols)
{
    bool across = t->vector || t->layout == PART_TRANSPOSED;
    *rows = across ? t->n_cols : t->n_rows;
    *cols = across ? t->n_rows : t->n_cols;
}

int32_t export_shape(const struct export_tensor *t, int64_t dims[2])
{
    file_dims(t, &dims[0], &dims[1]);
    if (!t->vector) return 2;
    dims[0] = dims[1];
    return 1;
}

int64_t export_bytes(const struct export_tensor *t)
{
    return dtype_bytes(t->dtype, t->n_rows * t->n_cols);
}

/* ---- Reading ---- */

bool export_reader_open(struct export_reader *r, const struct weight_source *source,
                        const struct export_tensor *tensors, int64_t n, struct error *err)
{
    *r = (struct export_reader){.source = source, .tensors = tensors, .current = -1,
                                .block_floats = BLOCK_FLOATS, .strip_floats = STRIP_FLOATS};
    for (int64_t i = 0; i < n; i++) {
        int64_t rows, cols, n_out, n_in = 0;
        file_dims(&tensors[i], &rows, &cols);
        r->block_floats = max_i64(r->block_floats, cols);
        /* A strip holds a row of the whole weight, of which the tensor may be a part. */
        weight_role_shape(source->config, tensors[i].role, &n_out, &n_in);
        r->strip_floats = max_i64(r->strip_floats, n_in);
    }
    r->block = malloc((size_t)r->block_floats * sizeof *r->block);
    r->strip = malloc((size_t)r->strip_floats * sizeof *r->strip);
    if (r->block && r->strip) return true;
    export_reader_close(r);
    return error_set(err, ERR_MEMORY, NULL, "no memory for %" PRId64 " bytes of weights in transit",
                     (r->block_floats + r->strip_floats) * (int64_t)sizeof(float));
}

void export_reader_close(struct export_reader *r)
{
    free(r->block);
    free(r->strip);
    r->block = r->strip = NULL;
}

/* The model's row (rotate-half order) that is the file's row f (pairs): in a head, the file's
 * 2 i + s is the model's s K/2 + i. */
static int64_t unpaired_row(int64_t f, int64_t head_dim)
{
    int64_t k = f % head_dim;
    return f - k + k % 2 * (head_dim / 2) + k / 2;
}

static bool read_vector(struct export_reader *r, const struct export_tensor *t, struct error *err)
{
    int64_t head_dim = r->source->config->head_dim;
    if (!r->source->read_rows(r->source, t->role, t->layer, 0, 1, r->strip, err)) return false;
    for (int64_t i = 0; i < t->n_rows; i++)
        r->block[i] =
            r->strip[t->row0 + (t->layout == PART_ROPE_PAIRS ? unpaired_row(i, head_dim) : i)];
    return true;
}

/* Rows [f0, f0 + n) of a [n_cols, n_rows] tensor: columns of the weight, gathered strip by
 * strip. */
static bool read_transposed(struct export_reader *r, const struct export_tensor *t, int64_t f0,
                            int64_t n, struct error *err)
{
    int64_t step = max_i64(1, r->strip_floats / t->n_cols);
    for (int64_t row = 0; row < t->n_rows; row += step) {
        int64_t n_strip = min_i64(step, t->n_rows - row);
        if (!r->source->read_rows(r->source, t->role, t->layer, t->row0 + row, n_strip, r->strip,
                                  err))
            return false;
        for (int64_t f = 0; f < n; f++)
            for (int64_t i = 0; i < n_strip; i++)
                r->block[f * t->n_rows + row + i] = r->strip[i * t->n_cols + f0 + f];
    }
    return true;
}

/* Rows [f0, f0 + n) of the tensor as the file has it, as f32. */
static bool read_block(struct export_reader *r, const struct export_tensor *t, int64_t f0,
                       int64_t n, struct error *err)
{
    const struct weight_source *s = r->source;
    if (t->zeros) {
        int64_t rows, cols;
        file_dims(t, &rows, &cols);
        memset(r->block, 0, (size_t)(n * cols) * sizeof *r->block);
        return true;
    }
    if (t->vector) return read_vector(r, t, err);
    switch (t->layout) {
    case PART_ROWS:
        return s->read_rows(s, t->role, t->layer, t->row0 + f0, n, r->block, err);
    case PART_TRANSPOSED: return read_transposed(r, t, f0, n, err);
    case PART_ROPE_PAIRS:
        for (int64_t i = 0; i < n; i++) {
            int64_t row = t->row0 + unpaired_row(f0 + i, s->config->head_dim);
            if (!s->read_rows(s, t->role, t->layer, row, 1, r->block + i * t->n_cols, err))
                return false;
        }
        return true;
    }
    return false;
}

/* Makes the block that byte `offset` of tensor i lies in, in the file's element type. */
static bool load_block(struct export_reader *r, int64_t i, int64_t offset, struct error *err)
{
    const struct export_tensor *t = &r->tensors[i];
    int64_t rows, cols;
    file_dims(t, &rows, &cols);
    int64_t row_bytes = dtype_bytes(t->dtype, cols), f0 = offset / row_bytes;
    int64_t n = min_i64(r->block_floats / cols, rows - f0);
    r->current = -1;
    if (!read_block(r, t, f0, n, err)) return false;
    dtype_from_f32(t->dtype, r->block, n * cols, r->block);
    r->current = i;
    r->begin = f0 * row_bytes;
    r->end = r->begin + n * row_bytes;
    return true;
}

bool export_read(struct export_reader *r, int64_t i, int64_t offset, int64_t n, uint8_t *out,
                 struct error *err)
{
    while (n > 0) {
        bool here = r->current == i && offset >= r->begin && offset < r->end;
        if (!here && !load_block(r, i, offset, err)) return false;
        int64_t part = min_i64(n, r->end - offset);
        memcpy(out, (const uint8_t *)r->block + (offset - r->begin), (size_t)part);
        out += part;
        offset += part;
        n -= part;
    }
    return true;
}
