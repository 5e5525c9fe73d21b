/* Element types: see dtype.h. GGUF's block formats, bit by bit (little endian throughout).
 *
 *   type   elements  bytes  layout                                       value
 *   q8_0       32      34   f16 d, i8 q[32]                              d q
 *   q4_0       32      18   f16 d, nibbles[16]                           d (q - 8)
 *   q4_1       32      20   f16 d, f16 m, nibbles[16]                    d q + m
 *   q5_0       32      22   f16 d, u32 high bits, nibbles[16]            d (q - 16)
 *   q5_1       32      24   f16 d, f16 m, u32 high bits, nibbles[16]     d q + m
 *   q4_K      256     144   f16 d, f16 dmin, packed 6-bit s and m of 8   (d s) q - (dmin m)
 *                           groups [12], nibbles[128]
 *   q5_K      256     176   as q4_K with high bits [32] before nibbles   (d s) q - (dmin m)
 *   q6_K      256     210   nibbles[128], 2-bit highs[64], i8 s[16],     (d s) (q - 32)
 *                           f16 d
 *
 * In a block of 32, byte j holds element j in its low nibble and j + 16 in its high one.
 * Source: the GGML formats (ggml-quants). Products and sums are rounded in the order written. */
#include "model/dtype.h"

#include <string.h>
#include <strings.h>

#include "base/error.h"

static const struct dtype_info infos[N_DTYPES] = {
    [DTYPE_F32] = {"f32", 1, 4},      [DTYPE_F16] = {"f16", 1, 2},
    [DTYPE_BF16] = {"bf16", 1, 2},    [DTYPE_Q8_0] = {"q8_0", 32, 34},
    [DTYPE_Q4_0] = {"q4_0", 32, 18},  [DTYPE_Q4_1] = {"q4_1", 32, 20},
    [DTYPE_Q5_0] = {"q5_0", 32, 22},  [DTYPE_Q5_1] = {"q5_1", 32, 24},
    [DTYPE_Q4_K] = {"q4_K", 256, 144}, [DTYPE_Q5_K] = {"q5_K", 256, 176},
    [DTYPE_Q6_K] = {"q6_K", 256, 210},
};

const struct dtype_info *dtype_info(enum dtype dtype)
{
    ASSERT((unsigned)dtype < N_DTYPES);
    return &infos[dtype];
}

bool dtype_parse(const char *name, enum dtype *out)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcasecmp(name, infos[i].name) != 0) continue;
        *out = (enum dtype)i;
        return true;
    }
    return false;
}

int64_t dtype_bytes(enum dtype dtype, int64_t n)
{
    const struct dtype_info *info = dtype_info(dtype);
    ASSERT(n >= 0 && n % info->block == 0);
    return n / info->block * info->block_bytes;
}

/* The bits of f16 as those of f32. Subnormals are exact multiples of 2^-24. */
static inline float half_to_float(uint16_t h)
{
    union { uint32_t u; float f; } v;
    /* The product moves the exponent to its place, small ones' as well; infinity and NaN keep 255.
     * No branch, so that loops become vectors. */
    uint32_t beyond = (h & 0x7C00) == 0x7C00 ? 255u << 23 : 0;
    v.u = (uint32_t)(h & 0x7FFF) << 13;
    v.f *= 0x1p112f;
    v.u |= beyond | (uint32_t)(h & 0x8000) << 16;
    return v.f;
}

float f16_to_f32(uint16_t h) { return half_to_float(h); }

uint16_t f32_to_f16(float f)
{
    union { float f; uint32_t u; } v = {.f = f};
    uint16_t sign = (uint16_t)(v.u >> 16 & 0x8000);
    v.u &= 0x7FFFFFFF;
    if (v.u > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (v.u >> 13 & 0x1FF));
    if (v.u >= 0x477FF000) return sign | 0x7C00; /* 65520 and up round to infinity */
    if (v.u < 0x38800000) {
        v.f += 0.5f; /* the last bit of floats near 0.5 is 2^-24: the addition rounds */
        return (uint16_t)(sign | (v.u - 0x3F000000));
    }
    v.u += 0xFFF + (v.u >> 13 & 1);
    return (uint16_t)(sign | ((v.u - (112u << 23)) >> 13));
}

static inline uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline float load_f16(const uint8_t *p) { return half_to_float(load_u16(p)); }

static void decode_f16(const uint8_t *src, int64_t n, float *dst)
{
    for (int64_t i = 0; i < n; i++) dst[i] = load_f16(src + 2 * i);
}

static void decode_bf16(const uint8_t *src, int64_t n, float *dst)
{
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(load_u16(src + 2 * i));
}

static void decode_q8_0(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 32, src += 34, dst += 32) {
        float d = load_f16(src);
        for (int j = 0; j < 32; j++) dst[j] = d * (float)(int8_t)src[2 + j];
    }
}

static void decode_q4_0(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 32, src += 18, dst += 32) {
        float d = load_f16(src);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)((src[2 + j] & 0xF) - 8);
            dst[j + 16] = d * (float)((src[2 + j] >> 4) - 8);
        }
    }
}

static void decode_q4_1(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 32, src += 20, dst += 32) {
        float d = load_f16(src), m = load_f16(src + 2);
        for (int j = 0; j < 16; j++) {
            dst[j] = d * (float)(src[4 + j] & 0xF) + m;
            dst[j + 16] = d * (float)(src[4 + j] >> 4) + m;
        }
    }
}

/* The 32 five-bit numbers of a q5_0 or q5_1 block: high bits [4], then nibbles [16]. */
static inline void unpack_5bit(const uint8_t *p, float q[32])
{
    uint32_t high;
    memcpy(&high, p, sizeof high);
    for (int j = 0; j < 16; j++) {
        q[j] = (float)((p[4 + j] & 0xF) | (high >> j & 1) << 4);
        q[j + 16] = (float)(p[4 + j] >> 4 | (high >> (j + 16) & 1) << 4);
    }
}

static void decode_q5_0(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 32, src += 22, dst += 32) {
        float q[32], d = load_f16(src);
        unpack_5bit(src + 2, q);
        for (int j = 0; j < 32; j++) dst[j] = d * (q[j] - 16);
    }
}

static void decode_q5_1(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 32, src += 24, dst += 32) {
        float q[32], d = load_f16(src), m = load_f16(src + 2);
        unpack_5bit(src + 4, q);
        for (int j = 0; j < 32; j++) dst[j] = d * q[j] + m;
    }
}

/* Group i's scale and minimum of a K block: 16 six-bit numbers in 12 bytes. The first four
 * pairs lie in the low 6 bits of bytes 0..3 and 4..7; the others have their low 4 bits in the
 * nibbles of bytes 8..11 and their high 2 bits on top of the first eight. */
static inline void unpack_scale(const uint8_t *p, int i, int *scale, int *min)
{
    if (i < 4) {
        *scale = p[i] & 63;
        *min = p[i + 4] & 63;
    } else {
        *scale = (p[i + 4] & 0xF) | (p[i - 4] >> 6) << 4;
        *min = p[i + 4] >> 4 | (p[i] >> 6) << 4;
    }
}

/* q4_K and q5_K: 8 groups of 32; groups 2i and 2i + 1 are the low and high nibbles of the same 32
 * bytes. `high` (NULL: q4_K) holds group g's fifth bits as bit g of its 32 bytes. */
static inline void decode_k_groups(const uint8_t *block, const uint8_t *high,
                                   const uint8_t *nibbles, float *dst)
{
    float d = load_f16(block), dmin = load_f16(block + 2);
    for (int g = 0; g < 8; g++) {
        int scale, min;
        unpack_scale(block + 4, g, &scale, &min);
        float ds = d * (float)scale, dm = dmin * (float)min;
        const uint8_t *q = nibbles + g / 2 * 32;
        int shift = g % 2 * 4;
        for (int j = 0; j < 32; j++) {
            int v = q[j] >> shift & 0xF;
            if (high) v |= (high[j] >> g & 1) << 4;
            dst[g * 32 + j] = ds * (float)v - dm;
        }
    }
}

static void decode_q4_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 256, src += 144, dst += 256) decode_k_groups(src, NULL, src + 16, dst);
}

static void decode_q5_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 256, src += 176, dst += 256)
        decode_k_groups(src, src + 16, src + 48, dst);
}

/* q6_K: two halves of 128; each is four runs of 32 that share 32 bytes of high bits (run r in
 * bits 2r). Runs 0 and 1 are low nibbles, 2 and 3 the high nibbles of the same 64 bytes. */
static void decode_q6_k(const uint8_t *src, int64_t n, float *dst)
{
    for (; n > 0; n -= 256, src += 210, dst += 256) {
        float d = load_f16(src + 208);
        for (int run = 0; run < 8; run++) {
            int half = run / 4, r = run % 4;
            const uint8_t *low = src + half * 64 + r % 2 * 32;
            const uint8_t *high = src + 128 + half * 32;
            const uint8_t *scales = src + 192 + run * 2;
            int nibble = r / 2 * 4;
            float ds[2] = {d * (float)(int8_t)scales[0], d * (float)(int8_t)scales[1]};
            for (int j = 0; j < 32; j++) {
                int q = (low[j] >> nibble & 0xF) | (high[j] >> 2 * r & 3) << 4;
                dst[run * 32 + j] = ds[j / 16] * (float)(q - 32);
            }
        }
    }
}

void dtype_to_f32(enum dtype dtype, const void *src, int64_t n, float *dst)
{
    ASSERT(n >= 0 && n % dtype_info(dtype)->block == 0);
    if (n == 0) return;
    switch (dtype) {
    case DTYPE_F32: memcpy(dst, src, (size_t)n * sizeof *dst); return;
    case DTYPE_F16: decode_f16(src, n, dst); return;
    case DTYPE_BF16: decode_bf16(src, n, dst); return;
    case DTYPE_Q8_0: decode_q8_0(src, n, dst); return;
    case DTYPE_Q4_0: decode_q4_0(src, n, dst); return;
    case DTYPE_Q4_1: decode_q4_1(src, n, dst); return;
    case DTYPE_Q5_0: decode_q5_0(src, n, dst); return;
    case DTYPE_Q5_1: decode_q5_1(src, n, dst); return;
    case DTYPE_Q4_K: decode_q4_k(src, n, dst); return;
    case DTYPE_Q5_K: decode_q5_k(src, n, dst); return;
    case DTYPE_Q6_K: decode_q6_k(src, n, dst); return;
    case N_DTYPES: break;
    }
    ASSERT(!"a dtype");
}
