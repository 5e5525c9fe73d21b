/* Tokens a second of the engine: see bench.h. */
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/engine.h"
#include "scripts/gpu/bench.h"

enum { PROMPT = 32, NEW_TOKENS = 96, MAX_SEQS = 128, LONG_CONTEXT = 1024 };
/* Any checkpoint: its config and weights are not looked at. */
static const char any_checkpoint[] = "tests/golden/gpt2";

/* One request, and when each of its tokens came. The engine's thread writes. */
struct stream {
    struct engine_request *request;
    int32_t *prompt;
    int64_t *times; /* [max_tokens] */
    int32_t n;
};

static void note_tokens(void *ctx)
{
    struct stream *s = ctx;
    int32_t n = atomic_load(&s->request->choices[0].n_tokens);
    int64_t now = clock_ns();
    while (s->n < n) s->times[s->n++] = now;
}

struct served {
    struct gpt_config model;
    struct checkpoint *checkpoint;
    struct engine *engine;
    double driver_bytes, read_rate;
};

static void open_engine(const struct bench *b, const char *preset, struct served *s)
{
    struct train_config ignored;
    struct engine_options o;
    struct error err;
    bench_read_preset(b, preset, &s->model, &ignored);
    s->read_rate = bench_bandwidth(b->small).read;
    engine_options_init(&o);
    o.max_seqs = b->small ? 4 : MAX_SEQS;
    o.max_batch_tokens = b->small ? 64 : 2048;
    o.prefix_cache = false;
    int64_t before = bench_driver_free(b);
    bench_must(checkpoint_open(any_checkpoint, &s->checkpoint, &err), &err);
    bench_random_begin(&s->model, 0);
    bench_must(engine_open(b->d, s->checkpoint, NULL, &o, &s->engine, &err), &err);
    s->driver_bytes = (double)(before - bench_driver_free(b));
}

static void close_engine(struct served *s)
{
    engine_close(s->engine);
    checkpoint_close(s->checkpoint);
    bench_random_end();
}

static void start(struct served *s, struct stream *t, int32_t n_prompt, int32_t n_new,
                  uint32_t seed)
{
    struct engine_params p = {.n_prompt = n_prompt, .max_tokens = n_new, .n = 1, .ignore_eos = true,
                              .notify = note_tokens, .ctx = t};
    struct error err;
    sample_params_init(&p.sampling);
    p.sampling.temperature = 0;
    *t = (struct stream){.prompt = malloc((size_t)n_prompt * sizeof *t->prompt),
                         .times = calloc((size_t)n_new, sizeof *t->times)};
    if (!t->prompt || !t->times) abort();
    uint32_t state = seed * 2654435761u + 11;
    for (int32_t i = 0; i < n_prompt; i++)
        t->prompt[i] = bench_random_token(&state, s->model.vocab_size);
    p.prompt = t->prompt;
    bench_must(engine_request_new(s->engine, &p, &t->request, &err), &err);
}

static void finish(struct served *s, struct stream *t)
{
    engine_wait(s->engine, t->request);
    if (t->request->error.code != 0) bench_must(false, &t->request->error);
    engine_request_free(t->request);
    free(t->prompt);
    free(t->times);
}

/* All at once, to their end. */
static void run_streams(struct served *s, struct stream *streams, int32_t n, int32_t n_prompt,
                        int32_t n_new)
{
    struct engine_request *all[MAX_SEQS];
    struct error err;
    for (int32_t i = 0; i < n; i++) {
        start(s, &streams[i], n_prompt, n_new, (uint32_t)i);
        all[i] = streams[i].request;
    }
    bench_must(engine_submit_all(s->engine, all, n, &err), &err);
    for (int32_t i = 0; i < n; i++) engine_wait(s->engine, all[i]);
}

/* Tokens a second while all of them decode. */
static double decode_rate(const struct stream *streams, int32_t n)
{
    int64_t begin = 0, end = INT64_MAX, tokens = 0;
    for (int32_t i = 0; i < n; i++) {
        begin = max_i64(begin, streams[i].times[0]);
        end = min_i64(end, streams[i].times[streams[i].n - 1]);
    }
    for (int32_t i = 0; i < n; i++)
        for (int32_t k = 0; k < streams[i].n; k++)
            tokens += streams[i].times[k] > begin && streams[i].times[k] <= end;
    return end > begin ? 1e9 * (double)tokens / (double)(end - begin) : 0;
}

/* What a step must read: the weights once, and each sequence's keys and values. */
static double step_bytes(const struct engine_stats *s, int32_t n, double context)
{
    double per_token = (double)s->memory.kv_page_bytes / KV_PAGE_TOKENS;
    return (double)s->memory.planned[MEMORY_WEIGHTS] + n * context * per_token;
}

static void report_decode(const struct bench *b, const struct served *s, const char *preset,
                          int32_t n, double rate, double context)
{
    struct engine_stats stats;
    char name[128];
    engine_stats(s->engine, &stats);
    double bytes = step_bytes(&stats, n, context), bandwidth = bytes * rate / n;
    snprintf(name, sizeof name, "%s batch %d context %.0f", preset, n, context);
    bench_report("decode", name, rate, "tok/s", "%.3f ms a step, %.1f %% of the read bandwidth",
                 1e3 * n / rate, 100 * bandwidth / s->read_rate);
}

void bench_decode(const struct bench *b, const char *path, const int32_t *batches, int32_t n)
{
    struct served s;
    struct stream *streams = calloc(MAX_SEQS, sizeof *streams);
    const char *preset = bench_preset_name(path);
    struct engine_stats stats;
    char name[128];
    open_engine(b, path, &s);
    engine_stats(s.engine, &stats);
    int64_t device = stats.memory.planned_bytes - stats.memory.host_bytes;
    snprintf(name, sizeof name, "%s serving, planned", preset);
    bench_report("memory", name, (double)device * 1e-6, "MB",
                 "the driver says %.3f MB more is in use",
                 s.driver_bytes * 1e-6);
    int32_t prompt = b->small ? 8 : PROMPT, new_tokens = b->small ? 6 : NEW_TOKENS;
    for (int32_t i = 0; i < n; i++) {
        int32_t batch = (int32_t)min_i64(batches[i], b->small ? 4 : MAX_SEQS);
        run_streams(&s, streams, batch, prompt, new_tokens); /* warms up */
        for (int32_t k = 0; k < batch; k++) finish(&s, &streams[k]);
        bench_profiled_begin();
        run_streams(&s, streams, batch, prompt, new_tokens);
        bench_profiled_end();
        report_decode(b, &s, preset, batch, decode_rate(streams, batch), prompt + new_tokens / 2.0);
        for (int32_t k = 0; k < batch; k++) finish(&s, &streams[k]);
    }
    int32_t context = (int32_t)min_i64(engine_max_context(s.engine), LONG_CONTEXT) - new_tokens;
    if (context >= 4 * prompt) {
        run_streams(&s, streams, 1, context, new_tokens);
        report_decode(b, &s, preset, 1, decode_rate(streams, 1), context + new_tokens / 2.0);
        finish(&s, &streams[0]);
    }
    close_engine(&s);
    free(streams);
}

void bench_prefill(const struct bench *b, const char *path)
{
    enum { PROMPTS = 16 };
    struct served s;
    struct stream streams[PROMPTS];
    const char *preset = bench_preset_name(path);
    char name[128];
    open_engine(b, path, &s);
    int32_t n = b->small ? 2 : PROMPTS, length = b->small ? 40 : 1000;
    for (int round = 0; round < 2; round++) {
        int64_t last = 0, begin = clock_ns();
        run_streams(&s, streams, n, length, 1);
        for (int32_t i = 0; i < n; i++) last = max_i64(last, streams[i].times[0]);
        double rate = 1e9 * n * length / (double)(last - begin);
        double flops = 2.0 * (double)gpt_config_parameters(&s.model) * rate;
        for (int32_t i = 0; i < n; i++) finish(&s, &streams[i]);
        if (round == 0) continue; /* warms up */
        snprintf(name, sizeof name, "%s %d prompts of %d", preset, n, length);
        bench_report("prefill", name, rate, "tok/s", "%.1f TFLOP/s", flops * 1e-12);
    }
    close_engine(&s);
}
