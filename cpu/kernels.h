/* The inner kernels: what one thread computes on one row, one tile of a matrix product or one block
 * of keys. Each instruction set fills in what it does better, on top of the one before it:
 * reference C, AVX2, AVX-512, AVX-512 BF16; AMX (cpu/amx.h) stands beside the latter. How work is
 * cut into kernel calls, and for which thread, is decided outside and is the same for all.
 *
 * A kernel's result for one output depends on that output's inputs alone, never on how many
 * rows the call has: reductions run in an order fixed by the index. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cpu/cpu.h"
#include "model/device_train.h"

enum {
    PANEL = 32,       /* outputs that lie side by side in a packed matrix */
    TILE_ROWS = 12,   /* the most rows of one matmul tile */
    FEW_ROWS = 3,     /* up to so many wait for memory */
    KEY_BLOCK = 128,  /* keys of one softmax block, aligned from position 0 */
    KEY_BLOCK_PAGES = KEY_BLOCK / KV_PAGE_TOKENS,
    QUERY_ROWS = 32,  /* the most query rows (positions x heads) of one attention call */
    MAX_HEAD_DIM = 256,
    KV_Q8_BLOCK = 32, /* dimensions of a key that share a scale in a q8_0 cache */
    KV_Q8_MOST = 127, KV_Q8_LEFT_MOST = 32767, /* codes of keys and values;
                                                  of what multiplies them */
    QUANT_BLOCK = 32, /* inputs that share a scale in quantized products */
    QUANT_WORDS = 10, /* 32-bit words of a block of a packed row:
                         codes [8], scale, sum of the codes */
    Q8_BLOCK_BYTES = PANEL * (QUANT_BLOCK + 2), /* of a panel: codes and f16 scales of one block */
    Q4_BLOCK_BYTES = PANEL * (QUANT_BLOCK / 2 + 2),
    ADAMW_BLOCK = 256, /* weights that AdamW takes at a time, and
                          8-bit moments that share a scale */
};

/* One tile of a matrix product: `rows` (1..TILE_ROWS) rows of x times one panel.
 *
 * x holds 32-bit words [steps][rows]. f32: a step is one k, the word is x. bf16: a step is a pair
 * of k; with `bf16_dot` the word is the pair, without there are two f32 words: [steps][2][rows]. w
 * holds [steps][PANEL] f32, or [steps][PANEL][2] bf16.
 *
 * Quantized: a step is a block of 32 inputs. x holds [steps][QUANT_WORDS][rows]: int8 codes, four
 * inputs to a word, then the block's f32 scale and the sum of its codes (int32). w holds, a step,
 *   q8_0   codes u8 [8][PANEL][4], each 128 more than it means; f16 scales [PANEL]
 *   q4_0   codes u8 [4][PANEL][4], in the low nibbles inputs 0..15, in the high ones 16..31, each 8
 *          more than it means; f16 scales [PANEL]
 * A block's products are summed exactly, in int32; then block by block out += sum * x scale * w
 * scale.
 *
 * out [rows][PANEL] f32: each one chain of additions from zero, over k upwards.
 * `prefetch` moves on by prefetch_step bytes a step: lines that will be wanted next, which the tile
 * calls into the second-level cache (loads that miss the first one are what the processor's own
 * prefetching goes by). A tile of FEW_ROWS or less asks for memory faster than prefetches can be
 * under way: it calls for every other line, and the processor's own brings the rest. */
struct matmul_tile {
    float *out;
    const void *x;
    const void *w;
    int64_t steps;
    int32_t rows;
    const char *prefetch;
    int64_t prefetch_step;
};

/* Where a tile goes: y [rows][PANEL], of which `n` outputs a row count, to rows of out
 * that lie out_stride elements apart. */
struct tile_output {
    void *out;
    enum dtype dtype; /* of out */
    int64_t out_stride;
    const float *y;
    const float *bias; /* [n] or NULL */
    enum epilogue epilogue;
    int64_t rows, n;
};

/* Calls for the lines that come with a step of q8_0 or q4_0: see above. */
static inline void prefetch_step(const char *prefetch, int64_t bytes, int64_t rows)
{
    for (int64_t i = 0; i < bytes; i += rows <= FEW_ROWS ? 128 : 64)
        __builtin_prefetch(prefetch + i, 0, 2);
}

/* One block of keys for several query rows of the same KV head.
 *
 * Layout of one KV head in a page (P = 16 tokens, Kp = K rounded up to 16):
 *   f32:  keys [K][P], then values [P][Kp]
 *   bf16: keys [K/2][P][2], then values [P/2][Kp][2]: pairs along what the product sums over
 *   q8_0: i8 codes of keys [K/4][P][4], of values [P/4][Kp][4]: fours along what the product sums
 *         over, in the order 0 2 1 3; then f32 scales of keys [ceil(K / KV_Q8_BLOCK)][P] and of
 *         values [P]
 * q holds 32-bit words [n_rows][q_stride]: f32 values (rounded to bf16 if the cache is bf16), or
 * bf16 pairs when the kernels have attend_pairs and the cache is bf16. For q8_0 a row is i16 codes
 * [K], then their f32 scale. Row r sees keys 0..limit[r]-1 of the block; what lies in the pages
 * after all that any row sees may be anything, also NaN.
 *   s = scale q.k,  p = exp(s - max);  max = the highest s, sum = the sum of p, acc = that of p v
 *
 * In q8_0 both products multiply 8-bit codes of the cache by 16-bit ones: of the query (one scale a
 * row), and of p times the values' scales (one scale a row and block). Integer sums are exact (at
 * most 128 products below 2^22) and take any order; what is lost is the cache's own rounding, since
 * 16 bits are far finer than it. The fours' order makes the even bytes of a word the partners of
 * the first two codes, the odd ones those of the last two. */
struct attend_block {
    int32_t n_rows, head_dim, n_pages;
    float scale;
    const void *q;
    int64_t q_stride;
    const int32_t *limit;                     /* [n_rows] 1..KEY_BLOCK */
    const uint8_t *pages[KEY_BLOCK_PAGES];    /* this KV head's part */
    const uint8_t *next[KEY_BLOCK_PAGES];     /* [n_pages] pages that will be wanted
                                                 next: kernels of few rows, which wait
                                                 for memory, call for them as they go */
    float *max, *sum;                         /* [n_rows] */
    float *acc;                               /* [n_rows][acc_stride], Kp used */
    int64_t acc_stride;
};

/* Of one KV head in a q8_0 page: where scales are, and the byte of element i in its four. */
static inline const float *kv_q8_key_scales(const uint8_t *head, int64_t n)
{
    return (const float *)(head + KV_PAGE_TOKENS * (n + (n + 15) / 16 * 16));
}
static inline const float *kv_q8_value_scales(const uint8_t *head, int64_t n)
{
    return kv_q8_key_scales(head, n) + (n + KV_Q8_BLOCK - 1) / KV_Q8_BLOCK * KV_PAGE_TOKENS;
}
static inline int64_t kv_q8_place(int64_t i) { return i % 2 * 2 + i % 4 / 2; }
/* Rows whose largest magnitude is below this become zeros: their inverse would overflow. */
#define KV_Q8_LEAST 0x1p-100f

/* A tile of a weight's gradient, to be added to a bf16 packed matrix. Rounding draws on
 * (key, part, place in the matrix) alone. */
struct bf16_tile {
    uint32_t *panel;   /* [pairs of k][PANEL] */
    const float *tile; /* [rows][PANEL] f32: rows are k0, k0 + 1, ... of the panel */
    int64_t k0, rows;
    int64_t pair0;     /* pairs of k in the panels before this one */
    uint32_t part;     /* of the sum: which rows of the micro-batch */
    uint64_t key;
};

/* A step's constants for one tensor: w = w keep - rate m / (sqrt(v) v_correction + eps). */
struct adamw_row {
    float grad_scale, beta1, beta2, eps;
    float keep;         /* 1 - lr * weight_decay */
    float rate;         /* lr / (1 - beta1^step) */
    float v_correction; /* 1 / sqrt(1 - beta2^step), a factor of sqrt(v) */
};

/* Elements [at, at + n) of a weight that AdamW steps: at is a multiple of ADAMW_BLOCK, n less than
 * that only at the end; of packed matrices a multiple of PANEL. */
struct adamw_block {
    const struct adamw_tensor *t;
    int64_t n_elements; /* of the whole weight, padding included */
    int64_t at;
    int32_t n;
    uint32_t step;
    struct adamw_row constants;
};

/* Where elements [at, at + PANEL) of a bf16 packed matrix lie, at a multiple of PANEL: every other
 * half-word of a row of pairs. */
static inline uint16_t *packed_bf16_row(const void *matrix, int64_t n_in, int64_t at)
{
    int64_t row = at / PANEL, panel = row / n_in, k = row % n_in;
    return (uint16_t *)matrix + ((panel * ((n_in + 1) / 2) + k / 2) * PANEL) * 2 + k % 2;
}

/* Where dropout's factors come from: Philox4x32-10 (model/sampler.h),
 * four neighbours to a counter. */
struct dropout_row {
    float p;             /* 0 < p < 1 */
    uint32_t counter[4]; /* of the first four; word 0 counts up and must not wrap around */
    uint32_t key[2];
};

struct cpu_kernels {
    const char *name;
    int32_t tile_rows; /* rows of a full tile, at most TILE_ROWS */
    int32_t quant_rows; /* the same of quantized products */
    bool bf16_dot;     /* bf16 products take pairs, not widened f32 */
    bool attend_pairs; /* and so does attention over a bf16 cache */
    bool amx;          /* products with bf16 matrices run on AMX tiles (cpu/amx.h),
                          not on matmul_bf16; those of many rows with quantized
                          ones too, with the bits of matmul_q8 and its like */

    void (*matmul_f32)(const struct matmul_tile *t);
    void (*matmul_bf16)(const struct matmul_tile *t);
    void (*matmul_q8)(const struct matmul_tile *t);
    void (*matmul_q4)(const struct matmul_tile *t);
    /* By type: q4_1, q5_0, q5_1, q4_K, q5_K, q6_K. See cpu/kquant.h. */
    void (*matmul_kquant[N_DTYPES])(const struct matmul_tile *t);
    /* n blocks of a row as int8 codes with what belongs to them, out [n][QUANT_WORDS]: scale = the
     * largest magnitude / 127, code = x / scale to the nearest even. Values that are not finite
     * have no code worth having, but nothing breaks. */
    void (*quantize_row)(uint32_t *out, const uint16_t *x, int64_t n);
    /* out[i] = epilogue(y[i] + bias[i]); bias may be NULL; EPILOGUE_ADD adds to out (f32); gelu
     * takes its argument rounded to out's type. */
    void (*finish)(void *out, enum dtype dtype, const float *y, const float *bias,
                   enum epilogue epilogue, int64_t n);
    /* The same for all rows of a tile. */
    void (*finish_tile)(const struct tile_output *t);

    void (*attend_f32)(const struct attend_block *b);
    void (*attend_bf16)(const struct attend_block *b);
    void (*attend_q8)(const struct attend_block *b);
    /* codes[i] = x[i] / scale to the nearest even, scale = the largest magnitude / most (at most
     * 32767). Of values that are not finite the codes are anything within most. */
    void (*quantize_kv)(int16_t *codes, float *scale, const float *x, int64_t n, int32_t most);
    /* Joins a block's result to what came before: the online softmax (Milakov & Gimelshein 2018).
     * One row: max, sum and acc[n] take in the block's. */
    void (*attend_join)(float *max, float *sum, float *acc, float block_max, float block_sum,
                        const float *block_acc, int64_t n);
    void (*scale_row)(void *out, enum dtype dtype, const float *x, float scale, int64_t n);

    void (*norm_row)(void *out, enum dtype dtype, const float *x, int64_t n,
                     const struct norm *norm);
    /* gate and up have out's type. */
    void (*swiglu_row)(void *out, enum dtype dtype, const void *gate, const void *up, int64_t n);
    /* x[i], x[i + half] turned by the angle of cos_sin[i][2], for i < half. */
    void (*rotate)(float *x, const float *cos_sin, int64_t half);
    void (*to_bf16)(uint16_t *out, const float *x, int64_t n);

    /* Rows of logits. NaN counts as -inf, +inf as the largest float. */
    float (*row_max)(const float *x, int64_t n);
    /* The sum of exp((x - shift) * scale), stored to out too unless it is NULL. shift: the row's
     * maximum, but for rounding; scale > 0. */
    float (*row_exp)(float *out, const float *x, int64_t n, float shift, float scale);
    /* The first index >= i whose x > t; n when there is none. */
    int64_t (*find_above)(const float *x, int64_t i, int64_t n, float t);
    int64_t (*count_above)(const float *x, int64_t n, float t);
    /* Their indices, upwards; how many. */
    int64_t (*list_above)(int32_t *out, const float *x, int64_t n, float t);
    float (*sum_above)(const float *x, int64_t n, float t); /* of those x > t */

    /* Training. One row of norm's backward: dx += ..., and stats = {mean,
     * 1 / deviation} for the columns. */
    void (*norm_backward_row)(float *dx, float *stats, const float *dy, const float *x, int64_t n,
                              const struct norm *norm);
    /* The gradients of n columns of norm's weight (and bias, unless NULL), added up over rows in
     * order: `stride` floats lie between rows, and two stats. */
    void (*norm_backward_columns)(float *dweight, float *dbias, const float *dy, const float *x,
                                  const float *stats, int64_t rows, int64_t stride, int64_t n);
    /* dx = dy gelu'(pre); dx and pre have the type. */
    void (*gelu_backward_row)(void *dx, enum dtype dtype, const float *dy, const void *pre,
                              bool exact, int64_t n);
    /* out = gelu(x), both of the type. */
    void (*gelu_row)(void *out, enum dtype dtype, const void *x, bool exact, int64_t n);
    /* Of silu(gate) up; dgate, dup, gate and up have the type. */
    void (*swiglu_backward_row)(void *dgate, void *dup, enum dtype dtype, const float *dy,
                                const void *gate, const void *up, int64_t n);
    /* Of the softmax of one query: scores p (q.k) become z exp(scale (p - shift)), and dp in ds
     * becomes the scores' gradient, p (z dp - delta) scale with p before z. z NULL: ones. */
    void (*softmax_backward_row)(float *p, float *ds, const float *z, int64_t n, float shift,
                                 float scale, float delta);
    /* One step: weights, masters and moments are rewritten where they lie. */
    void (*adamw_block)(const struct adamw_block *b);
    /* f32; or bf16, a multiple of 2 PANEL of them, as packed matrices have. */
    double (*sum_squares)(const void *x, enum dtype dtype, int64_t n);
    /* keep[i] = 1 / (1 - p), or 0 where word i % 4 of block i / 4 is below p 2^32. */
    void (*dropout_row)(float *keep, const struct dropout_row *d, int64_t n);
    void (*bf16_add)(const struct bf16_tile *t);
    /* model/normal.h */
    void (*normal_fill)(float *out, int64_t n, const uint32_t key[2], int64_t first, float std);
};

/* The best that the processor has, up to `isa`. */
void cpu_kernels_init(struct cpu_kernels *k, enum cpu_isa isa);
/* The highest instruction set that this processor has. */
enum cpu_isa cpu_isa_best(void);
const char *cpu_isa_name(enum cpu_isa isa);
/* Whether someone executes AMX's instructions in the processor's place. Only tests define it
 * (tests/cpu/amx_emulator.c). */
bool cpu_amx_emulated(void);

/* Each of these overrides what it does better. */
void cpu_kernels_reference(struct cpu_kernels *k);
void cpu_train_kernels_reference(struct cpu_kernels *k);
void cpu_quant_kernels_reference(struct cpu_kernels *k);
void cpu_kquant_kernels_reference(struct cpu_kernels *k);
void cpu_attend_q8_reference(struct cpu_kernels *k);
void cpu_kernels_avx2(struct cpu_kernels *k);
void cpu_quant_kernels_avx2(struct cpu_kernels *k);
void cpu_kquant_kernels_avx2(struct cpu_kernels *k);
void cpu_attend_q8_avx2(struct cpu_kernels *k);
void cpu_kernels_avx512(struct cpu_kernels *k);
void cpu_quant_kernels_avx512vnni(struct cpu_kernels *k); /* only where the processor has VNNI */
void cpu_kquant_kernels_avx512vnni(struct cpu_kernels *k); /* likewise */
void cpu_attend_q8_avx512vnni(struct cpu_kernels *k); /* likewise */
void cpu_kernels_avx512bf16(struct cpu_kernels *k);
