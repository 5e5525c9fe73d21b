/* From tensors to weights: the table of all tensors by name, and the binding of each weight role to
 * the one to three tensors that hold it. Names and layouts come in as a struct tensor_names. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/checkpoint_internal.h"

enum { SHAPE_BYTES = 128 };

/* ---- The table ---- */

static void list_gguf(struct checkpoint *ck)
{
    for (size_t i = 0; i < ck->gguf->n_tensors; i++) {
        const struct gguf_tensor *g = &ck->gguf->tensors[i];
        struct tensor_entry *t = &ck->tensors[ck->n_tensors++];
        *t = (struct tensor_entry){
            .name = g->name, .file = ck->path, .type = dtype_info(g->dtype)->name, .usable = true,
            .dtype = g->dtype, .n_dims = g->n_dims, .data = g->data, .size = g->size};
        for (int32_t d = 0; d < g->n_dims; d++) t->dims[d] = g->dims[g->n_dims - 1 - d];
    }
}

static void list_shard(struct checkpoint *ck, int32_t shard)
{
    for (size_t i = 0; i < ck->shards[shard]->n_tensors; i++) {
        const struct safetensors_tensor *s = &ck->shards[shard]->tensors[i];
        struct tensor_entry *t = &ck->tensors[ck->n_tensors++];
        *t = (struct tensor_entry){
            .name = {s->name, strlen(s->name)}, .file = ck->shard_paths[shard], .type = s->type,
            .usable = s->usable, .dtype = s->dtype, .n_dims = s->n_dims, .data = s->data,
            .size = s->size};
        memcpy(t->dims, s->dims, sizeof t->dims);
    }
}

static int compare_names(struct gguf_string a, struct gguf_string b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_entries(const void *a, const void *b)
{
    const struct tensor_entry *const *x = a, *const *y = b;
    return compare_names((*x)->name, (*y)->name);
}

static int compare_key(const void *key, const void *entry)
{
    return compare_names(*(const struct gguf_string *)key,
                         (*(struct tensor_entry *const *)entry)->name);
}

bool checkpoint_list_tensors(struct checkpoint *ck, struct error *err)
{
    size_t n = ck->gguf ? ck->gguf->n_tensors : 0;
    for (int32_t i = 0; i < ck->n_shards; i++) n += ck->shards[i]->n_tensors;
    ck->tensors = calloc(n + 1, sizeof *ck->tensors);
    ck->by_name = calloc(n + 1, sizeof *ck->by_name);
    if (!ck->tensors || !ck->by_name)
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory for %zu tensors", ck->path, n);
    if (ck->gguf) list_gguf(ck);
    for (int32_t i = 0; i < ck->n_shards; i++) list_shard(ck, i);
    for (size_t i = 0; i < n; i++) ck->by_name[i] = &ck->tensors[i];
    qsort(ck->by_name, n, sizeof *ck->by_name, compare_entries);
    for (size_t i = 1; i < n; i++)
        if (compare_entries(&ck->by_name[i - 1], &ck->by_name[i]) == 0)
            return error_set(err, ERR_FORMAT, NULL, "%s: tensor %.*s is in two files", ck->path,
                             (int)ck->by_name[i]->name.len, ck->by_name[i]->name.data);
    return true;
}

struct tensor_entry *checkpoint_find(const struct checkpoint *ck, const char *name)
{
    struct gguf_string key = {name, strlen(name)};
    struct tensor_entry **found =
        bsearch(&key, ck->by_name, (size_t)ck->n_tensors, sizeof *ck->by_name, compare_key);
    return found ? *found : NULL;
}

/* ---- What is there ---- */

bool checkpoint_has(const struct checkpoint *ck, const struct tensor_names *names,
                    enum weight_role role)
{
    char name[TENSOR_NAME_BYTES];
    return tensor_name(names, role, 0, 0, name) && checkpoint_find(ck, name) != NULL;
}

void checkpoint_switches_by_presence(struct checkpoint *ck, const struct tensor_names *names)
{
    struct gpt_config *c = &ck->config;
    c->bias_qkv = checkpoint_has(ck, names, WEIGHT_QKV_BIAS);
    c->bias_attn_out = checkpoint_has(ck, names, WEIGHT_ATTN_OUT_BIAS);
    c->bias_mlp = checkpoint_has(ck, names, WEIGHT_MLP_UP_BIAS);
    c->bias_norm = checkpoint_has(ck, names, WEIGHT_ATTN_NORM_BIAS);
    c->bias_lm_head = checkpoint_has(ck, names, WEIGHT_LM_HEAD_BIAS);
}

/* ---- Binding ---- */

static void format_shape(const int64_t *dims, int32_t n_dims, char out[SHAPE_BYTES])
{
    int n = snprintf(out, SHAPE_BYTES, "[");
    for (int32_t i = 0; i < n_dims && n < SHAPE_BYTES - 24; i++)
        n += snprintf(out + n, (size_t)(SHAPE_BYTES - n), "%s%" PRId64, i ? ", " : "", dims[i]);
    snprintf(out + n, (size_t)(SHAPE_BYTES - n), "]");
}

static bool check_shape(const struct tensor_entry *t, const int64_t *dims, int32_t n_dims,
                        struct error *err)
{
    bool same = t->n_dims == n_dims;
    for (int32_t i = 0; same && i < n_dims; i++) same = t->dims[i] == dims[i];
    if (same) return true;
    char found[SHAPE_BYTES], expected[SHAPE_BYTES];
    format_shape(t->dims, t->n_dims, found);
    format_shape(dims, n_dims, expected);
    return error_set(err, ERR_FORMAT, NULL,
                     "%s: tensor %.*s has shape %s, but the config calls for %s", t->file,
                     (int)t->name.len, t->name.data, found, expected);
}

static bool bind_part(struct checkpoint *ck, const char *name, struct weight_part *p, bool vector,
                      struct error *err)
{
    struct tensor_entry *t = checkpoint_find(ck, name);
    if (!t)
        return error_set(err, ERR_FORMAT, NULL, "%s: the weights lack tensor %s", ck->path, name);
    if (!t->usable)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: tensor %s has element type %s; F32, F16 and BF16 are supported",
                         t->file, name, t->type);
    bool transposed = p->layout == PART_TRANSPOSED;
    int64_t dims[2] = {transposed ? p->n_cols : p->n_rows, transposed ? p->n_rows : p->n_cols};
    if (!check_shape(t, dims, vector ? 1 : 2, err)) return false;
    t->used = true;
    p->data = t->data;
    p->dtype = t->dtype;
    return true;
}

static bool bind_role(struct checkpoint *ck, const struct tensor_names *names,
                      enum weight_role role, int64_t layer, struct weight *w, struct error *err)
{
    char name[TENSOR_NAME_BYTES];
    int64_t n_out, n_in;
    if (!weight_role_shape(&ck->config, role, &n_out, &n_in)) return true;
    w->vector = weight_role_is_vector(role);
    int n_parts = tensor_n_parts(names, role);
    if (n_parts == 0)
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: the config calls for %s, which %s files do not have", ck->path,
                         weight_role_name(role), ck->config.arch);
    for (int i = 0; i < n_parts && tensor_name(names, role, i, layer, name); i++) {
        struct weight_part *p = &w->parts[i];
        p->n_rows = tensor_part_rows(&ck->config, role, i, n_parts, w->vector ? n_in : n_out);
        p->n_cols = w->vector ? 1 : n_in;
        p->layout = tensor_part_layout(names, role, i);
        if (!bind_part(ck, name, p, w->vector, err)) return false;
    }
    w->n_parts = n_parts;
    return true;
}

static bool is_needless(const struct tensor_entry *t, const struct tensor_names *names)
{
    for (const char *const *s = names->needless; s && *s; s++) {
        size_t n = strlen(*s);
        if (t->name.len >= n && memcmp(t->name.data + t->name.len - n, *s, n) == 0) return true;
    }
    return false;
}

/* A tensor that the forward pass would not use means that we would compute something else than the
 * model's authors do: refuse it, unless it is known to be needless. */
static bool check_leftover(const struct checkpoint *ck, const struct tensor_names *names,
                           struct error *err)
{
    char shape[SHAPE_BYTES];
    for (int64_t i = 0; i < ck->n_tensors; i++) {
        const struct tensor_entry *t = &ck->tensors[i];
        if (t->used || is_needless(t, names)) continue;
        format_shape(t->dims, t->n_dims, shape);
        return error_set(err, ERR_UNSUPPORTED, NULL,
                         "%s: tensor %.*s %s has no place in a %s model of this config", t->file,
                         (int)t->name.len, t->name.data, shape, ck->config.arch);
    }
    return true;
}

bool checkpoint_bind(struct checkpoint *ck, const struct tensor_names *names, struct error *err)
{
    int64_t n_layer = ck->config.n_layer;
    /* Before the table is allocated: every layer has at least its attention norm. */
    if (n_layer > ck->n_tensors)
        return error_set(err, ERR_FORMAT, "n_layer",
                         "%s: %" PRId64 " layers cannot lie in %" PRId64 " tensors", ck->path,
                         n_layer, ck->n_tensors);
    ck->weights = calloc((size_t)(1 + n_layer) * N_WEIGHT_ROLES, sizeof *ck->weights);
    if (!ck->weights) return error_set(err, ERR_MEMORY, NULL, "%s: no memory", ck->path);
    for (int64_t i = 0; i <= n_layer; i++) {
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            struct weight *w = &ck->weights[i * N_WEIGHT_ROLES + role];
            if (weight_role_is_layer(role) == (i > 0) &&
                !bind_role(ck, names, role, i - 1, w, err))
                return false;
        }
    }
    return check_leftover(ck, names, err);
}
