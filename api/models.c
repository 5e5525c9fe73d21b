/* GET /v1/models and /v1/models/{id}: the models that are loaded, and those that could be; the body
 * that loads one. */
#include <inttypes.h>
#include <stddef.h>

#include "api/api.h"
#include "api/json_out.h"
#include "api/params.h"
#include "api/registry.h"

static void render_model(const struct api_context *c, struct buf *out)
{
    const struct gpt_config *config = engine_config(c->engine);
    buf_puts(out, "{\"id\":");
    json_out_text(out, c->model_id);
    buf_printf(out,
               ",\"object\":\"model\",\"created\":%" PRId64
               ",\"owned_by\":\"gptd\",\"loaded\":true,\"root\":",
               c->created);
    json_out_text(out, c->model_path);
    buf_puts(out, ",\"system_fingerprint\":");
    json_out_text(out, engine_fingerprint(c->engine));
    buf_puts(out, ",\"architecture\":");
    json_out_text(out, config->arch);
    buf_printf(out,
               ",\"parameters\":%" PRId64 ",\"vocab_size\":%" PRId64 ",\"max_model_len\":%" PRId64
               ",\"has_tokenizer\":%s}",
               gpt_config_parameters(config), config->vocab_size, engine_max_context(c->engine),
               engine_tokenizer(c->engine) ? "true" : "false");
}

struct list { struct buf *out; const char *comma; };

static void render_one(void *ctx, const struct api_context *model)
{
    struct list *list = ctx;
    buf_puts(list->out, list->comma);
    render_model(model, list->out);
    list->comma = ",";
}

void api_render_available(const struct api_available *m, struct buf *out)
{
    buf_puts(out, "{\"id\":");
    json_out_text(out, m->id);
    buf_printf(out, ",\"object\":\"model\",\"created\":%" PRId64
               ",\"owned_by\":\"gptd\",\"loaded\":false,\"root\":", m->created);
    json_out_text(out, m->path);
    buf_putc(out, '}');
}

void api_models(const struct api_context *c, const struct api_available *more, size_t n_more,
                struct buf *out)
{
    struct list list = {out, ""};
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    api_visit(c, render_one, &list);
    for (size_t i = 0; i < n_more; i++) {
        buf_puts(out, list.comma);
        api_render_available(&more[i], out);
        list.comma = ",";
    }
    buf_puts(out, "]}");
}

bool api_model(const struct api_context *c, const char *id, struct buf *out, struct error *err)
{
    const struct api_context *model = api_acquire(c, id, err);
    if (!model) return false;
    render_model(model, out);
    api_release(model);
    return true;
}

static const struct param load_rows[] = {
    {.name = "model", .routes = ROUTE_LOAD, .type = PARAM_STRING, .required = true,
     .offset = offsetof(struct api_load, model),
     .help = "A fine-tuned model's id, or a checkpoint's (fine_tuned_model_checkpoint); "
             "a loaded model's, to read its files again; or a path in the server's folder of "
             "models."},
    {.name = "id", .routes = ROUTE_LOAD, .type = PARAM_STRING,
     .offset = offsetof(struct api_load, id),
     .help = "What clients call it; a loaded model of that id is replaced. By default the id, or "
             "what the path ends in."},
};

const struct param *api_load_param_table(size_t *n)
{
    *n = sizeof load_rows / sizeof *load_rows;
    return load_rows;
}

bool api_load_parse(const struct api_limits *l, const char *body, size_t n, struct arena *arena,
                    struct api_load *out, struct error *err)
{
    *out = (struct api_load){0};
    struct param_reader r = {.limits = l, .arena = arena, .out = out};
    return params_parse(load_rows, sizeof load_rows / sizeof *load_rows, ROUTE_LOAD, &r, body, n,
                        err);
}
