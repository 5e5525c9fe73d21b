/* Notices clients that leave while their connection is suspended: libmicrohttpd does not look at
 * such a connection. One thread waits on the descriptors with epoll.
 *
 * EPOLLHUP or EPOLLERR: the client is gone. EPOLLRDHUP alone: it has sent all it will send, and may
 * still be reading (curl never does that, `nc -N` and HTTP/1.0 clients do): only writing to it
 * tells. */
#pragma once

#include <stdint.h>

#include "base/error.h"

enum peer_event {
    PEER_HALF_CLOSED, /* no more bytes from it; seen at most once */
    PEER_GONE,
};

/* Part of whoever wants to know. */
struct watch {
    int fd;
    uint64_t id; /* never reused, unlike descriptors; 0: not watched */
    struct watch *next, *prev;
};

struct watcher;

/* `on_event` runs on the watcher's thread; it must not call the watcher. */
bool watcher_start(void (*on_event)(struct watch *w, enum peer_event event), struct watcher **out,
                   struct error *err) MUST_CHECK;
void watcher_stop(struct watcher *w); /* NULL-safe; nothing may be watched any more */

bool watcher_add(struct watcher *w, struct watch *watch, int fd, struct error *err) MUST_CHECK;
/* Before the descriptor is closed. No event for `watch` is running or will run after this. */
void watcher_remove(struct watcher *w, struct watch *watch);
