/* Makes a byte-level BPE from text, as GPT-2's was: the text is cut into words by a pre-tokenizer,
 * and what the words are made of is merged by count (tokenizer_merges.h says how ties are broken).
 *
 * Ids: special tokens, the 256 bytes in the order of their characters (U+0021 first), then merges.
 * Special tokens that the text spells out are cut out of it and count for nothing. The same text
 * gives the same file. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

struct tokenizer_train_options {
    const char *const *inputs; /* text files, JSON lines, globs (see dataset.h) */
    int32_t n_inputs;
    const char *const *specials; /* n_specials; the first is the end of text; NULL and 0: none */
    int32_t n_specials;
    int32_t vocab_size;        /* all of these together; fewer where the text has no more */
    int64_t min_count;         /* of a pair to be merged, at least 1 */
    const char *pretokenizer;  /* "gpt2", "llama3", "qwen2", "gpt4o", ... */
};

struct tokenizer_train_report {
    int64_t text_bytes, words, distinct_words;
    int32_t vocab_size;
    int64_t merges;
};

/* Appends tokenizer.json to *json (see tokenizer_write). */
bool tokenizer_train(const struct tokenizer_train_options *o, struct buf *json,
                     struct tokenizer_train_report *report, struct error *err) MUST_CHECK;
