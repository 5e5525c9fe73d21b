/* What a request's headers must be, beyond what libmicrohttpd asks of them (0.9.75 is lenient):
 * where its body ends has one reading, whatever stands in front of this server. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>

#include "base/error.h"

enum { MAX_HEADERS = 100, MAX_ARGUMENTS = 64 };

/* False with the status to answer (400, 417, 431) and the reason. After a 400 nobody knows where
 * the next request begins. */
bool headers_are_plain(struct MHD_Connection *connection, const char *version, int *status,
                       struct error *err) MUST_CHECK;

/* Of a request line, before anything is decoded: false when it has over MAX_ARGUMENTS. */
bool uri_is_plain(const char *uri) MUST_CHECK;
