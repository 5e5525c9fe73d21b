/* Requests, and how they pass between their owner's thread and the engine's.
 *
 * In: a locked inbox, which the engine empties once a step. Out: release stores that the owner
 * reads without a lock, then one `notify` per request and step. When a request ends, the engine
 * stores DONE, calls notify a last time and posts `released`; engine_request_free waits for that
 * post, so an owner that sees DONE early (before notify has returned) can free at once. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "model/engine_internal.h"

/* ---- Lists ---- */

void request_list_push(struct request_list *l, struct engine_request *r)
{
    r->next = NULL;
    if (l->tail) l->tail->next = r;
    else l->head = r;
    l->tail = r;
}

struct engine_request *request_list_pop(struct request_list *l)
{
    struct engine_request *r = l->head;
    if (!r) return NULL;
    l->head = r->next;
    if (!l->head) l->tail = NULL;
    return r;
}

/* ---- Checking and making a request: any thread ---- */

static bool check_prompt(const struct engine *e, const struct engine_params *p, struct error *err)
{
    int64_t vocab = e->gpt.config.vocab_size;
    if (p->n_prompt < 1)
        return error_set(err, ERR_INVALID, "prompt",
                         "the prompt has no tokens; at least one is needed");
    if (p->n_prompt > e->options.max_context)
        return error_set(err, ERR_INVALID, "prompt",
                         "the prompt has %d tokens; the context holds %lld", p->n_prompt,
                         (long long)e->options.max_context);
    for (int32_t i = 0; i < p->n_prompt; i++)
        if (p->prompt[i] < 0 || p->prompt[i] >= vocab)
            return error_set(err, ERR_INVALID, "prompt",
                             "token %d of the prompt is %d; the model has tokens 0 to %lld", i,
                             p->prompt[i], (long long)vocab - 1);
    return true;
}

static bool check_stops(const struct engine *e, const struct engine_params *p, struct error *err)
{
    if (p->stops.n < 0 || p->stops.n > STOP_MAX)
        return error_set(err, ERR_INVALID, "stop",
                         "there are %d stop strings; at most %d are allowed", p->stops.n,
                         STOP_MAX);
    if (p->stops.n > 0 && !e->tokenizer)
        return error_set(err, ERR_INVALID, "stop",
                         "stop strings need text, and this model has no tokenizer");
    for (int32_t i = 0; i < p->stops.n; i++)
        if (p->stops.at[i].n < 1 || p->stops.at[i].n > STOP_MAX_BYTES)
            return error_set(err, ERR_INVALID, "stop",
                             "stop string %d has %zu bytes; it must have 1 to %d", i,
                             p->stops.at[i].n, STOP_MAX_BYTES);
    if (p->n_stop_ids < 0 || p->n_stop_ids > SAMPLE_MAX_STOP_IDS)
        return error_set(err, ERR_INVALID, "stop_ids",
                         "there are %d stop ids; 0 to %d are possible",
                         p->n_stop_ids, SAMPLE_MAX_STOP_IDS);
    return true;
}

static bool check_lengths(const struct engine *e, const struct engine_params *p, struct error *err)
{
    int32_t least = p->prompt_logprobs ? 0 : 1;
    if (p->max_tokens < least)
        return error_set(err, ERR_INVALID, "max_tokens", "max_tokens is %d; it must be %d or more",
                         p->max_tokens, least);
    if (p->n < 1 || p->n > e->options.max_seqs)
        return error_set(err, ERR_INVALID, "n", "n is %d; it must be from 1 to %d", p->n,
                         e->options.max_seqs);
    if (p->n_top < 0 || p->n_top > SAMPLE_MAX_TOP)
        return error_set(err, ERR_INVALID, "logprobs",
                         "logprobs asks for %d alternatives; it must be from 0 to %d", p->n_top,
                         SAMPLE_MAX_TOP);
    if ((int64_t)p->n_prompt + p->max_tokens > e->options.max_context)
        return error_set(err, ERR_INVALID, "max_tokens",
                         "the prompt's %d tokens and max_tokens %d make %lld; the context holds "
                         "%lld",
                         p->n_prompt, p->max_tokens, (long long)p->n_prompt + p->max_tokens,
                         (long long)e->options.max_context);
    int64_t pages = engine_request_pages(p);
    if (pages > e->kv.n_pages)
        return error_set(err, ERR_NO_FIT, p->n > 1 ? "n" : "max_tokens",
                         "the prompt's %d tokens and max_tokens %d for %d choices need %lld pages "
                         "of the KV cache; it has %d pages of %d tokens",
                         p->n_prompt, p->max_tokens, p->n, (long long)pages, e->kv.n_pages,
                         KV_PAGE_TOKENS);
    return true;
}

/* Points the choices into the three arrays that begin at choice 0's. */
static void spread_choices(struct engine_request *r)
{
    const struct engine_params *p = &r->params;
    for (int32_t i = 0; i < p->n; i++) {
        struct engine_choice *c = &r->choices[i];
        size_t at = (size_t)i * (size_t)p->max_tokens;
        c->tokens = r->choices[0].tokens + at;
        c->n_top_of = r->choices[0].n_top_of + at;
        c->top = p->n_top > 0 ? r->choices[0].top + at * (size_t)p->n_top : NULL;
        c->text_bytes = -1;
    }
}

/* The first token counts as scored, with nothing to say about it; alternatives start out unused. */
static void clear_scores(struct engine_request *r)
{
    const struct engine_params *p = &r->params;
    r->prompt_scores[0].id = p->prompt[0];
    atomic_init(&r->n_prompt_scored, 1);
    for (int64_t i = 0; i < (int64_t)p->n_prompt * p->n_top; i++) r->prompt_top[i].id = -1;
}

bool engine_request_new(const struct engine *e, const struct engine_params *params,
                        struct engine_request **out, struct error *err)
{
    const struct engine_params *p = params;
    if (!check_prompt(e, p, err) || !check_lengths(e, p, err) || !check_stops(e, p, err) ||
        !sample_params_check(&p->sampling, e->gpt.config.vocab_size, err))
        return false;

    /* A zero-sized array still gets an address, so that NULL means refused. */
    size_t n_tokens = (size_t)p->n * (size_t)p->max_tokens, n_top = (size_t)p->n_top;
    struct engine_request *r = calloc(1, sizeof *r);
    if (!r) goto no_memory;
    r->params = *p;
    sem_init(&r->released, 0, 0);
    r->choices = calloc((size_t)p->n, sizeof *r->choices);
    if (!r->choices) goto no_memory;
    struct engine_choice *c = &r->choices[0];
    c->tokens = calloc(n_tokens + 1, sizeof *c->tokens);
    c->n_top_of = calloc(n_tokens + 1, sizeof *c->n_top_of);
    if (!c->tokens || !c->n_top_of) goto no_memory;
    if (n_top > 0 && !(c->top = calloc(n_tokens * n_top + 1, sizeof *c->top))) goto no_memory;
    if (p->prompt_logprobs) {
        size_t n = (size_t)p->n_prompt;
        r->prompt_scores = calloc(n, sizeof *r->prompt_scores);
        if (!r->prompt_scores) goto no_memory;
        if (n_top > 0 && !(r->prompt_top = calloc(n * n_top, sizeof *r->prompt_top)))
            goto no_memory;
        clear_scores(r);
    }
    spread_choices(r);
    *out = r;
    return true;

no_memory:
    engine_request_free(r);
    return error_set(err, ERR_MEMORY, NULL, "no memory for a request of %d choices of %d tokens",
                     p->n, p->max_tokens);
}

static void wait_released(struct engine_request *r)
{
    while (sem_wait(&r->released) != 0) ASSERT(errno == EINTR);
}

void engine_request_free(struct engine_request *r)
{
    if (!r) return;
    if (r->submitted) wait_released(r);
    sem_destroy(&r->released);
    if (r->choices) {
        free(r->choices[0].tokens);
        free(r->choices[0].top);
        free(r->choices[0].n_top_of);
    }
    free(r->choices);
    free(r->prompt_scores);
    free(r->prompt_top);
    free(r);
}

/* ---- The owner's side ---- */

/* Why nothing can be submitted now; the lock is held. */
static bool check_open(const struct engine *e, struct error *err)
{
    if (e->failed) {
        if (err) *err = e->failure;
        return false;
    }
    if (e->draining || e->closing)
        return error_set(err, ERR_UNAVAILABLE, NULL,
                         "the server is shutting down; no new requests");
    return true;
}

static bool enqueue(struct engine *e, struct engine_request **r, int32_t n, struct error *err)
{
    if (!check_open(e, err)) return false;
    int32_t queued = atomic_load(&e->n_queued);
    if (queued + n > e->options.max_queue)
        return error_set(err, ERR_BUSY, NULL,
                         "the queue is full (%d of %d requests wait); retry later", queued,
                         e->options.max_queue);
    int64_t now = clock_ns();
    if (atomic_load(&e->n_pending) == 0) e->stats.last_progress_ns = now;
    for (int32_t i = 0; i < n; i++) {
        r[i]->submitted = true;
        r[i]->submitted_ns = now;
        r[i]->n_live = r[i]->params.n;
        request_list_push(&e->inbox, r[i]);
    }
    atomic_fetch_add(&e->n_queued, n);
    atomic_fetch_add(&e->n_pending, n);
    return true;
}

bool engine_submit_all(struct engine *e, struct engine_request **r, int32_t n, struct error *err)
{
    for (int32_t i = 0; i < n; i++) ASSERT(!r[i]->submitted);
    if (n > e->options.max_queue)
        return error_set(err, ERR_TOO_LARGE, "prompt",
                         "there are %d prompts; the queue holds %d requests", n,
                         e->options.max_queue);
    pthread_mutex_lock(&e->lock);
    bool ok = enqueue(e, r, n, err);
    if (ok) pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->lock);
    return ok;
}

bool engine_submit(struct engine *e, struct engine_request *r, struct error *err)
{
    return engine_submit_all(e, &r, 1, err);
}

/* The engine looks at the flag in every step, and never sleeps while anything is pending. */
void engine_cancel(struct engine *e, struct engine_request *r) { atomic_store(&r->cancel, true); }

void engine_wait(struct engine *e, struct engine_request *r)
{
    ASSERT(r->submitted);
    wait_released(r);
    sem_post(&r->released); /* for the next to wait, and for engine_request_free */
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

bool engine_idle(const struct engine *e) { return atomic_load(&e->n_pending) == 0; }

void engine_stats(const struct engine *e, struct engine_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&e->lock; /* the one thing that reading changes */
    pthread_mutex_lock(lock);
    *out = e->stats;
    out->draining = e->draining;
    pthread_mutex_unlock(lock);
    out->queued = atomic_load(&e->n_queued);
}

/* ---- The engine's side ---- */

bool engine_collect(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    while (!e->inbox.head && !e->closing && e->n_active == 0 && !e->waiting.head)
        pthread_cond_wait(&e->wake, &e->lock);
    for (struct engine_request *r; (r = request_list_pop(&e->inbox));)
        request_list_push(&e->waiting, r);
    bool closing = e->closing;
    pthread_mutex_unlock(&e->lock);
    return closing;
}

void engine_touch(struct engine *e, struct engine_request *r)
{
    if (r->touched) return;
    r->touched = true;
    request_list_push(&e->touched, r);
}

void engine_publish_stats(struct engine *e)
{
    struct engine_stats *s = &e->live;
    kv_pool_stats(e->pool, &s->kv);
    s->memory.in_use[MEMORY_KV_CACHE] = s->kv.active * e->kv_page_bytes;
    s->memory.peak[MEMORY_KV_CACHE] = s->kv.high_water * e->kv_page_bytes;
    s->running = e->n_active;
    s->last_progress_ns = clock_ns();
    pthread_mutex_lock(&e->lock);
    e->stats = *s;
    pthread_mutex_unlock(&e->lock);
}

/* Not to be touched after: its owner may free it. */
static void release_request(struct engine *e, struct engine_request *r)
{
    r->done_ns = clock_ns();
    atomic_store_explicit(&r->state, REQUEST_DONE, memory_order_release);
    if (r->params.notify) r->params.notify(r->params.ctx);
    atomic_fetch_sub(&e->n_pending, 1);
    sem_post(&r->released);
}

void engine_deliver(struct engine *e)
{
    /* The numbers come first: who sees a request DONE sees its pages free. */
    engine_publish_stats(e);
    for (struct engine_request *r; (r = request_list_pop(&e->touched));) {
        r->touched = false;
        if (r->n_live == 0) release_request(e, r);
        else if (r->params.notify) r->params.notify(r->params.ctx);
    }
}

void engine_fail(struct engine *e, const struct error *why)
{
    e->device_failed = e->live.device_failed = true;
    pthread_mutex_lock(&e->lock);
    e->failed = e->stats.device_failed = true;
    error_set(&e->failure, ERR_DEVICE, NULL, "the device failed, restart the server: %s",
              why->text);
    pthread_mutex_unlock(&e->lock);
}
