/* The bodies of the two completion routes: see request.h. One table for both; what is longer than a
 * row (prompt, messages, stop, ...) has a reader below. */
#include "api/request.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"

/* Paths like "messages[12].content[3].text". */
struct path { char text[96]; };

static struct path path_index(const char *base, int32_t i)
{
    struct path p;
    snprintf(p.text, sizeof p.text, "%.80s[%d]", base, i);
    return p;
}

static struct path path_member(const char *base, const char *key)
{
    struct path p;
    snprintf(p.text, sizeof p.text, "%.60s.%.32s", base, key);
    return p;
}

static bool unknown_key(const char *path, const char *key, const char *known, struct error *err)
{
    struct path at = path_member(path, key);
    return error_set(err, ERR_INVALID, at.text, "unknown key '%.64s' in '%s'; known are %s", key,
                     path, known);
}

/* ---- prompt ---------------------------------------------------------------------------------- */

static bool read_one_prompt(const struct param_reader *r, const char *path,
                            const struct cJSON *item, struct prompt_input *out, struct error *err)
{
    if (cJSON_IsArray(item))
        return param_ids(r->arena, item, path, &out->ids, &out->n_ids, err);
    if (!cJSON_IsString(item))
        return param_wrong_type(item, path, "a string or an array of token ids", err);
    return param_string(r->arena, item, path, &out->text, &out->n_text, err);
}

/* A string; token ids; or an array of either, one completion each. */
static bool read_prompt(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct completion_params *p = r->out;
    bool several = cJSON_IsArray(item) && !cJSON_IsNumber(item->child);
    if (!cJSON_IsString(item) && !cJSON_IsArray(item))
        return param_wrong_type(item, name, "a string or an array", err);
    int32_t n = several ? cJSON_GetArraySize(item) : 1;
    if (n < 1) return error_set(err, ERR_INVALID, name, "'%s' is an empty array", name);
    if (n > r->limits->max_prompts)
        return error_set(err, ERR_INVALID, name, "'%s' has %d prompts; the limit is %d", name, n,
                         r->limits->max_prompts);
    p->prompts = arena_array(r->arena, (size_t)n, sizeof *p->prompts);
    if (!p->prompts) return param_out_of_memory(err);
    if (!several) {
        p->n_prompts = 1;
        return read_one_prompt(r, name, item, &p->prompts[0], err);
    }
    const struct cJSON *child;
    cJSON_ArrayForEach(child, item) {
        struct path at = path_index(name, p->n_prompts);
        if (!read_one_prompt(r, at.text, child, &p->prompts[p->n_prompts], err)) return false;
        p->n_prompts++;
    }
    return true;
}

/* ---- messages -------------------------------------------------------------------------------- */

/* [{"type":"text","text":"..."}...]: the texts, joined by newlines. */
static bool read_content_parts(const struct param_reader *r, const char *path,
                               const struct cJSON *array, struct chat_message *m,
                               struct error *err)
{
    size_t total = 0;
    int32_t i = 0;
    const struct cJSON *part;
    if (!array->child) return error_set(err, ERR_INVALID, path, "'%s' is an empty array", path);
    cJSON_ArrayForEach(part, array) {
        struct path at = path_index(path, i++);
        if (!cJSON_IsObject(part)) return param_wrong_type(part, at.text, "an object", err);
        const struct cJSON *key;
        cJSON_ArrayForEach(key, part) {
            if (strcmp(key->string, "type") != 0 && strcmp(key->string, "text") != 0)
                return unknown_key(at.text, key->string, "type and text", err);
        }
        const struct cJSON *type = json_get(part, "type"), *text = json_get(part, "text");
        struct path at_type = path_member(at.text, "type"), at_text = path_member(at.text, "text");
        if (!type || !cJSON_IsString(type) || strcmp(type->valuestring, "text") != 0)
            return error_set(err, ERR_UNSUPPORTED, at_type.text, "'%s' must be \"text\"",
                             at_type.text);
        if (!text || !cJSON_IsString(text))
            return error_set(err, ERR_INVALID, at_text.text, "'%s' must be a string", at_text.text);
        total += strlen(text->valuestring) + 1;
    }
    char *content = arena_alloc(r->arena, total);
    if (!content) return param_out_of_memory(err);
    char *end = content;
    cJSON_ArrayForEach(part, array) {
        end = stpcpy(end, json_get(part, "text")->valuestring);
        *end++ = '\n';
    }
    end[-1] = 0;
    m->content = content;
    m->n_content = (size_t)(end - 1 - content);
    return true;
}

/* Keys of a message that the official clients send along as null when they hand back a reply. */
static bool is_null_key(const char *key)
{
    static const char *const keys[] = {"name",  "refusal", "tool_calls",  "function_call",
                                       "audio", "annotations", "tool_call_id"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0) return true;
    return false;
}

static bool check_message_keys(const char *path, const struct cJSON *item, struct error *err)
{
    const struct cJSON *key;
    cJSON_ArrayForEach(key, item) {
        if (strcmp(key->string, "role") == 0 || strcmp(key->string, "content") == 0) continue;
        struct path at = path_member(path, key->string);
        if (!is_null_key(key->string))
            return unknown_key(path, key->string, "role and content", err);
        if (!cJSON_IsNull(key) && !(cJSON_IsArray(key) && !key->child))
            return error_set(err, ERR_UNSUPPORTED, at.text,
                             "'%s' is not supported: leave it out, or give null", at.text);
    }
    return true;
}

static bool read_message(const struct param_reader *r, const char *path, const struct cJSON *item,
                         struct chat_message *m, struct error *err)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant"};
    if (!cJSON_IsObject(item)) return param_wrong_type(item, path, "an object", err);
    if (!check_message_keys(path, item, err)) return false;
    const struct cJSON *role = json_get(item, "role"), *content = json_get(item, "content");
    struct path at = path_member(path, "role");
    if (!role) return error_set(err, ERR_INVALID, at.text, "'%s' is missing", at.text);
    if (!cJSON_IsString(role)) return param_wrong_type(role, at.text, "a string", err);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role->valuestring, roles[i]) == 0) m->role = roles[i];
    if (!m->role)
        return error_set(err, ERR_INVALID, at.text,
                         "'%s' is '%.32s'; known are system, developer, user and assistant",
                         at.text, role->valuestring);
    at = path_member(path, "content");
    if (!content) return error_set(err, ERR_INVALID, at.text, "'%s' is missing", at.text);
    if (cJSON_IsArray(content)) return read_content_parts(r, at.text, content, m, err);
    return param_string(r->arena, content, at.text, &m->content, &m->n_content, err);
}

static bool read_messages(const struct param_reader *r, const char *name, const struct cJSON *item,
                          struct error *err)
{
    struct completion_params *p = r->out;
    if (!cJSON_IsArray(item)) return param_wrong_type(item, name, "an array", err);
    size_t n = (size_t)cJSON_GetArraySize(item);
    if (n == 0) return error_set(err, ERR_INVALID, name, "'%s' is an empty array", name);
    p->messages = arena_array(r->arena, n, sizeof *p->messages);
    if (!p->messages) return param_out_of_memory(err);
    const struct cJSON *child;
    cJSON_ArrayForEach(child, item) {
        struct path at = path_index(name, (int32_t)p->n_messages);
        if (!read_message(r, at.text, child, &p->messages[p->n_messages], err)) return false;
        p->n_messages++;
    }
    p->n_prompts = 1;
    return true;
}

/* ---- the other readers ----------------------------------------------------------------------- */

static bool read_one_stop(const struct param_reader *r, const char *path, const struct cJSON *item,
                          struct error *err)
{
    struct stop_list *stops = &((struct completion_params *)r->out)->stops;
    const char *text;
    size_t n;
    if (!param_string(r->arena, item, path, &text, &n, err)) return false;
    if (n < 1 || n > STOP_MAX_BYTES)
        return error_set(err, ERR_INVALID, path, "'%s' has %zu bytes; it must have 1 to %d", path,
                         n, STOP_MAX_BYTES);
    stops->at[stops->n].bytes = text;
    stops->at[stops->n].n = n;
    stops->n++;
    return true;
}

static bool read_stop(const struct param_reader *r, const char *name, const struct cJSON *item,
                      struct error *err)
{
    if (cJSON_IsString(item)) return read_one_stop(r, name, item, err);
    if (!cJSON_IsArray(item))
        return param_wrong_type(item, name, "a string or an array of strings", err);
    int32_t i = 0, n = cJSON_GetArraySize(item);
    if (n > STOP_MAX)
        return error_set(err, ERR_INVALID, name, "'%s' has %d strings; the limit is %d", name, n,
                         STOP_MAX);
    const struct cJSON *child;
    cJSON_ArrayForEach(child, item) {
        struct path at = path_index(name, i++);
        if (!read_one_stop(r, at.text, child, err)) return false;
    }
    return true;
}

/* A decimal token id without sign or leading zeros, so that no two keys mean the same one. */
static bool parse_token_key(const char *key, int32_t *id)
{
    int64_t value = 0;
    size_t n = strlen(key);
    if (n < 1 || n > 10 || (n > 1 && key[0] == '0')) return false;
    for (size_t i = 0; i < n; i++) {
        if (key[i] < '0' || key[i] > '9') return false;
        value = value * 10 + (key[i] - '0');
    }
    if (value > INT32_MAX) return false;
    *id = (int32_t)value;
    return true;
}

static bool read_logit_bias(const struct param_reader *r, const char *name,
                            const struct cJSON *item, struct error *err)
{
    struct sample_params *s = &((struct completion_params *)r->out)->sampling;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    int32_t n = cJSON_GetArraySize(item);
    if (n > SAMPLE_MAX_BIAS)
        return error_set(err, ERR_INVALID, name, "'%s' has %d entries; the limit is %d", name, n,
                         SAMPLE_MAX_BIAS);
    struct token_bias *bias = arena_array(r->arena, (size_t)n, sizeof *bias);
    if (!bias) return param_out_of_memory(err);
    const struct cJSON *child;
    cJSON_ArrayForEach(child, item) {
        struct path at = path_member(name, child->string);
        double value;
        if (!parse_token_key(child->string, &bias[s->n_bias].id))
            return error_set(err, ERR_INVALID, name,
                             "'%s' has the key '%.32s', which is no token id", name, child->string);
        if (!param_number(child, at.text, -100, 100, false, &value, err)) {
            if (err) snprintf(err->param, sizeof err->param, "%s", name);
            return false;
        }
        bias[s->n_bias++].bias = (float)value;
    }
    s->bias = bias;
    return true;
}

/* JSON's numbers are doubles here: integers beyond 2^53 are taken as the nearest double. */
static bool read_seed(const struct param_reader *r, const char *name, const struct cJSON *item,
                      struct error *err)
{
    struct completion_params *p = r->out;
    if (!cJSON_IsNumber(item)) return param_wrong_type(item, name, "an integer", err);
    double value = item->valuedouble;
    if (value != floor(value))
        return error_set(err, ERR_INVALID, name, "'%s' must be an integer, not %.9g", name, value);
    if (value < -0x1p63 || value > 0x1p63)
        return error_set(err, ERR_INVALID, name, "'%s' is %.17g; it must fit 64 bits", name, value);
    p->sampling.seed = value == 0x1p63 ? (uint64_t)INT64_MAX : (uint64_t)(int64_t)value;
    p->has_seed = true;
    return true;
}

static bool read_stream_options(const struct param_reader *r, const char *name,
                                const struct cJSON *item, struct error *err)
{
    struct completion_params *p = r->out;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    const struct cJSON *key;
    cJSON_ArrayForEach(key, item) {
        struct path at = path_member(name, key->string);
        if (strcmp(key->string, "include_usage") != 0)
            return unknown_key(name, key->string, "include_usage", err);
        if (!cJSON_IsNull(key) && !param_bool(key, at.text, &p->include_usage, err)) return false;
    }
    return true;
}

static bool read_response_format(const struct param_reader *r, const char *name,
                                 const struct cJSON *item, struct error *err)
{
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    const struct cJSON *type = json_get(item, "type");
    if (cJSON_GetArraySize(item) == 1 && type && cJSON_IsString(type) &&
        strcmp(type->valuestring, "text") == 0)
        return true;
    return error_set(err, ERR_UNSUPPORTED, name, "'%s' must be {\"type\":\"text\"}", name);
}

/* ---- the table ------------------------------------------------------------------------------- */

#define IDS_SCHEMA "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0}}"
#define AT(field) .offset = offsetof(struct completion_params, field)
enum { TEXT = ROUTE_COMPLETIONS, CHAT = ROUTE_CHAT, BOTH = ROUTE_COMPLETIONS | ROUTE_CHAT };

static const struct param rows[] = {
    {.name = "model", .routes = BOTH, .type = PARAM_STRING, AT(model),
     .help = "The served model's id; any other is a 404. May be left out."},
    {.name = "prompt", .routes = TEXT, .type = PARAM_CUSTOM, .required = true, .read = read_prompt,
     .schema = "\"anyOf\":[{\"type\":\"string\"}," IDS_SCHEMA
               ",{\"type\":\"array\",\"items\":{\"type\":\"string\"},\"minItems\":1}"
               ",{\"type\":\"array\",\"items\":" IDS_SCHEMA ",\"minItems\":1}]",
     .help = "Text, token ids, or an array of either: choices then come in the order of the "
             "prompts. An empty text stands for the model's beginning-of-text token."},
    {.name = "messages", .routes = CHAT, .type = PARAM_CUSTOM, .required = true,
     .read = read_messages,
     .schema = "\"type\":\"array\",\"minItems\":1,\"items\":"
               "{\"$ref\":\"#/components/schemas/ChatMessage\"}",
     .help = "The conversation, which the model's chat template turns into a prompt. Special "
             "tokens inside a content are plain text."},
    {.name = "max_tokens", .routes = TEXT, .type = PARAM_INT, .max = INT32_MAX, AT(max_tokens),
     .default_json = "16",
     .help = "Most tokens per choice; prompt and max_tokens together must fit the context (the "
             "default "
             "gives way). 0 only with echo: scores the prompt."},
    {.name = "max_tokens", .routes = CHAT, .type = PARAM_INT, .min = 1, .max = INT32_MAX,
     AT(max_tokens), .help = "Most tokens per choice. Default: what the context leaves."},
    {.name = "max_completion_tokens", .routes = CHAT, .type = PARAM_INT, .min = 1,
     .max = INT32_MAX, AT(max_completion_tokens), .help = "OpenAI's newer name of max_tokens."},
    {.name = "temperature", .routes = BOTH, .type = PARAM_NUMBER, .max = 100,
     AT(sampling.temperature), .default_json = "1",
     .help = "0: always the most probable token. Higher: more varied."},
    {.name = "top_p", .routes = BOTH, .type = PARAM_NUMBER, .above_min = true, .max = 1,
     AT(sampling.top_p), .default_json = "1",
     .help = "Draw from the smallest set of tokens whose probability reaches this."},
    {.name = "top_k", .routes = BOTH, .type = PARAM_INT, .max = INT32_MAX, AT(sampling.top_k),
     .default_json = "0", .help = "Draw from this many of the most probable tokens; 0: all."},
    {.name = "min_p", .routes = BOTH, .type = PARAM_NUMBER, .max = 1, AT(sampling.min_p),
     .default_json = "0",
     .help = "Drop tokens less probable than this share of the most probable one."},
    {.name = "repetition_penalty", .routes = BOTH, .type = PARAM_NUMBER, .above_min = true,
     .max = 100, AT(sampling.repetition_penalty), .default_json = "1",
     .help = "Above 1: tokens of the prompt and the output so far become less likely."},
    {.name = "presence_penalty", .routes = BOTH, .type = PARAM_NUMBER, .min = -2, .max = 2,
     AT(sampling.presence_penalty), .default_json = "0",
     .help = "Taken from the logit of every token that the output has."},
    {.name = "frequency_penalty", .routes = BOTH, .type = PARAM_NUMBER, .min = -2, .max = 2,
     AT(sampling.frequency_penalty), .default_json = "0",
     .help = "Taken from a token's logit for each time that the output has it."},
    {.name = "logit_bias", .routes = BOTH, .type = PARAM_CUSTOM, .read = read_logit_bias,
     .schema = "\"type\":[\"object\",\"null\"],\"maxProperties\":1024,\"additionalProperties\":"
               "{\"type\":\"number\",\"minimum\":-100,\"maximum\":100}",
     .help = "Token id (as a decimal string) to what is added to its logit."},
    {.name = "seed", .routes = BOTH, .type = PARAM_CUSTOM, .read = read_seed,
     .schema = "\"type\":[\"integer\",\"null\"],\"minimum\":-9223372036854775808,"
               "\"maximum\":9223372036854775807",
     .help = "With a seed the same request gives the same reply, whatever runs beside it. "
             "Integers beyond "
             "2^53 count as the nearest double. Default: a random one."},
    {.name = "stop", .routes = BOTH, .type = PARAM_CUSTOM, .read = read_stop,
     .schema = "\"anyOf\":[{\"type\":\"null\"},{\"type\":\"string\",\"minLength\":1},{\"type\":"
               "\"array\",\"maxItems\":16,\"items\":{\"type\":\"string\",\"minLength\":1}}]",
     .help = "The reply ends before the first of these, each at most 256 bytes. One that is "
             "exactly a "
             "special token's text ends it at that token."},
    {.name = "ignore_eos", .routes = BOTH, .type = PARAM_BOOL, AT(ignore_eos),
     .default_json = "false", .help = "Never draw the tokens that end a reply."},
    {.name = "n", .routes = BOTH, .type = PARAM_INT, .min = 1, .max = PARAM_MAX_N, AT(n),
     .default_json = "1", .help = "Choices per prompt."},
    {.name = "best_of", .routes = TEXT, .type = PARAM_INT, .min = 1, .max = PARAM_MAX_N,
     AT(best_of),
     .help = "Generate this many and reply with the n of highest mean log-probability per token. "
             "At "
             "least n; not with stream. Default: n."},
    {.name = "stream", .routes = BOTH, .type = PARAM_BOOL, AT(stream), .default_json = "false",
     .help = "Server-sent events as the text comes, then data: [DONE]."},
    {.name = "stream_options", .routes = BOTH, .type = PARAM_CUSTOM, .read = read_stream_options,
     .schema = "\"type\":[\"object\",\"null\"],\"additionalProperties\":false,\"properties\":"
               "{\"include_usage\":{\"type\":[\"boolean\",\"null\"],\"default\":false}}",
     .help = "Only with stream. include_usage: a last chunk with the usage and no choices."},
    {.name = "logprobs", .routes = TEXT, .type = PARAM_INT, .max = SAMPLE_MAX_TOP, AT(logprobs),
     .help = "Report each token's log-probability and those of this many most probable tokens "
             "(OpenAI allows 5 at most)."},
    {.name = "logprobs", .routes = CHAT, .type = PARAM_BOOL, AT(chat_logprobs),
     .default_json = "false", .help = "Report each token's log-probability."},
    {.name = "top_logprobs", .routes = CHAT, .type = PARAM_INT, .max = SAMPLE_MAX_TOP,
     AT(top_logprobs), .help = "With logprobs: also this many of the most probable tokens."},
    {.name = "echo", .routes = TEXT, .type = PARAM_BOOL, AT(echo), .default_json = "false",
     .help = "The text begins with the prompt, and so do its logprobs."},
    {.name = "response_format", .routes = CHAT, .type = PARAM_CUSTOM,
     .read = read_response_format,
     .schema = "\"enum\":[null,{\"type\":\"text\"}]", .help = "Only text."},
    {.name = "user", .routes = BOTH, .type = PARAM_STRING, AT(user),
     .help = "The caller's own name for its user; has no effect."},
    {.name = "safety_identifier", .routes = CHAT, .type = PARAM_STRING, AT(user),
     .help = "OpenAI's newer name of user; has no effect."},
    {.name = "suffix", .routes = TEXT, .type = PARAM_NEUTRAL},
    {.name = "store", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "false"},
    {.name = "metadata", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "{}"},
    {.name = "service_tier", .routes = CHAT, .type = PARAM_NEUTRAL,
     .neutral = "\"auto\",\"default\""},
    {.name = "tools", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "[]"},
    {.name = "tool_choice", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "\"none\""},
    {.name = "parallel_tool_calls", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "functions", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "[]"},
    {.name = "function_call", .routes = CHAT, .type = PARAM_NEUTRAL, .neutral = "\"none\""},
    {.name = "modalities", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "audio", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "prediction", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "reasoning_effort", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "verbosity", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "web_search_options", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "prompt_cache_key", .routes = CHAT, .type = PARAM_NEUTRAL},
    {.name = "prompt_cache_retention", .routes = CHAT, .type = PARAM_NEUTRAL},
};

const struct param *completion_param_table(size_t *n)
{
    *n = sizeof rows / sizeof *rows;
    return rows;
}

/* ---- what the parameters mean together ------------------------------------------------------- */

static bool merge_chat(struct completion_params *p, struct error *err)
{
    int32_t newer = p->max_completion_tokens;
    if (newer >= 0 && p->max_tokens >= 0 && newer != p->max_tokens)
        return error_set(err, ERR_INVALID, "max_completion_tokens",
                         "'max_completion_tokens' is %d but 'max_tokens' is %d: give one", newer,
                         p->max_tokens);
    if (newer >= 0) p->max_tokens = newer;
    if (p->top_logprobs >= 0 && !p->chat_logprobs)
        return error_set(err, ERR_INVALID, "top_logprobs", "'top_logprobs' needs 'logprobs': true");
    if (p->chat_logprobs) p->logprobs = p->top_logprobs >= 0 ? p->top_logprobs : 0;
    return true;
}

static bool check_together(struct completion_params *p, struct error *err)
{
    if (p->best_of < 0) p->best_of = p->n;
    if (p->best_of < p->n)
        return error_set(err, ERR_INVALID, "best_of", "'best_of' is %d; it must be at least n (%d)",
                         p->best_of, p->n);
    if (p->stream && p->best_of > p->n)
        return error_set(err, ERR_INVALID, "best_of",
                         "'best_of' over n does not go with 'stream': the best are known last");
    if (p->max_tokens == 0 && !p->echo)
        return error_set(err, ERR_INVALID, "max_tokens", "'max_tokens' may be 0 only with 'echo'");
    if (p->include_usage && !p->stream)
        return error_set(err, ERR_INVALID, "stream_options",
                         "'stream_options' needs 'stream': true");
    return true;
}

size_t completion_parse_arena(size_t n)
{
    /* The densest are messages, 24 bytes of struct and two strings of 16 each from 28 bytes of
     * text; and ids, 4 bytes from 2. */
    return 4 * n + (64 << 10);
}

bool completion_parse(const struct api_limits *l, enum completion_kind kind, const char *body,
                      size_t n, struct arena *arena, struct completion_params *out,
                      struct error *err)
{
    *out = (struct completion_params){
        .max_tokens = -1, .n = 1, .best_of = -1, .logprobs = -1,
        .max_completion_tokens = -1, .top_logprobs = -1,
    };
    sample_params_init(&out->sampling);
    struct param_reader r = {.limits = l, .arena = arena, .out = out};
    enum route route = kind == COMPLETION_CHAT ? ROUTE_CHAT : ROUTE_COMPLETIONS;
    if (!params_parse(rows, sizeof rows / sizeof *rows, route, &r, body, n, err)) return false;
    if (kind == COMPLETION_CHAT && !merge_chat(out, err)) return false;
    return check_together(out, err);
}
