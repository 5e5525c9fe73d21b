/* The two products behind y = x W^T: dx = dy W and dw += dy^T x. Both run on the forward
 * pass's tile kernels (rows of one operand side by side, times a panel of 32 of the
 * other), fed with re-packed pieces small enough to stay in a core's cache; no unpacked
 * copy of a weight matrix ever exists.
 *
 *   dx   sums over outputs n. A thread takes 32 columns of dx; W's 32 x 32 squares of those columns
 *        are turned on the way into a panel, N_CHUNK outputs at a time, and meet all rows of dy.
 *   dw   sums over rows r. A thread takes a panel of 32 outputs; columns of x are the tile's rows,
 *        so a tile of the result is a run of the packed gradient. R_CHUNK rows at a time;
 *        R_CHUNK_BF16 for a bf16 gradient, so that its rounding comes once a micro-batch of usual
 *        size.
 *
 * Chunks are added in order, and their borders depend on the shapes alone:
 * the same bits for any number of threads. */
#include <string.h>

#include "base/checked.h"
#include "cpu/amx_products.h"
#include "cpu/cpu_train.h"
#include "cpu/transpose.h"

enum {
    N_CHUNK = 1024, /* outputs summed in registers for dx: a panel of 128 KiB at most */
    R_CHUNK = 512,  /* rows summed in registers for dw */
    R_CHUNK_BF16 = 2048,
    BIAS_COLUMNS = 64,
    SQUARES_AHEAD = 3,  /* of W, called for while one is turned */
    CHUNK_WORDS = 64,   /* of rows that are packed side by side, at a time */
    GROUP_COLUMNS = 192, /* of x, packed at a time */
};

/* How this device's products take bf16: as pairs, or widened to two f32 words; f32 as it is. */
struct words {
    enum dtype dtype;
    bool dot; /* pairs go into one word */
};

static struct words words_of(const struct cpu_device *c, enum dtype dtype)
{
    return (struct words){dtype, dtype == DTYPE_F32 || c->kernels.bf16_dot};
}

static int64_t steps_of(struct words w, int64_t n)
{
    return w.dtype == DTYPE_F32 ? n : ceil_div(n, 2);
}

static void multiply(const struct cpu_device *c, struct words w, const struct matmul_tile *t)
{
    (w.dtype == DTYPE_F32 ? c->kernels.matmul_f32 : c->kernels.matmul_bf16)(t);
}

/* ---- dx = dy W ---- */

struct backward_x {
    struct cpu_device *c;
    struct words words;
    struct tensor dx, dy;
    const struct matrix *w;
    int64_t n0, n1;          /* this chunk of outputs; n0 is a multiple of PANEL */
    int64_t n_blocks;        /* of rows */
    const uint32_t *packed;  /* dy, columns n0..n1: [blocks][words][rows of the block] */
    uint32_t *panels;        /* [threads][steps][PANEL] */
};

static int64_t block_begin(int64_t block, int64_t n_blocks, int64_t rows)
{
    return block * rows / n_blocks;
}

static int64_t packed_words(struct words w, int64_t n)
{
    return w.dot ? steps_of(w, n) : 2 * steps_of(w, n);
}

/* Words [from, to) of row r of dy, counted from the chunk's first output. */
static void row_words(const struct backward_x *m, int64_t r, int64_t from, int64_t to,
                      uint32_t *out)
{
    int64_t n = m->n1 - m->n0;
    const uint16_t *half = (const uint16_t *)tensor_row(m->dy, r) + m->n0;
    if (m->words.dtype == DTYPE_F32) {
        memcpy(out, (const uint32_t *)tensor_row(m->dy, r) + m->n0 + from, (size_t)(to - from) * 4);
    } else if (m->words.dot) {
        int64_t whole = min_i64(to, n / 2);
        memcpy(out, half + 2 * from, (size_t)(whole - from) * 4);
        if (whole < to) out[whole - from] = half[n - 1]; /* a lone last output: a pair with zero */
    } else {
        for (int64_t i = from; i < to; i++) out[i - from] = i < n ? (uint32_t)half[i] << 16 : 0;
    }
}

static void pack_dy(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward_x *m = ctx;
    uint32_t room[TILE_ROWS * CHUNK_WORDS];
    int64_t words = packed_words(m->words, m->n1 - m->n0);
    for (int64_t b = begin; b < end; b++) {
        int64_t row0 = block_begin(b, m->n_blocks, m->dy.rows);
        int64_t rows = block_begin(b + 1, m->n_blocks, m->dy.rows) - row0;
        uint32_t *out = (uint32_t *)m->packed + row0 * words;
        for (int64_t from = 0; from < words; from += CHUNK_WORDS) {
            int64_t to = min_i64(from + CHUNK_WORDS, words);
            for (int64_t r = 0; r < rows; r++)
                row_words(m, row0 + r, from, to, room + r * CHUNK_WORDS);
            transpose_words(out + from * rows, room, CHUNK_WORDS, rows, to - from);
        }
    }
}

/* f32: panel[n - n0][k - k0] = W[n][k]. */
static void turn_f32(const struct backward_x *m, int64_t k0, int64_t n_k, uint32_t *panel)
{
    const uint32_t *w = m->w->data;
    for (int64_t n = m->n0; n < m->n1; n += PANEL) {
        const uint32_t *src = w + (n / PANEL * m->w->n_in + k0) * PANEL;
        int64_t n_n = min_i64(PANEL, m->n1 - n);
        for (int64_t j = 0; j < n_n; j++) {
            uint32_t *dst = panel + (n - m->n0 + j) * PANEL;
            for (int64_t k = 0; k < n_k; k++) dst[k] = src[k * PANEL + j];
            for (int64_t k = n_k; k < PANEL; k++) dst[k] = 0;
        }
    }
}

/* bf16: W pairs along k become pairs along n. Outputs that pad the last panel are zero. Squares lie
 * too far apart for the processor to foresee them; each is called for, no nearer than the
 * second-level cache, while those before it are turned. */
static void turn_bf16(const struct backward_x *m, int64_t k0, int64_t n_k, uint32_t *panel)
{
    const uint32_t *w = m->w->data;
    int64_t words = ceil_div(m->w->n_in, 2), pairs = ceil_div(n_k, 2);
    for (int64_t n = m->n0; n < m->n1; n += PANEL) {
        const uint32_t *src = w + (n / PANEL * words + k0 / 2) * PANEL;
        uint32_t square[PANEL * PANEL / 2] = {0};
        if (n + SQUARES_AHEAD * PANEL < m->n1)
            for (int64_t i = 0; i < pairs * PANEL; i += 16)
                __builtin_prefetch(src + SQUARES_AHEAD * words * PANEL + i, 0, 2);
        if (pairs < PANEL / 2)
            src = memcpy(square, src, (size_t)(pairs * PANEL) * sizeof *square);
        int64_t n_pairs = ceil_div(min_i64(PANEL, m->n1 - n), 2);
        turn_pairs(panel + (n - m->n0) / 2 * PANEL, src, n_pairs);
    }
}

static void multiply_columns(const struct backward_x *m, int64_t k0, const uint32_t *panel)
{
    int64_t n_k = min_i64(PANEL, m->w->n_in - k0), n = m->n1 - m->n0;
    int64_t words = packed_words(m->words, n);
    for (int64_t b = 0; b < m->n_blocks; b++) {
        int64_t row0 = block_begin(b, m->n_blocks, m->dy.rows);
        int64_t rows = block_begin(b + 1, m->n_blocks, m->dy.rows) - row0;
        _Alignas(64) float tile[TILE_ROWS * PANEL];
        /* The packed rows of a micro-batch exceed the second-level cache:
         * the tile calls for the next block's. */
        const uint32_t *x = m->packed + row0 * words;
        struct matmul_tile t = {
            .out = tile,
            .x = x,
            .w = panel,
            .steps = steps_of(m->words, n),
            .rows = (int32_t)rows,
            .prefetch = (const char *)(x + rows * words),
            .prefetch_step = rows * words * 4 / steps_of(m->words, n),
        };
        /* What the tile goes to may be far away: call for it before the arithmetic. */
        for (int64_t r = 0; r < rows; r++) {
            const float *out = (const float *)tensor_row(m->dx, row0 + r) + k0;
            __builtin_prefetch(out, 1);
            __builtin_prefetch(out + n_k - 1, 1);
        }
        multiply(m->c, m->words, &t);
        m->c->kernels.finish_tile(&(struct tile_output){
            .out = (float *)tensor_row(m->dx, row0) + k0,
            .dtype = DTYPE_F32,
            .out_stride = m->dx.cols,
            .y = tile,
            .epilogue = m->n0 == 0 ? EPILOGUE_NONE : EPILOGUE_ADD,
            .rows = rows,
            .n = n_k,
        });
    }
}

static void multiply_x(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward_x *m = ctx;
    uint32_t *panel = m->panels + thread * steps_of(m->words, N_CHUNK) * PANEL;
    for (int64_t i = begin; i < end; i++) {
        int64_t k0 = i * PANEL, n_k = min_i64(PANEL, m->w->n_in - k0);
        (m->words.dtype == DTYPE_F32 ? turn_f32 : turn_bf16)(m, k0, n_k, panel);
        multiply_columns(m, k0, panel);
    }
}

void cpu_matmul_backward_x(struct device *d, struct tensor dx, struct tensor dy,
                           const struct matrix *w)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(dy.dtype == w->dtype && dy.cols == w->n_out && dx.cols == w->n_in);
    ASSERT(dx.dtype == DTYPE_F32 && dx.rows == dy.rows);
    if (dx.rows == 0) return;
    if (c->kernels.amx && w->dtype == DTYPE_BF16) {
        amx_backward_x(c, dx, dy, w);
        return;
    }
    struct backward_x m = {
        .c = c, .words = words_of(c, w->dtype), .dx = dx, .dy = dy, .w = w,
        .n_blocks = ceil_div(dy.rows, c->kernels.tile_rows),
        .panels = (uint32_t *)c->workspace,
    };
    m.packed = m.panels + pool_n_threads(c->pool) * steps_of(m.words, N_CHUNK) * PANEL;
    for (m.n0 = 0; m.n0 < w->n_out; m.n0 = m.n1) {
        m.n1 = min_i64(m.n0 + N_CHUNK, w->n_out);
        pool_for(c->pool, m.n_blocks, 2, pack_dy, &m);
        pool_for(c->pool, ceil_div(w->n_in, PANEL), 1, multiply_x, &m);
    }
}

/* ---- dw += dy^T x ---- */

struct backward_w {
    struct cpu_device *c;
    struct words words;
    struct matrix *dw;
    struct tensor dy, x; /* this chunk's rows */
    int64_t chunk;       /* rows of a full one */
    uint32_t part;       /* which chunk this is */
    uint64_t key;        /* of a bf16 gradient's rounding */
    int64_t n_blocks;    /* tiles of columns of x */
    uint32_t *columns;   /* x: [blocks][words][columns of the block] */
    uint32_t *panels;    /* [threads][steps][PANEL]: dy */
};

/* Columns [k0, k0 + n) of step s of a tensor whose rows are summed over: rows 2 s and 2 s + 1 as
 * pairs, or as two rows of words where products take no pairs; f32 rows as they are. A missing last
 * row is zero. */
static void step_words(struct words w, struct tensor t, int64_t s, int64_t k0, int64_t n,
                       uint32_t *out)
{
    if (w.dtype == DTYPE_F32) {
        memcpy(out, (const uint32_t *)tensor_row(t, s) + k0, (size_t)n * 4);
        return;
    }
    static const uint16_t nothing[GROUP_COLUMNS];
    const uint16_t *low = (const uint16_t *)tensor_row(t, 2 * s) + k0;
    const uint16_t *high = 2 * s + 1 < t.rows ? low + t.cols : nothing;
    if (w.dot) {
        pair_words(out, low, high, n);
    } else {
        pair_words(out, nothing, low, n);
        pair_words(out + GROUP_COLUMNS, nothing, high, n);
    }
}

/* Columns of x side by side: a tile's "rows" are inputs k, its steps are rows r. A group of blocks
 * at a time, so that rows are read in runs. */
static void pack_group(const struct backward_w *m, int64_t begin, int64_t end)
{
    uint32_t room[2 * GROUP_COLUMNS];
    int64_t words = packed_words(m->words, m->chunk), per_step = m->words.dtype == DTYPE_BF16
                                                                     && !m->words.dot ? 2 : 1;
    int64_t first = block_begin(begin, m->n_blocks, m->x.cols);
    int64_t columns = block_begin(end, m->n_blocks, m->x.cols) - first;
    for (int64_t s = 0; s < steps_of(m->words, m->x.rows); s++) {
        step_words(m->words, m->x, s, first, columns, room);
        for (int64_t b = begin; b < end; b++) {
            int64_t k0 = block_begin(b, m->n_blocks, m->x.cols);
            int64_t n = block_begin(b + 1, m->n_blocks, m->x.cols) - k0;
            for (int64_t i = 0; i < per_step; i++)
                memcpy(m->columns + k0 * words + (s * per_step + i) * n,
                       room + i * GROUP_COLUMNS + k0 - first, (size_t)n * 4);
        }
    }
}

static void pack_columns(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward_w *m = ctx;
    int64_t step = GROUP_COLUMNS / m->c->kernels.tile_rows;
    for (int64_t b = begin; b < end; b += step) pack_group(m, b, min_i64(b + step, end));
}

/* dy's columns n0.. as a panel: [rows][PANEL], or pairs of rows. */
static void pack_outputs(const struct backward_w *m, int64_t n0, uint32_t *panel)
{
    struct words pairs = {m->words.dtype, true};
    int64_t n = min_i64(PANEL, m->dy.cols - n0), step_rows = m->words.dtype == DTYPE_F32 ? 1 : 2;
    int64_t ahead = 16 / step_rows, steps = steps_of(m->words, m->dy.rows);
    for (int64_t s = 0; s < steps; s++) {
        if (s + ahead < steps)
            for (int64_t i = 0; i < step_rows; i++)
                __builtin_prefetch((const uint8_t *)tensor_row(m->dy, (s + ahead) * step_rows + i)
                                   + (size_t)n0 * element_bytes(m->dy.dtype));
        uint32_t *dst = panel + s * PANEL;
        step_words(pairs, m->dy, s, n0, n, dst);
        for (int64_t j = n; j < PANEL; j++) dst[j] = 0;
    }
}

/* Where input k0 of a panel of the gradient begins (in bf16: its pair),
 * and how long n of them are. */
static const char *gradient_at(const struct backward_w *m, int64_t panel, int64_t k0)
{
    bool half = m->dw->dtype == DTYPE_BF16;
    int64_t row = half ? panel * ceil_div(m->x.cols, 2) + k0 / 2 : panel * m->x.cols + k0;
    return (const char *)m->dw->data + row * PANEL * 4;
}

static int64_t gradient_bytes(const struct backward_w *m, int64_t n)
{
    return (m->dw->dtype == DTYPE_BF16 ? ceil_div(n, 2) : n) * PANEL * 4;
}

/* Into the first-level cache: what the tile will be added to,
 * which the tile before it called nearer. */
static void prefetch_tile(const struct backward_w *m, int64_t panel, int64_t k0, int64_t n)
{
    const char *at = gradient_at(m, panel, k0);
    for (int64_t i = 0; i < gradient_bytes(m, n); i += 64) __builtin_prefetch(at + i, 1);
}

void cpu_add_gradient(const struct cpu_kernels *k, struct matrix *dw, int64_t panel, int64_t k0,
                      int64_t n, const float *tile, uint32_t part, uint64_t key)
{
    if (dw->dtype == DTYPE_F32) {
        float *out = (float *)dw->data + (panel * dw->n_in + k0) * PANEL;
        k->finish(out, DTYPE_F32, tile, NULL, EPILOGUE_ADD, n * PANEL);
        return;
    }
    int64_t pair0 = panel * ceil_div(dw->n_in, 2);
    struct bf16_tile t = {.panel = (uint32_t *)dw->data + pair0 * PANEL, .tile = tile, .k0 = k0,
                          .rows = n, .pair0 = pair0, .part = part, .key = key};
    k->bf16_add(&t);
}

static void multiply_w(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward_w *m = ctx;
    int64_t n_in = m->x.cols, words = packed_words(m->words, m->chunk);
    int64_t steps = steps_of(m->words, m->x.rows);
    uint32_t *panel = m->panels + thread * steps_of(m->words, m->chunk) * PANEL;
    for (int64_t p = begin; p < end; p++) {
        pack_outputs(m, p * PANEL, panel);
        for (int64_t b = 0; b < m->n_blocks; b++) {
            int64_t k0 = block_begin(b, m->n_blocks, n_in);
            int64_t n = block_begin(b + 1, m->n_blocks, n_in) - k0;
            _Alignas(64) float tile[TILE_ROWS * PANEL];
            struct matmul_tile t = {
                .out = tile,
                .x = m->columns + k0 * words,
                .w = panel,
                .steps = steps,
                .rows = (int32_t)n,
                .prefetch = gradient_at(m, p, k0 + n),
                .prefetch_step = ceil_div(gradient_bytes(m, n), steps),
            };
            prefetch_tile(m, p, k0, n);
            multiply(m->c, m->words, &t);
            cpu_add_gradient(&m->c->kernels, m->dw, p, k0, n, tile, m->part, m->key);
        }
    }
}

struct column_sums {
    float *sums;
    struct tensor dy;
};

/* Column sums, each over the rows in order. */
static void sum_columns(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct column_sums *m = ctx;
    int64_t k0 = begin * BIAS_COLUMNS, k1 = min_i64(end * BIAS_COLUMNS, m->dy.cols);
    for (int64_t r = 0; r < m->dy.rows; r++) {
        const void *row = tensor_row(m->dy, r);
        for (int64_t k = k0; k < k1; k++)
            m->sums[k] += m->dy.dtype == DTYPE_F32 ? ((const float *)row)[k]
                                                   : bf16_to_f32(((const uint16_t *)row)[k]);
    }
}

void cpu_column_sums(struct cpu_device *c, float *sums, struct tensor dy)
{
    struct column_sums job = {sums, dy};
    pool_for(c->pool, ceil_div(dy.cols, BIAS_COLUMNS), 1, sum_columns, &job);
}

static struct tensor some_rows(struct tensor t, int64_t row0, int64_t rows)
{
    t.data = tensor_row(t, row0);
    t.rows = rows;
    return t;
}

/* Rows at a time, of at most n_rows. */
static int64_t rows_of_chunk(enum dtype gradient, int64_t n_rows)
{
    return gradient == DTYPE_F32 ? R_CHUNK : min_i64(n_rows, R_CHUNK_BF16);
}

static void tiles_backward_w(struct cpu_device *c, struct matrix *dw, struct tensor dy,
                             struct tensor x, uint64_t rounding_key)
{
    struct words words = words_of(c, x.dtype);
    struct backward_w m = {
        .c = c, .words = words, .dw = dw,
        .n_blocks = ceil_div(x.cols, c->kernels.tile_rows),
        .chunk = rows_of_chunk(dw->dtype, x.rows), .key = rounding_key,
        .panels = (uint32_t *)c->workspace,
    };
    m.columns = m.panels + pool_n_threads(c->pool) * steps_of(words, m.chunk) * PANEL;
    for (int64_t row = 0; row < x.rows; row += m.chunk, m.part++) {
        int64_t rows = min_i64(m.chunk, x.rows - row);
        m.dy = some_rows(dy, row, rows);
        m.x = some_rows(x, row, rows);
        pool_for(c->pool, m.n_blocks, 1, pack_columns, &m);
        pool_for(c->pool, ceil_div(dw->n_out, PANEL), 1, multiply_w, &m);
    }
}

void cpu_matmul_backward_w(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                           struct tensor x, struct random_key rounding)
{
    struct cpu_device *c = cpu_of(d);
    uint64_t rounding_key = dw->dtype == DTYPE_BF16 ? cpu_random_key(rounding) : 0;
    ASSERT(dw->dtype == DTYPE_F32 || dw->dtype == DTYPE_BF16);
    ASSERT(dy.cols == dw->n_out && x.cols == dw->n_in);
    ASSERT(dy.dtype == x.dtype && dy.rows == x.rows);
    (c->kernels.amx && x.dtype == DTYPE_BF16 ? amx_backward_w : tiles_backward_w)(c, dw, dy, x,
                                                                                  rounding_key);
    if (dbias) cpu_column_sums(c, dbias, dy);
}

int64_t cpu_matmul_backward_workspace(const struct cpu_device *c, const struct workspace_shape *s)
{
    struct words w = words_of(c, s->dtype);
    int64_t threads = pool_n_threads(c->pool), bytes = 0;
    int64_t n_in = max_i64(max_i64(s->n_embd, s->n_ff), s->n_head * s->head_dim);
    for (int gradient = 0; gradient < 2; gradient++) { /* embeddings' are f32 in any case */
        int64_t rows = rows_of_chunk(gradient ? s->gradients : DTYPE_F32, s->max_rows);
        int64_t words = threads * steps_of(w, rows) * PANEL + n_in * packed_words(w, rows);
        bytes = max_i64(bytes, words * 4);
    }
    int64_t words = threads * steps_of(w, N_CHUNK) * PANEL + s->max_rows * packed_words(w, N_CHUNK);
    if (c->kernels.amx) bytes = max_i64(bytes, amx_backward_workspace(threads, s->max_rows, n_in));
    return max_i64(bytes, words * 4);
}
