/* GGUF's quantized types beside q8_0 and q4_0, packed for products: q4_1, q5_0, q5_1, q4_K,
 * q5_K, q6_K. Nothing of what a file says is lost, and no byte is added: codes keep their 4, 5
 * or 6 bits, scales their 6, 8 or 16.
 *
 * A panel (32 outputs) is a stream of steps, 32 inputs each. A step's codes,
 * inputs in groups of four, group g = 0..7:
 *   nibbles u8 [4][PANEL][4]  the low four bits: of group g < 4 in the low nibbles of row
 *                             g, of group g + 4 in the high ones
 *   5 bits  u8 [PANEL][4]     bit g: the fifth bit of group g
 *   6 bits  u8 [2][PANEL][4]  bits 2j and 2j + 1 of row h: the upper two of group 2j + h
 * q4_1, q5_0 and q5_1 have after each step's codes f16 scales [PANEL] and, but for q5_0, f16 minima
 * [PANEL]. q4_K, q5_K and q6_K have before the codes of every eight steps (256 inputs, GGUF's
 * block)
 *   q4_K, q5_K   f16 d [PANEL], f16 dmin [PANEL], u8 [12][PANEL]:
 *                GGUF's packed 6-bit scales and minima
 *   q6_K         f16 d [PANEL], i8 [16][PANEL]: scales of 16 inputs each
 *
 * A weight means scale * (code - offset) + minimum, as in model/dtype.c. A product with a row of
 * int8 codes (kernels.h) adds for each step, or half step with q6_K,
 *   out += float(sum of x (code - offset)) * x scale * scale,
 *   then out += float(sum of x) * x scale * minimum
 * where the sums are exact, products are rounded once each and additions are fused: the
 * same bits from every instruction set. */
#pragma once

#include <string.h>

#include "cpu/kernels.h"

enum {
    KQUANT_SUPER = 8,                   /* steps that share a head */
    KQUANT_NIBBLE_BYTES = PANEL * QUANT_BLOCK / 2,
    KQUANT_ROW_BYTES = PANEL * 4,       /* a group of all outputs */
};

/* Each of the types, as DTYPE_ names it. */
#define KQUANT_TYPES(X) X(Q4_1) X(Q5_0) X(Q5_1) X(Q4_K) X(Q5_K) X(Q6_K)

struct kquant {
    int32_t bits;
    int32_t offset;
    bool super;         /* a head for eight steps, else scales after each */
    bool minimum;
    int32_t n_scales;   /* of a step: q6_K has two */
    int32_t code_bytes; /* of a step */
    int32_t head_bytes; /* of eight steps, with `super` */
    int32_t step_bytes; /* on average */
};

/* A constant where the type is one. */
static inline __attribute__((always_inline)) struct kquant kquant_of(enum dtype type)
{
    const bool super = type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K;
    const int32_t bits = type == DTYPE_Q6_K ? 6 : type == DTYPE_Q4_1 || type == DTYPE_Q4_K ? 4 : 5;
    struct kquant q = {
        .bits = bits,
        .offset = type == DTYPE_Q6_K ? 32 : type == DTYPE_Q5_0 ? 16 : 0,
        .super = super,
        .minimum = type != DTYPE_Q6_K && type != DTYPE_Q5_0,
        .n_scales = type == DTYPE_Q6_K ? 2 : 1,
        .code_bytes = PANEL * QUANT_BLOCK / 8 * bits,
        .head_bytes = type == DTYPE_Q6_K ? PANEL * (2 + 16) : PANEL * (2 + 2 + 12),
    };
    q.step_bytes = q.code_bytes + (super ? q.head_bytes / KQUANT_SUPER
                                         : PANEL * (q.minimum ? 4 : 2));
    return q;
}

/* Where the codes of a panel's step begin, and what its scales lie in: the head,
 * or its own scales. */
static inline __attribute__((always_inline)) const uint8_t *
kquant_codes(const struct kquant q, const uint8_t *panel, int64_t step)
{
    if (!q.super) return panel + step * q.step_bytes;
    return panel + step / KQUANT_SUPER * KQUANT_SUPER * q.step_bytes + q.head_bytes +
           step % KQUANT_SUPER * q.code_bytes;
}

static inline __attribute__((always_inline)) const uint8_t *
kquant_head(const struct kquant q, const uint8_t *panel, int64_t step)
{
    if (!q.super) return panel + step * q.step_bytes + q.code_bytes;
    return panel + step / KQUANT_SUPER * KQUANT_SUPER * q.step_bytes;
}

/* kquant.c: one type at a time, plain C. */
bool kquant_has(enum dtype type);
/* Input k's code of output n, without its offset. */
int32_t kquant_code(const struct kquant q, const uint8_t *codes, int32_t k, int32_t n);
/* Of output n in a step: of its inputs 0..15 (half 0) or 16..31. */
struct kquant_scale { float scale, minimum; };
struct kquant_scale kquant_scale(const struct kquant q, const uint8_t *head, int64_t step,
                                 int32_t half, int32_t n);
/* Output n of a panel from a row of GGUF's blocks, and back as dtype_to_f32 would read it. */
void kquant_write_row(enum dtype type, uint8_t *panel, int64_t n, int64_t n_in, const uint8_t *src);
void kquant_read_row(enum dtype type, const uint8_t *panel, int64_t n, int64_t n_in, float *out);
