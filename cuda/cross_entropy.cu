/* Cross-entropy over rows of logits, loss and gradient in one kernel.
 *
 *   loss  -(1 - s) log p(target) + s (log Z - mean(x)) + z_weight log(Z)^2       logits f32 [M, V]
 *   dx    scale ((1 + 2 z_weight log Z) p - (1 - s) [i = target] - s / V)        f32 or 16 bits, may be logits
 *
 * Grid: a block a row; two readings, the second from the row's end back to its beginning, so that it finds in
 * the caches what the first has read last. Bytes: 4 V read once from memory and once, for the most part, from the second-level
 * cache; dlogits written. Some 20 operations a logit, two exponentials among them: bound by the bytes. CPU twin:
 * cpu_cross_entropy. */
#include "cuda/cuda_internal.h"
#include "cuda/logits.cuh"

struct loss_args { const float *scale; float smooth, z_loss; };

/* Of a row's gradient: exp(x - shift) factor - spread, less at_target at the target. */
struct gradient_args { float shift, factor, spread, at_target; int32_t target; };

/* Run i of EACH logits. Gradients may be written where logits lie: each thread writes what it alone
 * has read. */
template <int EACH, class T>
__device__ __forceinline__ void write_run(T *dx, const packed<float, EACH> &x, int64_t i,
                                          const gradient_args &a)
{
    packed<T, EACH> out;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        float g = expf(clean_logit(x.at[e]) - a.shift) * a.factor - a.spread;
        out.at[e] = from_f32<T>(i * EACH + e == a.target ? g - a.at_target : g);
    }
    store_packed(dx + i * EACH, out);
}

/* Four loads under way; from the end to the beginning. */
template <int EACH, class T>
__device__ __forceinline__ void write_row(T *dx, const float *x, int64_t n, const gradient_args &a)
{
    constexpr int RUN = 4;
    int64_t strides = (n / EACH + LOGITS_THREADS - 1) / LOGITS_THREADS;
    for (int64_t s0 = strides - 1; s0 >= 0; s0 -= RUN) {
        packed<float, EACH> v[RUN];
#pragma unroll
        for (int u = 0; u < RUN; u++) {
            int64_t i = (s0 - u) * LOGITS_THREADS + threadIdx.x;
            if (s0 >= u && i < n / EACH) v[u] = load_packed<float, EACH>(x + i * EACH);
        }
#pragma unroll
        for (int u = 0; u < RUN; u++) {
            int64_t i = (s0 - u) * LOGITS_THREADS + threadIdx.x;
            if (s0 >= u && i < n / EACH) write_run<EACH>(dx, v[u], i, a);
        }
    }
}

/* T: of dlogits. */
template <class T>
__global__ void __launch_bounds__(LOGITS_THREADS, 2)
cross_entropy_kernel(T *dlogits, const float *logits, const int32_t *targets, loss_args o, loss_row *rows,
                     int64_t n)
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
    float plain;
    logsumexp z = row_logsumexp(x, n, room, &plain);
    float log_z = z.shift + z.log_sum;
    if (threadIdx.x == 0) {
        float logprob = logprob_of(z, x[target]);
        float loss = -(1 - o.smooth) * logprob + o.z_loss * log_z * log_z;
        if (o.smooth > 0) loss += o.smooth * (log_z - plain / (float)n);
        rows[blockIdx.x] = {logprob, loss};
    }
    if (!dx) return;
    __syncthreads(); /* the target's logit has been read */
    float scale = *o.scale;
    gradient_args a = {z.shift, scale * (1 + 2 * o.z_loss * log_z) / z.sum,
                       scale * o.smooth / (float)n, scale * (1 - o.smooth), target};
    if (n % 4 == 0) write_row<4>(dx, x, n, a);
    else write_row<1>(dx, x, n, a);
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
