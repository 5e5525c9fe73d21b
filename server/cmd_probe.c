/* `gptd probe`: is a server well? For containers without curl. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "server/command.h"
#include "server/listen.h"
#include "server/tls.h"

enum { REPLY_MAX = 4096, REQUEST_MAX = 1024 };

struct probe_options { const char *url; int64_t timeout_s; };

/* "http://HOST:PORT/PATH", "https://..." or "unix:PATH", taken apart. */
struct target {
    bool tls;
    char host[256], port[8], path[256];
    const char *socket; /* a Unix socket's path instead of host and port; NULL: none */
};

static bool bad_url(const char *url, struct error *err)
{
    return error_set(err, ERR_INVALID, "url", "--url %.200s: must be http://HOST:PORT/PATH, "
                     "https://HOST:PORT/PATH or unix:PATH", url);
}

static bool parse_url(const char *url, struct target *t, struct error *err)
{
    *t = (struct target){.socket = listen_unix_path(url), .host = "localhost", .path = "/health"};
    if (t->socket) return true;
    t->tls = strncmp(url, "https://", 8) == 0;
    if (!t->tls && strncmp(url, "http://", 7) != 0) return bad_url(url, err);
    const char *at = url + (t->tls ? 8 : 7);
    bool v6 = *at == '[';
    size_t n = strcspn(at + v6, v6 ? "]" : ":/");
    if (n == 0 || n >= sizeof t->host || (v6 && at[1 + n] != ']')) return bad_url(url, err);
    memcpy(t->host, at + v6, n);
    t->host[n] = 0;
    at += n + 2 * (size_t)v6;
    snprintf(t->port, sizeof t->port, "%s", t->tls ? "443" : "80");
    if (*at == ':') {
        n = strcspn(++at, "/");
        if (n == 0 || n >= sizeof t->port || strspn(at, "0123456789") < n) return bad_url(url, err);
        memcpy(t->port, at, n);
        t->port[n] = 0;
        at += n;
    }
    if (*at && *at != '/') return bad_url(url, err);
    if (strpbrk(at, " \r\n") || strlen(at) >= sizeof t->path) return bad_url(url, err);
    if (at[0] && at[1]) strcpy(t->path, at); /* a server's own URL means /health */
    return true;
}

static int dial_unix(const struct target *t, const struct timeval *patience)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(t->socket) >= sizeof to.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(to.sun_path, t->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, patience, sizeof *patience);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, sizeof *patience);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) return fd;
    close(fd);
    return -1;
}

static int dial_address(const struct target *t, const struct timeval *patience)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int fd = -1;
    if (getaddrinfo(t->host, t->port, &hints, &found) != 0) {
        errno = EADDRNOTAVAIL;
        return -1;
    }
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) continue;
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, patience, sizeof *patience);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, patience, sizeof *patience);
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
        close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    return fd;
}

/* Sends the request and reads the beginning of the reply. */
static bool converse(int fd, struct tls_client *tls, const char *request, char reply[REPLY_MAX])
{
    size_t n = strlen(request), got = 0;
    ssize_t m = tls ? tls_client_send(tls, request, n) : send(fd, request, n, MSG_NOSIGNAL);
    if (m != (ssize_t)n) return false;
    while (got < REPLY_MAX - 1) {
        m = tls ? tls_client_recv(tls, reply + got, REPLY_MAX - 1 - got)
                : recv(fd, reply + got, REPLY_MAX - 1 - got, 0);
        if (m <= 0) break;
        got += (size_t)m;
    }
    reply[got] = 0;
    return got > 0;
}

static bool ask(const struct target *t, int fd, char reply[REPLY_MAX], struct error *err)
{
    char request[REQUEST_MAX];
    struct tls_client *tls = NULL;
    bool v6 = strchr(t->host, ':') != NULL;
    if (t->tls && !tls_client_open(fd, &tls, err)) return false;
    snprintf(request, sizeof request,
             "GET %s HTTP/1.1\r\nHost: %s%s%s\r\nConnection: close\r\n\r\n", t->path,
             v6 ? "[" : "", t->host, v6 ? "]" : "");
    bool ok = converse(fd, tls, request, reply);
    tls_client_close(tls);
    return ok || error_set(err, ERR_TIMEOUT, NULL, "no answer in time");
}

static bool probe(const struct probe_options *o, struct error *err)
{
    struct target t;
    char reply[REPLY_MAX];
    struct timeval patience = {.tv_sec = o->timeout_s};
    int status;
    if (!parse_url(o->url, &t, err)) return false;
    if (t.tls && !listen_is_local(t.host))
        return error_set(err, ERR_INVALID, "url", "--url %.200s: certificates are not verified, so "
                         "only this machine is asked over https", o->url);
    int fd = t.socket ? dial_unix(&t, &patience) : dial_address(&t, &patience);
    if (fd < 0) return error_errno(err, "cannot connect to %.200s", o->url);
    bool ok = ask(&t, fd, reply, err);
    close(fd);
    if (!ok) return false;
    if (sscanf(reply, "HTTP/1.%*1[01] %d", &status) != 1)
        return error_set(err, ERR_FORMAT, NULL, "%.200s: the answer is not HTTP", o->url);
    const char *body = strstr(reply, "\r\n\r\n");
    if (status == 200) return true;
    return error_set(err, ERR_UNAVAILABLE, NULL, "%.200s: status %d: %.200s", o->url, status,
                     body ? body + 4 : "");
}

int cmd_probe(int argc, char **argv)
{
    struct probe_options o = {.url = "http://127.0.0.1:8080/health", .timeout_s = 5};
    const struct option table[] = {
        {"url", OPTION_STRING, &o.url, 0, 0, "URL",
         "http:// or, on this machine, https://HOST:PORT/PATH, or unix:PATH; /health without a "
         "path."},
        {"timeout", OPTION_INT, &o.timeout_s, 1, 3600, "SECONDS", "For each step."},
    };
    enum { N = sizeof table / sizeof *table };
    const char *url;
    int n_urls;
    bool help;
    struct error err;
    if (!options_parse(table, N, argc, argv, 2, &url, 1, &n_urls, &help, &err))
        return command_usage("probe", &err);
    if (help) {
        options_print_help(stdout, "gptd probe [URL] [OPTIONS]",
                           "Asks a server how it is. Exit code 0: well (status 200); 1: not.",
                           table, N);
        return EXIT_DONE;
    }
    if (n_urls == 1) o.url = url;
    if (probe(&o, &err)) return EXIT_DONE;
    return strcmp(err.param, "url") == 0 ? command_usage("probe", &err)
                                         : command_fail("probe", &err);
}
