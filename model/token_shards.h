/* Token shards: a data set on disk, encoded once, mapped when used, as large as the disk. What
 * `gptd data` writes.
 *
 *     DIR/train-00000.tokens ...       ids (u16 or u32, little-endian), zeros up to a multiple of
 *     DIR/validation-00000.tokens ...  8 bytes, where each document begins (u64, counted from the
 *                                      shard's first token), and, where some tokens are not to be
 *                                      learned, a bit a token (1: learn it; lowest bit first)
 *     DIR/manifest.json                counts, sizes and SHA-256 of each shard, the tokenizer's
 *                                      fingerprint; written last: a directory without is unfinished
 *
 * A shard ends where a document does. What training sees does not depend on where shards end. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/dataset.h"
#include "model/token_stream.h"

enum { N_DATASET_SPLITS = 2 };
const char *dataset_split_name(enum dataset_split split); /* "train", "validation" */

/* SHA-256 (hex) over the texts of all tokens. */
bool tokenizer_fingerprint(const struct tokenizer *t, char out[65], struct error *err) MUST_CHECK;

struct token_shards_report {
    int64_t files, text_bytes;
    int64_t documents[N_DATASET_SPLITS], tokens[N_DATASET_SPLITS], shards[N_DATASET_SPLITS];
    int32_t id_bytes;
    bool has_mask;
};
/* Encodes the inputs of `o` (block_size and seed do not matter; vocab_size is the tokenizer's) and
 * writes shards of about shard_bytes; one of each split is in memory at a time. The directory is
 * made; one that holds shards already is an error. */
bool token_shards_write(const struct dataset_options *o, const char *dir, int64_t shard_bytes,
                        struct token_shards_report *report, struct error *err) MUST_CHECK;

/* Does the path name a directory with a manifest? */
bool token_shards_is_dir(const char *path);

struct token_shards {
    struct token_stream splits[N_DATASET_SPLITS];
    int64_t vocab_size;       /* of the tokenizer: ids are below, unless a file is damaged */
    char tokenizer[65];       /* its fingerprint */
    char digest[65];          /* SHA-256 (hex) over the digests of all shards */
    struct token_shards_report report; /* as it was when they were written */
};
/* Maps all shards after checking the manifest against the files' sizes. verify: their digests,
 * too, which reads everything. Free with token_shards_close. */
bool token_shards_open(const char *dir, bool verify, struct token_shards *out, struct error *err)
    MUST_CHECK;
void token_shards_close(struct token_shards *s); /* a zeroed struct is fine */
