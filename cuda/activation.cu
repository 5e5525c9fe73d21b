/* Activations and their gradients, element by element.
 *
 *   gelu      x Phi(x), or its tanh form (Hendrycks & Gimpel 2016)      out, in [R, F] of one type
 *   swiglu    silu(gate) up (Shazeer 2020)                             gate_up [R, 2F], gate first
 *
 * Grid: a thread an element. Bytes: each operand once. CPU twins:
 * gelu_row, swiglu_row and their backward (cpu/rows_simd.h, cpu/train_simd.h). */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { ELEMENT_THREADS = 256 };

__device__ __forceinline__ float gelu_slope(float x, bool exact)
{
    if (exact)
        return 0.5f * erfcf(-0.7071067812f * x) + x * expf(-0.5f * x * x) * 0.3989422804f;
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 0.134145f * x * x);
}

template <class T> __global__ void gelu_kernel(T *out, const T *in, int64_t n, bool exact)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = from_f32<T>(gelu(to_f32(in[i]), exact));
}

template <class T>
__global__ void gelu_backward_kernel(T *dx, const float *dy, const T *pre, int64_t n, bool exact)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) dx[i] = from_f32<T>(dy[i] * gelu_slope(to_f32(pre[i]), exact));
}

template <class T> __global__ void swiglu_kernel(T *out, const T *gate_up, int64_t n, int64_t cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    wait_for_previous();
    if (i >= n) return;
    const T *gate = gate_up + i / cols * 2 * cols + i % cols;
    out[i] = from_f32<T>(swiglu(to_f32(gate[0]), to_f32(gate[cols])));
}

template <class T>
__global__ void swiglu_backward_kernel(T *dgate_up, const float *dmlp, const T *gate_up, int64_t n,
                                       int64_t cols)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t at = i / cols * 2 * cols + i % cols;
    float x = to_f32(gate_up[at]), s = 1 / (1 + expf(-x)), d = dmlp[i];
    dgate_up[at] = from_f32<T>(d * to_f32(gate_up[at + cols]) * s * (1 + x * (1 - s)));
    dgate_up[at + cols] = from_f32<T>(d * x * s);
}

static dim3 grid_of(int64_t n) { return dim3((unsigned)ceil_div(n, ELEMENT_THREADS)); }

void cuda_gelu(struct device *d, struct tensor out, struct tensor in, bool exact)
{
    struct cuda_device *c = cuda_of(d);
    int64_t n = out.rows * out.cols;
    ASSERT(out.dtype == in.dtype && in.rows == out.rows && in.cols == out.cols);
    WITH_TYPE(out.dtype, cuda_launch(c, "gelu", gelu_kernel<T>, grid_of(n), dim3(ELEMENT_THREADS), 0,
                                     (T *)out.data, (const T *)in.data, n, exact));
}

void cuda_gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                        bool exact)
{
    struct cuda_device *c = cuda_of(d);
    int64_t n = dx.rows * dx.cols;
    ASSERT(dx.dtype == pre.dtype && dy.dtype == DTYPE_F32 && dy.cols == dx.cols);
    WITH_TYPE(dx.dtype, cuda_launch(c, "gelu_backward", gelu_backward_kernel<T>, grid_of(n),
                                    dim3(ELEMENT_THREADS), 0, (T *)dx.data, (const float *)dy.data,
                                    (const T *)pre.data, n, exact));
}

void cuda_swiglu(struct device *d, struct tensor out, struct tensor gate_up)
{
    struct cuda_device *c = cuda_of(d);
    int64_t n = out.rows * out.cols;
    ASSERT(out.dtype == gate_up.dtype && gate_up.cols == 2 * out.cols && gate_up.rows == out.rows);
    WITH_TYPE(out.dtype, cuda_launch_early(c, "swiglu", swiglu_kernel<T>, grid_of(n),
                                           dim3(ELEMENT_THREADS), 0, (T *)out.data,
                                           (const T *)gate_up.data, n, out.cols));
}

void cuda_swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                          struct tensor gate_up)
{
    struct cuda_device *c = cuda_of(d);
    int64_t n = dmlp.rows * dmlp.cols;
    ASSERT(dgate_up.dtype == gate_up.dtype && dmlp.dtype == DTYPE_F32);
    ASSERT(gate_up.cols == 2 * dmlp.cols && dgate_up.cols == gate_up.cols);
    WITH_TYPE(gate_up.dtype,
              cuda_launch(c, "swiglu_backward", swiglu_backward_kernel<T>, grid_of(n),
                          dim3(ELEMENT_THREADS), 0, (T *)dgate_up.data, (const float *)dmlp.data,
                          (const T *)gate_up.data, n, dmlp.cols));
}
