/* The bodies of /v1/tokenize and /v1/detokenize, parsed without a model. */
#pragma once

#include "api/params.h"

struct tokenize_params {
    const char *model;   /* NULL: not given */
    const char *prompt;  /* tokenize */
    size_t n_prompt;
    const int32_t *tokens; /* detokenize; >= 0 */
    size_t n_tokens;
};

/* route is ROUTE_TOKENIZE or ROUTE_DETOKENIZE. An arena of completion_parse_arena(n) bytes is
 * enough. */
bool tokenize_parse(const struct api_limits *l, enum route route, const char *body, size_t n,
                    struct arena *arena, struct tokenize_params *out, struct error *err) MUST_CHECK;
const struct param *tokenize_param_table(size_t *n);
