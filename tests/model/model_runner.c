/* One sequence straight through gpt_forward: see model_runner.h. */
#include "tests/model/model_runner.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

static void layout(struct model_runner *r)
{
    const struct device *d = r->device;
    const struct gpt_config *c = &r->gpt.config;
    struct plan *p = &r->plan;
    gpt_layout(&r->gpt, d, MEMORY_WEIGHTS, p);
    gpt_state_layout(&r->state, &r->gpt, r->max_rows, r->max_rows, p);
    r->kv = (struct kv_cache){
        .dtype = r->gpt.dtype,
        .n_layer = (int32_t)c->n_layer,
        .n_pages = (int32_t)ceil_div(c->block_size, KV_PAGE_TOKENS) + 3,
        .n_kv_head = (int32_t)c->n_kv_head,
        .head_dim = (int32_t)c->head_dim,
    };
    int64_t page = d->ops->kv_page_bytes(d, r->kv.dtype, r->kv.n_kv_head, r->kv.head_dim);
    r->kv.data = plan_take(p, MEMORY_KV_CACHE, "kv", (int64_t)r->kv.n_layer * r->kv.n_pages, page);
    struct workspace_shape shape = gpt_workspace_shape(&r->gpt, r->max_rows, r->max_rows,
                                                       c->block_size);
    r->workspace_bytes = d->ops->workspace_bytes(d, &shape);
    r->workspace = plan_take(p, MEMORY_WORKSPACE, "workspace", r->workspace_bytes, 1);
}

static void open_as(struct model_runner *r, const char *path, enum dtype dtype, bool keep,
                    const struct cpu_options *cpu, int64_t max_rows)
{
    struct error err = {0};
    *r = (struct model_runner){.max_rows = max_rows};
    must(cpu_device_open(cpu, &r->device, &err), &err);
    must(checkpoint_open(path, &r->checkpoint, &err), &err);
    r->gpt.config = *checkpoint_config(r->checkpoint);
    r->gpt.dtype = dtype;
    if (keep) r->gpt.kept = checkpoint_formats(r->checkpoint);
    r->gpt.max_context = r->gpt.config.block_size;
    r->gpt.layers = calloc((size_t)r->gpt.config.n_layer, sizeof *r->gpt.layers);

    plan_init(&r->plan);
    layout(r);
    r->arena = r->device->ops->alloc(r->device, (size_t)r->plan.total, &err);
    must(r->arena != NULL, &err);
    plan_restart(&r->plan, r->arena);
    layout(r);
    assert_true(plan_matches(&r->plan));
    r->device->ops->set_workspace(r->device, r->workspace, r->workspace_bytes);
    float *staging = malloc((size_t)gpt_load_staging_bytes(&r->gpt));
    assert_non_null(staging);
    must(gpt_load(&r->gpt, r->device, r->checkpoint, staging, &err), &err);
    free(staging);

    /* What a page held before must not matter: fill the cache with NaN. */
    memset(r->kv.data, 0xFF, (size_t)r->plan.component[MEMORY_KV_CACHE]);
    r->pages = calloc((size_t)r->kv.n_pages, sizeof *r->pages);
    for (int32_t i = 0; i < r->kv.n_pages; i++) r->pages[i] = r->kv.n_pages - 1 - i;
    r->scratch = calloc((size_t)max_rows * 4, sizeof *r->scratch);
}

void runner_open(struct model_runner *r, const char *path, enum dtype dtype,
                 const struct cpu_options *cpu, int64_t max_rows)
{
    open_as(r, path, dtype, false, cpu, max_rows);
}

void runner_open_kept(struct model_runner *r, const char *path, const struct cpu_options *cpu,
                      int64_t max_rows)
{
    open_as(r, path, DTYPE_BF16, true, cpu, max_rows);
}

void runner_close(struct model_runner *r)
{
    r->device->ops->free(r->device, r->arena, (size_t)r->plan.total);
    r->device->ops->close(r->device);
    checkpoint_close(r->checkpoint);
    free(r->gpt.layers);
    free(r->pages);
    free(r->scratch);
}

void runner_forward(struct model_runner *r, const int32_t *tokens, int32_t n, int32_t start,
                    float *logits, const struct gpt_observer *observer)
{
    assert_true(n <= r->max_rows);
    int32_t *t = r->scratch, *positions = t + n, *slots = t + 2 * n, *out_rows = t + 3 * n;
    for (int32_t i = 0; i < n; i++) {
        int32_t pos = start + i;
        t[i] = tokens[i];
        positions[i] = pos;
        slots[i] = r->pages[pos / KV_PAGE_TOKENS] * KV_PAGE_TOKENS + pos % KV_PAGE_TOKENS;
        out_rows[i] = i;
    }
    struct span span = {.row0 = 0, .n_rows = n, .start = start, .table = 0};
    struct batch b = {.n_rows = n, .n_spans = 1, .tokens = t, .positions = positions,
                      .slots = slots, .spans = &span, .pages = r->pages};
    gpt_forward(&r->gpt, &r->state, r->device, &b, &r->kv, out_rows, logits ? n : 0, observer);
    struct error err;
    must(r->device->ops->sync(r->device, &err), &err);
    if (logits)
        r->device->ops->download(r->device, logits, r->state.logits.data,
                                 (size_t)(n * r->gpt.config.vocab_size) * sizeof(float));
}
