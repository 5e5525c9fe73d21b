/* Writes tokenizers that gptd has made, in the format that it reads: tokenizer.json, which Hugging
 * Face's tokenizers and transformers load unchanged. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "model/tokenizer_merges.h"

struct tokenizer_parts {
    const struct token_list *tokens; /* ids of everything, special tokens too */
    const int32_t *specials;         /* ids */
    int32_t n_specials;
    const struct merge_list *merges; /* NULL: a character tokenizer */
    const struct tokenizer *cutter;  /* whose pre-tokenizer steps it has; NULL: none */
};

/* Appends the text of tokenizer.json. */
bool tokenizer_parts_json(const struct tokenizer_parts *p, struct buf *out, struct error *err)
    MUST_CHECK;
/* Writes DIR/tokenizer.json and DIR/tokenizer_config.json (the class that transformers needs to
 * know, and `eos`, which may be NULL: what stands between documents, so that a text from nothing
 * begins with it, as GPT-2's does). The directory is made. */
bool tokenizer_write(const char *dir, const struct buf *json, const char *eos, struct error *err)
    MUST_CHECK;
