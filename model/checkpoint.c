/* Checkpoints: opening, asking, reading rows. See checkpoint.h; the layouts of files are in
 * checkpoint_hf.c and checkpoint_gguf.c. */
#include "model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/checkpoint_internal.h"
#include "model/tokenizer.h"

/* ---- Opening ---- */

static bool open_any(struct checkpoint *ck, struct error *err)
{
    if (file_is_dir(ck->path)) return checkpoint_open_hf(ck, err);
    size_t n = strlen(ck->path);
    if (n > 12 && strcmp(ck->path + n - 12, ".safetensors") == 0)
        return error_set(err, ERR_INVALID, "model",
                         "%s: give the directory that holds this file and config.json", ck->path);
    return checkpoint_open_gguf(ck, err);
}

/* The element type that holds the most elements of matrices. */
static enum dtype most_common_dtype(const struct checkpoint *ck)
{
    double elements[N_DTYPES] = {0}; /* only compared: rounding does not matter */
    enum dtype most = DTYPE_F32;
    for (int64_t i = 0; i < ck->n_tensors; i++) {
        const struct tensor_entry *t = &ck->tensors[i];
        if (!t->usable || t->n_dims != 2) continue;
        elements[t->dtype] += (double)t->dims[0] * (double)t->dims[1];
        if (elements[t->dtype] > elements[most]) most = t->dtype;
    }
    return most;
}

bool checkpoint_open(const char *path, struct checkpoint **out, struct error *err)
{
    struct checkpoint *ck = calloc(1, sizeof *ck);
    if (!ck || !(ck->path = strdup(path))) {
        free(ck);
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory", path);
    }
    if (!open_any(ck, err) || !checkpoint_note_formats(ck, err)) {
        checkpoint_close(ck);
        return false;
    }
    ck->dtype = most_common_dtype(ck);
    *out = ck;
    return true;
}

void checkpoint_close(struct checkpoint *ck)
{
    if (!ck) return;
    gguf_close(ck->gguf);
    for (int32_t i = 0; i < ck->n_shards; i++) {
        safetensors_close(ck->shards[i]);
        free(ck->shard_paths[i]);
    }
    free(ck->shards);
    free(ck->shard_paths);
    free(ck->tensors);
    free(ck->by_name);
    free(ck->weights);
    free(ck->formats);
    free(ck->path);
    free(ck);
}

/* ---- Asking ---- */

enum checkpoint_format checkpoint_format(const struct checkpoint *ck) { return ck->format; }
const char *checkpoint_path(const struct checkpoint *ck) { return ck->path; }
const struct gpt_config *checkpoint_config(const struct checkpoint *ck) { return &ck->config; }
const struct gguf *checkpoint_gguf(const struct checkpoint *ck) { return ck->gguf; }
enum dtype checkpoint_dtype(const struct checkpoint *ck) { return ck->dtype; }
const struct weight_formats *checkpoint_formats(const struct checkpoint *ck) { return ck->formats; }
int64_t checkpoint_n_tensors(const struct checkpoint *ck) { return ck->n_tensors; }

int64_t checkpoint_file_bytes(const struct checkpoint *ck)
{
    size_t bytes = ck->gguf ? ck->gguf->map.size : 0;
    for (int32_t i = 0; i < ck->n_shards; i++) bytes += ck->shards[i]->map.size;
    return (int64_t)bytes;
}

void checkpoint_tensor(const struct checkpoint *ck, int64_t i, struct checkpoint_tensor *out)
{
    ASSERT(i >= 0 && i < ck->n_tensors);
    const struct tensor_entry *t = &ck->tensors[i];
    *out = (struct checkpoint_tensor){
        .usable = t->usable, .dtype = t->dtype, .n_dims = t->n_dims, .bytes = t->size};
    snprintf(out->name, sizeof out->name, "%.*s", (int)min_i64((int64_t)t->name.len, 95),
             t->name.data);
    snprintf(out->type, sizeof out->type, "%s", t->type);
    memcpy(out->dims, t->dims, sizeof out->dims);
}

bool checkpoint_open_tokenizer(const struct checkpoint *ck, struct tokenizer **out,
                               struct error *err)
{
    return ck->gguf ? tokenizer_open_gguf(ck->gguf, out, err)
                    : tokenizer_open_dir(ck->path, out, err);
}

bool checkpoint_unchanged(const struct checkpoint *ck, struct error *err)
{
    if (ck->gguf && !file_map_unchanged(&ck->gguf->map, ck->path, err)) return false;
    for (int32_t i = 0; i < ck->n_shards; i++)
        if (!file_map_unchanged(&ck->shards[i]->map, ck->shard_paths[i], err)) return false;
    return true;
}

void checkpoint_forget(const struct checkpoint *ck)
{
    if (ck->gguf) file_map_forget(&ck->gguf->map);
    for (int32_t i = 0; i < ck->n_shards; i++) file_map_forget(&ck->shards[i]->map);
}

/* ---- Reading rows ---- */

/* Row r of a head-wise matrix in the file, for row r in the rotate-half order: the model's
 * row s K/2 + i of a head is the file's 2 i + s. */
static int64_t paired_row(int64_t r, int64_t head_dim)
{
    int64_t head = r / head_dim, k = r % head_dim, half = head_dim / 2;
    return head * head_dim + k % half * 2 + k / half;
}

/* Rows of a [n_cols, n_rows] tensor. A tile of the file is decoded along its own rows, then
 * written out along ours: neither side strides through memory an element at a time. */
static void read_transposed(const struct weight_part *p, int64_t row0, int64_t n, float *dst)
{
    enum { TILE_ROWS = 64, TILE_COLS = 16 };
    float tile[TILE_COLS][TILE_ROWS];
    int64_t item = dtype_bytes(p->dtype, 1);
    for (int64_t r = 0; r < n; r += TILE_ROWS) {
        int64_t n_r = min_i64(TILE_ROWS, n - r);
        for (int64_t c = 0; c < p->n_cols; c += TILE_COLS) {
            int64_t n_c = min_i64(TILE_COLS, p->n_cols - c);
            for (int64_t j = 0; j < n_c; j++)
                dtype_to_f32(p->dtype, p->data + ((c + j) * p->n_rows + row0 + r) * item, n_r,
                             tile[j]);
            for (int64_t i = 0; i < n_r; i++)
                for (int64_t j = 0; j < n_c; j++) dst[(r + i) * p->n_cols + c + j] = tile[j][i];
        }
    }
}

/* A vector is decoded whole: its elements may be packed in blocks. */
static void read_vector(const struct weight_part *p, int64_t head_dim, float *dst)
{
    dtype_to_f32(p->dtype, p->data, p->n_rows, dst);
    if (p->layout != PART_ROPE_PAIRS) return;
    float head[CONFIG_MAX_HEAD_DIM];
    for (int64_t r = 0; r < p->n_rows; r += head_dim) {
        memcpy(head, dst + r, (size_t)head_dim * sizeof *head);
        for (int64_t k = 0; k < head_dim; k++) dst[r + k] = head[paired_row(k, head_dim)];
    }
}

static void read_part(const struct weight_part *p, int64_t head_dim, int64_t row0, int64_t n,
                      float *dst)
{
    int64_t row_bytes;
    switch (p->layout) {
    case PART_ROWS:
        row_bytes = dtype_bytes(p->dtype, p->n_cols);
        dtype_to_f32(p->dtype, p->data + row0 * row_bytes, n * p->n_cols, dst);
        break;
    case PART_TRANSPOSED: read_transposed(p, row0, n, dst); break;
    case PART_ROPE_PAIRS:
        row_bytes = dtype_bytes(p->dtype, p->n_cols);
        for (int64_t r = 0; r < n; r++) {
            const uint8_t *src = p->data + paired_row(row0 + r, head_dim) * row_bytes;
            dtype_to_f32(p->dtype, src, p->n_cols, dst + r * p->n_cols);
        }
        break;
    }
}

/* The weight, of which rows [row0, row0 + n_rows) are asked for. */
static const struct weight *find_weight(const struct checkpoint *ck, enum weight_role role,
                                        int64_t layer, int64_t row0, int64_t n_rows)
{
    int64_t n_out, n_in;
    ASSERT(weight_role_shape(&ck->config, role, &n_out, &n_in));
    ASSERT(row0 >= 0 && n_rows >= 0 && n_rows <= n_out - row0);
    bool of_layer = weight_role_is_layer(role);
    ASSERT(!of_layer || (layer >= 0 && layer < ck->config.n_layer));
    return &ck->weights[(of_layer ? 1 + layer : 0) * N_WEIGHT_ROLES + role];
}

void checkpoint_read_rows(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                          int64_t row0, int64_t n_rows, float *dst)
{
    const struct weight *w = find_weight(ck, role, layer, row0, n_rows);
    int64_t begin = 0;
    for (int32_t i = 0; i < w->n_parts; i++) {
        const struct weight_part *p = &w->parts[i];
        if (w->vector) {
            if (n_rows == 0) return;
            read_vector(p, ck->config.head_dim, dst);
            dst += p->n_rows;
            continue;
        }
        int64_t from = max_i64(row0, begin), to = min_i64(row0 + n_rows, begin + p->n_rows);
        if (from < to)
            read_part(p, ck->config.head_dim, from - begin, to - from,
                      dst + (from - row0) * p->n_cols);
        begin += p->n_rows;
    }
}

void checkpoint_read_blocks(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                            int64_t row0, int64_t n_rows, uint8_t *dst)
{
    const struct weight *w = find_weight(ck, role, layer, row0, n_rows);
    int64_t begin = 0;
    for (int32_t i = 0; i < w->n_parts; begin += w->parts[i++].n_rows) {
        const struct weight_part *p = &w->parts[i];
        int64_t row_bytes = dtype_bytes(p->dtype, p->n_cols);
        int64_t from = max_i64(row0, begin), to = min_i64(row0 + n_rows, begin + p->n_rows);
        ASSERT(p->layout != PART_TRANSPOSED);
        for (int64_t r = from; r < to; r++, dst += row_bytes) {
            bool pairs = p->layout == PART_ROPE_PAIRS;
            int64_t row = pairs ? paired_row(r - begin, ck->config.head_dim) : r - begin;
            memcpy(dst, p->data + row * row_bytes, (size_t)row_bytes);
        }
    }
}
