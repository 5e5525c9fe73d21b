/* Products of bf16 on AMX tiles, for whole groups of rows at a time;
 * only where kernels.amx says so.
 *
 * A step is 32 of the index that is summed over, and a tile of the result 32 rows x 32 outputs
 * in four of the eight registers. The left operand (A) is rows of bf16, 64 bytes a step; the
 * right one (B) panels of 32 outputs, pairs interleaved: [pairs][PANEL][2], which is how
 * weights lie packed (cpu_matrix.c).
 *
 * An output is one chain: for each step in order, the step's products are summed from zero by the
 * instruction and added to the accumulator in f32. Neither the number of rows nor how panels and
 * rows are cut changes that, so a row's bits are its own. Denormals count as zeros, here alone. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/dtype.h"

enum {
    AMX_ROWS = 32,         /* of a tile of the result */
    AMX_STEP = 32,         /* bf16 of one row that a step takes */
    AMX_STEP_BYTES = 2048, /* of a panel: 16 pairs x 32 outputs; of 32 rows of A */
    AMX_GROUP_ROWS = 512,  /* the most rows of one call */
    AMX_GROUP_BYTES = 1 << 20, /* of A that should stay in a second-level cache while panels pass */
};

/* Takes rows [row, row + n_rows) of a panel's result: tile [n_rows][PANEL]. Row by row, each once,
 * in order. */
typedef void (*amx_write)(const void *ctx, int64_t panel, int64_t row, int64_t n_rows,
                          const float *tile);

/* A is [rows] of steps of 64 bytes: row r begins at r / 32 * a_block + r % 32 * a_row, its steps
 * lie a_step apart. Plain rows have a_block = 32 a_row; else `rows` is a multiple of 32. A holds
 * whole steps: what it holds past `pairs` is zero. B may end with the last pair. */
struct amx_product {
    const uint8_t *a;
    int64_t a_row, a_step, a_block;
    int64_t rows;        /* 1..AMX_GROUP_ROWS */
    const uint8_t *b;
    int64_t b_panel;     /* bytes from panel to panel */
    int64_t pairs;
    bool b_is_far;       /* panels come from memory, one after another: call for them ahead */
    amx_write write;
    const void *ctx;
};

/* Panels [begin, end) of the product. Uses 64 KiB of stack. */
void amx_multiply(const struct amx_product *p, int64_t begin, int64_t end);

/* A square of 32 x 32 bf16 turned: row j of `out` (64 bytes apart) is column j of the rows at x,
 * `stride` elements apart. Only n_rows x n_cols (1..32 each) of them are there; the others are
 * zero. */
void amx_turn_rows(uint8_t *out, const uint16_t *x, int64_t stride, int64_t n_rows, int64_t n_cols);

/* Rows 0..n_rows-1 (at most 32), `stride` elements apart, as a step of a panel: [16 pairs of
 * rows][PANEL][2]. n_cols (1..32) columns are there; other columns and rows are zero. */
void amx_pair_rows(uint8_t *out, const uint16_t *x, int64_t stride, int64_t n_rows, int64_t n_cols);

/* A packed matrix's square of `pairs` (1..16) pairs of inputs x 32 outputs, [pairs][PANEL][2],
 * turned into a step of a panel whose outputs are the inputs: [16 pairs of outputs][32
 * inputs][2]. */
void amx_turn_pairs(uint8_t *out, const uint32_t *square, int64_t pairs);

/* ---- quantized products ---- */

/* Rows and weights in q8_0, q4_0 (kernels.h) or GGUF's other types (kquant.h) as bytes: a block of
 * 32 inputs is a step. Sums of what shares a scale are exact integers and scales are applied as by
 * the VNNI kernels, so the bits are theirs; few rows are left to them. */
enum { AMX_QUANT_ROWS = 16 }; /* so many rows are worth the tiles */

struct amx_quant_product {
    const int8_t *codes;  /* [blocks of 32 rows][steps][32
                             rows][QUANT_BLOCK]; missing rows are zero */
    const float *scales;  /* [blocks of 32 rows][steps][32 rows] */
    const float *sums;    /* likewise: of a step's codes, times its scale */
    int64_t rows;         /* 1..AMX_GROUP_ROWS */
    int64_t steps;
    const uint8_t *w;     /* panels as packed */
    int64_t panel_bytes;
    enum dtype type;      /* of w */
    amx_write write;
    const void *ctx;
};

/* Panels [begin, end) of the product. Uses 128 KiB of stack. */
void amx_quant_multiply(const struct amx_quant_product *p, int64_t begin, int64_t end);

/* ---- attention ---- */

/* kernels.attend_bf16, with pairs in q, for any number of rows: they are as good as alone. */
struct attend_block;
void amx_attend_bf16(const struct attend_block *b);
