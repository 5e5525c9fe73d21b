/* A completion from body to submission, and its end: see completion.h. Reading is in
 * completion_read.c. */
#include "api/completion.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "api/completion_internal.h"
#include "api/registry.h"
#include "base/checked.h"
#include "base/clock.h"

/* Random bytes from the system; the calls are for at most 16 bytes, which never come short. */
static bool random_bytes(void *out, size_t n, struct error *err)
{
    if (getrandom(out, n, 0) == (ssize_t)n) return true;
    return error_errno(err, "cannot get %zu random bytes", n);
}

/* ---- prompts --------------------------------------------------------------------------------- */

/* "prompt", "prompt[3]" or "messages". */
static void prompt_path(const struct completion *c, int32_t i, char out[32])
{
    if (c->kind == COMPLETION_CHAT) snprintf(out, 32, "messages");
    else if (c->params.n_prompts == 1) snprintf(out, 32, "prompt");
    else snprintf(out, 32, "prompt[%d]", i);
}

static int32_t max_prompt_tokens(const struct completion *c)
{
    int64_t context = engine_max_context(c->api->engine);
    int32_t limit = c->api->limits.max_prompt_tokens;
    return (int32_t)(limit > 0 ? min_i64(limit, context) : context);
}

static bool prompt_too_long(const struct completion *c, const char *path, struct error *err)
{
    return error_set(err, ERR_NO_FIT, path,
                     "'%s' has more than %d tokens, the most that a prompt may have "
                     "(the context is %" PRId64 " tokens)",
                     path, max_prompt_tokens(c), engine_max_context(c->api->engine));
}

/* Text that cannot fit even if every token were the longest is refused before it costs any work. */
static bool check_text_size(const struct completion *c, const char *path, size_t n,
                            struct error *err)
{
    const struct tokenizer *t = engine_tokenizer(c->api->engine);
    size_t most = (size_t)max_prompt_tokens(c) * tokenizer_max_token_bytes(t);
    if (n <= most) return true;
    return error_set(err, ERR_NO_FIT, path,
                     "'%s' has %zu bytes of text, more than the %d tokens of a prompt can hold",
                     path, n, max_prompt_tokens(c));
}

static bool encode_text(struct completion *c, int32_t i, const char *path, struct error *err)
{
    const struct tokenizer *t = engine_tokenizer(c->api->engine);
    const struct prompt_input *p = &c->params.prompts[i];
    if (!t)
        return error_set(err, ERR_UNSUPPORTED, path,
                         "the model has no tokenizer: '%s' must be token ids", path);
    if (!check_text_size(c, path, p->n_text, err)) return false;
    if (!tokenizer_encode(t, p->text, p->n_text, ENCODE_ADD_BOS, (size_t)max_prompt_tokens(c),
                          &c->ids[i], err))
        return false;
    if (c->ids[i].n == 0 && tokenizer_bos(t) >= 0 && !token_ids_push(&c->ids[i], tokenizer_bos(t)))
        return param_out_of_memory(err);
    return true;
}

static bool encode_chat(struct completion *c, const char *path, struct error *err)
{
    const struct tokenizer *t = engine_tokenizer(c->api->engine);
    const struct completion_params *p = &c->params;
    size_t bytes = 0;
    if (!t || !c->api->chat)
        return error_set(err, ERR_UNSUPPORTED, path,
                         "the model has no tokenizer: it takes token ids at /v1/completions only");
    for (size_t i = 0; i < p->n_messages; i++) bytes += p->messages[i].n_content;
    if (!check_text_size(c, path, bytes, err)) return false;
    return chat_encode(c->api->chat, t, p->messages, p->n_messages, (size_t)max_prompt_tokens(c),
                       &c->ids[0], err);
}

/* Prompt i as ids below the vocabulary's size, at most as many as a prompt may have. */
static bool prompt_ids(struct completion *c, int32_t i, const int32_t **ids, int32_t *n,
                       struct error *err)
{
    char path[32];
    prompt_path(c, i, path);
    const struct prompt_input *p = c->kind == COMPLETION_CHAT ? NULL : &c->params.prompts[i];
    size_t count;
    if (p && !p->text) {
        *ids = p->ids;
        count = p->n_ids;
    } else {
        struct error why = {0};
        if (!(p ? encode_text(c, i, path, &why) : encode_chat(c, path, &why))) {
            if (why.code == ERR_TOO_LARGE) return prompt_too_long(c, path, err);
            return error_set(err, why.code, why.param[0] ? why.param : path, "%s", why.text);
        }
        *ids = c->ids[i].ids;
        count = c->ids[i].n;
    }
    if (count == 0)
        return error_set(err, ERR_INVALID, path, "'%s' has no tokens; it must have at least one",
                         path);
    if (count > (size_t)max_prompt_tokens(c)) return prompt_too_long(c, path, err);
    int64_t vocab_size = engine_config(c->api->engine)->vocab_size;
    for (size_t k = 0; k < count; k++)
        if ((*ids)[k] >= vocab_size)
            return error_set(err, ERR_INVALID, path,
                             "'%s' has the token id %d at %zu; the vocabulary has %" PRId64, path,
                             (*ids)[k], k, vocab_size);
    *n = (int32_t)count;
    return true;
}

/* ---- parameters of the engine ---------------------------------------------------------------- */

/* The room for new tokens after a prompt of n: asked for, or the default. */
static bool resolve_max_tokens(const struct completion *c, int32_t n_prompt, const char *path,
                               int32_t *out, struct error *err)
{
    int64_t context = engine_max_context(c->api->engine), left = context - n_prompt;
    int64_t asked = c->params.max_tokens;
    if (asked < 0) {
        asked = c->kind == COMPLETION_CHAT ? left
                                           : min_i64(left, c->api->limits.default_max_tokens);
        asked = max_i64(asked, 1);
    }
    if (asked > left)
        return error_set(err, ERR_NO_FIT, path,
                         "the context is %" PRId64
                         " tokens; the prompt has %d and max_tokens is %" PRId64
                         ": shorten the prompt or ask for at most %" PRId64,
                         context, n_prompt, asked, left);
    *out = (int32_t)asked;
    return true;
}

/* What the request would hold for its tokens, against the limit: n, logprobs and many prompts
 * multiply. `used` adds up over the prompts. */
static bool check_reply_bytes(const struct completion *c, const struct engine_params *p,
                              int64_t *used, struct error *err)
{
    int64_t per_top = (int64_t)sizeof(struct token_logprob) * p->n_top;
    int64_t per_token = (int64_t)sizeof(struct engine_token) + 4 + per_top;
    int64_t tokens, bytes, limit = c->api->limits.reply_bytes;
    bool fits = checked_mul(p->n, p->max_tokens, &tokens) &&
                checked_mul(tokens, per_token, &bytes) && checked_add(*used, bytes, used);
    if (fits && p->prompt_logprobs)
        fits = checked_add(*used, p->n_prompt * (8 + per_top), used);
    if (fits && *used <= limit) return true;
    return error_set(
        err, ERR_INVALID, "max_tokens",
        "prompts, n or best_of, max_tokens and logprobs together are too much: the reply "
        "could take more than %" PRId64 " bytes of memory",
        limit);
}

/* Ids that end a reply: the tokenizer's, and stop strings that are exactly a special token (whose
 * text never appears). */
static void collect_stop_ids(struct completion *c)
{
    const struct tokenizer *t = engine_tokenizer(c->api->engine);
    enum { MAX = sizeof c->stop_ids / sizeof *c->stop_ids };
    if (!t) return;
    c->n_stop_ids = tokenizer_stop_ids(t, c->stop_ids, MAX - STOP_MAX);
    if (c->params.ignore_eos) return; /* these are banned, then: none of the user's among them */
    for (int32_t i = 0; i < c->params.stops.n; i++) {
        int32_t id = tokenizer_special_id(t, c->params.stops.at[i].bytes, c->params.stops.at[i].n);
        if (id >= 0) c->stop_ids[c->n_stop_ids++] = id;
    }
}

/* The family's own stop string (plain chats). */
static bool add_family_stop(struct completion *c, struct error *err)
{
    const char *stop = c->kind == COMPLETION_CHAT && c->api->chat ? chat_stop_string(c->api->chat)
                                                                  : NULL;
    struct stop_list *stops = &c->params.stops;
    if (!stop) return true;
    if (stops->n == STOP_MAX)
        return error_set(err, ERR_INVALID, "stop",
                         "'stop' may have %d strings for this model: its chats need one themselves",
                         STOP_MAX - 1);
    stops->at[stops->n].bytes = stop;
    stops->at[stops->n].n = strlen(stop);
    stops->n++;
    return true;
}

static bool check_model(const struct completion *c, struct error *err)
{
    const struct completion_params *p = &c->params;
    int32_t max_seqs = engine_max_seqs(c->api->engine);
    if (p->best_of > max_seqs)
        return error_set(err, ERR_INVALID, p->best_of > p->n ? "best_of" : "n",
                         "%d choices at once are asked for; this server runs at most %d",
                         p->best_of, max_seqs);
    if (p->stops.n > 0 && !engine_tokenizer(c->api->engine))
        return error_set(err, ERR_UNSUPPORTED, "stop",
                         "the model has no tokenizer, so 'stop' cannot be matched");
    return sample_params_check(&p->sampling, engine_config(c->api->engine)->vocab_size, err);
}

/* The request of prompt i, made but not submitted. */
static bool make_request(struct completion *c, int32_t i, struct engine_params *base,
                         int64_t *used, struct error *err)
{
    struct engine_params e = *base;
    char path[32];
    prompt_path(c, i, path);
    if (!prompt_ids(c, i, &e.prompt, &e.n_prompt, err)) return false;
    if (!resolve_max_tokens(c, e.n_prompt, path, &e.max_tokens, err)) return false;
    e.prompt_logprobs = c->params.echo && (c->params.logprobs >= 0 || e.max_tokens == 0);
    if (!check_reply_bytes(c, &e, used, err)) return false;
    if (!c->params.has_seed && !random_bytes(&e.sampling.seed, sizeof e.sampling.seed, err))
        return false;
    if (!engine_request_new(c->api->engine, &e, &c->requests[i], err)) return false;
    c->sources[i] = (struct reply_source){
        .tokenizer = engine_tokenizer(c->api->engine),
        .request = c->requests[i],
        .shape = c->params.logprobs < 0          ? LOGPROBS_NONE
                 : c->kind == COMPLETION_CHAT ? LOGPROBS_CHAT
                                              : LOGPROBS_COMPLETIONS,
        .echo = c->params.echo,
        .text_start = e.text_start,
    };
    return true;
}

static bool make_requests(struct completion *c, struct error *err)
{
    const struct completion_params *p = &c->params;
    int64_t deadline_ms = c->api->limits.deadline_ms, used = 0;
    struct engine_params base = {
        .n = p->best_of,
        .sampling = p->sampling,
        .n_top = p->logprobs > 0 ? p->logprobs : 0,
        .ignore_eos = p->ignore_eos,
        .text_start = c->kind == COMPLETION_CHAT,
        .stops = p->stops,
        .stop_ids = c->stop_ids,
        .n_stop_ids = c->n_stop_ids,
        .deadline_ns = deadline_ms > 0 ? clock_ns() + deadline_ms * 1000000 : 0,
        .cache_salt = c->caller.cache_salt,
        .notify = c->notify,
        .ctx = c->notify_ctx,
    };
    for (int32_t i = 0; i < p->n_prompts; i++)
        if (!make_request(c, i, &base, &used, err)) return false;
    for (int32_t k = 0; k < c->n_choices; k++)
        reply_cursor_init(&c->choices[k].cursor, &c->sources[k / p->n], k % p->n);
    return true;
}

/* ---- whom it is for -------------------------------------------------------------------------- */

/* Before anything is submitted: no token has been taken then. */
static bool charge(struct completion *c, struct error *err)
{
    int64_t tokens = 0;
    if (!c->caller.charge) return true;
    for (int32_t i = 0; i < c->params.n_prompts; i++) {
        const struct engine_params *p = &c->requests[i]->params;
        tokens += p->n_prompt + (int64_t)p->n * p->max_tokens; /* check_reply_bytes bounds it */
    }
    if (!c->caller.charge(c->caller.ctx, tokens, err)) return false;
    c->charged = tokens;
    return true;
}

void completion_settle(struct completion *c)
{
    struct completion_summary used;
    if (c->charged == 0) return;
    completion_summary(c, &used);
    int64_t tokens = c->submitted ? used.prompt_tokens + (int64_t)used.completion_tokens : 0;
    c->caller.refund(c->caller.ctx, max_i64(0, c->charged - tokens));
    c->charged = 0;
}

/* ---- open and end ---------------------------------------------------------------------------- */

static bool make_arrays(struct completion *c, struct error *err)
{
    const struct completion_params *p = &c->params;
    size_t n = (size_t)p->n_prompts;
    c->n_choices = p->n_prompts * p->n;
    c->ids = arena_array(&c->arena, n, sizeof *c->ids);
    c->requests = arena_array(&c->arena, n, sizeof *c->requests);
    c->sources = arena_array(&c->arena, n, sizeof *c->sources);
    c->choices = arena_array(&c->arena, (size_t)c->n_choices, sizeof *c->choices);
    if (c->ids && c->requests && c->sources && c->choices) return true;
    return param_out_of_memory(err);
}

static bool make_id(struct completion *c, struct error *err)
{
    uint8_t random[12];
    if (!random_bytes(random, sizeof random, err)) return false;
    int n = snprintf(c->id, sizeof c->id, c->kind == COMPLETION_CHAT ? "chatcmpl-" : "cmpl-");
    for (size_t i = 0; i < sizeof random; i++)
        n += snprintf(c->id + n, sizeof c->id - (size_t)n, "%02x", random[i]);
    c->created = (int64_t)time(NULL);
    return true;
}

/* Everything but the requests' end. */
static void release(struct completion *c)
{
    completion_settle(c);
    for (int32_t i = 0; c->requests && i < c->params.n_prompts; i++)
        engine_request_free(c->requests[i]);
    for (int32_t i = 0; c->ids && i < c->params.n_prompts; i++) token_ids_free(&c->ids[i]);
    reply_part_free(&c->part);
    arena_free(&c->arena);
    api_release(c->api); /* last: with it the engine may go */
    free(c);
}

bool completion_open(const struct api_context *api, enum completion_kind kind, const char *body,
                     size_t n, const struct completion_caller *caller, void (*notify)(void *ctx),
                     void *ctx, struct completion **out, struct error *err)
{
    const struct api_limits *l = &api->limits;
    struct completion *c = calloc(1, sizeof *c);
    if (!c) return param_out_of_memory(err);
    c->kind = kind;
    c->notify = notify;
    c->notify_ctx = ctx;
    if (caller) c->caller = *caller;
    size_t per_prompt = 512 + (size_t)l->max_n * sizeof(struct reply_choice);
    arena_init(&c->arena, completion_parse_arena(n) + (size_t)l->max_prompts * per_prompt);
    reply_part_init(&c->part, SIZE_MAX / 4); /* check_reply_bytes bounds it */
    if (!completion_parse(l, kind, body, n, &c->arena, &c->params, err)) goto fail;
    c->api = api_acquire(api, c->params.model, err);
    if (!c->api) goto fail;
    if (!add_family_stop(c, err) || !check_model(c, err)) goto fail;
    if (!make_arrays(c, err) || !make_id(c, err)) goto fail;
    collect_stop_ids(c);
    if (!make_requests(c, err) || !charge(c, err)) goto fail;
    if (!engine_submit_all(c->api->engine, c->requests, c->params.n_prompts, err)) goto fail;
    c->submitted = true;
    *out = c;
    return true;
fail:
    release(c);
    return false;
}

bool completion_is_stream(const struct completion *c) { return c->params.stream; }

void completion_cancel(struct completion *c)
{
    for (int32_t i = 0; i < c->params.n_prompts; i++)
        engine_cancel(c->api->engine, c->requests[i]);
}

void completion_free(struct completion *c)
{
    if (!c) return;
    completion_cancel(c);
    for (int32_t i = 0; i < c->params.n_prompts; i++)
        engine_wait(c->api->engine, c->requests[i]);
    release(c);
}

void completion_summary(const struct completion *c, struct completion_summary *out)
{
    *out = (struct completion_summary){.finish = "none"};
    snprintf(out->id, sizeof out->id, "%s", c->id);
    for (int32_t i = 0; i < c->params.n_prompts; i++) {
        const struct engine_request *r = c->requests[i];
        out->prompt_tokens += r->params.n_prompt;
        for (int32_t j = 0; j < r->params.n; j++)
            out->completion_tokens +=
                atomic_load_explicit(&r->choices[j].n_tokens, memory_order_acquire);
        /* The times are the engine's until then. */
        if (atomic_load_explicit(&r->state, memory_order_acquire) != REQUEST_DONE) continue;
        out->cached_tokens += r->n_cached;
        if (r->admitted_ns > 0)
            out->queued_ns = max_i64(out->queued_ns, r->admitted_ns - r->submitted_ns);
        int64_t first = r->first_token_ns > 0 ? r->first_token_ns - r->submitted_ns : 0;
        if (first > 0 && (out->first_token_ns == 0 || first < out->first_token_ns))
            out->first_token_ns = first;
        out->total_ns = max_i64(out->total_ns, r->done_ns - r->submitted_ns);
    }
    int32_t finish = atomic_load_explicit(&c->requests[0]->choices[0].finish, memory_order_acquire);
    if (finish != FINISH_NONE) out->finish = finish_reason_name((enum finish_reason)finish);
}
