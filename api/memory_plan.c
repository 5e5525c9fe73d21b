/* POST /v1/memory/plan: see memory_plan.h. */
#include "api/memory_plan.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json_out.h"
#include "api/params.h"
#include "api/registry.h"
#include "api/request.h"
#include "base/file.h"
#include "base/options.h"

enum {
    CONFIG_LIMIT = 1 << 20,
    MOST_LAYERS = 160, /* of a plan over HTTP: all plans that are compared list every layer */
};
#define MAX_BUDGET 9007199254740992.0 /* 2^53: what a JSON number says exactly */

/* ---- the answer ------------------------------------------------------------------------------ */

/* {"weights": 1, ...}: components that have bytes. */
static void render_components(const struct memory_plan *m, struct buf *out)
{
    const char *comma = "";
    buf_putc(out, '{');
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        if (m->component[i] == 0) continue;
        buf_printf(out, "%s\"%s\":%" PRId64, comma, memory_component_name((enum memory_component)i),
                   m->component[i]);
        comma = ",";
    }
    buf_putc(out, '}');
}

/* {"batch_size": 32, ...}: the keys of a config that say how a plan trains. */
static void render_training_keys(const struct train_config *config, struct buf *out)
{
    static const char *const shown[] = {
        "batch_size", "grad_accum_steps", "micro_batch_size", "sequence_length", "loss_rows",
        "dtype", "recompute", "moments", "master", "gradients", "freeze_layers",
        "freeze_embeddings",
    };
    buf_putc(out, '{');
    const char *comma = "";
    for (size_t s = 0; s < sizeof shown / sizeof *shown; s++) {
        const struct train_key *key = train_keys;
        while (strcmp(key->name, shown[s]) != 0) key++;
        const void *at = (const char *)config + key->offset;
        buf_printf(out, "%s\"%s\":", comma, key->name);
        if (key->type == TRAIN_WORD) json_out_text(out, train_key_word(key, config));
        else if (key->type == TRAIN_BOOL) buf_puts(out, *(const bool *)at ? "true" : "false");
        else buf_printf(out, "%" PRId64, *(const int64_t *)at);
        comma = ",";
    }
    buf_putc(out, '}');
}

static void render_memory(const struct memory_plan *m, struct buf *out)
{
    buf_puts(out, "\"components\":");
    render_components(m, out);
    buf_printf(out, ",\"total_bytes\":%" PRId64 ",\"device_bytes\":%" PRId64 ",\"host_bytes\":%"
               PRId64, m->total_bytes, m->device_bytes, m->host_bytes);
}

static void render_choice(const struct train_choice *choice, struct buf *out)
{
    buf_putc(out, '{');
    render_memory(&choice->memory, out);
    buf_puts(out, ",\"options\":");
    render_training_keys(&choice->config, out);
    buf_puts(out, ",\"estimated_step_seconds\":");
    json_out_double(out, choice->seconds);
    buf_puts(out, ",\"estimated_tokens_per_s\":");
    json_out_double(out, (double)fit_step_tokens(&choice->config) / choice->seconds);
}

/* "largest" follows: without a budget nothing bounds it. */
static void render_fit(bool fits, int64_t shortfall, struct buf *out)
{
    buf_printf(out, ",\"fits\":%s,\"shortfall_bytes\":%" PRId64 ",\"largest\":",
               fits ? "true" : "false", shortfall);
}

static void render_training(const struct plan_case *c, const struct fit_answer *a, struct buf *out)
{
    render_choice(&a->training, out);
    render_fit(a->training_fits, fit_shortfall_training(&c->question, a), out);
    if (c->question.budget > 0)
        buf_printf(out, "{\"micro_batch_size\":%" PRId64 ",\"sequence_length\":%" PRId64 "}",
                   a->max_micro_batch_size, a->max_sequence_length);
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"estimate_source\":");
    json_out_text(out, c->question.rates.source);
    buf_putc(out, '}');
}

static void render_generation(const struct plan_case *c, const struct fit_answer *a,
                              struct buf *out)
{
    const struct engine_options *o = &a->serving;
    buf_putc(out, '{');
    render_memory(&a->generation.memory, out);
    buf_printf(out,
               ",\"options\":{\"dtype\":\"%s\",\"kv_dtype\":\"%s\",\"max_context\":%" PRId64
               ",\"max_seqs\":%d,\"max_batch_tokens\":%d,\"kv_pages\":%d}",
               dtype_info(fit_serving_dtype(&c->question))->name,
               dtype_info(a->generation.kv_dtype)->name, o->max_context, o->max_seqs,
               o->max_batch_tokens, a->generation.kv_pages);
    render_fit(a->generation_fits, fit_shortfall_generation(&c->question, a), out);
    if (c->question.budget > 0)
        buf_printf(out, "{\"max_context\":%" PRId64 ",\"max_seqs\":%d,\"max_batch_tokens\":%d}}",
                   a->limits.max_context, a->limits.max_seqs, a->limits.max_batch_tokens);
    else
        buf_puts(out, "null}");
}

static void render_cards(const struct fit_card *cards, struct buf *out)
{
    buf_putc(out, '[');
    for (size_t i = 0; cards && i < n_gpus; i++) {
        const struct fit_card *card = &cards[i];
        buf_puts(out, i ? ",{\"name\":" : "{\"name\":");
        json_out_text(out, card->gpu->name);
        buf_printf(out, ",\"memory_bytes\":%" PRId64 ",\"trains\":%s,\"generates\":%s",
                   card->gpu->memory_bytes, card->trains ? "true" : "false",
                   card->generates ? "true" : "false");
        if (card->trains) {
            buf_printf(out, ",\"training_bytes\":%" PRId64 ",\"estimated_tokens_per_s\":",
                       card->plan.memory.total_bytes);
            json_out_double(out, (double)fit_step_tokens(&card->plan.config) / card->plan.seconds);
        }
        buf_putc(out, '}');
    }
    buf_putc(out, ']');
}

static void render_device(const struct plan_case *c, struct buf *out)
{
    buf_printf(out, ",\"device\":\"%s\",\"gpu\":", c->on_cuda ? "cuda" : "cpu");
    if (c->has_gpu) {
        buf_puts(out, "{\"name\":");
        json_out_text(out, c->gpu.name);
        buf_printf(out, ",\"memory_bytes\":%" PRId64 ",\"margin_bytes\":%" PRId64 "}",
                   c->gpu.memory_bytes, gpu_margin_bytes(&c->gpu));
    } else {
        buf_puts(out, "null");
    }
    if (c->question.budget > 0)
        buf_printf(out, ",\"budget_bytes\":%" PRId64, c->question.budget);
    else
        buf_puts(out, ",\"budget_bytes\":null");
    buf_printf(out, ",\"device_overhead_bytes\":%" PRId64 ",\"device_overhead_source\":",
               c->overhead_bytes);
    json_out_text(out, c->overhead_source);
}

void memory_plan_render(const struct plan_case *c, const struct fit_answer *a,
                        const struct fit_card *cards, struct buf *out)
{
    buf_puts(out, "{\"object\":\"memory.plan\",\"model\":");
    json_out_text(out, c->name);
    buf_printf(out, ",\"parameters\":%" PRId64 ",\"vocab_size\":%" PRId64
               ",\"vocab_size_assumed\":%s", a->parameters, c->question.model.vocab_size,
               c->assumed_vocab ? "true" : "false");
    render_device(c, out);
    buf_puts(out, ",\"training\":");
    render_training(c, a, out);
    buf_puts(out, ",\"generation\":");
    render_generation(c, a, out);
    buf_puts(out, ",\"ratio\":");
    json_out_double(out, (double)a->training.memory.total_bytes
                             / (double)a->generation.memory.total_bytes);
    buf_printf(out, ",\"fits\":%s,\"shortfall_bytes\":%" PRId64 ",\"alternatives\":[",
               plan_case_fits(c, a) ? "true" : "false", plan_case_shortfall(c, a));
    for (int32_t i = 0; i < a->n_alternatives; i++) {
        if (i) buf_putc(out, ',');
        render_choice(&a->alternatives[i], out);
        buf_puts(out, ",\"slowdown\":");
        json_out_double(out, a->alternatives[i].seconds / a->training.seconds);
        buf_putc(out, '}');
    }
    buf_puts(out, "],\"gpus\":");
    render_cards(cards, out);
    buf_putc(out, '}');
}

/* ---- the body -------------------------------------------------------------------------------- */

struct body {
    struct plan_request request;
    const char *model;
};

static const struct plan_key *find_key(const char *name)
{
    const struct plan_key *key = plan_keys;
    while (strcmp(key->name, name) != 0) key++;
    return key;
}

static bool read_number(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct body *b = r->out;
    const struct plan_key *key = find_key(name);
    return param_int(item, name, 1, key->max, (int64_t *)((char *)&b->request + key->offset), err);
}

static bool read_word(const struct param_reader *r, const char *name, const struct cJSON *item,
                      struct error *err)
{
    struct body *b = r->out;
    const struct plan_key *key = find_key(name);
    const char **at = (const char **)((char *)&b->request + key->offset);
    return param_string(r->arena, item, name, at, NULL, err);
}

/* Bytes as a number, or as people write them: "6GiB". */
static bool read_budget(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct body *b = r->out;
    if (!cJSON_IsString(item))
        return param_int(item, name, 1, (int64_t)MAX_BUDGET, &b->request.memory_budget, err);
    if (options_parse_bytes(item->valuestring, &b->request.memory_budget)
        && b->request.memory_budget > 0)
        return true;
    return error_set(err, ERR_INVALID, name, "'%s' is \"%.40s\"; it must be a size like 6GiB", name,
                     item->valuestring);
}

static bool read_gpu(const struct param_reader *r, const char *name, const struct cJSON *item,
                     struct error *err)
{
    struct body *b = r->out;
    return param_string(r->arena, item, name, &b->request.gpu, NULL, err);
}

/* Back to text: a config is read from text wherever it comes from. */
static bool read_config(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct body *b = r->out;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    char *json = cJSON_PrintUnformatted(item);
    b->request.config = json ? arena_strdup(r->arena, json) : NULL;
    cJSON_free(json);
    if (!b->request.config) return param_out_of_memory(err);
    b->request.n_config = strlen(b->request.config);
    b->request.name = name;
    return true;
}

#define CUSTOM(reader, json) \
    .routes = ROUTE_PLAN, .type = PARAM_CUSTOM, .read = reader, .schema = json
#define NUMBER(key, most, text) \
    {.name = #key, CUSTOM(read_number, "\"type\":[\"integer\",\"null\"],\"minimum\":1"), \
     .help = text},
#define WORD(key, literals, text) \
    {.name = #key, CUSTOM(read_word, "\"enum\":[" literals ",null]"), .help = text},

static const struct param rows[] = {
    {.name = "model", .routes = ROUTE_PLAN, .type = PARAM_STRING,
     .offset = offsetof(struct body, model),
     .help = "configs/NAME for a preset, or the id of a served model. Without it and without "
             "config: the default model."},
    {.name = "config",
     CUSTOM(read_config, "\"type\":[\"object\",\"null\"],\"additionalProperties\":true"),
     .help = "Instead of model: a config in a preset's words (n_layer, n_head, n_embd, block_size, "
             "vocab_size, batch_size, ...)."},
    {.name = "gpu", CUSTOM(read_gpu, "\"type\":[\"string\",\"null\"],\"examples\":[\"RTX 3060\"]"),
     .help = "A card (\"RTX 3060\") or its memory (\"8GiB\"): the budget is what it leaves."},
    {.name = "memory_budget",
     CUSTOM(read_budget, "\"anyOf\":[{\"type\":\"integer\",\"minimum\":1},{\"type\":\"string\"},"
                         "{\"type\":\"null\"}]"),
     .help = "The most that may be taken, in bytes or as \"6GiB\"."},
    PLAN_KEYS(NUMBER, WORD)
};

const struct param *memory_plan_param_table(size_t *n)
{
    *n = sizeof rows / sizeof *rows;
    return rows;
}

/* ---- the route ------------------------------------------------------------------------------- */

/* A client's question shall cost no more than a moment. */
static bool check_work(const struct gpt_config *m, struct error *err)
{
    if (m->n_layer <= MOST_LAYERS) return true;
    return error_set(err, ERR_INVALID, "n_layer", "n_layer is %" PRId64 "; over HTTP models of up "
                     "to %d layers are planned, and any by gptd plan", m->n_layer, MOST_LAYERS);
}

static bool render_answer(const struct plan_request *r, const struct plan_devices *devices,
                          struct buf *out, struct error *err)
{
    struct plan_case c;
    struct fit_answer *a = malloc(sizeof *a); /* its alternatives are large for a thread's stack */
    struct fit_card *cards = calloc(n_gpus, sizeof *cards);
    bool ok = (a && cards) || error_set(err, ERR_MEMORY, NULL, "no memory to plan in");
    ok = ok && plan_request_resolve(r, devices, &c, err)
         && check_work(&c.question.model, err) && fit_answer(&c.question, a, err)
         && fit_cards(&c.question, devices->cuda, cards, err);
    if (ok) memory_plan_render(&c, a, cards, out);
    free(cards);
    free(a);
    return ok && buf_check(out, "the reply", err);
}

/* configs/NAME: the file's text, into `text`. */
static bool read_preset(const char *model, const char *configs_dir, struct buf *text,
                        struct error *err)
{
    char path[1024];
    const char *name = model + strlen("configs/");
    size_t n = strlen(name), ending = n > 5 && strcmp(name + n - 5, ".json") == 0 ? 0 : 5;
    bool plain = n > 0 && n < 128 && name[0] != '.' && !strchr(name, '/');
    int len = snprintf(path, sizeof path, "%s/%.128s%.*s", configs_dir, name, (int)ending, ".json");
    if (!plain || len >= (int)sizeof path || !file_exists(path))
        return error_set(err, ERR_NOT_FOUND, "model", "there is no preset '%.64s'", model);
    return file_read(path, text, err);
}

static bool plan_body(const struct api_context *c, const struct plan_devices *devices,
                      const char *configs_dir, struct body *b, struct buf *out, struct error *err)
{
    if (b->model && b->request.config)
        return error_set(err, ERR_INVALID, "config", "'model' and 'config' each say which model: "
                         "leave one of them out");
    if (b->request.config) return render_answer(&b->request, devices, out, err);
    if (b->model && strncmp(b->model, "configs/", 8) == 0) {
        struct buf text;
        buf_init(&text, CONFIG_LIMIT);
        bool ok = read_preset(b->model, configs_dir, &text, err);
        b->request.config = text.data ? text.data : "";
        b->request.n_config = text.len;
        b->request.name = b->model;
        ok = ok && render_answer(&b->request, devices, out, err);
        buf_free(&text);
        return ok;
    }
    const struct api_context *model = api_acquire(c, b->model, err);
    if (!model) return false;
    b->request.known = engine_config(model->engine);
    b->request.formats = engine_formats(model->engine);
    b->request.name = model->model_id;
    bool ok = render_answer(&b->request, devices, out, err);
    api_release(model);
    return ok;
}

bool api_memory_plan(const struct api_context *c, const struct plan_devices *devices,
                     const char *configs_dir, const char *body, size_t n, struct buf *out,
                     struct error *err)
{
    struct body b = {0};
    struct arena arena;
    arena_init(&arena, completion_parse_arena(n));
    struct param_reader r = {.limits = &c->limits, .arena = &arena, .out = &b};
    bool ok = params_parse(rows, sizeof rows / sizeof *rows, ROUTE_PLAN, &r, body, n, err)
              && plan_body(c, devices, configs_dir, &b, out, err);
    arena_free(&arena);
    return ok;
}
