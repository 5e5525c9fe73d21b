/* How errors look to a client. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "api/api.h"
#include "base/json.h"

struct shape { enum error_code code; const char *param; int status; const char *type, *name; };

static void test_every_code(void **state)
{
    static const struct shape shapes[] = {
        {ERR_INVALID, "n", 400, "invalid_request_error", "invalid_value"},
        {ERR_FORMAT, "", 400, "invalid_request_error", "invalid_json"},
        {ERR_UNSUPPORTED, "tools", 400, "invalid_request_error", "unsupported_parameter"},
        {ERR_UNSUPPORTED, "", 400, "invalid_request_error", "unsupported"},
        {ERR_NO_FIT, "prompt[2]", 400, "invalid_request_error", "context_length_exceeded"},
        {ERR_NO_FIT, "messages", 400, "invalid_request_error", "context_length_exceeded"},
        {ERR_NO_FIT, "n", 400, "invalid_request_error", "does_not_fit"},
        {ERR_UNAUTHENTICATED, "", 401, "invalid_request_error", "invalid_api_key"},
        {ERR_FORBIDDEN, "", 403, "invalid_request_error", "insufficient_permissions"},
        {ERR_FORBIDDEN, "Host", 403, "invalid_request_error", "not_allowed"},
        {ERR_NOT_FOUND, "model", 404, "invalid_request_error", "model_not_found"},
        {ERR_NOT_FOUND, "", 404, "invalid_request_error", "not_found"},
        {ERR_TOO_LARGE, "", 413, "invalid_request_error", "request_too_large"},
        {ERR_BUSY, "", 429, "rate_limit_error", "rate_limit_exceeded"},
        {ERR_CANCELED, "", 499, "server_error", "canceled"},
        {ERR_INTERNAL, "", 500, "server_error", "internal_error"},
        {ERR_MODEL, "", 500, "server_error", "model_failed"},
        {ERR_IO, "", 500, "server_error", "internal_error"},
        {ERR_MEMORY, "", 503, "server_error", "out_of_memory"},
        {ERR_UNAVAILABLE, "", 503, "server_error", "unavailable"},
        {ERR_DEVICE, "", 503, "server_error", "device_failed"},
        {ERR_DISK_FULL, "", 507, "server_error", "disk_full"},
        {ERR_TIMEOUT, "", 504, "server_error", "timeout"},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct error err, parse_error;
        struct buf out;
        buf_init(&out, 10000);
        error_set(&err, shapes[i].code, shapes[i].param, "it is \"so\"");
        assert_int_equal(api_error_status(shapes[i].code), shapes[i].status);
        api_render_error(&out, &err);
        struct cJSON *root = json_parse(out.data, out.len, 4, "error", &parse_error);
        assert_non_null(root);
        const struct cJSON *e = json_get(root, "error");
        assert_int_equal(cJSON_GetArraySize(e), 4);
        assert_string_equal(json_get(e, "type")->valuestring, shapes[i].type);
        assert_string_equal(json_get(e, "code")->valuestring, shapes[i].name);
        /* What a bug has to say is not the client's; what is wrong with the model is. */
        assert_int_equal(strcmp(json_get(e, "message")->valuestring, "it is \"so\"") == 0,
                         shapes[i].code == ERR_MODEL ||
                             (shapes[i].status != 500 && shapes[i].status != 507));
        if (shapes[i].param[0])
            assert_string_equal(json_get(e, "param")->valuestring, shapes[i].param);
        else assert_true(cJSON_IsNull(json_get(e, "param")));
        cJSON_Delete(root);
        buf_free(&out);
    }
}

/* error.param is cut to its size, perhaps inside a character. */
static void test_a_cut_name_stays_valid(void **state)
{
    char name[200] = "";
    for (int i = 0; i < 60; i++) strcat(name, "\xE2\x82\xAC");
    struct error err, parse_error;
    struct buf out;
    buf_init(&out, 10000);
    error_set(&err, ERR_INVALID, name, "no '%s'", name);
    api_render_error(&out, &err);
    struct cJSON *root = json_parse(out.data, out.len, 4, "error", &parse_error);
    assert_non_null(root);
    cJSON_Delete(root);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code),
        cmocka_unit_test(test_a_cut_name_stays_valid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
