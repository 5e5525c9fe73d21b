/* Added tokens: found in the text before it is cut into pieces, leftmost and longest. A trie
 * over their bytes, its edges in one hash map; a position whose byte begins no content costs one
 * table look-up. Matching rules as Hugging Face's AddedVocabulary has them: lstrip and rstrip
 * take the white space beside the token with it, single_word refuses a match inside a word. */
#include <stdlib.h>
#include <string.h>
#include <unictype.h>

#include "base/utf8.h"
#include "model/tokenizer_internal.h"

bool added_set_init(struct added_set *set, size_t n_bytes)
{
    set->accept = malloc((n_bytes + 1) * sizeof *set->accept);
    if (!set->accept || !pair_map_init(&set->edges, n_bytes)) {
        added_set_free(set);
        return false;
    }
    set->accept[0] = -1;
    set->n_nodes = 1;
    return true;
}

void added_set_free(struct added_set *set)
{
    free(set->accept);
    pair_map_free(&set->edges);
    *set = (struct added_set){0};
}

static uint64_t edge(int32_t node, char byte) { return (uint64_t)node << 8 | (uint8_t)byte; }

void added_set_add(struct added_set *set, const char *content, size_t n, int32_t id)
{
    if (n == 0) return;
    int32_t node = 0;
    set->first[(uint8_t)content[0]] = true;
    for (size_t i = 0; i < n; i++) {
        const struct pair_slot *next = pair_map_get(&set->edges, edge(node, content[i]));
        if (next) {
            node = next->id;
            continue;
        }
        pair_map_put(&set->edges, edge(node, content[i]), 0, set->n_nodes);
        set->accept[set->n_nodes] = -1;
        node = set->n_nodes++;
    }
    if (set->accept[node] < 0) set->accept[node] = id; /* of equal contents the first counts */
}

/* The character before position `at` (> 0) of valid UTF-8. */
static uint32_t char_before(const char *s, size_t at, size_t *start)
{
    uint32_t cp;
    size_t i = at - 1;
    while (((uint8_t)s[i] & 0xC0) == 0x80) i--;
    utf8_decode(s + i, at - i, &cp);
    *start = i;
    return cp;
}

static bool is_word(uint32_t cp)
{
    const uint32_t mask = UC_CATEGORY_MASK_M | UC_CATEGORY_MASK_Nd | UC_CATEGORY_MASK_Pc;
    return uc_is_property_alphabetic(cp) || uc_is_general_category_withtable(cp, mask) ||
           uc_is_property_join_control(cp);
}

static bool stands_alone(const char *s, size_t n, size_t begin, size_t end)
{
    size_t start;
    uint32_t cp;
    if (begin > 0 && is_word(char_before(s, begin, &start))) return false;
    return end == n || (utf8_decode(s + end, n - end, &cp), !is_word(cp));
}

/* The longest enabled content at s[at..n), its length in *length; -1 when there is none. */
static int32_t match_at(const struct encoder *e, const struct added_set *set, const char *s,
                        size_t n, size_t at, size_t *length)
{
    int32_t node = 0, found = -1;
    for (size_t i = at; i < n; i++) {
        const struct pair_slot *next = pair_map_get(&set->edges, edge(node, s[i]));
        if (!next) break;
        node = next->id;
        int32_t id = set->accept[node];
        if (id < 0) continue;
        if (!e->parse_special && e->t->tokens[id].flags & TOKEN_SPECIAL) continue;
        found = id;
        *length = i + 1 - at;
    }
    return found;
}

static size_t strip_left(const char *s, size_t begin, size_t floor)
{
    while (begin > floor) {
        size_t start;
        if (!uc_is_property_white_space(char_before(s, begin, &start))) break;
        begin = start;
    }
    return begin;
}

static size_t strip_right(const char *s, size_t n, size_t end)
{
    while (end < n) {
        uint32_t cp;
        int length = utf8_decode(s + end, n - end, &cp);
        if (!uc_is_property_white_space(cp)) break;
        end += (size_t)length;
    }
    return end;
}

bool added_split(struct encoder *e, const struct added_set *set, const char *s, size_t n,
                 span_fn rest)
{
    if (set->n_nodes <= 1) return n == 0 || rest(e, s, n);
    size_t done = 0; /* all before is pushed */
    for (size_t at = 0; at < n;) {
        size_t length = 0;
        int32_t id = set->first[(uint8_t)s[at]] ? match_at(e, set, s, n, at, &length) : -1;
        if (id < 0) {
            at++;
            continue;
        }
        size_t begin = at, end = at + length;
        uint32_t flags = e->t->tokens[id].flags;
        at = end;
        if (flags & ADDED_SINGLE_WORD && !stands_alone(s, n, begin, end)) continue;
        if (flags & ADDED_LSTRIP) begin = strip_left(s, begin, done);
        if (flags & ADDED_RSTRIP) at = end = strip_right(s, n, end);
        if (begin > done && !rest(e, s + done, begin - done)) return false;
        if (!encoder_push(e, id)) return false;
        e->begun = true;
        done = end;
    }
    return done == n || rest(e, s + done, n - done);
}
