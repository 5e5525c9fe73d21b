/* Makes a character tokenizer from text: one token a distinct character, ids in the order of code
 * points, special tokens (none unless asked for) behind them. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

/* Appends tokenizer.json to *json (see tokenizer_write) and says how many tokens it has. Inputs as
 * in dataset.h. */
bool tokenizer_char_make(const char *const *inputs, int32_t n_inputs, const char *const *specials,
                         int32_t n_specials, struct buf *json, int32_t *vocab_size,
                         struct error *err) MUST_CHECK;
