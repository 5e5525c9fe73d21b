/* The weight version: a digest of what distinguishes one set of weights from another, in
 * milliseconds whatever the size. */
#include <string.h>

#include "base/checked.h"
#include "model/checkpoint_internal.h"
#include "model/sha256.h"

enum { SAMPLES = 256, SAMPLE_BYTES = 4096 };

/* Size, header and SAMPLES evenly spaced pieces of the data (all of it when it is small). */
static void digest_file(struct sha256 *digest, const uint8_t *data, size_t size, size_t header)
{
    uint64_t n = size;
    ASSERT(header <= size);
    sha256_update(digest, &n, sizeof n);
    sha256_update(digest, data, header);
    size_t room = size - header;
    if (room <= (size_t)SAMPLES * SAMPLE_BYTES) {
        sha256_update(digest, data + header, room);
        return;
    }
    for (size_t i = 0; i < SAMPLES; i++) {
        /* The last piece ends with the file; room * i fits: files are below 2^55 bytes. */
        size_t at = (room - SAMPLE_BYTES) * i / (SAMPLES - 1);
        sha256_update(digest, data + header + at, SAMPLE_BYTES);
    }
}

static size_t gguf_header_size(const struct gguf *g)
{
    size_t first = g->map.size;
    for (size_t i = 0; i < g->n_tensors; i++)
        first = (size_t)min_i64((int64_t)first, g->tensors[i].data - g->map.data);
    return first;
}

bool checkpoint_fingerprint(const struct checkpoint *ck, char out[17], struct error *err)
{
    struct sha256 digest;
    char hex[SHA256_HEX];
    sha256_begin(&digest);
    if (ck->gguf)
        digest_file(&digest, ck->gguf->map.data, ck->gguf->map.size, gguf_header_size(ck->gguf));
    for (int32_t i = 0; i < ck->n_shards; i++)
        digest_file(&digest, ck->shards[i]->map.data, ck->shards[i]->map.size,
                    ck->shards[i]->header_size);
    checkpoint_forget(ck);
    if (!sha256_end(&digest, hex, err)) return false;
    memcpy(out, hex, 16);
    out[16] = 0;
    return true;
}
