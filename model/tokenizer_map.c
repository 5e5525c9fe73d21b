/* Two hash maps with open addressing: text -> id, and pair of ids -> merge. Sized once for what
 * the file holds (at most half full), so a lookup is a probe or two in one array. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

static uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t load64(const char *s)
{
    uint64_t v;
    memcpy(&v, s, 8);
    return v;
}

static uint64_t load32(const char *s)
{
    uint32_t v;
    memcpy(&v, s, 4);
    return v;
}

/* Multiply and fold: two overlapping loads cover a short text, a loop what is before them. */
static uint64_t hash_text(const char *s, size_t n)
{
    const uint64_t k0 = 0x9E3779B97F4A7C15, k1 = 0xD1B54A32D192ED03; /* odd, mixed bits */
    uint64_t a, b, h = k0 ^ n;
    if (n >= 8) {
        for (size_t i = 0; i + 16 < n; i += 8) h = mix(h ^ load64(s + i), k1);
        a = load64(s + (n > 16 ? n - 16 : 0));
        b = load64(s + n - 8);
    } else if (n >= 4) {
        a = load32(s);
        b = load32(s + n - 4);
    } else if (n > 0) {
        a = (uint64_t)(uint8_t)s[0] << 16 | (uint64_t)(uint8_t)s[n / 2] << 8 | (uint8_t)s[n - 1];
        b = 0;
    } else {
        a = b = 0;
    }
    return mix(h ^ a, k1 ^ b);
}

/* Slots for n_max entries: a power of two, at least twice as many. */
static size_t n_slots(size_t n_max)
{
    size_t n = 16;
    while (n < 2 * n_max) n *= 2;
    return n;
}

bool text_map_init(struct text_map *m, size_t n_max)
{
    size_t n = n_slots(n_max);
    m->slots = calloc(n, sizeof *m->slots);
    m->mask = n - 1;
    return m->slots != NULL;
}

void text_map_free(struct text_map *m)
{
    free(m->slots);
    *m = (struct text_map){0};
}

/* The slot that holds the text, or the empty one where it would go. */
static struct text_slot *text_slot(const struct text_map *m, const char *text, size_t n)
{
    size_t i = hash_text(text, n) & m->mask;
    for (;; i = (i + 1) & m->mask) {
        struct text_slot *slot = &m->slots[i];
        if (!slot->text || (slot->n == n && memcmp(slot->text, text, n) == 0)) return slot;
    }
}

int32_t text_map_get(const struct text_map *m, const char *text, size_t n)
{
    if (!m->slots) return -1;
    const struct text_slot *slot = text_slot(m, text, n);
    return slot->text ? slot->id : -1;
}

int32_t text_map_add(struct text_map *m, const char *text, size_t n, int32_t id)
{
    struct text_slot *slot = text_slot(m, text, n);
    if (!slot->text) *slot = (struct text_slot){.text = text, .n = (uint32_t)n, .id = id};
    return slot->id;
}

bool pair_map_init(struct pair_map *m, size_t n_max)
{
    size_t n = n_slots(n_max);
    m->slots = malloc(n * sizeof *m->slots);
    m->mask = n - 1;
    if (!m->slots) return false;
    for (size_t i = 0; i < n; i++) m->slots[i] = (struct pair_slot){.key = PAIR_EMPTY};
    return true;
}

void pair_map_free(struct pair_map *m)
{
    free(m->slots);
    *m = (struct pair_map){0};
}

static struct pair_slot *pair_slot(const struct pair_map *m, uint64_t key)
{
    size_t i = mix(key ^ 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03) & m->mask;
    while (m->slots[i].key != key && m->slots[i].key != PAIR_EMPTY) i = (i + 1) & m->mask;
    return &m->slots[i];
}

const struct pair_slot *pair_map_get(const struct pair_map *m, uint64_t key)
{
    const struct pair_slot *slot = pair_slot(m, key);
    return slot->key == PAIR_EMPTY ? NULL : slot;
}

void pair_map_put(struct pair_map *m, uint64_t key, uint32_t rank, int32_t id)
{
    *pair_slot(m, key) = (struct pair_slot){.key = key, .rank = rank, .id = id};
}
