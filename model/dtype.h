/* Element types: of files (all of them) and of computation (f32, bf16). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    /* GGUF's block formats: `block` elements share one scale (see dtype.c for layouts). */
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    N_DTYPES,
};

struct dtype_info {
    const char *name;     /* "f32", "q4_K", ... as GGUF and users write it, lower-case letter q */
    int32_t block;        /* elements a block; 1 for plain types */
    int32_t block_bytes;  /* bytes a block */
};

const struct dtype_info *dtype_info(enum dtype dtype);
bool dtype_parse(const char *name, enum dtype *out); /* case-insensitive */

/* Bytes of n elements in consecutive blocks; n must be a multiple of the block. */
int64_t dtype_bytes(enum dtype dtype, int64_t n);

/* n elements (a multiple of the block) to f32. `src` may be unaligned. */
void dtype_to_f32(enum dtype dtype, const void *src, int64_t n, float *dst);

/* Scalar conversions; to bf16 and f16 rounds to nearest even, NaN stays NaN. */
static inline float bf16_to_f32(uint16_t h)
{
    union { uint32_t u; float f; } v = {.u = (uint32_t)h << 16};
    return v.f;
}

static inline uint16_t f32_to_bf16(float f)
{
    union { float f; uint32_t u; } v = {.f = f};
    if ((v.u & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)((v.u + 0x7FFF + (v.u >> 16 & 1)) >> 16);
}

float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);

#ifdef __cplusplus
}
#endif
