/* SHA-256 as OpenSSL names it: see ../README.md. */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { EVP_MAX_MD_SIZE = 64 };
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;

EVP_MD_CTX *EVP_MD_CTX_new(void);
void EVP_MD_CTX_free(EVP_MD_CTX *c);
const EVP_MD *EVP_sha256(void);
int EVP_DigestInit_ex(EVP_MD_CTX *c, const EVP_MD *md, void *engine);
int EVP_DigestUpdate(EVP_MD_CTX *c, const void *bytes, size_t n);
int EVP_DigestFinal_ex(EVP_MD_CTX *c, unsigned char *digest, unsigned *n);
