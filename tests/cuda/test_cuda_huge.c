/* Tensors of more than 2^32 elements on the CUDA device, on the interpreter: each operation's
 * results at both ends against the CPU's for the same values. Between the ends nothing is written,
 * and of each grid a few blocks at the ends are run; an index that 32 bits cannot hold goes astray
 * and is seen. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cuda/cuda_side.h"
#include "tests/ptxsim/ptxsim.h"

#pragma weak ptxsim_alloc
#pragma weak ptxsim_set_ends
#pragma weak ptxsim_set_memory

/* Rows of COLS, or half or twice as many columns. The CPU has the ends alone, as neighbours. */
enum { COLS = 256, END_ROWS = 320, NEAR_ROWS = 2 * END_ROWS, NEAR = NEAR_ROWS * 2 * COLS };
static const int64_t FAR_ROWS = ((int64_t)1 << 25) + 77;
/* Rows of matrices: ends of END_OUT rows, which the largest tile has. */
enum { N_IN = 4096, END_OUT = 256, NEAR_OUT = 2 * END_OUT };
static const int64_t FAR_OUT = ((int64_t)1 << 20) + END_OUT;

static const struct workspace_shape plan = {
    .dtype = DTYPE_BF16, .max_rows = NEAR_ROWS, .max_logit_rows = 128, .n_embd = N_IN, .n_ff = 4 * N_IN, .n_head = 4,
    .n_kv_head = 4, .head_dim = 64, .vocab_size = NEAR_OUT, .block_size = 4096,
};

struct values { float a[NEAR], b[NEAR], weight[2 * COLS], table[NEAR_OUT * N_IN]; };

static struct values *open_all(struct side sides[N_SIDES])
{
    if (!on_interpreter()) skip();
    ptxsim_set_memory((size_t)1 << 40);
    sides_open(sides, &plan);
    if (side_dtype(&sides[SIDE_CUDA], DTYPE_BF16) != DTYPE_BF16) {
        sides_close(sides);
        skip(); /* what is different before sm_80 is no index */
    }
    struct values *v = malloc(sizeof *v);
    struct cpu_rng rng = {1};
    cpu_rng_fill(&rng, v->a, NEAR);
    cpu_rng_fill(&rng, v->b, NEAR);
    cpu_rng_fill(&rng, v->weight, 2 * COLS);
    cpu_rng_fill(&rng, v->table, NEAR_OUT * N_IN);
    return v;
}

static void close_all(struct side sides[N_SIDES], struct values *v)
{
    free(v);
    sides_close(sides);
}

/* Never written; not even zeros, as the device's own alloc has them. */
static void *far_bytes(struct side *s, int64_t bytes)
{
    assert_true(s->n_blocks < MAX_SIDE_BLOCKS);
    void *p = ptxsim_alloc((size_t)bytes);
    assert_non_null(p);
    s->blocks[s->n_blocks].p = p;
    s->blocks[s->n_blocks++].bytes = (size_t)bytes;
    return p;
}

static int64_t rows_of(const struct side *s) { return s->is_cuda ? FAR_ROWS : NEAR_ROWS; }

/* values [NEAR_ROWS, cols] at the ends, or (NULL) nothing. */
static struct tensor ends(struct side *s, enum dtype dtype, int64_t cols, const float *values)
{
    struct tensor t = {NULL, side_dtype(s, dtype), rows_of(s), cols};
    int64_t n = END_ROWS * cols;
    t.data = s->is_cuda ? far_bytes(s, dtype_bytes(t.dtype, t.rows * cols))
                        : side_bytes(s, dtype_bytes(t.dtype, t.rows * cols), NULL);
    if (!values) return t;
    float *rounded = malloc((size_t)(2 * n) * sizeof *rounded);
    for (int64_t i = 0; i < 2 * n; i++) rounded[i] = rounded_to(dtype, values[i]);
    side_write(s, t, 0, n, rounded);
    side_write(s, t, t.rows * cols - n, n, rounded + n);
    free(rounded);
    return t;
}

/* The same of whole numbers: [NEAR_ROWS]. */
static int32_t *int_ends(struct side *s, const int32_t *values)
{
    if (!s->is_cuda) return side_ints(s, values, NEAR_ROWS);
    int32_t *p = far_bytes(s, FAR_ROWS * (int64_t)sizeof *p);
    s->d->ops->upload(s->d, p, values, END_ROWS * sizeof *p);
    s->d->ops->upload(s->d, p + FAR_ROWS - END_ROWS, values + END_ROWS, END_ROWS * sizeof *p);
    side_sync(s);
    return p;
}

/* The first and the last n elements. */
static void read_ends(struct side *s, struct tensor t, int64_t n, float *out)
{
    int64_t last = t.rows * t.cols - n;
    side_read(s, (struct tensor){t.data, t.dtype, 1, n}, out);
    side_read(s, (struct tensor){(uint8_t *)t.data + dtype_bytes(t.dtype, last), t.dtype, 1, n}, out + n);
}

/* ---- operations on rows: first and last row ---- */

typedef struct tensor (*rows_operation)(struct side *s, const struct values *v);

static struct tensor run_norm(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, COLS, NULL);
    struct norm n = {.weight = side_floats(s, v->weight, COLS), .bias = side_floats(s, v->weight + COLS, COLS),
                     .eps = 1e-5f};
    s->d->ops->norm(s->d, out, ends(s, DTYPE_F32, COLS, v->a), &n);
    return out;
}

static struct tensor run_gelu(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, COLS, NULL);
    s->d->train->gelu(s->d, out, ends(s, DTYPE_BF16, COLS, v->a), false);
    return out;
}

static struct tensor run_gelu_backward(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, COLS, NULL), pre = ends(s, DTYPE_BF16, COLS, v->a);
    s->d->train->gelu_backward(s->d, out, ends(s, DTYPE_F32, COLS, v->b), pre, true);
    return out;
}

static struct tensor run_swiglu(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, COLS, NULL);
    s->d->ops->swiglu(s->d, out, ends(s, DTYPE_BF16, 2 * COLS, v->a));
    return out;
}

static struct tensor run_swiglu_backward(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, 2 * COLS, NULL), dy = ends(s, DTYPE_F32, COLS, v->b);
    s->d->train->swiglu_backward(s->d, out, dy, ends(s, DTYPE_BF16, 2 * COLS, v->a));
    return out;
}

static struct tensor run_conversion(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_BF16, COLS, NULL);
    s->d->train->dropout(s->d, out, ends(s, DTYPE_F32, COLS, v->a), (struct dropout){0});
    return out;
}

static struct tensor run_add(struct side *s, const struct values *v)
{
    struct tensor out = ends(s, DTYPE_F32, COLS, v->a);
    s->d->train->add_dropout(s->d, out, ends(s, DTYPE_F32, COLS, v->b), (struct dropout){0});
    return out;
}

static struct tensor run_gather(struct side *s, const struct values *v)
{
    struct tensor x = ends(s, DTYPE_F32, COLS, v->a), out = side_tensor(s, DTYPE_F32, 3, COLS, NULL);
    int32_t rows[] = {(int32_t)x.rows - 2, 0, (int32_t)x.rows - 1};
    s->d->ops->gather(s->d, out, x, side_ints(s, rows, 3));
    return out;
}

static struct tensor run_cross_entropy(struct side *s, const struct values *v)
{
    int32_t targets[NEAR_ROWS];
    for (int32_t i = 0; i < NEAR_ROWS; i++) targets[i] = i * 37 % COLS;
    struct tensor x = ends(s, DTYPE_F32, COLS, v->a), out = ends(s, DTYPE_BF16, COLS, NULL);
    struct loss_row *losses = s->is_cuda ? far_bytes(s, FAR_ROWS * (int64_t)sizeof *losses)
                                         : side_bytes(s, NEAR_ROWS * (int64_t)sizeof *losses, NULL);
    struct loss_options o = {.scale = side_floats(s, &(float){1}, 1), .label_smoothing = 0.1f};
    s->d->train->cross_entropy(s->d, out, x, int_ends(s, targets), &o, losses);
    return out;
}

/* ---- attention: two query heads of one key, 64 wide, which are COLS columns ---- */

enum { HEAD = 64, SPAN = 32, PAGES = SPAN / KV_PAGE_TOKENS };

static struct attention heads(struct side *s, const struct values *v)
{
    return (struct attention){.n_head = 2, .n_kv_head = 1, .head_dim = HEAD, .scale = 0.125f,
                              .rope = side_floats(s, v->table, NEAR_ROWS * HEAD)};
}

static struct tensor run_rope_backward(struct side *s, const struct values *v)
{
    int32_t positions[NEAR_ROWS];
    for (int32_t i = 0; i < NEAR_ROWS; i++) positions[i] = i;
    struct tensor out = ends(s, DTYPE_F32, COLS, v->a);
    struct batch b = {.n_rows = (int32_t)out.rows, .positions = int_ends(s, positions)};
    struct attention a = heads(s, v);
    s->d->train->rope_backward(s->d, out, out, (struct tensor){0}, NULL, NULL, &b, &a);
    return out;
}

static struct kv_cache cache_of(struct side *s, int64_t n_layer, int64_t n_pages)
{
    int64_t bytes = n_layer * n_pages * s->d->ops->kv_page_bytes(s->d, DTYPE_BF16, 1, HEAD);
    void *data = s->is_cuda ? far_bytes(s, bytes) : side_bytes(s, bytes, NULL);
    return (struct kv_cache){data, DTYPE_BF16, (int32_t)n_layer, (int32_t)n_pages, 1, HEAD};
}

/* Rotated in place, and written to the cache. */
static struct tensor run_kv_write(struct side *s, const struct values *v)
{
    int32_t positions[NEAR_ROWS];
    for (int32_t i = 0; i < NEAR_ROWS; i++) positions[i] = i;
    struct tensor out = ends(s, DTYPE_F32, COLS, v->a);
    struct batch b = {.n_rows = (int32_t)out.rows, .positions = int_ends(s, positions),
                      .slots = int_ends(s, positions)};
    struct attention a = heads(s, v);
    struct kv_cache kv = cache_of(s, 1, NEAR_ROWS / KV_PAGE_TOKENS);
    s->d->ops->kv_write(s->d, out, &b, &a, &kv, 0);
    return out;
}

/* Two sequences, the second one the last rows; all read the same few pages. */
static struct tensor run_attention(struct side *s, const struct values *v)
{
    int32_t positions[SPAN], rows = (int32_t)rows_of(s), table[NEAR_ROWS / KV_PAGE_TOKENS];
    for (int32_t i = 0; i < SPAN; i++) positions[i] = i;
    for (int32_t i = 0; i < NEAR_ROWS / KV_PAGE_TOKENS; i++) table[i] = i % PAGES;
    struct attention a = heads(s, v);
    struct kv_cache kv = cache_of(s, 1, PAGES);
    struct batch keys = {.n_rows = SPAN, .positions = side_ints(s, positions, SPAN)};
    keys.slots = keys.positions;
    if (s->is_cuda) ptxsim_set_ends(0);
    s->d->ops->kv_write(s->d, side_tensor(s, DTYPE_F32, SPAN, COLS, v->b), &keys, &a, &kv, 0);
    if (s->is_cuda) ptxsim_set_ends(3);
    struct span spans[] = {{0, rows - SPAN, 0, 0}, {rows - SPAN, SPAN, 0, 0}};
    struct batch b = {.n_rows = rows, .n_spans = 2, .spans = side_bytes(s, sizeof spans, spans),
                      .pages = side_ints(s, table, NEAR_ROWS / KV_PAGE_TOKENS)};
    struct tensor out = ends(s, DTYPE_BF16, 2 * HEAD, NULL);
    s->d->ops->attention(s->d, out, ends(s, DTYPE_F32, COLS, v->a), &b, &a, &kv, 0);
    return out;
}

static const struct { const char *name; rows_operation run; } rows_operations[] = {
    {"norm", run_norm}, {"gelu", run_gelu}, {"gelu_backward", run_gelu_backward}, {"swiglu", run_swiglu},
    {"swiglu_backward", run_swiglu_backward}, {"conversion", run_conversion}, {"add", run_add},
    {"gather", run_gather}, {"cross_entropy", run_cross_entropy}, {"rope_backward", run_rope_backward},
    {"kv_write", run_kv_write}, {"attention", run_attention},
};

static void test_rows(void **state)
{
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    for (size_t i = 0; i < sizeof rows_operations / sizeof *rows_operations; i++) {
        float out[N_SIDES][2 * COLS];
        int64_t n = 0;
        for (int s = 0; s < N_SIDES; s++) {
            if (s == SIDE_CUDA) ptxsim_set_ends(3);
            struct tensor t = rows_operations[i].run(&sides[s], v);
            ptxsim_set_ends(0);
            n = t.cols < COLS ? t.cols : COLS;
            read_ends(&sides[s], t, n, out[s]);
            side_clear(&sides[s]);
        }
        assert_all_near(out[1], out[0], 2 * n, n, tolerance_of(DTYPE_BF16), rows_operations[i].name);
    }
    close_all(sides, v);
}

/* ---- keys and values: pages of the last layer's end ---- */

static void attend(struct side *s, const struct values *v, int64_t n_layer, int64_t n_pages, float *out)
{
    enum { ROWS = 2 * SPAN };
    int32_t positions[ROWS], slots[ROWS], pages[2 * PAGES];
    for (int32_t i = 0; i < 2 * PAGES; i++) pages[i] = (int32_t)(i % 2 ? n_pages - 1 - i : i);
    for (int32_t i = 0; i < ROWS; i++) {
        positions[i] = i % SPAN;
        slots[i] = pages[i / KV_PAGE_TOKENS] * KV_PAGE_TOKENS + i % KV_PAGE_TOKENS;
    }
    struct span spans[] = {{0, SPAN, 0, 0}, {SPAN, SPAN, 0, PAGES}}, last[] = {{0, 1, SPAN - 1, 0}, {1, 1, SPAN - 1, PAGES}};
    int32_t last_rows[] = {SPAN - 1, ROWS - 1}, last_positions[] = {SPAN - 1, SPAN - 1};
    int32_t last_slots[] = {slots[SPAN - 1], slots[ROWS - 1]};
    struct attention a = heads(s, v);
    struct kv_cache kv = cache_of(s, n_layer, n_pages);
    struct tensor qkv = side_tensor(s, DTYPE_F32, ROWS, COLS, v->a), decoded = side_tensor(s, DTYPE_F32, 2, COLS, NULL);
    s->d->ops->gather(s->d, decoded, qkv, side_ints(s, last_rows, 2));
    struct batch b = {.n_rows = ROWS, .n_spans = 2, .positions = side_ints(s, positions, ROWS),
                      .slots = side_ints(s, slots, ROWS), .spans = side_bytes(s, sizeof spans, spans),
                      .pages = side_ints(s, pages, 2 * PAGES)};
    struct tensor prompts = side_tensor(s, DTYPE_BF16, ROWS, 2 * HEAD, NULL);
    s->d->ops->kv_write(s->d, qkv, &b, &a, &kv, kv.n_layer - 1);
    s->d->ops->attention(s->d, prompts, qkv, &b, &a, &kv, kv.n_layer - 1);
    side_read(s, prompts, out);
    /* And once more the last position of each, as decoding has it. */
    b.n_rows = 2;
    b.positions = side_ints(s, last_positions, 2);
    b.slots = side_ints(s, last_slots, 2);
    b.spans = side_bytes(s, sizeof last, last);
    struct tensor tokens = side_tensor(s, DTYPE_BF16, 2, 2 * HEAD, NULL);
    if (s->is_cuda) {
        s->d->ops->kv_attention(s->d, tokens, decoded, &b, &a, &kv, kv.n_layer - 1);
    } else {
        s->d->ops->kv_write(s->d, decoded, &b, &a, &kv, kv.n_layer - 1);
        s->d->ops->attention(s->d, tokens, decoded, &b, &a, &kv, kv.n_layer - 1);
    }
    side_read(s, tokens, out + ROWS * 2 * HEAD);
    side_clear(s);
}

static void test_pages(void **state)
{
    enum { N = (2 * SPAN + 2) * 2 * HEAD };
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    float out[N_SIDES][N];
    attend(&sides[SIDE_CPU], v, 1, 8, out[SIDE_CPU]);
    attend(&sides[SIDE_CUDA], v, 3, (int64_t)1 << 21, out[SIDE_CUDA]); /* 2^32 elements a layer */
    assert_all_near(out[1], out[0], N, 2 * HEAD, tolerance_of(DTYPE_BF16), "attention");
    close_all(sides, v);
}

/* ---- matrices: first and last rows ---- */

static const enum dtype weight_types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0};
enum { N_WEIGHT_TYPES = sizeof weight_types / sizeof *weight_types };

static struct matrix matrix_ends(struct side *s, enum dtype dtype, const float *values)
{
    struct matrix w = {.dtype = dtype, .n_out = s->is_cuda ? FAR_OUT : NEAR_OUT, .n_in = N_IN};
    int64_t bytes = s->d->ops->matrix_bytes(s->d, dtype, w.n_out, N_IN);
    w.data = s->is_cuda ? far_bytes(s, bytes) : side_bytes(s, bytes, NULL);
    s->d->ops->matrix_write(s->d, &w, 0, END_OUT, values);
    s->d->ops->matrix_write(s->d, &w, w.n_out - END_OUT, END_OUT, values + END_OUT * N_IN);
    side_sync(s);
    return w;
}

static void embed(struct side *s, enum dtype dtype, const struct values *v, float *out, float *gradient)
{
    struct matrix w = matrix_ends(s, dtype, v->table), grad = matrix_ends(s, DTYPE_F32, v->table);
    int32_t tokens[] = {(int32_t)w.n_out - 1, 0, (int32_t)w.n_out - 64};
    struct batch b = {.n_rows = 3, .tokens = side_ints(s, tokens, 3), .positions = side_ints(s, tokens, 3)};
    struct tensor t = side_tensor(s, DTYPE_F32, 3, N_IN, NULL);
    s->d->ops->embed(s->d, t, &b, &w, NULL);
    side_read(s, t, out);
    s->d->train->embed_backward(s->d, &grad, NULL, side_tensor(s, DTYPE_F32, 3, N_IN, v->a), &b);
    s->d->train->matrix_read(s->d, &grad, grad.n_out - 64, 64, gradient);
    side_clear(s);
}

static void test_embeddings(void **state)
{
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    static float out[N_SIDES][3 * N_IN], gradient[N_SIDES][64 * N_IN];
    for (int t = 0; t < N_WEIGHT_TYPES; t++) {
        for (int s = 0; s < N_SIDES; s++) embed(&sides[s], weight_types[t], v, out[s], gradient[s]);
        assert_all_near(out[1], out[0], 3 * N_IN, N_IN, 1e-6, dtype_info(weight_types[t])->name);
        assert_all_near(gradient[1], gradient[0], 64 * N_IN, N_IN, 1e-6, "gradient");
    }
    close_all(sides, v);
}

enum { N_RESULTS = 16 }; /* at the end: what the last blocks of every kernel give */

/* The last row's last results, of a huge matrix by `rows` rows; and by the very weights, in
 * double. */
static void check_product(struct side *s, enum dtype dtype, int64_t rows, const struct values *v)
{
    enum dtype type = dtype == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
    static float weights[64 * N_IN];
    float got[N_RESULTS];
    struct matrix w = matrix_ends(s, dtype, v->table);
    struct tensor x = side_tensor(s, type, rows, N_IN, v->a);
    struct tensor y = {far_bytes(s, rows * w.n_out * 4), DTYPE_F32, rows, w.n_out};
    ptxsim_set_ends(rows > 64 ? 1 : 4);
    s->d->ops->matmul(s->d, y, x, &w, NULL, EPILOGUE_NONE);
    ptxsim_set_ends(0);
    side_read(s, (struct tensor){(float *)y.data + rows * w.n_out - N_RESULTS, DTYPE_F32, 1, N_RESULTS}, got);
    s->d->train->matrix_read(s->d, &w, w.n_out - 64, 64, weights);
    for (int64_t i = 0; i < N_RESULTS; i++) {
        double want = 0;
        for (int64_t k = 0; k < N_IN; k++)
            want += (double)rounded_to(type, v->a[(rows - 1) * N_IN + k])
                    * rounded_to(type, weights[(64 - N_RESULTS + i) * N_IN + k]);
        assert_near(got[i], want, 2e-5, dtype_info(dtype)->name, rows, i);
    }
    side_clear(s);
}

static void test_products(void **state)
{
    static const int64_t rows[] = {1, 5, 65};
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    assert_true(NEAR >= 65 * N_IN);
    for (int t = 0; t < N_WEIGHT_TYPES; t++)
        for (int r = 0; r < 3; r++) check_product(&sides[SIDE_CUDA], weight_types[t], rows[r], v);
    close_all(sides, v);
}

/* Logits of more than 2^32 elements, by way of a matrix that is small. */
static void logits(struct side *s, enum dtype dtype, const struct values *v, float *out)
{
    enum { IN = 64, FAR_LOGIT_ROWS = 70000, FAR_VOCAB = 65536 };
    int64_t rows = s->is_cuda ? FAR_LOGIT_ROWS : NEAR_ROWS, end = END_ROWS * IN;
    struct matrix w = {.dtype = dtype, .n_out = s->is_cuda ? FAR_VOCAB : NEAR_OUT, .n_in = IN};
    int64_t bytes = s->d->ops->matrix_bytes(s->d, dtype, w.n_out, IN);
    w.data = s->is_cuda ? far_bytes(s, bytes) : side_bytes(s, bytes, NULL);
    s->d->ops->matrix_write(s->d, &w, 0, END_OUT, v->table);
    s->d->ops->matrix_write(s->d, &w, w.n_out - END_OUT, END_OUT, v->table + END_OUT * IN);
    struct tensor x = {NULL, dtype, rows, IN}, y = {NULL, DTYPE_F32, rows, w.n_out};
    x.data = s->is_cuda ? far_bytes(s, dtype_bytes(dtype, rows * IN)) : side_bytes(s, dtype_bytes(dtype, rows * IN), NULL);
    side_write(s, x, 0, end, v->a);
    side_write(s, x, rows * IN - end, end, v->a + end);
    y.data = s->is_cuda ? far_bytes(s, rows * w.n_out * 4) : side_bytes(s, rows * w.n_out * 4, NULL);
    if (s->is_cuda) ptxsim_set_ends(1);
    s->d->ops->matmul(s->d, y, x, &w, NULL, EPILOGUE_NONE);
    ptxsim_set_ends(0);
    side_read(s, (struct tensor){(float *)y.data + rows * w.n_out - N_RESULTS, DTYPE_F32, 1, N_RESULTS}, out);
    side_clear(s);
}

static void test_products_of_many_rows(void **state)
{
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    float out[N_SIDES][N_RESULTS];
    for (int t = 0; t < 2; t++) {
        for (int s = 0; s < N_SIDES; s++) logits(&sides[s], weight_types[t], v, out[s]);
        assert_all_near(out[1], out[0], N_RESULTS, N_RESULTS, 1e-4, dtype_info(weight_types[t])->name);
    }
    close_all(sides, v);
}

/* dw += dy^T x: the gradient is huge, and dy is as wide as it is long. */
static void weight_gradient(struct side *s, enum dtype dtype, const struct values *v, float *out)
{
    enum { ROWS = 8 };
    struct matrix dw = matrix_ends(s, DTYPE_F32, v->table);
    struct tensor dy = {NULL, dtype, ROWS, dw.n_out};
    dy.data = s->is_cuda ? far_bytes(s, dtype_bytes(dtype, ROWS * dw.n_out))
                         : side_bytes(s, dtype_bytes(dtype, ROWS * dw.n_out), NULL);
    for (int64_t r = 0; r < ROWS; r++) {
        float row[NEAR_OUT];
        for (int i = 0; i < NEAR_OUT; i++) row[i] = rounded_to(dtype, v->b[r * NEAR_OUT + i]);
        side_write(s, dy, r * dw.n_out, END_OUT, row);
        side_write(s, dy, (r + 1) * dw.n_out - END_OUT, END_OUT, row + END_OUT);
    }
    if (s->is_cuda) ptxsim_set_ends(1);
    s->d->train->matmul_backward_w(s->d, &dw, NULL, dy, side_tensor(s, dtype, ROWS, N_IN, v->a), side_key(s, 7));
    ptxsim_set_ends(0);
    static float rows[64 * N_IN];
    s->d->train->matrix_read(s->d, &dw, dw.n_out - 64, 64, rows);
    memcpy(out, rows + 64 * N_IN - N_RESULTS, N_RESULTS * sizeof *out);
    side_clear(s);
}

/* dx = dy W with a matrix as wide as a launch can count: of its rows, which lie one after another
 * on CUDA, the ends are written. */
static void input_gradient(struct side *s, enum dtype dtype, const struct values *v, float *out)
{
    enum { ROWS = 8, OUT = 2112, NEAR_IN = 512, FAR_IN = 32 * 65535 };
    int64_t wide = s->is_cuda ? FAR_IN : NEAR_IN;
    struct matrix w = {.dtype = dtype, .n_out = OUT, .n_in = wide};
    int64_t bytes = s->d->ops->matrix_bytes(s->d, dtype, OUT, wide);
    if (!s->is_cuda) w = side_matrix(s, dtype, OUT, NEAR_IN, v->table);
    else w.data = far_bytes(s, bytes);
    for (int64_t r = 0; s->is_cuda && r < OUT; r++) {
        float row[NEAR_IN];
        for (int i = 0; i < NEAR_IN; i++) row[i] = rounded_to(dtype, v->table[r * NEAR_IN + i]);
        struct tensor as_rows = {w.data, dtype, OUT, wide};
        side_write(s, as_rows, r * wide, NEAR_IN / 2, row);
        side_write(s, as_rows, (r + 1) * wide - NEAR_IN / 2, NEAR_IN / 2, row + NEAR_IN / 2);
    }
    struct tensor dx = {NULL, DTYPE_F32, ROWS, wide};
    dx.data = s->is_cuda ? far_bytes(s, ROWS * wide * 4) : side_bytes(s, ROWS * wide * 4, NULL);
    if (s->is_cuda) ptxsim_set_ends(1);
    s->d->train->matmul_backward_x(s->d, dx, side_tensor(s, dtype, ROWS, OUT, v->a), &w);
    ptxsim_set_ends(0);
    side_read(s, (struct tensor){(float *)dx.data + ROWS * wide - N_RESULTS, DTYPE_F32, 1, N_RESULTS}, out);
    side_clear(s);
}

static void test_gradients_of_products(void **state)
{
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    float out[N_SIDES][N_RESULTS];
    for (int t = 0; t < 2; t++) {
        for (int s = 0; s < N_SIDES; s++) weight_gradient(&sides[s], weight_types[t], v, out[s]);
        assert_all_near(out[1], out[0], N_RESULTS, N_RESULTS, 1e-4, "dw");
        for (int s = 0; s < N_SIDES; s++) input_gradient(&sides[s], weight_types[t], v, out[s]);
        assert_all_near(out[1], out[0], N_RESULTS, N_RESULTS, 1e-4, "dx");
    }
    close_all(sides, v);
}

/* ---- the optimizer ---- */

/* State of the moments: zeros where the ends have theirs. */
static void *moments(struct side *s, enum moment_format format, int64_t n, int64_t end)
{
    int64_t bytes = s->d->train->moment_bytes(s->d, format, n);
    uint8_t *p = s->is_cuda ? far_bytes(s, bytes) : side_bytes(s, bytes, NULL);
    int64_t codes = format == MOMENT_Q8 ? n : bytes, a_code = format == MOMENT_Q8 ? 1 : bytes / n;
    s->d->train->zero(s->d, p, end * a_code);
    s->d->train->zero(s->d, p + codes - end * a_code, end * a_code);
    if (format == MOMENT_Q8) {
        s->d->train->zero(s->d, p + codes, end / 256 * 4);
        s->d->train->zero(s->d, p + bytes - end / 256 * 4, end / 256 * 4);
    }
    return p;
}

static void optimize(struct side *s, enum moment_format format, const struct values *v, float *out)
{
    enum { END = END_ROWS * COLS };
    struct tensor w = ends(s, DTYPE_F32, COLS, v->a), g = ends(s, DTYPE_F32, COLS, v->b);
    int64_t n = w.rows * COLS;
    struct adamw_tensor t = {.weight = w.data, .n_out = 1, .n_in = n, .grad = g.data, .m_format = format,
                             .v_format = format, .weight_decay = 0.1f, .m = moments(s, format, n, END),
                             .v = moments(s, format, n, END)};
    for (int i = 0; i < 2; i++) {
        struct adamw_step step = {.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .step = i + 1,
                                  .grad_scale = 0.5f};
        if (s->is_cuda) ptxsim_set_ends(1);
        s->d->train->adamw(s->d, &t, &(bool){false}, 1, &step);
        ptxsim_set_ends(0);
    }
    read_ends(s, w, COLS, out);
    side_clear(s);
}

static void test_adamw(void **state)
{
    struct side sides[N_SIDES];
    struct values *v = open_all(sides);
    float out[N_SIDES][2 * COLS];
    static const enum moment_format moment_formats[] = {MOMENT_F32, MOMENT_BF16, MOMENT_Q8};
    for (int f = 0; f < 3; f++) {
        for (int s = 0; s < N_SIDES; s++) optimize(&sides[s], moment_formats[f], v, out[s]);
        /* Rounding of the moments depends on the element's place. */
        assert_all_near(out[1], out[0], 2 * COLS, COLS, f == 0 ? 1e-6 : 2e-3, "adamw");
    }
    close_all(sides, v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_products_of_many_rows),
        cmocka_unit_test(test_gradients_of_products),
        cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
