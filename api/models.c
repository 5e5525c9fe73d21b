/* GET /v1/models and /v1/models/{id}: the one model that is served. */
#include <inttypes.h>
#include <string.h>

#include "api/api.h"
#include "api/json_out.h"

static void render_model(const struct api_context *c, struct buf *out)
{
    const struct gpt_config *config = engine_config(c->engine);
    buf_puts(out, "{\"id\":");
    json_out_text(out, c->model_id);
    buf_printf(out, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"gptd\",\"root\":",
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

void api_models(const struct api_context *c, struct buf *out)
{
    buf_puts(out, "{\"object\":\"list\",\"data\":[");
    render_model(c, out);
    buf_puts(out, "]}");
}

bool api_model(const struct api_context *c, const char *id, struct buf *out, struct error *err)
{
    if (strcmp(id, c->model_id) != 0)
        return error_set(err, ERR_NOT_FOUND, "model",
                         "the model '%.64s' does not exist; '%.64s' is served", id, c->model_id);
    render_model(c, out);
    return true;
}
