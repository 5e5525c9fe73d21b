/* Ceilings of the device: see bench.h. */
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/device_train.h"
#include "scripts/gpu/bench.h"

enum { MAX_ROUNDS = 100, FILL_ROWS = 64, BLOCK = 4096 };
static const int64_t ENOUGH_NS = 150 * 1000 * 1000;

/* One product, and its two gradients. */
struct product {
    struct device *d;
    struct matrix w, dw;
    struct tensor x, y, dx;
    float *dbias;
    void *workspace;
    int64_t w_bytes, dw_bytes, workspace_bytes;
};

static struct tensor random_tensor(struct device *d, int64_t rows, int64_t cols)
{
    int64_t n = rows * cols;
    struct tensor t = {bench_alloc(d, n * 2), DTYPE_BF16, rows, cols};
    uint16_t block[BLOCK];
    struct error err;
    uint32_t state = 1;
    for (int i = 0; i < BLOCK; i++)
        block[i] = f32_to_bf16((float)((state = state * 1664525 + 1013904223) >> 8) * 0x1p-24f -
                               0.5f);
    for (int64_t i = 0; i < n; i += BLOCK)
        d->ops->upload(d, (uint16_t *)t.data + i, block, (size_t)min_i64(BLOCK, n - i) * 2);
    bench_must(d->ops->sync(d, &err), &err);
    return t;
}

static void fill_matrix(struct device *d, struct matrix *w)
{
    float *rows = malloc((size_t)(FILL_ROWS * w->n_in) * sizeof *rows);
    uint32_t state = 3;
    struct error err;
    if (!rows) abort();
    for (int64_t i = 0; i < FILL_ROWS * w->n_in; i++)
        rows[i] = (float)((state = state * 1664525 + 1013904223) >> 8) * 0x1p-24f - 0.5f;
    for (int64_t row = 0; row < w->n_out; row += FILL_ROWS)
        d->ops->matrix_write(d, w, row, min_i64(FILL_ROWS, w->n_out - row), rows);
    bench_must(d->ops->sync(d, &err), &err);
    free(rows);
}

static void product_open(struct product *p, struct device *d, int64_t rows, int64_t n_out,
                         int64_t n_in)
{
    const struct workspace_shape shape = {
        .dtype = DTYPE_BF16, .max_rows = rows, .max_logit_rows = 1, .n_embd = n_in, .n_ff = n_out,
        .n_head = 1, .n_kv_head = 1, .head_dim = 64, .vocab_size = 64, .block_size = 64,
    };
    *p = (struct product){.d = d};
    p->workspace_bytes = d->train->workspace_bytes(d, &shape);
    p->workspace = bench_alloc(d, p->workspace_bytes);
    d->ops->set_workspace(d, p->workspace, p->workspace_bytes);
    p->w_bytes = d->ops->matrix_bytes(d, DTYPE_BF16, n_out, n_in);
    p->dw_bytes = d->ops->matrix_bytes(d, DTYPE_F32, n_out, n_in);
    p->w = (struct matrix){.data = bench_alloc(d, p->w_bytes), .dtype = DTYPE_BF16, .n_out = n_out,
                           .n_in = n_in};
    p->dw = (struct matrix){.data = bench_alloc(d, p->dw_bytes), .dtype = DTYPE_F32, .n_out = n_out,
                            .n_in = n_in};
    fill_matrix(d, &p->w);
    p->x = random_tensor(d, rows, n_in);
    p->y = random_tensor(d, rows, n_out);
    p->dx = (struct tensor){bench_alloc(d, rows * n_in * 4), DTYPE_F32, rows, n_in};
    p->dbias = bench_alloc(d, n_out * 4);
}

static void product_close(struct product *p)
{
    struct device *d = p->d;
    d->ops->free(d, p->workspace, (size_t)p->workspace_bytes);
    d->ops->free(d, p->w.data, (size_t)p->w_bytes);
    d->ops->free(d, p->dw.data, (size_t)p->dw_bytes);
    d->ops->free(d, p->x.data, (size_t)(p->x.rows * p->x.cols * 2));
    d->ops->free(d, p->y.data, (size_t)(p->y.rows * p->y.cols * 2));
    d->ops->free(d, p->dx.data, (size_t)(p->dx.rows * p->dx.cols * 4));
    d->ops->free(d, p->dbias, (size_t)p->w.n_out * 4);
}

static void forward(struct product *p)
{
    p->d->ops->matmul(p->d, p->y, p->x, &p->w, NULL, EPILOGUE_NONE);
}

static void backward_x(struct product *p)
{
    p->d->train->matmul_backward_x(p->d, p->dx, p->y, &p->w);
}

static void backward_w(struct product *p)
{
    p->d->train->matmul_backward_w(p->d, &p->dw, NULL, p->y, p->x, (struct random_key){0});
}

/* ... with the sums of a bias, which are kernels of their own. */
static void backward_w_and_bias(struct product *p)
{
    p->d->train->matmul_backward_w(p->d, &p->dw, p->dbias, p->y, p->x, (struct random_key){0});
}

/* Operations a second of the fastest round; the first warms up. */
static double rate(struct product *p, void (*work)(struct product *))
{
    int64_t best = INT64_MAX, begin = clock_ns(), last = begin;
    struct error err;
    for (int round = 0; round < MAX_ROUNDS && (round < 2 || last - begin < ENOUGH_NS); round++) {
        work(p);
        bench_must(p->d->ops->sync(p->d, &err), &err);
        int64_t now = clock_ns();
        if (round > 0) best = min_i64(best, max_i64(1, now - last));
        last = now;
    }
    return 2e9 * (double)p->x.rows * (double)p->w.n_out * (double)p->w.n_in / (double)best;
}

double bench_product_rate(const struct bench *b, int64_t rows, int64_t n_out, int64_t n_in)
{
    struct product p;
    product_open(&p, b->d, rows, n_out, n_in);
    double r = rate(&p, forward);
    product_close(&p);
    return r;
}

void bench_rates(const struct bench *b)
{
    static const struct { int64_t rows, n_out, n_in; } shapes[] = {
        {8192, 8192, 8192},                                                    /* the ceiling */
        /* of presets */
        {8192, 2304, 768}, {8192, 768, 3072}, {8192, 4608, 1536}, {8192, 50304, 768},
    };
    struct bench_bandwidth w = bench_bandwidth(b->small);
    bench_report("rates", "copy", w.copy * 1e-9, "GB/s", "bytes read and written");
    bench_report("rates", "read", w.read * 1e-9, "GB/s", "%s", "");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t cut = b->small ? 64 : 1;
        struct product p;
        char name[96];
        product_open(&p, b->d, shapes[i].rows / cut, shapes[i].n_out / cut, shapes[i].n_in / cut);
        double y = rate(&p, forward), dx = rate(&p, backward_x), dw = rate(&p, backward_w);
        double dw_bias = rate(&p, backward_w_and_bias);
        product_close(&p);
        snprintf(name, sizeof name, "bf16 product %lldx%lldx%lld", (long long)shapes[i].rows,
                 (long long)shapes[i].n_out, (long long)shapes[i].n_in);
        bench_report("rates", name, y * 1e-12, "TFLOP/s",
                     "backward: dx %.1f, dw %.1f, with dbias %.1f",
                     dx * 1e-12, dw * 1e-12, dw_bias * 1e-12);
    }
}
