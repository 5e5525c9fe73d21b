/* Tests of server/auth.c: key files, headers, and whose a key is. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "server/auth.h"

#define KEY_A "gptd-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define KEY_B "gptd-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static char folder[] = "/tmp/gptd-test-auth-XXXXXX", users[64], admins[64];

static int set_up(void **state)
{
    log_set_level(LOG_ERROR);
    if (!mkdtemp(folder)) return -1;
    snprintf(users, sizeof users, "%s/users", folder);
    snprintf(admins, sizeof admins, "%s/admins", folder);
    return 0;
}

static int tear_down(void **state)
{
    remove(users);
    remove(admins);
    return rmdir(folder);
}

static void write_bytes(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static struct auth *opened(const char *user_file, const char *admin_file,
                           const struct limits_options *limits)
{
    struct auth_options o = {.user_file = user_file, .admin_file = admin_file};
    struct auth *a;
    struct error err;
    if (limits) o.limits = *limits;
    if (!auth_open(&o, &a, &err)) fail_msg("%s", err.text);
    return a;
}

static bool knows(struct auth *a, const char *key, struct auth_caller *out)
{
    return auth_identify(a, key, strlen(key), out);
}

static void test_files_say_who(void **state)
{
    struct auth_caller c;
    write_text(users, "# people\r\n\n   \n" KEY_A " alice\r\n\t\n" KEY_B "\t \n"
                      "short bob.b@x-y+z_1");
    write_text(admins, "root-key-0123456789\n");
    struct auth *a = opened(users, admins, NULL);
    assert_true(knows(a, KEY_A, &c));
    assert_string_equal(c.name, "alice");
    assert_false(c.is_admin);
    assert_null(c.limits);
    uint64_t salt = c.cache_salt;
    assert_true(knows(a, KEY_B, &c));
    assert_string_equal(c.name, "user-2");
    assert_true(salt != 0 && c.cache_salt != 0 && salt != c.cache_salt);
    assert_true(knows(a, "short", &c));
    assert_string_equal(c.name, "bob.b@x-y+z_1");
    assert_true(knows(a, "root-key-0123456789", &c));
    assert_true(c.is_admin);
    assert_string_equal(c.name, "admin-1");
    static const char *const strangers[] = {"", "#", "alice", KEY_A " alice", KEY_A "a", "shor",
                                            "shortt", "SHORT", "root-key-012345678"};
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        assert_false(knows(a, strangers[i], &c));
    auth_close(a);
}

static void test_a_key_in_both_files_is_an_admins(void **state)
{
    struct auth_caller c;
    write_text(users, KEY_A " alice\n" KEY_B " bob\n");
    write_text(admins, KEY_A " root\n");
    struct auth *a = opened(users, admins, NULL);
    assert_true(knows(a, KEY_A, &c));
    assert_true(c.is_admin);
    assert_string_equal(c.name, "root");
    assert_true(knows(a, KEY_B, &c));
    assert_false(c.is_admin);
    auth_close(a);
}

static void test_bad_files_are_refused_and_never_quoted(void **state)
{
    static const struct { const char *bytes; size_t n; const char *says; } cases[] = {
#define CASE(text, says) {text, sizeof text - 1, says}
        CASE("", "no key"),
        CASE("# only this\n\n", "no key"),
        CASE("secret-secret-secret two words\n", "line 1: a name"),
        CASE("secret-secret-secret n\"ame\n", "line 1: a name"),
        CASE("ok-ok-ok-ok-ok-ok\n secret-secret-secret\n", "line 2: a key"),
        CASE("secret-secret-\xc3\xa9\n", "line 1: a key"),
        CASE("secret-secret-secret\0x\n", "line 1: a key"),
        CASE("secret-secret-secret na\0me\n", "line 1: a name"),
        CASE("\xef\xbb\xbfsecret-secret-secret\n", "line 1: a key"),
        CASE("secret-secret-secret a\nsecret-secret-secret b\n", "line 2: the key is there twice"),
        CASE("secret-secret-secret "
             "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
             "line 1: a name"),
#undef CASE
    };
    struct auth_options o = {.user_file = users};
    struct auth *a;
    struct error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(users, cases[i].bytes, cases[i].n);
        assert_false(auth_open(&o, &a, &err));
        if (!strstr(err.text, cases[i].says)) fail_msg("case %zu: %s", i, err.text);
        assert_null(strstr(err.text, "secret"));
    }
    o.user_file = folder;
    assert_false(auth_open(&o, &a, &err));
    assert_non_null(strstr(err.text, "not a file"));
    o.user_file = "/nowhere/keys";
    assert_false(auth_open(&o, &a, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_sizes_have_limits(void **state)
{
    struct auth_options o = {.user_file = users};
    struct auth *a;
    struct error err;
    struct buf text;
    buf_init(&text, 4 << 20);
    for (int i = 0; i < AUTH_KEY_MAX; i++) buf_putc(&text, 'k');
    write_bytes(users, text.data, text.len);
    auth_close(opened(users, NULL, NULL));
    buf_putc(&text, 'k');
    write_bytes(users, text.data, text.len);
    assert_false(auth_open(&o, &a, &err));
    buf_clear(&text);
    for (int i = 0; i < AUTH_MAX_KEYS; i++) buf_printf(&text, "key-number-%010d\n", i);
    write_bytes(users, text.data, text.len);
    a = opened(users, NULL, NULL);
    struct auth_caller c;
    assert_true(knows(a, "key-number-0000000000", &c) && knows(a, "key-number-0000004095", &c));
    assert_string_equal(c.name, "user-4096");
    auth_close(a);
    buf_puts(&text, "key-number-one-more\n");
    write_bytes(users, text.data, text.len);
    assert_false(auth_open(&o, &a, &err));
    assert_non_null(strstr(err.text, "4096"));
    buf_clear(&text);
    for (int i = 0; i <= AUTH_FILE_LIMIT; i++) buf_putc(&text, '\n');
    write_bytes(users, text.data, text.len);
    assert_false(auth_open(&o, &a, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    buf_free(&text);
}

static void test_reload_is_all_or_nothing_and_refills_nobody(void **state)
{
    struct limits_options limits = {.requests_per_minute = 1};
    struct auth_caller before, after;
    struct error err;
    write_text(users, KEY_A "\n");
    write_text(admins, "root-key-0123456789\n");
    struct auth *a = opened(users, admins, &limits);
    assert_true(knows(a, "root-key-0123456789", &before));
    assert_null(before.limits);
    assert_true(knows(a, KEY_A, &before));
    assert_int_equal(key_limits_begin(before.limits, clock_ns(), &err), LIMITS_OK);

    write_text(users, KEY_A " alice\n" KEY_B "\n");
    write_text(admins, "not a key\n");
    assert_false(auth_reload(a, &err));
    assert_false(knows(a, KEY_B, &after));
    write_text(admins, "root-key-9876543210\n");
    assert_true(auth_reload(a, &err));
    assert_true(knows(a, KEY_A, &after));
    assert_string_equal(after.name, "alice");
    assert_ptr_equal(after.limits, before.limits);
    assert_true(after.cache_salt == before.cache_salt);
    assert_int_equal(key_limits_begin(after.limits, clock_ns(), &err), LIMITS_REQUESTS);
    auth_caller_free(&after);
    assert_false(knows(a, "root-key-0123456789", &after));

    /* A key that goes leaves its numbers to the request that began with it. */
    write_text(users, KEY_B "\n");
    assert_true(auth_reload(a, &err));
    assert_false(knows(a, KEY_A, &after));
    auth_close(a);
    key_limits_end(before.limits);
    auth_caller_free(&before);
    auth_caller_free(&before); /* nothing is left to free */
}

struct racing { struct auth *auth; _Atomic bool stop; _Atomic int64_t missed; };

static void *identify_all_along(void *arg)
{
    struct racing *r = arg;
    while (!atomic_load(&r->stop)) {
        struct auth_caller c;
        if (!knows(r->auth, KEY_A, &c)) atomic_fetch_add(&r->missed, 1);
        else auth_caller_free(&c);
    }
    return NULL;
}

static void test_reload_under_load(void **state)
{
    struct limits_options limits = {.concurrent = 5};
    pthread_t threads[2];
    struct error err;
    write_text(users, KEY_A "\n" KEY_B "\n");
    struct racing r = {.auth = opened(users, NULL, &limits)};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, identify_all_along, &r), 0);
    for (int i = 0; i < 50; i++) assert_true(auth_reload(r.auth, &err));
    atomic_store(&r.stop, true);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&r.missed), 0);
    auth_close(r.auth);
}

/* ---- Headers ---- */

static enum auth_presented present(const char *authorization, const char *api_key, const char **key,
                                   size_t *n)
{
    struct auth_headers h = {authorization, api_key, authorization != NULL, api_key != NULL};
    struct error err = {0};
    enum auth_presented what = auth_presented_key(&h, key, n, &err);
    assert_int_equal(err.code, what == AUTH_KEY ? ERR_NONE : ERR_UNAUTHENTICATED);
    return what;
}

static void test_headers(void **state)
{
    static const struct { const char *authorization, *api_key, *key; } cases[] = {
        {"Bearer k", NULL, "k"}, {"bearer k", NULL, "k"}, {"BEARER   k", NULL, "k"},
        {"Bearer k  \t", NULL, "k"}, {NULL, "k", "k"}, {NULL, "k \t ", "k"},
        {"Bearer Bearer", NULL, "Bearer"}, {"Bearer a:b/c+d==", NULL, "a:b/c+d=="},
        {"", NULL, NULL}, {"k", NULL, NULL}, {"Bearer", NULL, NULL}, {"Bearer ", NULL, NULL},
        {"Bearer  \t", NULL, NULL}, {"Bearer\tk", NULL, NULL}, {"Bearerk", NULL, NULL},
        {"Bearer: k", NULL, NULL}, {"Bearer k k", NULL, NULL}, {"Bearer k\tk", NULL, NULL},
        {" Bearer k", NULL, NULL}, {"Basic azpr", NULL, NULL}, {"Bearer, k", NULL, NULL},
        {NULL, "", NULL}, {NULL, "a b", NULL}, {"Bearer k", "k", NULL}, {"Bearer k", "", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *key = NULL;
        size_t n = 0;
        enum auth_presented what = present(cases[i].authorization, cases[i].api_key, &key, &n);
        if (what != (cases[i].key ? AUTH_KEY : AUTH_BAD_HEADER)) fail_msg("case %zu", i);
        if (!cases[i].key) continue;
        assert_int_equal(n, strlen(cases[i].key));
        assert_memory_equal(key, cases[i].key, n);
    }
    const char *key;
    size_t n;
    assert_int_equal(present(NULL, NULL, &key, &n), AUTH_NO_KEY);
}

static void test_a_second_header_is_refused(void **state)
{
    static const struct auth_headers cases[] = {
        {"Bearer k", NULL, 2, 0}, {NULL, "k", 0, 2}, {"Bearer k", "k", 1, 1}, {NULL, NULL, 1, 0},
        {NULL, NULL, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *key;
        size_t n;
        struct error err;
        assert_int_equal(auth_presented_key(&cases[i], &key, &n, &err), AUTH_BAD_HEADER);
    }
}

static void test_overlong_keys(void **state)
{
    enum { MOST = 70000 };
    char *value = malloc(MOST + 1);
    assert_non_null(value);
    memset(value, 'k', MOST);
    value[MOST] = 0;
    const char *key;
    size_t n;
    assert_int_equal(present(NULL, value, &key, &n), AUTH_BAD_HEADER);
    value[AUTH_KEY_MAX + 1] = 0;
    assert_int_equal(present(NULL, value, &key, &n), AUTH_BAD_HEADER);
    value[AUTH_KEY_MAX] = 0;
    assert_int_equal(present(NULL, value, &key, &n), AUTH_KEY);
    assert_int_equal(n, AUTH_KEY_MAX);
    free(value);
}

/* Any bytes: what is taken for a key lies within the value and has no space. */
static void test_random_headers(void **state)
{
    static const char alphabet[] = "Bearer  \t bEARER,:k\x01\xff";
    uint32_t seed = 12345;
    int taken = 0;
    for (int i = 0; i < 200000; i++) {
        char value[24];
        size_t len = (seed = seed * 1664525 + 1013904223) >> 16 & 15;
        size_t start = seed >> 8 & 1 ? (size_t)snprintf(value, sizeof value, "Bearer ") : 0;
        for (size_t k = start; k < start + len; k++)
            value[k] = alphabet[((seed = seed * 1664525 + 1013904223) >> 16)
                                % (sizeof alphabet - 1)];
        value[start + len] = 0;
        const char *key;
        size_t n;
        if (present(value, NULL, &key, &n) != AUTH_KEY) continue;
        taken++;
        assert_true(n > 0 && key >= value + 7 && key + n <= value + start + len);
        assert_null(memchr(key, ' ', n));
        assert_null(memchr(key, '\t', n));
    }
    assert_true(taken > 1000);
}

static void test_new_keys(void **state)
{
    char one[AUTH_NEW_KEY_SIZE], two[AUTH_NEW_KEY_SIZE];
    struct error err;
    assert_true(auth_new_key(one, &err) && auth_new_key(two, &err));
    assert_int_equal(strlen(one), AUTH_NEW_KEY_SIZE - 1);
    assert_memory_equal(one, "gptd-", 5);
    for (const char *c = one; *c; c++) assert_true(auth_name_is_good(c, 1)); /* base64url's, too */
    assert_string_not_equal(one, two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_say_who),
        cmocka_unit_test(test_a_key_in_both_files_is_an_admins),
        cmocka_unit_test(test_bad_files_are_refused_and_never_quoted),
        cmocka_unit_test(test_sizes_have_limits),
        cmocka_unit_test(test_reload_is_all_or_nothing_and_refills_nobody),
        cmocka_unit_test(test_reload_under_load),
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_a_second_header_is_refused),
        cmocka_unit_test(test_overlong_keys),
        cmocka_unit_test(test_random_headers),
        cmocka_unit_test(test_new_keys),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
