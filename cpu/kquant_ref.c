/* Products with GGUF's quantized types in plain C: see kquant.h. */
#include <math.h>
#include <string.h>

#include "cpu/kquant.h"

/* One step for one row: x and out are the row's first words. */
static void add_step(const struct kquant q, const uint8_t *panel, int64_t step, const uint32_t *x,
                     int32_t rows, float *out)
{
    const uint8_t *codes = kquant_codes(q, panel, step), *head = kquant_head(q, panel, step);
    int32_t inputs = QUANT_BLOCK / q.n_scales;
    float x_scale, x_sum = (float)(int32_t)x[9 * rows];
    memcpy(&x_scale, &x[8 * rows], sizeof x_scale);
    for (int32_t n = 0; n < PANEL; n++)
        for (int32_t half = 0; half < q.n_scales; half++) {
            struct kquant_scale s = kquant_scale(q, head, step, half, n);
            int32_t sum = 0;
            for (int32_t k = half * inputs; k < (half + 1) * inputs; k++) {
                int8_t code = (int8_t)(x[k / 4 * rows] >> k % 4 * 8);
                sum += code * (kquant_code(q, codes, k, n) - q.offset);
            }
            out[n] = fmaf((float)sum * x_scale, s.scale, out[n]);
            if (q.minimum) out[n] = fmaf(x_sum * x_scale, s.minimum, out[n]);
        }
}

static void matmul(const struct matmul_tile *t, enum dtype type)
{
    const uint32_t *x = t->x;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, x += QUANT_WORDS * t->rows)
        for (int32_t r = 0; r < t->rows; r++)
            add_step(kquant_of(type), t->w, s, x + r, t->rows, t->out + r * PANEL);
}

#define PRODUCT(type) \
    static void matmul_##type(const struct matmul_tile *t) { matmul(t, DTYPE_##type); }
KQUANT_TYPES(PRODUCT)

void cpu_kquant_kernels_reference(struct cpu_kernels *k)
{
#define ENTRY(type) k->matmul_kquant[DTYPE_##type] = matmul_##type;
    KQUANT_TYPES(ENTRY)
}
