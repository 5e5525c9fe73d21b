/* Token streams for training: documents of token ids with a loss mask, in order, and which of them
 * a step sees. Read-only after open, any thread. The order of everything is a pure function of
 * (seed, epoch, index), so that training resumes at any step without replaying.
 *
 * Sources:
 *   text files     one document each; the tokenizer's end of text, where a file spells it out
 *                  ("<|endoftext|>"), parts it into several. UTF-8. More than 16 MiB
 *                  without are several documents, too, but with nothing between them
 *   .jsonl .ndjson .json   one document a line: {"text": ...}; {"prompt": ..., "completion": ...},
 *                  loss on the completion alone; {"messages": [{"role", "content"}, ...]}, loss
 *                  on the assistant's parts alone. Other keys are ignored
 *   token shards   a directory written by `gptd data`, memory-mapped (token_shards.h)
 * Each document begins with BOS where the tokenizer adds one and ends with EOS where it has one.
 *
 * The streams are cut into sequences in one of two ways.
 *   As they flow: sequences of block_size tokens and their next ones, across documents. Each epoch
 *   of SPLIT_TRAIN begins at a place of its own within the first block, so that a text that is met
 *   again is cut elsewhere.
 *   Documents kept apart: whole documents, in order, as many as fit into block_size rows; one that
 *   is longer is cut into pieces of block_size. Each is a span of its own: attention and positions
 *   do not cross. Sequences differ in length. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "model/gpt_train.h"
#include "model/tokenizer.h"

struct dataset;

enum dataset_split { SPLIT_TRAIN, SPLIT_VALIDATION };

struct dataset_message {
    const char *role, *content;
    size_t n_content;
    bool unlearned; /* an assistant's whose "weight" is 0: context alone */
};
/* Encodes a conversation as the model's chat template has it: appends its ids, and for each id a
 * byte: 1 where the assistant speaks (its end included) and is learned from, else 0, to `loss`. */
struct dataset_chat {
    bool (*encode)(void *ctx, const struct dataset_message *messages, size_t n,
                   struct token_ids *ids, struct buf *loss, struct error *err);
    void *ctx;
};

struct dataset_options {
    const char *const *inputs; /* paths and globs, or directories of token shards; n_inputs */
    int32_t n_inputs;
    const struct tokenizer *tokenizer; /* not needed for shards */
    const struct dataset_chat *chat;   /* for `messages`; NULL: such lines are an error */
    /* The share of SPLIT_VALIDATION; 0: none; 1: all, and there is nothing to train on. Of
     * documents, chosen at random, the same for every seed; of text files with fewer than 20
     * documents in all, the end of each. Shards are split already. */
    double val_fraction;
    int64_t block_size; /* T: rows of a training sequence, at most */
    int64_t vocab_size; /* ids must be below */
    bool keep_documents_apart;
    uint64_t seed;
};

/* Errors name file, line and byte: not UTF-8, UTF-16, empty, bad JSON, not the keys above; text
 * that is shorter than a block; ids that vocab_size does not cover. */
bool dataset_open(const struct dataset_options *o, struct dataset **out, struct error *err)
    MUST_CHECK;
void dataset_close(struct dataset *ds); /* NULL-safe */

int64_t dataset_tokens(const struct dataset *ds, enum dataset_split split);
int64_t dataset_documents(const struct dataset *ds, enum dataset_split split);
/* Sequences in one epoch; at least 1 for SPLIT_TRAIN. */
int64_t dataset_sequences(const struct dataset *ds, enum dataset_split split);
/* The most spans that one sequence has: 1 unless documents are kept apart. */
int64_t dataset_max_spans(const struct dataset *ds);
/* Some tokens have no loss: there may be sequences without any target. */
bool dataset_has_mask(const struct dataset *ds);
/* Bytes of memory that it takes; 0 for shards, which are mapped. */
int64_t dataset_memory(const struct dataset *ds);
/* SHA-256 (hex) of tokens, masks and documents: resuming on other data is an error. */
const char *dataset_fingerprint(const struct dataset *ds);

enum { DATASET_NO_ROOM = -1, DATASET_BAD_TOKEN = -2 };
/* Adds sequence `index` (0, 1, 2, ... without end: epoch = index / sequences) to `rows`.
 * SPLIT_TRAIN: each epoch in an order of its own by seed; as documents flow, always block_size
 * rows. SPLIT_VALIDATION: in file order; the last sequence holds what is left. Targets are the next
 * tokens; -1 where the mask says no loss.
 * Returns the number of targets with a loss (0 is possible where there is a mask), or, with rows
 * unchanged, DATASET_NO_ROOM, or DATASET_BAD_TOKEN for an id of a damaged shard that is not below
 * vocab_size. */
int64_t dataset_add(const struct dataset *ds, enum dataset_split split, int64_t index,
                    struct gpt_rows *rows, const struct gpt_train_options *o);

/* Every text of files (no shards), in order: each document of a text file, each string of a JSON
 * line. For making tokenizers. */
typedef bool (*dataset_text_fn)(void *ctx, const char *text, size_t n, struct error *err);
bool dataset_visit_texts(const char *const *inputs, int32_t n_inputs, dataset_text_fn visit,
                         void *ctx, struct error *err) MUST_CHECK;
