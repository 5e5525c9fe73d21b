/* Text to token ids and back, as routes: see api.h and tokenize.h. */
#include "api/tokenize.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "api/registry.h"
#include "api/request.h"

static bool read_text(const struct param_reader *r, const char *name, const struct cJSON *item,
                      struct error *err)
{
    struct tokenize_params *p = r->out;
    return param_string(r->arena, item, name, &p->prompt, &p->n_prompt, err);
}

static bool read_tokens(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct tokenize_params *p = r->out;
    if (!cJSON_IsArray(item)) return param_wrong_type(item, name, "an array of token ids", err);
    return param_ids(r->arena, item, name, &p->tokens, &p->n_tokens, err);
}

static const struct param rows[] = {
    {.name = "model", .routes = ROUTE_TOKENIZE | ROUTE_DETOKENIZE, .type = PARAM_STRING,
     .offset = offsetof(struct tokenize_params, model),
     .help = "The served model's id; any other is a 404. May be left out."},
    {.name = "prompt", .routes = ROUTE_TOKENIZE, .type = PARAM_CUSTOM, .required = true,
     .read = read_text, .schema = "\"type\":\"string\"",
     .help = "The text. Special tokens inside it are plain text."},
    {.name = "tokens", .routes = ROUTE_DETOKENIZE, .type = PARAM_CUSTOM, .required = true,
     .read = read_tokens,
     .schema = "\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}",
     .help = "The ids. Special tokens have no text; bytes that are not UTF-8 become U+FFFD."},
};

const struct param *tokenize_param_table(size_t *n)
{
    *n = sizeof rows / sizeof *rows;
    return rows;
}

bool tokenize_parse(const struct api_limits *l, enum route route, const char *body, size_t n,
                    struct arena *arena, struct tokenize_params *out, struct error *err)
{
    *out = (struct tokenize_params){0};
    struct param_reader r = {.limits = l, .arena = arena, .out = out};
    return params_parse(rows, sizeof rows / sizeof *rows, route, &r, body, n, err);
}

/* What both routes need of the served model. */
static bool check_model(const struct api_context *c, struct error *err)
{
    if (!engine_tokenizer(c->engine))
        return error_set(err, ERR_UNSUPPORTED, NULL, "the model has no tokenizer");
    return true;
}

static bool tokenize_answer(const struct api_context *c, const struct tokenize_params *p,
                            struct buf *out, struct error *err)
{
    struct token_ids ids = {0};
    struct error why = {0};
    /* A text has at most as many tokens as bytes, but for BOS and a leading space. */
    if (!tokenizer_encode(engine_tokenizer(c->engine), p->prompt, p->n_prompt, ENCODE_ADD_BOS,
                          p->n_prompt + 2, &ids, &why)) {
        token_ids_free(&ids);
        return error_set(err, why.code, why.param[0] ? why.param : "prompt", "%s", why.text);
    }
    buf_puts(out, "{\"tokens\":[");
    for (size_t i = 0; i < ids.n; i++) buf_printf(out, "%s%d", i ? "," : "", ids.ids[i]);
    buf_printf(out, "],\"count\":%zu}", ids.n);
    token_ids_free(&ids);
    return buf_check(out, "the reply", err);
}

static bool detokenize_answer(const struct api_context *c, const struct tokenize_params *p,
                              struct buf *out, struct error *err)
{
    const struct tokenizer *t = engine_tokenizer(c->engine);
    struct token_decoder decoder = {0};
    struct buf text; /* joined before it is escaped: characters span tokens */
    buf_init(&text, out->limit);
    for (size_t i = 0; i < p->n_tokens; i++) {
        int64_t vocab_size = engine_config(c->engine)->vocab_size;
        if (p->tokens[i] >= vocab_size) {
            char path[32];
            snprintf(path, sizeof path, "tokens[%zu]", i);
            buf_free(&text);
            return error_set(err, ERR_INVALID, path, "'%s' is %d; the vocabulary has %" PRId64,
                             path, p->tokens[i], vocab_size);
        }
        size_t n;
        const char *bytes = token_decode(t, &decoder, p->tokens[i], &n);
        buf_append(&text, bytes, n);
    }
    if (!buf_check(&text, "the reply", err)) return false;
    buf_puts(out, "{\"prompt\":");
    json_out_string(out, text.data ? text.data : "", text.len);
    buf_putc(out, '}');
    buf_free(&text);
    return buf_check(out, "the reply", err);
}

static bool answer(const struct api_context *c, enum route route, const char *body, size_t n,
                   struct buf *out, struct error *err)
{
    struct tokenize_params p;
    struct arena arena;
    arena_init(&arena, completion_parse_arena(n));
    const struct api_context *model = NULL;
    if (tokenize_parse(&c->limits, route, body, n, &arena, &p, err))
        model = api_acquire(c, p.model, err);
    bool ok = model && check_model(model, err);
    if (ok && route == ROUTE_TOKENIZE) ok = tokenize_answer(model, &p, out, err);
    else if (ok) ok = detokenize_answer(model, &p, out, err);
    api_release(model);
    arena_free(&arena);
    return ok;
}

bool api_tokenize(const struct api_context *c, const char *body, size_t n, struct buf *out,
                  struct error *err)
{
    return answer(c, ROUTE_TOKENIZE, body, n, out, err);
}

bool api_detokenize(const struct api_context *c, const char *body, size_t n, struct buf *out,
                    struct error *err)
{
    return answer(c, ROUTE_DETOKENIZE, body, n, out, err);
}
