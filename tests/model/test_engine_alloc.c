/* After engine_open the engine allocates nothing: no thread but the owner's calls the allocator while
 * every kind of request runs. This program replaces malloc, which the sanitizers do too: under them
 * there is nothing to see. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/model/engine_fixture.h"

static _Atomic int n_foreign; /* calls from other threads, while watching */
static _Atomic bool watching;
static pthread_t owner;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { COUNTS = 0 };
#else
enum { COUNTS = 1 };

static void note(void)
{
    if (atomic_load(&watching) && !pthread_equal(pthread_self(), owner))
        atomic_fetch_add(&n_foreign, 1);
}

/* glibc's own, under the names it keeps for this. */
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

void *malloc(size_t n)
{
    note();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    note();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    note();
    return __libc_realloc(p, n);
}

void free(void *p)
{
    note();
    __libc_free(p);
}
#endif

static void *allocate_once(void *arg)
{
    void *volatile *p = arg;
    *p = malloc(10);
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
    atomic_store(&watching, true);
    for (int i = 0; i < N; i++) job_submit(&jobs[i], f.engine);
    for (int i = 0; i < N; i++) engine_wait(f.engine, jobs[i].request);
    atomic_store(&watching, false);
    assert_int_equal(atomic_load(&n_foreign), 0);
    for (int i = 0; i < N; i++) job_free(&jobs[i]);
    fixture_assert_clean(&f);
    fixture_close(&f);

    /* The counter counts. */
    pthread_t thread;
    void *volatile p = NULL;
    atomic_store(&watching, true);
    pthread_create(&thread, NULL, allocate_once, (void *)&p);
    pthread_join(thread, NULL);
    atomic_store(&watching, false);
    free(p);
    assert_true(atomic_load(&n_foreign) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing_is_allocated)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
