/* Matrix products: out = x W^T + bias, then an epilogue.          W [n_out, n_in], x [R, n_in], out [R, n_out]
 *
 * **A row's bits do not depend on how many rows there are**: every output is summed in one order, whichever
 * kernel computes it. Inputs are cut into SLICES runs, fixed by n_in; a run is summed by mma.sync, 32 inputs a
 * step; then the runs are added in order. Weights are the left operand of mma.sync and rows the right one, so that
 * few rows waste no weights' bandwidth. Within a step lane q of a quad holds inputs 8q .. 8q + 7 of both, which
 * are 16 bytes in a row: any order of the inputs will do as long as both sides have the same.
 *
 *   few rows (1 to 16)   a block 16 outputs, a warp a run, straight from memory: bound by the weights' bytes
 *   many                 64 outputs x 64 rows a block through shared memory, a warp 32 x 32
 *   plain                f32, and 16 bits without tensor cores: fused multiply-adds, inputs in order
 *
 * CPU twin: cpu_matmul. Tolerance against it: the rounding of f32 sums in another order. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/quant.cuh"

static constexpr int SLICES = 8, STEP = 32, FEW_ROWS = 16, FEW_OUTPUTS = 16;
static constexpr int TILE = 64, TILE_WARPS = 4, WARP_TILE = 32;
static constexpr int TILE_STRIDE = STEP + 8; /* elements: rows of 80 bytes meet no bank twice */

struct product {
    int64_t rows, n_out, n_in, slice; /* slice: inputs of a run, a multiple of STEP */
    void *out;
    bool out_f32; /* else of x's type */
    const float *bias;
    enum epilogue epilogue;
};

/* y of output n in row r, on its way out. */
template <class T> __device__ __forceinline__ void finish(const product &p, int64_t r, int64_t n, float y)
{
    if (r >= p.rows || n >= p.n_out) return;
    int64_t at = r * p.n_out + n;
    if (p.bias) y += p.bias[n];
    if (p.epilogue == EPILOGUE_ADD) y += ((float *)p.out)[at];
    if (p.epilogue == EPILOGUE_GELU_TANH || p.epilogue == EPILOGUE_GELU_EXACT)
        y = gelu(p.out_f32 ? y : round_to<T>(y), p.epilogue == EPILOGUE_GELU_EXACT);
    if (p.out_f32) ((float *)p.out)[at] = y;
    else ((T *)p.out)[at] = from_f32<T>(y);
}

/* Inputs k .. k + 7 of row r of x; zeros past its end. Rows whose length is no multiple of 8 are not
 * aligned. */
template <class T>
__device__ __forceinline__ packed<T, 8> load_x(const T *x, const product &p, int64_t r, int64_t k)
{
    packed<T, 8> v = {};
    if (r >= p.rows || k >= p.n_in) return v;
    const T *at = x + r * p.n_in + k;
    if (p.n_in % 8 == 0) return load_packed<T, 8>(at);
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (k + i < p.n_in) v.at[i] = at[i];
    return v;
}

/* The same of the weights, whose rows are padded. */
template <class T, class Row>
__device__ __forceinline__ packed<T, 8> load_w(Row w, const product &p, int64_t n, int64_t k)
{
    if (n >= p.n_out || k >= w.stride) return {};
    return load_8<T>(w, n, k);
}

template <class T> __device__ __forceinline__ uint32_t pair(const packed<T, 8> &v, int i)
{
    return reinterpret_cast<const uint32_t *>(&v)[i];
}

/* One step of 32 inputs: d [16 outputs, 8 rows] += a b. low, high: outputs g and g + 8 of lane g * 4 + q. */
template <class T>
__device__ __forceinline__ void step(float (&d)[4], const packed<T, 8> &low, const packed<T, 8> &high,
                                     const packed<T, 8> &x)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t a[4] = {pair(low, 2 * half), pair(high, 2 * half), pair(low, 2 * half + 1),
                         pair(high, 2 * half + 1)};
        uint32_t b[2] = {pair(x, 2 * half), pair(x, 2 * half + 1)};
        mma_16816(d, a, b, T());
    }
}

/* ---- few rows ---- */

/* GROUPS of 8 rows. */
template <class T, class Row, int GROUPS>
__global__ void __launch_bounds__(SLICES *WARP) few_kernel(product p, Row w, const T *x)
{
    __shared__ float sums[SLICES][FEW_OUTPUTS][GROUPS * 8 + 1];
    int lane = threadIdx.x % WARP, slice = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int64_t n0 = (int64_t)blockIdx.x * FEW_OUTPUTS;
    int64_t end = min((slice + 1) * p.slice, p.n_in);
    float d[GROUPS][4] = {};
#pragma unroll 4
    for (int64_t k0 = slice * p.slice; k0 < end; k0 += STEP) {
        packed<T, 8> low = load_w<T>(w, p, n0 + g, k0 + 8 * q);
        packed<T, 8> high = load_w<T>(w, p, n0 + g + 8, k0 + 8 * q);
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
            packed<T, 8> rows = load_x(x, p, i * 8 + g, k0 + 8 * q);
            step(d[i], low, high, rows);
        }
    }
#pragma unroll
    for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sums[slice][g + e / 2 * 8][i * 8 + 2 * q + e % 2] = d[i][e];
    __syncthreads();
    for (int at = threadIdx.x; at < FEW_OUTPUTS * GROUPS * 8; at += blockDim.x) {
        int n = at % FEW_OUTPUTS, r = at / FEW_OUTPUTS;
        float y = sums[0][n][r];
        for (int s = 1; s < SLICES; s++) y += sums[s][n][r];
        finish<T>(p, r, n0 + n, y);
    }
}

/* ---- many rows ---- */

template <class T> struct tiles { T w[2][TILE][TILE_STRIDE], x[2][TILE][TILE_STRIDE]; };

/* 64 rows of 32 inputs from k0 on: 256 pieces of 8, two a thread. */
template <class T, class Row>
__device__ __forceinline__ void fetch(tiles<T> &s, int stage, const product &p, Row w, const T *x,
                                      int64_t n0, int64_t r0, int64_t k0)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int piece = i * TILE_WARPS * WARP + threadIdx.x, row = piece / 4, k = piece % 4 * 8;
        store_packed(&s.w[stage][row][k], load_w<T>(w, p, n0 + row, k0 + k));
        store_packed(&s.x[stage][row][k], load_x(x, p, r0 + row, k0 + k));
    }
}

template <class T, class Row>
__global__ void __launch_bounds__(TILE_WARPS *WARP) many_kernel(product p, Row w, const T *x)
{
    __shared__ tiles<T> s;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int64_t n0 = (int64_t)blockIdx.x * TILE, r0 = (int64_t)blockIdx.y * TILE;
    int wn = warp % 2 * WARP_TILE, wr = warp / 2 * WARP_TILE;
    float total[2][4][4] = {}, d[2][4][4] = {};
    int64_t steps = (p.n_in + STEP - 1) / STEP;
    fetch(s, 0, p, w, x, n0, r0, 0);
    __syncthreads();
    for (int64_t i = 0; i < steps; i++) {
        int stage = i % 2;
        if (i + 1 < steps) fetch(s, 1 - stage, p, w, x, n0, r0, (i + 1) * STEP);
        packed<T, 8> rows[4];
#pragma unroll
        for (int b = 0; b < 4; b++) rows[b] = load_packed<T, 8>(&s.x[stage][wr + b * 8 + g][8 * q]);
#pragma unroll
        for (int a = 0; a < 2; a++) {
            packed<T, 8> low = load_packed<T, 8>(&s.w[stage][wn + a * 16 + g][8 * q]);
            packed<T, 8> high = load_packed<T, 8>(&s.w[stage][wn + a * 16 + g + 8][8 * q]);
#pragma unroll
            for (int b = 0; b < 4; b++) step(d[a][b], low, high, rows[b]);
        }
        /* The run ends: its sum joins those before it. */
        if ((i + 1) * STEP % p.slice == 0 || i + 1 == steps) {
            bool first = (i * STEP) / p.slice == 0;
#pragma unroll
            for (int a = 0; a < 2; a++)
#pragma unroll
                for (int b = 0; b < 4; b++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        total[a][b][e] = first ? d[a][b][e] : total[a][b][e] + d[a][b][e];
                        d[a][b][e] = 0;
                    }
        }
        __syncthreads();
    }
#pragma unroll
    for (int a = 0; a < 2; a++)
#pragma unroll
        for (int b = 0; b < 4; b++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                finish<T>(p, r0 + wr + b * 8 + 2 * q + e % 2, n0 + wn + a * 16 + g + e / 2 * 8,
                            total[a][b][e]);
}

/* ---- plain ---- */

static constexpr int PLAIN_TILE = 32, PLAIN_STEP = 32, PLAIN_THREADS = 256;

/* 32 outputs x 32 rows a block, 4 results a thread, each a chain over k upwards. */
template <class T, class Row>
__global__ void __launch_bounds__(PLAIN_THREADS) plain_kernel(product p, Row w, const T *x)
{
    __shared__ float ws[PLAIN_TILE][PLAIN_STEP + 1], xs[PLAIN_TILE][PLAIN_STEP + 1];
    int n = threadIdx.x % PLAIN_TILE, r = threadIdx.x / PLAIN_TILE;
    int64_t n0 = (int64_t)blockIdx.x * PLAIN_TILE, r0 = (int64_t)blockIdx.y * PLAIN_TILE;
    float y[4] = {};
    for (int64_t k0 = 0; k0 < p.n_in; k0 += PLAIN_STEP) {
        for (int at = threadIdx.x; at < PLAIN_TILE * PLAIN_STEP; at += PLAIN_THREADS) {
            int row = at / PLAIN_STEP, k = at % PLAIN_STEP;
            bool inside = k0 + k < p.n_in;
            ws[row][k] = inside && n0 + row < p.n_out ? w.at(n0 + row, k0 + k) : 0;
            xs[row][k] = inside && r0 + row < p.rows ? to_f32(x[(r0 + row) * p.n_in + k0 + k]) : 0;
        }
        __syncthreads();
        for (int k = 0; k < PLAIN_STEP; k++)
#pragma unroll
            for (int i = 0; i < 4; i++) y[i] = fmaf(xs[r + i * 8][k], ws[n][k], y[i]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) finish<T>(p, r0 + r + i * 8, n0 + n, y[i]);
}

/* ---- choice ---- */

template <class T, class Row>
static void launch_plain(struct cuda_device *c, const product &p, Row w, const T *x)
{
    dim3 grid((unsigned)ceil_div(p.n_out, PLAIN_TILE), (unsigned)ceil_div(p.rows, PLAIN_TILE));
    cuda_launch(c, "matmul", plain_kernel<T, Row>, grid, dim3(PLAIN_THREADS), 0, p, w, x);
}

template <class T, class Row>
static void launch_mma(struct cuda_device *c, const product &p, Row w, const T *x)
{
    dim3 few((unsigned)ceil_div(p.n_out, FEW_OUTPUTS)), block(SLICES * WARP);
    if (p.rows <= 8)
        cuda_launch(c, "matmul", few_kernel<T, Row, 1>, few, block, 0, p, w, x);
    else if (p.rows <= FEW_ROWS)
        cuda_launch(c, "matmul", few_kernel<T, Row, 2>, few, block, 0, p, w, x);
    else
        cuda_launch(c, "matmul", many_kernel<T, Row>,
                    dim3((unsigned)ceil_div(p.n_out, TILE), (unsigned)ceil_div(p.rows, TILE)),
                    dim3(TILE_WARPS * WARP), 0, p, w, x);
}

template <class T>
static void multiply(struct cuda_device *c, const product &p, const struct matrix *w, const T *x)
{
    bool tensor_cores = c->sm >= 80 || (c->sm >= 75 && w->dtype == DTYPE_F16);
    int64_t stride = cuda_row_stride(w->dtype, w->n_in), codes = w->n_out * stride;
    uint8_t *data = (uint8_t *)w->data;
    plain_rows<T> rows = {(T *)data, stride};
    q8_rows q8 = {(int8_t *)data, (f16 *)(data + codes), stride};
    q4_rows q4 = {data, (f16 *)(data + codes / 2), stride};
    if (w->dtype == DTYPE_Q8_0)
        tensor_cores ? launch_mma<T>(c, p, q8, x) : launch_plain<T>(c, p, q8, x);
    else if (w->dtype == DTYPE_Q4_0)
        tensor_cores ? launch_mma<T>(c, p, q4, x) : launch_plain<T>(c, p, q4, x);
    else
        tensor_cores ? launch_mma<T>(c, p, rows, x) : launch_plain<T>(c, p, rows, x);
}

void cuda_matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                 const float *bias, enum epilogue epilogue)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(x.cols == w->n_in && out.cols == w->n_out && out.rows == x.rows);
    ASSERT(epilogue != EPILOGUE_ADD || out.dtype == DTYPE_F32);
    ASSERT(out.dtype == DTYPE_F32 || out.dtype == x.dtype);
    product p = {x.rows, w->n_out, w->n_in, round_up(ceil_div(w->n_in, SLICES), STEP), out.data,
                 out.dtype == DTYPE_F32, bias, epilogue};
    switch (x.dtype) {
    case DTYPE_F32: {
        ASSERT(w->dtype == DTYPE_F32);
        plain_rows<float> rows = {(float *)w->data, cuda_row_stride(DTYPE_F32, w->n_in)};
        launch_plain<float>(c, p, rows, (const float *)x.data);
        break;
    }
    case DTYPE_BF16: multiply(c, p, w, (const bf16 *)x.data); break;
    case DTYPE_F16: multiply(c, p, w, (const f16 *)x.data); break;
    default: ASSERT(!"a type that activations have");
    }
}
