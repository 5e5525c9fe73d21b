/* Normalizers: what a tokenizer does to the text between added tokens before it cuts it into
 * pieces. NFC (Unicode Standard Annex 15) is libunistring's; it sorts long runs of marks in
 * n log n, so no text makes it slow. */
#include <stdlib.h>
#include <string.h>
#include <uninorm.h>

#include "model/tokenizer_internal.h"

/* Characters below U+0300 are their own NFC and combine with nothing below it: nearly every text in
 * a Latin script needs no more than this scan. */
static bool is_plainly_nfc(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)s[i] >= 0xCC) return false;
    return true;
}

static bool apply_nfc(const char *s, size_t n, struct buf *out, struct error *err)
{
    if (is_plainly_nfc(s, n)) {
        buf_append(out, s, n);
        return true;
    }
    size_t n_nfc;
    uint8_t *nfc = u8_normalize(UNINORM_NFC, (const uint8_t *)s, n, NULL, &n_nfc);
    if (!nfc) return error_set(err, ERR_MEMORY, NULL, "no memory to normalize %zu bytes", n);
    buf_append(out, nfc, n_nfc);
    free(nfc);
    return true;
}

static void apply_replace(const struct normalizer *op, const char *s, size_t n, struct buf *out)
{
    const char *end = s + n;
    while (s < end) {
        const char *hit = memmem(s, (size_t)(end - s), op->from, op->n_from);
        buf_append(out, s, (size_t)((hit ? hit : end) - s));
        if (!hit) break;
        buf_append(out, op->to, op->n_to);
        s = hit + op->n_from;
    }
}

bool normalize_once(const struct normalizer *op, const char *s, size_t n, struct buf *out,
                    struct error *err)
{
    switch (op->op) {
    case NORMALIZE_NFC:
        if (!apply_nfc(s, n, out, err)) return false;
        break;
    case NORMALIZE_PREPEND:
        if (n > 0) buf_append(out, op->to, op->n_to);
        buf_append(out, s, n);
        break;
    case NORMALIZE_REPLACE: apply_replace(op, s, n, out); break;
    }
    return buf_check(out, "the normalized text", err);
}

/* The text alternates between two buffers, so that an operation never reads what it writes. */
bool normalize(struct encoder *e, const char **s, size_t *n)
{
    for (int32_t i = 0; i < e->t->n_normalizers; i++) {
        const struct normalizer *op = &e->t->normalizers[i];
        if (op->op == NORMALIZE_NFC && is_plainly_nfc(*s, *n)) continue;
        buf_clear(&e->spare);
        if (!normalize_once(op, *s, *n, &e->spare, e->err)) return false;
        struct buf swap = e->spare;
        e->spare = e->normalized;
        e->normalized = swap;
        *s = e->normalized.data ? e->normalized.data : "";
        *n = e->normalized.len;
    }
    return true;
}
