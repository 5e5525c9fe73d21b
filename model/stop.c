/* Stop strings over a stream of bytes: see stop.h. Each stop string runs the Knuth-Morris-Pratt
 * automaton; its failure links are found when needed instead of stored, which keeps the state to
 * one integer a string (strings are at most 256 bytes, and most bytes match nothing). */
#include "model/stop.h"

#include <string.h>

/* How many bytes of the string are matched after byte c, when `matched` (< n) were before. */
static size_t advance(const char *s, size_t matched, char c)
{
    if (s[matched] == c) return matched + 1;
    /* The longest k with s[0..k) == the last k bytes of s[0..matched) c. */
    for (size_t k = matched; k > 0; k--)
        if (s[k - 1] == c && memcmp(s, s + matched + 1 - k, k - 1) == 0) return k;
    return 0;
}

/* One byte of text. Sets `matched`, `which` and the final `safe` when it completes a stop
 * string. */
static void push_byte(const struct stop_list *list, struct stop_matcher *m, char c)
{
    size_t longest_match = 0, longest_prefix = 0;
    for (int32_t i = 0; i < list->n; i++) {
        size_t n = list->at[i].n;
        size_t k = advance(list->at[i].bytes, m->state[i], c);
        if (k == n) {
            if (n > longest_match) {
                longest_match = n;
                m->which = i;
            }
            k = 0;
        }
        m->state[i] = (uint16_t)k;
        if (k > longest_prefix) longest_prefix = k;
    }
    m->n_seen++;
    m->matched = longest_match > 0;
    m->safe = m->n_seen - (int64_t)(m->matched ? longest_match : longest_prefix);
}

bool stop_push(const struct stop_list *list, struct stop_matcher *m, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n && !m->matched; i++) push_byte(list, m, bytes[i]);
    return m->matched;
}
