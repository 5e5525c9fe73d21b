/* What the bodies of /v1/completions and /v1/chat/completions mean: parsed and checked as far as
 * that is possible without a model. Everything in the result lives in the caller's arena. */
#pragma once

#include "api/api.h"
#include "api/chat.h"
#include "api/completion.h"
#include "api/params.h"
#include "base/arena.h"

/* One prompt: text, or token ids when `text` is NULL. */
struct prompt_input {
    const char *text;
    size_t n_text;
    const int32_t *ids; /* >= 0; the vocabulary is not known here */
    size_t n_ids;
};

struct completion_params {
    const char *model; /* NULL: not given */
    const char *user;  /* accepted, and without meaning here as at OpenAI */
    struct prompt_input *prompts; /* COMPLETION_TEXT */
    int32_t n_prompts;            /* 1 for chat */
    struct chat_message *messages; /* COMPLETION_CHAT */
    size_t n_messages;
    int32_t max_tokens; /* -1: not given */
    int32_t n, best_of; /* 1 <= n <= best_of */
    int32_t logprobs;   /* alternatives per token to report; -1: no log-probabilities */
    bool echo, stream, include_usage, ignore_eos;
    bool has_seed; /* else each prompt draws its own */
    struct sample_params sampling;
    struct stop_list stops;
    /* As given, before they are merged into the fields above. */
    int32_t max_completion_tokens, top_logprobs; /* -1: not given */
    bool chat_logprobs;
};

/* Bytes that the arena of a body of n bytes may need. */
size_t completion_parse_arena(size_t n);
bool completion_parse(const struct api_limits *l, enum completion_kind kind, const char *body,
                      size_t n, struct arena *arena, struct completion_params *out,
                      struct error *err) MUST_CHECK;

/* The rows behind it, for /openapi.json. */
const struct param *completion_param_table(size_t *n);
