/* Operations on rows on the CUDA device, forward and backward, against the CPU's. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"

enum { MAX_ROWS = 70, MAX_COLS = 1030, MAX_VALUES = MAX_ROWS * MAX_COLS };

static const struct { int64_t rows, cols; } shapes[] = {
    {1, 1}, {2, 3}, {5, 31}, {3, 32}, {33, 48}, {70, 65}, {2, 257}, {4, 768}, {1, 1030},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
enum { N_TYPES = 3 };

static const struct workspace_shape plan = {
    .dtype = DTYPE_BF16, .max_rows = MAX_ROWS, .max_logit_rows = MAX_ROWS, .n_embd = MAX_COLS,
    .n_ff = MAX_COLS, .n_head = 1, .n_kv_head = 1, .head_dim = 16, .vocab_size = MAX_COLS,
    .block_size = 64,
};

static float *random_values(uint64_t seed, int64_t n)
{
    struct cpu_rng rng = {seed};
    float *x = malloc((size_t)n * sizeof *x);
    cpu_rng_fill(&rng, x, n);
    return x;
}

struct results { float *a[N_SIDES]; };

static struct results results_new(int64_t n)
{
    struct results r;
    for (int s = 0; s < N_SIDES; s++) r.a[s] = malloc((size_t)n * sizeof(float));
    return r;
}

static void results_free(struct results *r)
{
    for (int s = 0; s < N_SIDES; s++) free(r->a[s]);
}

/* ---- norms ---- */

static struct norm norm_of(struct side *s, const float *weight, int64_t cols, int kind)
{
    return (struct norm){.weight = side_floats(s, weight, cols),
                         .bias = kind == 1 ? side_floats(s, weight + 7, cols) : NULL,
                         .eps = 1e-5f, .rms = kind == 2};
}

/* Results of one side. */
struct norm_results { float *dx, *dweight, *dbias, *branch, *branch_bias; };

static struct norm_results norm_results_new(int64_t n, int64_t cols)
{
    float *all = malloc((size_t)(2 * n + 3 * cols) * sizeof *all);
    return (struct norm_results){all, all + 2 * n, all + 2 * n + cols, all + n, all + 2 * n + 2 * cols};
}

/* type: of the branch's gradient, with dropout for every other kind; q8_0: it is not wanted. */
static void norm_backward(struct side *s, const float *x, const float *dy, const float *weight,
                          int64_t rows, int64_t cols, int kind, enum dtype type,
                          const struct norm_results *out)
{
    bool wanted = type != DTYPE_Q8_0;
    struct norm n = norm_of(s, weight, cols, kind);
    struct tensor to = side_tensor(s, DTYPE_F32, rows, cols, weight);
    float *dw = side_floats(s, weight, cols), *db = kind == 1 ? side_floats(s, weight, cols) : NULL;
    struct branch_gradient next = {0};
    if (wanted)
        next = (struct branch_gradient){side_tensor(s, type, rows, cols, NULL),
                                        {kind % 2 ? 0.3f : 0, side_key(s, 0x9876543210u)},
                                        kind == 2 ? NULL : side_floats(s, weight + 5, cols)};
    s->d->train->norm_backward(s->d, to, dw, db, side_tensor(s, DTYPE_F32, rows, cols, dy),
                               side_tensor(s, DTYPE_F32, rows, cols, x), &n, wanted ? &next : NULL);
    side_read(s, to, out->dx);
    side_read_floats(s, dw, cols, out->dweight);
    if (db) side_read_floats(s, db, cols, out->dbias);
    if (wanted) side_read(s, next.dy, out->branch);
    if (next.dbias) side_read_floats(s, next.dbias, cols, out->branch_bias);
    side_clear(s);
}

static void check_norm_backward(struct side sides[N_SIDES], const float *x, const float *dy,
                                const float *weight, int64_t rows, int64_t cols, int kind, enum dtype type)
{
    struct norm_results got[N_SIDES];
    for (int s = 0; s < N_SIDES; s++) {
        got[s] = norm_results_new(rows * cols, cols);
        norm_backward(&sides[s], x, dy, weight, rows, cols, kind, type, &got[s]);
    }
    /* Of one column the deviation is eps alone: gradients of some hundreds. */
    assert_all_near(got[1].dx, got[0].dx, rows * cols, cols, 5e-5, "norm's dx");
    assert_all_near(got[1].dweight, got[0].dweight, cols, cols, 5e-5, "norm's dweight");
    if (kind == 1) assert_all_near(got[1].dbias, got[0].dbias, cols, cols, 5e-5, "norm's dbias");
    if (type != DTYPE_Q8_0) {
        double tolerance = fmax(5e-5, tolerance_of(type));
        assert_all_near(got[1].branch, got[0].branch, rows * cols, cols, tolerance, "the branch's dy");
        /* Where the sides' types differ, what is summed was rounded otherwise, or not at all. */
        bool alike = side_dtype(&sides[SIDE_CUDA], type) == side_dtype(&sides[SIDE_CPU], type);
        if (kind != 2)
            assert_all_near(got[1].branch_bias, got[0].branch_bias, cols, cols,
                            (alike ? 2 : 16) * tolerance, "the branch's dbias");
    }
    for (int s = 0; s < N_SIDES; s++) free(got[s].dx);
}

void test_norms(void **state)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *x = random_values(1, MAX_VALUES), *dy = random_values(2, MAX_VALUES);
    float *weight = random_values(3, MAX_VALUES + 7);
    struct results out = results_new(MAX_VALUES);
    for (int i = 0; i < N_SHAPES; i++)
        for (int kind = 0; kind < 3; kind++) {
            int64_t rows = shapes[i].rows, cols = shapes[i].cols;
            schedule_seed((uint32_t)(i + kind));
            for (int t = 0; t < N_TYPES; t++) {
                for (int s = 0; s < N_SIDES; s++) {
                    struct norm n = norm_of(&sides[s], weight, cols, kind);
                    struct tensor to = side_tensor(&sides[s], types[t], rows, cols, NULL);
                    sides[s].d->ops->norm(sides[s].d, to,
                                          side_tensor(&sides[s], DTYPE_F32, rows, cols, x), &n);
                    side_read(&sides[s], to, out.a[s]);
                    side_clear(&sides[s]);
                }
                assert_all_near(out.a[1], out.a[0], rows * cols, cols, tolerance_of(types[t]), "norm");
            }
            for (int t = 0; t <= N_TYPES; t++)
                check_norm_backward(sides, x, dy, weight, rows, cols, kind, t < N_TYPES ? types[t] : DTYPE_Q8_0);
        }
    results_free(&out);
    free(x), free(dy), free(weight);
    sides_close(sides);
}

/* Wider than what a block keeps of its sums in shared memory, in runs of four and not; several
 * slices of rows. */
void test_norms_of_wide_rows_backward(void **state)
{
    enum { ROWS = 34, WIDEST = 4100 };
    struct workspace_shape wide = plan;
    wide.n_embd = WIDEST;
    struct side sides[N_SIDES];
    sides_open(sides, &wide);
    float *x = random_values(1, ROWS * WIDEST), *dy = random_values(2, ROWS * WIDEST);
    float *weight = random_values(3, ROWS * WIDEST);
    for (int64_t cols = WIDEST - 3; cols <= WIDEST; cols += 3)
        for (int t = 0; t < N_TYPES; t++)
            check_norm_backward(sides, x, dy, weight, ROWS, cols, 1, types[t]);
    free(x), free(dy), free(weight);
    sides_close(sides);
}

/* ---- activations ---- */

enum { GELU, SWIGLU, GELU_BACKWARD, SWIGLU_BACKWARD, N_ACTIVATIONS };

static int64_t activation(struct side *s, int which, enum dtype type, int64_t rows, int64_t cols,
                          bool exact, const float *x, const float *dy, float *result)
{
    const struct device_train_ops *train = s->d->train;
    bool pairs = which == SWIGLU || which == SWIGLU_BACKWARD;
    int64_t out_cols = which == SWIGLU_BACKWARD ? 2 * cols : cols;
    struct tensor in = side_tensor(s, type, rows, pairs ? 2 * cols : cols, x);
    struct tensor out = side_tensor(s, type, rows, out_cols, NULL);
    struct tensor grad = side_tensor(s, DTYPE_F32, rows, cols, dy);
    if (which == GELU) train->gelu(s->d, out, in, exact);
    if (which == SWIGLU) s->d->ops->swiglu(s->d, out, in);
    if (which == GELU_BACKWARD) train->gelu_backward(s->d, out, grad, in, exact);
    if (which == SWIGLU_BACKWARD) train->swiglu_backward(s->d, out, grad, in);
    side_read(s, out, result);
    side_clear(s);
    return rows * out_cols;
}

void test_activations(void **state)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *x = random_values(4, 2 * MAX_VALUES), *dy = random_values(5, MAX_VALUES);
    for (int64_t i = 0; i < 2 * MAX_VALUES; i++) x[i] *= 6;
    struct results out = results_new(2 * MAX_VALUES);
    for (int which = 0; which < N_ACTIVATIONS; which++)
        for (int t = 0; t < N_TYPES; t++)
            for (int i = 0; i < N_SHAPES; i++)
                for (int exact = 0; exact < 2; exact++) {
                    int64_t n = 0;
                    for (int s = 0; s < N_SIDES; s++)
                        n = activation(&sides[s], which, types[t], shapes[i].rows, shapes[i].cols, exact, x,
                                       dy, out.a[s]);
                    assert_all_near(out.a[1], out.a[0], n, shapes[i].cols, tolerance_of(types[t]),
                                    "activation");
                }
    results_free(&out);
    free(x), free(dy);
    sides_close(sides);
}

/* ---- dropout ---- */

void test_dropout(void **state)
{
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *x = random_values(6, MAX_VALUES), *y = random_values(7, MAX_VALUES);
    struct results out = results_new(MAX_VALUES), sum = results_new(MAX_VALUES);
    for (int i = 0; i < N_SHAPES; i++)
        for (int k = 0; k < 2 * N_TYPES * N_TYPES; k++) {
            enum dtype from = types[k / 2 % N_TYPES], to = types[k / 2 / N_TYPES];
            int64_t rows = shapes[i].rows, cols = shapes[i].cols;
            for (int s = 0; s < N_SIDES; s++) {
                struct side *d = &sides[s];
                struct dropout drop = {0};
                if (k % 2) drop = (struct dropout){0.3f, side_key(d, 0x123456789ABCDEF0u + (uint64_t)i)};
                struct tensor a = side_tensor(d, to, rows, cols, NULL);
                d->d->train->dropout(d->d, a, side_tensor(d, from, rows, cols, x), drop);
                side_read(d, a, out.a[s]);
                struct tensor b = side_tensor(d, DTYPE_F32, rows, cols, y);
                d->d->train->add_dropout(d->d, b, side_tensor(d, DTYPE_F32, rows, cols, x), drop);
                side_read(d, b, sum.a[s]);
                d->d->train->zero(d->d, b.data, rows * cols * 4);
                float first;
                side_read(d, (struct tensor){b.data, DTYPE_F32, 1, 1}, &first);
                assert_true(first == 0);
                side_clear(d);
            }
            assert_all_near(out.a[1], out.a[0], rows * cols, cols, tolerance_of(to), "dropout");
            assert_all_near(sum.a[1], sum.a[0], rows * cols, cols, 2e-7, "x + dropout(y)");
        }
    results_free(&out), results_free(&sum);
    free(x), free(y);
    sides_close(sides);
}

/* ---- embedding ---- */

enum { VOCAB = 67, POSITIONS = 40 };

static void embed(struct side *s, enum dtype type, const struct batch *host, const float *table,
                  const float *wpe, int64_t cols, float *out)
{
    struct batch b = *host;
    b.tokens = side_ints(s, host->tokens, host->n_rows);
    b.positions = side_ints(s, host->positions, host->n_rows);
    struct matrix wte = side_matrix(s, type, VOCAB, cols, table);
    struct tensor to = side_tensor(s, DTYPE_F32, host->n_rows, cols, NULL);
    s->d->ops->embed(s->d, to, &b, &wte, wpe ? side_floats(s, wpe, POSITIONS * cols) : NULL);
    struct tensor picked = side_tensor(s, DTYPE_F32, host->n_rows, cols, NULL);
    int32_t reversed[MAX_ROWS];
    for (int32_t i = 0; i < host->n_rows; i++) reversed[i] = host->n_rows - 1 - i;
    s->d->ops->gather(s->d, picked, to, side_ints(s, reversed, host->n_rows));
    side_read(s, picked, out);
    side_clear(s);
}

static void embed_backward(struct side *s, const struct batch *host, const float *table, const float *wpe,
                           const float *dx, int64_t cols, float *dwte, float *dwpe)
{
    struct batch b = *host;
    b.tokens = side_ints(s, host->tokens, host->n_rows);
    b.positions = side_ints(s, host->positions, host->n_rows);
    struct matrix grad = side_matrix(s, DTYPE_F32, VOCAB, cols, table);
    float *positions = side_floats(s, wpe, POSITIONS * cols);
    s->d->train->embed_backward(s->d, &grad, positions, side_tensor(s, DTYPE_F32, host->n_rows, cols, dx),
                                &b);
    s->d->train->matrix_read(s->d, &grad, 0, VOCAB, dwte);
    side_read_floats(s, positions, POSITIONS * cols, dwpe);
    side_clear(s);
}

static void check_embed_backward(struct side sides[N_SIDES], const struct batch *b, const float *table,
                                 const float *wpe, const float *dx, int64_t cols, double tolerance)
{
    struct results dwte = results_new(VOCAB * cols), dwpe = results_new(POSITIONS * cols);
    for (int s = 0; s < N_SIDES; s++)
        embed_backward(&sides[s], b, table, wpe, dx, cols, dwte.a[s], dwpe.a[s]);
    assert_all_near(dwte.a[1], dwte.a[0], VOCAB * cols, cols, tolerance, "dwte");
    assert_all_near(dwpe.a[1], dwpe.a[0], POSITIONS * cols, cols, tolerance, "dwpe");
    results_free(&dwte), results_free(&dwpe);
}

void test_embedding(void **state)
{
    static const enum dtype all[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_Q8_0, DTYPE_Q4_0};
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *table = random_values(8, VOCAB * MAX_COLS), *wpe = random_values(9, POSITIONS * MAX_COLS);
    float *dx = random_values(10, MAX_VALUES);
    struct results out = results_new(VOCAB * MAX_COLS);
    struct cpu_rng rng = {11};
    for (int i = 0; i < N_SHAPES; i++) {
        int64_t cols = shapes[i].cols;
        int32_t tokens[MAX_ROWS], positions[MAX_ROWS], rows = (int32_t)shapes[i].rows;
        for (int32_t r = 0; r < rows; r++) {
            tokens[r] = cpu_rng_below(&rng, r % 3 ? 5 : VOCAB);
            positions[r] = cpu_rng_below(&rng, POSITIONS);
        }
        struct batch b = {.n_rows = rows, .tokens = tokens, .positions = positions};
        schedule_seed((uint32_t)i);
        for (int t = 0; t < 5; t++)
            for (int p = 0; p < 2; p++) {
                for (int s = 0; s < N_SIDES; s++)
                    embed(&sides[s], all[t], &b, table, p ? wpe : NULL, cols, out.a[s]);
                assert_all_near(out.a[1], out.a[0], rows * cols, cols, 1e-6, dtype_info(all[t])->name);
            }
        check_embed_backward(sides, &b, table, wpe, dx, cols, 1e-6);
    }
    results_free(&out);
    free(table), free(wpe), free(dx);
    sides_close(sides);
}

/* More rows than a block looks at in one go, most of them the same few tokens'. */
void test_embedding_of_frequent_tokens(void **state)
{
    enum { ROWS = 2100, COLS = 12 };
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *table = random_values(8, VOCAB * COLS), *wpe = random_values(9, POSITIONS * COLS);
    float *dx = random_values(10, ROWS * COLS);
    struct cpu_rng rng = {12};
    int32_t tokens[ROWS], positions[ROWS];
    for (int32_t r = 0; r < ROWS; r++) {
        tokens[r] = r % 8 ? r / 1500 : cpu_rng_below(&rng, VOCAB);
        positions[r] = r % POSITIONS;
    }
    struct batch b = {.n_rows = ROWS, .tokens = tokens, .positions = positions};
    for (int64_t cols = COLS - 1; cols <= COLS; cols++)
        check_embed_backward(sides, &b, table, wpe, dx, cols, 1e-5);
    free(table), free(wpe), free(dx);
    sides_close(sides);
}

/* ---- the loss ---- */

/* o.scale is in the host's memory. */
static void cross_entropy(struct side *s, const float *logits, const int32_t *targets, int64_t rows,
                          int64_t cols, enum dtype type, int how, struct loss_options o,
                          float *gradient, struct loss_row *losses)
{
    struct tensor x = side_tensor(s, DTYPE_F32, rows, cols, logits);
    struct tensor dx = how == 0 ? (struct tensor){0} : how == 1 ? x : side_tensor(s, type, rows, cols, NULL);
    struct loss_row *to = side_bytes(s, rows * (int64_t)sizeof *to, NULL);
    o.scale = how ? side_floats(s, o.scale, 1) : NULL;
    s->d->train->cross_entropy(s->d, dx, x, side_ints(s, targets, rows), &o, to);
    s->d->ops->download(s->d, losses, to, (size_t)rows * sizeof *to);
    side_sync(s);
    if (how) side_read(s, dx, gradient);
    side_clear(s);
}

void test_cross_entropy(void **state)
{
    static const float scales[] = {1, 0.125f};
    static const struct loss_options options[] = {{scales, 0, 0}, {scales + 1, 0.1f, 0}, {scales, 0.05f, 1e-2f}};
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *logits = random_values(12, MAX_VALUES);
    for (int64_t i = 0; i < MAX_VALUES; i++) logits[i] *= 8;
    struct results out = results_new(MAX_VALUES);
    struct loss_row losses[N_SIDES][MAX_ROWS];
    for (int i = 0; i < N_SHAPES; i++)
        for (int k = 0; k < 9; k++) {
            int64_t rows = shapes[i].rows, cols = shapes[i].cols;
            int32_t targets[MAX_ROWS];
            for (int32_t r = 0; r < rows; r++)
                targets[r] = r % 4 == 2 ? -1 : (int32_t)((r * 37 + k) % cols);
            enum dtype type = types[k / 3];
            int how = k % 3 == 0 ? 0 : k / 3 == 0 ? 1 : 2;
            for (int s = 0; s < N_SIDES; s++)
                cross_entropy(&sides[s], logits, targets, rows, cols, type, how, options[k % 3], out.a[s],
                              losses[s]);
            for (int64_t r = 0; r < rows; r++) {
                assert_near(losses[1][r].logprob, losses[0][r].logprob, 2e-5, "logprob", r, 0);
                assert_near(losses[1][r].loss, losses[0][r].loss, 2e-5, "loss", r, 0);
            }
            if (how)
                assert_all_near(out.a[1], out.a[0], rows * cols, cols, tolerance_of(type), "dlogits");
        }
    results_free(&out);
    free(logits);
    sides_close(sides);
}
