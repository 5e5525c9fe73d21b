/* After engine_open the engine allocates nothing: no thread but the owner's calls the allocator,
 * maps memory or asks the device for any while every kind of request runs. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/model/count_allocs.h"
#include "tests/model/engine_fixture.h"

static _Atomic int n_foreign; /* calls from other threads, while watching */
static _Atomic bool watching;
static pthread_t owner;

static void note_allocation(void)
{
    if (atomic_load(&watching) && !pthread_equal(pthread_self(), owner))
        atomic_fetch_add(&n_foreign, 1);
}

static void *allocate_once(void *arg)
{
    void *volatile *p = arg;
    *p = malloc(10);
    void *page = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, 1);
    return NULL;
}

static void test_nothing_is_allocated(void **state)
{
    (void)state;
    if (!COUNTS) skip();
    owner = pthread_self();
    struct engine_fixture f;
    fixture_open(&f, "tests/golden/llama", NULL);
    enum { N = 40 };
    static struct job jobs[N];
    for (int i = 0; i < N; i++) {
        job_init(&jobs[i], (uint64_t)i, f.engine);
        assert_true(job_new(&jobs[i], f.engine));
    }
    int64_t n_device = atomic_load(&f.n_allocs);
    atomic_store(&watching, true);
    for (int i = 0; i < N; i++) job_submit(&jobs[i], f.engine);
    for (int i = 0; i < N; i++) engine_wait(f.engine, jobs[i].request);
    atomic_store(&watching, false);
    assert_int_equal(atomic_load(&n_foreign), 0);
    assert_true(n_device > 0);
    assert_int_equal(atomic_load(&f.n_allocs), n_device);
    for (int i = 0; i < N; i++) job_free(&jobs[i]);
    fixture_assert_clean(&f);
    fixture_close(&f);

    /* The counter counts: malloc, mmap and munmap, and what making a thread takes. */
    pthread_t thread;
    void *volatile p = NULL;
    atomic_store(&watching, true);
    pthread_create(&thread, NULL, allocate_once, (void *)&p);
    pthread_join(thread, NULL);
    atomic_store(&watching, false);
    free(p);
    assert_true(atomic_load(&n_foreign) >= 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing_is_allocated)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
