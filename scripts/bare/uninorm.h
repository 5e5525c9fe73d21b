/* No Unicode tables: see README.md. */
#pragma once

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#define UNINORM_NFC NULL
static inline uint8_t *u8_normalize(const void *form, const uint8_t *s, size_t n, uint8_t *out,
                                    size_t *n_out)
{
    errno = ENOSYS;
    return NULL;
}
