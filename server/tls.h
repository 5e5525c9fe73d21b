/* TLS: the certificate that libmicrohttpd shows, which can be replaced while connections live, and
 * the client's side for `gptd probe`. The one file that knows GnuTLS.
 *
 * A pair is a certificate chain and its key, both in PEM. Each handshake takes copies of the pair
 * of its moment, so a replaced one is freed at once and connections go on with what they began
 * with. */
#pragma once

#include <microhttpd.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct tls;

/* Reads both files and checks that they belong together. A key that others can read is warned of,
 * so is a certificate that has expired. The paths are borrowed. */
bool tls_open(const char *cert_file, const char *key_file, struct tls **out,
              struct error *err) MUST_CHECK;
/* Reads them again. What cannot be used leaves the old pair in place. One at a time. */
bool tls_reload(struct tls *t, struct error *err) MUST_CHECK;
void tls_close(struct tls *t); /* NULL-safe; no handshake may be under way */

/* Fills `options` for MHD_start_daemon, which also wants MHD_USE_TLS: TLS 1.2 and 1.3 only. The
 * context of the server's connections (connection_ctx) must be its `struct tls`. */
enum { N_TLS_OPTIONS = 2 };
void tls_options(struct MHD_OptionItem options[N_TLS_OPTIONS]);

/* ---- the client's side ---- */

struct tls_client;
/* A handshake on a connected socket, which stays the caller's. Nothing is verified: for asking a
 * server on this very machine how it is. */
bool tls_client_open(int fd, struct tls_client **out, struct error *err) MUST_CHECK;
ssize_t tls_client_send(struct tls_client *c, const void *bytes, size_t n); /* as send */
ssize_t tls_client_recv(struct tls_client *c, void *bytes, size_t n);       /* as recv */
void tls_client_close(struct tls_client *c); /* NULL-safe */
