/* What the tests of tokenizers share. */
#pragma once

#include "model/tokenizer.h"

/* Fails the test unless the text is these ids. flags: tokenizer_encode's. */
void assert_ids(const struct tokenizer *t, const char *text, int flags, size_t n,
                const int32_t *expected);
#define ASSERT_IDS(t, text, flags, ...)                                                            \
    assert_ids(t, text, flags, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t),                 \
               (int32_t[]){__VA_ARGS__})
