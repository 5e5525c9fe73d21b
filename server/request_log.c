/* The line that a request leaves: see request_log.h. */
#include "server/request_log.h"

#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/log.h"
#include "server/request.h"

enum { MEMBERS_LIMIT = 2000 };

static bool is_good_id(const char *id)
{
    size_t n = 0;
    for (; id[n]; n++)
        if (id[n] <= ' ' || id[n] > '~' || n == REQUEST_ID_MAX) return false;
    return n > 0;
}

void request_log_take_id(struct request *r)
{
    const char *given = MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, "X-Request-Id");
    struct http_server *s = r->server;
    uint64_t number = atomic_fetch_add_explicit(&s->n_requests, 1, memory_order_relaxed);
    if (given && is_good_id(given)) snprintf(r->id, sizeof r->id, "%s", given);
    else snprintf(r->id, sizeof r->id, "req-%08x%08llx", s->id_prefix, (unsigned long long)number);
}

const char *request_log_method(const char *method)
{
    static const char *const known[] = {"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH",
                                        "CONNECT", "TRACE"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(method, known[i]) == 0) return known[i];
    return "other";
}

static double ms(int64_t ns) { return (double)ns / 1e6; }

static void write_text(const struct request *r, int status, int64_t ns,
                       const struct completion_summary *s, struct buf *out)
{
    buf_printf(out, "%s %s %s %d %.1f ms", r->id, r->method, route_label(r->route), status, ms(ns));
    buf_printf(out, ", key %s", r->caller.name[0] ? r->caller.name : "none");
    if (!s->id[0]) return;
    buf_printf(out, ", %s: %d prompt tokens (%d cached), %d completion tokens, queued %.1f ms, ",
               s->id, s->prompt_tokens, s->cached_tokens, s->completion_tokens, ms(s->queued_ns));
    if (s->first_token_ns) buf_printf(out, "first token %.1f ms, ", ms(s->first_token_ns));
    buf_puts(out, s->finish ? s->finish : "canceled");
}

static void write_json(const struct request *r, int status, int64_t ns,
                       const struct completion_summary *s, struct buf *out)
{
    buf_puts(out, "\"message\":\"request\",\"id\":");
    json_out_text(out, r->id);
    buf_puts(out, ",\"key\":");
    json_out_text(out, r->caller.name[0] ? r->caller.name : NULL);
    buf_printf(out, ",\"method\":\"%s\",\"route\":\"%s\",\"status\":%d,\"total_ms\":%.3f",
               r->method, route_label(r->route), status, ms(ns));
    if (!s->id[0]) return;
    buf_printf(out, ",\"completion\":\"%s\",\"prompt_tokens\":%d,\"cached_tokens\":%d,"
                    "\"completion_tokens\":%d,\"queue_ms\":%.3f,\"first_token_ms\":", s->id,
               s->prompt_tokens, s->cached_tokens, s->completion_tokens, ms(s->queued_ns));
    if (s->first_token_ns) buf_printf(out, "%.3f", ms(s->first_token_ns));
    else buf_puts(out, "null");
    buf_puts(out, ",\"finish_reason\":");
    json_out_text(out, s->finish ? s->finish : "canceled");
}

void request_log_end(const struct request *r, int status, int64_t ns,
                     const struct completion_summary *s)
{
    /* Probes ask every few seconds; what they find is worth a line when it is bad. */
    bool dull = status == 200 && route_is_probe(r->route);
    enum log_level level = dull ? LOG_DEBUG : LOG_INFO;
    if (!r->server->options.log_requests || !log_is_on(level)) return;
    struct buf text, members;
    buf_init(&text, MEMBERS_LIMIT);
    buf_init(&members, MEMBERS_LIMIT);
    write_text(r, status, ns, s, &text);
    write_json(r, status, ns, s, &members);
    if (text.data && members.data) log_event(level, text.data, members.data);
    buf_free(&text);
    buf_free(&members);
}
