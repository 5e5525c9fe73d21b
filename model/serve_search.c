/* How much a device can serve within a budget: see serve_search.h. */
#include "model/serve_search.h"

#include "base/checked.h"
#include "model/gpt.h"

bool serve_plan_full(const struct gpt_config *c, const struct engine_options *o,
                     const struct device *d, plan_listener see, void *ctx, struct engine_need *out,
                     struct error *err)
{
    struct engine_options full = *o;
    int64_t context = o->max_context > 0 ? o->max_context : c->block_size;
    struct gpt types = {0};
    enum dtype kept;
    if (!gpt_type_is_served(o->dtype)) /* engine_plan says why not */
        return engine_plan(c, o, d, see, ctx, out, err);
    if (!gpt_set_type(&types, o->dtype, d, err) || !gpt_kv_type(&types, o->kv_dtype, d, &kept, err))
        return false;
    int64_t page = d->ops->kv_page_bytes(d, kept, (int32_t)c->n_kv_head, (int32_t)c->head_dim);
    int64_t pages = ceil_div(context, KV_PAGE_TOKENS) * max_i64(1, o->max_seqs);
    /* Pages are numbered by int32_t slots: the engine would quietly take fewer than these. */
    if (pages > INT32_MAX / KV_PAGE_TOKENS || !checked_mul(page, c->n_layer, &page)
        || !checked_mul(page, pages, &full.kv_bytes))
        return error_set(err, ERR_NO_FIT, "max_seqs",
                         "%d sequences of %lld tokens are more than a KV cache can hold",
                         o->max_seqs, (long long)context);
    full.memory_budget = 0;
    return engine_plan(c, &full, d, see, ctx, out, err);
}

/* What the searches share. */
struct search {
    const struct gpt_config *config;
    const struct device *device;
    int64_t budget;
};

static bool fits(const struct search *s, const struct engine_options *o)
{
    struct engine_need need;
    struct error ignored;
    return serve_plan_full(s->config, o, s->device, NULL, NULL, &need, &ignored)
           && (s->budget == 0 || need.memory.total_bytes <= s->budget);
}

/* How a number becomes options to plan for. */
typedef void (*set_number)(struct engine_options *o, int64_t n);

static void set_context(struct engine_options *o, int64_t n) { o->max_context = n; }
static void set_seqs(struct engine_options *o, int64_t n) { o->max_seqs = (int32_t)n; }
static void set_rows(struct engine_options *o, int64_t n) { o->max_batch_tokens = (int32_t)n; }

/* The largest n of 1..most that fits; 0: not even 1. */
static int64_t largest(const struct search *s, struct engine_options o, set_number set,
                       int64_t most)
{
    int64_t good = 0, bad = most + 1;
    while (bad - good > 1) {
        int64_t middle = good + (bad - good) / 2;
        set(&o, middle);
        if (fits(s, &o)) good = middle;
        else bad = middle;
    }
    return good;
}

bool serve_search(const struct gpt_config *c, const struct engine_options *o,
                  const struct device *d, int64_t budget, struct serve_limits *out,
                  struct error *err)
{
    struct search s = {c, d, budget};
    struct engine_options one = *o;
    struct engine_need need;
    /* Options that no engine takes are errors here; what merely does not fit is found below. */
    one.max_seqs = 1;
    if (!serve_plan_full(c, o, d, NULL, NULL, &need, err) && err->code != ERR_NO_FIT) return false;
    if (!serve_plan_full(c, &one, d, NULL, NULL, &need, err) && err->code != ERR_NO_FIT)
        return false;
    *out = (struct serve_limits){.max_context = largest(&s, one, set_context, c->block_size)};
    if (out->max_context == 0) return true;
    int64_t asked = o->max_context > 0 ? o->max_context : c->block_size;
    out->context = one.max_context = min_i64(asked, out->max_context);
    out->max_seqs = (int32_t)largest(&s, one, set_seqs, ENGINE_MAX_SEQS);
    out->max_batch_tokens = (int32_t)largest(&s, one, set_rows, ENGINE_MAX_BATCH_TOKENS);
    return true;
}
