/* Forward keeping, loss, backward: see gpt_train.h. The backward pass reads the forward pass from
 * its end to its beginning; each product's two gradients are dW = dY^T X and dX = dY W. */
#include "model/gpt_train.h"

#include <string.h>

#include "base/checked.h"

const char *recompute_name(enum recompute r)
{
    static const char *const names[] = {"none", "selective", "block"};
    ASSERT((unsigned)r < 3);
    return names[r];
}

/* ---- layout ---- */

int64_t gpt_train_pages(const struct gpt_train_options *o)
{
    /* A span's last page may be nearly empty. */
    return o->max_rows / KV_PAGE_TOKENS + o->max_spans;
}

static struct tensor take(struct plan *plan, const char *name, enum dtype dtype, int64_t rows,
                          int64_t cols)
{
    void *data = plan_take(plan, MEMORY_ACTIVATIONS, name, rows, cols * dtype_bytes(dtype, 1));
    return (struct tensor){.data = data, .dtype = dtype, .rows = rows, .cols = cols};
}

static int64_t qkv_cols(const struct gpt_config *c)
{
    return (c->n_head + 2 * c->n_kv_head) * c->head_dim;
}

static int64_t up_cols(const struct gpt_config *c)
{
    return c->mlp_type == MLP_SWIGLU ? 2 * c->n_ff : c->n_ff;
}

/* What recomputing can bring back cheaply: the normed rows and the activation. */
static void take_cheap(struct gpt_block *b, const struct gpt_train *t, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    enum dtype act = t->gpt->dtype;
    int64_t R = t->options.max_rows;
    b->h_attn = take(plan, "h_attn", act, R, c->n_embd);
    b->h_mlp = take(plan, "h_mlp", act, R, c->n_embd);
    b->mlp = take(plan, "mlp", act, R, c->n_ff);
}

/* What only running the block again brings back. */
static void take_dear(struct gpt_block *b, const struct gpt_train *t, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    enum dtype act = t->gpt->dtype;
    int64_t R = t->options.max_rows;
    b->x_mid = take(plan, "x_mid", DTYPE_F32, R, c->n_embd);
    b->qkv_kept = take(plan, "qkv_kept", act, R, qkv_cols(c));
    if (c->qk_norm) b->qkv_pre = take(plan, "qkv_pre", act, R, qkv_cols(c));
    b->attn = take(plan, "attn", act, R, c->n_head * c->head_dim);
    b->lse = plan_take(plan, MEMORY_ACTIVATIONS, "lse", R * c->n_head, sizeof(float));
    b->up = take(plan, "up", act, R, up_cols(c));
}

static struct tensor take_logits(struct plan *plan, const char *name, enum dtype dtype,
                                 const struct gpt_train *t)
{
    int64_t rows = t->options.loss_rows, cols = t->gpt->config.vocab_size;
    void *data = plan_take(plan, MEMORY_LOGITS, name, rows, cols * dtype_bytes(dtype, 1));
    return (struct tensor){.data = data, .dtype = dtype, .rows = rows, .cols = cols};
}

/* Gradients that lie between two products, each time of one branch. */
static void backward_mlp_layout(struct gpt_train *t, const struct device *d, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    bool at_once = d->train->writes_act && c->mlp_type != MLP_SWIGLU;
    int64_t R = t->options.max_rows;
    t->dmlp = (struct tensor){0};
    if (!at_once) t->dmlp = take(plan, "dmlp", DTYPE_F32, R, c->n_ff);
    t->dup = take(plan, "dup", t->gpt->dtype, R, up_cols(c));
}

static void backward_attention_layout(struct gpt_train *t, const struct device *d,
                                      struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    enum dtype act = t->gpt->dtype;
    bool writes_act = d->train->writes_act, rotates = c->pos_encoding == POS_ROPE || c->qk_norm;
    int64_t R = t->options.max_rows;
    t->dattn = take(plan, "dattn", writes_act ? act : DTYPE_F32, R, c->n_head * c->head_dim);
    t->dqkv_act = take(plan, "dqkv_act", act, R, qkv_cols(c));
    bool is_operand = act == DTYPE_F32 || (writes_act && !rotates);
    t->dqkv = is_operand ? t->dqkv_act : take(plan, "dqkv", DTYPE_F32, R, qkv_cols(c));
}

/* What all blocks share: first what a block's backward pass still reads, then what is in use at one
 * time of a step only, each time over the same bytes. */
static void shared_layout(struct gpt_train *t, const struct device *d, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    struct gpt_block *s = &t->shared;
    enum dtype act = t->gpt->dtype;
    int64_t R = t->options.max_rows;
    *s = (struct gpt_block){0};
    if (t->options.recompute != RECOMPUTE_NONE) take_cheap(s, t, plan);
    if (t->options.recompute == RECOMPUTE_BLOCK) take_dear(s, t, plan);
    s->x_out = take(plan, "x_out", DTYPE_F32, R, c->n_embd); /* of the last block */
    t->dx = take(plan, "dx", DTYPE_F32, R, c->n_embd);
    t->dh = take(plan, "dh", DTYPE_F32, R, c->n_embd);
    /* a norm leaves it for the branch before: across all below */
    t->dy = take(plan, "dy", act, R, c->n_embd);
    t->losses = plan_take(plan, MEMORY_ACTIVATIONS, "losses", R, sizeof *t->losses);
    plan_share_begin(plan, LIFE_FORWARD);
    s->qkv = take(plan, "qkv", DTYPE_F32, R, qkv_cols(c));
    if (t->options.dropout > 0) s->branch = take(plan, "branch", DTYPE_F32, R, c->n_embd);
    plan_share_next(plan, LIFE_LOGITS);
    t->h_final = take(plan, "h_final", act, R, c->n_embd);
    t->logits = take_logits(plan, "logits", DTYPE_F32, t);
    t->dlogits = act == DTYPE_F32 ? t->logits : take_logits(plan, "dlogits", act, t);
    plan_share_next(plan, LIFE_BACKWARD_MLP);
    backward_mlp_layout(t, d, plan);
    plan_share_next(plan, LIFE_BACKWARD_ATTENTION);
    backward_attention_layout(t, d, plan);
    plan_share_end(plan);
}

static void cache_layout(struct gpt_train *t, const struct device *d, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    int64_t n_pages = gpt_train_pages(&t->options);
    t->kv = (struct kv_cache){
        .dtype = t->gpt->dtype,
        .n_layer = 1,
        .n_pages = (int32_t)n_pages,
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
    };
    int64_t page = d->ops->kv_page_bytes(d, t->kv.dtype, t->kv.n_kv_head, t->kv.head_dim);
    t->kv.data = plan_take(plan, MEMORY_KV_CACHE, "kv", n_pages, page);
}

void gpt_train_layout(struct gpt_train *t, const struct device *d, struct plan *plan)
{
    const struct gpt_config *c = &t->gpt->config;
    struct gpt_layer *layers = t->grads.layers;
    ASSERT(t->options.loss_rows > 0 && t->options.loss_rows <= t->options.max_rows);
    ASSERT(gpt_train_pages(&t->options) < INT32_MAX / KV_PAGE_TOKENS);
    t->grads = (struct gpt){.config = *c, .dtype = DTYPE_F32, .layers = layers,
                            .max_context = t->gpt->max_context};
    gpt_gradients_layout(&t->grads, t->options.gradients, d, plan);
    plan->life = LIFE_STEP;
    for (int64_t i = 0; i < c->n_layer; i++) {
        struct gpt_block *b = &t->blocks[i];
        plan->layer = (int32_t)i;
        *b = (struct gpt_block){0};
        b->x_in = take(plan, "x_in", DTYPE_F32, t->options.max_rows, c->n_embd);
        if (t->options.recompute == RECOMPUTE_NONE) take_cheap(b, t, plan);
        if (t->options.recompute != RECOMPUTE_BLOCK) take_dear(b, t, plan);
    }
    plan->layer = -1;
    shared_layout(t, d, plan);
    cache_layout(t, d, plan);
    plan->life = LIFE_RUN;
}

/* ---- rows ---- */

void gpt_rows_layout(struct gpt_rows *r, const struct gpt_train_options *o, struct plan *plan)
{
    *r = (struct gpt_rows){0};
    r->scalars = plan_take(plan, MEMORY_STAGING, "scalars", 1, sizeof *r->scalars);
    r->tokens = plan_take(plan, MEMORY_STAGING, "tokens", o->max_rows, sizeof *r->tokens);
    r->positions = plan_take(plan, MEMORY_STAGING, "positions", o->max_rows, sizeof *r->positions);
    r->slots = plan_take(plan, MEMORY_STAGING, "slots", o->max_rows, sizeof *r->slots);
    r->targets = plan_take(plan, MEMORY_STAGING, "targets", o->max_rows, sizeof *r->targets);
    r->spans = plan_take(plan, MEMORY_STAGING, "spans", o->max_spans, sizeof *r->spans);
    r->pages = plan_take(plan, MEMORY_STAGING, "pages", gpt_train_pages(o), sizeof *r->pages);
}

void gpt_rows_clear(struct gpt_rows *r) { r->n_rows = r->n_spans = r->n_pages = 0; }

bool gpt_rows_add(struct gpt_rows *r, const struct gpt_train_options *o, const int32_t *tokens,
                  const int32_t *targets, int32_t n)
{
    ASSERT(n > 0);
    if (r->n_spans == o->max_spans || n > o->max_rows - r->n_rows) return false;
    r->spans[r->n_spans++] = (struct span){.row0 = r->n_rows, .n_rows = n, .table = r->n_pages};
    int32_t page0 = r->n_pages;
    for (int32_t i = 0; i < n; i++) {
        int32_t row = r->n_rows++;
        r->tokens[row] = tokens[i];
        r->targets[row] = targets[i];
        r->positions[row] = i;
        r->slots[row] = page0 * KV_PAGE_TOKENS + i;
    }
    for (; r->n_pages < page0 + ceil_div(n, KV_PAGE_TOKENS); r->n_pages++)
        r->pages[r->n_pages] = r->n_pages;
    return true;
}

struct gpt_micro_batch gpt_rows_upload(const struct gpt_rows *h, const struct gpt_rows *to,
                                       struct device *d)
{
    /* All at once: both sides are laid out alike, pages last. */
    size_t bytes = (size_t)((const char *)(h->pages + h->n_pages) - (const char *)h->scalars);
    ASSERT((const char *)h->pages - (const char *)h->scalars
           == (const char *)to->pages - (const char *)to->scalars);
    d->ops->upload(d, to->scalars, h->scalars, bytes);
    return (struct gpt_micro_batch){
        .batch = {.n_rows = h->n_rows, .n_spans = h->n_spans, .tokens = to->tokens,
                  .positions = to->positions, .slots = to->slots, .spans = to->spans,
                  .pages = to->pages},
        .targets = to->targets,
        .scalars = to->scalars,
    };
}

/* ---- forward ---- */

static struct tensor rows_of(struct tensor t, int64_t row0, int64_t rows)
{
    if (t.data) t.data = (uint8_t *)t.data + row0 * t.cols * dtype_bytes(t.dtype, 1);
    t.rows = rows;
    return t;
}

static struct tensor first(struct tensor kept, struct tensor shared, int64_t rows)
{
    return rows_of(kept.data ? kept : shared, 0, rows);
}

/* Block i with n rows: what is its own, else what is shared. */
static struct gpt_block block_at(const struct gpt_train *t, int64_t i, int64_t n)
{
    const struct gpt_block *b = &t->blocks[i], *s = &t->shared;
    bool last = i + 1 == t->gpt->config.n_layer;
    return (struct gpt_block){
        .x_in = rows_of(b->x_in, 0, n),
        .x_mid = first(b->x_mid, s->x_mid, n),
        .x_out = rows_of(last ? s->x_out : t->blocks[i + 1].x_in, 0, n),
        .h_attn = first(b->h_attn, s->h_attn, n),
        .h_mlp = first(b->h_mlp, s->h_mlp, n),
        .h_kept = true,
        .qkv = rows_of(s->qkv, 0, n),
        .attn = first(b->attn, s->attn, n),
        .up = first(b->up, s->up, n),
        .mlp = first(b->mlp, s->mlp, n),
        .branch = rows_of(s->branch, 0, n),
        .qkv_kept = first(b->qkv_kept, s->qkv_kept, n),
        .qkv_pre = first(b->qkv_pre, s->qkv_pre, n),
        .lse = b->lse ? b->lse : s->lse,
    };
}

/* Streams of random bits that must not meet: layers, and the embedding. */
static struct random_key layer_key(const struct gpt_micro_batch *m, int64_t layer)
{
    return (struct random_key){.base = &m->scalars->random_key,
                               .add = (uint64_t)(layer + 2) * 0xD1B54A32D192ED03u};
}

static void forward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m,
                    float dropout)
{
    const struct gpt *g = t->gpt;
    const struct batch *b = &m->batch;
    int64_t n = b->n_rows, L = g->config.n_layer;
    struct tensor x = rows_of(t->blocks[0].x_in, 0, n);
    d->ops->embed(d, x, b, &g->wte, g->wpe);
    if (dropout > 0) d->train->dropout(d, x, x, (struct dropout){dropout, layer_key(m, -1)});
    for (int64_t i = 0; i < L; i++) {
        struct gpt_block block = block_at(t, i, n);
        block.dropout = dropout;
        block.random_key = layer_key(m, i);
        gpt_block_forward(g, (int32_t)i, &block, d, b, &t->kv, 0, NULL);
    }
    d->ops->norm(d, rows_of(t->h_final, 0, n), rows_of(t->shared.x_out, 0, n), &g->final_norm);
}

/* ---- loss ---- */

/* Logits of `loss_rows` rows at a time: the B T V logits never exist. With `backward` the gradient
 * goes to dh and to the head's weights. */
static void loss(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m,
                 const struct loss_options *o, bool backward)
{
    const struct gpt *g = t->gpt;
    struct matrix *dw = g->config.tie_weights ? &t->grads.wte : &t->grads.lm_head;
    int64_t n = m->batch.n_rows;
    for (int64_t row = 0; row < n; row += t->options.loss_rows) {
        int64_t rows = min_i64(t->options.loss_rows, n - row);
        struct tensor h = rows_of(t->h_final, row, rows);
        struct tensor logits = rows_of(t->logits, 0, rows);
        struct tensor dlogits = backward ? rows_of(t->dlogits, 0, rows) : (struct tensor){0};
        d->ops->matmul(d, logits, h, &g->lm_head, g->lm_head_bias, EPILOGUE_NONE);
        d->train->cross_entropy(d, dlogits, logits, m->targets + row, o, t->losses + row);
        if (!backward) continue;
        d->train->matmul_backward_w(d, dw, t->grads.lm_head_bias, dlogits, h,
                                    (struct random_key){0});
        d->train->matmul_backward_x(d, rows_of(t->dh, row, rows), dlogits, &g->lm_head);
    }
}

/* ---- backward ---- */

/* Brings back what was not kept of block i. */
static void recompute_block(struct gpt_train *t, struct device *d, const struct batch *b, int64_t i,
                            const struct gpt_block *block)
{
    const struct gpt *g = t->gpt;
    const struct gpt_layer *l = &g->layers[i];
    if (t->options.recompute == RECOMPUTE_NONE) return;
    if (t->options.recompute == RECOMPUTE_BLOCK) {
        /* x_out is the next block's x_in: rewritten with the very same bits. */
        gpt_block_forward(g, (int32_t)i, block, d, b, &t->kv, 0, NULL);
        return;
    }
    d->ops->norm(d, block->h_attn, block->x_in, &l->attn_norm);
    d->ops->norm(d, block->h_mlp, block->x_mid, &l->mlp_norm);
    gpt_mlp_activation(g, block, d);
}

/* What a norm's backward pass leaves for layer i's MLP,
 * the branch that ends before the next layer begins. */
static struct branch_gradient mlp_gradient(const struct gpt_train *t,
                                           const struct gpt_micro_batch *m, int64_t i)
{
    return (struct branch_gradient){
        .dy = rows_of(t->dy, 0, m->batch.n_rows),
        .drop = {t->options.dropout, gpt_random_key(layer_key(m, i), DROPOUT_MLP_OUT)},
        .dbias = t->grads.layers[i].mlp_down_bias,
    };
}

/* Likewise for its attention. */
static struct branch_gradient attention_gradient(const struct gpt_train *t,
                                                 const struct gpt_micro_batch *m, int64_t i)
{
    return (struct branch_gradient){
        .dy = rows_of(t->dy, 0, m->batch.n_rows),
        .drop = {t->options.dropout, gpt_random_key(layer_key(m, i), DROPOUT_ATTN_OUT)},
        .dbias = t->grads.layers[i].attn_out_bias,
    };
}

/* dup from dy: back through the last product and the activation before it. */
static void backward_activation(struct gpt_train *t, struct device *d, const struct gpt_block *b,
                                const struct matrix *mlp_down)
{
    const struct device_train_ops *ops = d->train;
    enum mlp_type type = t->gpt->config.mlp_type;
    int64_t n = b->x_in.rows;
    struct tensor dy = rows_of(t->dy, 0, n), dmlp = rows_of(t->dmlp, 0, n);
    struct tensor dup = rows_of(t->dup, 0, n);
    if (!dmlp.data) {
        ops->matmul_gelu_backward(d, dup, dy, mlp_down, b->up, type == MLP_GELU_EXACT);
        return;
    }
    ops->matmul_backward_x(d, dmlp, dy, mlp_down);
    if (type == MLP_SWIGLU) ops->swiglu_backward(d, dup, dmlp, b->up);
    else ops->gelu_backward(d, dup, dmlp, b->up, type == MLP_GELU_EXACT);
}

/* dx becomes the gradient of x_mid. */
static void backward_mlp(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m,
                         const struct gpt_block *b, int64_t i)
{
    const struct device_train_ops *ops = d->train;
    const struct gpt_layer *l = &t->gpt->layers[i];
    struct gpt_layer *dl = &t->grads.layers[i];
    int64_t n = b->x_in.rows;
    struct tensor dx = rows_of(t->dx, 0, n), dh = rows_of(t->dh, 0, n), dy = rows_of(t->dy, 0, n);
    struct tensor dup = rows_of(t->dup, 0, n);
    struct branch_gradient next = attention_gradient(t, m, i);

    ops->matmul_backward_w(d, &dl->mlp_down, NULL, dy, b->mlp,
                           gpt_random_key(b->random_key, ROUND_MLP_DOWN));
    backward_activation(t, d, b, &l->mlp_down);
    ops->matmul_backward_w(d, &dl->mlp_up, dl->mlp_up_bias, dup, b->h_mlp,
                           gpt_random_key(b->random_key, ROUND_MLP_UP));
    ops->matmul_backward_x(d, dh, dup, &l->mlp_up);
    ops->norm_backward(d, dx, (float *)dl->mlp_norm.weight, (float *)dl->mlp_norm.bias, dh,
                       b->x_mid, &l->mlp_norm, &next);
}

/* dx becomes the gradient of x_in. */
static void backward_attention(struct gpt_train *t, struct device *d,
                               const struct gpt_micro_batch *m, const struct gpt_block *b,
                               int64_t i)
{
    const struct device_train_ops *ops = d->train;
    const struct gpt_layer *l = &t->gpt->layers[i];
    struct gpt_layer *dl = &t->grads.layers[i];
    struct attention a = gpt_attention(t->gpt, (int32_t)i, b);
    int64_t n = b->x_in.rows;
    struct tensor dx = rows_of(t->dx, 0, n), dh = rows_of(t->dh, 0, n), dy = rows_of(t->dy, 0, n);
    struct tensor dattn = rows_of(t->dattn, 0, n), dqkv = rows_of(t->dqkv, 0, n);
    struct tensor dqkv_act = rows_of(t->dqkv_act, 0, n);
    struct branch_gradient next = {0};
    if (i > 0) next = mlp_gradient(t, m, i - 1);

    ops->matmul_backward_w(d, &dl->attn_out, NULL, dy, b->attn,
                           gpt_random_key(b->random_key, ROUND_ATTN_OUT));
    ops->matmul_backward_x(d, dattn, dy, &l->attn_out);
    ops->attention_backward(d, dqkv, dattn, b->qkv_kept, b->attn, b->lse, &m->batch, &a);
    ops->rope_backward(d, dqkv_act, dqkv, b->qkv_pre, dl->q_norm, dl->k_norm, &m->batch, &a);
    ops->matmul_backward_w(d, &dl->qkv, dl->qkv_bias, dqkv_act, b->h_attn,
                           gpt_random_key(b->random_key, ROUND_QKV));
    ops->matmul_backward_x(d, dh, dqkv_act, &l->qkv);
    ops->norm_backward(d, dx, (float *)dl->attn_norm.weight, (float *)dl->attn_norm.bias, dh,
                       b->x_in, &l->attn_norm, i > 0 ? &next : NULL);
}

static void backward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m)
{
    const struct gpt *g = t->gpt;
    const struct batch *b = &m->batch;
    float dropout = t->options.dropout;
    int64_t n = b->n_rows;
    struct tensor dx = rows_of(t->dx, 0, n);
    struct branch_gradient last = mlp_gradient(t, m, g->config.n_layer - 1);
    d->train->zero(d, dx.data, n * dx.cols * (int64_t)sizeof(float));
    d->train->norm_backward(d, dx, (float *)t->grads.final_norm.weight,
                            (float *)t->grads.final_norm.bias, rows_of(t->dh, 0, n),
                            rows_of(t->shared.x_out, 0, n), &g->final_norm, &last);
    for (int64_t i = g->config.n_layer - 1; i >= 0; i--) {
        struct gpt_block block = block_at(t, i, n);
        block.dropout = dropout;
        block.random_key = layer_key(m, i);
        recompute_block(t, d, b, i, &block);
        backward_mlp(t, d, m, &block, i);
        backward_attention(t, d, m, &block, i);
    }
    if (dropout > 0) d->train->dropout(d, dx, dx, (struct dropout){dropout, layer_key(m, -1)});
    d->train->embed_backward(d, &t->grads.wte, t->grads.wpe, dx, b);
}

/* ---- a micro-batch ---- */

static void check_micro_batch(const struct gpt_train *t, const struct gpt_micro_batch *m)
{
    ASSERT(m->batch.n_rows > 0 && m->batch.n_rows <= t->options.max_rows);
    ASSERT(m->batch.n_spans > 0 && m->batch.n_spans <= t->options.max_spans);
}

void gpt_train_forward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m)
{
    check_micro_batch(t, m);
    forward(t, d, m, t->options.dropout);
}

void gpt_train_backward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m)
{
    struct loss_options o = {&m->scalars->grad_scale, t->options.label_smoothing,
                             t->options.z_loss};
    loss(t, d, m, &o, true);
    backward(t, d, m);
}

void gpt_train_micro_step(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m)
{
    gpt_train_forward(t, d, m);
    gpt_train_backward(t, d, m);
}

void gpt_train_evaluate(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m)
{
    check_micro_batch(t, m);
    forward(t, d, m, 0);
    loss(t, d, m, &(struct loss_options){0}, false);
}

/* Gradients follow each other in the plan, up to the rounding of where they begin:
 * runs of them are zeroed at once. */
void gpt_train_zero_grads(struct gpt_train *t, struct device *d)
{
    uint8_t *begin = NULL, *end = NULL; /* of the run */
    for (int64_t i = 0; i < gpt_n_params(&t->grads); i++) {
        struct gpt_param p = gpt_param(&t->grads, i);
        uint8_t *data = p.matrix ? p.matrix->data : (uint8_t *)p.vector;
        int64_t bytes = p.matrix ? d->ops->matrix_bytes(d, p.matrix->dtype, p.n_out, p.n_in)
                                 : p.n_out * p.n_in * (int64_t)sizeof(float);
        bool follows = (intptr_t)data == round_up((intptr_t)end, DEVICE_ALIGN);
        if (!begin || !follows) {
            if (begin) d->train->zero(d, begin, end - begin);
            begin = data;
        }
        end = data + bytes;
    }
    if (begin) d->train->zero(d, begin, end - begin);
}
