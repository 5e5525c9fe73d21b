/* What tokenizer_train.c and tokenizer_char.c share: special tokens, and text without them. */
#pragma once

#include "model/dataset.h"
#include "model/tokenizer_merges.h"

struct special_texts { const char *const *at; int32_t n; };

/* ERR_INVALID for one of less than two characters, given twice, or not UTF-8. */
bool special_texts_check(const struct special_texts *s, struct error *err) MUST_CHECK;
/* Calls `rest` for what lies between special tokens in the text. */
bool special_texts_skip(const struct special_texts *s, const char *text, size_t n,
                        dataset_text_fn rest, void *ctx, struct error *err) MUST_CHECK;
