/* The routes that answer at once: tokenize, detokenize, models, memory, the description. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/request.h"
#include "base/json.h"
#include "tests/api/api_fixture.h"

static struct api_fixture fixture;

static struct cJSON *parsed(struct buf *out)
{
    struct error err;
    struct cJSON *root = json_parse(out->data, out->len, 64, "the reply", &err);
    if (!root) fail_msg("%s: %s", err.text, out->data);
    buf_free(out);
    return root;
}

typedef bool (*route_fn)(const struct api_context *, const char *, size_t, struct buf *,
                         struct error *);

static struct cJSON *answer(route_fn route, const char *body)
{
    struct buf out;
    struct error err;
    buf_init(&out, 1 << 20);
    if (!route(&fixture.api, body, strlen(body), &out, &err)) fail_msg("%s: %s", body, err.text);
    return parsed(&out);
}

static void refuse(route_fn route, const char *body, enum error_code code, const char *param)
{
    struct buf out;
    struct error err = {0};
    buf_init(&out, 1 << 20);
    if (route(&fixture.api, body, strlen(body), &out, &err)) fail_msg("accepted: %s", body);
    if (err.code != code || strcmp(err.param, param) != 0)
        fail_msg("%s: %s of '%s': %s", body, error_code_name(err.code), err.param, err.text);
    buf_free(&out);
}

/* ---- tokenize, detokenize -------------------------------------------------------------------- */

static void test_there_and_back(void **state)
{
    static const char *const texts[] = {
        "", "the cat", " x ", "\\n\\n", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "<|im_start|>"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char body[256];
        snprintf(body, sizeof body, "{\"prompt\":\"%s\"}", texts[i]);
        struct cJSON *there = answer(api_tokenize, body);
        const struct cJSON *tokens = json_get(there, "tokens"), *item;
        assert_int_equal(json_get(there, "count")->valueint, cJSON_GetArraySize(tokens));
        cJSON_ArrayForEach(item, tokens) assert_true(item->valueint < TOKEN_EOS); /* text is text */
        char *ids = cJSON_PrintUnformatted(tokens);
        snprintf(body, sizeof body, "{\"tokens\":%s}", ids);
        struct cJSON *back = answer(api_detokenize, body);
        char *shown = cJSON_PrintUnformatted(json_get(back, "prompt"));
        shown[strlen(shown) - 1] = 0;
        assert_string_equal(shown + 1, texts[i]);
        cJSON_free(shown);
        cJSON_free(ids);
        cJSON_Delete(back);
        cJSON_Delete(there);
    }
}

static void test_detokenize_joins_before_it_replaces(void **state)
{
    struct cJSON *r =
        answer(api_detokenize, "{\"tokens\":[96,97,149,96,65]}"); /* C3 A9, special, C3 'a' */
    assert_string_equal(json_get(r, "prompt")->valuestring, "\xC3\xA9\xEF\xBF\xBD" "a");
    cJSON_Delete(r);
}

static void test_refusals(void **state)
{
    refuse(api_tokenize, "{}", ERR_INVALID, "prompt");
    refuse(api_tokenize, "{\"prompt\":5}", ERR_INVALID, "prompt");
    refuse(api_tokenize, "{\"prompt\":null}", ERR_INVALID, "prompt");
    refuse(api_tokenize, "{\"prompt\":\"a\",\"tokens\":[]}", ERR_INVALID, "tokens");
    refuse(api_tokenize, "{\"prompt\":\"a\",\"prompt\":\"a\"}", ERR_FORMAT, "prompt");
    refuse(api_tokenize, "{\"prompt\":\"a\",\"model\":\"b\"}", ERR_NOT_FOUND, "model");
    refuse(api_tokenize, "{\"prompt\":\"\xE6\x97\xA5\"}", ERR_INVALID, "prompt");
    refuse(api_detokenize, "{}", ERR_INVALID, "tokens");
    refuse(api_detokenize, "{\"tokens\":\"a\"}", ERR_INVALID, "tokens");
    refuse(api_detokenize, "{\"tokens\":[1,150]}", ERR_INVALID, "tokens[1]");
    refuse(api_detokenize, "{\"tokens\":[-1]}", ERR_INVALID, "tokens[0]");
    refuse(api_detokenize, "{\"tokens\":[1,2.5]}", ERR_INVALID, "tokens[1]");
}

/* ---- models ---------------------------------------------------------------------------------- */

static void test_models(void **state)
{
    struct buf out;
    struct error err;
    buf_init(&out, 10000);
    api_models(&fixture.api, NULL, 0, &out);
    struct cJSON *list = parsed(&out);
    assert_string_equal(json_get(list, "object")->valuestring, "list");
    const struct cJSON *model = cJSON_GetArrayItem(json_get(list, "data"), 0);
    assert_string_equal(json_get(model, "id")->valuestring, "tiny");
    assert_string_equal(json_get(model, "object")->valuestring, "model");
    assert_int_equal(json_get(model, "max_model_len")->valueint, FIXTURE_CONTEXT);
    assert_int_equal(json_get(model, "vocab_size")->valueint, FIXTURE_VOCAB);
    assert_true(api_model(&fixture.api, "tiny", &out, &err));
    struct cJSON *one = parsed(&out);
    assert_true(cJSON_Compare(one, model, true));
    assert_false(api_model(&fixture.api, "other", &out, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_string_equal(err.param, "model");
    cJSON_Delete(one);
    cJSON_Delete(list);
    buf_free(&out);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
    struct buf out;
    buf_init(&out, 10000);
    struct engine_stats s;
    engine_stats(fixture.api.engine, &s);
    struct api_job_memory job = {.id = "ftjob-1", .planned_bytes = 7, .rss_bytes = 12,
                                 .baseline_bytes = 3, .planned[MEMORY_GRADIENTS] = 7};
    struct api_memory_sample sample = {.time = 5, .rss_bytes = 6};
    struct api_memory_view view = {
        .process = {.rss_bytes = 50 << 20, .peak_rss_bytes = 60 << 20, .baseline_bytes = 10 << 20,
                    .heap_bytes = 2 << 20, .file_bytes = 1 << 20},
        .resident_bytes = 4711, .jobs = &job, .n_jobs = 1, .history = &sample, .n_history = 1,
        .history_interval_s = 10,
    };
    api_memory(&fixture.api, &view, &out);
    struct cJSON *root = parsed(&out);
    const struct cJSON *device = cJSON_GetArrayItem(json_get(root, "devices"), 0), *part;
    assert_string_equal(json_get(device, "name")->valuestring, "cpu");
    double planned = 0, allocated = 0;
    cJSON_ArrayForEach(part, json_get(device, "components")) {
        planned += json_get(part, "planned_bytes")->valuedouble;
        allocated += json_get(part, "allocated_bytes")->valuedouble;
    }
    assert_int_equal(cJSON_GetArraySize(json_get(device, "components")), 7);
    assert_true(json_get(device, "planned_bytes")->valuedouble == planned);
    assert_true(json_get(device, "allocated_bytes")->valuedouble == allocated);
    assert_true(planned == allocated && planned > 0);
    const struct cJSON *pages = json_get(root, "kv_pages");
    assert_int_equal(json_get(pages, "page_tokens")->valueint, KV_PAGE_TOKENS);
    assert_int_equal(json_get(pages, "total")->valueint, s.kv.total);
    assert_int_equal(json_get(pages, "used")->valueint, 0);
    assert_int_equal(json_get(pages, "free")->valueint + json_get(pages, "cached")->valueint,
                     s.kv.total);
    double unexplained = json_get(json_get(root, "process"), "unexplained_bytes")->valuedouble;
    assert_true(unexplained == (37 << 20) - allocated);
    assert_int_equal(json_get(device, "resident_bytes")->valueint, 4711);
    const struct cJSON *shown = cJSON_GetArrayItem(json_get(root, "jobs"), 0);
    assert_string_equal(json_get(shown, "id")->valuestring, "ftjob-1");
    assert_int_equal(json_get(json_get(shown, "components"), "gradients")->valueint, 7);
    assert_int_equal(json_get(shown, "unexplained_bytes")->valueint, 2);
    const struct cJSON *history = json_get(json_get(root, "history"), "samples");
    assert_int_equal(cJSON_GetArraySize(history), 1);
    assert_int_equal(json_get(cJSON_GetArrayItem(history, 0), "rss_bytes")->valueint, 6);
    cJSON_Delete(root);
}

/* ---- the description --------------------------------------------------------------------------
 */

/* Every {"$ref":"#/components/KIND/NAME"} names one that is there. */
static void check_refs(const struct cJSON *node, const struct cJSON *components)
{
    const struct cJSON *child;
    cJSON_ArrayForEach(child, node) {
        char kind[32], name[64];
        if (child->string && strcmp(child->string, "$ref") == 0 &&
            (sscanf(child->valuestring, "#/components/%31[^/]/%63s", kind, name) != 2 ||
             !json_get(json_get(components, kind), name)))
            fail_msg("nothing is described at %s", child->valuestring);
        check_refs(child, components);
    }
}

static const struct cJSON *body_schema(const struct cJSON *root, const char *path)
{
    const struct cJSON *op = json_get(json_get(json_get(root, "paths"), path), "post");
    const struct cJSON *content = json_get(json_get(op, "requestBody"), "content");
    const struct cJSON *schema = json_get(json_get(content, "application/json"), "schema");
    assert_non_null(schema);
    return schema;
}

static enum api_access anyone(const char *method, const char *path) { return API_ACCESS_OPEN; }

static void test_description(void **state)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    fixture.api.limits.max_n = 5;
    api_openapi(&fixture.api, anyone, &out);
    struct cJSON *root = parsed(&out); /* duplicate keys would fail here */
    check_refs(root, json_get(root, "components"));
    static const struct { const char *path; enum route route; } routes[] = {
        {"/v1/completions", ROUTE_COMPLETIONS}, {"/v1/chat/completions", ROUTE_CHAT}};
    size_t n;
    const struct param *table = completion_param_table(&n);
    for (size_t k = 0; k < 2; k++) {
        const struct cJSON *schema = body_schema(root, routes[k].path);
        int expected = 0;
        for (size_t i = 0; i < n; i++) {
            if (!(table[i].routes & routes[k].route)) continue;
            expected++;
            const struct cJSON *p = json_get(json_get(schema, "properties"), table[i].name);
            assert_non_null(p);
            assert_true(cJSON_IsString(json_get(p, "description")));
        }
        assert_int_equal(cJSON_GetArraySize(json_get(schema, "properties")), expected);
        assert_true(cJSON_IsFalse(json_get(schema, "additionalProperties")));
        /* The server's own limit, not a constant. */
        assert_int_equal(
            json_get(json_get(json_get(schema, "properties"), "n"), "maximum")->valueint, 5);
    }
    body_schema(root, "/v1/tokenize");
    body_schema(root, "/v1/detokenize");
    cJSON_Delete(root);
    api_limits_init(&fixture.api.limits);
}

static int open_fixture(void **state)
{
    api_fixture_open(&fixture, true, NULL);
    return 0;
}

static int close_fixture(void **state)
{
    api_fixture_close(&fixture);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_detokenize_joins_before_it_replaces),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_description),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
