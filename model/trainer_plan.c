/* The trainer's memory: one arena on the device and one on the host, each laid out by a plan. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/trainer_internal.h"

static struct workspace_shape workspace_shape(const struct trainer *t)
{
    const struct gpt_train_options *o = &t->train.options;
    struct workspace_shape shape = gpt_workspace_shape(&t->gpt, o->max_rows, o->loss_rows,
                                                       t->options.config.sequence_length);
    shape.gradients = o->gradients;
    return shape;
}

static void layout_device(struct trainer *t, struct plan *plan)
{
    struct workspace_shape shape = workspace_shape(t);
    gpt_layout(&t->gpt, t->device, MEMORY_WEIGHTS, plan);
    gpt_train_layout(&t->train, t->device, plan);
    optimizer_layout(&t->optimizer, &t->gpt, &t->train.grads, t->device, plan);
    t->workspace_bytes = t->device->train->workspace_bytes(t->device, &shape);
    t->workspace = plan_take(plan, MEMORY_WORKSPACE, "workspace", t->workspace_bytes, 1);
    gpt_rows_layout(&t->device_rows, &t->train.options, plan);
    t->sampled = plan_take(plan, MEMORY_STAGING, "sampled", 1, sizeof *t->sampled);
}

/* The arrays whose sizes follow from the number of layers: needed to plan, too. */
struct layer_arrays {
    struct gpt_layer *layers, *grad_layers;
    struct gpt_block *blocks;
    struct adamw_tensor *tensors;
    bool *frozen;
};

static void use_arrays(struct trainer *t, const struct layer_arrays *a)
{
    t->gpt.layers = a->layers;
    t->train.grads.layers = a->grad_layers;
    t->train.blocks = a->blocks;
    t->optimizer.tensors = a->tensors;
    t->optimizer.frozen = a->frozen;
}

static struct layer_arrays take_arrays(const struct trainer *t, struct plan *plan)
{
    int64_t L = t->gpt.config.n_layer, n = gpt_n_params(&t->gpt);
    return (struct layer_arrays){
        .layers = plan_take(plan, MEMORY_HOST, "layers", L, sizeof(struct gpt_layer)),
        .grad_layers = plan_take(plan, MEMORY_HOST, "grad_layers", L, sizeof(struct gpt_layer)),
        .blocks = plan_take(plan, MEMORY_HOST, "blocks", L, sizeof(struct gpt_block)),
        .tensors = plan_take(plan, MEMORY_HOST, "tensors", n, sizeof(struct adamw_tensor)),
        .frozen = plan_take(plan, MEMORY_HOST, "frozen", n, sizeof(bool)),
    };
}

/* Returns where the trainer itself shall lie (NULL while planning). */
static struct trainer *layout_host(struct trainer *t, struct plan *plan)
{
    struct trainer *self = plan_take(plan, MEMORY_HOST, "trainer", 1, sizeof *self);
    struct layer_arrays arrays = take_arrays(t, plan);
    if (self) use_arrays(t, &arrays);
    for (int64_t i = 0; i < t->n_staged; i++) {
        gpt_rows_layout(&t->host_rows[i], &t->train.options, plan);
        t->losses[i] = plan_take(plan, MEMORY_STAGING, "losses", t->train.options.max_rows,
                                 sizeof *t->losses[i]);
    }
    t->squares = plan_take(plan, MEMORY_STAGING, "grad_squares", 1, sizeof *t->squares);
    t->load_staging = plan_take(plan, MEMORY_STAGING, "load_staging",
                                gpt_load_staging_bytes(&t->gpt), 1);
    return self;
}

/* The most documents that one sequence of any set holds. */
static int64_t max_spans(const struct trainer_options *o)
{
    int64_t n = o->data ? dataset_max_spans(o->data) : 1;
    for (int32_t i = 0; i < o->n_sets; i++) n = max_i64(n, dataset_max_spans(o->sets[i].data));
    return n;
}

static bool resolve(struct trainer *t, struct error *err)
{
    const struct trainer_options *o = &t->options;
    const struct train_config *c = &o->config;
    int64_t rows;
    if (!t->device->train)
        return error_set(err, ERR_UNSUPPORTED, "device", "%s cannot train", t->device->name);
    if (!gpt_set_type(&t->gpt, c->dtype, t->device, err)) return false;
    ASSERT(c->micro_batch_size > 0 && c->loss_rows > 0 && c->sequence_length > 0);
    if (!checked_mul(c->micro_batch_size, c->sequence_length, &rows) ||
        rows > TRAINER_MAX_ROWS)
        return error_set(err, ERR_INVALID, "micro_batch_size",
                         "micro_batch_size x sequence_length is %lld x %lld tokens, too many at "
                         "a time",
                         (long long)c->micro_batch_size, (long long)c->sequence_length);
    /* A rotation table has the run's positions; learned ones are the model's, all of them. */
    bool rope = o->model.pos_encoding == POS_ROPE;
    t->gpt.config = o->model;
    t->gpt.max_context = rope ? c->sequence_length : o->model.block_size;
    t->train.gpt = &t->gpt;
    t->train.options = (struct gpt_train_options){
        .max_rows = rows,
        .max_spans = min_i64(rows, c->micro_batch_size * max_spans(o)),
        .loss_rows = min_i64(c->loss_rows, rows),
        .recompute = c->recompute,
        .dropout = (float)c->dropout,
        .label_smoothing = (float)c->label_smoothing,
        .z_loss = (float)c->z_loss,
        .gradients = c->gradients,
    };
    t->n_micro_batches = ceil_div(c->batch_size * c->grad_accum_steps, c->micro_batch_size);
    t->n_staged = min_i64(t->n_micro_batches, TRAINER_MAX_STAGED);
    t->optimizer.options = (struct optimizer_options){
        .beta1 = (float)c->beta1,
        .beta2 = (float)c->beta2,
        .eps = (float)c->eps,
        .weight_decay = (float)c->weight_decay,
        .grad_clip = (float)c->grad_clip,
        .moments = c->moments,
        .master = c->master,
        .freeze_layers = c->freeze_layers,
        .freeze_embeddings = c->freeze_embeddings,
    };
    return true;
}

static bool alloc_arrays(const struct trainer *t, struct layer_arrays *a, struct error *err)
{
    size_t L = (size_t)t->gpt.config.n_layer, n = (size_t)gpt_n_params(&t->gpt);
    *a = (struct layer_arrays){
        .layers = calloc(L, sizeof *a->layers),
        .grad_layers = calloc(L, sizeof *a->grad_layers),
        .blocks = calloc(L, sizeof *a->blocks),
        .tensors = calloc(n, sizeof *a->tensors),
        .frozen = calloc(n, sizeof *a->frozen),
    };
    if (a->layers && a->grad_layers && a->blocks && a->tensors && a->frozen) return true;
    return error_set(err, ERR_MEMORY, NULL, "no memory for planning %zu layers", L);
}

static void free_arrays(struct layer_arrays *a)
{
    free(a->layers);
    free(a->grad_layers);
    free(a->blocks);
    free(a->tensors);
    free(a->frozen);
}

/* The data in memory: text that was read. A set is often another split of the data to learn
 * from. */
static int64_t data_bytes(const struct trainer_options *o)
{
    int64_t bytes = o->data ? dataset_memory(o->data) : 0;
    for (int32_t i = 0; i < o->n_sets; i++)
        if (o->sets[i].data != o->data) bytes += dataset_memory(o->sets[i].data);
    return bytes;
}

/* Both plans; `scratch` serves as the arrays that will lie in the host arena. */
static bool plan_both(struct trainer *t, const struct layer_arrays *scratch, plan_listener see,
                      void *ctx, struct memory_plan *out, struct error *err)
{
    use_arrays(t, scratch);
    plan_init(&t->device_plan);
    plan_init(&t->host_plan);
    t->device_plan.see = t->host_plan.see = see;
    t->device_plan.ctx = t->host_plan.ctx = ctx;
    (void)layout_host(t, &t->host_plan);
    layout_device(t, &t->device_plan);
    return plan_sum(&t->host_plan, &t->device_plan, data_bytes(&t->options), out)
           || error_set(err, ERR_NO_FIT, NULL, "training this model would need more than 2^63 bytes");
}

bool trainer_plan(const struct trainer_options *o, const struct device *d, plan_listener see,
                  void *ctx, struct memory_plan *out, struct error *err)
{
    struct trainer draft = {.options = *o, .device = (struct device *)d};
    struct layer_arrays scratch = {0};
    bool ok = resolve(&draft, err) && alloc_arrays(&draft, &scratch, err)
              && plan_both(&draft, &scratch, see, ctx, out, err);
    free_arrays(&scratch);
    return ok;
}

static bool check_budget(const struct trainer *t, const struct memory_plan *m, struct error *err)
{
    int64_t total = m->total_bytes, budget = t->options.memory_budget;
    const int64_t *c = m->component;
    if (budget == 0 || total <= budget) return true;
    return error_set(err, ERR_NO_FIT, "memory_budget",
                     "training needs %lld bytes (weights %lld, master %lld, gradients %lld, "
                     "optimizer %lld, activations %lld, logits %lld, kv_cache %lld, workspace %lld, "
                     "data %lld, staging and host %lld), which is %lld over the memory budget of "
                     "%lld: raise it, or lower micro_batch_size (%lld), set recompute to block, or "
                     "moments to q8",
                     (long long)total, (long long)c[MEMORY_WEIGHTS],
                     (long long)c[MEMORY_MASTER], (long long)c[MEMORY_GRADIENTS],
                     (long long)c[MEMORY_OPTIMIZER], (long long)c[MEMORY_ACTIVATIONS],
                     (long long)c[MEMORY_LOGITS], (long long)c[MEMORY_KV_CACHE],
                     (long long)c[MEMORY_WORKSPACE], (long long)c[MEMORY_DATA],
                     (long long)(c[MEMORY_STAGING] + c[MEMORY_HOST]), (long long)(total - budget),
                     (long long)budget, (long long)t->options.config.micro_batch_size);
}

struct trainer *trainer_allocate(struct trainer *t, struct error *err)
{
    struct layer_arrays scratch = {0};
    struct memory_plan planned;
    bool ok = resolve(t, err) && alloc_arrays(t, &scratch, err)
              && plan_both(t, &scratch, NULL, NULL, &planned, err) && check_budget(t, &planned, err)
              && plan_alloc(&t->host_plan, &t->device_plan, t->device, &t->host_arena,
                            &t->device_arena, err);
    free_arrays(&scratch);
    if (!ok) return NULL;
    struct trainer *self = layout_host(t, &t->host_plan);
    layout_device(t, &t->device_plan);
    ASSERT(plan_matches(&t->host_plan) && plan_matches(&t->device_plan));
    t->device->ops->set_workspace(t->device, t->workspace, t->workspace_bytes);
    memcpy(self, t, sizeof *self);
    self->train.gpt = &self->gpt;
    return self;
}

void trainer_release(struct trainer *t)
{
    trainer_free_graphs(t);
    plan_release(t->device, t->host_arena, t->device_arena, t->device_plan.total); /* with *t */
}

struct memory_plan trainer_memory(const struct trainer *t)
{
    struct memory_plan m;
    bool fits = plan_sum(&t->host_plan, &t->device_plan, data_bytes(&t->options), &m);
    ASSERT(fits);
    return m;
}
