/* One step: the batch is built from what is active, run, sampled, and its results handed to the
 * choices. */
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/engine_internal.h"

/* While others decode, a step takes at most this part of its rows for prompts: the time between two
 * tokens of a stream is the time of a step. */
enum { PREFILL_SHARE = 4 };

static bool is_decoding(const struct seq *s)
{
    return s->n_computed >= s->request->params.n_prompt;
}

static bool is_scoring(const struct seq *s)
{
    return s->request->params.prompt_logprobs && s->choice == 0;
}

/* Does the row at `pos` want logits? *forced: the token to score, or -1 to sample one. */
static bool wants_logits(const struct seq *s, int32_t pos, int32_t *forced)
{
    *forced = -1;
    if (pos == s->n_history - 1) return s->request->params.max_tokens > 0;
    if (!is_scoring(s)) return false;
    *forced = s->history[pos + 1];
    return true;
}

/* ---- Building the batch ---- */

static void add_request(struct engine *e, const struct seq *s, int32_t pos, int32_t forced)
{
    const struct engine_params *p = &s->request->params;
    struct step *step = &e->step;
    struct sample_row row = {
        .params = &p->sampling,
        .history = s->history,
        .n_prompt = p->n_prompt,
        .n_history = pos + 1,
        .choice = s->choice,
        .forced = forced,
        .n_top = p->n_top,
        .ban_stops = p->ignore_eos,
        .stop_ids = p->stop_ids,
        .n_stop_ids = p->n_stop_ids,
    };
    step->n_words += sample_request_write(&row, e->gpt.config.vocab_size, step->change_of,
                                          step->host.words, step->n_words,
                                          &step->host.requests[step->n_out++]);
}

/* Pages for the tokens [0, n). They were reserved at admission. */
static void take_pages(struct engine *e, struct seq *s, int32_t n)
{
    while ((int64_t)s->n_pages * KV_PAGE_TOKENS < n) {
        ASSERT(s->n_reserved > 0);
        s->pages[s->n_pages++] = kv_pool_take(e->pool);
        s->n_reserved--;
    }
}

/* Enters the next n tokens of the sequence as one span. */
static void add_span(struct engine *e, struct seq *s, int32_t n)
{
    struct step *step = &e->step;
    struct step_buffers *b = &step->host;
    take_pages(e, s, s->n_computed + n);
    b->spans[step->n_spans++] = (struct span){
        .row0 = step->n_rows, .n_rows = n, .start = s->n_computed, .table = step->n_words};
    step->max_keys = (int32_t)max_i64(step->max_keys, s->n_computed + n);
    memcpy(b->words + step->n_words, s->pages, (size_t)s->n_pages * sizeof *s->pages);
    step->n_words += s->n_pages;

    s->n_rows = n;
    s->out0 = step->n_out;
    for (int32_t pos = s->n_computed; pos < s->n_computed + n; pos++) {
        int32_t row = step->n_rows++, forced;
        b->tokens[row] = s->history[pos];
        b->positions[row] = pos;
        b->slots[row] = s->pages[pos / KV_PAGE_TOKENS] * KV_PAGE_TOKENS + pos % KV_PAGE_TOKENS;
        if (!wants_logits(s, pos, &forced)) continue;
        b->out_rows[step->n_out] = row;
        add_request(e, s, pos, forced);
    }
    s->n_out = step->n_out - s->out0;
}

/* One row for every decoding choice. They never outnumber the rows: to get there, each needed a row
 * beside those that decoded already. */
static void add_decodes(struct engine *e)
{
    for (int32_t i = 0; i < e->n_active; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        if (!s->waits_for_fork && is_decoding(s)) add_span(e, s, 1);
    }
    ASSERT(e->step.n_rows <= e->options.max_batch_tokens);
}

/* How many of at most n next prompt tokens can go into this step, given the logits left. */
static int32_t chunk_rows(const struct engine *e, const struct seq *s, int32_t n)
{
    int32_t left = e->max_logit_rows - e->step.n_out;
    int32_t pending = s->n_history - s->n_computed;
    if (n > pending) n = pending;
    if (is_scoring(s)) return n < left ? n : left;
    return n == pending && left == 0 ? n - 1 : n;
}

static void add_prefills(struct engine *e)
{
    int32_t left = e->options.max_batch_tokens - e->step.n_rows;
    if (e->step.n_rows > 0)
        left = (int32_t)min_i64(left, max_i64(1, e->options.max_batch_tokens / PREFILL_SHARE));
    for (int32_t i = 0; i < e->n_active && left > 0; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        if (s->waits_for_fork || is_decoding(s)) continue;
        int32_t n = chunk_rows(e, s, left);
        if (n == 0) continue;
        add_span(e, s, n);
        left -= n;
    }
}

/* ---- Running it ---- */

/* All at once: the buffers lie alike on both sides, words last of what goes up. */
static void upload_step(struct engine *e)
{
    const struct step_buffers *h = &e->step.host, *d = &e->step.device;
    size_t bytes = (size_t)((const char *)(h->words + e->step.n_words) - (const char *)h->tokens);
    ASSERT((const char *)h->words - (const char *)h->tokens
           == (const char *)d->words - (const char *)d->tokens);
    e->device->ops->upload(e->device, d->tokens, h->tokens, bytes);
}

/* From what was uploaded to the tokens. */
static void compute(struct engine *e, int32_t n_rows, int32_t n_spans, int32_t n_out,
                    int32_t max_keys)
{
    const struct step_buffers *d = &e->step.device;
    struct batch batch = {
        .n_rows = n_rows,
        .n_spans = n_spans,
        .max_keys = max_keys,
        .tokens = d->tokens,
        .positions = d->positions,
        .slots = d->slots,
        .spans = d->spans,
        .pages = d->words,
    };
    gpt_forward(&e->gpt, &e->state, e->device, &batch, &e->kv, d->out_rows, n_out, NULL);
    struct tensor logits = e->state.logits;
    logits.rows = n_out;
    if (n_out > 0) e->device->ops->sample(e->device, logits, d->requests, d->words, d->outs);
}

void engine_record_steps(struct engine *e)
{
    const struct device_ops *ops = e->device->ops;
    int32_t most = (int32_t)min_i64(e->options.max_seqs, e->options.max_batch_tokens);
    if (!ops->graph_begin) return;
    for (int32_t i = 0; i < most && i < ENGINE_MAX_GRAPHS; i++) {
        ops->graph_begin(e->device);
        compute(e, i + 1, i + 1, i + 1, (int32_t)e->options.max_context);
        e->graphs[i] = ops->graph_end(e->device);
    }
}

void engine_free_recorded(struct engine *e)
{
    for (int32_t i = 0; i < ENGINE_MAX_GRAPHS; i++)
        if (e->graphs[i]) e->device->ops->graph_free(e->device, e->graphs[i]);
}

/* The recorded step that this one is: a row of every sequence, all with logits. NULL: there is
 * none. */
static struct device_graph *recorded_step(const struct engine *e)
{
    const struct step *s = &e->step;
    if (s->n_rows != s->n_spans || s->n_rows != s->n_out || s->n_rows > ENGINE_MAX_GRAPHS)
        return NULL;
    return e->graphs[s->n_rows - 1];
}

static bool run(struct engine *e, struct error *err)
{
    const struct step *s = &e->step;
    const struct device_ops *ops = e->device->ops;
    struct device_graph *recorded = recorded_step(e);
    upload_step(e);
    if (recorded) ops->graph_launch(e->device, recorded);
    else compute(e, s->n_rows, s->n_spans, s->n_out, s->max_keys);
    if (s->n_out > 0)
        ops->download(e->device, s->host.outs, s->device.outs,
                      (size_t)s->n_out * sizeof *s->host.outs);
    return ops->sync(e->device, err);
}

/* ---- Taking in the results ---- */

static int32_t copy_top(const struct sample_out *out, struct token_logprob *top, int32_t n_top)
{
    for (int32_t i = 0; i < n_top; i++)
        top[i] = i < out->n_top ? out->top[i] : (struct token_logprob){.id = -1};
    return out->n_top;
}

static bool is_stop_id(const struct engine_params *p, int32_t id)
{
    if (p->ignore_eos) return false;
    for (int32_t i = 0; i < p->n_stop_ids; i++)
        if (p->stop_ids[i] == id) return true;
    return false;
}

static bool completes_stop_string(struct engine *e, struct seq *s, int32_t id)
{
    const struct stop_list *stops = &s->request->params.stops;
    if (stops->n == 0) return false;
    size_t n;
    const char *bytes = token_decode(e->tokenizer, &s->decoder, id, &n);
    return stop_push(stops, &s->stop, bytes, n);
}

/* Appends a sampled token to its choice and publishes it; ends the choice if it is the last. */
static void append_token(struct engine *e, struct seq *s, const struct sample_out *out, int64_t now)
{
    struct engine_request *r = s->request;
    struct engine_choice *c = &r->choices[s->choice];
    int32_t n = atomic_load_explicit(&c->n_tokens, memory_order_relaxed);
    bool stops = is_stop_id(&r->params, out->id);
    c->tokens[n] = (struct engine_token){.id = out->id, .logprob = out->logprob, .is_stop = stops};
    int32_t n_top = r->params.n_top;
    if (n_top > 0) c->n_top_of[n] = copy_top(out, c->top + (int64_t)n * n_top, n_top);
    s->history[s->n_history++] = out->id;
    if (r->first_token_ns == 0) r->first_token_ns = now;

    enum finish_reason reason = FINISH_NONE;
    if (stops) {
        reason = FINISH_STOP;
    } else if (completes_stop_string(e, s, out->id)) {
        reason = FINISH_STOP;
        c->text_bytes = s->stop.safe;
    } else if (n + 1 == r->params.max_tokens) {
        reason = FINISH_LENGTH;
    }
    atomic_store_explicit(&c->n_tokens, n + 1, memory_order_release);
    engine_touch(e, r);
    if (reason != FINISH_NONE) engine_end_choice(e, s, reason);
}

/* at: the position that was scored. */
static void store_score(struct engine *e, struct engine_request *r, int32_t at,
                        const struct sample_out *out)
{
    int32_t n_top = r->params.n_top;
    r->prompt_scores[at] = (struct token_logprob){.id = out->id, .logprob = out->logprob};
    if (n_top > 0) copy_top(out, r->prompt_top + (int64_t)at * n_top, n_top);
    atomic_store_explicit(&r->n_prompt_scored, at + 1, memory_order_release);
    engine_touch(e, r);
}

/* Offers newly full pages to the prefix index; where it has an equal page, that one is shared. */
static void publish_pages(struct engine *e, struct seq *s)
{
    if (!e->options.prefix_cache) return;
    for (; (s->n_offered + 1) * KV_PAGE_TOKENS <= s->n_computed; s->n_offered++) {
        int32_t i = s->n_offered, own = s->pages[i];
        int32_t page = kv_pool_publish(e->pool, s->request->params.cache_salt,
                                       i > 0 ? s->pages[i - 1] : -1,
                                       s->history + (int64_t)i * KV_PAGE_TOKENS, own);
        if (page == own) continue;
        kv_pool_release(e->pool, own);
        kv_pool_ref(e->pool, page);
        s->pages[i] = page;
    }
}

/* The sequence's row of logits has given no token: the request ends here, with its other choices,
 * since a part of a reply is none. Only this one: rows know nothing of each other. */
static void fail_request(struct engine *e, struct engine_request *r, int32_t at)
{
    error_set(&r->error, ERR_MODEL, NULL,
              "the logits after %d tokens are not finite, so that there is no next token: "
              "weights hold NaN or infinity, or what they compute grows too large for %s; check "
              "the model, or load it with --dtype f32",
              at + 1, dtype_info(e->options.dtype)->name);
    r->first_failure = e->live.n_model_failures++ == 0;
    for (int32_t i = 0; i < e->n_active; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        if (s->request == r) engine_end_choice(e, s, FINISH_ERROR);
    }
}

static void absorb(struct engine *e, struct seq *s, int64_t now)
{
    struct engine_request *r = s->request;
    bool was_decoding = is_decoding(s);
    if (was_decoding) e->live.n_decode_tokens += s->n_rows;
    else e->live.n_prefill_tokens += s->n_rows;
    s->n_computed += s->n_rows;
    s->n_rows = 0;
    publish_pages(e, s);
    if (!was_decoding && is_decoding(s) && s->choice == 0) engine_fork(e, s);

    const struct step_buffers *b = &e->step.host;
    for (int32_t i = s->out0; i < s->out0 + s->n_out; i++) {
        int32_t at = b->positions[b->out_rows[i]];
        if (b->outs[i].id == SAMPLE_NO_TOKEN) {
            fail_request(e, r, at);
            return;
        }
        if (b->requests[i].forced >= 0) store_score(e, r, at + 1, &b->outs[i]);
        else append_token(e, s, &b->outs[i], now); /* the last one: it may end the choice */
    }
    if (r->params.max_tokens == 0 && is_decoding(s)) engine_end_choice(e, s, FINISH_LENGTH);
}

void engine_step(struct engine *e)
{
    int64_t begin = clock_ns();
    struct step *step = &e->step;
    step->n_rows = step->n_spans = step->n_words = step->n_out = step->max_keys = 0;
    add_decodes(e);
    add_prefills(e);
    ASSERT(step->n_rows > 0); /* whoever is active can go on: admission saw to it */

    struct error err;
    if (!run(e, &err)) {
        engine_fail(e, &err);
        engine_end_expired(e, false);
        return;
    }
    int64_t now = clock_ns();
    for (int32_t i = 0; i < e->n_active; i++) {
        struct seq *s = &e->seqs[e->active[i]];
        if (s->request && s->n_rows > 0) absorb(e, s, now);
    }
    engine_compact(e);
    e->live.n_steps++;
    e->live.busy_ns += clock_ns() - begin;
}
