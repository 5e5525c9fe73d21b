/* Who may come in, by a request's headers alone: the Host and Origin that a browser must not have
 * been tricked into, the key, what the route's row in the table demands of it, the key's limits;
 * and CORS for the origins that were named. Fills the request's `caller`. See request.h. */
#pragma once

#include <microhttpd.h>

#include "server/http.h"

struct request;

/* May the request go on? On failure *status and *err are the answer. `path` need not exist: what is
 * not in the table is no less closed. r->route has been found. */
bool guard_admit(struct request *r, const char *method, int *status, struct error *err) MUST_CHECK;
/* Is it a browser that asks beforehand whether a page of an origin that was named may send a
 * request? Such a question carries no key. */
bool guard_is_preflight(const struct request *r, const char *method);
/* What every reply says: rate limits, CORS, the answer to a preflight, why a key is wanted. */
void guard_add_headers(struct request *r, int status, struct MHD_Response *response);
/* The request has ended. */
void guard_end(struct request *r);

/* "127.0.0.1", "localhost:8080", "[::1]:8080" or a name in `allowed`, in any case: what a browser
 * may call a server on loopback. A name that someone else's DNS points here is none of these. */
bool guard_host_is_local(const char *host, const struct option_list *allowed);
/* Is it "*", or as browsers write an origin: "https://example.org:8443"? */
bool guard_is_origin(const char *s);
/* Is the Origin that a browser sent the very place that `host` names? */
bool guard_origin_is_host(const char *origin, const char *host);
