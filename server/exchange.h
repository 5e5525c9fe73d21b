/* One completion request on its connection: from the complete body to the last byte of the reply.
 * It ties together three parties that never wait for each other: the engine, which says that there
 * is news; libmicrohttpd, whose thread writes the reply; and the client, who may leave. The stream
 * of a job's events is written in the same way: there the job's supervisor says that there is
 * news.
 *
 *                       nothing new: suspend
 *                  ┌─────────────────────────────┐
 *   exchange_open  │                             ▼
 *  ───────────▶ WRITING ◀──────────────────── WAITING        (connection suspended)
 *                  │      news, probe, gone:     │
 *                  │      resume                 │
 *                  ▼ ended, gone, failed         │
 *  exchange_close: CLOSED ──▶ reaper: waits for the engine, counts, frees
 *
 * Who may touch it: the connection's MHD thread everything; who brings news and the watcher only
 * what `mutex` guards. Suspending happens under that mutex, so no resume is lost; nothing
 * resumes once it is closed. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/completion.h"
#include "server/job_feed.h"
#include "server/limits.h"
#include "server/metrics.h"

struct exchanges; /* all of a server's, with their watcher and reaper */
struct exchange;

/* keep_alive_s: streams of events, quiet by nature, get a comment that often. */
bool exchanges_start(const struct api_context *api, struct metrics *metrics, int64_t keep_alive_s,
                     struct exchanges **out, struct error *err) MUST_CHECK;
/* Those that are open or being reaped. */
int32_t exchanges_count(struct exchanges *all);
/* Ends the streams of events, those to come too: jobs may go on for days, completions do not. */
void exchanges_drain(struct exchanges *all);
/* Cancels all: their replies end, soon, as canceled ones do. */
void exchanges_cancel(struct exchanges *all);
/* Ends all replies where they are; no connection stays suspended, none will be again. */
void exchanges_cut(struct exchanges *all);
/* Waits for the reaper; every exchange must be closed. NULL-safe. */
void exchanges_stop(struct exchanges *all);

/* Whom an exchange is for. */
struct exchange_caller {
    uint64_t cache_salt;
    struct key_limits *limits; /* tokens are charged here, of a reference of its own; or NULL */
};

/* Parses and submits. On failure *err says what to answer. The body may be freed after. begin_ns:
 * when the request began to arrive. */
bool exchange_open(struct exchanges *all, enum completion_kind kind, const char *body, size_t n,
                   const struct exchange_caller *caller, struct MHD_Connection *connection,
                   int64_t begin_ns, struct exchange **out, struct error *err) MUST_CHECK;

/* The same for a job's events, which are there already. Takes `feed`, on failure too. */
bool exchange_follow(struct exchanges *all, struct job_feed *feed,
                     struct MHD_Connection *connection, int64_t begin_ns, struct exchange **out,
                     struct error *err) MUST_CHECK;

enum exchange_step {
    EXCHANGE_WAIT,    /* not yet: the handler will be called again */
    EXCHANGE_RESPOND, /* *response is to be queued with status 200 */
    EXCHANGE_FAILED,  /* *err is the answer */
    EXCHANGE_GONE,    /* no one to answer: close the connection */
};
/* What the handler does next, after opening and after every resume. */
enum exchange_step exchange_next(struct exchange *e, struct MHD_Response **response,
                                 struct error *err);

/* Of the reply that exchange_next made: its length, or 0 for one that comes in pieces. */
uint64_t exchange_reply_bytes(const struct exchange *e);

/* From NOTIFY_COMPLETED only. `delivered`: the client got everything. `summary` gets what is known
 * by then, for the log. Never waits for the engine. */
void exchange_close(struct exchange *e, bool delivered, struct completion_summary *summary);
