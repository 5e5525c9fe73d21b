/* POST /v1/memory/plan: what a model would take, without loading it; and the one JSON object
 * that it and `gptd plan --json` answer with. */
#pragma once

#include "api/api.h"
#include "api/plan_request.h"

struct param;

/* The object. cards: NULL, or [n_gpus] (fit_cards). */
void memory_plan_render(const struct plan_case *c, const struct fit_answer *a,
                        const struct fit_card *cards, struct buf *out);

/* The body. `configs_dir`: where presets are. "model" is configs/NAME or the id of a model that
 * is served. */
bool api_memory_plan(const struct api_context *c, const struct plan_devices *devices,
                     const char *configs_dir, const char *body, size_t n, struct buf *out,
                     struct error *err) MUST_CHECK;
const struct param *memory_plan_param_table(size_t *n);
