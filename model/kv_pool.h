/* The KV pool: pages of P tokens, handed out by reservation, shared by reference count, found again
 * by exact prefix. Owned by the engine thread; all memory from one block given at init.
 *
 * A full page (its P tokens all computed) may be published to the prefix index under (parent page,
 * its P tokens, salt). A sequence that starts with the same tokens under the same salt gets it
 * back, whether its first owner still runs or not. Matching compares the tokens themselves, so a
 * hash collision costs time, never correctness. Since a page's parent is part of its key, a hit on
 * page i means that all tokens 0..(i+1)P-1 agree.
 *
 *            reserve            publish              release (last ref)
 *    FREE ────────────▶ ACTIVE ─────────▶ ACTIVE+indexed ───────────▶ CACHED ──┐
 *     ▲                   │ release (not indexed)              ▲  prefix hit │  │
 *     ├───────────────────┘                                    └─────────────┘  │
 *     └──────────────────────── evict (least recently used leaf) ───────────────┘
 *
 * Invariants (kv_pool_check asserts them; tests call it after every step):
 *  1. free + cached + active == total.
 *  2. reserved <= free + cached: a promised page is always there.
 *  3. A page is ACTIVE exactly when its reference count is > 0; FREE pages are not in the index.
 *  4. A CACHED or indexed page's parent is indexed too (children are evicted first).
 *  5. An ACTIVE indexed page's parent is ACTIVE: who references a page references all before it,
 *     and releases the last page of a sequence first. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kv_pool;

struct kv_pool_stats {
    int32_t total, free, cached, active, reserved;
    int32_t high_water; /* most active pages ever */
    int32_t shared;     /* pages with more than one reference now */
    int64_t hit_tokens, lookup_tokens; /* of all prefix lookups so far */
    int64_t evictions;
};

int64_t kv_pool_bytes(int32_t n_pages);
struct kv_pool *kv_pool_init(void *memory, int32_t n_pages); /* memory: kv_pool_bytes, zeroed */
void kv_pool_stats(const struct kv_pool *p, struct kv_pool_stats *out);
void kv_pool_check(const struct kv_pool *p);

/* Promises n pages; false when they are not there (free + cached - reserved < n). */
bool kv_pool_reserve(struct kv_pool *p, int32_t n);
void kv_pool_unreserve(struct kv_pool *p, int32_t n);
/* Takes one page out of the caller's reservation: reference count 1, contents undefined.
 * Cannot fail. */
int32_t kv_pool_take(struct kv_pool *p);
void kv_pool_ref(struct kv_pool *p, int32_t page);
void kv_pool_release(struct kv_pool *p, int32_t page);

/* The longest run of indexed pages that spells tokens[0..): at most n_tokens / P pages, written to
 * pages[], each referenced for the caller. Returns how many. Referencing a CACHED page needs room
 * beside the reservations: it stops before invariant 2 would break. */
int32_t kv_pool_match(struct kv_pool *p, uint64_t salt, const int32_t *tokens, int32_t n_tokens,
                      int32_t *pages);
/* Enters an active, full page under its parent (-1 for the first; the caller references it) and its
 * P tokens. If the index has an equal page already, nothing changes and that page's number is
 * returned: its contents are the same to the bit, so the caller releases its own page, references
 * the returned one and goes on with it. Else returns `page`. A parent that is not indexed: page
 * stays unindexed, returns page. */
int32_t kv_pool_publish(struct kv_pool *p, uint64_t salt, int32_t parent, const int32_t tokens[],
                        int32_t page);
