/* Adding f32 sums to a bf16 gradient, rounded stochastically: up with the odds that keep the mean,
 * so that what many micro-batches add is not lost below the last bit. Plain C on whole rows of 32,
 * which the compiler turns into the vectors of the file that includes this; integers throughout but
 * for the addition, so every instruction set has the same bits.
 *
 * Who includes it has defined struct philox_keys, philox_keys_init(keys, key) and
 * random_words(counter, keys, words): PANEL words of Philox from `counter` on, in order, to 64-byte
 * aligned memory. A word's low half goes to the even one of a pair, its high half to the odd. */
#pragma once

#include "cpu/kernels.h"

enum { NOISE_STREAM = 0x67726164 }; /* apart from dropout's counters */

static void pair_noise(const struct bf16_tile *t, const struct philox_keys *keys, int64_t pair,
                       uint32_t noise[PANEL])
{
    uint64_t first = (uint64_t)(t->pair0 + pair) * (PANEL / 4);
    uint32_t counter[4] = {(uint32_t)first, (uint32_t)(first >> 32), t->part, NOISE_STREAM};
    random_words(counter, keys, noise);
}

/* x's upper half after 16 bits of noise were added below it; NaN stays NaN. */
static inline uint32_t round_noisy(float x, uint32_t noise)
{
    union { float f; uint32_t u; } v = {.f = x};
    uint32_t nan = (v.u & 0x7FFFFFFF) > 0x7F800000 ? 0xFFFFFFFFu : 0;
    return (((v.u + noise) & ~nan) | (0x7FC00000 & nan)) >> 16;
}

static inline float word_float(uint32_t bits)
{
    union { uint32_t u; float f; } v = {.u = bits};
    return v.f;
}

static void bf16_add(const struct bf16_tile *t)
{
    static const float nothing[PANEL]; /* beside the tile's first or last row: changes no bf16 */
    int64_t end = t->k0 + t->rows;
    struct philox_keys keys;
    philox_keys_init(&keys, (const uint32_t[]){(uint32_t)t->key, (uint32_t)(t->key >> 32)});
    for (int64_t pair = t->k0 / 2; 2 * pair < end; pair++) {
        const float *even = 2 * pair >= t->k0 ? t->tile + (2 * pair - t->k0) * PANEL : nothing;
        const float *odd = 2 * pair + 1 < end ? t->tile + (2 * pair + 1 - t->k0) * PANEL : nothing;
        uint32_t *words = t->panel + pair * PANEL;
        _Alignas(64) uint32_t noise[PANEL];
        pair_noise(t, &keys, pair, noise);
        for (int j = 0; j < PANEL; j++) {
            float low = word_float(words[j] << 16) + even[j];
            float high = word_float(words[j] & 0xFFFF0000) + odd[j];
            words[j] = round_noisy(low, noise[j] & 0xFFFF) |
                       round_noisy(high, noise[j] >> 16) << 16;
        }
    }
}
