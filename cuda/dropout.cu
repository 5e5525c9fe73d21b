/* Dropout (Srivastava et al. 2014), and with p = 0 plain conversion and addition.
 *
 *   dropout       out = keep in, rounded to out's type
 *   add_dropout   x += keep y
 *
 * Grid: a thread four elements, which share a Philox counter. Bytes: each operand once. CPU twin: dropout_row
 * (cpu/train_simd.h); the factors are the same bits. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/philox.cuh"

enum { DROPOUT_THREADS = 256, EACH = 4 };

struct keep { uint32_t threshold; float scale; uint64_t key; bool on; };

static struct keep keep_of(struct dropout drop)
{
    ASSERT(drop.p >= 0 && drop.p < 1);
    return {(uint32_t)((double)drop.p * 4294967296.0), 1 / (1 - drop.p), drop.key, drop.p > 0};
}

template <class Out, class In, bool ADD>
__global__ void dropout_kernel(Out *out, const In *in, int64_t n, keep k)
{
    int64_t i0 = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (i0 >= n) return;
    philox_words w = {};
    if (k.on) w = philox((uint64_t)i0 / 4, 0, 0, k.key);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        int64_t i = i0 + e;
        if (i >= n) return;
        float x = to_f32(in[i]);
        if (k.on) x *= w.at[e] >= k.threshold ? k.scale : 0.0f;
        out[i] = from_f32<Out>(ADD ? to_f32(out[i]) + x : x);
    }
}

static dim3 grid_of(int64_t n) { return dim3((unsigned)ceil_div(n, DROPOUT_THREADS * EACH)); }

template <class In>
static void launch_from(struct cuda_device *c, struct tensor out, const In *in, struct dropout drop)
{
    int64_t n = out.rows * out.cols;
    WITH_TYPE(out.dtype, cuda_launch(c, "dropout", dropout_kernel<T, In, false>, grid_of(n),
                                     dim3(DROPOUT_THREADS), 0, (T *)out.data, in, n, keep_of(drop)));
}

void cuda_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop)
{
    ASSERT(out.rows == in.rows && out.cols == in.cols);
    WITH_TYPE(in.dtype, launch_from<T>(cuda_of(d), out, (const T *)in.data, drop));
}

void cuda_add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop)
{
    int64_t n = x.rows * x.cols;
    ASSERT(x.dtype == DTYPE_F32 && y.dtype == DTYPE_F32 && x.rows == y.rows && x.cols == y.cols);
    cuda_launch(cuda_of(d), "add_dropout", dropout_kernel<float, float, true>, grid_of(n),
                dim3(DROPOUT_THREADS), 0, (float *)x.data, (const float *)y.data, n, keep_of(drop));
}

void cuda_zero(struct device *d, void *p, int64_t bytes)
{
    struct cuda_device *c = cuda_of(d);
    if (bytes == 0 || c->failure != cudaSuccess) return;
    cuda_note(c, cudaMemsetAsync(p, 0, (size_t)bytes, c->stream), "zero");
}
