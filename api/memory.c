/* GET /v1/memory: what was planned, what was allocated, what is in use, what training jobs take,
 * and what nothing explains. */
#include <inttypes.h>

#include "api/api.h"
#include "api/json_out.h"
#include "api/registry.h"

/* What serving has; the other components are training's. */
static const enum memory_component shown[] = {
    MEMORY_WEIGHTS,   MEMORY_KV_CACHE, MEMORY_ACTIVATIONS, MEMORY_LOGITS,
    MEMORY_WORKSPACE, MEMORY_STAGING,  MEMORY_HOST,
};
enum { N_SHOWN = sizeof shown / sizeof *shown };

static void render_component(const struct engine_memory *m, enum memory_component i,
                             struct buf *out)
{
    buf_printf(out,
               "\"%s\":{\"planned_bytes\":%" PRId64 ",\"allocated_bytes\":%" PRId64
               ",\"in_use_bytes\":%" PRId64 ",\"peak_bytes\":%" PRId64 "}",
               memory_component_name(i), m->planned[i], m->allocated[i], m->in_use[i], m->peak[i]);
}

/* "planned_bytes" to "components": of everything shown. */
static void render_sums(const struct engine_memory *m, struct buf *out)
{
    int64_t in_use = 0, peak = 0;
    for (int i = 0; i < N_SHOWN; i++) {
        in_use += m->in_use[shown[i]];
        peak += m->peak[shown[i]];
    }
    buf_printf(out,
               "\"planned_bytes\":%" PRId64 ",\"allocated_bytes\":%" PRId64
               ",\"in_use_bytes\":%" PRId64 ",\"peak_bytes\":%" PRId64 ",\"components\":{",
               m->planned_bytes, m->allocated_bytes, in_use, peak);
    for (int i = 0; i < N_SHOWN; i++) {
        if (i > 0) buf_putc(out, ',');
        render_component(m, shown[i], out);
    }
    buf_putc(out, '}');
}

int64_t api_process_arena_bytes(const struct api_memory_view *v, const struct engine_memory *m)
{
    return v->driver ? m->host_bytes : m->allocated_bytes;
}

int64_t api_driver_unexplained_bytes(const struct device_memory *driver,
                                     const struct engine_memory *m)
{
    int64_t in_use = driver->total_bytes - driver->free_bytes;
    return in_use - driver->start_bytes - (m->allocated_bytes - m->host_bytes);
}

static void render_driver(const struct device_memory *driver, const struct engine_memory *m,
                          struct buf *out)
{
    if (!driver) {
        buf_puts(out, "null");
        return;
    }
    buf_printf(out,
               "{\"total_bytes\":%" PRId64 ",\"free_bytes\":%" PRId64 ",\"start_bytes\":%" PRId64
               ",\"unexplained_bytes\":%" PRId64 "}",
               driver->total_bytes, driver->free_bytes, driver->start_bytes,
               api_driver_unexplained_bytes(driver, m));
}

static void render_device(const struct api_context *c, const struct engine_memory *m,
                          const struct api_memory_view *v, struct buf *out)
{
    buf_puts(out, "{\"name\":");
    json_out_text(out, c->device_name ? c->device_name : "cpu");
    buf_printf(out, ",\"resident_bytes\":%" PRId64 ",\"driver\":", v->resident_bytes);
    render_driver(v->driver, m, out);
    buf_putc(out, ',');
    render_sums(m, out);
    buf_putc(out, '}');
}

static void render_pages(const struct engine_stats *s, struct buf *out)
{
    const struct kv_pool_stats *kv = &s->kv;
    buf_printf(out,
               "{\"page_tokens\":%d,\"page_bytes\":%" PRId64 ",\"total\":%d,\"used\":%d,\"free\":%d"
               ",\"cached\":%d,\"reserved\":%d,\"shared\":%d,\"high_water\":%d}",
               KV_PAGE_TOKENS, s->memory.kv_page_bytes, kv->total, kv->active, kv->free, kv->cached,
               kv->reserved, kv->shared, kv->high_water);
}

struct list { struct buf *out; const char *comma; };

static void render_model(void *ctx, const struct api_context *model)
{
    struct list *list = ctx;
    struct engine_stats s;
    engine_stats(model->engine, &s);
    buf_printf(list->out, "%s{\"id\":", list->comma);
    json_out_text(list->out, model->model_id);
    buf_putc(list->out, ',');
    render_sums(&s.memory, list->out);
    buf_puts(list->out, ",\"kv_pages\":");
    render_pages(&s, list->out);
    buf_putc(list->out, '}');
    list->comma = ",";
}

int64_t api_unexplained_bytes(const struct api_process_memory *p, int64_t allocated_bytes)
{
    return p->rss_bytes - p->baseline_bytes - allocated_bytes - p->heap_bytes - p->file_bytes;
}

int64_t api_job_unexplained_bytes(const struct api_job_memory *j)
{
    return j->rss_bytes - j->baseline_bytes - j->planned_bytes;
}

static void render_process(const struct api_process_memory *p, int64_t allocated_bytes,
                           struct buf *out)
{
    buf_printf(out,
               "{\"rss_bytes\":%" PRId64 ",\"peak_rss_bytes\":%" PRId64
               ",\"baseline_bytes\":%" PRId64 ",\"heap_bytes\":%" PRId64
               ",\"heap_free_bytes\":%" PRId64 ",\"file_bytes\":%" PRId64
               ",\"unexplained_bytes\":%" PRId64 "}",
               p->rss_bytes, p->peak_rss_bytes, p->baseline_bytes, p->heap_bytes,
               p->heap_free_bytes, p->file_bytes, api_unexplained_bytes(p, allocated_bytes));
}

static void render_job(const struct api_job_memory *j, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    json_out_text(out, j->id);
    buf_printf(out, ",\"reported\":%s,\"planned_bytes\":%" PRId64 ",\"components\":{",
               j->reported ? "true" : "false", j->planned_bytes);
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        buf_printf(out, "%s\"%s\":%" PRId64, i ? "," : "",
                   memory_component_name((enum memory_component)i), j->planned[i]);
    buf_printf(out,
               "},\"rss_bytes\":%" PRId64 ",\"peak_rss_bytes\":%" PRId64
               ",\"baseline_bytes\":%" PRId64 ",\"unexplained_bytes\":%" PRId64 "}",
               j->rss_bytes, j->peak_rss_bytes, j->baseline_bytes, api_job_unexplained_bytes(j));
}

static void render_history(const struct api_memory_view *v, struct buf *out)
{
    buf_printf(out, ",\"history\":{\"interval_s\":%" PRId64 ",\"samples\":[",
               v->history_interval_s);
    for (size_t i = 0; i < v->n_history; i++) {
        const struct api_memory_sample *s = &v->history[i];
        buf_printf(out,
                   "%s{\"time\":%" PRId64 ",\"rss_bytes\":%" PRId64 ",\"resident_bytes\":%" PRId64
                   ",\"kv_in_use_bytes\":%" PRId64 ",\"jobs_rss_bytes\":%" PRId64 "}",
                   i ? "," : "", s->time, s->rss_bytes, s->resident_bytes, s->kv_in_use_bytes,
                   s->jobs_rss_bytes);
    }
    buf_puts(out, "]}");
}

/* Devices: all models together. Pages: the default model's, whose sizes the others need not
 * share. */
void api_memory(const struct api_context *c, const struct api_memory_view *v, struct buf *out)
{
    struct engine_stats all, s = {0};
    struct list list = {out, ""};
    api_stats(c, &all);
    const struct api_context *first = api_acquire(c, NULL, NULL);
    if (first) engine_stats(first->engine, &s);
    buf_puts(out, "{\"object\":\"memory\",\"model\":");
    json_out_text(out, first ? first->model_id : NULL);
    api_release(first);
    buf_puts(out, ",\"devices\":[");
    render_device(c, &all.memory, v, out);
    buf_puts(out, "],\"kv_pages\":");
    render_pages(&s, out);
    buf_puts(out, ",\"models\":[");
    api_visit(c, render_model, &list);
    buf_puts(out, "],\"process\":");
    render_process(&v->process, api_process_arena_bytes(v, &all.memory), out);
    buf_puts(out, ",\"jobs\":[");
    for (size_t i = 0; i < v->n_jobs; i++) {
        if (i) buf_putc(out, ',');
        render_job(&v->jobs[i], out);
    }
    buf_putc(out, ']');
    if (v->history) render_history(v, out);
    buf_putc(out, '}');
}
