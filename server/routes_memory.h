/* GET /v1/memory and GET /metrics: gathers what the process, the engines and the jobs say. And POST
 * /v1/memory/plan: what something else would take. */
#pragma once

#include "server/memory_history.h"
#include "server/request.h"

bool get_memory(struct request *r, struct buf *out, struct error *err);
bool post_memory_plan(struct request *r, struct buf *out, struct error *err);
bool get_metrics(struct request *r, struct buf *out, struct error *err);
/* memory_sample_fn; ctx: the http_server. */
void sample_memory(void *ctx, struct api_memory_sample *out);
