/* AdamW (Loshchilov & Hutter 2019) with every format of its state, and the sum of squares for the norm.
 *
 *   weight     f32 itself; or 16 bits in a padded row
 *   master     f32; or the int16 by which the f32 value exceeds its bf16 weight
 *   gradient   f32 or bf16
 *   moments    f32; bf16; or 8 bits in blocks of 256 (m: sign and 7 bits of (q / 127)^2; v: (q / 255)^4)
 *
 * Elements count in the order of an f32 matrix, rows padded to 16 bytes; padding is zero and stays so. Rounding of
 * moments is stochastic by a hash of element and step, as on the CPU (cpu/cpu_optimizer.c, the twin).
 *
 * Grid: all tensors of a launch in a row, a warp a block of 256 elements of one of them, a lane two runs of four:
 * loads of 16 bytes from f32, 8 from 16 bits, all of them under way before the first is used. Bytes: the state once
 * in, once out; a parameter 28 with 16-bit weights and remainders, f32 gradients and f32 moments, 16 with 8-bit
 * moments. Some 30 operations an element (60 with 8-bit moments): bound by the bytes. */
#include <math.h>

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"

static constexpr int STATE_BLOCK = 256, HALVES = 2, ADAMW_WARPS = 4, ADAMW_THREADS = ADAMW_WARPS * WARP;
static constexpr int ADAMW_TENSORS = 36; /* a launch: kernels' parameters have 4 KiB */
static constexpr int SQUARES_THREADS = 256, SQUARES_CHUNK = 1 << 15, SQUARES_ARRAYS = 100;

/* Where element i of the f32 order lies in rows of another type. */
struct rows_of { int64_t n_in, f32_stride, stride; };

__device__ __forceinline__ int64_t place(rows_of r, int64_t i)
{
    return i / r.f32_stride * r.stride + i % r.f32_stride;
}

__device__ __forceinline__ bool is_padding(rows_of r, int64_t i) { return i % r.f32_stride >= r.n_in; }

/* What a launch's tensors share. */
struct adamw_constants {
    uint32_t step;
    float grad_scale, beta1, beta2, eps, rate, v_correction;
};

/* A tensor as kernels see it. Strides: elements from row to row; a vector is one row. */
struct adamw_place {
    void *weight, *master, *m, *v;
    const void *grad;
    int64_t n, round_n;   /* elements; rounded up to whole blocks */
    int64_t first_block;  /* of all tensors' blocks counted through */
    int64_t stride;       /* in the f32 order */
    int64_t weight_stride, grad_stride;
    float keep;
    uint8_t dtype, grad_dtype, master_format, m_format, v_format;
};

struct adamw_table {
    adamw_place at[ADAMW_TENSORS];
    adamw_constants constants;
    int32_t n;
    int64_t n_blocks;
};
static_assert(sizeof(adamw_table) <= 4096);

/* 16 bits for an element's first moment, 16 for its second: cpu/adamw_block.h. */
__device__ __forceinline__ uint32_t noise_bits(int64_t i, uint32_t step, bool second)
{
    uint32_t h = (uint32_t)i * 0x9E3779B1u ^ (uint32_t)(i >> 32) * 0x85EBCA77u ^ step * 0xC2B2AE3Du;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    h ^= h >> 15;
    return second ? h & 0xFFFF : h >> 16;
}

__device__ __forceinline__ float widen(uint16_t high) { return __uint_as_float((uint32_t)high << 16); }
__device__ __forceinline__ float fourth(float u) { return u * u * (u * u); }

/* Four elements in a row, of which the first n exist: all but at the end of a vector, since rows of
 * matrices are padded. */
struct four { float at[4]; };

/* Their bits as they lie in memory. Loading and understanding them are two steps, so that the loads
 * of all that an element has are under way together. */
struct raw { uint32_t at[4]; };

/* WORDS 4, 2 or 1: elements of as many bytes. */
template <class T, int WORDS>
__device__ __forceinline__ raw load_some(const void *from, int64_t i, int n)
{
    raw bits = {};
    const T *p = (const T *)from + i;
    if (n == 4) {
        packed<uint32_t, WORDS> v = load_packed<uint32_t, WORDS>((const uint32_t *)p);
#pragma unroll
        for (int w = 0; w < WORDS; w++) bits.at[w] = v.at[w];
        return bits;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) bits.at[e * WORDS / 4] |= (uint32_t)p[e] << e * WORDS * 8 % 32;
    return bits;
}

__device__ __forceinline__ raw load_raw(const void *from, int bytes, int64_t i, int n)
{
    if (bytes == 4) return load_some<uint32_t, 4>(from, i, n);
    if (bytes == 2) return load_some<uint16_t, 2>(from, i, n);
    return load_some<uint8_t, 1>(from, i, n);
}

/* Element e of 16 bits, and of 8. */
__device__ __forceinline__ uint16_t half_of(const raw &r, int e) { return (uint16_t)(r.at[e / 2] >> e % 2 * 16); }
__device__ __forceinline__ uint8_t byte_of(const raw &r, int e) { return (uint8_t)(r.at[0] >> e * 8); }

__device__ __forceinline__ four floats_of(const raw &r)
{
    return {{__uint_as_float(r.at[0]), __uint_as_float(r.at[1]), __uint_as_float(r.at[2]),
             __uint_as_float(r.at[3])}};
}

__device__ __forceinline__ four bf16_of(const raw &r)
{
    return {{widen(half_of(r, 0)), widen(half_of(r, 1)), widen(half_of(r, 2)), widen(half_of(r, 3))}};
}

__device__ __forceinline__ four f16_of(const raw &r)
{
    four x;
#pragma unroll
    for (int e = 0; e < 4; e++) x.at[e] = to_f32(__ushort_as_half(half_of(r, e)));
    return x;
}

/* Left to the compiler, stores of one run in two branches become four of an element each, which
 * write every sector four times. */
__device__ __forceinline__ void store_words(void *p, const packed<uint32_t, 4> &w)
{
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(p), "r"(w.at[0]), "r"(w.at[1]), "r"(w.at[2]), "r"(w.at[3]) : "memory");
}

__device__ __forceinline__ void store_words(void *p, const packed<uint32_t, 2> &w)
{
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" :: "l"(p), "r"(w.at[0]), "r"(w.at[1]) : "memory");
}

__device__ __forceinline__ void store_words(void *p, const packed<uint32_t, 1> &w)
{
    *(uint32_t *)p = w.at[0];
}

template <class T> __device__ __forceinline__ void store_some(T *p, const packed<T, 4> &v, int n)
{
    if (n == 4) {
        packed<uint32_t, sizeof(T)> words;
        memcpy(&words, &v, sizeof words);
        store_words(p, words);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (e < n) p[e] = v.at[e];
}

template <class T> __device__ __forceinline__ void store_floats(T *p, const four &x, int n)
{
    packed<T, 4> v;
#pragma unroll
    for (int e = 0; e < 4; e++) v.at[e] = from_f32<T>(x.at[e]);
    store_some(p, v, n);
}

__device__ __forceinline__ int moment_size(int format)
{
    return format == MOMENT_F32 ? 4 : format == MOMENT_BF16 ? 2 : 1;
}

__device__ __forceinline__ float *moment_scale(void *data, int64_t i, int64_t round_n)
{
    return (float *)((uint8_t *)data + round_n) + i / STATE_BLOCK;
}

__device__ __forceinline__ four moments_of(const raw &bits, int format, bool second, float scale)
{
    if (format == MOMENT_F32) return floats_of(bits);
    if (format == MOMENT_BF16) return bf16_of(bits);
    four x;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        uint8_t code = byte_of(bits, e);
        float u = (float)(int8_t)code * (1.0f / 127);
        x.at[e] = second ? scale * fourth((float)code * (1.0f / 255)) : scale * u * fabsf(u);
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
    int64_t i[HALVES];         /* of the first of four, in the f32 order */
    int64_t weight_at[HALVES]; /* in the weight's own */
    int n[HALVES];             /* how many of them there are */
    raw grad[HALVES], weight[HALVES], low[HALVES], m[HALVES], v[HALVES];
};

__device__ __forceinline__ void store_codes(void *data, bool second, const share &s,
                                            const four (&x)[HALVES], int64_t round_n, uint32_t step)
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
            float u = ((float)noise_bits(s.i[h] + e, step, second) + 0.5f) * 0x1p-16f, value = x[h].at[e];
            codes.at[e] = second ? code_v(value, inverse, u) : (uint8_t)code_m(value, inverse, u);
        }
        store_some((uint8_t *)data + s.i[h], codes, s.n[h]);
    }
    if (threadIdx.x % WARP == 0) *moment_scale(data, s.i[0], round_n) = scale;
}

__device__ __forceinline__ void store_moments(void *data, int format, bool second, const share &s,
                                              const four (&x)[HALVES], int64_t round_n, uint32_t step)
{
    if (format == MOMENT_Q8) {
        store_codes(data, second, s, x, round_n, step);
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
            uint32_t below = noise_bits(s.i[h] + e, step, second);
            high.at[e] = (uint16_t)((__float_as_uint(x[h].at[e]) + below) >> 16);
        }
        store_some((uint16_t *)data + s.i[h], high, s.n[h]);
    }
}

/* The weight as f32 has it: from its master where there is one. */
__device__ __forceinline__ four weights_of(const adamw_place &t, const raw &bits, const raw &low)
{
    if (t.dtype == DTYPE_F32 || t.master_format == MASTER_F32) return floats_of(bits);
    if (t.dtype == DTYPE_F16) return f16_of(bits);
    four w = bf16_of(bits);
    if (t.master_format != MASTER_REMAINDER) return w;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        uint32_t exceeds = (uint32_t)(int32_t)(int16_t)half_of(low, e);
        w.at[e] = __uint_as_float(__float_as_uint(w.at[e]) + exceeds);
    }
    return w;
}

__device__ __forceinline__ void store_weights(const adamw_place &t, int64_t i, int64_t at, int n,
                                              const four &w)
{
    if (t.dtype == DTYPE_F32) {
        store_floats((float *)t.weight + i, w, n);
        return;
    }
    if (t.master_format == MASTER_F32) store_floats((float *)t.master + i, w, n);
    if (t.dtype == DTYPE_F16) {
        store_floats((f16 *)t.weight + at, w, n);
    } else if (t.master_format == MASTER_REMAINDER) {
        packed<uint16_t, 4> high;
        packed<int16_t, 4> low;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t bits = __float_as_uint(w.at[e]);
            high.at[e] = (uint16_t)((bits + 0x8000) >> 16);
            low.at[e] = (int16_t)(bits - ((uint32_t)high.at[e] << 16));
        }
        store_some((uint16_t *)t.weight + at, high, n);
        store_some((int16_t *)t.master + i, low, n);
    } else {
        store_floats((bf16 *)t.weight + at, w, n);
    }
}

/* Finds the four's places and has all that belongs to them loaded. */
__device__ __forceinline__ void load_half(share &s, int h, const adamw_place &t, int64_t begin)
{
    int64_t i = begin + h * (STATE_BLOCK / HALVES) + threadIdx.x % WARP * 4;
    int n = i < t.n ? (int)min(t.n - i, (int64_t)4) : 0;
    int64_t weight_at = i, grad_at = i;
    if (t.weight_stride != t.stride || t.grad_stride != t.stride) {
        /* Divisions of 64 bits are long, and nearly all indices are short. */
        int64_t row = i >> 32 ? i / t.stride
                              : (uint32_t)i / (uint32_t)min(t.stride, (int64_t)UINT32_MAX);
        int64_t col = i - row * t.stride;
        weight_at = row * t.weight_stride + col, grad_at = row * t.grad_stride + col;
    }
    s.i[h] = i, s.weight_at[h] = weight_at, s.n[h] = n;
    s.grad[h] = load_raw(t.grad, t.grad_dtype == DTYPE_F32 ? 4 : 2, grad_at, n);
    if (t.master_format == MASTER_F32) s.weight[h] = load_raw(t.master, 4, i, n);
    else s.weight[h] = load_raw(t.weight, t.dtype == DTYPE_F32 ? 4 : 2, weight_at, n);
    s.low[h] = load_raw(t.master, 2, i, t.master_format == MASTER_REMAINDER ? n : 0);
    s.m[h] = load_raw(t.m, moment_size(t.m_format), i, n);
    s.v[h] = load_raw(t.v, moment_size(t.v_format), i, n);
}

__device__ __forceinline__ void step_half(const share &s, int h, const adamw_place &t,
                                          const adamw_constants &c, four &m, four &v)
{
    four g = t.grad_dtype == DTYPE_F32 ? floats_of(s.grad[h]) : bf16_of(s.grad[h]);
    four w = weights_of(t, s.weight[h], s.low[h]);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float x = g.at[e] * c.grad_scale;
        m.at[e] = c.beta1 * m.at[e] + (1 - c.beta1) * x;
        v.at[e] = c.beta2 * v.at[e] + (1 - c.beta2) * x * x;
        w.at[e] = w.at[e] * t.keep - c.rate * m.at[e] / (sqrtf(v.at[e]) * c.v_correction + c.eps);
    }
    store_weights(t, s.i[h], s.weight_at[h], s.n[h], w);
}

__global__ void __launch_bounds__(ADAMW_THREADS) adamw_kernel(adamw_table table)
{
    int64_t block = (int64_t)blockIdx.x * ADAMW_WARPS + threadIdx.x / WARP;
    if (block >= table.n_blocks) return;
    int32_t low = 0, high = table.n - 1; /* the last tensor that begins at or before this block */
    while (low < high) {
        int32_t middle = (low + high + 1) / 2;
        if (table.at[middle].first_block <= block) low = middle;
        else high = middle - 1;
    }
    const adamw_place &t = table.at[low];
    int64_t begin = (block - t.first_block) * STATE_BLOCK;
    share s;
    four m[HALVES], v[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; h++) load_half(s, h, t, begin);
    float m_scale = t.m_format == MOMENT_Q8 ? *moment_scale(t.m, begin, t.round_n) : 0;
    float v_scale = t.v_format == MOMENT_Q8 ? *moment_scale(t.v, begin, t.round_n) : 0;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        m[h] = moments_of(s.m[h], t.m_format, false, m_scale);
        v[h] = moments_of(s.v[h], t.v_format, true, v_scale);
        step_half(s, h, t, table.constants, m[h], v[h]);
    }
    __syncwarp(); /* 8-bit scales have been read */
    store_moments(t.m, t.m_format, false, s, m, t.round_n, table.constants.step);
    store_moments(t.v, t.v_format, true, s, v, t.round_n, table.constants.step);
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

static adamw_place place_of(const struct adamw_tensor *t, int64_t first_block, float lr)
{
    rows_of weight = rows_in(t, t->dtype), grad = rows_in(t, t->grad_dtype);
    int64_t n = n_elements(t);
    return {
        .weight = t->weight, .master = t->master, .m = t->m, .v = t->v, .grad = t->grad, .n = n,
        .round_n = round_up(n, STATE_BLOCK), .first_block = first_block, .stride = weight.f32_stride,
        .weight_stride = weight.stride, .grad_stride = grad.stride, .keep = 1 - lr * t->weight_decay,
        .dtype = (uint8_t)t->dtype, .grad_dtype = (uint8_t)t->grad_dtype,
        .master_format = (uint8_t)t->master_format, .m_format = (uint8_t)t->m_format,
        .v_format = (uint8_t)t->v_format,
    };
}

static void launch_adamw(struct cuda_device *c, adamw_table *table)
{
    cuda_launch(c, "adamw", adamw_kernel, dim3((unsigned)ceil_div(table->n_blocks, ADAMW_WARPS)),
                dim3(ADAMW_THREADS), 0, *table);
    table->n = 0, table->n_blocks = 0;
}

void cuda_adamw(struct device *d, const struct adamw_tensor *tensors, const bool *skip, int64_t n,
                const struct adamw_step *s)
{
    ASSERT(s->step >= 1);
    double c1 = 1 - pow(s->beta1, (double)s->step), c2 = 1 - pow(s->beta2, (double)s->step);
    adamw_table table = {};
    table.constants = {
        .step = (uint32_t)s->step, .grad_scale = s->grad_scale, .beta1 = s->beta1, .beta2 = s->beta2,
        .eps = s->eps, .rate = (float)(s->lr / c1), .v_correction = (float)(1 / sqrt(c2)),
    };
    for (int64_t i = 0; i < n; i++) {
        if (skip[i]) continue;
        table.at[table.n++] = place_of(&tensors[i], table.n_blocks, s->lr);
        table.n_blocks += ceil_div(n_elements(&tensors[i]), STATE_BLOCK);
        if (table.n == ADAMW_TENSORS) launch_adamw(cuda_of(d), &table);
    }
    launch_adamw(cuda_of(d), &table);
}

struct master_args {
    void *weight, *master;
    enum dtype dtype;
    enum master_format master_format;
    rows_of weight_rows;
    int64_t n;
};

__global__ void master_kernel(master_args a)
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
    master_args args = {.weight = t->weight, .master = t->master, .dtype = t->dtype,
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
#pragma unroll
            for (int e = 0; e < EACH; e++)
                if (i + e < end) v.at[e] = x[i + e];
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            float f = to_f32(v.at[e]);
            sum += (double)f * f;
        }
    }
    return sum;
}

/* Grid: a block a chunk of an array, chunks of all arrays counted through. Bytes: each gradient
 * once. */
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

void cuda_grad_squares(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                       int64_t n, double *sum)
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
    cuda_launch(c, "grad_squares", total_kernel, dim3(1), dim3(SQUARES_THREADS), 0, sum,
                cuda_workspace(c, 0, done * (int64_t)sizeof(double)), done);
}
