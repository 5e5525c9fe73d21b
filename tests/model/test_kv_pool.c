/* The KV pool: its life cycle by hand, then long random runs against a naive model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/device.h"
#include "model/kv_pool.h"

enum { P = KV_PAGE_TOKENS };

static struct kv_pool *pool_new(int32_t n_pages)
{
    return kv_pool_init(calloc(1, (size_t)kv_pool_bytes(n_pages)), n_pages);
}

static struct kv_pool_stats stats_of(const struct kv_pool *p)
{
    struct kv_pool_stats s;
    kv_pool_check(p);
    kv_pool_stats(p, &s);
    return s;
}

/* A sequence's tokens from letters: each letter is one page of P equal tokens but the last, which
 * tells pages that differ only at their end. */
static void spell(const char *letters, int32_t *tokens)
{
    for (size_t i = 0; letters[i]; i++)
        for (int j = 0; j < P; j++) tokens[i * P + (size_t)j] = j == P - 1 ? letters[i] : 7;
}

static void test_reserve_take_release(void **state)
{
    (void)state;
    struct kv_pool *p = pool_new(4);
    assert_false(kv_pool_reserve(p, 5));
    assert_true(kv_pool_reserve(p, 3));
    assert_false(kv_pool_reserve(p, 2));
    int32_t a = kv_pool_take(p), b = kv_pool_take(p);
    assert_int_not_equal(a, b);
    struct kv_pool_stats s = stats_of(p);
    assert_int_equal(s.active, 2);
    assert_int_equal(s.reserved, 1);
    assert_int_equal(s.free, 2);
    kv_pool_unreserve(p, 1);
    kv_pool_ref(p, a);
    assert_int_equal(stats_of(p).shared, 1);
    kv_pool_release(p, a);
    kv_pool_release(p, a);
    kv_pool_release(p, b);
    s = stats_of(p);
    assert_int_equal(s.active, 0);
    assert_int_equal(s.free, 4);
    assert_int_equal(s.high_water, 2);
    assert_int_equal(s.shared, 0);
    free(p);
}

/* Publishes the pages of `letters`, one sequence; returns how many are referenced in pages[]. */
static int32_t run_sequence(struct kv_pool *p, uint64_t salt, const char *letters, int32_t *pages)
{
    int32_t tokens[8 * P], n = (int32_t)strlen(letters);
    spell(letters, tokens);
    assert_true(kv_pool_reserve(p, n));
    for (int32_t i = 0; i < n; i++) {
        pages[i] = kv_pool_take(p);
        int32_t q = kv_pool_publish(p, salt, i ? pages[i - 1] : -1, tokens + i * P, pages[i]);
        if (q != pages[i]) {
            kv_pool_release(p, pages[i]);
            kv_pool_ref(p, q);
            pages[i] = q;
        }
    }
    return n;
}

static void release_all(struct kv_pool *p, const int32_t *pages, int32_t n)
{
    while (n-- > 0) kv_pool_release(p, pages[n]);
}

static void test_prefix_found_again(void **state)
{
    (void)state;
    struct kv_pool *p = pool_new(8);
    int32_t pages[8], hit[8], tokens[8 * P];
    release_all(p, pages, run_sequence(p, 1, "abc", pages));
    assert_int_equal(stats_of(p).cached, 3);

    spell("abd", tokens);
    assert_int_equal(kv_pool_match(p, 1, tokens, 3 * P, hit), 2);
    assert_memory_equal(hit, pages, 2 * sizeof *hit);
    assert_int_equal(stats_of(p).active, 2);
    /* A second reader shares them while the first still runs. */
    int32_t again[8];
    assert_int_equal(kv_pool_match(p, 1, tokens, 3 * P, again), 2);
    assert_int_equal(stats_of(p).shared, 2);
    release_all(p, again, 2);
    release_all(p, hit, 2);

    assert_int_equal(kv_pool_match(p, 2, tokens, 3 * P, hit), 0); /* another salt */
    spell("b", tokens);
    assert_int_equal(kv_pool_match(p, 1, tokens, P, hit), 0); /* "b" is known after "a" only */
    spell("ab", tokens);
    assert_int_equal(kv_pool_match(p, 1, tokens, 2 * P - 1, hit), 1); /* whole pages only */
    release_all(p, hit, 1);
    struct kv_pool_stats s = stats_of(p);
    assert_int_equal(s.hit_tokens, 5 * P);
    assert_int_equal(s.lookup_tokens, 12 * P - 1);
    assert_int_equal(s.active, 0);
    free(p);
}

static void test_equal_page_is_adopted(void **state)
{
    (void)state;
    struct kv_pool *p = pool_new(8);
    int32_t a[8], b[8];
    int32_t n = run_sequence(p, 0, "xyz", a);
    assert_int_equal(run_sequence(p, 0, "xyw", b), 3);
    assert_memory_equal(a, b, 2 * sizeof *a);
    struct kv_pool_stats s = stats_of(p);
    assert_int_equal(s.active, 4);
    assert_int_equal(s.shared, 2);
    release_all(p, a, n);
    release_all(p, b, 3);
    assert_int_equal(stats_of(p).cached, 4);
    free(p);
}

static void test_oldest_leaf_is_evicted(void **state)
{
    (void)state;
    struct kv_pool *p = pool_new(4);
    int32_t a[8], b[8], hit[8], tokens[8 * P];
    release_all(p, a, run_sequence(p, 0, "ab", a));
    release_all(p, b, run_sequence(p, 0, "cd", b));
    assert_true(kv_pool_reserve(p, 2));
    int32_t first = kv_pool_take(p), second = kv_pool_take(p);
    assert_int_equal(first, a[1]); /* the older sequence goes first, from its end */
    assert_int_equal(second, a[0]);
    struct kv_pool_stats s = stats_of(p);
    assert_int_equal(s.evictions, 2);
    spell("cd", tokens);
    assert_int_equal(kv_pool_match(p, 0, tokens, 2 * P, hit), 2);
    release_all(p, hit, 2);
    kv_pool_release(p, first);
    kv_pool_release(p, second);
    stats_of(p);
    free(p);
}

static void test_match_respects_reservations(void **state)
{
    (void)state;
    struct kv_pool *p = pool_new(4);
    int32_t a[8], hit[8], tokens[8 * P];
    release_all(p, a, run_sequence(p, 0, "abc", a));
    assert_true(kv_pool_reserve(p, 3)); /* one page beside the promised ones */
    spell("abc", tokens);
    assert_int_equal(kv_pool_match(p, 0, tokens, 3 * P, hit), 1);
    stats_of(p);
    for (int i = 0; i < 3; i++) kv_pool_take(p);
    assert_int_equal(stats_of(p).active, 4);
    free(p);
}

/* ---- Random runs against a naive model ---- */

enum { N_PAGES = 12, N_SEQS = 6, MAX_PAGES = 6 };

/* What the model knows of a page: the letters of the sequence up to and with it. */
struct model_page {
    int n_refs;
    bool indexed;
    uint64_t salt;
    char path[MAX_PAGES + 1];
    long released;
};

struct model_seq {
    bool live;
    uint64_t salt;
    char letters[MAX_PAGES + 1];
    int32_t n_want, n, n_reserved, pages[MAX_PAGES];
};

struct model {
    struct kv_pool *pool;
    struct model_page pages[N_PAGES];
    struct model_seq seqs[N_SEQS];
    int reserved;
    long clock;
};

/* Pages with no reference (refs_from 0) or at least that many; indexed: 0, 1, or -1 for either. */
static int model_count(const struct model *m, int refs_from, int indexed)
{
    int n = 0;
    for (int i = 0; i < N_PAGES; i++) {
        const struct model_page *pg = &m->pages[i];
        bool counts = refs_from ? pg->n_refs >= refs_from : pg->n_refs == 0;
        n += counts && (indexed < 0 || pg->indexed == indexed);
    }
    return n;
}

static int model_available(const struct model *m) { return model_count(m, 0, -1) - m->reserved; }

static int model_find(const struct model *m, uint64_t salt, const char *letters, int n)
{
    for (int i = 0; i < N_PAGES; i++) {
        const struct model_page *pg = &m->pages[i];
        if (pg->indexed && pg->salt == salt && (int)strlen(pg->path) == n &&
            memcmp(pg->path, letters, (size_t)n) == 0)
            return i;
    }
    return -1;
}

static bool model_has_child(const struct model *m, int page)
{
    const struct model_page *pg = &m->pages[page];
    size_t n = strlen(pg->path);
    for (int i = 0; i < N_PAGES; i++) {
        const struct model_page *c = &m->pages[i];
        if (c->indexed && c->salt == pg->salt && strlen(c->path) == n + 1 &&
            memcmp(c->path, pg->path, n) == 0)
            return true;
    }
    return false;
}

static int model_victim(const struct model *m)
{
    int best = -1;
    for (int i = 0; i < N_PAGES; i++) {
        const struct model_page *pg = &m->pages[i];
        if (pg->n_refs == 0 && pg->indexed && !model_has_child(m, i) &&
            (best < 0 || pg->released < m->pages[best].released))
            best = i;
    }
    return best;
}

static void model_release(struct model *m, int page)
{
    kv_pool_release(m->pool, page);
    if (--m->pages[page].n_refs == 0) m->pages[page].released = ++m->clock;
}

static void op_start(struct model *m, struct model_seq *s)
{
    int32_t tokens[MAX_PAGES * P], hit[MAX_PAGES], n_hit = 0;
    s->n_want = 1 + rand() % MAX_PAGES;
    s->salt = (uint64_t)(rand() % 4 == 0);
    for (int i = 0; i < s->n_want; i++) s->letters[i] = (char)('a' + rand() % 2);
    s->letters[s->n_want] = 0;
    spell(s->letters, tokens);

    while (n_hit < s->n_want) {
        int page = model_find(m, s->salt, s->letters, n_hit + 1);
        if (page < 0 || (m->pages[page].n_refs == 0 && model_available(m) == 0)) break;
        m->pages[page].n_refs++;
        hit[n_hit++] = page;
    }
    assert_int_equal(kv_pool_match(m->pool, s->salt, tokens, s->n_want * P + rand() % P,
                                   s->pages),
                     n_hit);
    assert_memory_equal(hit, s->pages, (size_t)n_hit * sizeof *hit);
    s->n = n_hit;

    s->n_reserved = s->n_want - n_hit;
    s->live = model_available(m) >= s->n_reserved;
    assert_int_equal(kv_pool_reserve(m->pool, s->n_reserved), s->live);
    if (s->live) {
        m->reserved += s->n_reserved;
        return;
    }
    while (s->n > 0) model_release(m, s->pages[--s->n]);
}

static void op_grow(struct model *m, struct model_seq *s)
{
    if (s->n == s->n_want) return;
    int32_t tokens[MAX_PAGES * P];
    spell(s->letters, tokens);
    bool from_free = model_count(m, 0, 0) > 0;
    int victim = model_victim(m);
    int32_t page = kv_pool_take(m->pool);
    m->reserved--;
    s->n_reserved--;
    if (from_free)
        assert_true(m->pages[page].n_refs == 0 && !m->pages[page].indexed);
    else
        assert_int_equal(page, victim);
    m->pages[page] = (struct model_page){.n_refs = 1};

    bool chain = s->n == 0 || m->pages[s->pages[s->n - 1]].indexed;
    if (rand() % 8 == 0) chain = false; /* left unpublished: so must all after it be */
    if (chain) {
        int equal = model_find(m, s->salt, s->letters, s->n + 1);
        int32_t q = kv_pool_publish(m->pool, s->salt, s->n ? s->pages[s->n - 1] : -1,
                                    tokens + s->n * P, page);
        assert_int_equal(q, equal >= 0 ? equal : page);
        if (q != page) {
            model_release(m, page);
            kv_pool_ref(m->pool, q);
            m->pages[q].n_refs++;
            page = q;
        } else {
            m->pages[page].indexed = true;
            m->pages[page].salt = s->salt;
            memcpy(m->pages[page].path, s->letters, (size_t)s->n + 1);
        }
    }
    s->pages[s->n++] = page;
}

static void op_end(struct model *m, struct model_seq *s)
{
    kv_pool_unreserve(m->pool, s->n_reserved);
    m->reserved -= s->n_reserved;
    while (s->n > 0) model_release(m, s->pages[--s->n]);
    s->live = false;
}

static void compare(const struct model *m)
{
    struct kv_pool_stats s = stats_of(m->pool);
    assert_int_equal(s.total, N_PAGES);
    assert_int_equal(s.free, model_count(m, 0, 0));
    assert_int_equal(s.cached, model_count(m, 0, 1));
    assert_int_equal(s.active, model_count(m, 1, -1));
    assert_int_equal(s.shared, model_count(m, 2, -1));
    assert_int_equal(s.reserved, m->reserved);
}

static void test_random_runs(void **state)
{
    (void)state;
    srand(7);
    for (int run = 0; run < 40; run++) {
        struct model m = {.pool = pool_new(N_PAGES)};
        for (int i = 0; i < 3000; i++) {
            struct model_seq *s = &m.seqs[rand() % N_SEQS];
            if (!s->live) op_start(&m, s);
            else if (rand() % 4 < 3) op_grow(&m, s);
            else op_end(&m, s);
            compare(&m);
        }
        for (int i = 0; i < N_SEQS; i++)
            if (m.seqs[i].live) op_end(&m, &m.seqs[i]);
        compare(&m);
        assert_int_equal(stats_of(m.pool).active, 0);
        assert_true(stats_of(m.pool).evictions > 0);
        free(m.pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_take_release),
        cmocka_unit_test(test_prefix_found_again),
        cmocka_unit_test(test_equal_page_is_adopted),
        cmocka_unit_test(test_oldest_leaf_is_evicted),
        cmocka_unit_test(test_match_respects_reservations),
        cmocka_unit_test(test_random_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
