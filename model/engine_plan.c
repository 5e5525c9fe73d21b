/* The engine's memory: one arena on the device and one on the host, each laid out by a plan. The
 * size of the KV pool is the one free variable, and is found by planning. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/engine_internal.h"

enum {
    MIN_LOGIT_ROWS = 64,           /* so that prompts are scored in good chunks */
    MAX_KV_PAGES = INT32_MAX / KV_PAGE_TOKENS, /* slots are numbered by int32_t */
};

static void layout_step_buffers(const struct engine *e, struct step_buffers *b, struct plan *plan)
{
    const struct engine_options *o = &e->options;
    b->tokens = plan_take(plan, MEMORY_STAGING, "tokens", o->max_batch_tokens, sizeof *b->tokens);
    b->positions = plan_take(plan, MEMORY_STAGING, "positions", o->max_batch_tokens,
                             sizeof *b->positions);
    b->slots = plan_take(plan, MEMORY_STAGING, "slots", o->max_batch_tokens, sizeof *b->slots);
    b->out_rows = plan_take(plan, MEMORY_STAGING, "out_rows", e->max_logit_rows,
                            sizeof *b->out_rows);
    b->spans = plan_take(plan, MEMORY_STAGING, "spans", o->max_seqs, sizeof *b->spans);
    b->requests = plan_take(plan, MEMORY_STAGING, "requests", e->max_logit_rows,
                            sizeof *b->requests);
    /* A sequence has one row a step at most of which a token is drawn;
     * those that are scored change no logits. */
    int64_t words = e->pages_per_seq + sample_max_words(e->gpt.config.vocab_size, o->max_context);
    b->words = plan_take(plan, MEMORY_STAGING, "words", o->max_seqs * words, sizeof *b->words);
    b->outs = plan_take(plan, MEMORY_STAGING, "outs", e->max_logit_rows, sizeof *b->outs);
}

static void layout_device(struct engine *e, struct plan *plan)
{
    const struct device_ops *ops = e->device->ops;
    gpt_layout(&e->gpt, e->device, MEMORY_WEIGHTS, plan);
    e->kv.data = plan_take(plan, MEMORY_KV_CACHE, "kv", e->kv.n_pages, e->kv_page_bytes);
    gpt_state_layout(&e->state, &e->gpt, e->options.max_batch_tokens, e->max_logit_rows, plan);
    struct workspace_shape shape = gpt_workspace_shape(&e->gpt, e->options.max_batch_tokens,
                                                       e->max_logit_rows, e->gpt.max_context);
    e->workspace_bytes = ops->workspace_bytes(e->device, &shape);
    e->workspace = plan_take(plan, MEMORY_WORKSPACE, "workspace", e->workspace_bytes, 1);
    layout_step_buffers(e, &e->step.device, plan);
}

/* Returns where the engine itself shall lie (NULL while planning). */
static struct engine *layout_host(struct engine *e, struct plan *plan)
{
    int32_t n = e->options.max_seqs, context = (int32_t)e->options.max_context;
    struct engine *self = plan_take(plan, MEMORY_HOST, "engine", 1, sizeof *self);
    struct gpt_layer *layers = plan_take(plan, MEMORY_HOST, "layers", e->gpt.config.n_layer,
                                         sizeof *layers);
    if (layers) e->gpt.layers = layers;
    if (e->gpt.kept) {
        int64_t n_formats = 1 + e->gpt.config.n_layer;
        struct weight_formats *kept = plan_take(plan, MEMORY_HOST, "formats", n_formats,
                                                sizeof *kept);
        if (kept) e->gpt.kept = memcpy(kept, e->gpt.kept, (size_t)n_formats * sizeof *kept);
        if (kept) e->options.formats = kept;
    }

    void *pool = plan_take(plan, MEMORY_HOST, "kv_pool", kv_pool_bytes(e->kv.n_pages), 1);
    if (pool) e->pool = kv_pool_init(pool, e->kv.n_pages);
    e->seqs = plan_take(plan, MEMORY_HOST, "seqs", n, sizeof *e->seqs);
    e->active = plan_take(plan, MEMORY_HOST, "active", n, sizeof *e->active);
    int32_t *history = plan_take(plan, MEMORY_HOST, "history", (int64_t)n * context,
                                 sizeof *history);
    int32_t *pages = plan_take(plan, MEMORY_HOST, "page_tables", (int64_t)n * e->pages_per_seq,
                               sizeof *pages);
    for (int32_t i = 0; e->seqs && i < n; i++) {
        e->seqs[i].history = history + (int64_t)i * context;
        e->seqs[i].pages = pages + (int64_t)i * e->pages_per_seq;
    }

    layout_step_buffers(e, &e->step.host, plan);
    e->step.change_of = plan_take(plan, MEMORY_STAGING, "change_of", e->gpt.config.vocab_size,
                                  sizeof *e->step.change_of);
    e->load_staging = plan_take(plan, MEMORY_STAGING, "load_staging",
                                gpt_load_staging_bytes(&e->gpt), 1);
    return self;
}

/* Both plans for a pool of n_pages; the total, or INT64_MAX when it does not fit 63 bits. */
static int64_t plan_pages(struct engine *e, int64_t n_pages)
{
    e->kv.n_pages = (int32_t)n_pages;
    plan_init(&e->device_plan);
    plan_init(&e->host_plan);
    e->device_plan.see = e->host_plan.see = e->see;
    e->device_plan.ctx = e->host_plan.ctx = e->see_ctx;
    /* The host first: in the second pass it says where the layers lie. */
    (void)layout_host(e, &e->host_plan);
    layout_device(e, &e->device_plan);
    int64_t total;
    if (e->device_plan.overflow || e->host_plan.overflow ||
        !checked_add(e->device_plan.total, e->host_plan.total, &total))
        return INT64_MAX;
    return total;
}

static bool no_fit(const struct engine *e, int64_t total, struct error *err)
{
    int64_t c[N_MEMORY_COMPONENTS];
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        c[i] = e->device_plan.component[i] + e->host_plan.component[i];
    return error_set(err, ERR_NO_FIT, "memory_budget",
                     "serving needs %lld bytes (weights %lld, kv_cache %lld for %d pages, "
                     "activations %lld, logits %lld, workspace %lld, staging %lld, host %lld), "
                     "which is %lld over the memory budget of %lld: raise it, or lower max_context "
                     "(%lld), max_batch_tokens (%d) or max_seqs (%d)",
                     (long long)total, (long long)c[MEMORY_WEIGHTS], (long long)c[MEMORY_KV_CACHE],
                     e->kv.n_pages, (long long)c[MEMORY_ACTIVATIONS], (long long)c[MEMORY_LOGITS],
                     (long long)c[MEMORY_WORKSPACE], (long long)c[MEMORY_STAGING],
                     (long long)c[MEMORY_HOST], (long long)(total - e->options.memory_budget),
                     (long long)e->options.memory_budget, (long long)e->options.max_context,
                     e->options.max_batch_tokens, e->options.max_seqs);
}

/* The KV pool: what was asked for (by default max_seqs / 4 full sequences), down to one full
 * sequence where the budget leaves no more. Leaves both plans planned for it. */
static bool choose_pages(struct engine *e, struct error *err)
{
    const struct engine_options *o = &e->options;
    int64_t full = e->pages_per_seq;
    int64_t want = o->kv_bytes > 0 ? o->kv_bytes / e->kv_page_bytes
                                   : full * max_i64(1, o->max_seqs / 4);
    want = min_i64(want, MAX_KV_PAGES);
    if (want < 1)
        return error_set(err, ERR_NO_FIT, "kv_bytes",
                         "the cache of keys and values is to have %lld bytes; one page of %d "
                         "tokens takes %lld",
                         (long long)o->kv_bytes, KV_PAGE_TOKENS, (long long)e->kv_page_bytes);
    int64_t least = min_i64(want, full);
    int64_t budget = o->memory_budget > 0 ? o->memory_budget : INT64_MAX - 1;
    int64_t total = plan_pages(e, least);
    if (total == INT64_MAX)
        return error_set(err, ERR_NO_FIT, NULL, "serving %s would need more than 2^63 bytes",
                         e->gpt.config.arch);
    if (total > budget) return no_fit(e, total, err);
    int64_t fits = least, over = want + 1;
    while (over - fits > 1) {
        int64_t middle = fits + (over - fits) / 2;
        if (plan_pages(e, middle) <= budget) fits = middle;
        else over = middle;
    }
    (void)plan_pages(e, fits);
    return true;
}

/* Checks the options against the model and fills in what they leave open. */
static bool resolve_options(struct engine *e, struct error *err)
{
    struct engine_options *o = &e->options;
    const struct gpt_config *c = &e->gpt.config;
    const struct { const char *name; int64_t value, min, max; } ranges[] = {
        {"max_seqs", o->max_seqs, 1, ENGINE_MAX_SEQS},
        {"max_batch_tokens", o->max_batch_tokens, 1, ENGINE_MAX_BATCH_TOKENS},
        {"max_queue", o->max_queue, 1, 1 << 20},
        {"max_context", o->max_context, 0, c->block_size},
        {"kv_bytes", o->kv_bytes, 0, INT64_MAX},
        {"memory_budget", o->memory_budget, 0, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (ranges[i].value < ranges[i].min || ranges[i].value > ranges[i].max)
            return error_set(err, ERR_INVALID, ranges[i].name,
                             "%s is %lld; it must be from %lld to %lld", ranges[i].name,
                             (long long)ranges[i].value, (long long)ranges[i].min,
                             (long long)ranges[i].max);
    if (!gpt_type_is_served(o->dtype))
        return error_set(err, ERR_INVALID, "dtype",
                         "dtype is %s; it must be f32, bf16, f16, q8_0 or q4_0",
                         dtype_info(o->dtype)->name);
    if (!gpt_keeps_formats(e->device)) o->formats = NULL;
    if (o->formats && o->dtype != DTYPE_BF16 && o->dtype != DTYPE_F16)
        return error_set(err, ERR_INVALID, "dtype",
                         "dtype is %s; beside matrices that stay quantized as the file has them it "
                         "must be bf16 or f16", dtype_info(o->dtype)->name);
    if (o->max_context == 0) o->max_context = c->block_size;
    return true;
}

static bool resolve_shapes(struct engine *e, struct error *err)
{
    const struct engine_options *o = &e->options;
    const struct gpt_config *c = &e->gpt.config;
    enum dtype kv;
    if (!gpt_set_type(&e->gpt, o->dtype, e->device, err)
        || !gpt_kv_type(&e->gpt, o->kv_dtype, e->device, &kv, err))
        return false;
    e->gpt.kept = o->formats;
    e->gpt.max_context = o->max_context;
    e->pages_per_seq = (int32_t)ceil_div(o->max_context, KV_PAGE_TOKENS);
    /* Every running sequence can have its row; more only helps scoring. */
    e->max_logit_rows = (int32_t)min_i64(o->max_batch_tokens, max_i64(o->max_seqs, MIN_LOGIT_ROWS));
    e->kv = (struct kv_cache){
        .dtype = kv,
        .n_layer = (int32_t)c->n_layer,
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
    };
    e->kv_page_bytes = c->n_layer * e->device->ops->kv_page_bytes(e->device, e->kv.dtype,
                                                                  e->kv.n_kv_head, e->kv.head_dim);
    return true;
}

static struct engine *allocate(struct engine *e, struct error *err)
{
    if (!plan_alloc(&e->host_plan, &e->device_plan, e->device, &e->host_arena, &e->device_arena,
                    err))
        return NULL;
    struct engine *self = layout_host(e, &e->host_plan);
    layout_device(e, &e->device_plan);
    e->device->ops->set_workspace(e->device, e->workspace, e->workspace_bytes);
    if (plan_matches(&e->host_plan) && plan_matches(&e->device_plan)) return self;
    error_set(err, ERR_INTERNAL, NULL,
              "the memory plan and the allocation differ: planned %lld bytes on the device and "
              "%lld on the host, took %lld and %lld; this is a bug of gptd on %s",
              (long long)e->device_plan.planned, (long long)e->host_plan.planned,
              (long long)e->device_plan.total, (long long)e->host_plan.total, e->device->name);
    plan_release(e->device, e->host_arena, e->device_arena, e->device_plan.planned);
    return NULL;
}

static void remember_plan(const struct engine *e, int64_t component[])
{
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        component[i] = e->device_plan.component[i] + e->host_plan.component[i];
}

/* Plans for the options; e->gpt.layers points to scratch after, which the caller frees. */
static bool plan_engine(struct engine *e, struct error *err)
{
    if (!resolve_options(e, err) || !resolve_shapes(e, err)) return false;
    e->gpt.layers = calloc((size_t)e->gpt.config.n_layer, sizeof *e->gpt.layers);
    if (!e->gpt.layers)
        return error_set(err, ERR_MEMORY, NULL, "no memory for planning %lld layers",
                         (long long)e->gpt.config.n_layer);
    return choose_pages(e, err);
}

bool engine_plan(const struct gpt_config *c, const struct engine_options *o, const struct device *d,
                 plan_listener see, void *ctx, struct engine_need *out, struct error *err)
{
    struct engine draft = {.device = (struct device *)d, .options = *o, .gpt.config = *c};
    bool ok = plan_engine(&draft, err);
    if (ok) {
        /* Once more, now that the pool's size is known, for the listener. */
        draft.see = see;
        draft.see_ctx = ctx;
        (void)plan_pages(&draft, draft.kv.n_pages);
        *out = (struct engine_need){.kv_pages = draft.kv.n_pages,
                                    .kv_dtype = draft.kv.dtype,
                                    .kv_page_bytes = draft.kv_page_bytes,
                                    .max_context = draft.options.max_context};
        ok = plan_sum(&draft.host_plan, &draft.device_plan, 0, &out->memory);
        ASSERT(ok);
    }
    free(draft.gpt.layers);
    return ok;
}

struct engine *engine_allocate(struct engine *e, struct error *err)
{
    struct engine *self = NULL;
    bool ok = plan_engine(e, err);
    void *scratch = e->gpt.layers;
    if (ok) {
        struct engine_memory *m = &e->live.memory;
        remember_plan(e, m->planned);
        m->planned_bytes = e->device_plan.total + e->host_plan.total;
        self = allocate(e, err);
        if (self) {
            remember_plan(e, m->allocated);
            m->allocated_bytes = e->device_plan.total + e->host_plan.total;
            m->host_bytes = e->host_plan.total;
            m->kv_page_bytes = e->kv_page_bytes;
            *self = *e;
        }
    }
    free(scratch);
    return self;
}

bool engine_device_memory(const struct engine *e, struct device_memory *out)
{
    const struct device_ops *ops = e->device->ops;
    return ops->memory && ops->memory(e->device, out);
}

void engine_arenas(const struct engine *e, struct engine_arena out[2])
{
    out[0] = (struct engine_arena){e->host_arena, e->host_plan.total};
    out[1] = (struct engine_arena){e->device_arena, e->device_plan.total};
}

void engine_release(struct engine *e)
{
    plan_release(e->device, e->host_arena, e->device_arena, e->device_plan.total); /* with *e */
}
