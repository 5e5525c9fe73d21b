/* What the exporters of tokenizers share. */
#pragma once

#include "base/buf.h"
#include "model/tokenizer_internal.h"

/* The string that files have for the token, into `out` (replacing what is there): GPT-2's alphabet
 * for byte-level models, U+2581 for spaces in others, "[PADid]" for an id without a token. */
void token_raw(const struct tokenizer *t, int32_t id, struct buf *out);

struct merge_entry {
    uint32_t rank;
    int32_t id, left, right;
};
struct merge_entries { /* malloc'd */
    struct merge_entry *at;
    size_t n;
};
/* The merges in their order; of a scored vocabulary, all that its scores amount to. */
bool merge_entries_list(const struct tokenizer *t, struct merge_entries *out, struct error *err)
    MUST_CHECK;
