/* The thread pool. Its first idea is the gate: a 32-bit word that holds a generation, an "open"
 * bit and the number of workers inside. Workers enter by compare-and-swap while it is open; the
 * caller closes it when the indices have run out and waits only for those inside. The word is
 * also the futex that idle workers sleep on.
 *
 * The second: every thread has an even share of the indices, which it works through from the front,
 * so that it reads memory as one stream. A thread without work takes the second half of what
 * another one has left, also of one that never came. */
#include "cpu/pool.h"

#include <errno.h>
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"

enum {
    GATE_ACTIVE = (1 << 12) - 1, /* workers inside */
    GATE_OPEN = 1 << 12,
    GATE_GENERATION = 1 << 13, /* the rest counts loops; it may wrap, entering is optional */
    MAX_THREADS = 1024,
    SPIN_NS = 50000, /* how long an idle worker looks before it sleeps */
};

struct pool_loop {
    int64_t n, unit; /* indices, and how many go together */
    pool_body body;
    void *ctx;
};

/* Units [begin, end) that nobody has begun: begin in the low half, end in the high one. */
struct pool_share {
    _Alignas(64) _Atomic uint64_t span;
};

struct pool_worker {
    struct pool *pool;
    pthread_t handle;
    int32_t thread;
};

struct pool {
    _Alignas(64) _Atomic uint32_t gate;
    _Alignas(64) _Atomic int32_t n_asleep;
    _Atomic bool closing;
    /* Written by the caller while the gate is closed and empty. */
    _Alignas(64) struct pool_loop loop;
    struct pool_share *shares; /* [n_threads] */
    int32_t n_threads;
    int32_t n_started;
    bool crowded; /* there are fewer processors than threads */
    struct pool_worker *workers; /* [n_threads - 1] */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static uint64_t span_of(uint32_t begin, uint32_t end) { return begin | (uint64_t)end << 32; }

/* Takes [*begin, *end) from the front of a share: a part of the rest, so that something is left for
 * others, should this thread be slow. */
static bool take_front(struct pool_share *share, uint32_t *begin, uint32_t *end)
{
    uint64_t span = atomic_load_explicit(&share->span, memory_order_relaxed);
    do {
        uint32_t last = (uint32_t)(span >> 32);
        *begin = (uint32_t)span;
        if (*begin == last) return false;
        *end = *begin + (last - *begin + 3) / 4;
    } while (!atomic_compare_exchange_weak_explicit(
        &share->span, &span, span_of(*end, (uint32_t)(span >> 32)), memory_order_relaxed,
        memory_order_relaxed));
    return true;
}

/* Fills a thread's empty share with the second half of another's. */
static bool steal(struct pool *p, int32_t thread)
{
    for (int32_t i = 1; i < p->n_threads; i++) {
        struct pool_share *victim = &p->shares[(thread + i) % p->n_threads];
        uint64_t span = atomic_load_explicit(&victim->span, memory_order_relaxed);
        while ((uint32_t)span != (uint32_t)(span >> 32)) {
            uint32_t begin = (uint32_t)span, end = (uint32_t)(span >> 32);
            uint32_t middle = begin + (end - begin) / 2;
            if (!atomic_compare_exchange_weak_explicit(&victim->span, &span, span_of(begin, middle),
                                                       memory_order_relaxed, memory_order_relaxed))
                continue;
            atomic_store_explicit(&p->shares[thread].span, span_of(middle, end),
                                  memory_order_relaxed);
            return true;
        }
    }
    return false;
}

static void run_ranges(struct pool *p, int32_t thread)
{
    const struct pool_loop *loop = &p->loop;
    do {
        uint32_t begin, end;
        while (take_front(&p->shares[thread], &begin, &end))
            loop->body(loop->ctx, begin * loop->unit, min_i64(end * loop->unit, loop->n), thread);
    } while (steal(p, thread));
}

/* Returns a gate value that differs from `seen`, spinning first and then sleeping. */
static uint32_t gate_await(struct pool *p, uint32_t seen)
{
    int64_t until = clock_ns() + SPIN_NS;
    for (;;) {
        for (int i = 0; i < 32; i++) {
            uint32_t g = atomic_load_explicit(&p->gate, memory_order_acquire);
            if (g != seen) return g;
            _mm_pause();
        }
        if (clock_ns() < until) {
            if (p->crowded) sched_yield(); /* the one we wait for may want this processor */
            continue;
        }
        /* The order matters: announce the sleeper, then look again (futex_wait does). The caller
         * changes the gate, then looks for sleepers. One of the two sees the other. */
        atomic_fetch_add(&p->n_asleep, 1);
        futex_wait(&p->gate, seen);
        atomic_fetch_sub(&p->n_asleep, 1);
        until = clock_ns() + SPIN_NS;
    }
}

static void *worker_main(void *arg)
{
    struct pool_worker *w = arg;
    struct pool *p = w->pool;
    uint32_t done = 0; /* the generation this worker has taken part in */
    uint32_t g = atomic_load_explicit(&p->gate, memory_order_acquire);
    while (!atomic_load_explicit(&p->closing, memory_order_acquire)) {
        uint32_t generation = g / GATE_GENERATION;
        if (!(g & GATE_OPEN) || generation == done) {
            g = gate_await(p, g);
            continue;
        }
        if (!atomic_compare_exchange_weak_explicit(&p->gate, &g, g + 1, memory_order_acquire,
                                                   memory_order_acquire))
            continue;
        run_ranges(p, w->thread);
        done = generation;
        g = atomic_fetch_sub_explicit(&p->gate, 1, memory_order_release) - 1;
    }
    return NULL;
}

/* Workers take no signals: those are for the program's own threads. Except those that a thread's
 * own instructions raise: blocked, they would end the process past any handler. */
static bool start_workers(struct pool *p, struct error *err)
{
    static const int own[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGTRAP};
    sigset_t all, old;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = 0;
    for (int32_t i = 0; i < p->n_threads - 1; i++) {
        p->workers[i] = (struct pool_worker){.pool = p, .thread = i + 1};
        rc = pthread_create(&p->workers[i].handle, NULL, worker_main, &p->workers[i]);
        if (rc != 0) break;
        pthread_setname_np(p->workers[i].handle, "pool"); /* what top -H and /proc show */
        p->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0) return true;
    errno = rc;
    return error_errno(err, "starting %d compute threads", p->n_threads - 1);
}

/* A worker that yields while it waits loses a whole time slice to any other program that
 * wants the processor, and with it the loops that begin meanwhile: so none does where each
 * thread can have a processor of its own. */
static bool is_crowded(int32_t n_threads)
{
    cpu_set_t mask;
    return sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) < n_threads;
}

bool pool_open(int32_t n_threads, struct pool **out, struct error *err)
{
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return error_set(err, ERR_INVALID, "threads", "%d threads: must be 1 to %d", n_threads,
                         MAX_THREADS);
    struct pool *p = aligned_alloc(64, sizeof *p);
    struct pool_share *shares = aligned_alloc(64, (size_t)n_threads * sizeof *shares);
    struct pool_worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!p || !shares || !workers) {
        free(p);
        free(shares);
        free(workers);
        return error_set(err, ERR_MEMORY, NULL, "no memory for a pool of %d threads", n_threads);
    }
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    p->crowded = is_crowded(n_threads);
    p->shares = shares;
    p->workers = workers;
    if (!start_workers(p, err)) {
        pool_close(p);
        return false;
    }
    *out = p;
    return true;
}

void pool_close(struct pool *p)
{
    if (!p) return;
    atomic_store(&p->closing, true);
    atomic_fetch_add(&p->gate, GATE_GENERATION);
    futex_wake_all(&p->gate);
    for (int32_t i = 0; i < p->n_started; i++) pthread_join(p->workers[i].handle, NULL);
    free(p->workers);
    free(p->shares);
    free(p);
}

int32_t pool_n_threads(const struct pool *p) { return p->n_threads; }

/* A worker inside may have been descheduled: after a while let others have the processor. */
static void await_empty(struct pool *p)
{
    for (int i = 0; atomic_load_explicit(&p->gate, memory_order_acquire) & GATE_ACTIVE; i++) {
        if (i < 2000)
            _mm_pause();
        else
            sched_yield();
    }
}

void pool_for(struct pool *p, int64_t n, int64_t grain, pool_body body, void *ctx)
{
    if (n <= 0) return;
    if (n <= grain || p->n_threads == 1) {
        body(ctx, 0, n, 0);
        return;
    }
    /* A share counts in 32 bits. */
    int64_t unit = max_i64(max_i64(grain, 1), ceil_div(n, INT32_MAX)), units = ceil_div(n, unit);
    p->loop = (struct pool_loop){.n = n, .unit = unit, .body = body, .ctx = ctx};
    for (int32_t i = 0; i < p->n_threads; i++) {
        uint64_t span = span_of((uint32_t)(units * i / p->n_threads),
                                (uint32_t)(units * (i + 1) / p->n_threads));
        atomic_store_explicit(&p->shares[i].span, span, memory_order_relaxed);
    }
    /* The gate is closed and empty, so no worker changes it: the sum sets the open bit. */
    atomic_fetch_add(&p->gate, GATE_GENERATION + GATE_OPEN);
    if (atomic_load(&p->n_asleep) > 0) futex_wake_all(&p->gate);
    run_ranges(p, 0);
    atomic_fetch_sub_explicit(&p->gate, GATE_OPEN, memory_order_acquire);
    await_empty(p);
}
