/* The permutation: see dataset_order.h.
 *
 * A Feistel network over the smallest even number of bits that holds n - 1: each round replaces
 * (left, right) by (right, left ^ F(right)), which can be undone whatever F is, so the whole is a
 * permutation of 0..2^bits-1. F is Philox4x32-10 (sampler.h) with the seed as its key. What falls
 * outside 0..n-1 goes through again until it falls inside (cycle walking), which keeps a
 * permutation one; the domain is under 4 n, so that takes under four turns on average. */
#include "model/dataset_order.h"

#include "base/error.h"
#include "model/sampler.h"

enum { ROUNDS = 6 };

static uint32_t draw(uint64_t seed, int64_t epoch, uint32_t value, uint32_t round)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, words[4];
    uint32_t counter[4] = {value, round, (uint32_t)epoch, (uint32_t)((uint64_t)epoch >> 32)};
    philox4x32(counter, key, words);
    return words[0];
}

static uint64_t feistel(uint64_t seed, int64_t epoch, int half, uint64_t x)
{
    uint32_t mask = (uint32_t)((UINT64_C(1) << half) - 1);
    uint32_t left = (uint32_t)(x >> half), right = (uint32_t)x & mask;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t next = left ^ (draw(seed, epoch, right, round) & mask);
        left = right;
        right = next;
    }
    return (uint64_t)left << half | right;
}

int64_t dataset_order(uint64_t seed, int64_t epoch, int64_t n, int64_t i)
{
    ASSERT(i >= 0 && i < n && n <= INT64_C(1) << 62);
    int half = 1;
    while ((n - 1) >> (2 * half) > 0) half++;
    uint64_t x = (uint64_t)i;
    do x = feistel(seed, epoch, half, x);
    while (x >= (uint64_t)n);
    return (int64_t)x;
}

int64_t dataset_phase(uint64_t seed, int64_t epoch, int64_t n)
{
    ASSERT(n > 0);
    uint64_t high = draw(seed, epoch, 0, ROUNDS), low = draw(seed, epoch, 1, ROUNDS);
    return (int64_t)((high << 32 | low) % (uint64_t)n);
}
