/* The weight version: a digest of what distinguishes one set of weights from another, in
 * milliseconds whatever the size. */
#include <openssl/evp.h>
#include <stdio.h>

#include "base/checked.h"
#include "model/checkpoint_internal.h"

enum { SAMPLES = 256, SAMPLE_BYTES = 4096 };

/* Size, header and SAMPLES evenly spaced pieces of the data (all of it when it is small). */
static void digest_file(EVP_MD_CTX *ctx, const uint8_t *data, size_t size, size_t header)
{
    uint64_t n = size;
    ASSERT(header <= size);
    EVP_DigestUpdate(ctx, &n, sizeof n);
    EVP_DigestUpdate(ctx, data, header);
    size_t room = size - header;
    if (room <= (size_t)SAMPLES * SAMPLE_BYTES) {
        EVP_DigestUpdate(ctx, data + header, room);
        return;
    }
    for (size_t i = 0; i < SAMPLES; i++) {
        /* The last piece ends with the file; room * i fits: files are below 2^55 bytes. */
        size_t at = (room - SAMPLE_BYTES) * i / (SAMPLES - 1);
        EVP_DigestUpdate(ctx, data + header + at, SAMPLE_BYTES);
    }
}

static size_t gguf_header_size(const struct gguf *g)
{
    size_t first = g->map.size;
    for (size_t i = 0; i < g->n_tensors; i++)
        first = (size_t)min_i64((int64_t)first, g->tensors[i].data - g->map.data);
    return first;
}

void checkpoint_fingerprint(const struct checkpoint *ck, char out[17])
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    ASSERT(ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL));
    if (ck->gguf)
        digest_file(ctx, ck->gguf->map.data, ck->gguf->map.size, gguf_header_size(ck->gguf));
    for (int32_t i = 0; i < ck->n_shards; i++)
        digest_file(ctx, ck->shards[i]->map.data, ck->shards[i]->map.size,
                    ck->shards[i]->header_size);
    ASSERT(EVP_DigestFinal_ex(ctx, digest, NULL));
    EVP_MD_CTX_free(ctx);
    checkpoint_forget(ck);
    for (int i = 0; i < 8; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
}
