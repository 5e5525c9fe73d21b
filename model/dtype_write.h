/* From f32 to the element types that gptd writes: the inverse of dtype_to_f32. */
#pragma once

#include "model/dtype.h"

bool dtype_is_written(enum dtype dtype); /* f32, bf16, f16, q8_0 */
/* n elements (a multiple of the block) to dst, which may be src. Rounds to nearest even. q8_0: a
 * block's scale is its largest magnitude / 127, as GGML's reference has it. */
void dtype_from_f32(enum dtype dtype, const float *src, int64_t n, void *dst);
