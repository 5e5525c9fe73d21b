/* AdamW (Loshchilov & Hutter 2019) with every format of its state, and the sum of squares for the norm.
 *
 *   weight     f32 itself; or 16 bits in a padded row
 *   master     f32; or the int16 by which the f32 value exceeds its bf16 weight
 *   gradient   f32 or bf16
 *   moments    f32; bf16; or 8 bits in blocks of 256 (m: sign and 7 bits of (q / 127)^2; v: (q / 255)^4)
 *
 * Elements count in the order of an f32 matrix, rows padded to 16 bytes. Rounding of moments is stochastic by
 * a hash of element and step, as on the CPU (cpu/cpu_optimizer.c, the twin).
 *
 * Grid: a block of 256 threads a block of 256 elements. Bytes: the state once in, once out. */
#include <math.h>

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

enum { STATE_BLOCK = 256, SQUARES_BLOCKS = 1024, SQUARES_THREADS = 256 };

/* Where element i of the f32 order lies in rows of another type. */
struct rows_of { int64_t n_in, f32_stride, stride; };

__device__ __forceinline__ int64_t place(rows_of r, int64_t i)
{
    return i / r.f32_stride * r.stride + i % r.f32_stride;
}

/* Padding of an f32 row may be longer than that of 16 bits is: it has no place there. */
__device__ __forceinline__ bool is_padding(rows_of r, int64_t i) { return i % r.f32_stride >= r.n_in; }

struct adamw_args {
    void *weight, *master, *m, *v;
    const void *grad;
    enum dtype dtype, grad_dtype;
    enum master_format master_format;
    enum moment_format m_format, v_format;
    rows_of weight_rows, grad_rows;
    int64_t n, round_n; /* elements; rounded up to whole blocks */
    uint32_t step;
    float grad_scale, beta1, beta2, eps, keep, rate, v_correction;
};

__device__ __forceinline__ float noise(int64_t i, uint32_t step, uint32_t stream)
{
    uint32_t h = (uint32_t)i * 0x9E3779B1u ^ (uint32_t)(i >> 32) * 0x85EBCA77u;
    h ^= step * 0xC2B2AE3Du ^ stream * 0x27D4EB2Fu;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    h ^= h >> 15;
    return (float)(h >> 8) * 0x1p-24f;
}

__device__ __forceinline__ float widen(uint16_t high) { return __uint_as_float((uint32_t)high << 16); }
__device__ __forceinline__ float fourth(float u) { return u * u * (u * u); }

__device__ float load_moment(const void *data, enum moment_format format, bool second, int64_t i,
                             int64_t round_n)
{
    if (format == MOMENT_F32) return ((const float *)data)[i];
    if (format == MOMENT_BF16) return widen(((const uint16_t *)data)[i]);
    float scale = ((const float *)((const uint8_t *)data + round_n))[i / STATE_BLOCK];
    if (second) return scale * fourth((float)((const uint8_t *)data)[i] * (1.0f / 255));
    float u = (float)((const int8_t *)data)[i] * (1.0f / 127);
    return scale * u * fabsf(u);
}

/* Between the codes below and above, with the odds that keep the mean. */
__device__ int8_t code_m(float x, float inverse, float u)
{
    float y = fabsf(x) * inverse, low = fminf(floorf(sqrtf(y) * 127), 126);
    float a = low * low, b = (low + 1) * (low + 1), p = (y * (127 * 127) - a) / (b - a);
    float code = u < p ? low + 1 : low;
    return (int8_t)(x < 0 ? -code : code);
}

__device__ uint8_t code_v(float x, float inverse, float u)
{
    float y = x * inverse, low = fminf(floorf(sqrtf(sqrtf(y)) * 255), 254);
    float a = fourth(low * (1.0f / 255)), b = fourth((low + 1) * (1.0f / 255));
    float code = u < (y - a) / (b - a) ? low + 1 : low;
    return (uint8_t)(code < 1 && x > 0 ? 1 : code);
}

/* By the whole block: 8 bits need its largest. `alive`: the element exists. */
__device__ void store_moment(void *data, enum moment_format format, bool second, int64_t i, bool alive,
                             float x, const adamw_args &a, float *room)
{
    if (format == MOMENT_Q8) {
        float scale = block_max(alive ? fabsf(x) : 0, room), inverse = scale > 0 ? 1 / scale : 0;
        float u = noise(i, a.step, second);
        if (!alive) return;
        if (second) ((uint8_t *)data)[i] = code_v(x, inverse, u);
        else ((int8_t *)data)[i] = code_m(x, inverse, u);
        if (threadIdx.x == 0)
            ((float *)((uint8_t *)data + a.round_n))[i / STATE_BLOCK] = scale;
        return;
    }
    if (!alive) return;
    if (format == MOMENT_F32) ((float *)data)[i] = x;
    else
        ((uint16_t *)data)[i] = (uint16_t)((__float_as_uint(x)
                                            + (uint32_t)(noise(i, a.step, second) * 65536.0f)) >> 16);
}

__device__ float load_weight(const adamw_args &a, int64_t i)
{
    if (a.dtype == DTYPE_F32) return ((const float *)a.weight)[i];
    if (a.master_format == MASTER_F32) return ((const float *)a.master)[i];
    int64_t at = place(a.weight_rows, i);
    if (a.dtype == DTYPE_F16) return to_f32(((const f16 *)a.weight)[at]);
    uint32_t bits = (uint32_t)((const uint16_t *)a.weight)[at] << 16;
    if (a.master_format == MASTER_REMAINDER) bits += (uint32_t)(int32_t)((const int16_t *)a.master)[i];
    return __uint_as_float(bits);
}

__device__ void store_weight(const adamw_args &a, int64_t i, float w)
{
    if (a.dtype == DTYPE_F32) {
        ((float *)a.weight)[i] = w;
        return;
    }
    if (a.master_format == MASTER_F32) ((float *)a.master)[i] = w;
    int64_t at = place(a.weight_rows, i);
    if (a.dtype == DTYPE_F16) {
        ((f16 *)a.weight)[at] = from_f32<f16>(w);
    } else if (a.master_format == MASTER_REMAINDER) {
        uint16_t high = (uint16_t)((__float_as_uint(w) + 0x8000) >> 16);
        ((uint16_t *)a.weight)[at] = high;
        ((int16_t *)a.master)[i] = (int16_t)(__float_as_uint(w) - ((uint32_t)high << 16));
    } else {
        ((bf16 *)a.weight)[at] = from_f32<bf16>(w);
    }
}

__global__ void adamw_kernel(adamw_args a)
{
    __shared__ float room[WARP];
    int64_t i = (int64_t)blockIdx.x * STATE_BLOCK + threadIdx.x;
    bool alive = i < a.n, real = alive && !is_padding(a.weight_rows, i);
    float m = 0, v = 0;
    if (alive) {
        m = load_moment(a.m, a.m_format, false, i, a.round_n);
        v = load_moment(a.v, a.v_format, true, i, a.round_n);
    }
    if (real) {
        float g = a.grad_dtype == DTYPE_F32 ? ((const float *)a.grad)[i]
                                            : widen(((const uint16_t *)a.grad)[place(a.grad_rows, i)]);
        g *= a.grad_scale;
        m = a.beta1 * m + (1 - a.beta1) * g;
        v = a.beta2 * v + (1 - a.beta2) * g * g;
        float w = load_weight(a, i);
        store_weight(a, i, w * a.keep - a.rate * m / (sqrtf(v) * a.v_correction + a.eps));
    }
    __syncthreads(); /* 8-bit scales have been read */
    store_moment(a.m, a.m_format, false, i, alive, m, a, room);
    store_moment(a.v, a.v_format, true, i, alive, v, a, room);
}

static rows_of rows_in(const struct adamw_tensor *t, enum dtype dtype)
{
    if (!t->packed) return {t->n_out * t->n_in, t->n_out * t->n_in, t->n_out * t->n_in};
    return {t->n_in, cuda_row_stride(DTYPE_F32, t->n_in), cuda_row_stride(dtype, t->n_in)};
}

static int64_t n_elements(const struct adamw_tensor *t)
{
    return t->packed ? t->n_out * cuda_row_stride(DTYPE_F32, t->n_in) : t->n_out * t->n_in;
}

void cuda_adamw(struct device *d, const struct adamw_tensor *t, const struct adamw_step *s)
{
    ASSERT(s->step >= 1);
    double c1 = 1 - pow(s->beta1, (double)s->step), c2 = 1 - pow(s->beta2, (double)s->step);
    int64_t n = n_elements(t);
    adamw_args args = {
        .weight = t->weight, .master = t->master, .m = t->m, .v = t->v, .grad = t->grad,
        .dtype = t->dtype, .grad_dtype = t->grad_dtype, .master_format = t->master_format,
        .m_format = t->m_format, .v_format = t->v_format, .weight_rows = rows_in(t, t->dtype),
        .grad_rows = rows_in(t, t->grad_dtype), .n = n, .round_n = round_up(n, STATE_BLOCK),
        .step = (uint32_t)s->step, .grad_scale = s->grad_scale, .beta1 = s->beta1, .beta2 = s->beta2,
        .eps = s->eps, .keep = 1 - s->lr * t->weight_decay, .rate = (float)(s->lr / c1),
        .v_correction = (float)(1 / sqrt(c2)),
    };
    cuda_launch(cuda_of(d), "adamw", adamw_kernel, dim3((unsigned)ceil_div(n, STATE_BLOCK)),
                dim3(STATE_BLOCK), 0, args);
}

__global__ void master_kernel(adamw_args a)
{
    int64_t i = (int64_t)blockIdx.x * STATE_BLOCK + threadIdx.x;
    if (i >= a.n) return;
    float w = 0;
    if (!is_padding(a.weight_rows, i)) {
        int64_t at = place(a.weight_rows, i);
        w = a.dtype == DTYPE_F16 ? to_f32(((const f16 *)a.weight)[at])
                                 : widen(((const uint16_t *)a.weight)[at]);
    }
    if (a.master_format == MASTER_F32) ((float *)a.master)[i] = w;
    else ((int16_t *)a.master)[i] = 0;
}

void cuda_master_init(struct device *d, const struct adamw_tensor *t)
{
    int64_t n = n_elements(t);
    adamw_args args = {.weight = t->weight, .master = t->master, .dtype = t->dtype,
                       .master_format = t->master_format, .weight_rows = rows_in(t, t->dtype), .n = n};
    ASSERT(t->dtype != DTYPE_F32 && t->master_format != MASTER_NONE);
    cuda_launch(cuda_of(d), "master_init", master_kernel, dim3((unsigned)ceil_div(n, STATE_BLOCK)),
                dim3(STATE_BLOCK), 0, args);
}

/* ---- the norm ---- */

__device__ __forceinline__ double block_sum_double(double x, double *room)
{
    room[threadIdx.x] = x;
    __syncthreads();
    for (int half = SQUARES_THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
        __syncthreads();
    }
    return room[0];
}

/* Each block sums every gridDim-th run of threads, always in the same order. */
template <class T> __global__ void squares_kernel(double *sums, const T *x, int64_t n)
{
    __shared__ double room[SQUARES_THREADS];
    double sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        float v = to_f32(x[i]);
        sum += (double)v * v;
    }
    sum = block_sum_double(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

double cuda_sum_squares(struct device *d, const void *x, enum dtype dtype, int64_t n)
{
    struct cuda_device *c = cuda_of(d);
    double host[SQUARES_BLOCKS], sum = 0;
    int64_t blocks = min_i64(ceil_div(n, SQUARES_THREADS), SQUARES_BLOCKS);
    double *sums = (double *)cuda_workspace(c, 0, (int64_t)sizeof host);
    WITH_TYPE(dtype, cuda_launch(c, "sum_squares", squares_kernel<T>, dim3((unsigned)blocks),
                                 dim3(SQUARES_THREADS), 0, sums, (const T *)x, n));
    d->ops->download(d, host, sums, (size_t)blocks * sizeof *host);
    cuda_note(c, cudaStreamSynchronize(c->stream), "sum_squares");
    if (c->failure != cudaSuccess) return 0; /* device_sync says why */
    for (int64_t i = 0; i < blocks; i++) sum += host[i];
    return sum;
}
