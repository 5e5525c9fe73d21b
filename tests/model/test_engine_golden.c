/* The engine against other implementations: on every golden model the greedy text is the same, and
 * the scores of its prompts are within rounding. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "tests/model/golden.h"

static void check_prompt(struct engine *e, const cJSON *prompt)
{
    const cJSON *logprobs = cJSON_GetObjectItem(prompt, "logprobs");
    const cJSON *greedy = cJSON_GetObjectItem(prompt, "greedy");
    struct job j;
    int32_t n_greedy = golden_run(&j, e, prompt, INT32_MAX);
    for (int32_t i = 1; i < cJSON_GetArraySize(logprobs); i++) {
        double want = cJSON_GetArrayItem(logprobs, i)->valuedouble;
        assert_true(fabs((double)j.request->prompt_scores[i].logprob - want) < 1e-4);
    }
    for (int32_t i = 0; i < n_greedy; i++)
        assert_int_equal(j.request->choices[0].tokens[i].id, golden_int(greedy, i));
    job_free(&j);
}

static void check_model(const char *model)
{
    cJSON *golden = golden_read(model);
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
