/* Streams of tokens: see token_stream.h. */
#include "model/token_stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* ---- parts ---- */

void token_part_free(struct token_part *p)
{
    if (p->map.data) {
        file_map_close(&p->map);
    } else {
        free((void *)p->ids);
        free((void *)p->starts);
        free((void *)p->loss);
    }
    *p = (struct token_part){0};
}

bool token_stream_append(struct token_stream *s, const struct token_part *part, struct error *err)
{
    size_t n = (size_t)s->n_parts;
    struct token_part *parts = realloc(s->parts, (n + 1) * sizeof *parts);
    if (parts) s->parts = parts;
    int64_t *first = realloc(s->first, (n + 2) * sizeof *first);
    if (first) s->first = first;
    if (!parts || !first) return error_set(err, ERR_MEMORY, NULL, "no memory for %zu shards", n);
    s->parts[n] = *part;
    s->first[n] = s->n_tokens;
    s->n_parts++;
    s->n_tokens += part->n_tokens;
    s->n_documents += part->n_documents;
    s->first[n + 1] = s->n_tokens;
    s->has_mask |= part->loss != NULL;
    return true;
}

static int64_t part_memory(const struct token_part *p)
{
    if (p->map.data) return 0;
    return p->n_tokens * p->id_bytes + p->n_documents * (int64_t)sizeof *p->starts
           + (p->loss ? ceil_div(p->n_tokens, 8) : 0);
}

int64_t token_stream_memory(const struct token_stream *s)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < s->n_parts; i++) bytes += part_memory(&s->parts[i]);
    return bytes;
}

void token_stream_free(struct token_stream *s)
{
    for (int64_t i = 0; i < s->n_parts; i++) token_part_free(&s->parts[i]);
    free(s->parts);
    free(s->first);
    *s = (struct token_stream){0};
}

/* ---- reading ---- */

/* The part that position `at` lies in. */
static int64_t part_at(const struct token_stream *s, int64_t at)
{
    ASSERT(at >= 0 && at < s->n_tokens);
    int64_t low = 0, high = s->n_parts;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (s->first[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

static void read_ids(const struct token_part *p, int64_t at, int64_t n, int32_t *out)
{
    if (p->id_bytes == 2) {
        const uint16_t *ids = (const uint16_t *)p->ids + at;
        for (int64_t i = 0; i < n; i++) out[i] = ids[i];
    } else {
        const uint32_t *ids = (const uint32_t *)p->ids + at;
        for (int64_t i = 0; i < n; i++) out[i] = (int32_t)ids[i];
    }
}

void token_stream_read(const struct token_stream *s, int64_t at, int64_t n, int32_t *out)
{
    if (n == 0) return;
    ASSERT(n > 0 && n <= s->n_tokens - at);
    for (int64_t part = part_at(s, at); n > 0; part++) {
        int64_t here = min_i64(n, s->first[part + 1] - at);
        read_ids(&s->parts[part], at - s->first[part], here, out);
        at += here;
        out += here;
        n -= here;
    }
}

static int64_t mask_part(const struct token_part *p, int64_t at, int64_t n, int32_t *targets)
{
    if (!p->loss) return n;
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        bool learn = p->loss[(at + i) / 8] >> (at + i) % 8 & 1;
        if (!learn) targets[i] = -1;
        kept += learn;
    }
    return kept;
}

int64_t token_stream_mask(const struct token_stream *s, int64_t at, int64_t n, int32_t *targets)
{
    if (!s->has_mask || n == 0) return n;
    ASSERT(n > 0 && n <= s->n_tokens - at);
    int64_t kept = 0;
    for (int64_t part = part_at(s, at); n > 0; part++) {
        int64_t here = min_i64(n, s->first[part + 1] - at);
        kept += mask_part(&s->parts[part], at - s->first[part], here, targets);
        at += here;
        targets += here;
        n -= here;
    }
    return kept;
}

int64_t token_stream_document_end(const struct token_stream *s, int64_t at)
{
    int64_t part = part_at(s, at);
    const struct token_part *p = &s->parts[part];
    uint64_t inside = (uint64_t)(at - s->first[part]);
    int64_t low = 0, high = p->n_documents;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (p->starts[middle] <= inside) low = middle;
        else high = middle;
    }
    /* starts[high] lies behind `inside`; in a damaged shard maybe behind its end, too. */
    uint64_t n = (uint64_t)p->n_tokens, end = high < p->n_documents ? p->starts[high] : n;
    return s->first[part] + (int64_t)(end < n ? end : n);
}

/* ---- building ---- */

void token_builder_init(struct token_builder *b, int64_t vocab_size)
{
    *b = (struct token_builder){.part = {.id_bytes = vocab_size <= 1 << 16 ? 2 : 4}};
}

static bool grow(const void **array, int64_t n, int64_t size)
{
    int64_t bytes;
    if (!checked_mul(n, size, &bytes)) return false;
    void *grown = realloc((void *)*array, (size_t)bytes);
    if (grown) *array = grown;
    return grown != NULL;
}

/* Room for n more tokens and one more document. */
static bool reserve(struct token_builder *b, int64_t n)
{
    int64_t need, capacity;
    if (!checked_add(b->part.n_tokens, n, &need)) return false;
    if (need > b->capacity) {
        capacity = max_i64(need, b->capacity + b->capacity / 2);
        capacity = round_up(max_i64(capacity, 4096), 8);
        if (!grow(&b->part.ids, capacity, b->part.id_bytes)) return false;
        const void *loss = b->part.loss;
        if (!grow(&loss, capacity / 8, 1)) return false;
        b->part.loss = loss;
        b->capacity = capacity;
    }
    if (b->part.n_documents == b->document_capacity) {
        capacity = max_i64(64, 2 * b->document_capacity);
        const void *starts = b->part.starts;
        if (!grow(&starts, capacity, sizeof *b->part.starts)) return false;
        b->part.starts = starts;
        b->document_capacity = capacity;
    }
    return true;
}

static void put_ids(const struct token_part *p, const int32_t *ids, int64_t n)
{
    if (p->id_bytes == 2) {
        uint16_t *to = (uint16_t *)p->ids + p->n_tokens;
        for (int64_t i = 0; i < n; i++) to[i] = (uint16_t)ids[i];
    } else {
        uint32_t *to = (uint32_t *)p->ids + p->n_tokens;
        for (int64_t i = 0; i < n; i++) to[i] = (uint32_t)ids[i];
    }
}

bool token_builder_add(struct token_builder *b, const int32_t *ids, const uint8_t *loss, int64_t n,
                       struct error *err)
{
    struct token_part *p = &b->part;
    ASSERT(n > 0);
    if (!reserve(b, n))
        return error_set(err, ERR_MEMORY, NULL, "no memory for %lld tokens; `gptd data` writes "
                         "shards that need not fit into memory", (long long)p->n_tokens);
    ((uint64_t *)p->starts)[p->n_documents++] = (uint64_t)p->n_tokens;
    put_ids(p, ids, n);
    uint8_t *bits = (uint8_t *)p->loss;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = p->n_tokens + i;
        bool learn = !loss || loss[i];
        if (at % 8 == 0) bits[at / 8] = 0;
        bits[at / 8] |= (uint8_t)(learn << at % 8);
        b->has_mask |= !learn;
    }
    p->n_tokens += n;
    return true;
}

/* Gives back the room that was not needed; a smaller block cannot fail to be had. */
static const void *shrink(const void *array, int64_t bytes)
{
    void *smaller = bytes > 0 ? realloc((void *)array, (size_t)bytes) : NULL;
    return smaller ? smaller : array;
}

struct token_part token_builder_take(struct token_builder *b)
{
    struct token_part part = b->part;
    if (!b->has_mask) {
        free((void *)part.loss);
        part.loss = NULL;
    }
    part.ids = shrink(part.ids, part.n_tokens * part.id_bytes);
    part.starts = shrink(part.starts, part.n_documents * (int64_t)sizeof *part.starts);
    part.loss = shrink(part.loss, part.loss ? ceil_div(part.n_tokens, 8) : 0);
    *b = (struct token_builder){.part = {.id_bytes = part.id_bytes}};
    return part;
}

void token_builder_free(struct token_builder *b)
{
    struct token_part part = token_builder_take(b);
    token_part_free(&part);
}
