/* In which types a checkpoint's matrices lie: see checkpoint.h. */
#include <stdlib.h>

#include "model/checkpoint_internal.h"

static bool is_quantized(const struct weight *w)
{
    for (int32_t i = 0; i < w->n_parts; i++)
        if (dtype_info(w->parts[i].dtype)->block == 1) return false;
    return w->n_parts > 0 && !w->vector;
}

bool checkpoint_note_formats(struct checkpoint *ck, struct error *err)
{
    int64_t n = 1 + ck->config.n_layer;
    bool any = false;
    for (int64_t i = 0; i < n * N_WEIGHT_ROLES && !any; i++) any = is_quantized(&ck->weights[i]);
    if (!any) return true;
    ck->formats = calloc((size_t)n, sizeof *ck->formats);
    if (!ck->formats) return error_set(err, ERR_MEMORY, NULL, "%s: no memory", ck->path);
    for (int64_t i = 0; i < n; i++) {
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            const struct weight *w = &ck->weights[i * N_WEIGHT_ROLES + role];
            if (!is_quantized(w) || role == WEIGHT_POSITION_EMBEDDING) continue;
            ck->formats[i].n_parts[role] = (uint8_t)w->n_parts;
            for (int32_t p = 0; p < w->n_parts; p++)
                ck->formats[i].parts[role][p] = (uint8_t)w->parts[p].dtype;
        }
    }
    return true;
}

int32_t weight_formats_rows(const struct weight_formats *f, const struct gpt_config *c,
                            enum weight_role role, int64_t layer,
                            struct weight_rows out[CHECKPOINT_MAX_PARTS])
{
    int64_t n_out, n_in;
    const struct weight_formats *at = &f[weight_role_is_layer(role) ? 1 + layer : 0];
    int32_t n_parts = at->n_parts[role], n = 0;
    if (!weight_role_shape(c, role, &n_out, &n_in)) return 0;
    for (int32_t i = 0; i < n_parts; i++) {
        enum dtype dtype = (enum dtype)at->parts[role][i];
        int64_t rows = tensor_part_rows(c, role, i, n_parts, n_out);
        if (n > 0 && out[n - 1].dtype == dtype) out[n - 1].n_rows += rows;
        else out[n++] = (struct weight_rows){dtype, rows};
    }
    return n;
}

enum dtype weight_formats_main(const struct weight_formats *f, const struct gpt_config *c)
{
    double elements[N_DTYPES] = {0}; /* only compared: rounding does not matter */
    enum dtype most = DTYPE_F32;
    for (int64_t layer = 0; layer < c->n_layer; layer++)
        for (int role = 0; role < N_WEIGHT_ROLES; role++) {
            struct weight_rows rows[CHECKPOINT_MAX_PARTS];
            int64_t n_out, n_in;
            if ((layer > 0 && !weight_role_is_layer(role)) ||
                !weight_role_shape(c, role, &n_out, &n_in))
                continue;
            int32_t n = weight_formats_rows(f, c, role, layer, rows);
            for (int32_t i = 0; i < n; i++) {
                double *sum = &elements[rows[i].dtype];
                *sum += (double)rows[i].n_rows * (double)n_in;
                if (*sum > elements[most]) most = rows[i].dtype;
            }
        }
    return most;
}
