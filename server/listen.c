/* Listening sockets: see listen.h. */
#include "server/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BACKLOG = 1024, SOCKET_MODE = 0660 };

const char *listen_unix_path(const char *host)
{
    return strncmp(host, "unix:", 5) == 0 ? host + 5 : NULL;
}

bool listen_is_local(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (listen_unix_path(host) || strcmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

void listen_url(const char *host, int port, const char *scheme, char *out, size_t size)
{
    bool v6 = strchr(host, ':') != NULL;
    if (listen_unix_path(host)) snprintf(out, size, "%s", host);
    else snprintf(out, size, "%s://%s%s%s:%d", scheme, v6 ? "[" : "", host, v6 ? "]" : "", port);
}

/* ---- Unix sockets ---- */

/* A socket's file that nobody listens on stands in the way; a live server's does, too, and
 * stays. */
static bool remove_stale(const struct sockaddr_un *address, struct error *err)
{
    struct stat st;
    if (lstat(address->sun_path, &st) != 0) return true;
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, ERR_INVALID, "host", "--host unix:%s: a file by that name is there, "
                         "which is no socket; remove it, or name another", address->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return error_errno(err, "cannot make a Unix socket");
    bool refused = connect(fd, (const struct sockaddr *)address, sizeof *address) != 0
                   && errno == ECONNREFUSED;
    close(fd);
    if (!refused)
        return error_set(err, ERR_BUSY, "host", "--host unix:%s: in use by another process",
                         address->sun_path);
    return unlink(address->sun_path) == 0 || errno == ENOENT
           || error_errno(err, "cannot remove the stale socket %s", address->sun_path);
}

static bool open_unix(const char *path, struct listener *l, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof address.sun_path)
        return error_set(err, ERR_INVALID, "host", "--host unix:PATH: a socket's path has 1 to %zu "
                         "bytes", sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, n + 1);
    if (!remove_stale(&address, err)) return false;
    l->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0) return error_errno(err, "cannot make a Unix socket");
    /* The mode is right from the file's first moment on: nobody connects before chmod. */
    bool bound = fchmod(l->fd, SOCKET_MODE) == 0
                 && bind(l->fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (bound) memcpy(l->path, path, n + 1);
    if (bound && chmod(path, SOCKET_MODE) == 0 && listen(l->fd, BACKLOG) == 0) return true;
    error_errno(err, "cannot listen on the Unix socket %s", path);
    listener_close(l);
    return false;
}

/* ---- addresses ---- */

static bool open_address(const char *host, int64_t port, struct listener *l, struct error *err)
{
    char service[16];
    snprintf(service, sizeof service, "%lld", (long long)port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int failed = getaddrinfo(host, service, &hints, &found);
    if (failed)
        return error_set(err, ERR_INVALID, "host", "--host %s: %s", host, gai_strerror(failed));
    int on = 1;
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    l->fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool ok = l->fd >= 0 && setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0
              && bind(l->fd, found->ai_addr, found->ai_addrlen) == 0 && listen(l->fd, BACKLOG) == 0
              && getsockname(l->fd, (struct sockaddr *)&address, &size) == 0;
    if (!ok) error_errno(err, "cannot listen on %s port %lld", host, (long long)port);
    freeaddrinfo(found);
    if (!ok) {
        listener_close(l);
        return false;
    }
    l->port = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                                  : ((struct sockaddr_in *)&address)->sin_port);
    return true;
}

bool listener_open(const char *host, int64_t port, struct listener *out, struct error *err)
{
    const char *path = listen_unix_path(host);
    *out = (struct listener){.fd = -1};
    return path ? open_unix(path, out, err) : open_address(host, port, out, err);
}

void listener_close(struct listener *l)
{
    if (l->fd < 0) return;
    if (l->path[0]) unlink(l->path);
    close(l->fd);
    *l = (struct listener){.fd = -1};
}
