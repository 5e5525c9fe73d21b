/* The GPT: layout, loading and the forward pass. See gpt.h.
 *
 * The forward pass follows Radford et al. 2019 (pre-norm decoder) with the switches of
 * model/config.h: RoPE (Su et al. 2021), RMSNorm (Zhang & Sennrich 2019), SwiGLU (Shazeer 2020),
 * grouped queries (Ainslie et al. 2023). */
#include "model/gpt.h"

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "model/device_train.h"

/* Rows are read and packed in blocks of about this many floats. */
enum { LOAD_BLOCK_FLOATS = 1 << 18, LOAD_ROW_UNIT = 64 };

static int64_t qkv_width(const struct gpt_config *c)
{
    return (c->n_head + 2 * c->n_kv_head) * c->head_dim;
}

/* ---- layout ---- */

/* What a layout walks with. */
struct layout {
    const struct gpt *g;
    const struct device *d;
    enum memory_component component;
    enum dtype blocks;     /* of the layers' matrices */
    enum dtype vocabulary; /* of the token embedding and the head */
    struct plan *plan;
};

bool gpt_type_is_served(enum dtype type)
{
    return type == DTYPE_F32 || type == DTYPE_BF16 || type == DTYPE_F16 || type == DTYPE_Q8_0 ||
           type == DTYPE_Q4_0;
}

bool gpt_set_type(struct gpt *g, enum dtype type, const struct device *d, struct error *err)
{
    ASSERT(gpt_type_is_served(type));
    bool quantized = dtype_info(type)->block > 1;
    enum dtype half = d->ops->computes_in(d, DTYPE_BF16) ? DTYPE_BF16 : DTYPE_F16;
    g->dtype = quantized ? half : type;
    g->quantized = quantized ? type : 0;
    if (d->ops->computes_in(d, g->dtype)) return true;
    return error_set(err, ERR_UNSUPPORTED, "dtype", "%s does not compute in %s: %s", d->name,
                     dtype_info(g->dtype)->name,
                     type == DTYPE_BF16 ? "GPUs before sm_80 take f16"
                                        : "CUDA devices do (--device cuda:0); here bf16 takes as "
                                          "little memory");
}

bool gpt_keeps_formats(const struct device *d) { return d->ops->matrix_write_blocks != NULL; }

/* The types of the matrix's rows, where they are kept as the file has them. */
static void keep_format(const struct layout *at, enum weight_role role, struct matrix *m)
{
    struct weight_rows rows[CHECKPOINT_MAX_PARTS];
    _Static_assert((int)CHECKPOINT_MAX_PARTS == (int)MATRIX_PARTS, "a part each");
    int32_t n = weight_formats_rows(at->g->kept, &at->g->config, role, at->plan->layer, rows);
    if (n > 0) m->dtype = rows[0].dtype;
    for (int32_t i = 0; n > 1 && i < n; i++)
        m->parts[i] = (struct matrix_part){rows[i].dtype, rows[i].n_rows};
}

bool gpt_kv_type_parse(const char *name, enum dtype *out)
{
    *out = KV_AUTO;
    return strcmp(name, "auto") == 0 ||
           (dtype_parse(name, out) &&
            (*out == DTYPE_F32 || *out == DTYPE_BF16 || *out == DTYPE_Q8_0));
}

bool gpt_kv_type(const struct gpt *g, enum dtype asked, const struct device *d, enum dtype *out,
                 struct error *err)
{
    *out = asked == KV_AUTO ? g->dtype : asked;
    if (*out == g->dtype || d->ops->keeps_kv_in(d, *out, g->dtype)) return true;
    return error_set(err, ERR_UNSUPPORTED, "kv_dtype",
                     "%s keeps keys and values in the type that it computes in, %s, not in %s: say "
                     "auto (or --device cpu)", d->name,
                     dtype_info(g->dtype)->name, dtype_info(*out)->name);
}

static struct matrix take_matrix(const struct layout *at, enum weight_role role)
{
    struct matrix m = {.dtype = weight_role_is_layer(role) ? at->blocks : at->vocabulary};
    bool exists = weight_role_shape(&at->g->config, role, &m.n_out, &m.n_in);
    ASSERT(exists);
    if (at->g->kept && at->component == MEMORY_WEIGHTS) keep_format(at, role, &m);
    m.data = plan_take(at->plan, at->component, weight_role_name(role),
                       device_matrix_bytes(at->d, &m), 1);
    return m;
}

/* A vector that a model of this config may do without: NULL then. */
static float *take_vector(const struct layout *at, enum weight_role role)
{
    int64_t n_out, n_in;
    if (!weight_role_shape(&at->g->config, role, &n_out, &n_in)) return NULL;
    return plan_take(at->plan, at->component, weight_role_name(role), n_out * n_in, sizeof(float));
}

static struct norm take_norm(const struct layout *at, enum weight_role weight,
                             enum weight_role bias)
{
    return (struct norm){
        .weight = take_vector(at, weight),
        .bias = take_vector(at, bias),
        .eps = at->g->config.norm_eps,
        .rms = at->g->config.norm_type == NORM_RMSNORM,
    };
}

static void layer_layout(struct gpt_layer *l, const struct layout *at)
{
    l->attn_norm = take_norm(at, WEIGHT_ATTN_NORM, WEIGHT_ATTN_NORM_BIAS);
    l->qkv = take_matrix(at, WEIGHT_QKV);
    l->qkv_bias = take_vector(at, WEIGHT_QKV_BIAS);
    l->q_norm = take_vector(at, WEIGHT_Q_NORM);
    l->k_norm = take_vector(at, WEIGHT_K_NORM);
    l->attn_out = take_matrix(at, WEIGHT_ATTN_OUT);
    l->attn_out_bias = take_vector(at, WEIGHT_ATTN_OUT_BIAS);
    l->mlp_norm = take_norm(at, WEIGHT_MLP_NORM, WEIGHT_MLP_NORM_BIAS);
    l->mlp_up = take_matrix(at, WEIGHT_MLP_UP);
    l->mlp_up_bias = take_vector(at, WEIGHT_MLP_UP_BIAS);
    l->mlp_down = take_matrix(at, WEIGHT_MLP_DOWN);
    l->mlp_down_bias = take_vector(at, WEIGHT_MLP_DOWN_BIAS);
}

static void layout_all(struct gpt *g, const struct layout *at)
{
    const struct gpt_config *c = &g->config;
    struct plan *plan = at->plan;
    ASSERT(g->max_context > 0 && g->max_context <= c->block_size);
    g->wte = take_matrix(at, WEIGHT_TOKEN_EMBEDDING);
    g->wpe = take_vector(at, WEIGHT_POSITION_EMBEDDING);
    g->rope = NULL;
    if (c->pos_encoding == POS_ROPE && at->component == MEMORY_WEIGHTS)
        g->rope = plan_take(plan, at->component, "rope", g->max_context * c->head_dim,
                            sizeof(float));
    for (int64_t i = 0; i < c->n_layer; i++) {
        plan->layer = (int32_t)i;
        layer_layout(&g->layers[i], at);
    }
    plan->layer = -1;
    g->final_norm = take_norm(at, WEIGHT_FINAL_NORM, WEIGHT_FINAL_NORM_BIAS);
    g->lm_head = c->tie_weights ? g->wte : take_matrix(at, WEIGHT_LM_HEAD);
    g->lm_head_bias = take_vector(at, WEIGHT_LM_HEAD_BIAS);
}

void gpt_layout(struct gpt *g, const struct device *d, enum memory_component component,
                struct plan *plan)
{
    enum dtype blocks = g->quantized ? g->quantized : g->dtype;
    enum dtype vocabulary = g->quantized ? DTYPE_Q8_0 : g->dtype;
    layout_all(g, &(struct layout){g, d, component, blocks, vocabulary, plan});
}

void gpt_gradients_layout(struct gpt *grads, enum dtype blocks, const struct device *d,
                          struct plan *plan)
{
    ASSERT(grads->dtype == DTYPE_F32);
    layout_all(grads, &(struct layout){grads, d, MEMORY_GRADIENTS, blocks, DTYPE_F32, plan});
}

static struct tensor take_tensor(struct plan *plan, const char *name, enum dtype dtype,
                                 int64_t rows, int64_t cols)
{
    return (struct tensor){
        .data = plan_take(plan, MEMORY_ACTIVATIONS, name, rows, cols * dtype_bytes(dtype, 1)),
        .dtype = dtype,
        .rows = rows,
        .cols = cols,
    };
}

struct workspace_shape gpt_workspace_shape(const struct gpt *g, int64_t max_rows,
                                           int64_t max_logit_rows, int64_t block_size)
{
    const struct gpt_config *c = &g->config;
    return (struct workspace_shape){
        .dtype = g->dtype, .max_rows = max_rows, .max_logit_rows = max_logit_rows,
        .n_embd = c->n_embd, .n_ff = c->n_ff, .n_head = c->n_head, .n_kv_head = c->n_kv_head,
        .head_dim = c->head_dim, .vocab_size = c->vocab_size, .block_size = block_size,
    };
}

void gpt_state_layout(struct gpt_state *s, const struct gpt *g, int64_t max_rows,
                      int64_t max_logit_rows, struct plan *plan)
{
    const struct gpt_config *c = &g->config;
    enum dtype act = g->dtype;
    s->max_rows = max_rows;
    s->max_logit_rows = max_logit_rows;
    plan->life = LIFE_STEP;
    s->x = take_tensor(plan, "x", DTYPE_F32, max_rows, c->n_embd);
    s->h = take_tensor(plan, "h", act, max_rows, c->n_embd);
    s->up = (struct tensor){0};
    plan_share_begin(plan, LIFE_ATTENTION);
    s->qkv = take_tensor(plan, "qkv", DTYPE_F32, max_rows, qkv_width(c));
    s->attn = take_tensor(plan, "attn", act, max_rows, c->n_head * c->head_dim);
    plan_share_next(plan, LIFE_MLP);
    if (c->mlp_type == MLP_SWIGLU) s->up = take_tensor(plan, "up", act, max_rows, 2 * c->n_ff);
    s->mlp = take_tensor(plan, "mlp", act, max_rows, c->n_ff);
    plan_share_next(plan, LIFE_LOGITS);
    s->out_x = take_tensor(plan, "out_x", DTYPE_F32, max_logit_rows, c->n_embd);
    s->out_h = take_tensor(plan, "out_h", act, max_logit_rows, c->n_embd);
    s->logits = (struct tensor){
        .data = plan_take(plan, MEMORY_LOGITS, "logits", max_logit_rows,
                          c->vocab_size * (int64_t)sizeof(float)),
        .dtype = DTYPE_F32, .rows = max_logit_rows, .cols = c->vocab_size,
    };
    plan_share_end(plan);
    plan->life = LIFE_RUN;
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

/* Positions whose angles are made at a time. */
static int64_t rope_block(const struct gpt *g)
{
    return min_i64(max_i64(1, LOAD_BLOCK_FLOATS / g->config.head_dim), g->max_context);
}

int64_t gpt_load_staging_bytes(const struct gpt *g)
{
    int64_t floats = g->config.pos_encoding == POS_ROPE ? rope_block(g) * g->config.head_dim : 0;
    for (int role = 0; role < N_WEIGHT_ROLES; role++)
        floats = max_i64(floats, role_staging(&g->config, (enum weight_role)role));
    return floats * (int64_t)sizeof(float);
}

/* What loading carries along: where from, where to, and the staging rows between. */
struct load {
    struct device *d;
    const struct checkpoint *ck;
    const struct weight_formats *kept; /* gpt's */
    float *staging;
    struct error *err;
    bool failed; /* the first upload that did says why in err */
};

static bool is_kept(const struct load *load, enum weight_role role, int64_t layer)
{
    struct weight_rows rows[CHECKPOINT_MAX_PARTS];
    return weight_formats_rows(load->kept, checkpoint_config(load->ck), role, layer, rows) > 0;
}

/* Rows [row0, row0 + m->n_out) of the weight: a part of its matrix, or all of it. */
static void load_part(const struct load *load, struct matrix *m, enum weight_role role,
                      int64_t layer, int64_t row0)
{
    const struct device_ops *ops = load->d->ops;
    int64_t step = load_block_rows(m->n_in);
    for (int64_t row = 0; row < m->n_out; row += step) {
        int64_t n = min_i64(step, m->n_out - row);
        if (load->kept && is_kept(load, role, layer)) {
            uint8_t *blocks = (uint8_t *)load->staging; /* of at most 4 bytes an element */
            checkpoint_read_blocks(load->ck, role, layer, row0 + row, n, blocks);
            ops->matrix_write_blocks(load->d, m, row, n, blocks);
        } else {
            checkpoint_read_rows(load->ck, role, layer, row0 + row, n, load->staging);
            ops->matrix_write(load->d, m, row, n, load->staging);
        }
        checkpoint_forget(load->ck);
    }
}

bool gpt_upload(struct device *d, float *to, const float *staging, int64_t n, struct error *err)
{
    d->ops->upload(d, to, staging, (size_t)n * sizeof *to);
    return d->ops->sync(d, err);
}

static void load_matrix(const struct load *load, struct matrix *m, enum weight_role role,
                        int64_t layer)
{
    struct matrix part;
    int64_t row0;
    for (int i = 0; matrix_part_of(load->d, m, i, &part, &row0); i++)
        load_part(load, &part, role, layer, row0);
}

/* A weight kept as plain f32 rows; nothing when the model has none. */
static void load_vector(struct load *load, const float *at, enum weight_role role,
                        int64_t layer)
{
    if (!at || load->failed) return;
    int64_t n_out, n_in;
    bool exists = weight_role_shape(checkpoint_config(load->ck), role, &n_out, &n_in);
    ASSERT(exists);
    int64_t step = load_block_rows(n_in);
    for (int64_t row = 0; row < n_out && !load->failed; row += step) {
        int64_t n = min_i64(step, n_out - row);
        checkpoint_read_rows(load->ck, role, layer, row, n, load->staging);
        load->failed = !gpt_upload(load->d, (float *)at + row * n_in, load->staging, n * n_in,
                                   load->err);
    }
}

static void load_layer(struct load *load, struct gpt_layer *l, int64_t i)
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
    float smooth = (context / wavelength - c->rope_low_freq) /
                   (c->rope_high_freq - c->rope_low_freq);
    return (1.0f - smooth) * f / c->rope_factor + smooth * f;
}

/* [n, K/2, 2]: cos and sin of the angles of positions first, first + 1, ... */
static void rope_rows(const struct gpt_config *c, int64_t first, int64_t n, float *rows)
{
    int64_t half = c->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float f = rope_inverse_frequency(c, i);
        for (int64_t r = 0; r < n; r++) {
            double angle = (float)(first + r) * f;
            rows[(r * half + i) * 2] = (float)cos(angle);
            rows[(r * half + i) * 2 + 1] = (float)sin(angle);
        }
    }
}

bool gpt_write_rope(const struct gpt *g, struct device *d, float *staging, struct error *err)
{
    int64_t step = rope_block(g), width = g->config.head_dim;
    if (!g->rope) return true;
    for (int64_t pos = 0; pos < g->max_context; pos += step) {
        int64_t n = min_i64(step, g->max_context - pos);
        rope_rows(&g->config, pos, n, staging);
        if (!gpt_upload(d, g->rope + pos * width, staging, n * width, err)) return false;
    }
    return true;
}

bool gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, float *staging,
              struct error *err)
{
    struct load load = {.d = d, .ck = ck, .kept = g->kept, .staging = staging, .err = err};
    load_matrix(&load, &g->wte, WEIGHT_TOKEN_EMBEDDING, 0);
    load_vector(&load, g->wpe, WEIGHT_POSITION_EMBEDDING, 0);
    if (!load.failed) load.failed = !gpt_write_rope(g, d, staging, err);
    for (int64_t i = 0; i < g->config.n_layer; i++) load_layer(&load, &g->layers[i], i);
    load_vector(&load, g->final_norm.weight, WEIGHT_FINAL_NORM, 0);
    load_vector(&load, g->final_norm.bias, WEIGHT_FINAL_NORM_BIAS, 0);
    if (!g->config.tie_weights) load_matrix(&load, &g->lm_head, WEIGHT_LM_HEAD, 0);
    load_vector(&load, g->lm_head_bias, WEIGHT_LM_HEAD_BIAS, 0);
    checkpoint_forget(ck);
    return !load.failed && d->ops->sync(d, err);
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

struct attention gpt_attention(const struct gpt *g, int32_t layer, const struct gpt_block *t)
{
    const struct gpt_config *c = &g->config;
    return (struct attention){
        .n_head = (int32_t)c->n_head,
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .rope = g->rope,
        .q_norm = g->layers[layer].q_norm,
        .k_norm = g->layers[layer].k_norm,
        .qk_norm_eps = c->norm_eps,
        .lse = t->lse,
        .dropout = t->dropout,
        .dropout_key = gpt_random_key(t->random_key, DROPOUT_ATTENTION),
    };
}

struct random_key gpt_random_key(struct random_key block_key, enum gpt_random_place place)
{
    block_key.flip = ((uint64_t)place + 1) << 60;
    return block_key;
}

/* x_out = x_in + dropout(h W^T + bias), in place where x_in is x_out. Without dropout the addition
 * is the product's own epilogue; training with dropout goes through `scratch` [R, C] f32. */
static void add_branch(const struct gpt_block *t, struct device *d, struct tensor x_out,
                       struct tensor x_in, struct tensor h, const struct matrix *w,
                       const float *bias, enum gpt_random_place place)
{
    if (x_out.data != x_in.data)
        d->train->dropout(d, x_out, x_in, (struct dropout){0}); /* a copy */
    if (t->dropout == 0) {
        d->ops->matmul(d, x_out, h, w, bias, EPILOGUE_ADD);
        return;
    }
    struct dropout drop = {t->dropout, gpt_random_key(t->random_key, place)};
    d->ops->matmul(d, t->branch, h, w, bias, EPILOGUE_NONE);
    d->train->add_dropout(d, x_out, t->branch, drop);
}

void gpt_mlp_activation(const struct gpt *g, const struct gpt_block *t, struct device *d)
{
    enum mlp_type type = g->config.mlp_type;
    if (type == MLP_SWIGLU) d->ops->swiglu(d, t->mlp, t->up);
    else d->train->gelu(d, t->mlp, t->up, type == MLP_GELU_EXACT);
}

/* norm, then matmul: at once where the device can and nobody asks for h. */
static void norm_matmul(struct device *d, const struct gpt_block *t, struct tensor out,
                        const struct norm_matmul *m, const struct gpt_observer *observer,
                        const char *h_name, int32_t layer)
{
    if (d->ops->norm_matmul && !t->h_kept && !observer) {
        d->ops->norm_matmul(d, out, m);
        return;
    }
    d->ops->norm(d, m->h, m->x, m->norm);
    see(observer, h_name, layer, m->h);
    d->ops->matmul(d, m->gate_up.data ? m->gate_up : out, m->h, m->w, m->bias, m->epilogue);
    if (m->gate_up.data) d->ops->swiglu(d, out, m->gate_up);
}

/* mlp = act(norm(x_mid) W^T + bias). What goes into the activation is rounded to the activation
 * type either way, so fusing it into the product changes no bit. */
static void mlp_up(const struct gpt *g, int32_t layer, const struct gpt_block *t, struct device *d,
                   const struct gpt_observer *observer)
{
    const struct gpt_layer *l = &g->layers[layer];
    enum mlp_type type = g->config.mlp_type;
    struct norm_matmul m = {.x = t->x_mid, .norm = &l->mlp_norm, .h = t->h_mlp, .w = &l->mlp_up,
                            .bias = l->mlp_up_bias};
    if (type == MLP_SWIGLU) {
        m.gate_up = t->up;
        norm_matmul(d, t, t->mlp, &m, observer, "mlp_norm", layer);
    } else if (t->up.data) {
        norm_matmul(d, t, t->up, &m, observer, "mlp_norm", layer);
        gpt_mlp_activation(g, t, d);
    } else {
        m.epilogue = type == MLP_GELU_EXACT ? EPILOGUE_GELU_EXACT : EPILOGUE_GELU_TANH;
        norm_matmul(d, t, t->mlp, &m, observer, "mlp_norm", layer);
    }
}

void gpt_block_forward(const struct gpt *g, int32_t i, const struct gpt_block *t, struct device *d,
                       const struct batch *b, const struct kv_cache *kv, int32_t kv_layer,
                       const struct gpt_observer *observer)
{
    const struct device_ops *ops = d->ops;
    const struct gpt_layer *l = &g->layers[i];
    struct attention a = gpt_attention(g, i, t);

    struct norm_matmul qkv = {.x = t->x_in, .norm = &l->attn_norm, .h = t->h_attn, .w = &l->qkv,
                              .bias = l->qkv_bias};
    norm_matmul(d, t, t->qkv, &qkv, observer, "attn_norm", i);
    see(observer, "qkv", i, t->qkv);
    if (t->qkv_pre.data) d->train->dropout(d, t->qkv_pre, t->qkv, (struct dropout){0});
    if (ops->kv_attention && !t->qkv_kept.data && !observer) {
        ops->kv_attention(d, t->attn, t->qkv, b, &a, kv, kv_layer);
    } else {
        ops->kv_write(d, t->qkv, b, &a, kv, kv_layer);
        see(observer, "qkv_rotated", i, t->qkv);
        if (t->qkv_kept.data) d->train->dropout(d, t->qkv_kept, t->qkv, (struct dropout){0});
        ops->attention(d, t->attn, t->qkv, b, &a, kv, kv_layer);
    }
    see(observer, "attn", i, t->attn);
    add_branch(t, d, t->x_mid, t->x_in, t->attn, &l->attn_out, l->attn_out_bias, DROPOUT_ATTN_OUT);
    see(observer, "attn_resid", i, t->x_mid);

    mlp_up(g, i, t, d, observer);
    see(observer, "mlp_act", i, t->mlp);
    add_branch(t, d, t->x_out, t->x_mid, t->mlp, &l->mlp_down, l->mlp_down_bias, DROPOUT_MLP_OUT);
    see(observer, "mlp_resid", i, t->x_out);
}

void gpt_forward(const struct gpt *g, struct gpt_state *s, struct device *d, const struct batch *b,
                 const struct kv_cache *kv, const int32_t *out_rows, int32_t n_out,
                 const struct gpt_observer *observer)
{
    const struct device_ops *ops = d->ops;
    int64_t n = b->n_rows;
    ASSERT(n > 0 && n <= s->max_rows && n_out >= 0 && n_out <= s->max_logit_rows);

    struct tensor x = first_rows(s->x, n), h = first_rows(s->h, n);
    struct gpt_block block = {
        .x_in = x, .x_mid = x, .x_out = x,
        .h_attn = h, .h_mlp = h,
        .qkv = first_rows(s->qkv, n),
        .attn = first_rows(s->attn, n),
        .up = first_rows(s->up, n),
        .mlp = first_rows(s->mlp, n),
    };
    ops->embed(d, x, b, &g->wte, g->wpe);
    see(observer, "embed", -1, x);
    for (int32_t i = 0; i < (int32_t)g->config.n_layer; i++)
        gpt_block_forward(g, i, &block, d, b, kv, i, observer);

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
