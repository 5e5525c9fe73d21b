/* How errors look to a client: the one table from codes to HTTP, and OpenAI's error object. */
#include <string.h>

#include "api/api.h"
#include "api/json_out.h"

/* `type` and `code` follow OpenAI's words, so that its clients raise what they document. */
static const struct error_shape {
    enum error_code error;
    int status;
    const char *type, *code;
} error_shapes[] = {
    {ERR_INVALID, 400, "invalid_request_error", "invalid_value"},
    {ERR_FORMAT, 400, "invalid_request_error", "invalid_json"},
    {ERR_UNSUPPORTED, 400, "invalid_request_error", "unsupported_parameter"},
    {ERR_NO_FIT, 400, "invalid_request_error", "does_not_fit"},
    {ERR_UNAUTHENTICATED, 401, "invalid_request_error", "invalid_api_key"},
    {ERR_FORBIDDEN, 403, "invalid_request_error", "insufficient_permissions"},
    {ERR_NO_ROOM, 409, "invalid_request_error", "does_not_fit"},
    {ERR_NOT_FOUND, 404, "invalid_request_error", "not_found"},
    {ERR_TOO_LARGE, 413, "invalid_request_error", "request_too_large"},
    {ERR_BUSY, 429, "rate_limit_error", "rate_limit_exceeded"},
    {ERR_CANCELED, 499, "server_error", "canceled"},
    {ERR_INTERNAL, 500, "server_error", "internal_error"},
    {ERR_IO, 500, "server_error", "internal_error"},
    {ERR_MODEL, 500, "server_error", "model_failed"},
    {ERR_NONE, 500, "server_error", "internal_error"},
    {ERR_MEMORY, 503, "server_error", "out_of_memory"},
    {ERR_UNAVAILABLE, 503, "server_error", "unavailable"},
    {ERR_DEVICE, 503, "server_error", "device_failed"},
    {ERR_DISK_FULL, 507, "server_error", "disk_full"},
    {ERR_TIMEOUT, 504, "server_error", "timeout"},
};

/* Some codes depend on what the error is about. */
static const char *client_code(const struct error *err, const struct error_shape *shape)
{
    if (err->code == ERR_NOT_FOUND && strcmp(err->param, "model") == 0) return "model_not_found";
    if (err->code == ERR_FORBIDDEN && err->param[0]) return "not_allowed";
    bool of_prompt = strncmp(err->param, "prompt", 6) == 0 || strcmp(err->param, "messages") == 0;
    if (err->code == ERR_NO_FIT && of_prompt) return "context_length_exceeded";
    if (err->code == ERR_UNSUPPORTED && !err->param[0]) return "unsupported";
    return shape->code;
}

static const struct error_shape *error_shape(enum error_code code)
{
    for (size_t i = 0; i < sizeof error_shapes / sizeof *error_shapes; i++)
        if (error_shapes[i].error == code) return &error_shapes[i];
    return error_shape(ERR_INTERNAL);
}

int api_error_status(enum error_code code) { return error_shape(code)->status; }

const char *api_error_text(const struct error *err)
{
    if (err->code == ERR_DISK_FULL)
        return "No room on the server's disk: free some and retry; the server's log says where.";
    if (api_error_status(err->code) == 500 && err->code != ERR_MODEL)
        return "Internal error; the server's log says more.";
    return err->text;
}

void api_render_error(struct buf *out, const struct error *err)
{
    const struct error_shape *shape = error_shape(err->code);
    buf_puts(out, "{\"error\":{\"message\":");
    json_out_text(out, api_error_text(err));
    buf_puts(out, ",\"type\":");
    json_out_text(out, shape->type);
    buf_puts(out, ",\"param\":");
    json_out_text(out, err->param[0] ? err->param : NULL);
    buf_puts(out, ",\"code\":");
    json_out_text(out, client_code(err, shape));
    buf_puts(out, "}}");
}

void api_limits_init(struct api_limits *l)
{
    *l = (struct api_limits){
        .body_bytes = 4 << 20,
        .json_depth = 32,
        .max_n = 16,
        .max_prompts = 64,
        .reply_bytes = 64 << 20,
        .default_max_tokens = 16,
    };
}
