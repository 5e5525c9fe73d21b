/* Tests of server/watcher.c, over real connections on the loopback interface. */
#include <arpa/inet.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "server/watcher.h"

struct peer {
    struct watch watch; /* first: see on_event */
    int ours, theirs;
    sem_t event;
    _Atomic int n_half, n_gone;
};

static void on_event(struct watch *w, enum peer_event event)
{
    struct peer *p = (struct peer *)w;
    atomic_fetch_add(event == PEER_GONE ? &p->n_gone : &p->n_half, 1);
    sem_post(&p->event);
}

static void peer_open(struct peer *p)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    *p = (struct peer){.theirs = socket(AF_INET, SOCK_STREAM, 0)};
    assert_int_equal(connect(p->theirs, (struct sockaddr *)&address, size), 0);
    p->ours = accept(listener, NULL, NULL);
    assert_true(p->ours >= 0);
    close(listener);
    sem_init(&p->event, 0, 0);
}

static bool wait_event(struct peer *p, int timeout_ms)
{
    int64_t end = clock_ns() + (int64_t)timeout_ms * 1000000;
    while (sem_trywait(&p->event) != 0) {
        if (clock_ns() > end) return false;
        usleep(1000);
    }
    return true;
}

static void reset(int fd)
{
    struct linger now = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

static struct watcher *watcher;

static int start(void **state)
{
    struct error err;
    return watcher_start(on_event, &watcher, &err) ? 0 : 1;
}

static int stop(void **state)
{
    watcher_stop(watcher);
    return 0;
}

static void test_a_reset_is_gone(void **state)
{
    struct peer p;
    struct error err;
    peer_open(&p);
    assert_true(watcher_add(watcher, &p.watch, p.ours, &err));
    reset(p.theirs);
    assert_true(wait_event(&p, 5000));
    assert_int_equal(p.n_gone, 1);
    assert_int_equal(p.n_half, 0);
    watcher_remove(watcher, &p.watch);
    close(p.ours);
}

static void test_half_closed_is_told_once(void **state)
{
    struct peer p;
    struct error err;
    peer_open(&p);
    assert_true(watcher_add(watcher, &p.watch, p.ours, &err));
    assert_int_equal(write(p.theirs, "more", 4), 4); /* bytes are no event */
    assert_false(wait_event(&p, 50));
    shutdown(p.theirs, SHUT_WR);
    assert_true(wait_event(&p, 5000));
    assert_int_equal(p.n_half, 1);
    assert_false(wait_event(&p, 50));
    watcher_remove(watcher, &p.watch);
    close(p.ours);
    close(p.theirs);
}

/* close() sends the same FIN as shutdown(); the answer to what we write then tells them apart. */
static void test_a_probe_tells_closed_from_half_closed(void **state)
{
    struct peer p;
    struct error err;
    peer_open(&p);
    assert_true(watcher_add(watcher, &p.watch, p.ours, &err));
    close(p.theirs);
    assert_true(wait_event(&p, 5000));
    assert_int_equal(p.n_half, 1);
    assert_int_equal(p.n_gone, 0);
    assert_int_equal(send(p.ours, "?", 1, MSG_NOSIGNAL), 1);
    assert_true(wait_event(&p, 5000));
    assert_int_equal(p.n_gone, 1);
    watcher_remove(watcher, &p.watch);
    close(p.ours);
}

static void test_what_had_left_before_is_noticed(void **state)
{
    struct peer p;
    struct error err;
    peer_open(&p);
    reset(p.theirs);
    assert_true(watcher_add(watcher, &p.watch, p.ours, &err));
    assert_true(wait_event(&p, 5000));
    assert_int_equal(p.n_gone, 1);
    watcher_remove(watcher, &p.watch);
    close(p.ours);
}

static void test_nothing_comes_after_removal(void **state)
{
    for (int i = 0; i < 200; i++) {
        struct peer p;
        struct error err;
        peer_open(&p);
        assert_true(watcher_add(watcher, &p.watch, p.ours, &err));
        reset(p.theirs); /* the event races with the removal */
        watcher_remove(watcher, &p.watch);
        int seen = p.n_gone;
        assert_true(seen <= 1);
        watcher_remove(watcher, &p.watch); /* harmless */
        close(p.ours); /* its number goes to the next one at once */
        assert_int_equal(p.n_gone, seen);
    }
}

static void test_a_bad_descriptor_is_an_error(void **state)
{
    struct watch w = {0};
    struct error err;
    assert_false(watcher_add(watcher, &w, -1, &err));
    assert_int_equal(w.id, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_reset_is_gone),
        cmocka_unit_test(test_half_closed_is_told_once),
        cmocka_unit_test(test_a_probe_tells_closed_from_half_closed),
        cmocka_unit_test(test_what_had_left_before_is_noticed),
        cmocka_unit_test(test_nothing_comes_after_removal),
        cmocka_unit_test(test_a_bad_descriptor_is_an_error),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
