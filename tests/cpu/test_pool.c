/* cpu/pool.h: every index once, whoever comes; also run under the thread sanitizer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpu/pool.h"

enum { MAX_INDEX = 1000, MAX_THREADS = 9 };

struct count {
    int64_t grain, n;
    int32_t n_threads;
    int32_t seen[MAX_INDEX];              /* not atomic: two writers would be a bug */
    _Atomic int32_t inside[MAX_THREADS];  /* calls running with this thread's number */
    _Atomic int32_t wrong;
};

static void count_range(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct count *c = ctx;
    if (thread < 0 || thread >= c->n_threads || begin >= end || end > c->n) c->wrong++;
    if (end - begin < c->grain && end != c->n) c->wrong++;
    if (atomic_fetch_add(&c->inside[thread], 1) != 0) c->wrong++;
    for (int64_t i = begin; i < end; i++) c->seen[i]++;
    atomic_fetch_sub(&c->inside[thread], 1);
}

static struct pool *open_pool(int32_t n)
{
    struct pool *p;
    struct error err;
    if (!pool_open(n, &p, &err)) fail_msg("%s", err.text);
    assert_int_equal(pool_n_threads(p), n);
    return p;
}

static void every_index_runs_once(void **state)
{
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 64, 999, 1000}, grains[] = {1, 2, 10, 5000};
    static const int32_t threads[] = {1, 2, 3, 9};
    for (size_t t = 0; t < 4; t++) {
        struct pool *p = open_pool(threads[t]);
        for (size_t s = 0; s < 8; s++)
            for (size_t g = 0; g < 4; g++)
                for (int repeat = 0; repeat < 20; repeat++) {
                    struct count c = {.grain = grains[g], .n = sizes[s], .n_threads = threads[t]};
                    pool_for(p, c.n, c.grain, count_range, &c);
                    assert_int_equal(c.wrong, 0);
                    for (int64_t i = 0; i < MAX_INDEX; i++)
                        assert_int_equal(c.seen[i], i < c.n ? 1 : 0);
                }
        pool_close(p);
    }
}

struct chain { int64_t values[64]; };

static void add_one(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct chain *c = ctx;
    for (int64_t i = begin; i < end; i++) c->values[i]++;
}

/* What one loop wrote is there for the next, whichever thread wrote it;
 * many short loops end well. */
static void loops_see_the_one_before(void **state)
{
    struct pool *p = open_pool(4);
    struct chain c = {{0}};
    for (int i = 0; i < 20000; i++) pool_for(p, 64, 1, add_one, &c);
    for (int i = 0; i < 64; i++) assert_int_equal(c.values[i], 20000);
    pool_close(p);
}

/* Workers that fell asleep are woken (or done without), and closing wakes them too. */
static void sleepers_wake(void **state)
{
    struct pool *p = open_pool(3);
    struct chain c = {{0}};
    for (int i = 1; i <= 20; i++) {
        usleep(2000);
        pool_for(p, 64, 1, add_one, &c);
        for (int j = 0; j < 64; j++) assert_int_equal(c.values[j], i);
    }
    usleep(2000);
    pool_close(p);
}

struct meeting { _Atomic int32_t met; _Atomic int32_t threads_seen; };

static void meet(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct meeting *m = ctx;
    atomic_fetch_or(&m->threads_seen, 1 << thread);
    m->met++;
    /* The first to come waits for a second: only a worker can bring it. */
    for (int i = 0; m->met < 2 && i < 5000; i++) usleep(1000);
}

static void workers_take_part(void **state)
{
    struct pool *p = open_pool(2);
    struct meeting m = {0};
    pool_for(p, 2, 1, meet, &m);
    assert_int_equal(m.threads_seen, 3);
    pool_close(p);
}

struct helped {
    _Atomic int64_t done;
    _Atomic bool left_alone; /* nobody came for the rest of a share */
};

static void hold_up(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct helped *h = ctx;
    /* Who begins the second share stays in its first range until most of that share is done too. */
    for (int i = 0; begin == 32 && h->done < 48 && i < 5000; i++) usleep(1000);
    if (begin == 32 && h->done < 48) h->left_alone = true;
    h->done += end - begin;
}

static void the_slow_are_helped(void **state)
{
    struct pool *p = open_pool(2);
    for (int i = 0; i < 20; i++) {
        struct helped h = {0};
        pool_for(p, 64, 1, hold_up, &h);
        assert_int_equal(h.done, 64);
        assert_false(h.left_alone);
    }
    pool_close(p);
}

static void add_up(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    *(_Atomic int64_t *)ctx += end - begin;
}

static void more_indices_than_32_bits_count(void **state)
{
    struct pool *p = open_pool(3);
    _Atomic int64_t sum = 0;
    pool_for(p, 5000000001, 1, add_up, (void *)&sum);
    assert_true(sum == 5000000001);
    pool_close(p);
}

static void bad_counts_are_refused(void **state)
{
    struct pool *p;
    struct error err;
    assert_false(pool_open(0, &p, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_false(pool_open(100000, &p, &err));
    assert_string_equal(err.param, "threads");
    pool_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_runs_once),  cmocka_unit_test(loops_see_the_one_before),
        cmocka_unit_test(sleepers_wake),          cmocka_unit_test(workers_take_part),
        cmocka_unit_test(the_slow_are_helped),    cmocka_unit_test(more_indices_than_32_bits_count),
        cmocka_unit_test(bad_counts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
