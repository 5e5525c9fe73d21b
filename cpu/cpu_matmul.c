/* Matrix products. Threads share out the panels of the matrix; a thread takes its panel through all
 * rows before it goes on, so weights come from memory once whatever the number of rows. Rows are
 * first packed in blocks of a tile's height, word by word side by side ([steps][rows]): a tile then
 * reads one short stream instead of twelve far ones that fall into the same cache set.
 *
 * What one thread has written reaches another at some 100 ns a line, and at several times that
 * where they share no cache. So few rows are packed by each thread, all for itself, the norm before
 * the product included: it then waits for the lines of x alone. SwiGLU likewise runs where its
 * operands were made: a thread takes the panels of the gate and those of the other half that belong
 * to them. Many rows are what few threads share out, not panels: each takes its rows through norm,
 * packing, product and SwiGLU, and weights come from memory once a thread at most. With more
 * threads many rows are packed once, by all. */
#include <string.h>

#include "base/checked.h"
#include "cpu/amx_products.h"
#include "cpu/cpu_internal.h"
#include "cpu/transpose.h"

enum {
    /* Packed rows that are walked through panel by panel: half of a second-level cache. */
    ROW_GROUP_BYTES = 512 << 10,
    /* Below about this many products a thread is not worth waking. */
    INLINE_PRODUCTS = 1 << 16,
    /* How far a lone tile reads ahead: of few rows, which the processor's own prefetching keeps up
     * with, and of more. Found by trying. */
    FEW_PREFETCH_BYTES = 3 << 10,
    PREFETCH_BYTES = 6 << 10,
    /* Rows of up to so many bytes, packed and as they are, are packed by each of up to so many
     * threads. With more threads packing would be a large part of what each does. */
    OWN_BYTES = 128 << 10,
    OWN_THREADS = 4,
    /* Rows that each thread must have at least to share out rows, not panels: since each reads the
     * weights, products must take longer than that. Quantized weights are read faster. */
    SHARED_ROWS = 24,
    SHARED_ROWS_QUANTIZED = 8,
    /* With so many times SHARED_ROWS for each thread they are in so many parts, so that one
     * that is late leaves some to others. */
    MOST_CHUNKS = 4,
    /* One part may be longer than the average by so much of it. */
    UNEVEN = 20,
};

struct matmul {
    const struct cpu_kernels *kernels;
    struct tensor out, x;
    const struct matrix *w; /* of one type */
    int64_t column;         /* of out: w's first output */
    int64_t panel0;         /* panels of the parts before w */
    const float *bias;
    enum epilogue epilogue;
    bool quantized;     /* rows of x become int8 codes */
    int64_t steps;      /* of a tile */
    int64_t step_bytes; /* of a panel */
    int64_t row_words;  /* 32-bit words of one packed row */
    int64_t n_blocks;   /* of rows */
    uint32_t *packed;   /* [blocks][row_words][rows of the block] */
};

static int64_t tile_rows(const struct matmul *m)
{
    return m->quantized ? m->kernels->quant_rows : m->kernels->tile_rows;
}

/* Rows are spread evenly: 13 rows are blocks of 7 and 6, not of 12 and 1. */
static int64_t block_begin(const struct matmul *m, int64_t block)
{
    return block * m->x.rows / m->n_blocks;
}

/* Steps [begin, end) of a row of x, quantized. */
static void quantize_steps(const struct matmul *m, int64_t row, int64_t begin, int64_t end,
                           uint32_t *out)
{
    const uint16_t *x = tensor_row(m->x, row);
    int64_t whole = min_i64(end, m->x.cols / QUANT_BLOCK);
    m->kernels->quantize_row(out, x + begin * QUANT_BLOCK, whole - begin);
    if (whole < end) { /* the last inputs are no block */
        uint16_t last[QUANT_BLOCK] = {0};
        memcpy(last, x + whole * QUANT_BLOCK, (size_t)(m->x.cols % QUANT_BLOCK) * sizeof *last);
        m->kernels->quantize_row(out + (whole - begin) * QUANT_WORDS, last, 1);
    }
}

/* Of all rows: threads share steps, evenly whatever the number of blocks,
 * and write to lines of their own. */
static void pack_steps(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct matmul *m = ctx;
    enum { CHUNK = 8, CHUNK_WORDS = CHUNK * QUANT_WORDS };
    uint32_t room[TILE_ROWS * CHUNK_WORDS];
    for (int64_t b = 0; b < m->n_blocks; b++) {
        int64_t row0 = block_begin(m, b), rows = block_begin(m, b + 1) - row0;
        uint32_t *out = m->packed + row0 * m->row_words;
        /* A lone row lies as it is to be read. */
        if (rows == 1) quantize_steps(m, row0, begin, end, out + begin * QUANT_WORDS);
        for (int64_t from = begin; rows > 1 && from < end; from += CHUNK) {
            int64_t to = min_i64(from + CHUNK, end);
            for (int64_t r = 0; r < rows; r++)
                quantize_steps(m, row0 + r, from, to, room + r * CHUNK_WORDS);
            transpose_words(out + from * QUANT_WORDS * rows, room, CHUNK_WORDS, rows,
                            (to - from) * QUANT_WORDS);
        }
    }
}

/* Words [from, to) of one row of x, as the kernels want them. */
static void row_words(const struct matmul *m, int64_t row, int64_t from, int64_t to, uint32_t *out)
{
    int64_t n_in = m->x.cols;
    if (m->x.dtype == DTYPE_F32) {
        memcpy(out, (const float *)tensor_row(m->x, row) + from, (size_t)(to - from) * 4);
        return;
    }
    const uint16_t *x = tensor_row(m->x, row);
    if (m->kernels->bf16_dot) {
        int64_t whole = min_i64(to, n_in / 2);
        if (whole > from) memcpy(out, x + 2 * from, (size_t)(whole - from) * 4);
        if (whole < to) out[whole - from] = x[n_in - 1]; /* an odd n_in: a pair with zero */
        return;
    }
    for (int64_t i = from; i < to; i++) out[i - from] = i < n_in ? (uint32_t)x[i] << 16 : 0;
}

static void pack_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct matmul *m = ctx;
    enum { CHUNK = 64 };
    uint32_t room[TILE_ROWS * CHUNK];
    for (int64_t b = begin; b < end; b++) {
        int64_t row0 = block_begin(m, b), rows = block_begin(m, b + 1) - row0;
        uint32_t *out = m->packed + row0 * m->row_words;
        for (int64_t from = 0; from < m->row_words; from += CHUNK) {
            int64_t to = min_i64(from + CHUNK, m->row_words);
            for (int64_t r = 0; r < rows; r++) row_words(m, row0 + r, from, to, room + r * CHUNK);
            transpose_words(out + from * rows, room, CHUNK, rows, to - from);
        }
    }
}

static void pack_rows(const struct cpu_device *c, struct matmul *m)
{
    int64_t rows = m->x.rows;
    if (!m->quantized) {
        pool_for(c->pool, m->n_blocks, 2, pack_blocks, m);
        return;
    }
    bool few = rows * m->x.cols <= CPU_INLINE_ELEMENTS;
    int64_t grain = few ? m->steps : max_i64(1, CPU_INLINE_ELEMENTS / 2 / (rows * QUANT_BLOCK));
    pool_for(c->pool, m->steps, grain, pack_steps, m);
}

static uint8_t *tile_output(const struct matmul *m, int64_t row, int64_t n0)
{
    return (uint8_t *)tensor_row(m->out, row) +
           (size_t)(m->column + n0) * element_bytes(m->out.dtype);
}

typedef void (*tile_fn)(const struct matmul_tile *t);

static tile_fn tile_kernel(const struct cpu_kernels *k, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32: return k->matmul_f32;
    case DTYPE_BF16: return k->matmul_bf16;
    case DTYPE_Q8_0: return k->matmul_q8;
    case DTYPE_Q4_0: return k->matmul_q4;
    default: ASSERT(k->matmul_kquant[dtype]); return k->matmul_kquant[dtype];
    }
}

/* One panel times one block of rows, through the epilogue, into out. */
static void multiply_tile(const struct matmul *m, int64_t panel, int64_t block,
                          const char *prefetch, int64_t prefetch_step)
{
    const struct cpu_kernels *k = m->kernels;
    int64_t row0 = block_begin(m, block), rows = block_begin(m, block + 1) - row0;
    int64_t n0 = panel * PANEL, n = min_i64(PANEL, m->w->n_out - n0);
    size_t out_bytes = (size_t)n * element_bytes(m->out.dtype);
    _Alignas(64) float tile[TILE_ROWS * PANEL];
    /* What the tile goes to may be far away: call for it before the arithmetic, not after. */
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *out = tile_output(m, row0 + r, n0);
        __builtin_prefetch(out, 1);
        __builtin_prefetch(out + out_bytes - 1, 1);
    }
    struct matmul_tile t = {
        .out = tile,
        .x = m->packed + row0 * m->row_words,
        .w = (const uint8_t *)m->w->data + panel * m->steps * m->step_bytes,
        .steps = m->steps,
        .rows = (int32_t)rows,
        .prefetch = prefetch,
        .prefetch_step = prefetch_step,
    };
    tile_kernel(k, m->w->dtype)(&t);

    k->finish_tile(&(struct tile_output){
        .out = tile_output(m, row0, n0),
        .dtype = m->out.dtype,
        .out_stride = m->out.cols,
        .y = tile,
        .bias = m->bias ? m->bias + n0 : NULL,
        .epilogue = m->epilogue,
        .rows = rows,
        .n = n,
    });
}

/* Each tile calls for a part of the lines that the thread wants next: a lone block for those some
 * way ahead of itself, several blocks each for their part of the next panel. So reading
 * memory never waits for arithmetic. */
static void multiply_panel(const struct matmul *m, int64_t panel, int64_t block0, int64_t block1)
{
    int64_t n = block1 - block0, panel_bytes = m->steps * m->step_bytes;
    int64_t ahead = m->x.rows <= FEW_ROWS ? FEW_PREFETCH_BYTES : PREFETCH_BYTES;
    const char *w = (const char *)m->w->data + panel * panel_bytes;
    for (int64_t b = block0; b < block1; b++) {
        const char *prefetch = n == 1 ? w + min_i64(ahead, panel_bytes)
                                      : w + panel_bytes + panel_bytes * (b - block0) / n;
        multiply_tile(m, panel, b, prefetch, m->step_bytes / n);
    }
}

static void multiply_panels(const struct matmul *m, int64_t begin, int64_t end)
{
    int64_t group = max_i64(1, ROW_GROUP_BYTES / (m->row_words * 4) / tile_rows(m));
    for (int64_t b = 0; b < m->n_blocks; b += group)
        for (int64_t panel = begin; panel < end; panel++)
            multiply_panel(m, panel, b, min_i64(b + group, m->n_blocks));
}

/* All of a product. */
struct product {
    struct matmul parts[MATRIX_PARTS];
    struct matrix w[MATRIX_PARTS];
    int32_t n;
    struct tensor swiglu; /* data NULL: none; else where it goes, from the parts' out */
    /* Where each thread packs for itself: so many bytes of the workspace for each, else 0. */
    int64_t own_bytes;
    struct tensor before; /* what is normed to be x; data NULL: x is there */
    const struct norm *norm;
    bool has_packed[OWN_THREADS];
    int64_t n_panels; /* to share out, or to be taken with every chunk of rows */
    int64_t n_chunks; /* of rows, to share out instead; else 0 */
    int64_t chunk_bytes; /* of the workspace, for each thread to pack one */
};

/* Packed rows, and room for what the norm makes of them. */
static int64_t own_bytes(int64_t n_rows, int64_t n_in, int64_t row_words, enum dtype x)
{
    return round_up(n_rows * (row_words * 4 + n_in * (int64_t)element_bytes(x)), DEVICE_ALIGN);
}

/* Calls for all of a tensor at once: half of it is another thread's work, and line by
 * line would take many times as long. */
static void call_for(struct tensor t)
{
    const char *at = t.data, *end = at + (size_t)(t.rows * t.cols) * element_bytes(t.dtype);
    for (; at < end; at += 64) __builtin_prefetch(at, 0, 2);
}

static void norm_rows(const struct cpu_kernels *k, struct tensor out, struct tensor x,
                      const struct norm *norm)
{
    for (int64_t r = 0; r < x.rows; r++)
        k->norm_row(tensor_row(out, r), out.dtype, tensor_row(x, r), x.cols, norm);
}

/* All rows, by one thread. */
static void pack(const struct matmul *m, int32_t thread)
{
    if (m->quantized) pack_steps((void *)m, 0, m->steps, thread);
    else pack_blocks((void *)m, 0, m->n_blocks, thread);
}

/* The rows as this thread is to read them. Its own come with its first range. */
static uint32_t *packed_rows(struct product *p, int32_t thread)
{
    struct matmul m = p->parts[0];
    if (p->own_bytes == 0) return m.packed;
    m.packed += thread * p->own_bytes / (int64_t)sizeof *m.packed;
    if (p->has_packed[thread]) return m.packed;
    call_for(p->before.data ? p->before : m.x);
    if (p->before.data) {
        m.x.data = m.packed + m.x.rows * m.row_words;
        norm_rows(m.kernels, m.x, p->before, p->norm);
    }
    pack(&m, thread);
    p->has_packed[thread] = true;
    return m.packed;
}

/* Panels [begin, end) of all parts, counted through. */
static void multiply_parts(const struct product *p, uint32_t *packed, int64_t begin, int64_t end)
{
    for (int32_t i = 0; i < p->n; i++) {
        struct matmul m = p->parts[i];
        int64_t from = max_i64(begin - m.panel0, 0);
        int64_t to = min_i64(end - m.panel0, ceil_div(m.w->n_out, PANEL));
        m.packed = packed;
        if (from < to) multiply_panels(&m, from, to);
    }
}

static void multiply_range(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    struct product *p = ctx;
    uint32_t *packed = packed_rows(p, thread);
    multiply_parts(p, packed, begin, end);
    if (!p->swiglu.data) return;
    struct tensor gate_up = p->parts[0].out, out = p->swiglu;
    size_t bytes = element_bytes(out.dtype), at = (size_t)(begin * PANEL) * bytes;
    multiply_parts(p, packed, begin + out.cols / PANEL, end + out.cols / PANEL);
    for (int64_t r = 0; r < out.rows; r++) {
        const uint8_t *gate = (const uint8_t *)tensor_row(gate_up, r) + at;
        p->parts[0].kernels->swiglu_row((uint8_t *)tensor_row(out, r) + at, out.dtype, gate,
                                        gate + (size_t)out.cols * bytes, (end - begin) * PANEL);
    }
}

/* Rows [row0, row0 + n) of a tensor. */
static struct tensor rows_of(struct tensor t, int64_t row0, int64_t n)
{
    t.data = tensor_row(t, row0);
    t.rows = n;
    return t;
}

/* Chunks of rows, from norm to SwiGLU. */
static void multiply_chunks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct product *whole = ctx;
    int64_t rows = whole->parts[0].x.rows;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        struct product p = *whole;
        int64_t row0 = chunk * rows / p.n_chunks, n = (chunk + 1) * rows / p.n_chunks - row0;
        for (int32_t i = 0; i < p.n; i++) {
            struct matmul *m = &p.parts[i];
            m->x = rows_of(m->x, row0, n);
            m->out = rows_of(m->out, row0, n);
            m->n_blocks = ceil_div(n, tile_rows(m));
            m->packed += thread * p.chunk_bytes / (int64_t)sizeof *m->packed;
        }
        if (p.before.data)
            norm_rows(p.parts[0].kernels, p.parts[0].x, rows_of(p.before, row0, n), p.norm);
        if (p.swiglu.data) p.swiglu = rows_of(p.swiglu, row0, n);
        pack(&p.parts[0], thread);
        multiply_range(&p, 0, p.n_panels, thread);
    }
}

/* How many chunks of rows to share out; 0: panels are. */
static int64_t row_chunks(const struct cpu_device *c, const struct matmul *m)
{
    int64_t rows = m->x.rows, threads = pool_n_threads(c->pool);
    int64_t most = OWN_BYTES / (m->row_words * 4);
    int64_t least = m->quantized ? SHARED_ROWS_QUANTIZED : SHARED_ROWS;
    if (threads == 1 || threads > OWN_THREADS || most < least || rows < threads * least) return 0;
    int64_t each = max_i64(1, min_i64(MOST_CHUNKS, rows / (threads * SHARED_ROWS)));
    int64_t n = threads * max_i64(each, ceil_div(rows, threads * most));
    return (ceil_div(rows, n) * n - rows) * UNEVEN <= rows ? n : 0;
}

static int64_t quantized_words(int64_t n_in) { return ceil_div(n_in, QUANT_BLOCK) * QUANT_WORDS; }

int64_t cpu_matmul_workspace(const struct cpu_device *c, int64_t n_rows, int64_t n_in)
{
    int64_t words = max_i64(round_up(n_in, 2), quantized_words(n_in));
    int64_t threads = pool_n_threads(c->pool);
    int64_t own = min_i64(own_bytes(n_rows, n_in, words, DTYPE_F32), OWN_BYTES) *
                  min_i64(threads, OWN_THREADS);
    int64_t amx = max_i64(amx_matmul_workspace(n_rows, n_in),
                          amx_quantized_workspace(n_rows, n_in));
    return max_i64(max_i64(n_rows * words * 4, own), amx);
}

static bool runs_on_amx(const struct cpu_device *c, const struct matrix *w, int64_t n_rows)
{
    return c->kernels.amx &&
           (w->dtype == DTYPE_BF16 || (cpu_is_quantized(w->dtype) && n_rows >= AMX_QUANT_ROWS));
}

/* A product on tiles of vectors, all but what comes before and after. */
static void set_up(struct cpu_device *c, struct product *p, struct tensor out, struct tensor x,
                      const struct matrix *w, const float *bias, enum epilogue epilogue)
{
    bool widened = w->dtype == DTYPE_BF16 && !c->kernels.bf16_dot;
    bool quantized = cpu_is_quantized(w->dtype); /* all parts are, or the one */
    int64_t steps = cpu_panel_steps(w->dtype, x.cols), column;
    struct matmul m = {
        .kernels = &c->kernels, .out = out, .x = x, .epilogue = epilogue,
        .quantized = quantized,
        .steps = steps,
        .row_words = steps * (quantized ? QUANT_WORDS : widened ? 2 : 1),
        .packed = (uint32_t *)c->workspace,
    };
    m.n_blocks = ceil_div(x.rows, tile_rows(&m));
    int64_t own = own_bytes(x.rows, x.cols, m.row_words, x.dtype);
    p->n_chunks = row_chunks(c, &m);
    if (p->n_chunks > 0)
        p->chunk_bytes = round_up(ceil_div(x.rows, p->n_chunks) * m.row_words * 4, DEVICE_ALIGN);
    else if (own <= OWN_BYTES && pool_n_threads(c->pool) <= OWN_THREADS) p->own_bytes = own;
    for (; matrix_part_of(&c->base, w, p->n, &p->w[p->n], &column); p->n++) {
        struct matmul *part = &p->parts[p->n];
        *part = m;
        part->w = &p->w[p->n];
        part->bias = bias ? bias + column : NULL;
        part->column = column;
        part->panel0 = p->n_panels;
        part->step_bytes = cpu_panel_step_bytes(part->w->dtype);
        p->n_panels += ceil_div(part->w->n_out, PANEL);
    }
}

static void multiply(struct cpu_device *c, struct product *p)
{
    struct tensor x = p->parts[0].x;
    if (p->n_chunks > 0) {
        pool_for(c->pool, p->n_chunks, 1, multiply_chunks, p);
        return;
    }
    if (p->own_bytes == 0) pack_rows(c, &p->parts[0]);
    int64_t products = PANEL * x.cols * x.rows; /* of a panel */
    pool_for(c->pool, p->n_panels, ceil_div(INLINE_PRODUCTS, products), multiply_range, p);
}

void cpu_matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                const float *bias, enum epilogue epilogue)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(x.dtype == (cpu_is_quantized(w->dtype) ? DTYPE_BF16 : w->dtype));
    ASSERT(x.cols == w->n_in && out.cols == w->n_out && out.rows == x.rows);
    ASSERT(epilogue != EPILOGUE_ADD || out.dtype == DTYPE_F32);
    ASSERT(cpu_matmul_workspace(c, x.rows, x.cols) <= c->workspace_bytes);
    if (x.rows == 0) return;
    if (runs_on_amx(c, w, x.rows)) {
        if (w->dtype == DTYPE_BF16) amx_matmul(c, out, x, w, bias, epilogue);
        else amx_matmul_quantized(d, out, x, w, bias, epilogue);
        return;
    }
    struct product p = {0};
    set_up(c, &p, out, x, w, bias, epilogue);
    multiply(c, &p);
}

/* Does each panel of the gate have one of the other half that it meets in SwiGLU? */
static bool halves_match(const struct product *p, int64_t n_ff)
{
    for (int32_t i = 0; i + 1 < p->n; i++)
        if (p->w[i].n_out % PANEL != 0) return false;
    return n_ff % PANEL == 0;
}

void cpu_norm_matmul(struct device *d, struct tensor out, const struct norm_matmul *m)
{
    struct cpu_device *c = cpu_of(d);
    struct tensor y = m->gate_up.data ? m->gate_up : out;
    struct product p = {0};
    ASSERT(m->x.dtype == DTYPE_F32 && m->x.rows == m->h.rows && m->x.cols == m->h.cols);
    ASSERT(m->h.cols == m->w->n_in && y.cols == m->w->n_out && y.rows == m->h.rows &&
           out.rows == y.rows);
    ASSERT(cpu_matmul_workspace(c, m->h.rows, m->h.cols) <= c->workspace_bytes);
    if (out.rows == 0) return;
    bool amx = runs_on_amx(c, m->w, out.rows);
    if (!amx) set_up(c, &p, y, m->h, m->w, m->bias, m->epilogue);
    /* Few rows wait for memory, which two streams in turn would keep waiting. */
    bool swiglu = m->gate_up.data && !amx && out.rows > FEW_ROWS && halves_match(&p, out.cols);
    p.before = m->x, p.norm = m->norm;
    if (p.own_bytes == 0 && p.n_chunks == 0) cpu_norm(d, m->h, m->x, m->norm);
    if (swiglu) p.swiglu = out, p.n_panels /= 2;
    if (amx) cpu_matmul(d, y, m->h, m->w, m->bias, m->epilogue);
    else multiply(c, &p);
    if (m->gate_up.data && !swiglu) cpu_swiglu(d, out, m->gate_up);
}
