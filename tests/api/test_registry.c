/* Who uses which model, and when one may be closed. Engines are not needed for that. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/registry.h"

static struct api_resident *add(struct api_registry *r, const char *id)
{
    struct api_resident *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->api.model_id = id;
    api_registry_add(r, m);
    return m;
}

static void close_one(struct api_registry *r, struct api_resident *expected)
{
    struct api_resident *m = api_registry_take_idle(r);
    assert_ptr_equal(m, expected);
    api_registry_closed(r, m);
    free(m);
}

static void test_ids_and_the_default(void **state)
{
    struct api_registry r;
    struct error err;
    api_registry_init(&r);
    struct api_context base = {.registry = &r};
    assert_null(api_acquire(&base, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    struct api_resident *a = add(&r, "a"), *b = add(&r, "b");
    assert_ptr_equal(api_acquire(&base, NULL, &err), &a->api);
    assert_ptr_equal(api_acquire(&base, "b", &err), &b->api);
    assert_null(api_acquire(&base, "c", &err));
    assert_string_equal(err.param, "model");
    /* In the place of a: still the default. */
    struct api_resident *a2 = add(&r, "a");
    assert_ptr_equal(api_acquire(&base, NULL, &err), &a2->api);
    api_release(&a->api);
    close_one(&r, a);
    api_release(&a2->api);
    api_release(&b->api);
    api_registry_stop(&r);
    struct api_resident *m;
    int n = 0;
    while ((m = api_registry_take_idle(&r))) {
        api_registry_closed(&r, m);
        free(m);
        n++;
    }
    assert_int_equal(n, 2);
    api_registry_free(&r);
}

static void test_without_a_registry(void **state)
{
    struct api_context one = {.model_id = "one"};
    struct error err;
    assert_ptr_equal(api_acquire(&one, NULL, &err), &one);
    assert_ptr_equal(api_acquire(&one, "one", &err), &one);
    assert_null(api_acquire(&one, "two", &err));
    api_release(&one);
    api_release(NULL);
}

struct closer { struct api_registry *r; _Atomic int closed; };

static void *close_all(void *arg)
{
    struct closer *c = arg;
    struct api_resident *m;
    while ((m = api_registry_take_idle(c->r))) {
        assert_int_equal(m->users, 0);
        api_registry_closed(c->r, m);
        memset(m, 0xEE, sizeof *m); /* a user who is still there would crash */
        free(m);
        atomic_fetch_add(&c->closed, 1);
    }
    return NULL;
}

static void test_users_hold_it_open(void **state)
{
    struct api_registry r;
    const struct api_resident *gone;
    struct error err;
    pthread_t thread;
    struct closer c = {.r = &r};
    api_registry_init(&r);
    struct api_context base = {.registry = &r};
    add(&r, "a");
    pthread_create(&thread, NULL, close_all, &c);
    const struct api_context *used = api_acquire(&base, "a", &err);
    assert_true(api_registry_retire(&r, "a", &gone, &err));
    assert_false(api_registry_retire(&r, "a", &gone, &err));
    usleep(20000);
    assert_int_equal(atomic_load(&c.closed), 0);
    assert_string_equal(used->model_id, "a");
    api_release(used);
    api_registry_wait_closed(&r, gone);
    api_registry_stop(&r);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&c.closed), 1);
    api_registry_free(&r);
}

struct user { struct api_context *base; _Atomic bool *stop; };

static void *use(void *arg)
{
    struct user *u = arg;
    struct error err;
    while (!atomic_load(u->stop)) {
        const struct api_context *m = api_acquire(u->base, "a", &err);
        if (m && strcmp(m->model_id, "a") != 0) abort();
        api_release(m);
    }
    return NULL;
}

static void test_swaps_under_users(void **state)
{
    enum { USERS = 4, SWAPS = 500 };
    struct api_registry r;
    pthread_t closer, users[USERS];
    _Atomic bool stop = false;
    struct closer c = {.r = &r};
    api_registry_init(&r);
    struct api_context base = {.registry = &r};
    struct user u = {&base, &stop};
    pthread_create(&closer, NULL, close_all, &c);
    for (int i = 0; i < USERS; i++) pthread_create(&users[i], NULL, use, &u);
    for (int i = 0; i < SWAPS; i++) add(&r, "a");
    atomic_store(&stop, true);
    for (int i = 0; i < USERS; i++) pthread_join(users[i], NULL);
    api_registry_stop(&r);
    pthread_join(closer, NULL);
    assert_int_equal(atomic_load(&c.closed), SWAPS);
    api_registry_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_and_the_default),
        cmocka_unit_test(test_without_a_registry),
        cmocka_unit_test(test_users_hold_it_open),
        cmocka_unit_test(test_swaps_under_users),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
