/* The KV pool: see kv_pool.h. The index is a hash table of pages chained through the pages
 * themselves, and a forest: every indexed page knows its parent and its indexed children. Only
 * cached leaves can be evicted, the least recently released first; that there always is one where a
 * page is promised follows from invariant 5 (below any cached page there are only cached pages). */
#include "model/kv_pool.h"

#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "model/device.h"

enum { NONE = -1, P = KV_PAGE_TOKENS };

struct page {
    int32_t n_refs;
    bool indexed;
    /* Of an indexed page. */
    int32_t parent;                    /* NONE: the first page of a sequence */
    int32_t first_child;
    int32_t prev_sibling, next_sibling;
    int32_t next_in_bucket;
    uint64_t salt, hash;
    int32_t tokens[P];
    /* Of a page without references: its place in the free list (next only) or, for a cached leaf,
     * among the leaves in order of `released`. */
    int32_t prev, next;
    uint64_t released;                 /* when the last reference went, by the pool's count */
};

struct kv_pool {
    int32_t n_pages, n_free, n_cached, n_reserved, n_shared, high_water;
    int32_t first_free;
    int32_t oldest_leaf, newest_leaf;
    uint64_t n_releases;
    int64_t hit_tokens, lookup_tokens, evictions;
    uint64_t secret;                   /* keys the hash: a client cannot aim at one bucket */
    uint32_t bucket_mask;
    int32_t *buckets;
    struct page pages[];
};

static uint32_t n_buckets(int32_t n_pages)
{
    uint32_t n = 16;
    while (n < (uint32_t)n_pages) n *= 2;
    return n;
}

int64_t kv_pool_bytes(int32_t n_pages)
{
    return (int64_t)sizeof(struct kv_pool) + (int64_t)n_pages * (int64_t)sizeof(struct page) +
           (int64_t)n_buckets(n_pages) * (int64_t)sizeof(int32_t);
}

static void free_push(struct kv_pool *p, int32_t page)
{
    p->pages[page].next = p->first_free;
    p->first_free = page;
    p->n_free++;
}

struct kv_pool *kv_pool_init(void *memory, int32_t n_pages)
{
    struct kv_pool *p = memory;
    p->n_pages = n_pages;
    p->first_free = p->oldest_leaf = p->newest_leaf = NONE;
    p->bucket_mask = n_buckets(n_pages) - 1;
    p->buckets = (int32_t *)&p->pages[n_pages];
    memset(p->buckets, 0xFF, (p->bucket_mask + 1) * sizeof *p->buckets); /* NONE */
    /* Without the kernel's numbers the pool works all the same, only predictably. */
    if (getrandom(&p->secret, sizeof p->secret, GRND_NONBLOCK) != sizeof p->secret) p->secret = 0;
    for (int32_t i = n_pages - 1; i >= 0; i--) free_push(p, i);
    return p;
}

static int32_t n_active(const struct kv_pool *p) { return p->n_pages - p->n_free - p->n_cached; }

static int32_t n_available(const struct kv_pool *p)
{
    return p->n_free + p->n_cached - p->n_reserved;
}

void kv_pool_stats(const struct kv_pool *p, struct kv_pool_stats *out)
{
    *out = (struct kv_pool_stats){
        .total = p->n_pages,
        .free = p->n_free,
        .cached = p->n_cached,
        .active = n_active(p),
        .reserved = p->n_reserved,
        .high_water = p->high_water,
        .shared = p->n_shared,
        .hit_tokens = p->hit_tokens,
        .lookup_tokens = p->lookup_tokens,
        .evictions = p->evictions,
    };
}

/* ---- The list of cached leaves ---- */

/* A page that is released now becomes the newest; a parent that has just lost its last child to
 * eviction was released soon after that child, so its place is near the oldest. */
static void leaf_push(struct kv_pool *p, int32_t page)
{
    struct page *pg = &p->pages[page];
    int32_t before = p->newest_leaf, after = NONE;
    if (before != NONE && p->pages[before].released > pg->released) {
        after = p->oldest_leaf;
        while (p->pages[after].released < pg->released) after = p->pages[after].next;
        before = p->pages[after].prev;
    }
    pg->prev = before;
    pg->next = after;
    *(before == NONE ? &p->oldest_leaf : &p->pages[before].next) = page;
    *(after == NONE ? &p->newest_leaf : &p->pages[after].prev) = page;
}

static void leaf_remove(struct kv_pool *p, int32_t page)
{
    const struct page *pg = &p->pages[page];
    *(pg->prev == NONE ? &p->oldest_leaf : &p->pages[pg->prev].next) = pg->next;
    *(pg->next == NONE ? &p->newest_leaf : &p->pages[pg->next].prev) = pg->prev;
}

static bool is_cached_leaf(const struct page *pg)
{
    return pg->indexed && pg->n_refs == 0 && pg->first_child == NONE;
}

/* ---- The index ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
}

static uint64_t key_hash(const struct kv_pool *p, uint64_t salt, int32_t parent,
                         const int32_t *tokens)
{
    uint64_t h = mix(mix(p->secret, salt), (uint32_t)parent);
    for (int i = 0; i < P; i += 2)
        h = mix(h, (uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]);
    return mix(h, p->secret);
}

static int32_t index_find(const struct kv_pool *p, uint64_t hash, uint64_t salt, int32_t parent,
                          const int32_t *tokens)
{
    int32_t i = p->buckets[hash & p->bucket_mask];
    for (; i != NONE; i = p->pages[i].next_in_bucket) {
        const struct page *pg = &p->pages[i];
        if (pg->hash == hash && pg->salt == salt && pg->parent == parent &&
            memcmp(pg->tokens, tokens, sizeof pg->tokens) == 0)
            return i;
    }
    return NONE;
}

static void index_add(struct kv_pool *p, int32_t page, uint64_t hash, uint64_t salt, int32_t parent,
                      const int32_t *tokens)
{
    struct page *pg = &p->pages[page];
    pg->indexed = true;
    pg->hash = hash;
    pg->salt = salt;
    memcpy(pg->tokens, tokens, sizeof pg->tokens);
    int32_t *bucket = &p->buckets[hash & p->bucket_mask];
    pg->next_in_bucket = *bucket;
    *bucket = page;

    pg->parent = parent;
    pg->first_child = pg->prev_sibling = pg->next_sibling = NONE;
    if (parent == NONE) return;
    int32_t *first = &p->pages[parent].first_child;
    pg->next_sibling = *first;
    if (*first != NONE) p->pages[*first].prev_sibling = page;
    *first = page;
}

/* Takes a page without children out of the index. Its parent may become a leaf by that. */
static void index_remove(struct kv_pool *p, int32_t page)
{
    struct page *pg = &p->pages[page];
    int32_t *link = &p->buckets[pg->hash & p->bucket_mask];
    while (*link != page) link = &p->pages[*link].next_in_bucket;
    *link = pg->next_in_bucket;
    pg->indexed = false;

    if (pg->next_sibling != NONE) p->pages[pg->next_sibling].prev_sibling = pg->prev_sibling;
    if (pg->prev_sibling != NONE) {
        p->pages[pg->prev_sibling].next_sibling = pg->next_sibling;
    } else if (pg->parent != NONE) {
        struct page *parent = &p->pages[pg->parent];
        parent->first_child = pg->next_sibling;
        if (is_cached_leaf(parent)) leaf_push(p, pg->parent);
    }
}

static void forget(struct kv_pool *p, int32_t page)
{
    leaf_remove(p, page);
    index_remove(p, page);
    p->n_cached--;
    free_push(p, page);
}

/* ---- Pages ---- */

bool kv_pool_reserve(struct kv_pool *p, int32_t n)
{
    ASSERT(n >= 0);
    if (n_available(p) < n) return false;
    p->n_reserved += n;
    return true;
}

void kv_pool_unreserve(struct kv_pool *p, int32_t n)
{
    ASSERT(n >= 0 && n <= p->n_reserved);
    p->n_reserved -= n;
}

static void count_active(struct kv_pool *p)
{
    if (n_active(p) > p->high_water) p->high_water = n_active(p);
}

int32_t kv_pool_take(struct kv_pool *p)
{
    ASSERT(p->n_reserved > 0);
    if (p->first_free == NONE) {
        ASSERT(p->oldest_leaf != NONE);
        forget(p, p->oldest_leaf);
        p->evictions++;
    }
    int32_t page = p->first_free;
    p->first_free = p->pages[page].next;
    p->n_free--;
    p->n_reserved--;
    p->pages[page].n_refs = 1;
    count_active(p);
    return page;
}

void kv_pool_ref(struct kv_pool *p, int32_t page)
{
    struct page *pg = &p->pages[page];
    if (pg->n_refs == 0) {
        ASSERT(pg->indexed && n_available(p) > 0);
        if (is_cached_leaf(pg)) leaf_remove(p, page);
        p->n_cached--;
        count_active(p);
    } else if (pg->n_refs == 1) {
        p->n_shared++;
    }
    pg->n_refs++;
}

void kv_pool_release(struct kv_pool *p, int32_t page)
{
    struct page *pg = &p->pages[page];
    ASSERT(pg->n_refs > 0);
    pg->n_refs--;
    if (pg->n_refs == 1) p->n_shared--;
    if (pg->n_refs > 0) return;
    if (!pg->indexed) {
        free_push(p, page);
        return;
    }
    pg->released = ++p->n_releases;
    p->n_cached++;
    if (is_cached_leaf(pg)) leaf_push(p, page);
}

int32_t kv_pool_match(struct kv_pool *p, uint64_t salt, const int32_t *tokens, int32_t n_tokens,
                      int32_t *pages)
{
    int32_t n = 0, parent = NONE;
    for (; n < n_tokens / P; n++) {
        const int32_t *key = tokens + (int64_t)n * P;
        int32_t page = index_find(p, key_hash(p, salt, parent, key), salt, parent, key);
        if (page == NONE || (p->pages[page].n_refs == 0 && n_available(p) == 0)) break;
        kv_pool_ref(p, page);
        pages[n] = parent = page;
    }
    p->lookup_tokens += n_tokens;
    p->hit_tokens += (int64_t)n * P;
    return n;
}

int32_t kv_pool_publish(struct kv_pool *p, uint64_t salt, int32_t parent, const int32_t tokens[],
                        int32_t page)
{
    ASSERT(p->pages[page].n_refs > 0 && !p->pages[page].indexed);
    ASSERT(parent == NONE || p->pages[parent].n_refs > 0);
    if (parent != NONE && !p->pages[parent].indexed) return page;
    uint64_t hash = key_hash(p, salt, parent, tokens);
    int32_t equal = index_find(p, hash, salt, parent, tokens);
    if (equal != NONE) return equal;
    index_add(p, page, hash, salt, parent, tokens);
    return page;
}

/* ---- Invariants ---- */

static void check_indexed(const struct kv_pool *p, int32_t i)
{
    const struct page *pg = &p->pages[i];
    ASSERT(index_find(p, pg->hash, pg->salt, pg->parent, pg->tokens) == i);
    if (pg->parent == NONE) return;
    const struct page *parent = &p->pages[pg->parent];
    ASSERT(parent->indexed);
    ASSERT(pg->n_refs == 0 || parent->n_refs > 0);
    int32_t child = parent->first_child;
    while (child != i) {
        ASSERT(child != NONE);
        child = p->pages[child].next_sibling;
    }
}

void kv_pool_check(const struct kv_pool *p)
{
    int32_t active = 0, cached = 0, shared = 0, leaves = 0, n = 0;
    for (int32_t i = 0; i < p->n_pages; i++) {
        const struct page *pg = &p->pages[i];
        ASSERT(pg->n_refs >= 0);
        active += pg->n_refs > 0;
        shared += pg->n_refs > 1;
        cached += pg->n_refs == 0 && pg->indexed;
        leaves += is_cached_leaf(pg);
        if (pg->indexed) check_indexed(p, i);
    }
    ASSERT(p->n_free >= 0 && p->n_cached == cached && p->n_shared == shared);
    ASSERT(p->n_free + cached + active == p->n_pages);
    ASSERT(p->n_reserved >= 0 && n_available(p) >= 0);
    ASSERT(p->high_water >= active && p->high_water <= p->n_pages);

    for (int32_t i = p->first_free; i != NONE; i = p->pages[i].next, n++)
        ASSERT(n < p->n_free && p->pages[i].n_refs == 0 && !p->pages[i].indexed);
    ASSERT(n == p->n_free);
    uint64_t released = 0;
    for (int32_t i = p->oldest_leaf; i != NONE; i = p->pages[i].next, leaves--) {
        ASSERT(is_cached_leaf(&p->pages[i]) && p->pages[i].released > released);
        released = p->pages[i].released;
    }
    ASSERT(leaves == 0);
}
