/* The weights one by one, and their random beginning: see gpt.h. */
#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "model/gpt.h"
#include "model/sampler.h"

enum { INIT_BLOCK_FLOATS = 1 << 20, INIT_ROW_UNIT = 64 };
#define INIT_STD 0.02f

/* The weights that live apart; a tied lm_head is the token embedding. */
static bool param_exists(const struct gpt_config *c, enum weight_role role)
{
    int64_t n_out, n_in;
    return weight_role_shape(c, role, &n_out, &n_in);
}

/* Whole-model weights of this config, then those of one layer. */
static int64_t count_roles(const struct gpt_config *c, bool of_layer)
{
    int64_t n = 0;
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        if (weight_role_is_layer((enum weight_role)role) == of_layer)
            n += param_exists(c, (enum weight_role)role);
    return n;
}

static enum weight_role nth_role(const struct gpt_config *c, bool of_layer, int64_t n)
{
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        if (weight_role_is_layer((enum weight_role)role) == of_layer &&
            param_exists(c, (enum weight_role)role) && n-- == 0)
            return (enum weight_role)role;
    ASSERT(!"a parameter index in range");
    return N_WEIGHT_ROLES;
}

int64_t gpt_n_params(const struct gpt *g)
{
    return count_roles(&g->config, false) + g->config.n_layer * count_roles(&g->config, true);
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
    const struct gpt_config *c = &g->config;
    int64_t whole = count_roles(c, false), per_layer = count_roles(c, true);
    ASSERT(i >= 0 && i < whole + c->n_layer * per_layer);
    struct gpt_param p = {0};
    p.layer = i < whole ? 0 : (i - whole) / per_layer;
    p.role = i < whole ? nth_role(c, false, i) : nth_role(c, true, (i - whole) % per_layer);
    struct gpt_layer *l = &g->layers[p.layer];
    p.matrix = param_matrix(g, p.role, l);
    p.vector = param_vector(g, p.role, l);
    bool exists = weight_role_shape(c, p.role, &p.n_out, &p.n_in);
    ASSERT(exists);
    return p;
}

/* ---- random weights ---- */

/* Box-Muller over counter-based words: normal number `index` of stream `key`. */
static float normal(const uint32_t key[2], int64_t index)
{
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0}, words[4];
    philox4x32(counter, key, words);
    double u = (words[0] + 1.0) / 4294967297.0; /* in (0, 1) */
    double v = words[1] / 4294967296.0;
    return (float)(sqrt(-2 * log(u)) * cos(2 * M_PI * v));
}

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

static void fill_rows(const struct gpt_config *c, const struct gpt_param *p, uint64_t seed,
                      int64_t row0, int64_t n_rows, float *rows)
{
    float std = init_std(c, p->role), constant = is_norm_weight(p->role) ? 1.0f : 0.0f;
    uint64_t stream = seed * 0x9E3779B97F4A7C15u + (uint64_t)p->role * CONFIG_MAX_LAYER +
                      (uint64_t)p->layer;
    uint32_t key[2] = {(uint32_t)stream, (uint32_t)(stream >> 32)};
    for (int64_t i = 0; i < n_rows * p->n_in; i++)
        rows[i] = std > 0 ? std * normal(key, row0 * p->n_in + i) : constant;
}

bool gpt_init(struct gpt *g, struct device *d, uint64_t seed, struct error *err)
{
    int64_t floats = max_i64(INIT_BLOCK_FLOATS, g->max_context * g->config.head_dim);
    for (int64_t i = 0; i < gpt_n_params(g); i++)
        floats = max_i64(floats, INIT_ROW_UNIT * gpt_param(g, i).n_in);
    float *rows = malloc((size_t)floats * sizeof *rows);
    if (!rows)
        return error_set(err, ERR_MEMORY, NULL, "no memory for %lld bytes of starting weights",
                         (long long)floats * (long long)sizeof *rows);
    for (int64_t i = 0; i < gpt_n_params(g); i++) {
        struct gpt_param p = gpt_param(g, i);
        int64_t step = floats / p.n_in / INIT_ROW_UNIT * INIT_ROW_UNIT;
        for (int64_t row = 0; row < p.n_out; row += step) {
            int64_t n = min_i64(step, p.n_out - row);
            fill_rows(&g->config, &p, seed, row, n, rows);
            if (p.matrix) d->ops->matrix_write(d, p.matrix, row, n, rows);
            else d->ops->upload(d, p.vector + row * p.n_in, rows, (size_t)(n * p.n_in) * 4);
        }
    }
    gpt_write_rope(g, d, rows);
    bool ok = d->ops->sync(d, err);
    free(rows);
    return ok;
}
