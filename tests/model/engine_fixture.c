/* See engine_fixture.h. */
#include "base/checked.h"
#include "tests/model/engine_fixture.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpu.h"

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s", err->text);
}

/* ---- The device's hooks ---- */

/* Operations get the device, not the fixture; there is one at a time. */
static struct engine_fixture *fixture;

static _Atomic int64_t operations_left; /* until one fails */

int64_t fixture_fail_operation(int64_t k)
{
    return max_i64(0, atomic_exchange(&operations_left, k));
}

static bool fails_now(void)
{
    return atomic_load(&operations_left) > 0 && atomic_fetch_sub(&operations_left, 1) == 1;
}

static void *counted_alloc(struct device *d, size_t bytes, struct error *err)
{
    if (fails_now()) {
        error_set(err, ERR_MEMORY, NULL, "the device is on fire");
        return NULL;
    }
    atomic_fetch_add(&fixture->n_allocs, 1);
    atomic_fetch_add(&fixture->alloc_bytes, (int64_t)bytes);
    return fixture->real->alloc(d, bytes, err);
}

static bool held_sync(struct device *d, struct error *err)
{
    struct engine_fixture *f = fixture;
    pthread_mutex_lock(&f->lock);
    f->n_begun++;
    pthread_cond_broadcast(&f->changed);
    while (f->held && f->n_allowed < f->n_begun) pthread_cond_wait(&f->changed, &f->lock);
    bool failing = f->failing || fails_now();
    pthread_mutex_unlock(&f->lock);
    if (failing) return error_set(err, ERR_INTERNAL, NULL, "the device is on fire");
    return f->real->sync(d, err);
}

static void set_held(struct engine_fixture *f, bool held)
{
    pthread_mutex_lock(&f->lock);
    f->held = held;
    f->n_begun = f->n_allowed = 0;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

void fixture_hold(struct engine_fixture *f) { set_held(f, true); }
void fixture_unhold(struct engine_fixture *f) { set_held(f, false); }

void fixture_wait_step(struct engine_fixture *f, int64_t n)
{
    pthread_mutex_lock(&f->lock);
    while (f->n_begun < n) pthread_cond_wait(&f->changed, &f->lock);
    pthread_mutex_unlock(&f->lock);
}

void fixture_let(struct engine_fixture *f, int64_t n)
{
    pthread_mutex_lock(&f->lock);
    f->n_allowed += n;
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->lock);
}

void fixture_fail(struct engine_fixture *f)
{
    pthread_mutex_lock(&f->lock);
    f->failing = true;
    pthread_mutex_unlock(&f->lock);
}

/* ---- Opening ---- */

/* A tokenizer for any golden model: token i is i + 1 written in the digits a, b, c (there is no
 * zero, so that no two are equal). With so few letters stop strings are hit often. */
static struct tokenizer *letters_tokenizer(int32_t vocab_size)
{
    struct buf json;
    buf_init(&json, 1 << 20);
    buf_puts(&json, "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (int32_t i = 0; i < vocab_size; i++) {
        char text[16];
        size_t n = sizeof text - 1;
        text[n] = 0;
        for (int32_t rest = i + 1; rest > 0; rest = (rest - 1) / 3)
            text[--n] = (char)('a' + (rest - 1) % 3);
        buf_printf(&json, "%s\"%s\":%d", i ? "," : "", text + n, i);
    }
    buf_puts(&json, "}},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                    "\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":[]}");
    struct tokenizer *t = NULL;
    struct error err;
    must(tokenizer_open_json(json.data, json.len, "letters", &t, &err), &err);
    buf_free(&json);
    return t;
}

struct engine_options fixture_options(void)
{
    struct engine_options o;
    engine_options_init(&o);
    o.dtype = DTYPE_F32;
    o.max_seqs = 8;
    o.max_batch_tokens = 64;
    o.max_queue = 64;
    return o;
}

bool fixture_try_open(struct engine_fixture *f, const char *model, const struct engine_options *o,
                      struct error *err)
{
    *f = (struct engine_fixture){0};
    fixture = f;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    struct error why;
    struct cpu_options cpu = {.n_threads = 2, .isa = CPU_ISA_BEST};
    must(cpu_device_open(&cpu, &f->device, &why), &why);
    f->real = f->device->ops;
    f->ops = *f->real;
    f->ops.alloc = counted_alloc;
    f->ops.sync = held_sync;
    f->device->ops = &f->ops;
    must(checkpoint_open(model, &f->checkpoint, &why), &why);
    f->tokenizer = letters_tokenizer((int32_t)checkpoint_config(f->checkpoint)->vocab_size);
    struct engine_options options = o ? *o : fixture_options();
    return engine_open(f->device, f->checkpoint, f->tokenizer, &options, &f->engine, err);
}

void fixture_open(struct engine_fixture *f, const char *model, const struct engine_options *o)
{
    struct error err;
    must(fixture_try_open(f, model, o, &err), &err);
}

void fixture_close(struct engine_fixture *f)
{
    engine_close(f->engine);
    tokenizer_free(f->tokenizer);
    checkpoint_close(f->checkpoint);
    f->device->ops = f->real;
    f->real->close(f->device);
    pthread_mutex_destroy(&f->lock);
    pthread_cond_destroy(&f->changed);
}

void fixture_assert_clean(struct engine_fixture *f)
{
    while (!engine_idle(f->engine)) sched_yield();
    struct engine_stats s;
    engine_stats(f->engine, &s);
    assert_int_equal(s.running, 0);
    assert_int_equal(s.queued, 0);
    assert_int_equal(s.kv.active, 0);
    assert_int_equal(s.kv.reserved, 0);
    assert_int_equal(s.memory.in_use[MEMORY_KV_CACHE], 0);
    /* Idle: the engine's thread sleeps, and its last numbers were published under the lock. */
    kv_pool_check(f->engine->pool);
}

/* ---- Jobs ---- */

int32_t rng_below(struct rng *g, int32_t n)
{
    g->state = g->state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((g->state >> 33) % (uint64_t)n);
}

static int32_t pick(struct rng *g, const int32_t *values, int32_t n)
{
    return values[rng_below(g, n)];
}

/* Three fixed texts, of which the prompts are beginnings. */
static int32_t base_token(int32_t text, int32_t i, int32_t vocab)
{
    struct rng g = {(uint64_t)text * 1000 + (uint64_t)i};
    rng_below(&g, 2);
    return rng_below(&g, vocab);
}

static void init_prompt(struct job *j, struct rng *g, int32_t vocab)
{
    static const int32_t lengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 64};
    int32_t n = rng_below(g, 2) ? pick(g, lengths, 11) : 1 + rng_below(g, 60);
    int32_t own = rng_below(g, 3) ? n : rng_below(g, n + 1); /* from here on its own tokens */
    int32_t text = rng_below(g, 3);
    for (int32_t i = 0; i < n; i++)
        j->prompt[i] = i < own ? base_token(text, i, vocab) : rng_below(g, vocab);
    j->params.prompt = j->prompt;
    j->params.n_prompt = n;
}

static void init_sampling(struct job *j, struct rng *g, int32_t vocab)
{
    struct sample_params *s = &j->params.sampling;
    sample_params_init(s);
    s->temperature = (float)rng_below(g, 4) * 0.5f;
    s->seed = (uint64_t)rng_below(g, 1000);
    if (rng_below(g, 3) == 0) s->top_k = 1 + rng_below(g, 40);
    if (rng_below(g, 3) == 0) s->top_p = 0.1f + 0.1f * (float)rng_below(g, 9);
    if (rng_below(g, 4) == 0) s->min_p = 0.05f * (float)rng_below(g, 4);
    if (rng_below(g, 3) == 0) s->repetition_penalty = 1.3f;
    if (rng_below(g, 3) == 0) s->presence_penalty = 0.7f;
    if (rng_below(g, 3) == 0) s->frequency_penalty = -0.4f;
    if (rng_below(g, 4) == 0) {
        for (s->n_bias = 0; s->n_bias < 4; s->n_bias++)
            j->bias[s->n_bias] = (struct token_bias){
                (s->n_bias * vocab + rng_below(g, vocab)) / 4, (float)rng_below(g, 20) - 10};
        s->bias = j->bias;
    }
}

static void init_stops(struct job *j, struct rng *g, int32_t vocab)
{
    struct engine_params *p = &j->params;
    for (int32_t i = rng_below(g, 8) - 5; i > 0; i--) {
        size_t n = (size_t)(2 + rng_below(g, 3));
        char *s = j->stops[p->stops.n];
        for (size_t k = 0; k < n; k++) s[k] = (char)('a' + rng_below(g, 3));
        p->stops.at[p->stops.n].bytes = s;
        p->stops.at[p->stops.n++].n = n;
    }
    for (int32_t i = rng_below(g, 3) * 12; i > 0; i--)
        j->stop_ids[p->n_stop_ids++] = rng_below(g, vocab);
    p->stop_ids = j->stop_ids;
    p->ignore_eos = rng_below(g, 4) == 0;
}

void job_init(struct job *j, uint64_t seed, const struct engine *e)
{
    static const int32_t max_tokens[] = {1, 2, 15, 16, 17, 32};
    struct rng g = {(seed + 1) * 0x9E3779B97F4A7C15u};
    int32_t vocab = (int32_t)engine_config(e)->vocab_size;
    memset(j, 0, sizeof *j);
    init_prompt(j, &g, vocab);
    init_sampling(j, &g, vocab);
    init_stops(j, &g, vocab);
    struct engine_params *p = &j->params;
    p->max_tokens = rng_below(&g, 2) ? pick(&g, max_tokens, 6) : 1 + rng_below(&g, 24);
    p->n = rng_below(&g, 3) ? 1 : 2 + rng_below(&g, 2);
    p->n_top = rng_below(&g, 2) ? 0 : rng_below(&g, SAMPLE_MAX_TOP + 1);
    p->cache_salt = (uint64_t)(rng_below(&g, 5) == 0);
    p->prompt_logprobs = rng_below(&g, 5) == 0;
    if (p->prompt_logprobs && rng_below(&g, 3) == 0) p->max_tokens = 0;
}

void job_init_plain(struct job *j, int32_t n_prompt, int32_t max_tokens)
{
    memset(j, 0, sizeof *j);
    sample_params_init(&j->params.sampling);
    j->params.sampling.temperature = 0;
    for (int32_t i = 0; i < n_prompt; i++) j->prompt[i] = base_token(9, i, 100);
    j->params.prompt = j->prompt;
    j->params.n_prompt = n_prompt;
    j->params.max_tokens = max_tokens;
    j->params.n = 1;
}

bool job_new(struct job *j, struct engine *e)
{
    struct error err;
    if (engine_request_new(e, &j->params, &j->request, &err)) return true;
    if (err.code != ERR_NO_FIT && strcmp(err.param, "n") != 0) fail_msg("%s", err.text);
    j->request = NULL;
    return false;
}

void job_submit(struct job *j, struct engine *e)
{
    struct error err;
    must(engine_submit(e, j->request, &err), &err);
}

void job_run(struct job *j, struct engine *e)
{
    assert_true(job_new(j, e));
    job_submit(j, e);
    engine_wait(e, j->request);
}

void job_free(struct job *j)
{
    engine_request_free(j->request);
    j->request = NULL;
}

static void render_top(struct buf *out, const struct token_logprob *top, int32_t n)
{
    for (int32_t i = 0; i < n; i++) buf_printf(out, " %d:%a", top[i].id, (double)top[i].logprob);
}

void job_render(const struct job *j, struct buf *out)
{
    const struct engine_request *r = j->request;
    const struct engine_params *p = &r->params;
    int32_t scored = atomic_load(&r->n_prompt_scored);
    buf_printf(out, "scored %d\n", scored);
    for (int32_t i = 1; i < scored; i++) {
        buf_printf(out, "  %d %a", r->prompt_scores[i].id, (double)r->prompt_scores[i].logprob);
        if (r->prompt_top) render_top(out, r->prompt_top + i * p->n_top, p->n_top);
        buf_putc(out, '\n');
    }
    for (int32_t k = 0; k < p->n; k++) {
        const struct engine_choice *c = &r->choices[k];
        int32_t n = atomic_load(&c->n_tokens);
        buf_printf(out, "choice %d: %s text %lld\n", k,
                   finish_reason_name((enum finish_reason)atomic_load(&c->finish)),
                   (long long)c->text_bytes);
        for (int32_t i = 0; i < n; i++) {
            buf_printf(out, "  %d %a %d", c->tokens[i].id, (double)c->tokens[i].logprob,
                       c->tokens[i].is_stop);
            if (c->top) render_top(out, c->top + i * p->n_top, p->n_top);
            buf_putc(out, '\n');
        }
    }
}
