/* Where a server listens: an address with a port, or a Unix socket ("unix:PATH"), and what is
 * called local: what only this machine can reach. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include "base/error.h"

struct listener {
    int fd;   /* -1: closed */
    int port; /* 0: a Unix socket */
    char path[sizeof((struct sockaddr_un *)0)->sun_path]; /* of a Unix socket; else "" */
};

/* Can only this machine reach it? True of loopback addresses, "localhost" and unix:PATH. */
bool listen_is_local(const char *host);
/* The path of unix:PATH; NULL for any other host. */
const char *listen_unix_path(const char *host);
/* "SCHEME://HOST:PORT", or "unix:PATH". */
void listen_url(const char *host, int port, const char *scheme, char *out, size_t size);

/* Listens; port 0 is any free one. A Unix socket gets mode 0660; a socket that nobody listens on
 * any more is replaced, any other file is not. */
bool listener_open(const char *host, int64_t port, struct listener *out,
                   struct error *err) MUST_CHECK;
/* A Unix socket's file goes with it. Nothing happens to a closed one. */
void listener_close(struct listener *l);
