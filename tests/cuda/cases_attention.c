/* Keys, values and attention on the CUDA device: against the CPU's, and the same bits however a
 * sequence is cut into steps, whoever runs beside it, and whether its keys are split among
 * blocks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"
#include "tests/ptxsim/ptxsim.h"

#pragma weak ptxsim_code
#pragma weak ptxsim_set_compute_capability
#pragma weak ptxsim_set_multiprocessors

enum { P = KV_PAGE_TOKENS, MAX_PAGES = 80, MAX_SEQS = 4, MAX_TOKENS = MAX_PAGES * P };

struct heads { int32_t h, g, k; };

static const struct heads head_shapes[] = {
    {4, 4, 16}, {6, 2, 32}, {3, 1, 48}, {5, 5, 64}, {4, 1, 80}, {8, 2, 96}, {2, 2, 128}, {20, 1, 16},
};
enum { N_HEADS = sizeof head_shapes / sizeof *head_shapes };

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
enum { N_TYPES = 3 };

/* Sequences that take turns: step s has counts[s][i] rows of sequence i; ends with a step of no
 * rows. */
struct schedule {
    int32_t n_seqs;
    int32_t counts[24][MAX_SEQS];
};

static int32_t rows_of_step(const struct schedule *p, int step)
{
    int32_t n = 0;
    for (int32_t i = 0; i < p->n_seqs; i++) n += p->counts[step][i];
    return n;
}

static struct workspace_shape plan_of(struct heads s, int32_t max_rows)
{
    return (struct workspace_shape){.dtype = DTYPE_BF16, .max_rows = max_rows, .max_logit_rows = 1,
                                    .n_embd = s.h * s.k, .n_ff = 16, .n_head = s.h, .n_kv_head = s.g,
                                    .head_dim = s.k, .vocab_size = 64, .block_size = MAX_TOKENS};
}

/* What all runs of a test share. */
struct setting {
    struct heads s;
    enum dtype type, out_type;
    bool rope, qk_norm;
    float dropout;
    int32_t n_pages; /* no multiple of 7 */
    const float *qkv[MAX_SEQS]; /* of each sequence [MAX_TOKENS, (H + 2G) K] */
    const float *rope_table, *norms;
};

static int64_t qkv_cols(struct heads s) { return (int64_t)(s.h + 2 * s.g) * s.k; }

static struct attention attention_of(struct side *d, const struct setting *t)
{
    int32_t k = t->s.k;
    return (struct attention){
        .n_head = t->s.h, .n_kv_head = t->s.g, .head_dim = k, .scale = 1 / sqrtf((float)k),
        .rope = t->rope ? side_floats(d, t->rope_table, (int64_t)MAX_TOKENS * k) : NULL,
        .q_norm = t->qk_norm ? side_floats(d, t->norms, k) : NULL,
        .k_norm = t->qk_norm ? side_floats(d, t->norms + k, k) : NULL,
        .qk_norm_eps = 1e-5f, .dropout = t->dropout, .dropout_key = side_key(d, 99),
    };
}

/* One step on one side; results go to out[i] + done[i] rows, log-sums too. */
static void step(struct side *d, const struct setting *t, struct attention a, const struct kv_cache *kv,
                 const struct schedule *p, int n, int32_t *done, float *const out[], float *const lse[])
{
    int64_t cols = qkv_cols(t->s), out_cols = (int64_t)t->s.h * t->s.k;
    int32_t rows = rows_of_step(p, n), n_spans = 0, row = 0, max_keys = 0;
    int32_t *positions = malloc((size_t)rows * 4), *slots = malloc((size_t)rows * 4);
    struct span spans[MAX_SEQS];
    int32_t pages[MAX_SEQS * MAX_PAGES];
    float *qkv = malloc((size_t)(rows * cols) * 4);
    for (int32_t i = 0; i < p->n_seqs; i++) {
        int32_t count = p->counts[n][i];
        /* Pages of all sequences lie scattered among each other. */
        for (int32_t j = 0; j < MAX_PAGES; j++)
            pages[i * MAX_PAGES + j] = (j * p->n_seqs + i) * 7 % t->n_pages;
        if (count == 0) continue;
        spans[n_spans++] = (struct span){row, count, done[i], i * MAX_PAGES};
        max_keys = (int32_t)max_i64(max_keys, done[i] + count);
        for (int32_t j = 0; j < count; j++, row++) {
            int32_t at = done[i] + j;
            memcpy(qkv + row * cols, t->qkv[i] + at * cols, (size_t)cols * 4);
            positions[row] = at;
            slots[row] = pages[i * MAX_PAGES + at / P] * P + at % P;
        }
    }
    int32_t blocks_before = d->n_blocks;
    if (d->is_cuda) a.lse = side_bytes(d, (int64_t)rows * t->s.h * 4, NULL); /* the CPU's: of documents only */
    struct tensor x = side_tensor(d, DTYPE_F32, rows, cols, qkv);
    struct tensor y = side_tensor(d, t->out_type, rows, out_cols, NULL);
    struct batch b = {.n_rows = rows, .n_spans = n_spans, .max_keys = n % 2 ? max_keys : 0,
                      .positions = side_ints(d, positions, rows),
                      .slots = side_ints(d, slots, rows),
                      .spans = side_bytes(d, n_spans * (int64_t)sizeof *spans, spans),
                      .pages = side_ints(d, pages, p->n_seqs * MAX_PAGES)};
    if (d->is_cuda && n / 2 % 2) { /* with and without max_keys */
        d->d->ops->kv_attention(d->d, y, x, &b, &a, kv, 1);
    } else {
        d->d->ops->kv_write(d->d, x, &b, &a, kv, 1);
        d->d->ops->attention(d->d, y, x, &b, &a, kv, 1);
    }
    float *got = malloc((size_t)(rows * out_cols) * 4), *sums = malloc((size_t)rows * t->s.h * 4);
    side_read(d, y, got);
    if (a.lse) side_read_floats(d, a.lse, (int64_t)rows * t->s.h, sums);
    row = 0;
    for (int32_t i = 0; i < p->n_seqs; i++) {
        int32_t count = p->counts[n][i];
        memcpy(out[i] + done[i] * out_cols, got + row * out_cols, (size_t)(count * out_cols) * 4);
        if (a.lse) memcpy(lse[i] + done[i] * t->s.h, sums + row * t->s.h, (size_t)(count * t->s.h) * 4);
        done[i] += count;
        row += count;
    }
    while (d->n_blocks > blocks_before) {
        d->n_blocks--;
        d->d->ops->free(d->d, d->blocks[d->n_blocks].p, d->blocks[d->n_blocks].bytes);
    }
    free(positions), free(slots), free(qkv), free(got), free(sums);
}

static void run_schedule(struct side *d, const struct setting *t, const struct schedule *p,
                         float *const out[], float *const lse[])
{
    enum dtype type = side_dtype(d, t->type);
    int64_t page = d->d->ops->kv_page_bytes(d->d, type, t->s.g, t->s.k);
    struct kv_cache kv = {side_bytes(d, 2 * t->n_pages * page, NULL), type, 2, t->n_pages, t->s.g, t->s.k};
    struct attention a = attention_of(d, t);
    int32_t done[MAX_SEQS] = {0};
    for (int n = 0; rows_of_step(p, n) > 0; n++) step(d, t, a, &kv, p, n, done, out, lse);
    side_clear(d);
}

/* ---- operands ---- */

struct world {
    struct setting t;
    float *qkv[MAX_SEQS], *rope, *norms;
    float *out[N_SIDES][MAX_SEQS], *lse[N_SIDES][MAX_SEQS];
};

static void world_open(struct world *w, struct heads s, int32_t tokens)
{
    struct cpu_rng rng = {(uint64_t)(s.h * 1000 + s.k)};
    int64_t cols = qkv_cols(s);
    *w = (struct world){.t = {.s = s, .n_pages = MAX_PAGES}};
    for (int i = 0; i < MAX_SEQS; i++) {
        w->qkv[i] = malloc((size_t)(tokens * cols) * 4);
        cpu_rng_fill(&rng, w->qkv[i], tokens * cols);
        /* Queries of some size, so that the softmax is not flat. */
        for (int64_t r = 0; r < tokens; r++)
            for (int64_t c = 0; c < s.h * s.k; c++) w->qkv[i][r * cols + c] *= 4;
        w->t.qkv[i] = w->qkv[i];
        for (int d = 0; d < N_SIDES; d++) {
            w->out[d][i] = malloc((size_t)tokens * (size_t)(s.h * s.k) * 4);
            w->lse[d][i] = malloc((size_t)tokens * (size_t)s.h * 4);
        }
    }
    w->rope = malloc((size_t)MAX_TOKENS * (size_t)s.k * 4);
    for (int32_t at = 0; at < MAX_TOKENS; at++)
        for (int32_t i = 0; i < s.k / 2; i++) {
            double angle = at * pow(10000, -2.0 * i / s.k);
            w->rope[at * s.k + 2 * i] = (float)cos(angle);
            w->rope[at * s.k + 2 * i + 1] = (float)sin(angle);
        }
    w->norms = malloc((size_t)(2 * s.k) * 4);
    cpu_rng_fill(&rng, w->norms, 2 * s.k);
    w->t.rope_table = w->rope;
    w->t.norms = w->norms;
}

static void world_close(struct world *w)
{
    for (int i = 0; i < MAX_SEQS; i++) {
        free(w->qkv[i]);
        for (int d = 0; d < N_SIDES; d++) free(w->out[d][i]), free(w->lse[d][i]);
    }
    free(w->rope), free(w->norms);
}

static int32_t tokens_of(const struct schedule *p, int32_t seq)
{
    int32_t n = 0;
    for (int s = 0; rows_of_step(p, s) > 0; s++) n += p->counts[s][seq];
    return n;
}

/* Prompts of one page less one, one page, one more, and a decode step for all; then odd pieces. */
static const struct schedule mixed = {4, {{15, 16, 17, 1}, {1, 1, 1, 1}, {0, 3, 18, 33}, {1, 0, 1, 1}}};

/* Types from `first` on. */
static void check_attention(int first)
{
    for (int h = 0; h < N_HEADS; h++) {
        struct side sides[N_SIDES];
        struct world w;
        struct workspace_shape shape = plan_of(head_shapes[h], 64);
        sides_open(sides, &shape);
        world_open(&w, head_shapes[h], 64);
        w.t.n_pages = 20; /* 5 a sequence */
        for (int t = first; t < N_TYPES; t++) {
            w.t.type = types[t];
            w.t.out_type = h % 2 ? DTYPE_F32 : types[t];
            w.t.rope = h % 3 != 0;
            w.t.qk_norm = h % 2 == 0;
            schedule_seed((uint32_t)(h + t));
            for (int d = 0; d < N_SIDES; d++) run_schedule(&sides[d], &w.t, &mixed, w.out[d], w.lse[d]);
            for (int32_t i = 0; i < mixed.n_seqs; i++) {
                int64_t rows = tokens_of(&mixed, i), cols = head_shapes[h].h * head_shapes[h].k;
                /* Rotated keys are rounded once: a last bit of the rotation may turn that. */
                double tolerance = types[t] == DTYPE_F32 ? 2e-5 : 2 * tolerance_of(types[t]);
                assert_all_near(w.out[1][i], w.out[0][i], rows * cols, cols, tolerance, "attention");
            }
        }
        world_close(&w);
        sides_close(sides);
    }
}

void test_attention(void **state) { check_attention(0); }

/* A long sequence alone, a token at a time near its end (few queries: keys are split among blocks),
 * against the same sequence in other pieces and beside others (not split). */
static void check_splits(int first)
{
    static const struct heads shapes[] = {{4, 2, 16}, {3, 1, 48}, {2, 1, 80}};
    static const struct schedule schedules[] = {
        /* Decoding, split where that pays; position 511, which writes its key itself, ends a
         * block's eight times 64. */
        {1, {{510}, {1}, {1}, {1}, {1}, {1}, {1}, {6}}},
        {1, {{200}, {312}, {1}, {9}}}, /* in chunks of a prompt; position 512, split too, begins a block */
        {4, {{510, 40, 3, 1}, {3, 30, 2, 1}, {9, 1, 1, 1}}}, /* beside others */
    };
    enum { N_SCHEDULES = sizeof schedules / sizeof *schedules, TOKENS = 522 };
    for (int h = 0; h < 3; h++)
        for (int t = first; t < N_TYPES; t++) {
            if (h > 0 && types[t] == DTYPE_BF16) continue; /* f16 stands for it */
            struct side sides[N_SIDES];
            struct world w;
            /* Enough multiprocessors that some steps split, and not all. */
            if (ptxsim_set_multiprocessors) ptxsim_set_multiprocessors(16);
            struct workspace_shape shape = plan_of(shapes[h], 600);
            sides_open(sides, &shape);
            world_open(&w, shapes[h], TOKENS);
            w.t.type = w.t.out_type = types[t];
            w.t.rope = true;
            w.t.n_pages = MAX_SEQS * 33;
            int64_t cols = shapes[h].h * shapes[h].k;
            for (int p = 0; p < N_SCHEDULES; p++) {
                schedule_seed((uint32_t)p);
                int to = p == 0 ? 0 : 1;
                run_schedule(&sides[SIDE_CUDA], &w.t, &schedules[p], w.out[to], w.lse[to]);
                if (p == 0) continue;
                assert_memory_equal(w.out[1][0], w.out[0][0], (size_t)(TOKENS * cols) * 4);
                assert_memory_equal(w.lse[1][0], w.lse[0][0], (size_t)(TOKENS * shapes[h].h) * 4);
            }
            run_schedule(&sides[SIDE_CPU], &w.t, &schedules[0], w.out[1], w.lse[1]);
            assert_all_near(w.out[0][0], w.out[1][0], TOKENS * cols, cols,
                            t ? 2 * tolerance_of(types[t]) : 2e-5, "long attention");
            world_close(&w);
            sides_close(sides);
        }
}

void test_attention_splits_change_no_bit(void **state) { check_splits(0); }

/* A GPU without tensor cores, which only the interpreter can be; it has no bf16. */
void test_attention_without_tensor_cores(void **state)
{
    if (!ptxsim_set_compute_capability) skip();
    ptxsim_set_compute_capability(61);
    check_attention(N_TYPES - 1);
    check_splits(N_TYPES - 1);
    ptxsim_set_compute_capability(0);
}

/* ---- backward ---- */

/* Documents in one micro-batch: spans that begin at position 0. The last rows of 33 and 65 are the
 * only ones to see the first key of what kernels take 16, 32 or 64 of. */
static const int32_t documents[] = {1, 33, 17, 65};
enum { N_DOCUMENTS = 4, DOCUMENT_ROWS = 1 + 33 + 17 + 65, DOCUMENT_PAGES = 5 };

static struct batch document_batch(struct side *d)
{
    struct span spans[N_DOCUMENTS];
    int32_t positions[DOCUMENT_ROWS], slots[DOCUMENT_ROWS], pages[N_DOCUMENTS * DOCUMENT_PAGES], row = 0;
    for (int32_t i = 0; i < N_DOCUMENTS * DOCUMENT_PAGES; i++) pages[i] = i;
    for (int32_t i = 0; i < N_DOCUMENTS; i++) {
        spans[i] = (struct span){row, documents[i], 0, DOCUMENT_PAGES * i};
        for (int32_t j = 0; j < documents[i]; j++, row++) {
            positions[row] = j;
            slots[row] = (DOCUMENT_PAGES * i + j / P) * P + j % P;
        }
    }
    return (struct batch){.n_rows = DOCUMENT_ROWS, .n_spans = N_DOCUMENTS,
                          .positions = side_ints(d, positions, DOCUMENT_ROWS),
                          .slots = side_ints(d, slots, DOCUMENT_ROWS),
                          .spans = side_bytes(d, sizeof spans, spans),
                          .pages = side_ints(d, pages, N_DOCUMENTS * DOCUMENT_PAGES)};
}

/* The gradient, f32 or (where the device can) rounded; forward's results are given, the same on
 * both sides. */
static void attention_backward(struct side *d, const struct setting *t, const float *qkv, const float *out,
                               const float *lse, const float *dout, bool rounded, float *dqkv)
{
    enum dtype type = d->d->train->writes_act ? t->type : DTYPE_F32;
    int64_t cols = qkv_cols(t->s), out_cols = (int64_t)t->s.h * t->s.k;
    struct attention a = attention_of(d, t);
    struct batch b = document_batch(d);
    struct tensor to = side_tensor(d, rounded ? type : DTYPE_F32, DOCUMENT_ROWS, cols, NULL);
    d->d->train->attention_backward(d->d, to, side_tensor(d, type, DOCUMENT_ROWS, out_cols, dout),
                                    side_tensor(d, t->type, DOCUMENT_ROWS, cols, qkv),
                                    side_tensor(d, t->type, DOCUMENT_ROWS, out_cols, out),
                                    side_floats(d, lse, (int64_t)DOCUMENT_ROWS * t->s.h), &b, &a);
    side_read(d, to, dqkv);
    side_clear(d);
}

/* Forward, of documents: out and log-sums. */
static void forward(struct side *d, const struct setting *t, const float *qkv, float *out, float *lse)
{
    struct attention a = attention_of(d, t);
    struct batch b = document_batch(d);
    enum dtype type = side_dtype(d, t->type);
    int32_t pages = N_DOCUMENTS * DOCUMENT_PAGES;
    struct kv_cache kv = {side_bytes(d, pages * d->d->ops->kv_page_bytes(d->d, type, t->s.g, t->s.k), NULL),
                          type, 1, pages, t->s.g, t->s.k};
    float *rounded = malloc((size_t)(DOCUMENT_ROWS * qkv_cols(t->s)) * 4);
    for (int64_t i = 0; i < DOCUMENT_ROWS * qkv_cols(t->s); i++) rounded[i] = rounded_to(t->type, qkv[i]);
    struct tensor x = side_tensor(d, DTYPE_F32, DOCUMENT_ROWS, qkv_cols(t->s), rounded);
    free(rounded);
    struct tensor y = side_tensor(d, type, DOCUMENT_ROWS, (int64_t)t->s.h * t->s.k, NULL);
    a.lse = side_bytes(d, (int64_t)DOCUMENT_ROWS * t->s.h * 4, NULL);
    d->d->ops->kv_write(d->d, x, &b, &a, &kv, 0);
    d->d->ops->attention(d->d, y, x, &b, &a, &kv, 0);
    side_read(d, y, out);
    side_read_floats(d, a.lse, (int64_t)DOCUMENT_ROWS * t->s.h, lse);
    side_clear(d);
}

/* Root of the mean square. */
static double size_of(const float *x, const float *minus, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = x[i] - (minus ? minus[i] : 0);
        sum += v * v;
    }
    return sqrt(sum / (double)n);
}

/* f32's results. Or those of tensor cores, where the gradient of the output, weights and their
 * gradients are rounded to the type before they meet: errors of half a last place each, which add
 * up over keys and heads. */
static void assert_gradients(const float *got, const float *want, int64_t rows, int64_t cols,
                             enum dtype type, bool tensor_cores)
{
    if (!tensor_cores) {
        assert_all_near(got, want, rows * cols, cols, 1e-4, "dqkv");
        return;
    }
    double error = size_of(got, want, rows * cols), size = size_of(want, NULL, rows * cols);
    assert_all_near(got, want, rows * cols, cols, 16 * tolerance_of(type), "dqkv");
    if (!(error <= tolerance_of(type) / 2 * size)) fail_msg("dqkv is off by %g of %g", error, size);
}

static void check_backward(struct heads heads, enum dtype type, float dropout, bool tensor_cores)
{
    struct side sides[N_SIDES];
    struct world w;
    struct workspace_shape shape = plan_of(heads, DOCUMENT_ROWS);
    sides_open(sides, &shape);
    world_open(&w, heads, DOCUMENT_ROWS);
    w.t.type = type;
    w.t.dropout = dropout;
    int64_t cols = qkv_cols(heads), out_cols = heads.h * heads.k;
    enum { ROUNDED = N_SIDES + 1, N_RUNS };
    float *dqkv[N_RUNS];
    for (int d = 0; d < N_SIDES; d++) forward(&sides[d], &w.t, w.qkv[0], w.out[d][0], w.lse[d][0]);
    assert_all_near(w.out[1][0], w.out[0][0], DOCUMENT_ROWS * out_cols, out_cols, tolerance_of(type),
                    "attention of documents");
    assert_all_near(w.lse[1][0], w.lse[0][0], DOCUMENT_ROWS * heads.h, heads.h, 2e-5, "log-sum");
    float *dout = w.qkv[1]; /* the CPU's, too, as the type holds it */
    for (int64_t i = 0; i < DOCUMENT_ROWS * out_cols; i++) dout[i] = rounded_to(type, dout[i]);
    for (int i = 0; i < N_RUNS; i++) { /* three times on the device, under other schedules */
        dqkv[i] = malloc((size_t)(DOCUMENT_ROWS * cols) * 4);
        schedule_seed((uint32_t)(heads.k + i));
        attention_backward(&sides[i > 0], &w.t, w.qkv[0], w.out[0][0], w.lse[0][0], dout,
                           i == ROUNDED, dqkv[i]);
    }
    assert_gradients(dqkv[1], dqkv[0], DOCUMENT_ROWS, cols, type,
                     tensor_cores && side_has_tensor_cores(&sides[SIDE_CUDA]));
    assert_memory_equal(dqkv[2], dqkv[1], (size_t)(DOCUMENT_ROWS * cols) * 4);
    enum dtype stored = side_dtype(&sides[SIDE_CUDA], type);
    for (int64_t i = 0; i < DOCUMENT_ROWS * cols; i++)
        assert_true(dqkv[ROUNDED][i] == rounded_to(stored, dqkv[1][i]));
    for (int i = 0; i < N_RUNS; i++) free(dqkv[i]);
    world_close(&w);
    sides_close(sides);
}

void test_attention_backward(void **state)
{
    for (int h = 0; h < N_HEADS; h++)
        for (int t = 0; t < N_TYPES; t++)
            check_backward(head_shapes[h], types[t], (h + t) % 2 ? 0.25f : 0,
                           types[t] != DTYPE_F32);
}

/* Not in f16 either without them, nor on a GPU that lacks the shared memory for the largest heads.
 * That of sm_61 has the least of it, for whatever kernels. */
void test_attention_backward_without_tensor_cores(void **state)
{
    if (!ptxsim_set_compute_capability) skip();
    ptxsim_set_compute_capability(61);
    check_backward((struct heads){4, 4, 16}, DTYPE_F16, 0, false);
    check_backward((struct heads){3, 1, 48}, DTYPE_F16, 0.25f, false);
    check_backward((struct heads){2, 1, 96}, DTYPE_F16, 0, false);
    check_backward((struct heads){2, 1, 128}, DTYPE_F16, 0.25f, false);
    check_backward((struct heads){2, 1, 128}, DTYPE_F32, 0, false);
    if (ptxsim_code() >= 75) { /* else their kernels are not there */
        ptxsim_set_compute_capability(75);
        check_backward((struct heads){2, 1, 64}, DTYPE_F16, 0, true);
        check_backward((struct heads){2, 2, 128}, DTYPE_F16, 0, false);
    }
    ptxsim_set_compute_capability(0);
}

static void rope_backward(struct side *d, const struct setting *t, const float *dqkv, const float *pre,
                          float *out, float *norms)
{
    int64_t cols = qkv_cols(t->s);
    int32_t k = t->s.k;
    struct attention a = attention_of(d, t);
    struct batch b = document_batch(d);
    struct tensor from = side_tensor(d, DTYPE_F32, DOCUMENT_ROWS, cols, dqkv), to = from;
    if (side_dtype(d, t->type) != DTYPE_F32) to = side_tensor(d, t->type, DOCUMENT_ROWS, cols, NULL);
    float *grads = side_floats(d, t->norms, 2 * k);
    d->d->train->rope_backward(d->d, to, from, side_tensor(d, t->type, DOCUMENT_ROWS, cols, pre),
                               t->qk_norm ? grads : NULL, t->qk_norm ? grads + k : NULL, &b, &a);
    side_read(d, to, out);
    side_read_floats(d, grads, 2 * k, norms);
    side_clear(d);
}

void test_rope_backward(void **state)
{
    for (int h = 0; h < N_HEADS; h++) {
        struct side sides[N_SIDES];
        struct world w;
        struct workspace_shape shape = plan_of(head_shapes[h], DOCUMENT_ROWS);
        sides_open(sides, &shape);
        world_open(&w, head_shapes[h], DOCUMENT_ROWS);
        int64_t cols = qkv_cols(head_shapes[h]);
        for (int t = 0; t < N_TYPES * 3; t++) {
            float *out[N_SIDES], norms[N_SIDES][256];
            w.t.type = types[t / 3];
            w.t.rope = t % 3 != 1;
            w.t.qk_norm = t % 3 != 0;
            for (int d = 0; d < N_SIDES; d++) {
                out[d] = malloc((size_t)(DOCUMENT_ROWS * cols) * 4);
                rope_backward(&sides[d], &w.t, w.qkv[1], w.qkv[2], out[d], norms[d]);
            }
            double tolerance = w.t.type == DTYPE_F32 ? 5e-5 : tolerance_of(w.t.type);
            assert_all_near(out[1], out[0], DOCUMENT_ROWS * cols, cols, tolerance, "rope's dqkv");
            assert_all_near(norms[1], norms[0], 2 * head_shapes[h].k, head_shapes[h].k, 1e-4, "dnorm");
            for (int d = 0; d < N_SIDES; d++) free(out[d]);
        }
        world_close(&w);
        sides_close(sides);
    }
}
