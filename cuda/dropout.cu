/* Dropout (Srivastava et al. 2014), and with p = 0 plain conversion and addition.
 *
 *   dropout       out = keep in, rounded to out's type
 *   add_dropout   x += keep y
 *
 * Grid: a thread four elements, which share a Philox counter; loads and stores of 16 bytes from
 * f32, 8 from 16 bits. Bytes: each operand once. Without dropout no arithmetic; with it some 60
 * integer operations for four elements: bound by the bytes either way. CPU twin: dropout_row
 * (cpu/train_simd.h); the factors are the same bits. */
#include "cuda/dropout.cuh"

enum { DROPOUT_THREADS = 256, EACH = 4 };

/* The first n of them: EACH but at the end. */
template <class T> __device__ __forceinline__ packed<T, EACH> load_first(const T *p, int n)
{
    if (n == EACH) return load_packed<T, EACH>(p);
    packed<T, EACH> v;
#pragma unroll
    for (int e = 0; e < EACH; e++) v.at[e] = e < n ? p[e] : from_f32<T>(0);
    return v;
}

template <class Out, class In, bool ADD>
__global__ void dropout_kernel(Out *out, const In *in, int64_t n, keep k)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (i >= n) return;
    int here = (int)min(n - i, (int64_t)EACH);
    packed<In, EACH> x = load_first(in + i, here);
    packed<Out, EACH> y;
    if (ADD) y = load_first(out + i, here);
    packed<float, EACH> z = keep_factors<EACH>(k, (uint64_t)i);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        float value = to_f32(x.at[e]);
        if (k.on) value *= z.at[e];
        y.at[e] = from_f32<Out>(ADD ? to_f32(y.at[e]) + value : value);
    }
    if (here == EACH) {
        store_packed(out + i, y);
        return;
    }
#pragma unroll
    for (int e = 0; e < EACH; e++)
        if (e < here) out[i + e] = y.at[e];
}

static dim3 grid_of(int64_t n) { return dim3((unsigned)ceil_div(n, DROPOUT_THREADS * EACH)); }

/* As whole tensors are. */
static bool is_aligned(const void *p) { return (uintptr_t)p % 16 == 0; }

template <class In>
static void launch_from(struct cuda_device *c, struct tensor out, const In *in, struct dropout drop)
{
    int64_t n = out.rows * out.cols;
    WITH_TYPE(out.dtype, cuda_launch(c, "dropout", dropout_kernel<T, In, false>, grid_of(n),
                                     dim3(DROPOUT_THREADS), 0, (T *)out.data, in, n, keep_of(drop)));
}

void cuda_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop)
{
    ASSERT(out.rows == in.rows && out.cols == in.cols && is_aligned(out.data) && is_aligned(in.data));
    WITH_TYPE(in.dtype, launch_from<T>(cuda_of(d), out, (const T *)in.data, drop));
}

void cuda_add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop)
{
    int64_t n = x.rows * x.cols;
    ASSERT(x.dtype == DTYPE_F32 && y.dtype == DTYPE_F32 && x.rows == y.rows && x.cols == y.cols);
    ASSERT(is_aligned(x.data) && is_aligned(y.data));
    cuda_launch(cuda_of(d), "add_dropout", dropout_kernel<float, float, true>, grid_of(n),
                dim3(DROPOUT_THREADS), 0, (float *)x.data, (const float *)y.data, n, keep_of(drop));
}

void cuda_zero(struct device *d, void *p, int64_t bytes)
{
    struct cuda_device *c = cuda_of(d);
    if (bytes == 0 || c->failure != cudaSuccess) return;
    cuda_note(c, cudaMemsetAsync(p, 0, (size_t)bytes, c->stream), "zero");
}
