/* Quantized products in plain C: see kernels.h. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "cpu/kernels.h"

static float scale_of(const uint8_t *scales, int32_t n)
{
    uint16_t h;
    memcpy(&h, scales + 2 * n, sizeof h);
    return f16_to_f32(h);
}

/* Output n's code of input k of a block, without its offset. */
static int32_t code_q8(const uint8_t *w, int32_t k, int32_t n)
{
    return w[k / 4 * PANEL * 4 + n * 4 + k % 4] - 128;
}

static int32_t code_q4(const uint8_t *w, int32_t k, int32_t n)
{
    uint8_t byte = w[k % 16 / 4 * PANEL * 4 + n * 4 + k % 4];
    return (k < 16 ? byte & 15 : byte >> 4) - 8;
}

static inline void matmul(const struct matmul_tile *t,
                          int32_t (*code)(const uint8_t *, int32_t, int32_t), int64_t block_bytes)
{
    const uint32_t *x = t->x;
    const uint8_t *w = t->w;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, w += block_bytes, x += QUANT_WORDS * t->rows)
        for (int32_t r = 0; r < t->rows; r++) {
            float scale;
            memcpy(&scale, &x[8 * t->rows + r], sizeof scale);
            for (int32_t n = 0; n < PANEL; n++) {
                int32_t sum = 0;
                for (int32_t k = 0; k < QUANT_BLOCK; k++)
                    sum += (int8_t)(x[k / 4 * t->rows + r] >> k % 4 * 8) * code(w, k, n);
                float w_scale = scale_of(w + block_bytes - 2 * PANEL, n);
                t->out[r * PANEL + n] = fmaf((float)sum * scale, w_scale, t->out[r * PANEL + n]);
            }
        }
}

static void matmul_q8(const struct matmul_tile *t) { matmul(t, code_q8, Q8_BLOCK_BYTES); }
static void matmul_q4(const struct matmul_tile *t) { matmul(t, code_q4, Q4_BLOCK_BYTES); }

static void quantize_block(uint32_t *out, const uint16_t *x)
{
    int8_t codes[QUANT_BLOCK];
    int32_t sum = 0;
    float largest = 0;
    for (int i = 0; i < QUANT_BLOCK; i++) largest = fmaxf(largest, fabsf(bf16_to_f32(x[i])));
    float inverse = 127.0f / largest, scale = largest / 127.0f;
    if (!(inverse <= FLT_MAX)) inverse = 0; /* all zero, or nearly */
    for (int i = 0; i < QUANT_BLOCK; i++) {
        float code = nearbyintf(bf16_to_f32(x[i]) * inverse);
        codes[i] = (int8_t)(code >= -127 && code <= 127 ? code : 0);
        sum += codes[i];
    }
    memcpy(out, codes, sizeof codes);
    memcpy(out + 8, &scale, sizeof scale);
    memcpy(out + 9, &sum, sizeof sum);
}

static void quantize_row(uint32_t *out, const uint16_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) quantize_block(out + i * QUANT_WORDS, x + i * QUANT_BLOCK);
}

void cpu_quant_kernels_reference(struct cpu_kernels *k)
{
    k->quant_rows = TILE_ROWS;
    k->matmul_q8 = matmul_q8;
    k->matmul_q4 = matmul_q4;
    k->quantize_row = quantize_row;
}
