/* What one key may ask for: requests and tokens a minute, and requests at once. The rates are token
 * buckets on the monotonic clock: a bucket holds a minute's worth, is full at first, and refills
 * steadily, so that a quiet minute is a burst's credit and nothing more is ever saved up.
 *
 *     key_limits_begin      a request's headers are in: it counts
 *     key_limits_charge     a completion is about to be submitted: prompt + max_tokens
 *     key_limits_refund     it has ended: what it did not use
 *     key_limits_end        the request's last byte is out
 *
 * Any thread. Counted references: the key's owner has one, so has each request under way; a key
 * that is taken out of its file takes its numbers along once its last request has ended. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct limits_options { /* 0: no limit */
    int64_t requests_per_minute, tokens_per_minute, concurrent;
};
bool limits_any(const struct limits_options *o);

struct key_limits;

/* NULL: no memory. */
struct key_limits *key_limits_new(const struct limits_options *o, int64_t now_ns);
struct key_limits *key_limits_ref(struct key_limits *l); /* NULL-safe; returns l */
void key_limits_unref(struct key_limits *l);             /* NULL-safe */

enum limits_verdict { LIMITS_OK, LIMITS_REQUESTS, LIMITS_TOKENS, LIMITS_CONCURRENT };

/* One request more, unless there are too many now or this minute: ERR_BUSY then, with
 * retry_after_s. Nothing counts that was refused. */
enum limits_verdict key_limits_begin(struct key_limits *l, int64_t now_ns, struct error *err);
void key_limits_end(struct key_limits *l);

/* Takes tokens from the minute's. ERR_NO_FIT when a whole minute has fewer, else ERR_BUSY with
 * retry_after_s. */
enum limits_verdict key_limits_charge(struct key_limits *l, int64_t tokens, int64_t now_ns,
                                      struct error *err);
void key_limits_refund(struct key_limits *l, int64_t tokens, int64_t now_ns);

/* OpenAI's headers x-ratelimit-{limit,remaining,reset}-{requests,tokens} of the limits there are,
 * as they are now. reset: how long until all is remaining again. */
void key_limits_add_headers(struct key_limits *l, int64_t now_ns, struct MHD_Response *response);
/* "120ms", "1.5s", "1m0s": how those headers tell a time. */
void limits_format_duration(int64_t ns, char *out, size_t size);
