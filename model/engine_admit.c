/* Which requests run: admission by reservation, in order of arrival, and the ends. A running choice
 * holds a slot (struct seq) and pages; both are there from admission to its end. */
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/engine_internal.h"

/* That one choice may need at most. The last sampled token is never fed back, so its key and value
 * are never computed. */
static int32_t choice_pages(const struct engine_params *p)
{
    int64_t computed = (int64_t)p->n_prompt + max_i64(p->max_tokens - 1, 0);
    return (int32_t)ceil_div(computed, KV_PAGE_TOKENS);
}

/* Those of the prompt that all choices share. Its last token is left to every choice: its logits
 * are what it starts from. */
static int32_t shared_pages(const struct engine_params *p)
{
    return (p->n_prompt - 1) / KV_PAGE_TOKENS;
}

int64_t engine_request_pages(const struct engine_params *p)
{
    int64_t pages = choice_pages(p);
    return pages + (p->n - 1) * (pages - shared_pages(p));
}

/* ---- Ends ---- */

void engine_end_choice(struct engine *e, struct seq *s, enum finish_reason reason)
{
    struct engine_request *r = s->request;
    /* The last page first: the pool's invariant 5. */
    for (int32_t i = s->n_pages; i > 0; i--) kv_pool_release(e->pool, s->pages[i - 1]);
    kv_pool_unreserve(e->pool, s->n_reserved);
    s->request = NULL;
    s->n_rows = 0;
    e->admission_blocked = false;
    r->n_live--;
    atomic_store_explicit(&r->choices[s->choice].finish, reason, memory_order_release);
    engine_touch(e, r);
}

void engine_compact(struct engine *e)
{
    int32_t n = 0;
    for (int32_t i = 0; i < e->n_active; i++)
        if (e->seqs[e->active[i]].request) e->active[n++] = e->active[i];
    e->n_active = n;
}

/* Why the request must end now; FINISH_NONE if it may go on. */
static enum finish_reason end_reason(const struct engine *e, const struct engine_request *r,
                                     int64_t now, bool closing)
{
    if (e->device_failed) return FINISH_ERROR;
    if (atomic_load(&r->cancel)) return FINISH_CANCELED;
    if (closing) return FINISH_SHUTDOWN;
    if (r->params.deadline_ns != 0 && now >= r->params.deadline_ns) return FINISH_DEADLINE;
    return FINISH_NONE;
}

/* This thread alone writes `failure`, so it may read it without the lock. */
static void note_failure(const struct engine *e, struct engine_request *r,
                         enum finish_reason reason)
{
    if (reason == FINISH_ERROR) r->error = e->failure;
}

static void end_waiting(struct engine *e, struct engine_request *r, enum finish_reason reason)
{
    note_failure(e, r, reason);
    for (int32_t i = 0; i < r->params.n; i++)
        atomic_store_explicit(&r->choices[i].finish, reason, memory_order_release);
    r->n_live = 0;
    atomic_fetch_sub(&e->n_queued, 1);
    engine_touch(e, r);
}

void engine_end_expired(struct engine *e, bool closing)
{
    int64_t now = clock_ns();
    for (int32_t i = 0; i < e->n_active; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        enum finish_reason reason = end_reason(e, s->request, now, closing);
        if (reason == FINISH_NONE) continue;
        note_failure(e, s->request, reason);
        engine_end_choice(e, s, reason);
    }
    engine_compact(e);

    struct request_list waiting = e->waiting;
    e->waiting = (struct request_list){0};
    for (struct engine_request *r; (r = request_list_pop(&waiting));) {
        enum finish_reason reason = end_reason(e, r, now, closing);
        if (reason == FINISH_NONE) {
            request_list_push(&e->waiting, r);
        } else {
            end_waiting(e, r, reason);
            e->admission_blocked = false;
        }
    }
}

/* ---- Admission ---- */

static struct seq *free_slot(struct engine *e)
{
    for (int32_t i = 0; i < e->options.max_seqs; i++) {
        if (e->seqs[i].request) continue;
        e->active[e->n_active++] = i;
        return &e->seqs[i];
    }
    ASSERT(!"a free slot was counted");
    return NULL;
}

static struct seq *start_choice(struct engine *e, struct engine_request *r, int32_t choice)
{
    struct seq *s = free_slot(e);
    *s = (struct seq){
        .request = r,
        .choice = choice,
        .waits_for_fork = choice > 0,
        .history = s->history,
        .n_history = r->params.n_prompt,
        .pages = s->pages,
        .decoder = {.started = !r->params.text_start},
    };
    memcpy(s->history, r->params.prompt, (size_t)r->params.n_prompt * sizeof *s->history);
    return s;
}

/* Reserves all that the request may need; false, with nothing held, when that is not there. Scored
 * prompts take no pages from the index: their logits must all be computed. */
static bool admit_request(struct engine *e, struct engine_request *r)
{
    const struct engine_params *p = &r->params;
    if (e->options.max_seqs - e->n_active < p->n) return false;
    struct seq *first = start_choice(e, r, 0);
    if (e->options.prefix_cache && !p->prompt_logprobs)
        first->n_pages = kv_pool_match(e->pool, p->cache_salt, p->prompt, p->n_prompt - 1,
                                       first->pages);
    if (!kv_pool_reserve(e->pool, (int32_t)engine_request_pages(p) - first->n_pages)) {
        while (first->n_pages > 0) kv_pool_release(e->pool, first->pages[--first->n_pages]);
        first->request = NULL;
        e->n_active--;
        return false;
    }
    first->n_offered = first->n_pages;
    first->n_computed = first->n_pages * KV_PAGE_TOKENS;
    first->n_reserved = choice_pages(p) - first->n_pages;
    for (int32_t i = 1; i < p->n; i++)
        start_choice(e, r, i)->n_reserved = choice_pages(p) - shared_pages(p);
    r->n_cached = first->n_computed;
    return true;
}

void engine_admit(struct engine *e)
{
    while (e->waiting.head && !e->admission_blocked) {
        struct engine_request *r = e->waiting.head;
        if (!admit_request(e, r)) {
            e->admission_blocked = true;
            return;
        }
        request_list_pop(&e->waiting);
        atomic_fetch_sub(&e->n_queued, 1);
        r->admitted_ns = clock_ns();
        atomic_store_explicit(&r->state, REQUEST_RUNNING, memory_order_release);
    }
}

void engine_fork(struct engine *e, struct seq *first)
{
    int32_t shared = shared_pages(&first->request->params);
    for (int32_t i = 0; i < e->n_active; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        if (s->request != first->request || !s->waits_for_fork) continue;
        s->waits_for_fork = false;
        for (int32_t j = 0; j < shared; j++) {
            s->pages[j] = first->pages[j];
            kv_pool_ref(e->pool, s->pages[j]);
        }
        s->n_pages = shared;
        s->n_offered = shared;
        s->n_computed = shared * KV_PAGE_TOKENS;
    }
}
