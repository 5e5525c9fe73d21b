/* Token streams for training: documents of token ids with a loss mask, in order, and which of them a step sees.
 * Read-only after open: the order of everything is a pure function of (seed, epoch, index), so that
 * training resumes at any step without replaying.
 *
 * Sources: text files and globs; JSONL (`text`; `prompt` + `completion`; `messages`, loss on the
 * assistant's part alone, through the model's chat template); token shards (`gptd data`), memory-mapped. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/gpt_train.h"
#include "model/tokenizer.h"

struct dataset;

enum dataset_split { SPLIT_TRAIN, SPLIT_VALIDATION };

struct dataset_options {
    const char *const *inputs; /* paths and globs; a directory of token shards; n_inputs */
    int32_t n_inputs;
    const struct tokenizer *tokenizer; /* not needed for shards */
    const struct chat_template *chat;  /* for `messages`; may be NULL */
    double val_fraction;       /* of documents (of text, where there is one document); 0: none */
    int64_t block_size;        /* T: tokens of a training sequence */
    int64_t vocab_size;        /* ids must be below */
    bool keep_documents_apart; /* attention and positions do not cross documents in a packed sequence */
    uint64_t seed;
};

/* Errors name file, line and byte offset: not UTF-8, empty, shorter than a block, bad JSONL. */
bool dataset_open(const struct dataset_options *o, struct dataset **out, struct error *err) MUST_CHECK;
void dataset_close(struct dataset *ds); /* NULL-safe */

int64_t dataset_tokens(const struct dataset *ds, enum dataset_split split);
int64_t dataset_documents(const struct dataset *ds, enum dataset_split split);
/* Training sequences (of block_size + 1 tokens) in one epoch; at least 1 for SPLIT_TRAIN. */
int64_t dataset_sequences(const struct dataset *ds, enum dataset_split split);
/* SHA-256 (hex) of the tokens and masks: resuming on other data is an error. */
const char *dataset_fingerprint(const struct dataset *ds);

/* Adds sequence `index` (0, 1, 2, ... without end: epoch = index / sequences, each epoch in an order of its own by
 * seed; SPLIT_VALIDATION: in file order) to `rows`: block_size rows in one span, or one span per document. Targets are
 * the next tokens; -1 where the mask says no loss, and at a document's last token when documents are kept apart.
 * Returns the number of targets with a loss; -1 when there is no room in rows. */
int64_t dataset_add(const struct dataset *ds, enum dataset_split split, int64_t index,
                    struct gpt_rows *rows, const struct gpt_train_options *o);
