/* A plan for people: what `gptd plan` prints without --json. Everything is appended to a buffer. */
#pragma once

#include "api/plan_request.h"
#include "base/buf.h"

/* Components side by side, what they rest on, whether they fit, and what else would. cards:
 * [n_gpus], or NULL. */
void plan_report(const struct plan_case *c, const struct fit_answer *a,
                 const struct fit_card *cards, struct buf *out);
/* Every piece of both plans, with those that share bytes marked. */
bool plan_report_pieces(const struct plan_case *c, const struct fit_answer *a, struct buf *out,
                        struct error *err) MUST_CHECK;
/* The search's own list: the plans that fit by time, then those that nearly do. */
bool plan_report_choices(const struct plan_case *c, struct buf *out, struct error *err) MUST_CHECK;
/* One sentence on what is missing: for stderr. */
void plan_report_shortfall(const struct plan_case *c, const struct fit_answer *a, struct buf *out);
