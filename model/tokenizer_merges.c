/* Finding merges: see tokenizer_merges.h. Every pair that was ever seen has a record with its
 * count and the words that it is or was in. A heap has the pairs by count; its entries go out of
 * date and are put right when they come up. */
#include "model/tokenizer_merges.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* ---- tokens ---- */

bool token_list_init(struct token_list *l, int32_t capacity)
{
    *l = (struct token_list){.capacity = capacity};
    arena_init(&l->arena, SIZE_MAX);
    l->text = calloc((size_t)capacity, sizeof *l->text);
    l->n = calloc((size_t)capacity, sizeof *l->n);
    if (l->text && l->n && text_map_init(&l->ids, (size_t)capacity)) return true;
    token_list_free(l);
    return false;
}

void token_list_free(struct token_list *l)
{
    free(l->text);
    free(l->n);
    text_map_free(&l->ids);
    arena_free(&l->arena);
    *l = (struct token_list){0};
}

int32_t token_list_add(struct token_list *l, const char *text, size_t n)
{
    int32_t id = text_map_get(&l->ids, text, n);
    if (id >= 0) return id;
    ASSERT(l->count < l->capacity);
    char *copy = arena_copy(&l->arena, text, n);
    if (!copy) return -1;
    id = l->count++;
    l->text[id] = copy;
    l->n[id] = (uint32_t)n;
    text_map_add(&l->ids, copy, n, id);
    return id;
}

/* ---- pairs ---- */

struct pair {
    uint64_t key;    /* left << 32 | right */
    int64_t count;
    uint32_t *words; /* [n_words] in which it may be */
    uint32_t n_words, capacity;
    int64_t touched; /* the last merge that added to its count */
    bool merged;     /* a rule already */
};

struct entry {
    int64_t count; /* when it was pushed */
    uint64_t key;
    int32_t pair;
};

struct finder {
    struct merge_words *w;
    uint32_t *lengths; /* [n_words] symbols of each word, as merges shorten it */
    struct pair *pairs;
    int32_t n_pairs, pair_capacity;
    struct pair_map by_key; /* -> index */
    struct entry *heap;
    int64_t n_heap, heap_capacity;
    int32_t *touched;  /* pairs that the merge at work has added to */
    int64_t n_touched, touched_capacity;
    int64_t step;
    struct merge_list list;
    int64_t list_capacity;
    struct buf joined;
    bool failed;       /* no memory: everything else is a no-op */
};

/* Room for one more item; the array is left alone when there is no memory. */
static void *grow(struct finder *f, void *array, int64_t n, int64_t *capacity, size_t size)
{
    if (n < *capacity) return array;
    int64_t more = max_i64(64, 2 * *capacity);
    void *grown = realloc(array, (size_t)more * size);
    if (!grown) {
        f->failed = true;
        return array;
    }
    *capacity = more;
    return grown;
}

/* Doubles the table of pairs and indexes them anew. */
static bool grow_pairs(struct finder *f)
{
    int64_t capacity = f->pair_capacity;
    struct pair_map by_key;
    if (capacity > INT32_MAX / 2) return false;
    f->pairs = grow(f, f->pairs, f->n_pairs, &capacity, sizeof *f->pairs);
    if (f->failed || !pair_map_init(&by_key, (size_t)capacity)) return false;
    for (int32_t i = 0; i < f->n_pairs; i++) pair_map_put(&by_key, f->pairs[i].key, 0, i);
    pair_map_free(&f->by_key);
    f->by_key = by_key;
    f->pair_capacity = (int32_t)capacity;
    return true;
}

/* The pair's record, made when it is new; NULL: no memory. */
static struct pair *pair_of(struct finder *f, int32_t left, int32_t right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    const struct pair_slot *slot = f->by_key.slots ? pair_map_get(&f->by_key, key) : NULL;
    if (slot) return &f->pairs[slot->id];
    if (f->n_pairs == f->pair_capacity && !grow_pairs(f)) {
        f->failed = true;
        return NULL;
    }
    struct pair *p = &f->pairs[f->n_pairs];
    *p = (struct pair){.key = key, .touched = -1};
    pair_map_put(&f->by_key, key, 0, f->n_pairs++);
    return p;
}

/* The pair occurs once more in word w. */
static void add_pair(struct finder *f, int32_t left, int32_t right, uint32_t w)
{
    struct pair *p = pair_of(f, left, right);
    if (!p) return;
    p->count += f->w->counts[w];
    if (p->n_words == 0 || p->words[p->n_words - 1] != w) {
        int64_t capacity = p->capacity;
        p->words = grow(f, p->words, p->n_words, &capacity, sizeof *p->words);
        if (f->failed) return;
        p->capacity = (uint32_t)capacity;
        p->words[p->n_words++] = w;
    }
    if (p->touched == f->step) return;
    p->touched = f->step;
    f->touched = grow(f, f->touched, f->n_touched, &f->touched_capacity, sizeof *f->touched);
    if (!f->failed) f->touched[f->n_touched++] = (int32_t)(p - f->pairs);
}

static void remove_pair(struct finder *f, int32_t left, int32_t right, uint32_t w)
{
    struct pair *p = pair_of(f, left, right);
    if (p) p->count -= f->w->counts[w];
}

/* ---- the heap: the highest count first, of equal ones the lowest ids ---- */

static bool before(const struct entry *a, const struct entry *b)
{
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static void push(struct finder *f, int32_t pair)
{
    const struct pair *p = &f->pairs[pair];
    if (p->count <= 0) return;
    f->heap = grow(f, f->heap, f->n_heap, &f->heap_capacity, sizeof *f->heap);
    if (f->failed) return;
    struct entry e = {p->count, p->key, pair};
    int64_t i = f->n_heap++;
    for (; i > 0 && before(&e, &f->heap[(i - 1) / 2]); i = (i - 1) / 2)
        f->heap[i] = f->heap[(i - 1) / 2];
    f->heap[i] = e;
}

static struct entry pop(struct finder *f)
{
    struct entry top = f->heap[0], e = f->heap[--f->n_heap];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < f->n_heap; i = child) {
        if (child + 1 < f->n_heap && before(&f->heap[child + 1], &f->heap[child])) child++;
        if (!before(&f->heap[child], &e)) break;
        f->heap[i] = f->heap[child];
    }
    f->heap[i] = e;
    return top;
}

/* What the last merge has added to comes into the heap. */
static void push_touched(struct finder *f)
{
    for (int64_t i = 0; i < f->n_touched; i++) push(f, f->touched[i]);
    f->n_touched = 0;
}

/* ---- merging ---- */

/* Replaces left right by id in one word, from its beginning; what was and what is now beside it
 * is counted. */
static void merge_word(struct finder *f, uint32_t w, int32_t left, int32_t right, int32_t id)
{
    int32_t *s = f->w->symbols + f->w->starts[w];
    uint32_t n = f->lengths[w], out = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (s[i] != left || i + 1 == n || s[i + 1] != right) {
            s[out++] = s[i];
            continue;
        }
        if (out > 0) {
            remove_pair(f, s[out - 1], left, w);
            add_pair(f, s[out - 1], id, w);
        }
        i++;
        if (i + 1 < n) {
            remove_pair(f, right, s[i + 1], w);
            add_pair(f, id, s[i + 1], w);
        }
        s[out++] = id;
    }
    f->lengths[w] = out;
}

/* The token that the pair makes; -1: no memory. */
static int32_t join(struct finder *f, struct token_list *tokens, int32_t left, int32_t right)
{
    buf_clear(&f->joined);
    buf_append(&f->joined, tokens->text[left], tokens->n[left]);
    buf_append(&f->joined, tokens->text[right], tokens->n[right]);
    return f->joined.failed ? -1 : token_list_add(tokens, f->joined.data, f->joined.len);
}

static void note_merge(struct finder *f, int32_t left, int32_t right)
{
    f->list.at = grow(f, f->list.at, f->list.n, &f->list_capacity, sizeof *f->list.at);
    if (!f->failed) f->list.at[f->list.n++] = (struct merge){left, right};
}

/* Merges the pair wherever it is. */
static void merge_pair(struct finder *f, int32_t index, struct token_list *tokens)
{
    struct pair *p = &f->pairs[index];
    int32_t left = (int32_t)(p->key >> 32), right = (int32_t)(uint32_t)p->key;
    if ((int64_t)tokens->n[left] + tokens->n[right] > TOKENIZER_MAX_TEXT) return;
    int32_t id = join(f, tokens, left, right);
    uint32_t *words = p->words, n_words = p->n_words;
    f->failed |= id < 0;
    if (!p->merged) note_merge(f, left, right);
    p->merged = true;
    /* Its list is taken away: merging may put the pair onto a new one. */
    p->words = NULL;
    p->n_words = p->capacity = 0;
    f->step++;
    for (uint32_t i = 0; i < n_words && !f->failed; i++) merge_word(f, words[i], left, right, id);
    free(words);
    f->pairs[index].count = 0; /* pairs may have moved */
    push_touched(f);
}

static bool start(struct finder *f)
{
    struct merge_words *w = f->w;
    f->lengths = malloc((size_t)w->n_words * sizeof *f->lengths);
    if (!f->lengths) return false;
    for (int64_t i = 0; i < w->n_words && !f->failed; i++) {
        const int32_t *s = w->symbols + w->starts[i];
        f->lengths[i] = (uint32_t)(w->starts[i + 1] - w->starts[i]);
        for (uint32_t k = 0; k + 1 < f->lengths[i]; k++) add_pair(f, s[k], s[k + 1], (uint32_t)i);
    }
    push_touched(f);
    return !f->failed;
}

static void finder_free(struct finder *f)
{
    for (int32_t i = 0; i < f->n_pairs; i++) free(f->pairs[i].words);
    free(f->pairs);
    pair_map_free(&f->by_key);
    free(f->lengths);
    free(f->heap);
    free(f->touched);
    buf_free(&f->joined);
}

bool merges_find(struct merge_words *w, int64_t min_count, struct token_list *tokens,
                 struct merge_list *out, struct error *err)
{
    struct finder f = {.w = w};
    ASSERT(min_count >= 1);
    *out = (struct merge_list){0};
    if (w->n_words > UINT32_MAX)
        return error_set(err, ERR_TOO_LARGE, NULL, "%lld distinct words, over 2^32",
                         (long long)w->n_words);
    buf_init(&f.joined, SIZE_MAX);
    if (w->n_words > 0) f.failed = !start(&f);
    while (!f.failed && tokens->count < tokens->capacity && f.n_heap > 0) {
        struct entry top = pop(&f);
        if (top.count != f.pairs[top.pair].count) {
            push(&f, top.pair);
            continue;
        }
        if (top.count < min_count) break;
        merge_pair(&f, top.pair, tokens);
    }
    finder_free(&f);
    if (!f.failed) {
        *out = f.list;
        return true;
    }
    free(f.list.at);
    return error_set(err, ERR_MEMORY, NULL, "no memory to find merges in %lld words",
                     (long long)w->n_words);
}
