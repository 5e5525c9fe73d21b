/* Packed matrices. Outputs lie in panels of 32; a panel is one stream in the order in which a
 * product reads it, so that a thread's share of a matrix is read from memory front to back:
 *
 *   f32   [ceil(n_out / 32)][n_in][32]
 *   bf16  [ceil(n_out / 32)][ceil(n_in / 2)][32][2]: pairs along k, as vdpbf16ps and AMX tiles want
 *   q8_0, q4_0   [ceil(n_out / 32)][ceil(n_in / 32)] blocks: codes of 32 outputs, then their f16
 *                scales (cpu/kernels.h), in as many bytes as GGUF takes
 *   GGUF's other types: likewise, see cpu/kquant.h
 *
 * Outputs and inputs that pad a panel are zero. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_internal.h"
#include "cpu/kquant.h"
#include "cpu/transpose.h"

bool cpu_is_quantized(enum dtype dtype) { return dtype_info(dtype)->block > 1; }

int64_t cpu_panel_steps(enum dtype dtype, int64_t n_in)
{
    if (cpu_is_quantized(dtype)) return ceil_div(n_in, QUANT_BLOCK);
    return dtype == DTYPE_F32 ? n_in : ceil_div(n_in, 2);
}

int64_t cpu_panel_step_bytes(enum dtype dtype)
{
    const struct dtype_info *info = dtype_info(dtype);
    return cpu_is_quantized(dtype) ? PANEL * QUANT_BLOCK * info->block_bytes / info->block
                                   : PANEL * 4;
}

static int64_t panel_bytes(enum dtype dtype, int64_t n_in)
{
    return cpu_panel_steps(dtype, n_in) * cpu_panel_step_bytes(dtype);
}

int64_t cpu_matrix_bytes(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in)
{
    return ceil_div(n_out, PANEL) * panel_bytes(dtype, n_in);
}

enum { WRITE_WORDS = 64 }; /* of each of a panel's outputs that are packed at a time */

struct matrix_write {
    const struct cpu_kernels *kernels;
    const struct matrix *w;
    int64_t row0, n_rows;
    const float *rows;
};

static uint8_t *panel_of(const struct matrix *w, int64_t n)
{
    return (uint8_t *)w->data + n / PANEL * panel_bytes(w->dtype, w->n_in);
}

/* Output n of a matrix that is not quantized: its words are PANEL apart. */
static uint32_t *output_words(const struct matrix *w, int64_t n)
{
    return (uint32_t *)panel_of(w, n) + n % PANEL;
}

/* ---- quantized ---- */

/* Where the code of input k of output n (of its panel) lies in a block,
 * and how far up in its byte. */
static uint8_t *code_at(enum dtype dtype, uint8_t *block, int64_t k, int64_t n, int *shift)
{
    *shift = dtype == DTYPE_Q4_0 && k >= 16 ? 4 : 0;
    int64_t group = dtype == DTYPE_Q4_0 ? k % 16 / 4 : k / 4;
    return block + group * PANEL * 4 + n * 4 + k % 4;
}

static uint8_t *scale_at(enum dtype dtype, uint8_t *block, int64_t n)
{
    return block + cpu_panel_step_bytes(dtype) - 2 * PANEL + 2 * n;
}

/* GGML's reference: q8_0 takes the largest magnitude to 127, q4_0 the value that has it to -8.
 * Files of the same type come back as they were. With a NaN the scale is one: a broken weight stays
 * broken. */
static void write_block(enum dtype dtype, uint8_t *block, int64_t n, const float *x, int64_t n_in)
{
    float extreme = 0;
    for (int64_t k = 0; k < n_in && !isnan(extreme); k++)
        if (!(fabsf(x[k]) <= fabsf(extreme))) extreme = x[k];
    bool q4 = dtype == DTYPE_Q4_0;
    float scale = q4 ? extreme / -8 : fabsf(extreme) / 127;
    float inverse = scale != 0 ? 1 / scale : 0;
    int offset = q4 ? 8 : 128, least = q4 ? 0 : 1, most = q4 ? 15 : 255;
    for (int64_t k = 0; k < QUANT_BLOCK; k++) {
        float code = k < n_in ? roundf(x[k] * inverse) + (float)offset : (float)offset;
        int shift, c = code >= (float)least ? code < (float)most ? (int)code : most : least;
        uint8_t *byte = code_at(dtype, block, k, n, &shift);
        *byte = (uint8_t)((q4 ? *byte & ~(15 << shift) : 0) | c << shift);
    }
    uint16_t half = f32_to_f16(scale);
    memcpy(scale_at(dtype, block, n), &half, sizeof half);
}

static void write_quantized(const struct matrix *w, int64_t n, const float *x)
{
    uint8_t *block = panel_of(w, n);
    for (int64_t k = 0; k < w->n_in; k += QUANT_BLOCK, block += cpu_panel_step_bytes(w->dtype))
        write_block(w->dtype, block, n % PANEL, x + k, min_i64(QUANT_BLOCK, w->n_in - k));
}

static void read_quantized(const struct matrix *w, int64_t n, float *out)
{
    if (kquant_has(w->dtype)) {
        kquant_read_row(w->dtype, panel_of(w, n), n % PANEL, w->n_in, out);
        return;
    }
    uint8_t *block = panel_of(w, n);
    int offset = w->dtype == DTYPE_Q4_0 ? 8 : 128, mask = w->dtype == DTYPE_Q4_0 ? 15 : 255;
    for (int64_t k = 0; k < w->n_in; k++) {
        int shift;
        uint16_t half;
        uint8_t *at = block + k / QUANT_BLOCK * cpu_panel_step_bytes(w->dtype);
        memcpy(&half, scale_at(w->dtype, at, n % PANEL), sizeof half);
        const uint8_t *byte = code_at(w->dtype, at, k % QUANT_BLOCK, n % PANEL, &shift);
        int code = *byte >> shift & mask;
        out[k] = f16_to_f32(half) * (float)(code - offset);
    }
}

/* ---- writing and reading ---- */

/* Words [from, to) of n outputs' rows, into words of PANEL outputs: those that are not there are
 * zero. Rows are turned into columns a few words at a time, in a core's cache: what is read and
 * what is written both come in runs. */
static void write_words(const struct matrix_write *job, int64_t row, int64_t n, int64_t from,
                        int64_t to)
{
    const struct matrix *w = job->w;
    uint32_t room[PANEL * WRITE_WORDS];
    for (int64_t r = 0; r < n; r++) {
        const float *src = job->rows + (row + r) * w->n_in;
        uint32_t *words = room + r * WRITE_WORDS;
        if (w->dtype == DTYPE_F32) {
            memcpy(words, src + from, (size_t)(to - from) * 4);
            continue;
        }
        /* an odd one at the end is paired with zero */
        if (w->n_in < 2 * to) words[to - 1 - from] = 0;
        job->kernels->to_bf16((uint16_t *)words, src + 2 * from,
                              min_i64(2 * to, w->n_in) - 2 * from);
    }
    memset(room + n * WRITE_WORDS, 0, (size_t)((PANEL - n) * WRITE_WORDS) * 4);
    uint32_t *panel = (uint32_t *)panel_of(w, job->row0 + row);
    transpose_words(panel + from * PANEL, room, WRITE_WORDS, PANEL, to - from);
}

static void write_panels(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct matrix_write *job = ctx;
    const struct matrix *w = job->w;
    for (int64_t row = begin * PANEL; row < min_i64(end * PANEL, job->n_rows); row += PANEL) {
        int64_t n = min_i64(PANEL, job->n_rows - row), words = cpu_panel_steps(w->dtype, w->n_in);
        if (cpu_is_quantized(w->dtype)) {
            for (int64_t r = row; r < row + n; r++)
                write_quantized(w, job->row0 + r, job->rows + r * w->n_in);
            continue;
        }
        for (int64_t from = 0; from < words; from += WRITE_WORDS)
            write_words(job, row, n, from, min_i64(from + WRITE_WORDS, words));
    }
}

/* Inputs [from, to) of output n as f32, of a matrix that is not quantized. `from` is even. */
static void read_inputs(const struct matrix *w, int64_t n, int64_t from, int64_t to, float *out)
{
    const uint32_t *src = output_words(w, n);
    if (w->dtype == DTYPE_F32) {
        for (int64_t k = from; k < to; k++) memcpy(&out[k], &src[k * PANEL], 4);
        return;
    }
    for (int64_t k = from; k < to; k += 2) {
        uint32_t pair = src[k / 2 * PANEL];
        out[k] = bf16_to_f32((uint16_t)pair);
        if (k + 1 < to) out[k + 1] = bf16_to_f32((uint16_t)(pair >> 16));
    }
}

/* Output n of the matrix as f32. */
static void read_output(const struct matrix *w, int64_t n, float *out)
{
    if (cpu_is_quantized(w->dtype)) read_quantized(w, n, out);
    else read_inputs(w, n, 0, w->n_in, out);
}

void cpu_matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                      const float *rows)
{
    ASSERT(!kquant_has(w->dtype)); /* these come from files, as blocks */
    ASSERT(row0 >= 0 && row0 % PANEL == 0 && row0 + n_rows <= w->n_out);
    ASSERT(n_rows % PANEL == 0 || row0 + n_rows == w->n_out);
    struct matrix_write job = {&cpu_of(d)->kernels, w, row0, n_rows, rows};
    pool_for(cpu_of(d)->pool, ceil_div(n_rows, PANEL), 1, write_panels, &job);
}

/* ---- blocks of files ---- */

/* GGUF's q8_0 and q4_0 blocks hold the codes and the scale that ours do. */
static void write_file_row(const struct matrix *w, int64_t n, const uint8_t *src)
{
    bool q4 = w->dtype == DTYPE_Q4_0;
    int64_t n_codes = q4 ? QUANT_BLOCK / 2 : QUANT_BLOCK;
    uint32_t word, offset = q4 ? 0 : 0x80808080; /* 128 to each byte */
    uint8_t *block = panel_of(w, n);
    for (int64_t k = 0; k < w->n_in; k += QUANT_BLOCK, block += cpu_panel_step_bytes(w->dtype)) {
        memcpy(scale_at(w->dtype, block, n % PANEL), src, 2);
        src += 2;
        for (int64_t i = 0; i < n_codes / 4; i++, src += sizeof word) {
            memcpy(&word, src, sizeof word);
            word ^= offset;
            memcpy(block + (i * PANEL + n % PANEL) * 4, &word, sizeof word);
        }
    }
}

struct blocks_write {
    const struct matrix *w;
    int64_t row0, n_rows;
    const uint8_t *blocks;
};

static void write_block_panels(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct blocks_write *job = ctx;
    const struct matrix *w = job->w;
    int64_t row_bytes = dtype_bytes(w->dtype, w->n_in);
    for (int64_t i = begin * PANEL; i < min_i64(end * PANEL, job->n_rows); i++) {
        int64_t n = job->row0 + i;
        const uint8_t *src = job->blocks + i * row_bytes;
        if (!kquant_has(w->dtype)) write_file_row(w, n, src);
        else kquant_write_row(w->dtype, panel_of(w, n), n % PANEL, w->n_in, src);
    }
}

void cpu_matrix_write_blocks(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                             const uint8_t *blocks)
{
    ASSERT(cpu_is_quantized(w->dtype) && w->n_in % dtype_info(w->dtype)->block == 0);
    ASSERT(row0 >= 0 && row0 % PANEL == 0 && row0 + n_rows <= w->n_out);
    ASSERT(n_rows % PANEL == 0 || row0 + n_rows == w->n_out);
    struct blocks_write job = {w, row0, n_rows, blocks};
    pool_for(cpu_of(d)->pool, ceil_div(n_rows, PANEL), 1, write_block_panels, &job);
}

/* ---- reading ---- */

/* Neighbouring outputs share every cache line, so that some of them are read together,
 * a few inputs at a time. */
enum { READ_ROWS = PANEL, READ_INPUTS = 128 };

struct matrix_read {
    const struct matrix *w;
    int64_t row0, n_rows;
    float *rows;
};

static void read_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct matrix_read *job = ctx;
    const struct matrix *w = job->w;
    for (int64_t row = begin * READ_ROWS; row < min_i64(end * READ_ROWS, job->n_rows);
         row += READ_ROWS) {
        int64_t last = min_i64(row + READ_ROWS, job->n_rows);
        int64_t step = cpu_is_quantized(w->dtype) ? w->n_in : READ_INPUTS;
        for (int64_t from = 0; from < w->n_in; from += step)
            for (int64_t r = row; r < last; r++) {
                float *out = job->rows + r * w->n_in;
                if (cpu_is_quantized(w->dtype)) read_quantized(w, job->row0 + r, out);
                else read_inputs(w, job->row0 + r, from, min_i64(from + step, w->n_in), out);
            }
    }
}

void cpu_matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                     float *rows)
{
    ASSERT(row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n_out);
    struct matrix_read job = {w, row0, n_rows, rows};
    pool_for(cpu_of(d)->pool, ceil_div(n_rows, READ_ROWS), 1, read_blocks, &job);
}

struct embed {
    struct tensor out;
    const struct batch *batch;
    const struct matrix *wte;
    const float *wpe;
};

static void embed_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct embed *job = ctx;
    const struct matrix *w = job->wte;
    int64_t n = w->n_in;
    for (int64_t r = begin; r < end; r++) {
        int32_t token = job->batch->tokens[r];
        ASSERT(token >= 0 && token < w->n_out);
        float *out = tensor_row(job->out, r);
        read_output(w, token, out);
        if (!job->wpe) continue;
        const float *position = job->wpe + job->batch->positions[r] * n;
        for (int64_t k = 0; k < n; k++) out[k] += position[k];
    }
}

void cpu_embed(struct device *d, struct tensor out, const struct batch *b,
               const struct matrix *wte, const float *wpe)
{
    ASSERT(out.rows == b->n_rows && out.cols == wte->n_in && out.dtype == DTYPE_F32);
    struct embed job = {out, b, wte, wpe};
    pool_for(cpu_of(d)->pool, b->n_rows, cpu_row_grain(out.cols * 2), embed_rows, &job);
}
