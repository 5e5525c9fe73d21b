/* From f32 to other element types: see dtype_write.h. Results never take more room than what they
 * are made from, so that going forward in place is safe. */
#include "model/dtype_write.h"

#include <math.h>
#include <string.h>

#include "base/error.h"

enum { Q8_BLOCK = 32 };

bool dtype_is_written(enum dtype dtype)
{
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16 || dtype == DTYPE_Q8_0;
}

/* f16 d, i8 q[32]; value d q. The codes are made with the scale before it is rounded. With a NaN
 * all 32 are: codes have none, and a broken weight is not to become a wrong one. */
static void write_q8_0(const uint8_t *src, uint8_t *dst)
{
    float x[Q8_BLOCK], largest = 0;
    memcpy(x, src, sizeof x);
    for (int i = 0; i < Q8_BLOCK && !isnan(largest); i++)
        if (!(fabsf(x[i]) <= largest)) largest = fabsf(x[i]);
    float d = largest / 127.0f, inverse = d > 0 ? 1.0f / d : 0.0f;
    uint16_t scale = f32_to_f16(d);
    memcpy(dst, &scale, sizeof scale);
    for (int i = 0; i < Q8_BLOCK; i++) {
        /* The inverse of a subnormal scale may be infinite, and zero times that no number. */
        float q = roundf(x[i] * inverse);
        if (isnan(q)) q = 0;
        dst[2 + i] = (uint8_t)(int8_t)fmaxf(-127, fminf(127, q));
    }
}

void dtype_from_f32(enum dtype dtype, const float *src, int64_t n, void *dst)
{
    const uint8_t *from = (const uint8_t *)src;
    uint8_t *to = dst;
    ASSERT(dtype_is_written(dtype) && n % dtype_info(dtype)->block == 0);
    if (dtype == DTYPE_F32) {
        memmove(to, from, (size_t)n * sizeof *src);
        return;
    }
    if (dtype == DTYPE_Q8_0) {
        int32_t bytes = dtype_info(dtype)->block_bytes;
        for (int64_t i = 0; i < n / Q8_BLOCK; i++)
            write_q8_0(from + i * Q8_BLOCK * (int64_t)sizeof(float), to + i * bytes);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, from + i * (int64_t)sizeof f, sizeof f);
        uint16_t h = dtype == DTYPE_BF16 ? f32_to_bf16(f) : f32_to_f16(f);
        memcpy(to + i * (int64_t)sizeof h, &h, sizeof h);
    }
}
