/* What reading and writing token shards share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define TOKEN_SHARDS_FORMAT "gptd token shards 1"

/* Where the parts of a shard lie, in bytes. */
struct shard_layout {
    int64_t id_bytes, padding; /* ids come first */
    int64_t starts, start_bytes;
    int64_t mask, mask_bytes;
    int64_t total;
};
/* False when counts make no sense or the sizes do not fit 63 bits. */
bool shard_layout(struct shard_layout *l, int64_t n_tokens, int64_t n_documents, int32_t id_bytes,
                  bool has_mask);

