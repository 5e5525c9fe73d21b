/* The open connections of a server, each with the time that it is given for what it does now.
 *
 *   opened ──▶ HEADERS ──▶ BODY ──▶ WORKING ──▶ READING ──┐
 *                 ▲                  (no limit)           │ the reply is out
 *                 └───────────────────────────────────────┘
 *
 * One thread looks at all of them a few times a second and shuts down the sockets of those whose
 * time is over; libmicrohttpd then takes the usual way of a client that left. Its own timeout
 * (0.9.75) is between two bytes: who sends, or reads, a byte now and then never meets it.
 *
 * When more are open than there may be, the one that has waited longest for a request is shut down:
 * idle connections keep nobody out.
 *
 * A connection is of the thread that libmicrohttpd serves it on; every function may be called for
 * different connections at once. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct connection_times {
    int64_t idle_s;   /* between requests; see connection_expect_headers */
    int64_t header_s; /* for all headers of a request */
    int64_t body_s;   /* for a body, plus a second for each CONNECTION_MIN_RATE bytes of it */
    int64_t send_s;   /* for the client to take what was sent, plus the same */
};
enum { CONNECTION_MIN_RATE = 8192 }; /* bytes a second */

struct connections;
struct connection;

/* `ctx` is what connection_ctx gives. More than `max` open ones are too many. */
bool connections_start(const struct connection_times *times, int64_t max, void *ctx,
                       struct connections **out, struct error *err) MUST_CHECK;
void connections_stop(struct connections *all); /* NULL-safe; all must be closed */
/* Are there too many, without those that are being shut down? */
bool connections_are_too_many(struct connections *all);

/* MHD_OPTION_NOTIFY_CONNECTION with `struct connections *` as its context: opens and closes. */
void connection_notify(void *cls, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode what);
/* NULL when there was no memory for it; all of the following accept that. */
struct connection *connection_of(struct MHD_Connection *mhd);
void *connection_ctx(const struct connection *c);

/* The next request's headers may come; all of them within idle_s + header_s. */
void connection_expect_headers(struct connection *c);
/* The request line is here: the rest within header_s. */
void connection_expect_rest(struct connection *c);
/* `n_received` bytes of the body are here; its time begins with 0. */
void connection_expect_body(struct connection *c, uint64_t n_received);
/* The server works, the client need do nothing. */
void connection_work(struct connection *c);
/* `n` bytes are on their way, and are to be read. */
void connection_expect_reading(struct connection *c, uint64_t n);
/* Ends it now. */
void connection_shut(struct connection *c);
