/* Measuring a device: see device_rates.h. The matrix product is one of training's, with numbers
 * that are not zero (zeroed memory is faster than memory in use); the stream is AdamW's over arrays
 * of a small model's size; what is read alone is larger than caches are. The fastest of a few
 * counts: what else the machine does only slows. */
#include "model/device_rates.h"

#include <stdlib.h>

#include "base/checked.h"
#include "base/clock.h"
#include "model/device_train.h"
#include "model/plan.h"

enum {
    ROWS = 64, N_IN = 768, N_OUT = 768, /* short, so that others who use the machine miss some */
    STREAM_FLOATS = 2 << 20,      /* of each of AdamW's four arrays: 32 MiB together */
    STREAM_BYTES_PER_FLOAT = 28,  /* reads w, m, v, gradient; writes w, m, v */
    READ_FLOATS = 32 << 20,       /* 128 MiB: four times a last-level cache of 32 */
    FILL_ROWS = 64,               /* what matrix_write takes at a time */
};
static const int64_t measure_ns = 50 * 1000 * 1000; /* of each of the three */
/* Where less than MIN_ROUNDS fit into that. */
static const int64_t patience_ns = 1000 * 1000 * 1000;
enum { MIN_ROUNDS = 10, MAX_ROUNDS = 1000 };

/* One arena, laid out like every run's memory. */
struct bench {
    struct device *d;
    enum dtype dtype; /* of products */
    struct plan plan;
    void *arena;
    float *fill;             /* host: FILL_ROWS rows */
    struct matrix w;
    struct tensor x, y;
    float *weight, *grad, *m, *v;
    float *numbers; /* only read: by the sum, or to be x */
    double *sum;
    void *workspace;
    int64_t workspace_bytes;
};

static void layout_workspace(struct bench *b)
{
    const struct workspace_shape shape = {
        .dtype = b->dtype, .max_rows = ROWS, .max_logit_rows = 1, .n_embd = N_IN, .n_ff = N_OUT,
        .n_head = 1, .n_kv_head = 1, .head_dim = 64, .vocab_size = 1, .block_size = 1,
    };
    b->workspace_bytes = b->d->train->workspace_bytes(b->d, &shape);
    b->workspace = plan_take(&b->plan, MEMORY_WORKSPACE, "workspace", b->workspace_bytes, 1);
}

static void layout_products(struct bench *b)
{
    struct plan *p = &b->plan;
    struct device *d = b->d;
    enum dtype dtype = b->dtype;
    int64_t matrix = d->ops->matrix_bytes(d, dtype, N_OUT, N_IN), act = dtype_bytes(dtype, 1);
    b->w = (struct matrix){.data = plan_take(p, MEMORY_WEIGHTS, "w", matrix, 1), .dtype = dtype,
                            .n_out = N_OUT, .n_in = N_IN};
    b->x = (struct tensor){plan_take(p, MEMORY_ACTIVATIONS, "x", ROWS * N_IN, act), dtype, ROWS,
                           N_IN};
    b->y = (struct tensor){plan_take(p, MEMORY_ACTIVATIONS, "y", ROWS * N_OUT, act), dtype, ROWS,
                           N_OUT};
    b->numbers = plan_take(p, MEMORY_ACTIVATIONS, "numbers", ROWS * N_IN, sizeof *b->numbers);
    layout_workspace(b);
}

static void layout_stream(struct bench *b)
{
    struct plan *p = &b->plan;
    b->weight = plan_take(p, MEMORY_WEIGHTS, "stream", STREAM_FLOATS, 4);
    b->grad = plan_take(p, MEMORY_GRADIENTS, "stream", STREAM_FLOATS, 4);
    b->m = plan_take(p, MEMORY_OPTIMIZER, "stream", STREAM_FLOATS, 4);
    b->v = plan_take(p, MEMORY_OPTIMIZER, "stream", STREAM_FLOATS, 4);
    layout_workspace(b);
}

static void layout_reading(struct bench *b)
{
    b->numbers = plan_take(&b->plan, MEMORY_GRADIENTS, "numbers", READ_FLOATS, sizeof *b->numbers);
    b->sum = plan_take(&b->plan, MEMORY_GRADIENTS, "sum", 1, sizeof *b->sum);
    layout_workspace(b);
}

static void fill_floats(struct bench *b, float *to, int64_t n)
{
    for (int64_t i = 0; i < n; i += FILL_ROWS * N_IN)
        b->d->ops->upload(b->d, to + i, b->fill,
                          (size_t)min_i64(FILL_ROWS * N_IN, n - i) * sizeof *to);
}

static void make_noise(struct bench *b)
{
    uint32_t noise = 1;
    for (int64_t i = 0; i < FILL_ROWS * N_IN; i++) {
        noise = noise * 1664525 + 1013904223;
        b->fill[i] = (float)(noise >> 8 | 1) * 0x1p-24f; /* in (0, 1) */
    }
}

static void multiply(struct bench *b)
{
    b->d->ops->matmul(b->d, b->y, b->x, &b->w, NULL, EPILOGUE_NONE);
}

static void stream(struct bench *b)
{
    const struct adamw_tensor t = {
        .weight = b->weight, .dtype = DTYPE_F32, .n_out = 1, .n_in = STREAM_FLOATS,
        .grad = b->grad, .m = b->m, .v = b->v,
    };
    const struct adamw_step s = {.lr = 1e-6f, .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f,
                                 .step = 1, .grad_scale = 1};
    b->d->train->adamw(b->d, &t, &(bool){false}, 1, &s);
}

static void read_numbers(struct bench *b)
{
    const struct adamw_tensor t = {.dtype = DTYPE_F32, .n_out = 1, .n_in = READ_FLOATS,
                                   .grad = b->numbers};
    b->d->train->grad_squares(b->d, &t, &(bool){false}, 1, b->sum);
}

/* Seconds of the fastest round. The first warms up, and counts only where it takes all the time
 * there is. A few rounds there must be: on a machine that others use, the first may wait longer
 * than all of them are to take. */
static bool fastest(struct bench *b, void (*work)(struct bench *), double *seconds,
                    struct error *err)
{
    int64_t best = INT64_MAX, begin = clock_ns(), last = begin;
    for (int round = 0; round < MAX_ROUNDS; round++) {
        if (last - begin >= (round < MIN_ROUNDS ? patience_ns : measure_ns)) break;
        work(b);
        if (!b->d->ops->sync(b->d, err)) return false;
        int64_t now = clock_ns();
        if (round > 0 || now - last >= patience_ns) best = min_i64(best, max_i64(1, now - last));
        last = now;
    }
    *seconds = (double)best / 1e9;
    return true;
}

static bool measure_products(struct bench *b, double *rate, struct error *err)
{
    double seconds;
    for (int64_t row = 0; row < N_OUT; row += FILL_ROWS)
        b->d->ops->matrix_write(b->d, &b->w, row, FILL_ROWS, b->fill);
    fill_floats(b, b->numbers, ROWS * N_IN);
    struct tensor numbers = {b->numbers, DTYPE_F32, ROWS, N_IN};
    b->d->train->dropout(b->d, b->x, numbers, (struct dropout){0}); /* a conversion */
    if (!fastest(b, multiply, &seconds, err)) return false;
    *rate = 2.0 * ROWS * N_IN * N_OUT / seconds;
    return true;
}

static bool measure_stream(struct bench *b, double *rate, struct error *err)
{
    double seconds;
    fill_floats(b, b->weight, STREAM_FLOATS);
    fill_floats(b, b->grad, STREAM_FLOATS);
    fill_floats(b, b->m, STREAM_FLOATS);
    fill_floats(b, b->v, STREAM_FLOATS);
    if (!fastest(b, stream, &seconds, err)) return false;
    *rate = (double)STREAM_FLOATS * STREAM_BYTES_PER_FLOAT / seconds;
    return true;
}

static bool measure_reading(struct bench *b, double *rate, struct error *err)
{
    double seconds;
    fill_floats(b, b->numbers, READ_FLOATS);
    if (!fastest(b, read_numbers, &seconds, err)) return false;
    *rate = (double)READ_FLOATS * sizeof *b->numbers / seconds;
    return true;
}

/* Takes what `layout` asks for, measures, and gives it back. */
static bool run(struct bench *b, void (*layout)(struct bench *),
                bool (*measure)(struct bench *, double *, struct error *), double *rate,
                struct error *err)
{
    struct device *d = b->d;
    struct plan host;
    void *fill_rows;
    if (!d->train)
        return error_set(err, ERR_UNSUPPORTED, "device", "%s cannot train", d->name);
    plan_init(&b->plan);
    plan_init(&host);
    layout(b);
    plan_take(&host, MEMORY_STAGING, "fill", FILL_ROWS * N_IN, sizeof(float));
    if (!plan_alloc(&host, &b->plan, d, &fill_rows, &b->arena, err)) return false;
    layout(b);
    b->fill = plan_take(&host, MEMORY_STAGING, "fill", FILL_ROWS * N_IN, sizeof(float));
    ASSERT(plan_matches(&b->plan) && plan_matches(&host));
    d->ops->set_workspace(d, b->workspace, b->workspace_bytes);
    make_noise(b);
    bool ok = measure(b, rate, err);
    d->ops->free(d, b->arena, (size_t)b->plan.total);
    free(fill_rows);
    return ok;
}

bool device_product_rate_measure(struct device *d, enum dtype dtype, double *flops,
                                 struct error *err)
{
    struct bench b = {.d = d, .dtype = dtype};
    return run(&b, layout_products, measure_products, flops, err);
}

bool device_rates_measure(struct device *d, enum dtype dtype, struct device_rates *out,
                          struct error *err)
{
    struct bench b = {.d = d, .dtype = DTYPE_F32};
    struct device_rates r = {.source = "measured now"};
    if (!device_product_rate_measure(d, dtype, &r.flops, err)) return false;
    if (!run(&b, layout_stream, measure_stream, &r.bytes, err)) return false;
    *out = r;
    return true;
}

bool device_read_rate_measure(struct device *d, double *bytes, struct error *err)
{
    struct bench b = {.d = d, .dtype = DTYPE_F32};
    return run(&b, layout_reading, measure_reading, bytes, err);
}
