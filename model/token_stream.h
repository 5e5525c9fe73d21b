/* A stream of token ids with the documents it consists of and a mask of the tokens to learn: the
 * one form that data have, whether they were read into memory or lie in mapped shards.
 *
 * Positions count from 0 through all parts; a document lies in one part. Read-only: any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

/* A run of documents: one shard, or all that was read into memory. */
struct token_part {
    const void *ids;        /* [n_tokens] u16 or u32, little-endian */
    const uint64_t *starts; /* [n_documents] where each document begins; starts[0] = 0 */
    const uint8_t *loss;    /* [ceil(n_tokens / 8)] bit i % 8 of byte i / 8: token i is a target;
                               NULL: all are */
    int64_t n_tokens, n_documents;
    int32_t id_bytes;       /* 2 or 4 */
    struct file_map map;    /* of a shard; else empty, and the arrays are malloc'd */
};

struct token_stream {
    struct token_part *parts; /* [n_parts] malloc'd */
    int64_t *first;           /* [n_parts + 1] position of each part's first token */
    int64_t n_parts, n_tokens, n_documents;
    bool has_mask;
};

/* Appends a part, which the stream owns from here; on failure (ERR_MEMORY) the caller does. */
bool token_stream_append(struct token_stream *s, const struct token_part *part, struct error *err)
    MUST_CHECK;
void token_part_free(struct token_part *p);
void token_stream_free(struct token_stream *s); /* all its parts, too */
/* Bytes of memory that its tokens take; 0 for what is mapped. */
int64_t token_stream_memory(const struct token_stream *s);

/* Ids of tokens [at, at + n) to `out`. */
void token_stream_read(const struct token_stream *s, int64_t at, int64_t n, int32_t *out);
/* Sets targets[i] = -1 where token at + i is not to be learned; returns how many remain. */
int64_t token_stream_mask(const struct token_stream *s, int64_t at, int64_t n, int32_t *targets);
/* The position behind the last token of the document that `at` lies in. */
int64_t token_stream_document_end(const struct token_stream *s, int64_t at);

/* ---- Building a part in memory ---- */

struct token_builder {
    struct token_part part;  /* its arrays are the builder's */
    int64_t capacity, document_capacity;
    bool has_mask;
};

/* vocab_size decides on the width of ids. */
void token_builder_init(struct token_builder *b, int64_t vocab_size);
/* Appends a document of n > 0 tokens; loss [n] bytes, 0: not a target; NULL: all are. */
bool token_builder_add(struct token_builder *b, const int32_t *ids, const uint8_t *loss, int64_t n,
                       struct error *err) MUST_CHECK;
/* The part, for the caller to free; the builder is empty after. Without a mask loss is NULL. */
struct token_part token_builder_take(struct token_builder *b);
void token_builder_free(struct token_builder *b);
