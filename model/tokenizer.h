/* Text to token ids and back. One tokenizer struct, three kinds: byte-level BPE (GPT-2, Llama-3,
 * Qwen2, SmolLM, StarCoder pre-tokenizers), SentencePiece-style BPE with byte fallback, and
 * character. Read-only after open: every thread may encode at once; scratch is per call.
 * Time is linear in the text (n log n inside one pre-token at the worst). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct gguf;
struct tokenizer;

enum tokenizer_kind { TOKENIZER_BYTE_BPE, TOKENIZER_SENTENCEPIECE, TOKENIZER_CHARACTER };

/* From a model's path: DIR/tokenizer.json, else DIR/vocab.json + merges.txt. *out is NULL (and the
 * result true) when the directory has none: such a model serves token ids only. */
bool tokenizer_open_dir(const char *dir, struct tokenizer **out, struct error *err) MUST_CHECK;
/* From GGUF metadata (tokenizer.ggml.*). The gguf may be closed afterwards. */
bool tokenizer_open_gguf(const struct gguf *g, struct tokenizer **out,
                         struct error *err) MUST_CHECK;
/* From what a model's path names: its directory, or its .gguf file. NULL as above. */
bool tokenizer_open_path(const char *path, struct tokenizer **out, struct error *err) MUST_CHECK;
/* From the bytes of a tokenizer.json (fuzzing, tests); `where` is for messages. */
bool tokenizer_open_json(const char *json, size_t n, const char *where, struct tokenizer **out,
                         struct error *err) MUST_CHECK;
void tokenizer_free(struct tokenizer *t); /* NULL-safe */

enum tokenizer_kind tokenizer_kind(const struct tokenizer *t);
/* "byte-level BPE, gpt2, 50257 tokens" */
const char *tokenizer_description(const struct tokenizer *t);
int32_t tokenizer_vocab_size(const struct tokenizer *t); /* highest id + 1 */
/* -1 when there is none. */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
/* Does the model expect BOS before a text prompt (add_bos_token, post-processor)? */
bool tokenizer_adds_bos(const struct tokenizer *t);
/* All ids that end a reply: eos, eot, <|im_end|> and their kind. Returns the count (<= max). */
int tokenizer_stop_ids(const struct tokenizer *t, int32_t *ids, int max);
/* The id of a special token by its exact text, or -1. */
int32_t tokenizer_special_id(const struct tokenizer *t, const char *text, size_t n);
/* The chat template (Jinja text) that the model carries, or NULL. */
const char *tokenizer_chat_template(const struct tokenizer *t);

struct token_ids { /* malloc'd; free with token_ids_free */
    int32_t *ids;
    size_t n, capacity;
};
void token_ids_free(struct token_ids *ids);
bool token_ids_push(struct token_ids *ids, int32_t id) MUST_CHECK; /* false: out of memory */

enum {
    ENCODE_PARSE_SPECIAL = 1, /* special tokens in the text become their ids; else they are text */
    ENCODE_ADD_BOS = 2,       /* prepend BOS where tokenizer_adds_bos */
};
/* Appends the ids of text (valid UTF-8, n bytes) to *out. ERR_INVALID for invalid UTF-8 and for a
 * character that a character tokenizer does not know (both with the byte offset);
 * ERR_TOO_LARGE when there would be more than max_ids (known early, before all work is done). */
bool tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, int flags,
                      size_t max_ids, struct token_ids *out, struct error *err) MUST_CHECK;
/* The bytes that token `id` stands for in running text (not NUL-terminated, borrowed; special
 * tokens have their text here too). A token may be part of a UTF-8 character. Unknown ids: NULL, *n
 * = 0. */
const char *tokenizer_token_bytes(const struct tokenizer *t, int32_t id, size_t *n);
bool tokenizer_is_special(const struct tokenizer *t, int32_t id);
/* The most bytes of text that any one token can come from: a text of more than max_ids times that
 * cannot fit. INT32_MAX where there is no such bound (tokens that swallow white space, unknown
 * characters fused into one token). */
size_t tokenizer_max_token_bytes(const struct tokenizer *t);

/* Decoding is concatenation of tokens' bytes, with two exceptions kept here: special tokens are
 * left out unless keep_special, and a SentencePiece text loses its one leading space.
 * Streaming decoders start with {0}. */
struct token_decoder { bool started; bool keep_special; };
/* Bytes that `id` adds to the text (borrowed). */
const char *token_decode(const struct tokenizer *t, struct token_decoder *d, int32_t id, size_t *n);
