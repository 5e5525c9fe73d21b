/* Where the memory is: see routes_memory.h. */
#include "server/routes_memory.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/memory_plan.h"
#include "api/registry.h"
#include "base/checked.h"
#include "cpu/cpu.h"
#include "cuda/cuda_sizes.h"
#include "server/process.h"

/* What all engines have, as the kernel counts it. */
struct arenas { int64_t host_bytes, resident_bytes, kv_in_use_bytes; };

static void add_arenas(void *ctx, const struct api_context *model)
{
    struct arenas *sum = ctx;
    struct engine_stats s;
    struct engine_arena a[2];
    engine_stats(model->engine, &s);
    engine_arenas(model->engine, a);
    for (int i = 0; i < 2; i++) sum->resident_bytes += process_resident_bytes(a[i].at, a[i].bytes);
    sum->kv_in_use_bytes += s.memory.in_use[MEMORY_KV_CACHE];
}

static size_t running_jobs(const struct http_server *s, struct api_job_memory out[JOBS_MAX_RUNNING])
{
    return s->options.jobs ? jobs_memory(s->options.jobs, out) : 0;
}

void sample_memory(void *ctx, struct api_memory_sample *out)
{
    struct http_server *s = ctx;
    struct api_job_memory jobs[JOBS_MAX_RUNNING];
    struct arenas arenas = {0};
    api_visit(s->api, add_arenas, &arenas);
    *out = (struct api_memory_sample){
        .time = time(NULL),
        .rss_bytes = process_rss_bytes(),
        .resident_bytes = arenas.resident_bytes,
        .kv_in_use_bytes = arenas.kv_in_use_bytes,
    };
    size_t n = running_jobs(s, jobs);
    for (size_t i = 0; i < n; i++) out->jobs_rss_bytes += jobs[i].rss_bytes;
}

/* The driver's view, by way of any model; the first of them began with the least in use. */
struct driver_view { struct device_memory memory; bool known; };

static void ask_driver(void *ctx, const struct api_context *model)
{
    struct driver_view *v = ctx;
    struct device_memory m;
    if (!engine_device_memory(model->engine, &m)) return;
    if (v->known) m.start_bytes = min_i64(m.start_bytes, v->memory.start_bytes);
    *v = (struct driver_view){m, true};
}

/* Everything but the history. */
static void gather(struct http_server *s, const struct engine_stats *stats,
                   struct driver_view *driver, struct api_job_memory jobs[JOBS_MAX_RUNNING],
                   struct api_memory_view *out)
{
    *driver = (struct driver_view){0};
    api_visit(s->api, ask_driver, driver);
    *out = (struct api_memory_view){
        .resident_bytes = memory_history_now(s->memory).resident_bytes,
        .driver = driver->known ? &driver->memory : NULL,
        .jobs = jobs,
        .n_jobs = running_jobs(s, jobs),
        .history_interval_s = MEMORY_HISTORY_INTERVAL_S,
    };
    process_memory(&s->baseline, stats->memory.host_bytes, &out->process);
}

/* history=1 asks for the last hour. */
struct memory_query { bool history, failed; struct error *err; };

static enum MHD_Result take_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                     const char *value)
{
    struct memory_query *q = cls;
    bool known = strcmp(name, "history") == 0;
    bool on = value && strcmp(value, "1") == 0, off = value && strcmp(value, "0") == 0;
    q->history = q->history || (known && on);
    if (!q->failed && !known)
        error_set(q->err, ERR_INVALID, name, "'%.40s' is not a parameter of this route", name);
    else if (!q->failed && !on && !off)
        error_set(q->err, ERR_INVALID, name, "'history' must be 0 or 1");
    q->failed = q->failed || !known || (!on && !off);
    return MHD_YES;
}

bool get_memory(struct request *r, struct buf *out, struct error *err)
{
    struct http_server *s = r->server;
    struct memory_query q = {.err = err};
    struct api_job_memory jobs[JOBS_MAX_RUNNING];
    struct driver_view driver;
    struct api_memory_view view;
    struct engine_stats stats;
    MHD_get_connection_values(r->connection, MHD_GET_ARGUMENT_KIND, take_argument, &q);
    if (q.failed) return false;
    api_stats(s->api, &stats);
    gather(s, &stats, &driver, jobs, &view);
    struct api_memory_sample *history = NULL;
    if (q.history) {
        history = malloc(MEMORY_HISTORY_SAMPLES * sizeof *history);
        if (!history) return error_set(err, ERR_MEMORY, NULL, "no memory for the history");
        view.history = history;
        view.n_history = memory_history_copy(s->memory, history);
    }
    api_memory(s->api, &view, out);
    free(history);
    return true;
}

static void render_model(void *ctx, const struct api_context *model)
{
    struct engine_stats s;
    engine_stats(model->engine, &s);
    metrics_model(model->model_id, &s.memory, ctx);
}

bool get_metrics(struct request *r, struct buf *out, struct error *err)
{
    struct api_job_memory jobs[JOBS_MAX_RUNNING];
    struct driver_view driver;
    struct api_memory_view view;
    struct engine_stats stats;
    api_stats(r->server->api, &stats);
    gather(r->server, &stats, &driver, jobs, &view);
    metrics_render(r->server->metrics, &stats, &view, out);
    metrics_models(out);
    api_visit(r->server->api, render_model, out);
    return true;
}

/* Plans for the CPU as `gptd plan` does by default: with all threads that the process may use. The
 * device is asked for sizes alone, and none of the engines' own could be: a model may leave. */
bool post_memory_plan(struct request *r, struct buf *out, struct error *err)
{
    const struct cpu_options cpu = {.isa = CPU_ISA_BEST};
    struct device *device;
    if (!cpu_device_open(&cpu, &device, err)) return false;
    struct plan_devices devices = {.cpu = device, .cuda = cuda_sizes};
    bool ok = api_memory_plan(r->server->api, &devices, r->server->options.configs_dir,
                              r->body.data ? r->body.data : "", r->body.len, out, err);
    device->ops->close(device);
    return ok;
}
