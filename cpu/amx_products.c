/* Products where the processor has AMX (cpu/amx.h): with bf16 matrices the forward pass, and
 * behind it dx = dy W and dw += dy^T x; with quantized ones the forward pass of many rows. Work is
 * cut into groups of rows, so large that they fill half of a second-level cache, times panels;
 * threads share these out. A group meets panel after panel, so that of what comes from further
 * away every byte serves hundreds of rows.
 *
 *   forward  A: rows of x as they lie. B: the packed weights.
 *   quantized  the same with rows as 8-bit codes.
 *   dx       A: rows of dy as they lie, N_CHUNK outputs at a time. B: 32 columns of W, turned on
 *            the way into a thread's own panel.
 *   dw       A: columns of x, turned into rows for all threads, R_CHUNK rows at a time; a group is
 *            of columns. B: 32 columns of dy, paired into a thread's own panel. A tile of the
 *            result is a run of the packed gradient.
 *
 * Rows whose length is no multiple of 32 are first copied, filled up with zeros. Chunks are added
 * in order, and their borders depend on the shapes alone. */
#include "cpu/amx_products.h"

#include <string.h>

#include "base/checked.h"

enum {
    N_CHUNK = 1024, /* outputs summed in tiles for dx: panels of 64 KiB */
    R_CHUNK = 2048, /* rows summed in tiles for dw: panels of 128
                       KiB, one rounding of bf16 gradients */
    LEAST_GROUP = 64, /* rows that make reading a panel worth while */
    INLINE_PRODUCTS = 1 << 16, /* below about this many a thread is not
                                  worth waking: few rows read weights */
};

static int64_t whole_steps(int64_t n) { return round_up(n, AMX_STEP); }

/* ---- work ---- */

/* Groups of rows x panels: item i is panel i % n_panels of group i / n_panels. */
struct cut {
    int64_t rows, group, n_panels; /* rows of all; of a full group, a multiple of 32 */
};

/* Groups of at most AMX_GROUP_BYTES; smaller ones where threads would have nothing to do. */
static struct cut cut_work(const struct cpu_device *c, int64_t rows, int64_t row_bytes,
                           int64_t n_panels)
{
    int64_t most = min_i64(max_i64(AMX_GROUP_BYTES / row_bytes, AMX_ROWS), AMX_GROUP_ROWS);
    int64_t enough = 4 * pool_n_threads(c->pool);
    while (most > LEAST_GROUP && n_panels * ceil_div(rows, most) < enough) most /= 2;
    int64_t groups = ceil_div(rows, most / AMX_ROWS * AMX_ROWS);
    return (struct cut){rows, round_up(ceil_div(rows, groups), AMX_ROWS), n_panels};
}

static int64_t n_items(const struct cut *cut)
{
    return ceil_div(cut->rows, cut->group) * cut->n_panels;
}

/* Rows of bf16 as A; columns [col0, col0 + cols) of them. Copied to `room` where they are no whole
 * steps. */
struct rows_job {
    struct tensor x;
    int64_t col0, cols;
    uint16_t *room;
};

static void copy_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct rows_job *j = ctx;
    int64_t width = whole_steps(j->cols);
    for (int64_t r = begin; r < end; r++) {
        uint16_t *out = j->room + r * width;
        memcpy(out, (const uint16_t *)tensor_row(j->x, r) + j->col0, (size_t)j->cols * sizeof *out);
        memset(out + j->cols, 0, (size_t)(width - j->cols) * sizeof *out);
    }
}

/* a, a_row, a_step, a_block of the product. */
static void rows_as_left(struct cpu_device *c, struct amx_product *p, struct rows_job *job)
{
    const uint8_t *data = (const uint8_t *)job->x.data + job->col0 * 2;
    int64_t bytes = job->x.cols * 2;
    if (job->cols % AMX_STEP) {
        pool_for(c->pool, job->x.rows, cpu_row_grain(job->cols), copy_rows, job);
        data = (const uint8_t *)job->room;
        bytes = whole_steps(job->cols) * 2;
    }
    p->a = data;
    p->a_row = bytes;
    p->a_step = AMX_STEP * 2;
    p->a_block = AMX_ROWS * bytes;
}

/* Where rows go may be far away: each calls for a row some way on before it is written. */
static inline void call_ahead(struct tensor out, int64_t row, const uint8_t *at, size_t bytes)
{
    enum { ROWS_AHEAD = 4 };
    if (row + ROWS_AHEAD >= out.rows) return;
    at += (size_t)(ROWS_AHEAD * out.cols) * element_bytes(out.dtype);
    __builtin_prefetch(at, 1);
    __builtin_prefetch(at + bytes - 1, 1);
}

/* ---- forward ---- */

struct forward {
    const struct cpu_kernels *kernels;
    struct tensor out;
    int64_t column, n_out;      /* of out: the matrix's part of it */
    const float *bias;          /* of the part */
    enum epilogue epilogue;
    struct cut cut;
    struct amx_product product; /* of all rows */
    int64_t row0;               /* of the group */
};

static void write_forward(const void *ctx, int64_t panel, int64_t row, int64_t n_rows,
                          const float *tile)
{
    const struct forward *f = ctx;
    int64_t n0 = panel * PANEL, n = min_i64(PANEL, f->n_out - n0);
    size_t bytes = element_bytes(f->out.dtype);
    const float *bias = f->bias ? f->bias + n0 : NULL;
    for (int64_t r = f->row0 + row; n_rows > 0; r++, n_rows--, tile += PANEL) {
        uint8_t *out = (uint8_t *)tensor_row(f->out, r) + (size_t)(f->column + n0) * bytes;
        call_ahead(f->out, r, out, (size_t)n * bytes);
        f->kernels->finish(out, f->out.dtype, tile, bias, f->epilogue, n);
    }
}

static void multiply_forward(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct forward f = *(const struct forward *)ctx;
    struct amx_product p = f.product;
    p.write = write_forward;
    p.ctx = &f;
    for (int64_t i = begin, next; i < end; i = next) {
        int64_t group = i / f.cut.n_panels, first = group * f.cut.n_panels;
        next = min_i64(end, first + f.cut.n_panels);
        f.row0 = group * f.cut.group;
        p.rows = min_i64(f.cut.group, f.cut.rows - f.row0);
        p.a = f.product.a + f.row0 * p.a_row;
        amx_multiply(&p, i - first, next - first);
    }
}

int64_t amx_matmul_workspace(int64_t n_rows, int64_t n_in)
{
    return n_rows * whole_steps(n_in) * 2;
}

void amx_matmul(struct cpu_device *c, struct tensor out, struct tensor x, const struct matrix *w,
                const float *bias, enum epilogue epilogue)
{
    int64_t n_panels = ceil_div(w->n_out, PANEL);
    struct rows_job job = {x, 0, x.cols, (uint16_t *)c->workspace};
    struct forward f = {
        .kernels = &c->kernels, .out = out, .n_out = w->n_out, .bias = bias, .epilogue = epilogue,
        .cut = cut_work(c, x.rows, whole_steps(x.cols) * 2, n_panels),
        .product = {
            .b = w->data,
            .b_panel = cpu_panel_steps(DTYPE_BF16, x.cols) * cpu_panel_step_bytes(DTYPE_BF16),
            .pairs = ceil_div(x.cols, 2),
            .b_is_far = true,
        },
    };
    rows_as_left(c, &f.product, &job);
    int64_t products = PANEL * x.cols * min_i64(x.rows, f.cut.group);
    pool_for(c->pool, n_items(&f.cut), ceil_div(INLINE_PRODUCTS, products), multiply_forward, &f);
}

/* ---- forward, quantized ---- */

struct quantized {
    struct forward f;           /* row0, cut, and where rows go */
    struct amx_quant_product product; /* of all rows */
    struct tensor x;
    int8_t *codes;              /* [blocks of rows][steps][32 rows][QUANT_BLOCK] */
    float *scales, *sums;       /* [blocks of rows][steps][32 rows] */
};

/* Rows of x as codes; the last block is filled up with zeros. */
static void quantize_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct quantized *q = ctx;
    int64_t steps = q->product.steps, last = q->x.cols % QUANT_BLOCK;
    for (int64_t r = begin; r < end; r++) {
        const uint16_t *x = r < q->x.rows ? tensor_row(q->x, r) : NULL;
        for (int64_t s = 0; s < steps; s++) {
            int64_t at = (r / AMX_ROWS * steps + s) * AMX_ROWS + r % AMX_ROWS;
            uint16_t block[QUANT_BLOCK] = {0};
            int64_t n = s + 1 == steps && last ? last : QUANT_BLOCK;
            uint32_t words[QUANT_WORDS];
            if (x) memcpy(block, x + s * QUANT_BLOCK, (size_t)n * sizeof *block);
            q->f.kernels->quantize_row(words, block, 1);
            memcpy(q->codes + at * QUANT_BLOCK, words, QUANT_BLOCK);
            memcpy(&q->scales[at], words + 8, sizeof *q->scales);
            q->sums[at] = (float)(int32_t)words[9] * q->scales[at];
        }
    }
}

static void multiply_quantized(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct quantized q = *(const struct quantized *)ctx;
    const struct cut *cut = &q.f.cut;
    struct amx_quant_product p = q.product;
    p.write = write_forward;
    p.ctx = &q.f;
    for (int64_t i = begin, next; i < end; i = next) {
        int64_t group = i / cut->n_panels, first = group * cut->n_panels;
        next = min_i64(end, first + cut->n_panels);
        q.f.row0 = group * cut->group;
        p.rows = min_i64(cut->group, cut->rows - q.f.row0);
        p.codes = q.codes + q.f.row0 * p.steps * QUANT_BLOCK;
        p.scales = q.scales + q.f.row0 * p.steps;
        p.sums = q.sums + q.f.row0 * p.steps;
        amx_quant_multiply(&p, i - first, next - first);
    }
}

int64_t amx_quantized_workspace(int64_t n_rows, int64_t n_in)
{
    if (n_rows < AMX_QUANT_ROWS) return 0;
    return round_up(n_rows, AMX_ROWS) * ceil_div(n_in, QUANT_BLOCK) *
           (QUANT_BLOCK + 2 * (int64_t)sizeof(float));
}

void amx_matmul_quantized(struct device *d, struct tensor out, struct tensor x,
                          const struct matrix *w, const float *bias, enum epilogue epilogue)
{
    struct cpu_device *c = cpu_of(d);
    int64_t rows = round_up(x.rows, AMX_ROWS), steps = ceil_div(x.cols, QUANT_BLOCK), column;
    struct quantized q = {.f = {.kernels = &c->kernels, .out = out, .epilogue = epilogue},
                          .product = {.steps = steps}, .x = x, .codes = (int8_t *)c->workspace};
    q.scales = (float *)(q.codes + rows * steps * QUANT_BLOCK);
    q.sums = q.scales + rows * steps;
    pool_for(c->pool, rows, cpu_row_grain(x.cols), quantize_rows, &q);
    struct matrix part;
    for (int32_t i = 0; matrix_part_of(d, w, i, &part, &column); i++) {
        q.f.column = column;
        q.f.n_out = part.n_out;
        q.f.bias = bias ? bias + column : NULL;
        q.f.cut = cut_work(c, x.rows, steps * QUANT_BLOCK, ceil_div(part.n_out, PANEL));
        q.product.w = part.data;
        q.product.panel_bytes = steps * cpu_panel_step_bytes(part.dtype);
        q.product.type = part.dtype;
        int64_t products = PANEL * x.cols * min_i64(x.rows, q.f.cut.group);
        pool_for(c->pool, n_items(&q.f.cut), ceil_div(INLINE_PRODUCTS, products),
                 multiply_quantized, &q);
    }
}

/* ---- dx = dy W ---- */

struct backward_x {
    const struct cpu_kernels *kernels;
    struct tensor dx;
    const struct matrix *w;
    int64_t n0, n1;             /* this chunk of outputs */
    struct cut cut;
    struct amx_product product; /* of all rows and this chunk */
    uint8_t *panels;            /* [threads][N_CHUNK / 2][PANEL][2] */
    int64_t row0, k0;           /* of the item */
};

static void write_backward_x(const void *ctx, int64_t panel, int64_t row, int64_t n_rows,
                             const float *tile)
{
    const struct backward_x *m = ctx;
    int64_t n = min_i64(PANEL, m->dx.cols - m->k0);
    enum epilogue e = m->n0 == 0 ? EPILOGUE_NONE : EPILOGUE_ADD;
    for (int64_t r = m->row0 + row; n_rows > 0; r++, n_rows--, tile += PANEL) {
        float *out = (float *)tensor_row(m->dx, r) + m->k0;
        call_ahead(m->dx, r, (const uint8_t *)out, (size_t)n * sizeof *out);
        m->kernels->finish(out, DTYPE_F32, tile, NULL, e, n);
    }
}

/* Columns [k0, k0 + PANEL) of the chunk's outputs. The next square lies too far on for the
 * processor to foresee it. */
static void turn_columns(const struct backward_x *m, int64_t k0, uint8_t *panel)
{
    int64_t words = ceil_div(m->w->n_in, 2), pairs = min_i64(PANEL / 2, words - k0 / 2);
    for (int64_t n = m->n0; n < m->n1; n += PANEL, panel += AMX_STEP_BYTES) {
        const uint32_t *square = (const uint32_t *)m->w->data +
                                 (n / PANEL * words + k0 / 2) * PANEL;
        if (n + PANEL < m->n1)
            for (int64_t i = 0; i < pairs * PANEL; i += 16)
                __builtin_prefetch(square + words * PANEL + i);
        amx_turn_pairs(panel, square, pairs);
    }
}

static void multiply_backward_x(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct backward_x m = *(const struct backward_x *)ctx;
    struct amx_product p = m.product;
    uint8_t *panel = m.panels + thread * (N_CHUNK * PANEL * 2);
    p.b = panel;
    p.write = write_backward_x;
    p.ctx = &m;
    for (int64_t i = begin; i < end; i++) {
        m.row0 = i / m.cut.n_panels * m.cut.group;
        m.k0 = i % m.cut.n_panels * PANEL;
        p.rows = min_i64(m.cut.group, m.cut.rows - m.row0);
        p.a = m.product.a + m.row0 * p.a_row;
        turn_columns(&m, m.k0, panel);
        amx_multiply(&p, 0, 1);
    }
}

void amx_backward_x(struct cpu_device *c, struct tensor dx, struct tensor dy,
                    const struct matrix *w)
{
    struct backward_x m = {.kernels = &c->kernels, .dx = dx, .w = w, .panels = c->workspace};
    uint8_t *room = m.panels + (int64_t)pool_n_threads(c->pool) * N_CHUNK * PANEL * 2;
    for (m.n0 = 0; m.n0 < w->n_out; m.n0 = m.n1) {
        m.n1 = min_i64(m.n0 + N_CHUNK, w->n_out);
        struct rows_job job = {dy, m.n0, m.n1 - m.n0, (uint16_t *)room};
        rows_as_left(c, &m.product, &job);
        m.product.pairs = whole_steps(m.n1 - m.n0) / 2;
        m.cut = cut_work(c, dy.rows, whole_steps(m.n1 - m.n0) * 2, ceil_div(w->n_in, PANEL));
        pool_for(c->pool, n_items(&m.cut), 1, multiply_backward_x, &m);
    }
}

/* ---- dw += dy^T x ---- */

struct backward_w {
    const struct cpu_kernels *kernels;
    struct matrix *dw;
    struct tensor dy, x;        /* this chunk's rows */
    uint32_t part;              /* which chunk this is */
    uint64_t key;               /* of a bf16 gradient's rounding */
    struct cut cut;             /* "rows" are columns of x */
    int64_t steps;              /* of R: 32 rows each */
    uint8_t *columns;           /* x: [blocks of 32 columns][steps][32 columns][32 rows] */
    uint8_t *panels;            /* [threads][steps][16 pairs of rows][PANEL][2]: dy */
    int64_t k0, panel;          /* of the item */
};

static void turn_x(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct backward_w *m = ctx;
    for (int64_t block = begin; block < end; block++) {
        int64_t k0 = block * AMX_ROWS, cols = min_i64(AMX_ROWS, m->x.cols - k0);
        for (int64_t s = 0; s < m->steps; s++)
            amx_turn_rows(m->columns + (block * m->steps + s) * AMX_STEP_BYTES,
                          (const uint16_t *)tensor_row(m->x, s * AMX_STEP) + k0, m->x.cols,
                          min_i64(AMX_STEP, m->x.rows - s * AMX_STEP), cols);
    }
}

/* Adds columns k0 + row ... of x to the gradient of the panel's outputs. */
static void write_backward_w(const void *ctx, int64_t panel, int64_t row, int64_t n_rows,
                             const float *tile)
{
    const struct backward_w *m = ctx;
    int64_t k = m->k0 + row, n = min_i64(n_rows, m->x.cols - k);
    if (n > 0) cpu_add_gradient(m->kernels, m->dw, m->panel, k, n, tile, m->part, m->key);
}

static void pair_dy(const struct backward_w *m, uint8_t *out)
{
    enum { ROWS_AHEAD = 32 };
    int64_t n0 = m->panel * PANEL, cols = min_i64(PANEL, m->dy.cols - n0);
    for (int64_t r = 0; r < m->dy.rows; r += AMX_STEP, out += AMX_STEP_BYTES) {
        const uint16_t *rows = (const uint16_t *)tensor_row(m->dy, r) + n0;
        int64_t n = min_i64(AMX_STEP, m->dy.rows - r);
        for (int64_t i = ROWS_AHEAD; i < ROWS_AHEAD + AMX_STEP && r + i < m->dy.rows; i++)
            __builtin_prefetch(rows + i * m->dy.cols);
        amx_pair_rows(out, rows, m->dy.cols, n, cols);
    }
}

static void multiply_backward_w(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct backward_w m = *(const struct backward_w *)ctx;
    uint8_t *panel = m.panels + thread * m.steps * AMX_STEP_BYTES;
    struct amx_product p = {
        .a_row = AMX_STEP * 2, .a_step = AMX_STEP_BYTES, .a_block = m.steps * AMX_STEP_BYTES,
        .b = panel, .pairs = m.steps * AMX_STEP / 2, .write = write_backward_w, .ctx = &m,
    };
    for (int64_t i = begin; i < end; i++) {
        m.k0 = i / m.cut.n_panels * m.cut.group;
        m.panel = i % m.cut.n_panels;
        p.rows = min_i64(m.cut.group, m.cut.rows - m.k0);
        p.a = m.columns + m.k0 / AMX_ROWS * p.a_block;
        pair_dy(&m, panel);
        amx_multiply(&p, 0, 1);
    }
}

static struct tensor some_rows(struct tensor t, int64_t row0, int64_t rows)
{
    t.data = tensor_row(t, row0);
    t.rows = rows;
    return t;
}

void amx_backward_w(struct cpu_device *c, struct matrix *dw, struct tensor dy, struct tensor x,
                    uint64_t rounding_key)
{
    struct backward_w m = {.kernels = &c->kernels, .dw = dw, .key = rounding_key,
                           .panels = c->workspace};
    int64_t columns = round_up(x.cols, AMX_ROWS);
    for (int64_t row = 0; row < x.rows; row += R_CHUNK, m.part++) {
        int64_t rows = min_i64(R_CHUNK, x.rows - row);
        m.dy = some_rows(dy, row, rows);
        m.x = some_rows(x, row, rows);
        m.steps = ceil_div(rows, AMX_STEP);
        m.columns = m.panels + (int64_t)pool_n_threads(c->pool) * m.steps * AMX_STEP_BYTES;
        m.cut = cut_work(c, columns, m.steps * AMX_STEP * 2, ceil_div(dw->n_out, PANEL));
        pool_for(c->pool, columns / AMX_ROWS, 1, turn_x, &m);
        pool_for(c->pool, n_items(&m.cut), 1, multiply_backward_w, &m);
    }
}

int64_t amx_backward_workspace(int64_t threads, int64_t max_rows, int64_t n_in)
{
    int64_t rows = whole_steps(min_i64(max_rows, R_CHUNK));
    int64_t w = threads * rows * PANEL * 2 + round_up(n_in, AMX_ROWS) * rows * 2;
    int64_t x = threads * N_CHUNK * PANEL * 2 + max_rows * N_CHUNK * 2;
    return max_i64(w, x);
}
