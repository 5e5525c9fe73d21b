/* See golden.h. */
#include "tests/model/golden.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/file.h"

cJSON *golden_read(const char *model_dir)
{
    char path[192];
    struct buf text;
    struct error err;
    snprintf(path, sizeof path, "%s/golden.json", model_dir);
    buf_init(&text, 1 << 24);
    if (!file_read(path, &text, &err)) fail_msg("%s", err.text);
    cJSON *json = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(json);
    buf_free(&text);
    return json;
}

int32_t golden_int(const cJSON *array, int32_t i) { return cJSON_GetArrayItem(array, i)->valueint; }

int32_t golden_run(struct job *j, struct engine *e, const cJSON *prompt, int32_t max_greedy)
{
    const cJSON *tokens = cJSON_GetObjectItem(prompt, "tokens");
    int32_t n = cJSON_GetArraySize(tokens);
    int32_t n_greedy = cJSON_GetArraySize(cJSON_GetObjectItem(prompt, "greedy"));
    n_greedy = (int32_t)min_i64(n_greedy, max_greedy);
    assert_true(n > 0 && n_greedy > 0);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(prompt, "logprobs")), n);
    job_init_plain(j, n, n_greedy);
    for (int32_t i = 0; i < n; i++) j->prompt[i] = golden_int(tokens, i);
    j->params.prompt_logprobs = true;
    assert_true(job_new(j, e));
    job_submit(j, e);
    engine_wait(e, j->request);
    assert_int_equal(atomic_load(&j->request->choices[0].n_tokens), n_greedy);
    return n_greedy;
}
