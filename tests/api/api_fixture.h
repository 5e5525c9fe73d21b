/* The API on a golden model, for tests: a small random model with a tokenizer whose tokens are
 * single letters, parts of UTF-8 characters and special tokens, so that replies are full of broken
 * and joined characters. */
#pragma once

#include <cjson/cJSON.h>

#include "api/api.h"
#include "api/chat.h"
#include "api/completion.h"
#include "tests/model/engine_fixture.h"

/* Ids of the fixture's tokenizer. Token 0 is " ", 1 is "!", ... 94 is "~", 95 is "\n". */
enum { TOKEN_EOS = 147, TOKEN_IM_START = 148, TOKEN_IM_END = 149, FIXTURE_VOCAB = 150,
       FIXTURE_CONTEXT = 96 };

struct api_fixture {
    struct engine_fixture engine;
    struct chat_template chat;
    struct api_context api;
    /* notify's side: completions under way, one at a time. */
    pthread_mutex_t lock;
    pthread_cond_t news;
    int64_t n_news;
};

/* Fails the test when anything goes wrong. jinja: the chat template, or NULL. */
void api_fixture_open(struct api_fixture *f, bool with_tokenizer, const char *jinja);
void api_fixture_close(struct api_fixture *f);
void api_fixture_notify(void *ctx); /* ctx: the fixture */

/* A byte-level tokenizer with one token for each printable ASCII byte, newline and a few others,
 * and these special tokens (a NULL-terminated list), of which the first goes before a text (BOS).
 * For chat templates. */
struct tokenizer *tokenizer_with_specials(const char *const *specials);

/* Reads a completion to its end: all its bytes (JSON, or events), to be freed; NULL when it failed.
 */
char *api_read_all(struct api_fixture *f, struct completion *c, struct error *err);
/* The whole reply of a body that must succeed; cJSON_Delete it. */
struct cJSON *api_complete(struct api_fixture *f, enum completion_kind kind, const char *body);
/* The events of a stream as an array; the last must be [DONE], which is left out. */
struct cJSON *api_stream(struct api_fixture *f, enum completion_kind kind, const char *body);
/* A body that must be refused when it is opened. */
struct error api_refused(struct api_fixture *f, enum completion_kind kind, const char *body);
