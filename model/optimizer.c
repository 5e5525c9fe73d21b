/* AdamW over all weights: see optimizer.h. */
#include "model/optimizer.h"

#include <math.h>
#include <stdio.h>


/* Below this, 8-bit moments save nothing worth their noise. */
enum { Q8_MIN_ELEMENTS = 4096 };

static bool is_embedding(enum weight_role role)
{
    return role == WEIGHT_TOKEN_EMBEDDING || role == WEIGHT_POSITION_EMBEDDING;
}

static bool is_frozen(const struct optimizer_options *o, const struct gpt_param *p)
{
    if (is_embedding(p->role)) return o->freeze_embeddings;
    return weight_role_is_layer(p->role) && p->layer < o->freeze_layers;
}

/* Of all that lies beside a weight: an f32 packed matrix, padding and all; or a vector. */
static int64_t n_elements(const struct device *d, const struct adamw_tensor *t)
{
    if (!t->packed) return t->n_out * t->n_in;
    return d->ops->matrix_bytes(d, DTYPE_F32, t->n_out, t->n_in) / dtype_bytes(DTYPE_F32, 1);
}

/* A rare token's row has moments far below those of its neighbours in a block of 8 bits: what is
 * lost there would be all of it. bf16 keeps each to its own scale. */
static enum moment_format moments_of(const struct optimizer_options *o, const struct gpt_param *p)
{
    if (o->moments != MOMENT_Q8) return o->moments;
    if (p->n_out * p->n_in < Q8_MIN_ELEMENTS) return MOMENT_F32;
    return is_embedding(p->role) ? MOMENT_BF16 : MOMENT_Q8;
}

static int64_t master_bytes(enum master_format format, int64_t n)
{
    switch (format) {
    case MASTER_NONE: return 0;
    case MASTER_F32: return n * 4;
    case MASTER_REMAINDER: return n * 2;
    }
    ASSERT(!"master_format");
    return 0;
}

/* What is a matrix by meaning decays; the position embedding is one, though kept as plain rows. */
static float decay_of(const struct optimizer_options *o, const struct gpt_param *p)
{
    return p->matrix || p->role == WEIGHT_POSITION_EMBEDDING ? o->weight_decay : 0;
}

static void tensor_layout(struct adamw_tensor *t, const struct optimizer_options *o,
                          const struct gpt_param *p, const struct gpt_param *grad,
                          const struct device *d, struct plan *plan)
{
    enum dtype dtype = p->matrix ? p->matrix->dtype : DTYPE_F32;
    *t = (struct adamw_tensor){
        .weight = p->matrix ? p->matrix->data : p->vector,
        .dtype = dtype,
        .n_out = p->matrix ? p->n_out : 1,
        .n_in = p->matrix ? p->n_in : p->n_out * p->n_in,
        .packed = p->matrix != NULL,
        .grad = grad->matrix ? grad->matrix->data : grad->vector,
        .grad_dtype = grad->matrix ? grad->matrix->dtype : DTYPE_F32,
        .master_format = dtype == DTYPE_F32 ? MASTER_NONE : o->master,
        .m_format = moments_of(o, p),
        .v_format = moments_of(o, p),
        .weight_decay = decay_of(o, p),
    };
    if (is_frozen(o, p)) return;
    int64_t n = n_elements(d, t);
    t->master = plan_take(plan, MEMORY_MASTER, "master", master_bytes(t->master_format, n), 1);
    t->m = plan_take(plan, MEMORY_OPTIMIZER, "exp_avg", d->train->moment_bytes(d, t->m_format, n),
                     1);
    t->v = plan_take(plan, MEMORY_OPTIMIZER, "exp_avg_sq", d->train->moment_bytes(d, t->v_format,
                     n), 1);
}

void optimizer_layout(struct optimizer *o, struct gpt *g, struct gpt *grads, const struct device *d,
                      struct plan *plan)
{
    struct gpt_roles roles = gpt_roles(&g->config);
    o->n = gpt_n_params(g);
    for (int64_t i = 0; i < o->n; i++) {
        struct gpt_param p = gpt_param_of(g, &roles, i), grad = gpt_param_of(grads, &roles, i);
        o->frozen[i] = is_frozen(&o->options, &p);
        tensor_layout(&o->tensors[i], &o->options, &p, &grad, d, plan);
    }
    o->squares = plan_take(plan, MEMORY_STAGING, "grad_squares", 1, sizeof *o->squares);
}

void optimizer_start(struct optimizer *o, struct device *d)
{
    for (int64_t i = 0; i < o->n; i++) {
        const struct adamw_tensor *t = &o->tensors[i];
        if (o->frozen[i]) continue;
        int64_t n = n_elements(d, t);
        if (t->master_format != MASTER_NONE) d->train->master_init(d, t);
        d->train->zero(d, t->m, d->train->moment_bytes(d, t->m_format, n));
        d->train->zero(d, t->v, d->train->moment_bytes(d, t->v_format, n));
    }
}

void optimizer_sum_squares(const struct optimizer *o, struct device *d, double *squares)
{
    d->train->grad_squares(d, o->tensors, o->frozen, o->n, o->squares);
    d->ops->download(d, squares, o->squares, sizeof *squares);
}

double optimizer_grad_norm(double squares, double grad_scale) { return sqrt(squares) * grad_scale; }

void optimizer_step(struct optimizer *o, struct device *d, float lr, int64_t step,
                    double grad_scale, double norm)
{
    const struct optimizer_options *opt = &o->options;
    if (opt->grad_clip > 0 && norm > opt->grad_clip) grad_scale *= opt->grad_clip / norm;
    struct adamw_step s = {
        .lr = lr,
        .beta1 = opt->beta1,
        .beta2 = opt->beta2,
        .eps = opt->eps,
        .step = step,
        .grad_scale = (float)grad_scale,
    };
    d->train->adamw(d, o->tensors, o->frozen, o->n, &s);
}

/* ---- the state, for checkpoints ---- */

enum { ARRAYS_PER_TENSOR = 3 };
static const char *const array_names[ARRAYS_PER_TENSOR] = {"master", "exp_avg", "exp_avg_sq"};

static void *array_data(const struct adamw_tensor *t, int64_t which)
{
    void *const data[ARRAYS_PER_TENSOR] = {t->master, t->m, t->v};
    return data[which];
}

int64_t optimizer_n_arrays(const struct optimizer *o)
{
    int64_t n = 0;
    for (int64_t i = 0; i < o->n * ARRAYS_PER_TENSOR; i++)
        n += array_data(&o->tensors[i / ARRAYS_PER_TENSOR], i % ARRAYS_PER_TENSOR) != NULL;
    return n;
}

struct optimizer_array optimizer_array(const struct optimizer *o, const struct device *d, int64_t n)
{
    int64_t i = 0;
    while (!array_data(&o->tensors[i / ARRAYS_PER_TENSOR], i % ARRAYS_PER_TENSOR) || n-- > 0) i++;
    ASSERT(i < o->n * ARRAYS_PER_TENSOR);
    const struct adamw_tensor *t = &o->tensors[i / ARRAYS_PER_TENSOR];
    int64_t which = i % ARRAYS_PER_TENSOR, elements = n_elements(d, t);
    struct optimizer_array a = {
        .data = array_data(t, which),
        .bytes = which == 0 ? master_bytes(t->master_format, elements)
                            : d->train->moment_bytes(d, t->m_format, elements),
    };
    snprintf(a.name, sizeof a.name, "%lld.%s", (long long)(i / ARRAYS_PER_TENSOR),
             array_names[which]);
    return a;
}
