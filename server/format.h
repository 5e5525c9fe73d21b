/* Numbers as people read them, for what commands print. */
#pragma once

#include <stdint.h>

#include "base/buf.h"

void format_grouped(struct buf *out, int64_t n);               /* 1,234,567 */
void format_grouped_right(struct buf *out, int64_t n, int width); /* padded on the left */
void format_bytes(struct buf *out, int64_t n);                 /* 1,234,567 bytes (1.2 MiB) */
void format_size(struct buf *out, int64_t n);                  /* 1.2 MiB, 3.45 GiB */
