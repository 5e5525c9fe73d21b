/* A model's loss on text: see evaluate.h. A sequence goes through the model in pieces of
 * PIECE_ROWS rows, as prompts do in the engine, so that the logits of a piece are all that ever
 * exist. */
#include "model/evaluate.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/device_train.h"
#include "model/gpt_train.h"

enum { PIECE_ROWS = 128 };
/* What devices say of a logit that is NaN or minus infinity. */
static const float NO_PROBABILITY = -9999.0f;

struct evaluator {
    struct device *device;
    struct gpt gpt;
    struct gpt_state state;
    struct kv_cache kv;
    struct gpt_train_options shape; /* of the rows: one sequence */
    struct gpt_rows host, on_device;
    int32_t *out_rows;              /* [PIECE_ROWS] device: 0, 1, ... */
    struct span *span;              /* of a piece, device */
    struct loss_row *losses;        /* [PIECE_ROWS] device */
    void *workspace;
    int64_t workspace_bytes;
    int64_t piece_rows;
    struct plan device_plan, host_plan;
    void *device_arena, *host_arena;
    float *load_staging;
    struct loss_row *host_losses;
};

static void layout_device(struct evaluator *e, struct plan *plan)
{
    const struct device *d = e->device;
    gpt_layout(&e->gpt, d, MEMORY_WEIGHTS, plan);
    gpt_state_layout(&e->state, &e->gpt, e->piece_rows, e->piece_rows, plan);
    int64_t page = d->ops->kv_page_bytes(d, e->kv.dtype, e->kv.n_kv_head, e->kv.head_dim);
    e->kv.data = plan_take(plan, MEMORY_KV_CACHE, "kv", (int64_t)e->kv.n_layer * e->kv.n_pages,
                           page);
    struct workspace_shape shape = gpt_workspace_shape(&e->gpt, e->piece_rows, e->piece_rows,
                                                       e->shape.max_rows);
    e->workspace_bytes = d->train->workspace_bytes(d, &shape);
    e->workspace = plan_take(plan, MEMORY_WORKSPACE, "workspace", e->workspace_bytes, 1);
    gpt_rows_layout(&e->on_device, &e->shape, plan);
    e->out_rows = plan_take(plan, MEMORY_STAGING, "out_rows", e->piece_rows, sizeof *e->out_rows);
    e->span = plan_take(plan, MEMORY_STAGING, "span", 1, sizeof *e->span);
    e->losses = plan_take(plan, MEMORY_STAGING, "losses", e->piece_rows, sizeof *e->losses);
}

static struct evaluator *layout_host(struct evaluator *e, struct plan *plan)
{
    struct evaluator *self = plan_take(plan, MEMORY_HOST, "evaluator", 1, sizeof *self);
    struct gpt_layer *layers = plan_take(plan, MEMORY_HOST, "layers", e->gpt.config.n_layer,
                                         sizeof *layers);
    if (layers) e->gpt.layers = layers;
    gpt_rows_layout(&e->host, &e->shape, plan);
    e->host_losses = plan_take(plan, MEMORY_STAGING, "losses", e->piece_rows,
                               sizeof *e->host_losses);
    e->load_staging = plan_take(plan, MEMORY_STAGING, "load_staging",
                                gpt_load_staging_bytes(&e->gpt), 1);
    return self;
}

static bool resolve(struct evaluator *e, const struct evaluator_options *o, struct error *err)
{
    const struct gpt_config *c = checkpoint_config(o->checkpoint);
    int64_t T = o->max_sequence;
    if (!e->device->train)
        return error_set(err, ERR_UNSUPPORTED, "device", "%s cannot compute losses",
                         e->device->name);
    ASSERT(T > 0 && T <= c->block_size);
    if (T > INT32_MAX / 2 / KV_PAGE_TOKENS)
        return error_set(err, ERR_INVALID, NULL, "sequences of %lld tokens are too long to "
                         "evaluate", (long long)T);
    e->gpt.config = *c;
    enum dtype kv;
    if (!gpt_set_type(&e->gpt, o->dtype, e->device, err)
        || !gpt_kv_type(&e->gpt, o->kv_dtype, e->device, &kv, err))
        return false;
    if (o->keep_formats && gpt_keeps_formats(e->device))
        e->gpt.kept = checkpoint_formats(o->checkpoint);
    e->gpt.max_context = c->pos_encoding == POS_ROPE ? T : c->block_size;
    e->shape = (struct gpt_train_options){.max_rows = T, .max_spans = 1, .loss_rows = 1};
    e->piece_rows = min_i64(T, PIECE_ROWS);
    e->kv = (struct kv_cache){
        .dtype = kv,
        .n_layer = (int32_t)c->n_layer,
        .n_pages = (int32_t)gpt_train_pages(&e->shape),
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
    };
    return true;
}

static bool plan_both(struct evaluator *e, int64_t budget, struct error *err)
{
    struct gpt_layer *scratch = calloc((size_t)e->gpt.config.n_layer, sizeof *scratch);
    if (!scratch) return error_set(err, ERR_MEMORY, NULL, "no memory for planning");
    e->gpt.layers = scratch;
    (void)layout_host(e, &e->host_plan);
    layout_device(e, &e->device_plan);
    free(scratch);
    int64_t total = 0;
    if (e->device_plan.overflow || e->host_plan.overflow ||
        !checked_add(e->device_plan.total, e->host_plan.total, &total))
        return error_set(err, ERR_NO_FIT, NULL, "evaluating would need more than 2^63 bytes");
    return budget == 0 || total <= budget ||
           error_set(err, ERR_NO_FIT, "memory_budget", "evaluating needs %lld bytes, which is "
                     "%lld over the memory budget of %lld", (long long)total,
                     (long long)(total - budget), (long long)budget);
}

static struct evaluator *allocate(struct evaluator *e, struct error *err)
{
    if (!plan_alloc(&e->host_plan, &e->device_plan, e->device, &e->host_arena, &e->device_arena,
                    err))
        return NULL;
    struct evaluator *self = layout_host(e, &e->host_plan);
    layout_device(e, &e->device_plan);
    ASSERT(plan_matches(&e->host_plan) && plan_matches(&e->device_plan));
    e->device->ops->set_workspace(e->device, e->workspace, e->workspace_bytes);
    memcpy(self, e, sizeof *self);
    return self;
}

bool evaluator_open(struct device *d, const struct evaluator_options *o, struct evaluator **out,
                    struct error *err)
{
    struct evaluator draft = {.device = d}, *e;
    if (!resolve(&draft, o, err) || !plan_both(&draft, o->memory_budget, err)) return false;
    e = allocate(&draft, err);
    if (!e) return false;
    int32_t numbers[PIECE_ROWS];
    for (int32_t i = 0; i < e->piece_rows; i++) numbers[i] = i;
    d->ops->upload(d, e->out_rows, numbers, (size_t)e->piece_rows * sizeof *numbers);
    if (!gpt_load(&e->gpt, d, o->checkpoint, e->load_staging, err)) {
        evaluator_close(e);
        return false;
    }
    *out = e;
    return true;
}

void evaluator_close(struct evaluator *e)
{
    if (!e) return;
    plan_release(e->device, e->host_arena, e->device_arena, e->device_plan.total); /* with *e */
}

int64_t evaluator_memory(const struct evaluator *e)
{
    return e->device_plan.total + e->host_plan.total;
}

/* Rows [row, row + n) of the sequence on the device, whose earlier rows are in the cache. */
static bool add_piece(struct evaluator *e, const struct gpt_micro_batch *m, int32_t row, int32_t n,
                      struct evaluation *sum, struct error *err)
{
    struct device *d = e->device;
    struct span span = {.n_rows = n, .start = row};
    struct batch b = m->batch;
    struct loss_options plain = {0};
    d->ops->upload(d, e->span, &span, sizeof span);
    b.n_rows = n;
    b.tokens += row;
    b.positions += row;
    b.slots += row;
    b.spans = e->span;
    gpt_forward(&e->gpt, &e->state, d, &b, &e->kv, e->out_rows, n, NULL);
    struct tensor logits = e->state.logits;
    logits.rows = n;
    d->train->cross_entropy(d, (struct tensor){0}, logits, m->targets + row, &plain, e->losses);
    d->ops->download(d, e->host_losses, e->losses, (size_t)n * sizeof *e->losses);
    if (!d->ops->sync(d, err)) return false;
    for (int32_t i = 0; i < n; i++) {
        if (e->host_losses[i].logprob <= NO_PROBABILITY)
            return error_set(err, ERR_FORMAT, NULL, "the model gives token id %d no probability "
                             "at all: its weights hold NaN or infinity", e->host.targets[row + i]);
        sum->nll -= e->host_losses[i].logprob;
    }
    return true;
}

bool evaluator_add(struct evaluator *e, const struct dataset *data, enum dataset_split split,
                   int64_t index, struct evaluation *sum, struct error *err)
{
    gpt_rows_clear(&e->host);
    int64_t targets = dataset_add(data, split, index, &e->host, &e->shape);
    if (targets < 0)
        return error_set(err, ERR_FORMAT, NULL, "sequence %lld does not fit the model: a damaged "
                         "token shard", (long long)index);
    struct gpt_micro_batch m = gpt_rows_upload(&e->host, &e->on_device, e->device);
    for (int32_t row = 0, n; row < e->host.n_rows; row += n) {
        n = (int32_t)min_i64(e->piece_rows, e->host.n_rows - row);
        if (!add_piece(e, &m, row, n, sum, err)) return false;
    }
    sum->tokens += targets;
    return true;
}
