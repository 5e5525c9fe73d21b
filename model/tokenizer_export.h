/* Tokenizers in other clothes: as GGUF metadata, and (those that came from GGUF) as tokenizer.json
 * with tokenizer_config.json. What the other format cannot say is an error, never a tokenizer that
 * cuts text differently. The one exception: that a special token swallows the white space beside it
 * is lost, as it is in llama.cpp's own converter. */
#pragma once

#include "base/buf.h"
#include "base/error.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "model/tokenizer.h"

/* tokenizer.ggml.* for a model of vocab_size rows. Byte-level BPE becomes "gpt2" with merges and
 * the name of its pre-tokenizer; SentencePiece-style BPE becomes "llama", its merges written as
 * scores; characters become a "llama" without merges. ERR_UNSUPPORTED names what GGUF has no words
 * for. (A model without an end of text is written as such; llama.cpp then takes an ordinary
 * token.) */
bool tokenizer_export_gguf(const struct tokenizer *t, int64_t vocab_size, struct gguf_meta *m,
                           struct error *err) MUST_CHECK;
/* The same from a GGUF file: its keys as they are. */
void tokenizer_copy_gguf(const struct gguf *g, struct gguf_meta *m);

/* A tokenizer that was opened from GGUF, as the text of tokenizer.json. */
bool tokenizer_export_json(const struct tokenizer *t, struct buf *out, struct error *err)
    MUST_CHECK;
/* tokenizer_config.json beside it: markers and chat template. */
bool tokenizer_export_config(const struct tokenizer *t, struct buf *out, struct error *err)
    MUST_CHECK;
