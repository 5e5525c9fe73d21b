/* The engine against other implementations: on every golden model the greedy text is the same, and the
 * scores of its prompts are within rounding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/file.h"
#include "tests/model/engine_fixture.h"

static cJSON *read_golden(const char *model)
{
    char path[128];
    snprintf(path, sizeof path, "%s/golden.json", model);
    struct buf text;
    struct error err = {0};
    buf_init(&text, 1 << 20);
    if (!file_read(path, &text, &err)) fail_msg("%s", err.text);
    cJSON *json = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(json);
    buf_free(&text);
    return json;
}

static void check_prompt(struct engine *e, const cJSON *prompt)
{
    const cJSON *tokens = cJSON_GetObjectItem(prompt, "tokens");
    const cJSON *logprobs = cJSON_GetObjectItem(prompt, "logprobs");
    const cJSON *greedy = cJSON_GetObjectItem(prompt, "greedy");
    int32_t n = cJSON_GetArraySize(tokens), n_greedy = cJSON_GetArraySize(greedy);
    assert_true(n > 0 && n_greedy > 0);
    struct job j;
    job_init_plain(&j, n, n_greedy);
    for (int32_t i = 0; i < n; i++) j.prompt[i] = cJSON_GetArrayItem(tokens, i)->valueint;
    j.params.prompt_logprobs = true;
    assert_true(job_new(&j, e));
    job_submit(&j, e);
    engine_wait(e, j.request);
    for (int32_t i = 1; i < n; i++) {
        double want = cJSON_GetArrayItem(logprobs, i)->valuedouble;
        assert_true(fabs((double)j.request->prompt_scores[i].logprob - want) < 1e-4);
    }
    assert_int_equal(atomic_load(&j.request->choices[0].n_tokens), n_greedy);
    for (int32_t i = 0; i < n_greedy; i++)
        assert_int_equal(j.request->choices[0].tokens[i].id,
                         cJSON_GetArrayItem(greedy, i)->valueint);
    job_free(&j);
}

static void check_model(const char *model)
{
    cJSON *golden = read_golden(model);
    struct engine_options o = fixture_options();
    o.max_batch_tokens = 20;
    struct engine_fixture f;
    fixture_open(&f, model, &o);
    const cJSON *prompts = cJSON_GetObjectItem(golden, "prompts"), *prompt;
    assert_true(cJSON_GetArraySize(prompts) > 0);
    cJSON_ArrayForEach(prompt, prompts) check_prompt(f.engine, prompt);
    fixture_assert_clean(&f);
    fixture_close(&f);
    cJSON_Delete(golden);
}

static void test_golden_models(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2",         "gpt2_untied", "llama", "llama3",
                                        "llama_linear", "mistral",     "qwen2", "qwen3"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char model[64];
        snprintf(model, sizeof model, "tests/golden/%s", names[i]);
        print_message("%s\n", model);
        check_model(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden_models)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
