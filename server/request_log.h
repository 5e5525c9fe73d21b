/* A request's id, and its line in the log: who asked for what, what was answered, how many tokens,
 * how long each part took. Never a prompt, an output or a key. */
#pragma once

#include <stdint.h>

#include "api/completion.h"

struct request;

enum { REQUEST_ID_MAX = 128 };

/* The client's X-Request-Id where it is 1 to 128 printable characters without a space; else one of
 * our own. */
void request_log_take_id(struct request *r);
/* What the log calls a method: itself, or "other" for one that no server knows. */
const char *request_log_method(const char *method);
/* At its end. `status` is what was answered, or METRICS_CLIENT_GONE. */
void request_log_end(const struct request *r, int status, int64_t ns,
                     const struct completion_summary *s);
