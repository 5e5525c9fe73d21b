/* SHA-256: see sha256.h. */
#include "model/sha256.h"

#include <openssl/evp.h>
#include <stdio.h>

void sha256_begin(struct sha256 *s)
{
    s->ctx = EVP_MD_CTX_new();
    if (s->ctx && EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) == 1) return;
    EVP_MD_CTX_free(s->ctx);
    s->ctx = NULL;
}

void sha256_update(struct sha256 *s, const void *bytes, size_t n)
{
    if (s->ctx) EVP_DigestUpdate(s->ctx, bytes, n);
}

bool sha256_end(struct sha256 *s, char out[SHA256_HEX], struct error *err)
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    bool ok = s->ctx && EVP_DigestFinal_ex(s->ctx, digest, &n) == 1;
    EVP_MD_CTX_free(s->ctx);
    s->ctx = NULL;
    if (!ok) return error_set(err, ERR_MEMORY, NULL, "no memory for a digest");
    for (unsigned i = 0; out && i < n; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return true;
}
