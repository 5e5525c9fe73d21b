/* The weights one by one, and their random beginning: see gpt.h. */
#include <math.h>

#include "base/checked.h"
#include "model/device_train.h"
#include "model/gpt.h"
#include "model/normal.h"

enum { INIT_ROW_UNIT = 64 };
#define INIT_STD 0.02f

/* The weights that live apart; a tied lm_head is the token embedding. */
static bool param_exists(const struct gpt_config *c, enum weight_role role)
{
    int64_t n_out, n_in;
    return weight_role_shape(c, role, &n_out, &n_in);
}

struct gpt_roles gpt_roles(const struct gpt_config *c)
{
    struct gpt_roles r;
    r.n_whole = r.n_layer = 0;
    for (int i = 0; i < N_WEIGHT_ROLES; i++) {
        enum weight_role role = (enum weight_role)i;
        if (!param_exists(c, role)) continue;
        if (weight_role_is_layer(role)) r.layer[r.n_layer++] = role;
        else r.whole[r.n_whole++] = role;
    }
    return r;
}

int64_t gpt_n_params(const struct gpt *g)
{
    struct gpt_roles r = gpt_roles(&g->config);
    return r.n_whole + g->config.n_layer * r.n_layer;
}

static struct matrix *param_matrix(struct gpt *g, enum weight_role role, struct gpt_layer *l)
{
    switch (role) {
    case WEIGHT_TOKEN_EMBEDDING: return &g->wte;
    case WEIGHT_LM_HEAD: return &g->lm_head;
    case WEIGHT_QKV: return &l->qkv;
    case WEIGHT_ATTN_OUT: return &l->attn_out;
    case WEIGHT_MLP_UP: return &l->mlp_up;
    case WEIGHT_MLP_DOWN: return &l->mlp_down;
    default: return NULL;
    }
}

/* Norms are read-only to the forward pass; here they are weights like any other. */
static float *param_vector(struct gpt *g, enum weight_role role, struct gpt_layer *l)
{
    switch (role) {
    case WEIGHT_POSITION_EMBEDDING: return g->wpe;
    case WEIGHT_FINAL_NORM: return (float *)g->final_norm.weight;
    case WEIGHT_FINAL_NORM_BIAS: return (float *)g->final_norm.bias;
    case WEIGHT_LM_HEAD_BIAS: return g->lm_head_bias;
    case WEIGHT_ATTN_NORM: return (float *)l->attn_norm.weight;
    case WEIGHT_ATTN_NORM_BIAS: return (float *)l->attn_norm.bias;
    case WEIGHT_QKV_BIAS: return l->qkv_bias;
    case WEIGHT_Q_NORM: return l->q_norm;
    case WEIGHT_K_NORM: return l->k_norm;
    case WEIGHT_ATTN_OUT_BIAS: return l->attn_out_bias;
    case WEIGHT_MLP_NORM: return (float *)l->mlp_norm.weight;
    case WEIGHT_MLP_NORM_BIAS: return (float *)l->mlp_norm.bias;
    case WEIGHT_MLP_UP_BIAS: return l->mlp_up_bias;
    case WEIGHT_MLP_DOWN_BIAS: return l->mlp_down_bias;
    default: return NULL;
    }
}

struct gpt_param gpt_param(struct gpt *g, int64_t i)
{
    struct gpt_roles r = gpt_roles(&g->config);
    return gpt_param_of(g, &r, i);
}

struct gpt_param gpt_param_of(struct gpt *g, const struct gpt_roles *r, int64_t i)
{
    const struct gpt_config *c = &g->config;
    ASSERT(i >= 0 && i < r->n_whole + c->n_layer * r->n_layer);
    struct gpt_param p = {0};
    p.layer = i < r->n_whole ? 0 : (i - r->n_whole) / r->n_layer;
    p.role = i < r->n_whole ? r->whole[i] : r->layer[(i - r->n_whole) % r->n_layer];
    struct gpt_layer *l = &g->layers[p.layer];
    p.matrix = param_matrix(g, p.role, l);
    p.vector = param_vector(g, p.role, l);
    bool exists = weight_role_shape(c, p.role, &p.n_out, &p.n_in);
    ASSERT(exists);
    return p;
}

/* ---- random weights ---- */

/* Standard deviation of a weight's start; 0 means constant. */
static float init_std(const struct gpt_config *c, enum weight_role role)
{
    switch (role) {
    case WEIGHT_TOKEN_EMBEDDING:
    case WEIGHT_POSITION_EMBEDDING:
    case WEIGHT_LM_HEAD:
    case WEIGHT_QKV:
    case WEIGHT_MLP_UP: return INIT_STD;
    case WEIGHT_ATTN_OUT:
    case WEIGHT_MLP_DOWN: return INIT_STD / sqrtf(2.0f * (float)c->n_layer);
    default: return 0;
    }
}

static bool is_norm_weight(enum weight_role role)
{
    return role == WEIGHT_FINAL_NORM || role == WEIGHT_ATTN_NORM || role == WEIGHT_MLP_NORM ||
           role == WEIGHT_Q_NORM || role == WEIGHT_K_NORM;
}

/* The rows as they start, to host memory. Each weight has a stream of its own. */
static void fill_rows(struct device *d, const struct gpt_config *c, const struct gpt_param *p,
                      uint64_t seed, int64_t row0, int64_t n_rows, float *rows)
{
    float std = init_std(c, p->role), constant = is_norm_weight(p->role) ? 1.0f : 0.0f;
    uint64_t stream = seed * 0x9E3779B97F4A7C15u + (uint64_t)p->role * CONFIG_MAX_LAYER +
                      (uint64_t)p->layer;
    uint32_t key[2] = {(uint32_t)stream, (uint32_t)(stream >> 32)};
    int64_t n = n_rows * p->n_in, first = row0 * p->n_in;
    if (std == 0)
        for (int64_t i = 0; i < n; i++) rows[i] = constant;
    else if (d->train && d->train->normal)
        d->train->normal(d, rows, n, key, first, std);
    else
        normal_fill(rows, n, key, first, std);
}

bool gpt_init(struct gpt *g, struct device *d, uint64_t seed, float *staging, struct error *err)
{
    int64_t floats = gpt_load_staging_bytes(g) / (int64_t)sizeof *staging;
    for (int64_t i = 0; i < gpt_n_params(g); i++) {
        struct gpt_param p = gpt_param(g, i);
        /* matrix_write takes multiples of the unit, or what is left. */
        int64_t fit = floats / p.n_in;
        int64_t step = fit >= p.n_out ? p.n_out : fit / INIT_ROW_UNIT * INIT_ROW_UNIT;
        ASSERT(step > 0);
        for (int64_t row = 0; row < p.n_out; row += step) {
            int64_t n = min_i64(step, p.n_out - row);
            fill_rows(d, &g->config, &p, seed, row, n, staging);
            if (p.matrix) d->ops->matrix_write(d, p.matrix, row, n, staging);
            else if (!gpt_upload(d, p.vector + row * p.n_in, staging, n * p.n_in, err))
                return false;
        }
    }
    return gpt_write_rope(g, d, staging, err) && d->ops->sync(d, err);
}
