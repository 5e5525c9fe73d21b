/* How much a device can serve within a budget: the longest context, the most sequences at once,
 * the most rows of a step. Each is found by planning (engine_plan), and is the largest for which
 * the plan fits: bytes grow with all three. Nothing is allocated on the device, which need not
 * be there. */
#pragma once

#include "model/engine.h"

struct serve_limits {
    int64_t max_context;      /* of one sequence alone; 0: not even one token fits */
    int32_t max_seqs;         /* of `context` tokens each, all full at once; 0: not one */
    int32_t max_batch_tokens; /* rows of one step beside one full sequence; 0: not one */
    int64_t context;          /* what max_seqs and max_batch_tokens are counted with: that of the
                                 options, or the longest that fits where it is less */
};

/* Asks for exactly the pages of max_seqs full sequences: no other pool is meant. The budget is
 * the caller's to compare. Errors as engine_plan's. */
bool serve_plan_full(const struct gpt_config *c, const struct engine_options *o,
                     const struct device *d, plan_listener see, void *ctx, struct engine_need *out,
                     struct error *err) MUST_CHECK;

/* What the budget (0: none, the limits are the engine's own) allows beside what `o` says.
 * ERR_INVALID for options that no engine takes. */
bool serve_search(const struct gpt_config *c, const struct engine_options *o,
                  const struct device *d, int64_t budget, struct serve_limits *out,
                  struct error *err) MUST_CHECK;
