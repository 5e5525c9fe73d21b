/* Operations that take each row by itself: norms, SwiGLU, gather. */
#include <string.h>

#include "cpu/cpu_internal.h"

struct row_job {
    const struct cpu_kernels *kernels;
    struct tensor out, in;
    const struct norm *norm;
    const int32_t *rows;
};

static void norm_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct row_job *job = ctx;
    for (int64_t r = begin; r < end; r++)
        job->kernels->norm_row(tensor_row(job->out, r), job->out.dtype, tensor_row(job->in, r),
                               job->in.cols, job->norm);
}

void cpu_norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(x.dtype == DTYPE_F32 && out.rows == x.rows && out.cols == x.cols);
    struct row_job job = {.kernels = &c->kernels, .out = out, .in = x, .norm = n};
    pool_for(c->pool, x.rows, cpu_row_grain(x.cols), norm_rows, &job);
}

static void swiglu_rows(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct row_job *job = ctx;
    for (int64_t r = begin; r < end; r++) {
        const uint8_t *gate = tensor_row(job->in, r);
        const uint8_t *up = gate + (size_t)job->out.cols * element_bytes(job->in.dtype);
        job->kernels->swiglu_row(tensor_row(job->out, r), job->out.dtype, gate, up,
                                 job->out.cols);
    }
}

void cpu_swiglu(struct device *d, struct tensor out, struct tensor gate_up)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(gate_up.dtype == out.dtype && out.rows == gate_up.rows && 2 * out.cols == gate_up.cols);
    struct row_job job = {.kernels = &c->kernels, .out = out, .in = gate_up};
    pool_for(c->pool, out.rows, cpu_row_grain(out.cols * 2), swiglu_rows, &job);
}

void cpu_gather(struct device *d, struct tensor out, struct tensor x, const int32_t *rows)
{
    ASSERT(x.dtype == DTYPE_F32 && out.dtype == DTYPE_F32 && out.cols == x.cols);
    for (int64_t i = 0; i < out.rows; i++) {
        ASSERT(rows[i] >= 0 && rows[i] < x.rows);
        memcpy(tensor_row(out, i), tensor_row(x, rows[i]), (size_t)x.cols * 4);
    }
}
