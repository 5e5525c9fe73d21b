/* A file with one bit wrong, for readers of files. */
#pragma once

#include "base/buf.h"
#include "base/error.h"

/* Opens a copy of the bytes, which has no byte to spare, and closes what came of it. */
typedef bool (*open_copy_fn)(const struct buf *b, struct error *err);

/* Flips each bit in turn: what does not open must say why. Returns how many did not. */
size_t flip_each_bit(struct buf *b, open_copy_fn open_copy);
