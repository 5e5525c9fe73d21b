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
 * Grid: a warp a block of 256 elements, a lane two runs of four: loads of 16 bytes from f32, 8 from 16 bits. Bytes:
 * the state once in, once out; 28 a parameter with 16-bit weights, remainders and gradients and f32 moments.
 * Bound by them. */
#include <math.h>

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

static constexpr int STATE_BLOCK = 256, HALVES = 2, ADAMW_WARPS = 4, ADAMW_THREADS = ADAMW_WARPS * WARP;
static constexpr int SQUARES_THREADS = 256, SQUARES_CHUNK = 1 << 15, SQUARES_ARRAYS = 100;

/* Where element i of the f32 order lies in rows of another type. */
struct rows_of { int64_t n_in, f32_stride, stride; };

__device__ __forceinline__ int64_t place(rows_of r, int64_t i)
{
    return i / r.f32_stride * r.stride + i % r.f32_stride;
}

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

/* Four elements in a row, of which the first n exist. */
struct four { float at[4]; };

template <class T> __device__ __forceinline__ packed<T, 4> load_some(const T *p, int n)
{
    if (n == 4) return load_packed<T, 4>(p);
    packed<T, 4> v = {};
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) v.at[e] = p[e];
    return v;
}

template <class T> __device__ __forceinline__ void store_some(T *p, const packed<T, 4> &v, int n)
{
    if (n == 4) {
        store_packed(p, v);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) p[e] = v.at[e];
}

template <class T> __device__ __forceinline__ four load_floats(const T *p, int n)
{
    packed<T, 4> v = load_some(p, n);
    return {{to_f32(v.at[0]), to_f32(v.at[1]), to_f32(v.at[2]), to_f32(v.at[3])}};
}

template <class T> __device__ __forceinline__ void store_floats(T *p, const four &x, int n)
{
    packed<T, 4> v;
#pragma unroll
    for (int e = 0; e < 4; e++) v.at[e] = from_f32<T>(x.at[e]);
    store_some(p, v, n);
}

__device__ four load_moments(const void *data, enum moment_format format, bool second, int64_t i, int n,
                             int64_t round_n)
{
    if (format == MOMENT_F32) return load_floats((const float *)data + i, n);
    if (format == MOMENT_BF16) return load_floats((const bf16 *)data + i, n);
    float scale = ((const float *)((const uint8_t *)data + round_n))[i / STATE_BLOCK];
    packed<uint8_t, 4> codes = load_some((const uint8_t *)data + i, n);
    four x;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float u = (float)(int8_t)codes.at[e] * (1.0f / 127);
        x.at[e] = second ? scale * fourth((float)codes.at[e] * (1.0f / 255)) : scale * u * fabsf(u);
    }
    return x;
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

/* One state block of 256 elements is a warp's: lane l has elements 4 l .. 4 l + 3 of each half. */
struct share {
    int64_t i[HALVES];     /* of the first of four */
    int n[HALVES];         /* how many of them are values, not padding */
    four m[HALVES], v[HALVES];
};

__device__ void store_codes(void *data, bool second, const share &s, const four (&x)[HALVES],
                            const adamw_args &a)
{
    float largest = 0;
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < s.n[h]) largest = fmaxf(largest, fabsf(x[h].at[e]));
    float scale = warp_max(largest), inverse = scale > 0 ? 1 / scale : 0;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        packed<uint8_t, 4> codes;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float u = noise(s.i[h] + e, a.step, second), value = x[h].at[e];
            codes.at[e] = second ? code_v(value, inverse, u) : (uint8_t)code_m(value, inverse, u);
        }
        store_some((uint8_t *)data + s.i[h], codes, s.n[h]);
    }
    if (threadIdx.x % WARP == 0)
        ((float *)((uint8_t *)data + a.round_n))[s.i[0] / STATE_BLOCK] = scale;
}

__device__ void store_moments(void *data, enum moment_format format, bool second, const share &s,
                              const four (&x)[HALVES], const adamw_args &a)
{
    if (format == MOMENT_Q8) {
        store_codes(data, second, s, x, a);
        return;
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        if (format == MOMENT_F32) {
            store_floats((float *)data + s.i[h], x[h], s.n[h]);
            continue;
        }
        packed<uint16_t, 4> high;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t below = (uint32_t)(noise(s.i[h] + e, a.step, second) * 65536.0f);
            high.at[e] = (uint16_t)((__float_as_uint(x[h].at[e]) + below) >> 16);
        }
        store_some((uint16_t *)data + s.i[h], high, s.n[h]);
    }
}

/* i: in f32 order; at: in the weight's own. */
__device__ four load_weights(const adamw_args &a, int64_t i, int64_t at, int n)
{
    if (a.dtype == DTYPE_F32) return load_floats((const float *)a.weight + i, n);
    if (a.master_format == MASTER_F32) return load_floats((const float *)a.master + i, n);
    if (a.dtype == DTYPE_F16) return load_floats((const f16 *)a.weight + at, n);
    four w = load_floats((const bf16 *)a.weight + at, n);
    if (a.master_format != MASTER_REMAINDER) return w;
    packed<int16_t, 4> low = load_some((const int16_t *)a.master + i, n);
#pragma unroll
    for (int e = 0; e < 4; e++)
        w.at[e] = __uint_as_float(__float_as_uint(w.at[e]) + (uint32_t)(int32_t)low.at[e]);
    return w;
}

__device__ void store_weights(const adamw_args &a, int64_t i, int64_t at, int n, const four &w)
{
    if (a.dtype == DTYPE_F32) {
        store_floats((float *)a.weight + i, w, n);
        return;
    }
    if (a.master_format == MASTER_F32) store_floats((float *)a.master + i, w, n);
    if (a.dtype == DTYPE_F16) {
        store_floats((f16 *)a.weight + at, w, n);
    } else if (a.master_format == MASTER_REMAINDER) {
        packed<uint16_t, 4> high;
        packed<int16_t, 4> low;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t bits = __float_as_uint(w.at[e]);
            high.at[e] = (uint16_t)((bits + 0x8000) >> 16);
            low.at[e] = (int16_t)(bits - ((uint32_t)high.at[e] << 16));
        }
        store_some((uint16_t *)a.weight + at, high, n);
        store_some((int16_t *)a.master + i, low, n);
    } else {
        store_floats((bf16 *)a.weight + at, w, n);
    }
}

/* Elements [i, i + n) of one row. */
__device__ void step_four(const adamw_args &a, int64_t i, int64_t row, int64_t col, int n, four &m,
                          four &v)
{
    int64_t weight_at = row * a.weight_rows.stride + col, grad_at = row * a.grad_rows.stride + col;
    four g = a.grad_dtype == DTYPE_F32 ? load_floats((const float *)a.grad + i, n)
                                       : load_floats((const bf16 *)a.grad + grad_at, n);
    four w = load_weights(a, i, weight_at, n);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float x = g.at[e] * a.grad_scale;
        m.at[e] = a.beta1 * m.at[e] + (1 - a.beta1) * x;
        v.at[e] = a.beta2 * v.at[e] + (1 - a.beta2) * x * x;
        w.at[e] = w.at[e] * a.keep - a.rate * m.at[e] / (sqrtf(v.at[e]) * a.v_correction + a.eps);
    }
    store_weights(a, i, weight_at, n, w);
}

__global__ void __launch_bounds__(ADAMW_THREADS) adamw_kernel(adamw_args a)
{
    int64_t block = (int64_t)blockIdx.x * ADAMW_WARPS + threadIdx.x / WARP;
    int64_t begin = block * STATE_BLOCK, stride = a.weight_rows.f32_stride;
    if (begin >= a.n) return;
    share s;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        int64_t i = begin + h * (STATE_BLOCK / HALVES) + threadIdx.x % WARP * 4;
        /* Divisions of 64 bits are long, and nearly all indices are short. */
        int64_t row = i >> 32 ? i / stride : (uint32_t)i / (uint32_t)min(stride, (int64_t)UINT32_MAX);
        int64_t col = i - row * stride, values = a.weight_rows.n_in - col;
        s.i[h] = i;
        s.n[h] = i < a.n && values > 0 ? (int)min(values, (int64_t)4) : 0;
        s.m[h] = load_moments(a.m, a.m_format, false, i, s.n[h], a.round_n);
        s.v[h] = load_moments(a.v, a.v_format, true, i, s.n[h], a.round_n);
        step_four(a, i, row, col, s.n[h], s.m[h], s.v[h]);
    }
    __syncwarp(); /* 8-bit scales have been read */
    store_moments(a.m, a.m_format, false, s, s.m, a);
    store_moments(a.v, a.v_format, true, s, s.v, a);
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
    int64_t blocks = ceil_div(n, STATE_BLOCK * ADAMW_WARPS);
    cuda_launch(cuda_of(d), "adamw", adamw_kernel, dim3((unsigned)blocks), dim3(ADAMW_THREADS), 0, args);
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

/* As many arrays as a kernel's parameters hold. */
struct squares_table {
    struct { const void *data; int64_t n, first_chunk; enum dtype dtype; } at[SQUARES_ARRAYS];
    int32_t n;
};

/* Elements [begin, end), 16 bytes a load; begin is a multiple of a load. */
template <class T> __device__ double chunk_squares(const T *x, int64_t begin, int64_t end)
{
    constexpr int EACH = 16 / sizeof(T);
    double sum = 0;
    for (int64_t i = begin + threadIdx.x * EACH; i < end; i += SQUARES_THREADS * EACH) {
        packed<T, EACH> v = {};
        if (i + EACH <= end) v = load_packed<T, EACH>(x + i);
        else
            for (int e = 0; i + e < end; e++) v.at[e] = x[i + e];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float f = to_f32(v.at[e]);
            sum += (double)f * f;
        }
    }
    return sum;
}

/* Grid: a block a chunk of an array, chunks of all arrays counted through. Bytes: each gradient once. */
__global__ void __launch_bounds__(SQUARES_THREADS) squares_kernel(double *sums, squares_table t)
{
    __shared__ double room[SQUARES_THREADS];
    int32_t low = 0, high = t.n - 1; /* the last array that begins at or before this chunk */
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (t.at[middle].first_chunk <= blockIdx.x) low = middle;
        else high = middle - 1;
    }
    int64_t begin = (blockIdx.x - t.at[low].first_chunk) * SQUARES_CHUNK;
    int64_t end = min(begin + SQUARES_CHUNK, t.at[low].n);
    const void *data = t.at[low].data;
    double sum = 0;
    if (t.at[low].dtype == DTYPE_F32) sum = chunk_squares((const float *)data, begin, end);
    else if (t.at[low].dtype == DTYPE_BF16) sum = chunk_squares((const bf16 *)data, begin, end);
    else sum = chunk_squares((const f16 *)data, begin, end);
    sum = block_sum_double(sum, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* One block: *total = the n sums, always in the same order. */
__global__ void __launch_bounds__(SQUARES_THREADS) total_kernel(double *total, const double *sums,
                                                                int64_t n)
{
    __shared__ double room[SQUARES_THREADS];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += SQUARES_THREADS) sum += sums[i];
    sum = block_sum_double(sum, room);
    if (threadIdx.x == 0) *total = sum;
}

/* Launches what the table holds; its chunks' sums go behind the `done` ones that are there. */
static int64_t launch_squares(struct cuda_device *c, const squares_table &t, int64_t chunks, int64_t done)
{
    int64_t room = (done + chunks) * (int64_t)sizeof(double);
    double *sums = (double *)cuda_workspace(c, 0, room);
    cuda_launch(c, "grad_squares", squares_kernel, dim3((unsigned)chunks), dim3(SQUARES_THREADS), 0,
                sums + done, t);
    return done + chunks;
}

double cuda_grad_squares(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                         int64_t n)
{
    struct cuda_device *c = cuda_of(d);
    squares_table t = {};
    int64_t chunks = 0, done = 0;
    for (int64_t i = 0; i < n; i++) {
        rows_of r = rows_in(&tensors[i], tensors[i].grad_dtype);
        int64_t elements = tensors[i].packed ? tensors[i].n_out * r.stride : r.n_in;
        if (skip[i]) continue;
        t.at[t.n++] = {tensors[i].grad, elements, chunks, tensors[i].grad_dtype};
        chunks += ceil_div(elements, SQUARES_CHUNK);
        if (t.n < SQUARES_ARRAYS) continue;
        done = launch_squares(c, t, chunks, done);
        t.n = 0, chunks = 0;
    }
    done = launch_squares(c, t, chunks, done);
    double *sums = (double *)cuda_workspace(c, 0, (done + 1) * (int64_t)sizeof(double)), sum = 0;
    cuda_launch(c, "grad_squares", total_kernel, dim3(1), dim3(SQUARES_THREADS), 0, sums + done, sums,
                done);
    d->ops->download(d, &sum, sums + done, sizeof sum);
    cuda_note(c, cudaStreamSynchronize(c->stream), "grad_squares");
    return c->failure == cudaSuccess ? sum : 0; /* device_sync says why */
}
