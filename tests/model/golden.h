/* What another implementation made of a model (tests/golden/README.md): prompts, the
 * log-probabilities of their tokens, and how it goes on. */
#pragma once

#include <cjson/cJSON.h>

#include "tests/model/engine_fixture.h"

/* DIR/golden.json; fails the test without. The caller deletes it. */
cJSON *golden_read(const char *model_dir);
/* Item i of an array of whole numbers. */
int32_t golden_int(const cJSON *array, int32_t i);
/* One of its "prompts", scored and continued greedily by at most max_greedy tokens: as
 * many as it has been when that is less. The job is done; the caller frees it. Returns
 * how many tokens there are to compare. */
int32_t golden_run(struct job *j, struct engine *e, const cJSON *prompt, int32_t max_greedy);
