/* Activations and their gradients, element by element.
 *
 *   gelu      x Phi(x), or its tanh form (Hendrycks & Gimpel 2016)      out, in [R, F] of one type
 *   swiglu    silu(gate) up (Shazeer 2020)                             gate_up [R, 2F], gate first
 *
 * Grid: a thread as many elements as are 16 bytes of the widest operand, or one where rows are not
 * made of whole such runs. Bytes: each operand once. Some 20 operations an element: bound by the
 * bytes. CPU twins: gelu_row, swiglu_row and their backward (cpu/rows_simd.h, cpu/train_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { ELEMENT_THREADS = 256 };

template <class T, int EACH> __global__ void gelu_kernel(T *out, const T *in, int64_t n, bool exact)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (i >= n) return;
    packed<T, EACH> x = load_packed<T, EACH>(in + i);
#pragma unroll
    for (int e = 0; e < EACH; e++) x.at[e] = from_f32<T>(gelu(to_f32(x.at[e]), exact));
    store_packed(out + i, x);
}

template <class T, int EACH>
__global__ void gelu_backward_kernel(T *dx, const float *dy, const T *pre, int64_t n, bool exact)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (i >= n) return;
    packed<float, EACH> g = load_packed<float, EACH>(dy + i);
    packed<T, EACH> x = load_packed<T, EACH>(pre + i);
#pragma unroll
    for (int e = 0; e < EACH; e++) x.at[e] = from_f32<T>(g.at[e] * gelu_slope(to_f32(x.at[e]), exact));
    store_packed(dx + i, x);
}

/* Where the gate of element i of [R, cols] lies in [R, 2 cols]. Most indices are short, and
 * divisions of 64 bits long. */
__device__ __forceinline__ int64_t gate_at(int64_t i, int64_t cols)
{
    return i + (i >> 32 ? i / cols : (uint32_t)i / (uint32_t)cols) * cols;
}

template <class T, int EACH>
__global__ void swiglu_kernel(T *out, const T *gate_up, int64_t n, int64_t cols)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    wait_for_previous();
    if (i >= n) return;
    const T *at = gate_up + gate_at(i, cols);
    packed<T, EACH> gate = load_packed<T, EACH>(at), up = load_packed<T, EACH>(at + cols);
#pragma unroll
    for (int e = 0; e < EACH; e++)
        gate.at[e] = from_f32<T>(swiglu(to_f32(gate.at[e]), to_f32(up.at[e])));
    store_packed(out + i, gate);
}

template <class T, int EACH>
__global__ void swiglu_backward_kernel(T *dgate_up, const float *dmlp, const T *gate_up, int64_t n,
                                       int64_t cols)
{
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
    if (i >= n) return;
    int64_t at = gate_at(i, cols);
    packed<float, EACH> dy = load_packed<float, EACH>(dmlp + i);
    packed<T, EACH> gate = load_packed<T, EACH>(gate_up + at), up = load_packed<T, EACH>(gate_up + at + cols);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        float x = to_f32(gate.at[e]), s = 1 / (1 + expf(-x)), d = dy.at[e];
        gate.at[e] = from_f32<T>(d * to_f32(up.at[e]) * s * (1 + x * (1 - s)));
        up.at[e] = from_f32<T>(d * x * s);
    }
    store_packed(dgate_up + at, gate);
    store_packed(dgate_up + at + cols, up);
}

static dim3 grid_of(int64_t n, int each) { return dim3((unsigned)ceil_div(n, ELEMENT_THREADS * each)); }

template <class T, int EACH>
static void launch_gelu(struct cuda_device *c, struct tensor out, struct tensor in, bool exact)
{
    int64_t n = out.rows * out.cols;
    cuda_launch(c, "gelu", gelu_kernel<T, EACH>, grid_of(n, EACH), dim3(ELEMENT_THREADS), 0,
                (T *)out.data, (const T *)in.data, n, exact);
}

template <class T, int EACH>
static void launch_gelu_backward(struct cuda_device *c, struct tensor dx, struct tensor dy,
                                 struct tensor pre, bool exact)
{
    int64_t n = dx.rows * dx.cols;
    cuda_launch(c, "gelu_backward", gelu_backward_kernel<T, EACH>, grid_of(n, EACH),
                dim3(ELEMENT_THREADS), 0, (T *)dx.data, (const float *)dy.data, (const T *)pre.data, n,
                exact);
}

template <class T, int EACH>
static void launch_swiglu(struct cuda_device *c, struct tensor out, struct tensor gate_up)
{
    int64_t n = out.rows * out.cols;
    cuda_launch_early(c, "swiglu", swiglu_kernel<T, EACH>, grid_of(n, EACH), dim3(ELEMENT_THREADS), 0,
                      (T *)out.data, (const T *)gate_up.data, n, out.cols);
}

template <class T, int EACH>
static void launch_swiglu_backward(struct cuda_device *c, struct tensor dgate_up, struct tensor dmlp,
                                   struct tensor gate_up)
{
    int64_t n = dmlp.rows * dmlp.cols;
    cuda_launch(c, "swiglu_backward", swiglu_backward_kernel<T, EACH>, grid_of(n, EACH),
                dim3(ELEMENT_THREADS), 0, (T *)dgate_up.data, (const float *)dmlp.data,
                (const T *)gate_up.data, n, dmlp.cols);
}

/* Runs the statement with EACH elements at a time, if rows are made of such runs, or one. */
#define WITH_RUNS(each, cols, statement)                                                            \
    if ((cols) % (each) == 0) { constexpr int EACH = (each); statement; }                           \
    else { constexpr int EACH = 1; statement; }

void cuda_gelu(struct device *d, struct tensor out, struct tensor in, bool exact)
{
    ASSERT(out.dtype == in.dtype && in.rows == out.rows && in.cols == out.cols);
    WITH_TYPE(out.dtype, WITH_RUNS(16 / (int)sizeof(T), out.cols,
                                   (launch_gelu<T, EACH>(cuda_of(d), out, in, exact))));
}

void cuda_gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                        bool exact)
{
    ASSERT(dx.dtype == pre.dtype && dy.dtype == DTYPE_F32 && dy.cols == dx.cols);
    WITH_TYPE(dx.dtype, WITH_RUNS(4, dx.cols,
                                  (launch_gelu_backward<T, EACH>(cuda_of(d), dx, dy, pre, exact))));
}

void cuda_swiglu(struct device *d, struct tensor out, struct tensor gate_up)
{
    ASSERT(out.dtype == gate_up.dtype && gate_up.cols == 2 * out.cols && gate_up.rows == out.rows);
    WITH_TYPE(out.dtype, WITH_RUNS(16 / (int)sizeof(T), out.cols,
                                   (launch_swiglu<T, EACH>(cuda_of(d), out, gate_up))));
}

void cuda_swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                          struct tensor gate_up)
{
    ASSERT(dgate_up.dtype == gate_up.dtype && dmlp.dtype == DTYPE_F32);
    ASSERT(gate_up.cols == 2 * dmlp.cols && dgate_up.cols == gate_up.cols);
    WITH_TYPE(gate_up.dtype,
              WITH_RUNS(4, dmlp.cols,
                        (launch_swiglu_backward<T, EACH>(cuda_of(d), dgate_up, dmlp, gate_up))));
}
