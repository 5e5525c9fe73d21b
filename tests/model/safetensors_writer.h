/* Puts a safetensors file together from a header text and n data bytes, for tests. */
#pragma once

#include <stdint.h>

#include "base/buf.h"

/* `data` NULL: zeros. */
void safetensors_put(struct buf *b, const char *header, const void *data, size_t n);
