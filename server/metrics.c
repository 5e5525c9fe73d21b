/* Metrics: see metrics.h. Names follow Prometheus' conventions: base units, _total on counters. */
#include "server/metrics.h"

#include <stddef.h>
#include <time.h>

#include "base/clock.h"
#include "server/command.h"

/* Upper bounds in ns, with the text that `le` shows. */
static const struct { int64_t ns; const char *le; } bounds[METRICS_BUCKETS] = {
    {50000, "5e-05"},       {100000, "0.0001"},     {250000, "0.00025"},   {500000, "0.0005"},
    {1000000, "0.001"},     {2500000, "0.0025"},    {5000000, "0.005"},    {10000000, "0.01"},
    {25000000, "0.025"},    {50000000, "0.05"},     {100000000, "0.1"},    {250000000, "0.25"},
    {500000000, "0.5"},     {1000000000, "1"},      {2500000000, "2.5"},   {5000000000, "5"},
    {10000000000, "10"},    {30000000000, "30"},    {60000000000, "60"},   {300000000000, "300"},
};

void metrics_init(struct metrics *m, const char *model_id, const char *device,
                  metrics_route_label route_label, int32_t n_routes)
{
    ASSERT(n_routes <= METRICS_MAX_ROUTES);
    *m = (struct metrics){.model_id = model_id, .device = device, .route_label = route_label,
                          .n_routes = n_routes};
    m->start_ns = clock_ns();
    m->start_unix = time(NULL);
}

void histogram_observe(struct histogram *h, int64_t ns, uint64_t times)
{
    if (ns < 0) ns = 0;
    int i = 0;
    while (i < METRICS_BUCKETS && ns > bounds[i].ns) i++;
    atomic_fetch_add_explicit(&h->buckets[i], times, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, (uint64_t)ns * times, memory_order_relaxed);
}

static void count(_Atomic uint64_t *counter, int64_t n)
{
    if (n > 0) atomic_fetch_add_explicit(counter, (uint64_t)n, memory_order_relaxed);
}

static uint64_t counted(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void metrics_request(struct metrics *m, int32_t route, int status)
{
    ASSERT(route >= 0 && route < m->n_routes && status >= 100 && status < 600);
    count(&m->requests[route][status - 100], 1);
}

void metrics_refused(struct metrics *m, enum metrics_refusal reason)
{
    count(&m->refused[reason], 1);
}

void metrics_completion(struct metrics *m, const struct completion_summary *s, int64_t request_ns)
{
    count(&m->prompt_tokens, s->prompt_tokens);
    count(&m->cached_tokens, s->cached_tokens);
    count(&m->completion_tokens, s->completion_tokens);
    histogram_observe(&m->request, request_ns, 1);
    histogram_observe(&m->queue, s->queued_ns, 1);
    if (s->first_token_ns > 0) histogram_observe(&m->first_token, s->first_token_ns, 1);
    if (s->first_token_ns > 0 && s->completion_tokens > 1) {
        int64_t intervals = s->completion_tokens - 1;
        histogram_observe(&m->inter_token, (s->total_ns - s->first_token_ns) / intervals,
                          (uint64_t)intervals);
    }
}

/* ---- Rendering ---- */

static void family(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and newline are escaped. */
static void label_value(struct buf *out, const char *s)
{
    buf_putc(out, '"');
    for (; *s; s++) {
        if (*s == '\n') {
            buf_puts(out, "\\n");
            continue;
        }
        if (*s == '\\' || *s == '"') buf_putc(out, '\\');
        buf_putc(out, *s);
    }
    buf_putc(out, '"');
}

static void single(struct buf *out, const char *name, const char *type, const char *help,
                   double value)
{
    family(out, name, type, help);
    buf_printf(out, value == (double)(int64_t)value ? "%s %.0f\n" : "%s %.9g\n", name, value);
}

static void render_histogram(struct buf *out, const char *name, const char *help,
                             const struct histogram *h)
{
    family(out, name, "histogram", help);
    uint64_t total = 0;
    for (int i = 0; i < METRICS_BUCKETS; i++) {
        total += counted(&h->buckets[i]);
        buf_printf(out, "%s_bucket{le=\"%s\"} %llu\n", name, bounds[i].le,
                   (unsigned long long)total);
    }
    total += counted(&h->buckets[METRICS_BUCKETS]);
    buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n", name, (unsigned long long)total);
    buf_printf(out, "%s_sum %.9f\n", name, (double)counted(&h->sum_ns) / 1e9);
    buf_printf(out, "%s_count %llu\n", name, (unsigned long long)total);
}

static void render_requests(struct buf *out, const struct metrics *m)
{
    family(out, "gptd_http_requests_total", "counter",
           "HTTP requests by route and status; 499: the client left before its reply.");
    for (int32_t r = 0; r < m->n_routes; r++)
        for (int s = 0; s < METRICS_STATUSES; s++) {
            uint64_t n = counted(&m->requests[r][s]);
            if (n == 0) continue;
            buf_puts(out, "gptd_http_requests_total{route=");
            label_value(out, m->route_label(r));
            buf_printf(out, ",status=\"%d\"} %llu\n", s + 100, (unsigned long long)n);
        }
}

static void render_refused(struct buf *out, const struct metrics *m)
{
    static const char *const reasons[N_REFUSALS] = {
        [REFUSED_NO_KEY] = "no_key", [REFUSED_WRONG_KEY] = "wrong_key",
        [REFUSED_NOT_ADMIN] = "not_admin", [REFUSED_REQUEST_RATE] = "request_rate",
        [REFUSED_TOKEN_RATE] = "token_rate", [REFUSED_CONCURRENT] = "concurrent",
        [REFUSED_HOST] = "host", [REFUSED_ORIGIN] = "origin",
    };
    family(out, "gptd_requests_refused_total", "counter",
           "Requests turned away for their key, its limits, their Host or their Origin.");
    for (int i = 0; i < N_REFUSALS; i++)
        buf_printf(out, "gptd_requests_refused_total{reason=\"%s\"} %llu\n", reasons[i],
                   (unsigned long long)counted(&m->refused[i]));
}

static void render_traffic(struct buf *out, const struct metrics *m)
{
    render_requests(out, m);
    render_refused(out, m);
    single(out, "gptd_http_connections", "gauge", "Open connections.",
           (double)atomic_load_explicit(&m->connections, memory_order_relaxed));
    single(out, "gptd_clients_gone_total", "counter",
           "Completions canceled because their client left.", (double)counted(&m->clients_gone));
    single(out, "gptd_prompt_tokens_total", "counter", "Prompt tokens of ended completions.",
           (double)counted(&m->prompt_tokens));
    single(out, "gptd_cached_tokens_total", "counter",
           "Prompt tokens of ended completions that came from the prefix cache.",
           (double)counted(&m->cached_tokens));
    single(out, "gptd_completion_tokens_total", "counter", "Tokens generated for completions.",
           (double)counted(&m->completion_tokens));
    render_histogram(out, "gptd_queue_seconds", "Submission to admission.", &m->queue);
    render_histogram(out, "gptd_time_to_first_token_seconds", "Submission to first token.",
                     &m->first_token);
    render_histogram(out, "gptd_inter_token_seconds",
                     "Between tokens: each with the mean interval of its request.",
                     &m->inter_token);
    render_histogram(out, "gptd_request_seconds",
                     "Completions end to end: headers in to last byte ready.", &m->request);
}

static void render_engine(struct buf *out, const struct engine_stats *e)
{
    single(out, "gptd_sequences_running", "gauge", "Sequences in the batch.", e->running);
    single(out, "gptd_requests_queued", "gauge", "Requests waiting for admission.", e->queued);
    single(out, "gptd_draining", "gauge", "1 while shutting down.", e->draining);
    single(out, "gptd_engine_steps_total", "counter", "Steps run.", (double)e->n_steps);
    single(out, "gptd_engine_busy_seconds_total", "counter", "Time spent in steps.",
           (double)e->busy_ns / 1e9);
    single(out, "gptd_engine_prefill_tokens_total", "counter", "Prompt tokens computed.",
           (double)e->n_prefill_tokens);
    single(out, "gptd_engine_decode_tokens_total", "counter", "Tokens computed one at a time.",
           (double)e->n_decode_tokens);
    single(out, "gptd_model_failures_total", "counter",
           "Requests that ended because their logits were NaN or infinite.",
           (double)e->n_model_failures);
    family(out, "gptd_kv_pages", "gauge", "Pages of the KV pool by state.");
    buf_printf(out,
               "gptd_kv_pages{state=\"free\"} %d\ngptd_kv_pages{state=\"cached\"} %d\n"
               "gptd_kv_pages{state=\"active\"} %d\n",
               e->kv.free, e->kv.cached, e->kv.active);
    single(out, "gptd_kv_pages_reserved", "gauge", "Pages promised to admitted requests.",
           e->kv.reserved);
    single(out, "gptd_kv_pages_shared", "gauge", "Pages used by more than one sequence.",
           e->kv.shared);
    single(out, "gptd_kv_pages_high_water", "gauge", "Most pages ever active.", e->kv.high_water);
    single(out, "gptd_prefix_lookup_tokens_total", "counter",
           "Prompt tokens looked up in the prefix cache.", (double)e->kv.lookup_tokens);
    single(out, "gptd_prefix_hit_tokens_total", "counter",
           "Prompt tokens found in the prefix cache.", (double)e->kv.hit_tokens);
    single(out, "gptd_kv_evictions_total", "counter", "Cached pages given up for new ones.",
           (double)e->kv.evictions);
}

/* What there is of a component's bytes, by the names of /v1/memory. */
enum { N_KINDS = 4 };
static const struct { const char *name; size_t offset; } kinds[N_KINDS] = {
    {"planned", offsetof(struct engine_memory, planned)},
    {"allocated", offsetof(struct engine_memory, allocated)},
    {"in_use", offsetof(struct engine_memory, in_use)},
    {"peak", offsetof(struct engine_memory, peak)},
};

static int64_t kind_bytes(const struct engine_memory *m, int kind, int component)
{
    return ((const int64_t *)((const char *)m + kinds[kind].offset))[component];
}

static void render_memory(struct buf *out, const struct engine_memory *m)
{
    family(out, "gptd_memory_bytes", "gauge", "The engine's memory by component.");
    for (int c = 0; c < N_MEMORY_COMPONENTS; c++)
        for (int k = 0; k < N_KINDS; k++)
            buf_printf(out, "gptd_memory_bytes{component=\"%s\",kind=\"%s\"} %lld\n",
                       memory_component_name((enum memory_component)c), kinds[k].name,
                       (long long)kind_bytes(m, k, c));
}

void metrics_models(struct buf *out)
{
    family(out, "gptd_model_memory_bytes", "gauge", "Each model's memory, all components.");
}

void metrics_model(const char *id, const struct engine_memory *m, struct buf *out)
{
    for (int k = 0; k < N_KINDS; k++) {
        int64_t bytes = 0;
        for (int c = 0; c < N_MEMORY_COMPONENTS; c++) bytes += kind_bytes(m, k, c);
        buf_puts(out, "gptd_model_memory_bytes{model=");
        label_value(out, id);
        buf_printf(out, ",kind=\"%s\"} %lld\n", kinds[k].name, (long long)bytes);
    }
}

static void render_process(struct buf *out, const struct api_memory_view *v, int64_t allocated)
{
    single(out, "gptd_memory_resident_bytes", "gauge",
           "The engine's memory that is resident, as the kernel counts it.",
           (double)v->resident_bytes);
    single(out, "gptd_process_heap_bytes", "gauge",
           "What malloc has given out beyond the program itself and the engine's memory.",
           (double)v->process.heap_bytes);
    single(out, "gptd_memory_unexplained_bytes", "gauge",
           "Resident bytes that are not the program's, the engine's, the heap's or a file's.",
           (double)api_unexplained_bytes(&v->process, allocated));
}

/* A GPU's memory, where there is one. */
static void render_driver(struct buf *out, const struct device_memory *driver,
                          const struct engine_memory *m)
{
    if (!driver) return;
    const struct { const char *kind; int64_t bytes; } takes[] = {
        {"total", driver->total_bytes},
        {"free", driver->free_bytes},
        {"start", driver->start_bytes},
        {"unexplained", api_driver_unexplained_bytes(driver, m)},
    };
    family(out, "gptd_device_memory_bytes", "gauge",
           "The GPU's memory as its driver counts it; start: context, kernels and other "
           "processes' at the start.");
    for (size_t i = 0; i < sizeof takes / sizeof *takes; i++)
        buf_printf(out, "gptd_device_memory_bytes{kind=\"%s\"} %lld\n", takes[i].kind,
                   (long long)takes[i].bytes);
}

static void job_label(struct buf *out, const char *name, const struct api_job_memory *j)
{
    buf_printf(out, "%s{job=", name);
    label_value(out, j->id);
}

static void render_jobs(struct buf *out, const struct api_memory_view *v)
{
    family(out, "gptd_job_planned_bytes", "gauge", "What running training jobs planned to take.");
    for (size_t i = 0; i < v->n_jobs; i++)
        for (int c = 0; c < N_MEMORY_COMPONENTS; c++) {
            job_label(out, "gptd_job_planned_bytes", &v->jobs[i]);
            buf_printf(out, ",component=\"%s\"} %lld\n",
                       memory_component_name((enum memory_component)c),
                       (long long)v->jobs[i].planned[c]);
        }
    family(out, "gptd_job_memory_bytes", "gauge", "What running training jobs take.");
    for (size_t i = 0; i < v->n_jobs; i++) {
        const struct api_job_memory *j = &v->jobs[i];
        const struct { const char *kind; int64_t bytes; } takes[] = {
            {"rss", j->rss_bytes}, {"peak_rss", j->peak_rss_bytes},
            {"baseline", j->baseline_bytes}, {"unexplained", api_job_unexplained_bytes(j)},
        };
        for (size_t k = 0; k < sizeof takes / sizeof *takes; k++) {
            job_label(out, "gptd_job_memory_bytes", j);
            buf_printf(out, ",kind=\"%s\"} %lld\n", takes[k].kind, (long long)takes[k].bytes);
        }
    }
}

void metrics_render(const struct metrics *m, const struct engine_stats *engine,
                    const struct api_memory_view *memory, struct buf *out)
{
    const struct api_process_memory *process = &memory->process;
    family(out, "gptd_build_info", "gauge", "What is running; always 1.");
    buf_puts(out, "gptd_build_info{version=\"" GPTD_VERSION "\",model=");
    label_value(out, m->model_id);
    buf_puts(out, ",device=");
    label_value(out, m->device);
    buf_puts(out, "} 1\n");
    single(out, "gptd_uptime_seconds", "gauge", "Since the server started.",
           (double)(clock_ns() - m->start_ns) / 1e9);
    single(out, "process_start_time_seconds", "gauge", "Unix time of the start.",
           (double)m->start_unix);
    single(out, "process_resident_memory_bytes", "gauge", "Resident set size.",
           (double)process->rss_bytes);
    single(out, "process_resident_memory_peak_bytes", "gauge", "Highest resident set size.",
           (double)process->peak_rss_bytes);
    render_traffic(out, m);
    render_engine(out, engine);
    render_memory(out, &engine->memory);
    render_process(out, memory, api_process_arena_bytes(memory, &engine->memory));
    render_driver(out, memory->driver, &engine->memory);
    render_jobs(out, memory);
}
