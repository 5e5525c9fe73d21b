/* libFuzzer: the first byte picks a route, the rest is its body. What is accepted must keep the
 * promises that the rest of the API relies on. */
#include <string.h>

#include "api/request.h"
#include "api/tokenize.h"
#include "base/utf8.h"

static void check_text(const char *text, size_t n)
{
    ASSERT(strlen(text) == n);
    ASSERT(utf8_valid(text, n, NULL));
}

static void check_ids(const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) ASSERT(ids[i] >= 0);
}

static void check_completion(const struct api_limits *l, const struct completion_params *p,
                             enum completion_kind kind)
{
    struct error err;
    ASSERT(p->n >= 1 && p->n <= p->best_of && p->best_of <= l->max_n);
    ASSERT(p->max_tokens >= (p->echo ? -1 : 1) || p->max_tokens == -1);
    ASSERT(p->logprobs >= -1 && p->logprobs <= SAMPLE_MAX_TOP);
    ASSERT(p->stops.n >= 0 && p->stops.n <= STOP_MAX);
    for (int32_t i = 0; i < p->stops.n; i++) {
        ASSERT(p->stops.at[i].n >= 1 && p->stops.at[i].n <= STOP_MAX_BYTES);
        check_text(p->stops.at[i].bytes, p->stops.at[i].n);
    }
    /* The sampler takes whatever passed the tables. */
    ASSERT(sample_params_check(&p->sampling, (int64_t)INT32_MAX + 1, &err));
    ASSERT(p->n_prompts >= 1 && p->n_prompts <= l->max_prompts);
    if (kind == COMPLETION_CHAT) {
        ASSERT(p->n_messages >= 1);
        for (size_t i = 0; i < p->n_messages; i++) {
            ASSERT(p->messages[i].role);
            check_text(p->messages[i].content, p->messages[i].n_content);
        }
        return;
    }
    for (int32_t i = 0; i < p->n_prompts; i++) {
        if (p->prompts[i].text) check_text(p->prompts[i].text, p->prompts[i].n_text);
        else check_ids(p->prompts[i].ids, p->prompts[i].n_ids);
    }
}

static void fuzz_completion(const struct api_limits *l, enum completion_kind kind,
                            const char *body, size_t n, struct arena *arena)
{
    struct completion_params p;
    struct error err = {0};
    if (completion_parse(l, kind, body, n, arena, &p, &err)) check_completion(l, &p, kind);
    else ASSERT(err.code != ERR_NONE && err.code != ERR_MEMORY && err.text[0]);
}

static void fuzz_tokenize(const struct api_limits *l, enum route route, const char *body, size_t n,
                          struct arena *arena)
{
    struct tokenize_params p;
    struct error err = {0};
    if (!tokenize_parse(l, route, body, n, arena, &p, &err)) {
        ASSERT(err.code != ERR_NONE && err.code != ERR_MEMORY && err.text[0]);
        return;
    }
    if (route == ROUTE_TOKENIZE) check_text(p.prompt, p.n_prompt);
    else check_ids(p.tokens, p.n_tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    struct api_limits l;
    struct arena arena;
    const char *body = (const char *)data + 1;
    size_t n = size - 1;
    api_limits_init(&l);
    arena_init(&arena, completion_parse_arena(n));
    switch (data[0] % 4) {
    case 0: fuzz_completion(&l, COMPLETION_TEXT, body, n, &arena); break;
    case 1: fuzz_completion(&l, COMPLETION_CHAT, body, n, &arena); break;
    case 2: fuzz_tokenize(&l, ROUTE_TOKENIZE, body, n, &arena); break;
    case 3: fuzz_tokenize(&l, ROUTE_DETOKENIZE, body, n, &arena); break;
    }
    arena_free(&arena);
    return 0;
}
