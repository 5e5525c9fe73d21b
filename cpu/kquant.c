/* GGUF's quantized types, packed and read back: see kquant.h;
 * the files' layouts are in model/dtype.c. */
#include "cpu/kquant.h"

#include "base/error.h"

bool kquant_has(enum dtype type)
{
    switch (type) {
#define KEPT(name) case DTYPE_##name:
        KQUANT_TYPES(KEPT)
#undef KEPT
        return true;
    default: return false;
    }
}

static float load_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return f16_to_f32(h);
}

int32_t kquant_code(const struct kquant q, const uint8_t *codes, int32_t k, int32_t n)
{
    int32_t group = k / 4, at = n * 4 + k % 4;
    int32_t code = codes[group % 4 * KQUANT_ROW_BYTES + at] >> group / 4 * 4 & 15;
    const uint8_t *high = codes + KQUANT_NIBBLE_BYTES + at;
    if (q.bits == 5) code |= (high[0] >> group & 1) << 4;
    if (q.bits == 6) code |= (high[group % 2 * KQUANT_ROW_BYTES] >> group / 2 * 2 & 3) << 4;
    return code;
}

struct kquant_scale kquant_scale(const struct kquant q, const uint8_t *head, int64_t step,
                                 int32_t half, int32_t n)
{
    float d = load_f16(head + 2 * n);
    const uint8_t *p = head + 2 * PANEL + 2 * n, *bytes = head + 4 * PANEL + n;
    int32_t g = (int32_t)(step % KQUANT_SUPER);
    if (!q.super) return (struct kquant_scale){d, q.minimum ? load_f16(p) : 0};
    if (q.n_scales == 2) {
        int8_t scale = (int8_t)head[2 * PANEL + (2 * g + half) * PANEL + n];
        return (struct kquant_scale){d * (float)scale, 0};
    }
    int32_t scale, minimum; /* as unpack_scale in model/dtype.c, bytes PANEL apart */
    if (g < 4) {
        scale = bytes[g * PANEL] & 63;
        minimum = bytes[(g + 4) * PANEL] & 63;
    } else {
        scale = (bytes[(g + 4) * PANEL] & 15) | bytes[(g - 4) * PANEL] >> 6 << 4;
        minimum = bytes[(g + 4) * PANEL] >> 4 | bytes[g * PANEL] >> 6 << 4;
    }
    return (struct kquant_scale){d * (float)scale, -(load_f16(p) * (float)minimum)};
}

/* ---- writing ---- */

/* The 32 codes of one step of a block, without their offset. */
static void file_codes(enum dtype type, const uint8_t *block, int32_t step,
                       uint8_t codes[QUANT_BLOCK])
{
    uint32_t high;
    switch (type) {
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q5_1: {
        int32_t head = type == DTYPE_Q5_0 ? 2 : 4;
        const uint8_t *q = block + head + (type == DTYPE_Q4_1 ? 0 : 4);
        for (int i = 0; i < 16; i++) codes[i] = q[i] & 15, codes[i + 16] = q[i] >> 4;
        if (type == DTYPE_Q4_1) return;
        memcpy(&high, block + head, sizeof high);
        for (int i = 0; i < QUANT_BLOCK; i++) codes[i] |= (high >> i & 1) << 4;
        return;
    }
    case DTYPE_Q4_K:
    case DTYPE_Q5_K: {
        const uint8_t *q = block + (type == DTYPE_Q4_K ? 16 : 48) + step / 2 * 32;
        int32_t shift = step % 2 * 4;
        for (int i = 0; i < QUANT_BLOCK; i++) codes[i] = q[i] >> shift & 15;
        if (type == DTYPE_Q4_K) return;
        for (int i = 0; i < QUANT_BLOCK; i++) codes[i] |= (block[16 + i] >> step & 1) << 4;
        return;
    }
    default: { /* q6_K */
        const uint8_t *q = block + step / 4 * 64 + step % 2 * 32;
        const uint8_t *top = block + 128 + step / 4 * 32;
        int32_t nibble = step % 4 / 2 * 4, shift = step % 4 * 2;
        for (int i = 0; i < QUANT_BLOCK; i++)
            codes[i] = (uint8_t)((q[i] >> nibble & 15) | (top[i] >> shift & 3) << 4);
    }
    }
}

static void write_codes(const struct kquant q, uint8_t *to, int64_t n,
                        const uint8_t codes[QUANT_BLOCK])
{
    uint8_t rows[6][4]; /* nibbles, then what lies above them */
    for (int i = 0; i < 16; i++)
        rows[i / 4][i % 4] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
    for (int b = 0; b < 4; b++) {
        uint8_t fifth = 0, even = 0, odd = 0;
        for (int g = 0; g < 8; g++) fifth |= (uint8_t)(codes[4 * g + b] >> 4 << g);
        for (int j = 0; j < 4; j++) {
            even |= (uint8_t)(codes[8 * j + b] >> 4 << 2 * j);
            odd |= (uint8_t)(codes[8 * j + 4 + b] >> 4 << 2 * j);
        }
        rows[4][b] = q.bits == 5 ? fifth : even;
        rows[5][b] = odd;
    }
    int32_t n_rows = q.bits;
    for (int32_t i = 0; i < n_rows; i++) memcpy(to + i * KQUANT_ROW_BYTES + n * 4, rows[i], 4);
}

/* The block's scales, from where the file has them. */
static void write_head(enum dtype type, uint8_t *head, int64_t n, const uint8_t *block)
{
    const struct kquant q = kquant_of(type);
    memcpy(head + 2 * n, type == DTYPE_Q6_K ? block + 208 : block, 2);
    if (q.minimum) memcpy(head + 2 * PANEL + 2 * n, block + 2, 2);
    if (type == DTYPE_Q6_K)
        for (int i = 0; i < 16; i++) head[(2 + i) * PANEL + n] = block[192 + i];
    else if (q.super)
        for (int i = 0; i < 12; i++) head[(4 + i) * PANEL + n] = block[4 + i];
}

void kquant_write_row(enum dtype type, uint8_t *panel, int64_t n, int64_t n_in, const uint8_t *src)
{
    const struct kquant q = kquant_of(type);
    int32_t steps = q.super ? KQUANT_SUPER : 1;
    int64_t n_steps = n_in / QUANT_BLOCK;
    ASSERT(n_steps % steps == 0);
    for (int64_t s = 0; s < n_steps; s += steps, src += dtype_info(type)->block_bytes) {
        write_head(type, (uint8_t *)kquant_head(q, panel, s), n, src);
        for (int32_t i = 0; i < steps; i++) {
            uint8_t codes[QUANT_BLOCK];
            file_codes(type, src, i, codes);
            write_codes(q, (uint8_t *)kquant_codes(q, panel, s + i), n, codes);
        }
    }
}

/* ---- reading ---- */

void kquant_read_row(enum dtype type, const uint8_t *panel, int64_t n, int64_t n_in, float *out)
{
    const struct kquant q = kquant_of(type);
    for (int64_t k = 0; k < n_in; k++) {
        int64_t step = k / QUANT_BLOCK;
        int32_t i = (int32_t)(k % QUANT_BLOCK);
        struct kquant_scale s =
            kquant_scale(q, kquant_head(q, panel, step), step, i / 16, (int32_t)n);
        int32_t code = kquant_code(q, kquant_codes(q, panel, step), i, (int32_t)n);
        out[k] = s.scale * (float)(code - q.offset);
        if (q.minimum) out[k] += s.minimum;
    }
}
