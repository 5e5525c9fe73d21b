/* The GPT: layout, loading and the forward pass. See gpt.h.
 *
 * The forward pass follows Radford et al. 2019 (pre-norm decoder) with the switches of
 * model/config.h: RoPE (Su et al. 2021), RMSNorm (Zhang & Sennrich 2019), SwiGLU (Shazeer 2020),
 * grouped queries (Ainslie et al. 2023). */
#include "model/gpt.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"

/* Rows are read and packed in blocks of about this many floats. */
enum { LOAD_BLOCK_FLOATS = 1 << 20, LOAD_ROW_UNIT = 64 };

static int64_t qkv_width(const struct gpt_config *c)
{
    return (c->n_head + 2 * c->n_kv_head) * c->head_dim;
}

/* ---- layout ---- */

static struct matrix take_matrix(const struct gpt *g, const struct device *d, struct plan *plan,
                                 enum weight_role role)
{
    struct matrix m = {.dtype = g->dtype};
    bool exists = weight_role_shape(&g->config, role, &m.n_out, &m.n_in);
    ASSERT(exists);
    m.data = plan_take(plan, MEMORY_WEIGHTS, d->ops->matrix_bytes(d, m.dtype, m.n_out, m.n_in), 1);
    return m;
}

/* A vector that a model of this config may do without: NULL then. */
static float *take_vector(const struct gpt *g, struct plan *plan, enum weight_role role)
{
    int64_t n_out, n_in;
    if (!weight_role_shape(&g->config, role, &n_out, &n_in)) return NULL;
    return plan_take(plan, MEMORY_WEIGHTS, n_out * n_in, sizeof(float));
}

static struct norm take_norm(const struct gpt *g, struct plan *plan, enum weight_role weight,
                             enum weight_role bias)
{
    return (struct norm){
        .weight = take_vector(g, plan, weight),
        .bias = take_vector(g, plan, bias),
        .eps = g->config.norm_eps,
        .rms = g->config.norm_type == NORM_RMSNORM,
    };
}

static void layer_layout(struct gpt_layer *l, const struct gpt *g, const struct device *d,
                         struct plan *plan)
{
    l->attn_norm = take_norm(g, plan, WEIGHT_ATTN_NORM, WEIGHT_ATTN_NORM_BIAS);
    l->qkv = take_matrix(g, d, plan, WEIGHT_QKV);
    l->qkv_bias = take_vector(g, plan, WEIGHT_QKV_BIAS);
    l->q_norm = take_vector(g, plan, WEIGHT_Q_NORM);
    l->k_norm = take_vector(g, plan, WEIGHT_K_NORM);
    l->attn_out = take_matrix(g, d, plan, WEIGHT_ATTN_OUT);
    l->attn_out_bias = take_vector(g, plan, WEIGHT_ATTN_OUT_BIAS);
    l->mlp_norm = take_norm(g, plan, WEIGHT_MLP_NORM, WEIGHT_MLP_NORM_BIAS);
    l->mlp_up = take_matrix(g, d, plan, WEIGHT_MLP_UP);
    l->mlp_up_bias = take_vector(g, plan, WEIGHT_MLP_UP_BIAS);
    l->mlp_down = take_matrix(g, d, plan, WEIGHT_MLP_DOWN);
    l->mlp_down_bias = take_vector(g, plan, WEIGHT_MLP_DOWN_BIAS);
}

void gpt_layout(struct gpt *g, const struct device *d, struct plan *plan)
{
    const struct gpt_config *c = &g->config;
    ASSERT(g->max_context > 0 && g->max_context <= c->block_size);
    g->wte = take_matrix(g, d, plan, WEIGHT_TOKEN_EMBEDDING);
    g->wpe = take_vector(g, plan, WEIGHT_POSITION_EMBEDDING);
    g->rope = NULL;
    if (c->pos_encoding == POS_ROPE)
        g->rope = plan_take(plan, MEMORY_WEIGHTS, g->max_context * c->head_dim, sizeof(float));
    for (int64_t i = 0; i < c->n_layer; i++) layer_layout(&g->layers[i], g, d, plan);
    g->final_norm = take_norm(g, plan, WEIGHT_FINAL_NORM, WEIGHT_FINAL_NORM_BIAS);
    g->lm_head = c->tie_weights ? g->wte : take_matrix(g, d, plan, WEIGHT_LM_HEAD);
    g->lm_head_bias = take_vector(g, plan, WEIGHT_LM_HEAD_BIAS);
}

static struct tensor take_tensor(struct plan *plan, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct tensor){
        .data = plan_take(plan, MEMORY_ACTIVATIONS, rows * cols, dtype_bytes(dtype, 1)),
        .dtype = dtype,
        .rows = rows,
        .cols = cols,
    };
}

void gpt_state_layout(struct gpt_state *s, const struct gpt *g, int64_t max_rows,
                      int64_t max_logit_rows, struct plan *plan)
{
    const struct gpt_config *c = &g->config;
    enum dtype act = g->dtype;
    s->max_rows = max_rows;
    s->max_logit_rows = max_logit_rows;
    s->x = take_tensor(plan, DTYPE_F32, max_rows, c->n_embd);
    s->h = take_tensor(plan, act, max_rows, c->n_embd);
    s->qkv = take_tensor(plan, DTYPE_F32, max_rows, qkv_width(c));
    s->attn = take_tensor(plan, act, max_rows, c->n_head * c->head_dim);
    if (c->mlp_type == MLP_SWIGLU) {
        s->up = take_tensor(plan, DTYPE_F32, max_rows, 2 * c->n_ff);
        s->mlp = take_tensor(plan, act, max_rows, c->n_ff);
    } else {
        s->up = take_tensor(plan, act, max_rows, c->n_ff);
        s->mlp = s->up;
    }
    s->out_x = take_tensor(plan, DTYPE_F32, max_logit_rows, c->n_embd);
    s->out_h = take_tensor(plan, act, max_logit_rows, c->n_embd);
    s->logits = take_tensor(plan, DTYPE_F32, max_logit_rows, c->vocab_size);
}

/* ---- loading ---- */

static int64_t load_block_rows(int64_t n_in)
{
    return max_i64(LOAD_ROW_UNIT, LOAD_BLOCK_FLOATS / n_in / LOAD_ROW_UNIT * LOAD_ROW_UNIT);
}

/* Floats of staging that `role` needs, 0 when the model has no such weight. */
static int64_t role_staging(const struct gpt_config *c, enum weight_role role)
{
    int64_t n_out, n_in;
    if (!weight_role_shape(c, role, &n_out, &n_in)) return 0;
    return min_i64(load_block_rows(n_in), n_out) * n_in;
}

int64_t gpt_load_staging_bytes(const struct gpt *g)
{
    int64_t floats = g->config.pos_encoding == POS_ROPE ? g->max_context * g->config.head_dim : 0;
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        floats = max_i64(floats, role_staging(&g->config, (enum weight_role)role));
    return floats * (int64_t)sizeof(float);
}

/* What loading carries along: where from, where to, and the staging rows between. */
struct load {
    struct device *d;
    const struct checkpoint *ck;
    float *staging;
};

static void load_matrix(const struct load *load, struct matrix *m, enum weight_role role,
                        int64_t layer)
{
    int64_t step = load_block_rows(m->n_in);
    for (int64_t row = 0; row < m->n_out; row += step) {
        int64_t n = min_i64(step, m->n_out - row);
        checkpoint_read_rows(load->ck, role, layer, row, n, load->staging);
        load->d->ops->matrix_write(load->d, m, row, n, load->staging);
    }
}

/* A weight kept as plain f32 rows; nothing when the model has none. */
static void load_vector(const struct load *load, const float *at, enum weight_role role,
                        int64_t layer)
{
    if (!at) return;
    int64_t n_out, n_in;
    bool exists = weight_role_shape(checkpoint_config(load->ck), role, &n_out, &n_in);
    ASSERT(exists);
    int64_t step = load_block_rows(n_in);
    for (int64_t row = 0; row < n_out; row += step) {
        int64_t n = min_i64(step, n_out - row);
        checkpoint_read_rows(load->ck, role, layer, row, n, load->staging);
        load->d->ops->upload(load->d, (float *)at + row * n_in, load->staging,
                             (size_t)(n * n_in) * sizeof(float));
    }
}

static void load_layer(const struct load *load, struct gpt_layer *l, int64_t i)
{
    load_vector(load, l->attn_norm.weight, WEIGHT_ATTN_NORM, i);
    load_vector(load, l->attn_norm.bias, WEIGHT_ATTN_NORM_BIAS, i);
    load_matrix(load, &l->qkv, WEIGHT_QKV, i);
    load_vector(load, l->qkv_bias, WEIGHT_QKV_BIAS, i);
    load_vector(load, l->q_norm, WEIGHT_Q_NORM, i);
    load_vector(load, l->k_norm, WEIGHT_K_NORM, i);
    load_matrix(load, &l->attn_out, WEIGHT_ATTN_OUT, i);
    load_vector(load, l->attn_out_bias, WEIGHT_ATTN_OUT_BIAS, i);
    load_vector(load, l->mlp_norm.weight, WEIGHT_MLP_NORM, i);
    load_vector(load, l->mlp_norm.bias, WEIGHT_MLP_NORM_BIAS, i);
    load_matrix(load, &l->mlp_up, WEIGHT_MLP_UP, i);
    load_vector(load, l->mlp_up_bias, WEIGHT_MLP_UP_BIAS, i);
    load_matrix(load, &l->mlp_down, WEIGHT_MLP_DOWN, i);
    load_vector(load, l->mlp_down_bias, WEIGHT_MLP_DOWN_BIAS, i);
}

/* The inverse frequency of rotation pair i, scaled as the config says (linear: Chen et al. 2023;
 * llama3: Llama 3.1's piecewise rule over wavelengths). In f32, as models were trained. */
static float rope_inverse_frequency(const struct gpt_config *c, int64_t i)
{
    float f = 1.0f / powf(c->rope_theta, (float)(2 * i) / (float)c->head_dim);
    if (c->rope_scaling == ROPE_SCALING_LINEAR) return f / c->rope_factor;
    if (c->rope_scaling != ROPE_SCALING_LLAMA3) return f;
    float wavelength = 2.0f * (float)M_PI / f;
    float context = (float)c->rope_original_context;
    if (wavelength < context / c->rope_high_freq) return f;
    if (wavelength > context / c->rope_low_freq) return f / c->rope_factor;
    float smooth = (context / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return (1.0f - smooth) * f / c->rope_factor + smooth * f;
}

/* [max_context, K/2, 2]: cos and sin of every position's angles. */
static void load_rope(const struct load *load, const struct gpt *g)
{
    const struct gpt_config *c = &g->config;
    int64_t half = c->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float f = rope_inverse_frequency(c, i);
        for (int64_t pos = 0; pos < g->max_context; pos++) {
            double angle = (float)pos * f;
            load->staging[(pos * half + i) * 2] = (float)cos(angle);
            load->staging[(pos * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
    load->d->ops->upload(load->d, g->rope, load->staging,
                         (size_t)(g->max_context * c->head_dim) * sizeof(float));
}

bool gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, struct error *err)
{
    int64_t bytes = gpt_load_staging_bytes(g);
    struct load load = {.d = d, .ck = ck, .staging = malloc((size_t)bytes)};
    if (!load.staging)
        return error_set(err, ERR_MEMORY, NULL, "loading %s: no memory for %lld bytes of staging",
                         checkpoint_path(ck), (long long)bytes);
    load_matrix(&load, &g->wte, WEIGHT_TOKEN_EMBEDDING, 0);
    load_vector(&load, g->wpe, WEIGHT_POSITION_EMBEDDING, 0);
    if (g->rope) load_rope(&load, g);
    for (int64_t i = 0; i < g->config.n_layer; i++) load_layer(&load, &g->layers[i], i);
    load_vector(&load, g->final_norm.weight, WEIGHT_FINAL_NORM, 0);
    load_vector(&load, g->final_norm.bias, WEIGHT_FINAL_NORM_BIAS, 0);
    if (!g->config.tie_weights) load_matrix(&load, &g->lm_head, WEIGHT_LM_HEAD, 0);
    load_vector(&load, g->lm_head_bias, WEIGHT_LM_HEAD_BIAS, 0);
    bool ok = d->ops->sync(d, err); /* before the staging goes: uploads may still read it */
    free(load.staging);
    return ok;
}

/* ---- the forward pass ---- */

static void see(const struct gpt_observer *o, const char *name, int64_t layer, struct tensor t)
{
    if (o) o->see(o->ctx, name, (int32_t)layer, t);
}

static struct tensor first_rows(struct tensor t, int64_t rows)
{
    t.rows = rows;
    return t;
}

static enum epilogue mlp_epilogue(enum mlp_type type)
{
    switch (type) {
    case MLP_GELU_TANH: return EPILOGUE_GELU_TANH;
    case MLP_GELU_EXACT: return EPILOGUE_GELU_EXACT;
    case MLP_SWIGLU: return EPILOGUE_NONE;
    }
    ASSERT(!"mlp_type");
    return EPILOGUE_NONE;
}

void gpt_forward(const struct gpt *g, struct gpt_state *s, struct device *d, const struct batch *b,
                 const struct kv_cache *kv, const int32_t *out_rows, int32_t n_out,
                 const struct gpt_observer *observer)
{
    const struct gpt_config *c = &g->config;
    const struct device_ops *ops = d->ops;
    int64_t n = b->n_rows;
    ASSERT(n > 0 && n <= s->max_rows && n_out >= 0 && n_out <= s->max_logit_rows);

    struct tensor x = first_rows(s->x, n);       /* [R, C] */
    struct tensor h = first_rows(s->h, n);       /* [R, C] */
    struct tensor qkv = first_rows(s->qkv, n);   /* [R, (H + 2G) K] */
    struct tensor attn = first_rows(s->attn, n); /* [R, H K] */
    struct tensor up = first_rows(s->up, n);     /* [R, F] or [R, 2F] */
    struct tensor mlp = first_rows(s->mlp, n);   /* [R, F] */
    struct attention a = {
        .n_head = (int32_t)c->n_head,
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .rope = g->rope,
        .qk_norm_eps = c->norm_eps,
    };

    ops->embed(d, x, b, &g->wte, g->wpe);
    see(observer, "embed", -1, x);

    for (int32_t i = 0; i < (int32_t)c->n_layer; i++) {
        const struct gpt_layer *l = &g->layers[i];
        a.q_norm = l->q_norm;
        a.k_norm = l->k_norm;

        ops->norm(d, h, x, &l->attn_norm);
        see(observer, "attn_norm", i, h);
        ops->matmul(d, qkv, h, &l->qkv, l->qkv_bias, EPILOGUE_NONE);
        see(observer, "qkv", i, qkv);
        ops->kv_write(d, qkv, b, &a, kv, i);
        see(observer, "qkv_rotated", i, qkv);
        ops->attention(d, attn, qkv, b, &a, kv, i);
        see(observer, "attn", i, attn);
        ops->matmul(d, x, attn, &l->attn_out, l->attn_out_bias, EPILOGUE_ADD);
        see(observer, "attn_resid", i, x);

        ops->norm(d, h, x, &l->mlp_norm);
        see(observer, "mlp_norm", i, h);
        ops->matmul(d, up, h, &l->mlp_up, l->mlp_up_bias, mlp_epilogue(c->mlp_type));
        see(observer, "mlp_up", i, up);
        if (c->mlp_type == MLP_SWIGLU) ops->swiglu(d, mlp, up);
        see(observer, "mlp_act", i, mlp);
        ops->matmul(d, x, mlp, &l->mlp_down, l->mlp_down_bias, EPILOGUE_ADD);
        see(observer, "mlp_resid", i, x);
    }

    if (n_out == 0) return;
    struct tensor out_x = first_rows(s->out_x, n_out);
    struct tensor out_h = first_rows(s->out_h, n_out);
    struct tensor logits = first_rows(s->logits, n_out);
    ops->gather(d, out_x, x, out_rows);
    see(observer, "out_rows", -1, out_x);
    ops->norm(d, out_h, out_x, &g->final_norm);
    see(observer, "final_norm", -1, out_h);
    ops->matmul(d, logits, out_h, &g->lm_head, g->lm_head_bias, EPILOGUE_NONE);
    see(observer, "logits", -1, logits);
}
