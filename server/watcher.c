/* The watcher: see watcher.h. epoll hands back ids, not pointers, since an event may already be on
 * its way when its watch is removed; the mutex decides which came first. */
#include "server/watcher.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct watcher {
    pthread_t thread;
    int epoll, wake; /* wake: an eventfd that ends the thread */
    void (*on_event)(struct watch *w, enum peer_event event);
    pthread_mutex_t mutex; /* of what follows, and held while on_event runs */
    struct watch *watches;
    uint64_t last_id;
};

static struct watch *find_watch(struct watcher *w, uint64_t id)
{
    for (struct watch *watch = w->watches; watch; watch = watch->next)
        if (watch->id == id) return watch;
    return NULL;
}

static void handle_event(struct watcher *w, const struct epoll_event *event)
{
    pthread_mutex_lock(&w->mutex);
    struct watch *watch = find_watch(w, event->data.u64);
    if (watch && (event->events & (EPOLLHUP | EPOLLERR))) {
        w->on_event(watch, PEER_GONE);
    } else if (watch) {
        /* One shot has disarmed it. Arm it again for the end alone: EPOLLRDHUP stays up. */
        struct epoll_event rest = {.events = EPOLLONESHOT, .data.u64 = watch->id};
        epoll_ctl(w->epoll, EPOLL_CTL_MOD, watch->fd, &rest);
        w->on_event(watch, PEER_HALF_CLOSED);
    }
    pthread_mutex_unlock(&w->mutex);
}

static void *watcher_run(void *arg)
{
    struct watcher *w = arg;
    for (;;) {
        struct epoll_event events[32];
        int n = epoll_wait(w->epoll, events, 32, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0) return NULL;
            handle_event(w, &events[i]);
        }
    }
}

bool watcher_start(void (*on_event)(struct watch *w, enum peer_event event), struct watcher **out,
                   struct error *err)
{
    struct watcher *w = calloc(1, sizeof *w);
    if (!w) return error_set(err, ERR_MEMORY, NULL, "cannot start the watcher: no memory");
    w->on_event = on_event;
    w->epoll = epoll_create1(EPOLL_CLOEXEC);
    w->wake = eventfd(0, EFD_CLOEXEC);
    struct epoll_event wake = {.events = EPOLLIN};
    if (w->epoll < 0 || w->wake < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->wake, &wake) != 0) {
        error_errno(err, "cannot start the watcher: epoll");
        goto fail;
    }
    pthread_mutex_init(&w->mutex, NULL);
    int failed = pthread_create(&w->thread, NULL, watcher_run, w);
    if (failed) {
        errno = failed;
        error_errno(err, "cannot start the watcher's thread");
        pthread_mutex_destroy(&w->mutex);
        goto fail;
    }
    *out = w;
    return true;
fail:
    if (w->wake >= 0) close(w->wake);
    if (w->epoll >= 0) close(w->epoll);
    free(w);
    return false;
}

void watcher_stop(struct watcher *w)
{
    if (!w) return;
    ASSERT(!w->watches);
    eventfd_write(w->wake, 1);
    pthread_join(w->thread, NULL);
    close(w->wake);
    close(w->epoll);
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

bool watcher_add(struct watcher *w, struct watch *watch, int fd, struct error *err)
{
    pthread_mutex_lock(&w->mutex);
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = ++w->last_id};
    bool added = epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
    if (added) {
        *watch = (struct watch){.fd = fd, .id = w->last_id, .next = w->watches};
        if (w->watches) w->watches->prev = watch;
        w->watches = watch;
    } else {
        error_errno(err, "cannot watch a connection");
    }
    pthread_mutex_unlock(&w->mutex);
    return added;
}

void watcher_remove(struct watcher *w, struct watch *watch)
{
    if (watch->id == 0) return;
    pthread_mutex_lock(&w->mutex);
    epoll_ctl(w->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
    if (watch->prev) watch->prev->next = watch->next;
    else w->watches = watch->next;
    if (watch->next) watch->next->prev = watch->prev;
    watch->id = 0;
    pthread_mutex_unlock(&w->mutex);
}
