/* Packed matrices. Outputs lie in panels of 32; a panel is one stream in the order in which a product
 * reads it, so that a thread's share of a matrix is read from memory front to back:
 *
 *   f32   [ceil(n_out / 32)][n_in][32]
 *   bf16  [ceil(n_out / 32)][ceil(n_in / 2)][32][2]   pairs along k, as vdpbf16ps and AMX tiles want them
 *
 * Outputs and inputs that pad a panel are zero. */
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_internal.h"

/* Words of 32 bits that one output has: f32 values, or pairs of bf16. */
static int64_t words_per_output(enum dtype dtype, int64_t n_in)
{
    return dtype == DTYPE_F32 ? n_in : ceil_div(n_in, 2);
}

int64_t cpu_matrix_bytes(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in)
{
    return round_up(n_out, PANEL) * words_per_output(dtype, n_in) * 4;
}

struct matrix_write {
    const struct matrix *w;
    int64_t row0, n_rows;
    const float *rows;
};

/* Output n of the matrix, whose words are PANEL apart. */
static uint32_t *output_words(const struct matrix *w, int64_t n)
{
    int64_t words = words_per_output(w->dtype, w->n_in);
    return (uint32_t *)w->data + n / PANEL * words * PANEL + n % PANEL;
}

static uint32_t pack_pair(float even, float odd)
{
    return f32_to_bf16(even) | (uint32_t)f32_to_bf16(odd) << 16;
}

static void write_panels(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct matrix_write *job = ctx;
    const struct matrix *w = job->w;
    int64_t n_in = w->n_in;
    for (int64_t i = begin * PANEL; i < min_i64(end * PANEL, job->n_rows); i++) {
        const float *src = job->rows + i * n_in;
        uint32_t *dst = output_words(w, job->row0 + i);
        if (w->dtype == DTYPE_F32) {
            for (int64_t k = 0; k < n_in; k++) memcpy(&dst[k * PANEL], &src[k], 4);
            continue;
        }
        for (int64_t k = 0; k + 1 < n_in; k += 2)
            dst[k / 2 * PANEL] = pack_pair(src[k], src[k + 1]);
        if (n_in % 2) dst[n_in / 2 * PANEL] = pack_pair(src[n_in - 1], 0);
    }
}

/* Output n of the matrix as f32. */
static void read_output(const struct matrix *w, int64_t n, float *out)
{
    const uint32_t *src = output_words(w, n);
    for (int64_t k = 0; k < w->n_in; k++) {
        if (w->dtype == DTYPE_F32) memcpy(&out[k], &src[k * PANEL], 4);
        else out[k] = bf16_to_f32((uint16_t)(src[k / 2 * PANEL] >> (k % 2 * 16)));
    }
}

void cpu_matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                      const float *rows)
{
    ASSERT(row0 >= 0 && row0 % PANEL == 0 && row0 + n_rows <= w->n_out);
    ASSERT(n_rows % PANEL == 0 || row0 + n_rows == w->n_out);
    struct matrix_write job = {w, row0, n_rows, rows};
    pool_for(cpu_of(d)->pool, ceil_div(n_rows, PANEL), 1, write_panels, &job);
}

void cpu_matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                     float *rows)
{
    ASSERT(row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n_out);
    for (int64_t i = 0; i < n_rows; i++) read_output(w, row0 + i, rows + i * w->n_in);
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
