/* The progress line: see train_progress.h. */
#include "server/train_progress.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"
#include "server/process.h"

enum { REDRAW_NS = 200 * 1000 * 1000, REPORT_NS = 1000 * 1000 * 1000, SAMPLE_BYTES = 400 };

/* A run does not fail because nobody can look at it. */
static void report_memory(struct train_progress *p)
{
    struct error err = {0};
    p->reported_ns = clock_ns();
    if (!process_memory_of(getpid(), &p->memory.rss_bytes, &p->memory.peak_rss_bytes)
        || !job_memory_write(p->dir, &p->memory, &err))
        log_debug("memory.json is not written: %s", err.text);
}

void train_progress_init(struct train_progress *p, const struct train_config *c, const char *dir,
                         const struct memory_plan *memory, int64_t baseline_bytes)
{
    *p = (struct train_progress){
        .terminal = isatty(STDERR_FILENO),
        .max_iters = c->max_iters,
        .log_interval = c->log_interval,
        .dir = dir,
        .memory.baseline_bytes = baseline_bytes,
    };
    job_memory_set_plan(&p->memory, memory);
    report_memory(p);
}

static double mib(int64_t bytes) { return (double)bytes / (1 << 20); }

void train_progress_print_plan(const struct memory_plan *m)
{
    const int64_t *component = m->component;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        if (component[i] > 0)
            log_info("memory: %-12s %14lld bytes (%.1f MiB)",
                     memory_component_name((enum memory_component)i), (long long)component[i],
                     mib(component[i]));
    log_info("memory: %-12s %14lld bytes (%.1f MiB), all of it taken now", "total",
             (long long)m->total_bytes, mib(m->total_bytes));
}

void train_progress_print_driver(const struct device *d, const struct memory_plan *m)
{
    struct device_memory driver;
    if (!d->ops->memory || !d->ops->memory(d, &driver)) return;
    int64_t in_use = driver.total_bytes - driver.free_bytes;
    log_info("memory: %s says %.1f MiB of %.1f MiB are in use: %.1f MiB at the start, %.1f MiB of "
             "the plan, %.1f MiB for kernels and by others since", d->name, mib(in_use),
             mib(driver.total_bytes), mib(driver.start_bytes), mib(m->device_bytes),
             mib(in_use - driver.start_bytes - m->device_bytes));
}

/* "1:02:03" or "4:05". */
static void format_duration(char *out, size_t size, double seconds)
{
    long long s = seconds < 0 || seconds > 1e9 ? 0 : (long long)seconds;
    if (s >= 3600)
        snprintf(out, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%lld:%02lld", s / 60, s % 60);
}

static void describe(const struct train_progress *p, const struct trainer_step *s, char *out,
                     size_t size)
{
    char eta[32], skipped[48] = "", share[32] = "";
    if (p->peak_seconds > 0)
        snprintf(share, sizeof share, " (%.0f %% of peak)", 100 * p->peak_seconds / p->seconds);
    format_duration(eta, sizeof eta, p->seconds_per_step * (double)(p->max_iters - s->step));
    if (s->n_skipped > 0)
        snprintf(skipped, sizeof skipped, "  %lld skipped", (long long)s->n_skipped);
    snprintf(out, size, "step %lld/%lld  loss %.4f  lr %.2e  %.0f tokens/s  %.1f ms/step  "
             "%.1f GFLOP/s%s  %.0f MiB%s  ETA %s", (long long)s->step, (long long)p->max_iters,
             p->loss / (double)p->steps, s->lr, p->tokens / p->seconds,
             1e3 * p->seconds / (double)p->steps, p->flops / p->seconds / 1e9, share,
             mib(p->memory.planned_bytes), skipped, eta);
}

static void begin_anew(struct train_progress *p)
{
    p->seconds = p->loss = p->tokens = p->flops = p->peak_seconds = 0;
    p->steps = 0;
}

void train_progress_stepped(void *ctx, const struct trainer_step *s)
{
    struct train_progress *p = ctx;
    char line[256];
    bool first = p->seconds_per_step == 0, last = s->step == p->max_iters;
    p->seconds += s->seconds;
    p->loss += s->loss;
    p->tokens += s->tokens_per_s * s->seconds;
    p->flops += s->flops;
    p->peak_seconds += s->mfu * s->seconds;
    p->steps++;
    p->seconds_per_step = first ? s->seconds : 0.95 * p->seconds_per_step + 0.05 * s->seconds;
    int64_t now = clock_ns();
    if (last || now - p->reported_ns >= REPORT_NS) report_memory(p);
    if (p->terminal ? !first && !last && now - p->shown_ns < REDRAW_NS
                    : !last && s->step % p->log_interval != 0)
        return;
    describe(p, s, line, sizeof line);
    if (p->terminal) fprintf(stderr, "\r%s\033[K", line);
    else log_info("%s", line);
    p->shown_ns = now;
    begin_anew(p);
}

/* On the terminal the beginning of the sample, with control characters made harmless. */
static void print_sample(const char *text)
{
    uint32_t cp;
    size_t n = 0;
    while (text[n] && n < SAMPLE_BYTES) n++;
    n = utf8_complete(text, n);
    for (size_t i = 0; i < n;) {
        int len = utf8_decode(text + i, n - i, &cp);
        if (len <= 0 || (cp < ' ' && cp != '\n' && cp != '\t') || (cp >= 0x7F && cp < 0xA0)) {
            fputc('?', stderr);
            i++;
            continue;
        }
        fwrite(text + i, 1, (size_t)len, stderr);
        i += (size_t)len;
    }
    fputs("\n----\n", stderr);
}

void train_progress_evaluated(void *ctx, const struct trainer_evaluation *e)
{
    struct train_progress *p = ctx;
    train_progress_end(p);
    for (int32_t i = 0; i < e->n_sets; i++)
        log_info("step %lld: %s: loss %.4f, perplexity %.3f%s", (long long)e->step,
                 e->sets[i].name, e->loss[i], exp(e->loss[i]),
                 i == 0 && e->is_best ? ", the best so far" : "");
    if (p->terminal && e->sample) print_sample(e->sample);
}

void train_progress_saved(void *ctx, int64_t step, const char *path)
{
    struct train_progress *p = ctx;
    train_progress_end(p);
    report_memory(p); /* writing it may have been the peak */
    log_info("step %lld: checkpoint %s", (long long)step, path);
}

void train_progress_end(struct train_progress *p)
{
    if (p->terminal && p->shown_ns > 0) fputc('\n', stderr);
    p->shown_ns = 0;
}
