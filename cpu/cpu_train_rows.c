/* Training's operations on rows: dropout, the backward of norms, activations, rotation and
 * embeddings. Threads share out rows; sums over rows are shared out by columns, so that each is
 * added up in order by one thread. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

enum {
    COLUMN_BLOCK = 64,
    ELEMENT_BLOCK = 4096, /* of elementwise work; a power of two, as Philox's four words are */
};

/* ---- dropout ---- */

struct dropout_job {
    void *out;
    enum dtype out_dtype;
    const void *in;
    enum dtype in_dtype;
    int64_t n;
    bool add; /* out += */
    struct dropout drop;
    const struct cpu_kernels *kernels;
};

/* Factors of the elements from `begin` on, a multiple of ELEMENT_BLOCK:
 * so counters do not wrap around within. */
static struct dropout_row factors_from(const struct dropout *drop, int64_t begin)
{
    uint64_t at = (uint64_t)begin / 4, key = cpu_random_key(drop->key);
    return (struct dropout_row){drop->p, {(uint32_t)at, (uint32_t)(at >> 32), 0, 0},
                                {(uint32_t)key, (uint32_t)(key >> 32)}};
}

static void widen(float *out, const void *in, enum dtype dtype, int64_t begin, int64_t n)
{
    if (dtype == DTYPE_F32) {
        memcpy(out, (const float *)in + begin, (size_t)n * 4);
        return;
    }
    const uint16_t *x = (const uint16_t *)in + begin;
    for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(x[i]);
}

static void dropout_block(const struct dropout_job *job, int64_t begin, int64_t n)
{
    float room[ELEMENT_BLOCK], keep[ELEMENT_BLOCK];
    const float *x = (const float *)job->in + begin;
    if (job->in_dtype != DTYPE_F32) {
        widen(room, job->in, job->in_dtype, begin, n);
        x = room;
    }
    if (job->drop.p > 0) {
        struct dropout_row factors = factors_from(&job->drop, begin);
        job->kernels->dropout_row(keep, &factors, n);
        for (int64_t i = 0; i < n; i++) room[i] = x[i] * keep[i];
        x = room;
    }
    void *out = (uint8_t *)job->out + (size_t)begin * element_bytes(job->out_dtype);
    job->kernels->finish(out, job->out_dtype, x, NULL, job->add ? EPILOGUE_ADD : EPILOGUE_NONE, n);
}

static void dropout_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct dropout_job *job = ctx;
    for (int64_t b = begin; b < end; b++)
        dropout_block(job, b * ELEMENT_BLOCK, min_i64(ELEMENT_BLOCK, job->n - b * ELEMENT_BLOCK));
}

static void run_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop,
                        bool add)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(out.rows == in.rows && out.cols == in.cols && drop.p >= 0 && drop.p < 1);
    struct dropout_job job = {out.data, out.dtype, in.data, in.dtype, out.rows * out.cols,
                              add,      drop,      &c->kernels};
    pool_for(c->pool, ceil_div(job.n, ELEMENT_BLOCK), 2, dropout_blocks, &job);
}

void cpu_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop)
{
    run_dropout(d, out, in, drop, false);
}

void cpu_add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop)
{
    ASSERT(x.dtype == DTYPE_F32 && y.dtype == DTYPE_F32);
    run_dropout(d, x, y, drop, true);
}

/* ---- norm ---- */

struct norm_job {
    const struct cpu_kernels *kernels;
    struct tensor dx, dy, x;
    float *dweight, *dbias, *stats; /* stats: [R, 2] */
    const struct norm *norm;
};

static void norm_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct norm_job *j = ctx;
    for (int64_t r = begin; r < end; r++)
        j->kernels->norm_backward_row(tensor_row(j->dx, r), j->stats + 2 * r, tensor_row(j->dy, r),
                                      tensor_row(j->x, r), j->x.cols, j->norm);
}

static void norm_columns(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct norm_job *j = ctx;
    for (int64_t b = begin; b < end; b++) {
        int64_t k = b * COLUMN_BLOCK;
        j->kernels->norm_backward_columns(
            j->dweight + k, j->dbias ? j->dbias + k : NULL, (const float *)j->dy.data + k,
            (const float *)j->x.data + k, j->stats, j->x.rows, j->x.cols,
            min_i64(COLUMN_BLOCK, j->x.cols - k));
    }
}

void cpu_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                       struct tensor dy, struct tensor x, const struct norm *n,
                       const struct branch_gradient *next)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(dx.dtype == DTYPE_F32 && dy.dtype == DTYPE_F32 && x.dtype == DTYPE_F32);
    ASSERT(dx.cols == x.cols && dy.cols == x.cols && dx.rows == x.rows && dy.rows == x.rows);
    struct norm_job job = {&c->kernels, dx, dy, x, dweight, dbias, (float *)c->workspace, n};
    pool_for(c->pool, x.rows, cpu_row_grain(x.cols), norm_rows, &job);
    pool_for(c->pool, ceil_div(x.cols, COLUMN_BLOCK), 1, norm_columns, &job);
    if (!next) return;
    cpu_dropout(d, next->dy, dx, next->drop);
    if (next->dbias) cpu_column_sums(c, next->dbias, next->dy);
}

/* ---- activations ---- */

struct activation_job {
    const struct cpu_kernels *kernels;
    struct tensor dx, dy, pre;
    bool exact;
};

static void gelu_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct activation_job *j = ctx;
    for (int64_t r = begin; r < end; r++)
        j->kernels->gelu_row(tensor_row(j->dx, r), j->dx.dtype, tensor_row(j->pre, r), j->exact,
                             j->dx.cols);
}

static void gelu_backward_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct activation_job *j = ctx;
    for (int64_t r = begin; r < end; r++)
        j->kernels->gelu_backward_row(tensor_row(j->dx, r), j->dx.dtype, tensor_row(j->dy, r),
                                      tensor_row(j->pre, r), j->exact, j->dx.cols);
}

static void swiglu_backward_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct activation_job *j = ctx;
    size_t half = (size_t)j->dy.cols * element_bytes(j->pre.dtype);
    for (int64_t r = begin; r < end; r++) {
        uint8_t *dgate = tensor_row(j->dx, r);
        const uint8_t *gate = tensor_row(j->pre, r);
        j->kernels->swiglu_backward_row(dgate, dgate + half, j->dx.dtype, tensor_row(j->dy, r),
                                        gate, gate + half, j->dy.cols);
    }
}

void cpu_gelu(struct device *d, struct tensor out, struct tensor in, bool exact)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(out.dtype == in.dtype && out.rows == in.rows && out.cols == in.cols);
    struct activation_job job = {.kernels = &c->kernels, .dx = out, .pre = in, .exact = exact};
    pool_for(c->pool, out.rows, cpu_row_grain(out.cols), gelu_rows, &job);
}

void cpu_gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                       bool exact)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(dx.dtype == pre.dtype && dy.dtype == DTYPE_F32 && dx.cols == dy.cols);
    struct activation_job job = {&c->kernels, dx, dy, pre, exact};
    pool_for(c->pool, dx.rows, cpu_row_grain(dx.cols), gelu_backward_rows, &job);
}

void cpu_swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                         struct tensor gate_up)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(dgate_up.dtype == gate_up.dtype && dmlp.dtype == DTYPE_F32);
    ASSERT(dgate_up.cols == 2 * dmlp.cols && gate_up.cols == dgate_up.cols);
    struct activation_job job = {&c->kernels, dgate_up, dmlp, gate_up, false};
    pool_for(c->pool, dmlp.rows, cpu_row_grain(dgate_up.cols), swiglu_backward_rows, &job);
}

/* ---- rotation ---- */

struct rope_job {
    const struct cpu_kernels *kernels;
    struct tensor dqkv, pre;
    float *dq_norm, *dk_norm;
    const struct batch *batch;
    const struct attention *a;
};

/* The transpose of a rotation is the rotation back. */
static void rotate_back(const struct rope_job *j, float *x, int64_t row)
{
    int64_t half = j->a->head_dim / 2;
    const float *table = j->a->rope + (int64_t)j->batch->positions[row] * j->a->head_dim;
    for (int64_t i = 0; i < half; i++) {
        float c = table[2 * i], s = table[2 * i + 1], a = x[i], b = x[i + half];
        x[i] = a * c + b * s;
        x[i + half] = b * c - a * s;
    }
}

static void rotate_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct rope_job *j = ctx;
    int32_t heads = j->a->n_head + j->a->n_kv_head;
    for (int64_t r = begin; r < end; r++)
        for (int32_t h = 0; h < heads; h++)
            rotate_back(j, (float *)tensor_row(j->dqkv, r) + (int64_t)h * j->a->head_dim, r);
}

/* One head's norm, in place. Norm weights of all heads are one:
 * rows and heads are taken in order. */
static void head_norm_backward(const struct rope_job *j, int64_t row, int32_t head)
{
    const struct attention *a = j->a;
    int64_t n = a->head_dim, at = head * n;
    bool is_query = head < a->n_head;
    float x[MAX_HEAD_DIM], dx[MAX_HEAD_DIM] = {0}, stats[2];
    float *dy = (float *)tensor_row(j->dqkv, row) + at;
    widen(x, tensor_row(j->pre, row), j->pre.dtype, at, n);
    struct norm norm = {.weight = is_query ? a->q_norm : a->k_norm, .eps = a->qk_norm_eps,
                        .rms = true};
    j->kernels->norm_backward_row(dx, stats, dy, x, n, &norm);
    j->kernels->norm_backward_columns(is_query ? j->dq_norm : j->dk_norm, NULL, dy, x, stats, 1, n,
                                      n);
    memcpy(dy, dx, (size_t)n * sizeof *dx);
}

static void norm_heads_backward(const struct rope_job *j)
{
    ASSERT(j->pre.data && j->pre.cols == j->dqkv.cols && j->dq_norm && j->dk_norm);
    for (int64_t r = 0; r < j->dqkv.rows; r++)
        for (int32_t h = 0; h < j->a->n_head + j->a->n_kv_head; h++) head_norm_backward(j, r, h);
}

void cpu_rope_backward(struct device *d, struct tensor out, struct tensor dqkv,
                       struct tensor qkv_pre, float *dq_norm, float *dk_norm, const struct batch *b,
                       const struct attention *a)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(dqkv.dtype == DTYPE_F32 && a->head_dim <= MAX_HEAD_DIM);
    struct rope_job job = {&c->kernels, dqkv, qkv_pre, dq_norm, dk_norm, b, a};
    if (a->rope) pool_for(c->pool, dqkv.rows, cpu_row_grain(dqkv.cols), rotate_rows, &job);
    if (a->q_norm) norm_heads_backward(&job);
    if (out.data != dqkv.data) cpu_dropout(d, out, dqkv, (struct dropout){0});
}

/* ---- embedding ---- */

struct embed_job {
    struct matrix *dwte;
    float *dwpe;
    struct tensor dx;
    const struct batch *batch;
};

/* Columns [begin, end) of all rows, in order: no two threads meet, and no order is left to
 * chance. */
static void embed_columns(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct embed_job *j = ctx;
    int64_t k0 = begin * COLUMN_BLOCK, k1 = min_i64(end * COLUMN_BLOCK, j->dx.cols);
    int64_t n_in = j->dx.cols;
    for (int64_t r = 0; r < j->dx.rows; r++) {
        const float *dx = tensor_row(j->dx, r);
        int64_t token = j->batch->tokens[r];
        ASSERT(token >= 0 && token < j->dwte->n_out);
        float *dw = (float *)j->dwte->data + token / PANEL * n_in * PANEL + token % PANEL;
        for (int64_t k = k0; k < k1; k++) dw[k * PANEL] += dx[k];
        if (!j->dwpe) continue;
        float *dp = j->dwpe + j->batch->positions[r] * n_in;
        for (int64_t k = k0; k < k1; k++) dp[k] += dx[k];
    }
}

void cpu_embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                        const struct batch *b)
{
    ASSERT(dwte->dtype == DTYPE_F32 && dx.dtype == DTYPE_F32 && dwte->n_in == dx.cols);
    ASSERT(dx.rows == b->n_rows);
    struct embed_job job = {dwte, dwpe, dx, b};
    pool_for(cpu_of(d)->pool, ceil_div(dx.cols, COLUMN_BLOCK), 1, embed_columns, &job);
}
