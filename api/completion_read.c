/* A completion's reply, as bytes: see completion.h. A stream takes what each choice has published
 * since the last call; a whole reply waits for all of them and then renders choice by choice. Both
 * get their text from reply_advance, so they say the same. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/completion_internal.h"
#include "api/json_out.h"
#include "base/log.h"

enum {
    STREAM_TOKENS = 64,      /* of one choice in one call, at most */
    WHOLE_BYTES = 64 * 1024, /* of a whole reply in one call: at least this, unless it ends */
};

/* ---- state of the requests ------------------------------------------------------------------- */

static bool request_done(const struct engine_request *r)
{
    return atomic_load_explicit(&r->state, memory_order_acquire) == REQUEST_DONE;
}

static bool all_done(const struct completion *c)
{
    for (int32_t i = 0; i < c->params.n_prompts; i++)
        if (!request_done(c->requests[i])) return false;
    return true;
}

static enum finish_reason choice_finish(const struct completion *c, int32_t k)
{
    const struct engine_request *r = c->sources[k / c->params.n].request;
    int32_t choice = c->choices[k].cursor.choice;
    return (enum finish_reason)atomic_load_explicit(&r->choices[choice].finish,
                                                    memory_order_acquire);
}

static bool finish_is_good(enum finish_reason f) { return f == FINISH_STOP || f == FINISH_LENGTH; }

/* The engine's error; a model's is the client's to read, who may not know which one answered. */
static bool engine_error(const struct completion *c, const struct engine_request *r,
                         struct error *err)
{
    if (r->error.code != ERR_MODEL)
        return error_set(err, r->error.code, r->error.param, "%s", r->error.text);
    error_set(err, ERR_MODEL, NULL, "model %s: %s", c->api->model_id, r->error.text);
    if (r->first_failure)
        log_error("%s (further requests that end so are counted in /metrics)", err->text);
    return false;
}

/* Why a finished request is no reply, as an error; true when it is one. */
static bool request_error(const struct completion *c, const struct engine_request *r,
                          struct error *err)
{
    for (int32_t j = 0; j < r->params.n; j++) {
        switch ((enum finish_reason)atomic_load(&r->choices[j].finish)) {
        case FINISH_CANCELED:
            return error_set(err, ERR_CANCELED, NULL, "the request was canceled");
        case FINISH_DEADLINE:
            return error_set(
                err, ERR_TIMEOUT, NULL,
                "the request passed its deadline: ask for fewer tokens, or retry later");
        case FINISH_SHUTDOWN:
            return error_set(err, ERR_UNAVAILABLE, NULL, "the server is shutting down");
        case FINISH_ERROR:
            return engine_error(c, r, err);
        case FINISH_NONE:
        case FINISH_STOP:
        case FINISH_LENGTH: break;
        }
    }
    return true;
}

/* True when no request has failed so far. One that has ends the others: the reply is all or
 * nothing. */
static bool check_requests(struct completion *c, struct error *err)
{
    for (int32_t i = 0; i < c->params.n_prompts; i++) {
        if (!request_done(c->requests[i]) || request_error(c, c->requests[i], err)) continue;
        completion_cancel(c);
        return false;
    }
    return true;
}

/* ---- pieces of JSON -------------------------------------------------------------------------- */

static void render_head(const struct completion *c, const char *object, struct buf *out)
{
    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", c->id,
               object, c->created);
    json_out_text(out, c->api->model_id);
    buf_puts(out, ",\"system_fingerprint\":");
    json_out_text(out, engine_fingerprint(c->api->engine));
    buf_puts(out, ",\"choices\":[");
}

static void render_logprobs(const struct completion *c, struct buf *out)
{
    const struct reply_part *p = &c->part;
    if (c->params.logprobs < 0) {
        buf_puts(out, ",\"logprobs\":null");
        return;
    }
    buf_puts(out, c->kind == COMPLETION_CHAT ? ",\"logprobs\":{\"content\":["
                                             : ",\"logprobs\":{\"tokens\":[");
    buf_append(out, p->tokens.data, p->tokens.len);
    if (c->kind == COMPLETION_CHAT) {
        buf_puts(out, "],\"refusal\":null}");
        return;
    }
    buf_puts(out, "],\"token_logprobs\":[");
    buf_append(out, p->logprobs.data, p->logprobs.len);
    if (c->params.logprobs > 0) {
        buf_puts(out, "],\"top_logprobs\":[");
        buf_append(out, p->top.data, p->top.len);
        buf_puts(out, "]");
    } else {
        buf_puts(out, "],\"top_logprobs\":null");
    }
    buf_puts(out, ",\"text_offset\":[");
    buf_append(out, p->offsets.data, p->offsets.len);
    buf_puts(out, "]}");
}

static void render_finish(const struct completion *c, int32_t k, struct buf *out)
{
    const struct reply_cursor *cursor = &c->choices[k].cursor;
    enum finish_reason f = cursor->stop.matched ? FINISH_STOP : choice_finish(c, k);
    buf_printf(out, ",\"finish_reason\":\"%s\"", finish_reason_name(f));
}

static void render_usage(const struct completion *c, struct buf *out)
{
    struct completion_summary s;
    completion_summary(c, &s);
    buf_printf(out,
               "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%d}}",
               s.prompt_tokens, s.completion_tokens, s.prompt_tokens + s.completion_tokens,
               s.cached_tokens);
}

/* ---- stream ---------------------------------------------------------------------------------- */

static void begin_chunk(const struct completion *c, int32_t k, struct buf *out)
{
    buf_puts(out, "data: ");
    render_head(c, c->kind == COMPLETION_CHAT ? "chat.completion.chunk" : "text_completion", out);
    if (k >= 0) buf_printf(out, "{\"index\":%d", k);
}

static void end_chunk(const struct completion *c, struct buf *out)
{
    buf_puts(out, c->params.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

/* What c->part holds, for choice k. */
static void stream_part(const struct completion *c, int32_t k, struct buf *out)
{
    begin_chunk(c, k, out);
    buf_puts(out, c->kind == COMPLETION_CHAT ? ",\"delta\":{\"content\":\"" : ",\"text\":\"");
    buf_append(out, c->part.text.data, c->part.text.len);
    buf_puts(out, c->kind == COMPLETION_CHAT ? "\"}" : "\"");
    render_logprobs(c, out);
    buf_puts(out, ",\"finish_reason\":null");
    end_chunk(c, out);
}

static void stream_role(const struct completion *c, int32_t k, struct buf *out)
{
    begin_chunk(c, k, out);
    buf_puts(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null"
                  ",\"finish_reason\":null");
    end_chunk(c, out);
}

static void stream_finish(const struct completion *c, int32_t k, struct buf *out)
{
    begin_chunk(c, k, out);
    buf_puts(out, c->kind == COMPLETION_CHAT ? ",\"delta\":{},\"logprobs\":null"
                                             : ",\"text\":\"\",\"logprobs\":null");
    render_finish(c, k, out);
    end_chunk(c, out);
}

/* What one step of a choice brings: the prompt's next part, or one token. So the chunks do not
 * depend on how often the connection looks. Returns 0 when there was nothing. */
static int32_t stream_step(struct completion *c, int32_t k, struct buf *out)
{
    struct reply_choice *choice = &c->choices[k];
    const struct reply_source *s = &c->sources[k / c->params.n];
    reply_part_clear(&c->part);
    int32_t max = reply_in_prompt(&choice->cursor, s) ? STREAM_TOKENS : 1;
    int32_t n = reply_advance(&choice->cursor, s, max, &c->part);
    bool close = choice->cursor.ended && finish_is_good(choice_finish(c, k));
    if (!choice->begun && (n > 0 || close)) {
        if (c->kind == COMPLETION_CHAT) stream_role(c, k, out);
        choice->begun = true;
    }
    if (!reply_part_empty(&c->part)) stream_part(c, k, out);
    if (close) {
        stream_finish(c, k, out);
        choice->closed = true;
    }
    return n;
}

/* One choice's news, a bounded part of it: true when there may be more. */
static bool stream_choice(struct completion *c, int32_t k, struct buf *out)
{
    for (int32_t seen = 0; !c->choices[k].closed;) {
        int32_t n = stream_step(c, k, out);
        if (n == 0) return false;
        seen += n;
        if (seen >= STREAM_TOKENS) return true;
    }
    return false;
}

static bool all_closed(const struct completion *c)
{
    for (int32_t k = 0; k < c->n_choices; k++)
        if (!c->choices[k].closed) return false;
    return true;
}

static enum completion_status stream_end(struct completion *c, const struct error *failure,
                                         struct buf *out)
{
    if (failure) {
        buf_puts(out, "data: ");
        api_render_error(out, failure);
        buf_puts(out, "\n\n");
    } else if (c->params.include_usage) {
        begin_chunk(c, -1, out);
        buf_puts(out, "],");
        render_usage(c, out);
        buf_puts(out, "}\n\n");
    }
    buf_puts(out, "data: [DONE]\n\n");
    c->ended = true;
    completion_settle(c);
    return COMPLETION_ENDED;
}

/* At most STREAM_TOKENS of each choice at a time, so that a client that reads slowly meets small
 * buffers. */
static enum completion_status stream_read(struct completion *c, struct buf *out)
{
    struct error failure = {0};
    size_t before = out->len;
    if (!check_requests(c, &failure)) return stream_end(c, &failure, out);
    bool more;
    do {
        /* Before the choices: what they publish last, they publish before they are done. */
        bool done = all_done(c);
        more = false;
        for (int32_t i = 0; i < c->n_choices; i++)
            more |= stream_choice(c, i, out);
        bool part_failed = reply_part_failed(&c->part);
        if (part_failed) error_set(&failure, ERR_MEMORY, NULL, "no memory for the reply");
        if (!buf_check(out, "the reply", &failure)) buf_clear(out);
        if (failure.code != ERR_NONE) {
            completion_cancel(c);
            return stream_end(c, &failure, out);
        }
        if (done && all_closed(c)) return stream_end(c, NULL, out);
    } while (more && out->len == before);
    if (out->len == before) return COMPLETION_WAIT;
    if (more && c->notify) c->notify(c->notify_ctx);
    return COMPLETION_DATA;
}

/* ---- whole reply ----------------------------------------------------------------------------- */

/* Mean log-probability per token of the reply (a final stop token is none of it), or 0. */
static double mean_logprob(const struct engine_choice *choice)
{
    int32_t n = atomic_load_explicit(&choice->n_tokens, memory_order_acquire);
    if (n > 0 && choice->tokens[n - 1].is_stop) n--;
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += (double)choice->tokens[i].logprob;
    return n > 0 ? sum / n : 0;
}

/* Of best_of choices of each prompt, the n best in falling order; the lower number on a tie. */
static void pick_best(struct completion *c)
{
    int32_t n = c->params.n, best_of = c->params.best_of;
    for (int32_t i = 0; i < c->params.n_prompts && best_of > n; i++) {
        const struct engine_request *r = c->requests[i];
        struct reply_choice *choices = c->choices + (size_t)i * (size_t)n;
        for (int32_t j = 0; j < n; j++) {
            int32_t best = -1;
            double best_mean = 0;
            for (int32_t k = 0; k < best_of; k++) {
                bool taken = false;
                for (int32_t m = 0; m < j; m++) taken |= choices[m].cursor.choice == k;
                double mean = taken ? 0 : mean_logprob(&r->choices[k]);
                if (taken || (best >= 0 && mean <= best_mean)) continue;
                best = k;
                best_mean = mean;
            }
            reply_cursor_init(&choices[j].cursor, &c->sources[i], best);
        }
    }
}

static void whole_choice(struct completion *c, int32_t k, struct buf *out)
{
    struct reply_cursor *cursor = &c->choices[k].cursor;
    reply_part_clear(&c->part);
    const struct reply_source *s = &c->sources[k / c->params.n];
    while (!cursor->ended && reply_advance(cursor, s, INT32_MAX, &c->part) > 0) continue;
    ASSERT(cursor->ended); /* all had been published */
    bool chat = c->kind == COMPLETION_CHAT;
    buf_printf(out, "%s{\"index\":%d,%s", k ? "," : "", k,
               chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"" : "\"text\":\"");
    buf_append(out, c->part.text.data, c->part.text.len);
    buf_puts(out, chat ? "\",\"refusal\":null}" : "\"");
    render_logprobs(c, out);
    render_finish(c, k, out);
    buf_putc(out, '}');
}

static enum completion_status whole_fail(struct completion *c, struct buf *out, struct error *err,
                                         const struct error *why)
{
    buf_clear(out);
    c->ended = true;
    completion_settle(c);
    error_set(err, why->code, why->param, "%s", why->text);
    return COMPLETION_ENDED;
}

static enum completion_status whole_read(struct completion *c, struct buf *out, struct error *err)
{
    struct error why = {0};
    size_t before = out->len;
    if (!c->begun) {
        if (!check_requests(c, &why)) return whole_fail(c, out, err, &why);
        if (!all_done(c)) return COMPLETION_WAIT;
        /* The last may have failed between the two looks. */
        if (!check_requests(c, &why)) return whole_fail(c, out, err, &why);
        pick_best(c);
        render_head(c, c->kind == COMPLETION_CHAT ? "chat.completion" : "text_completion", out);
        c->begun = true;
    }
    while (c->next < c->n_choices && out->len - before < WHOLE_BYTES && !out->failed) {
        whole_choice(c, c->next++, out);
        if (reply_part_failed(&c->part)) {
            error_set(&why, ERR_MEMORY, NULL, "no memory for the reply");
            return whole_fail(c, out, err, &why);
        }
    }
    if (!out->failed && c->next < c->n_choices) {
        if (c->notify) c->notify(c->notify_ctx);
        return COMPLETION_DATA;
    }
    buf_puts(out, "],");
    render_usage(c, out);
    buf_putc(out, '}');
    c->ended = true;
    completion_settle(c);
    if (out->failed) {
        error_set(&why, ERR_MEMORY, NULL, "no memory for the reply");
        return whole_fail(c, out, err, &why);
    }
    return COMPLETION_ENDED;
}

enum completion_status completion_read(struct completion *c, struct buf *out, struct error *err)
{
    if (err) *err = (struct error){0};
    if (c->ended) return COMPLETION_ENDED;
    return c->params.stream ? stream_read(c, out) : whole_read(c, out, err);
}
