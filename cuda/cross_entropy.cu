/* Cross-entropy over rows of logits, loss and gradient in one kernel.
 *
 *   loss  -(1 - s) log p(target) + s (log Z - mean(x)) + z_weight log(Z)^2       logits f32 [M, V]
 *   dx    scale ((1 + 2 z_weight log Z) p - (1 - s) [i = target] - s / V)        f32 or 16 bits, may be logits
 *
 * Grid: a block a row; three readings, of which two come from the second-level cache. Bytes: 4 V read, dlogits
 * written. CPU twin: cpu_cross_entropy. */
#include "cuda/cuda_internal.h"
#include "cuda/logits.cuh"

struct loss_args { float scale, smooth, z_loss; };

/* T: of dlogits. Gradients may be written where logits lie: each thread writes what it alone has read. */
template <class T>
__global__ void cross_entropy_kernel(T *dlogits, const float *logits, const int32_t *targets,
                                     loss_args o, loss_row *rows, int64_t n)
{
    __shared__ float room[WARP];
    const float *x = logits + blockIdx.x * n;
    T *dx = dlogits ? dlogits + blockIdx.x * n : nullptr;
    int32_t target = targets[blockIdx.x];
    if (target < 0) {
        if (threadIdx.x == 0) rows[blockIdx.x] = {0, 0};
        if (dx)
            for (int64_t i = threadIdx.x; i < n; i += LOGITS_THREADS) dx[i] = from_f32<T>(0);
        return;
    }
    logsumexp z = row_logsumexp(x, n, room);
    float log_z = z.shift + z.log_sum, mean = 0;
    if (o.smooth > 0) {
        float sum = 0;
        for (int64_t i = threadIdx.x; i < n; i += LOGITS_THREADS) sum += x[i];
        mean = block_sum(sum, room) / (float)n;
    }
    if (threadIdx.x == 0) {
        float logprob = logprob_of(z, x[target]);
        float loss = -(1 - o.smooth) * logprob + o.z_loss * log_z * log_z;
        if (o.smooth > 0) loss += o.smooth * (log_z - mean);
        rows[blockIdx.x] = {logprob, loss};
    }
    if (!dx) return;
    __syncthreads(); /* the target's logit has been read */
    float factor = o.scale * (1 + 2 * o.z_loss * log_z) / z.sum;
    float spread = o.scale * o.smooth / (float)n, at_target = o.scale * (1 - o.smooth);
    for (int64_t i = threadIdx.x; i < n; i += LOGITS_THREADS) {
        float g = expf(clean_logit(x[i]) - z.shift) * factor - spread;
        dx[i] = from_f32<T>(i == target ? g - at_target : g);
    }
}

void cuda_cross_entropy(struct device *d, struct tensor dlogits, struct tensor logits,
                        const int32_t *targets, const struct loss_options *o, struct loss_row *rows)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(logits.dtype == DTYPE_F32);
    ASSERT(!dlogits.data || (dlogits.rows == logits.rows && dlogits.cols == logits.cols));
    loss_args args = {o->scale, o->label_smoothing, o->z_loss};
    enum dtype type = dlogits.data ? dlogits.dtype : DTYPE_F32;
    WITH_TYPE(type, cuda_launch(c, "cross_entropy", cross_entropy_kernel<T>, dim3((unsigned)logits.rows),
                                dim3(LOGITS_THREADS), 0, (T *)dlogits.data, (const float *)logits.data,
                                targets, args, rows, logits.cols));
}
