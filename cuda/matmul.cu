/* Matrix products: out = x W^T + bias, then an epilogue.          W [n_out, n_in], x [R, n_in], out [R, n_out]
 *
 * **A row's bits do not depend on how many rows there are**: every output is summed in one order, whichever
 * kernel computes it. Inputs are cut into runs, fixed by the matrix's shape; a run is one chain of mma.sync, 64
 * inputs a step; then the runs are added in order. Runs are what warps divide among themselves where rows are
 * few: SLICES of them, but one for a matrix of so many outputs that these keep all warps busy. Rows are the
 * left operand of mma.sync and weights the right one. Half a step is 32 inputs, of which lane q of a quad holds 8q ..
 * 8q + 7 of both: 16 bytes in a row. Any order of the inputs will do as long as both sides have the same.
 *
 *   few rows (to 64)  a warp a run of 8 to 32 outputs, weights straight from memory to registers, loads of
 *                     several steps under way. Bytes: the weights' once, which bounds it; rows from caches. 2 R n_out
 *                     n_in FLOPs. To 8 rows it also norms them (4 R C bytes a block, from caches, 6 R C FLOPs),
 *                     and of gates and ups it writes SwiGLU
 *   many rows         tiles of outputs and rows through shared memory, three stages of cp.async deep. 2 R n_out n_in
 *                     FLOPs at mma.sync's rate. 16 bytes a lane from shared memory meet no bank twice: odd rows have
 *                     their halves exchanged. Quantized weights are widened on their way there
 *   plain             f32, 16 bits without tensor cores, rows that are not aligned to 16 bytes: fused multiply-adds,
 *                     inputs in order
 *
 * CPU twin: cpu_matmul. Tolerance against it: the rounding of f32 sums in another order. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/quant.cuh"
#include "cuda/row_norm.cuh"

static constexpr int SLICES = 8, STEP = 64, HALF = 32, MMA_ROWS = 16, MMA_OUTS = 8;
static constexpr int FEW_ROWS = 64;          /* and fewer are few */
static constexpr int NORMED_ROWS = 8;        /* and fewer are normed by every block for itself */
static constexpr int64_t WIDE_OUTS = 16384;  /* from here on there is one run */
static constexpr int STAGES = 3;

struct product {
    int64_t rows, n_out;
    int32_t n_in, slice, runs; /* slice: inputs of a run, a multiple of STEP */
    bool out_f32; /* else of x's type */
    bool rows_first; /* blocks that follow each other have different rows, not outputs */
    enum epilogue epilogue;
    void *out;
    const float *bias;
    /* Of few_kernel. */
    norm_args norm;    /* weight NULL: rows are normed already */
    const float *rows_to_norm; /* f32 [R, n_in] */
    int32_t gate_outs; /* F: outputs are F gates, then F ups, which become F results; 0: no gates */
};

template <class T>
__device__ __forceinline__ float activate(const product &p, int64_t n, float y, float before)
{
    if (p.bias) y += p.bias[n];
    if (p.epilogue == EPILOGUE_ADD) y += before;
    if (p.epilogue == EPILOGUE_GELU_TANH || p.epilogue == EPILOGUE_GELU_EXACT)
        y = gelu(p.out_f32 ? y : round_to<T>(y), p.epilogue == EPILOGUE_GELU_EXACT);
    return y;
}

/* y of output n in row r, on its way out. */
template <class T> __device__ __forceinline__ void finish(const product &p, int64_t r, int64_t n, float y)
{
    if (r >= p.rows || n >= p.n_out) return;
    int64_t at = r * p.n_out + n;
    y = activate<T>(p, n, y, p.epilogue == EPILOGUE_ADD ? ((float *)p.out)[at] : 0);
    if (p.out_f32) ((float *)p.out)[at] = y;
    else ((T *)p.out)[at] = from_f32<T>(y);
}

/* Two outputs side by side, n even: in one piece where they lie so. */
template <class T>
__device__ __forceinline__ void finish_pair(const product &p, int64_t r, int64_t n, float y0, float y1)
{
    if (p.n_out % 2 != 0) {
        finish<T>(p, r, n, y0);
        finish<T>(p, r, n + 1, y1);
        return;
    }
    if (r >= p.rows || n >= p.n_out) return;
    int64_t at = r * p.n_out + n;
    packed<float, 2> before = {};
    if (p.epilogue == EPILOGUE_ADD) before = load_packed<float, 2>((float *)p.out + at);
    packed<float, 2> y = {activate<T>(p, n, y0, before.at[0]), activate<T>(p, n + 1, y1, before.at[1])};
    if (p.out_f32) store_packed((float *)p.out + at, y);
    else store_packed((T *)p.out + at, packed<T, 2>{from_f32<T>(y.at[0]), from_f32<T>(y.at[1])});
}

/* Inputs k .. k + 7 of row r of x; zeros from `end` on. */
template <class T>
__device__ __forceinline__ packed<T, 8> load_x(const T *x, const product &p, int32_t stride, int32_t r,
                                               int32_t k, int32_t end)
{
    if (r >= p.rows || k >= end) return {};
    return load_packed<T, 8>(x + (int64_t)r * stride + k);
}

/* The same of the weights, whose rows are padded. */
template <class Row>
__device__ __forceinline__ auto load_w(Row w, const product &p, int64_t n, int32_t k, int32_t end)
    -> decltype(load_raw(w, n, k))
{
    if (n >= p.n_out || k >= end) return {};
    return load_raw(w, n, k);
}

template <class T> __device__ __forceinline__ uint32_t pair(const packed<T, 8> &v, int i)
{
    return reinterpret_cast<const uint32_t *>(&v)[i];
}

/* Half a step: d [16 rows, 8 outputs] += x w. low, high: rows g and g + 8 of lane g * 4 + q. */
template <class T>
__device__ __forceinline__ void half_step(float (&d)[4], const packed<T, 8> &low, const packed<T, 8> &high,
                                          const packed<T, 8> &w)
{
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t a[4] = {pair(low, i), pair(high, i), pair(low, i + 1), pair(high, i + 1)};
        uint32_t b[2] = {pair(w, i), pair(w, i + 1)};
        mma_16816(d, a, b, T());
    }
}

/* ---- few rows ---- */

/* Where sum (row r, output n) of a warp lies in its room: pairs of lanes' stores, and outputs side
 * by side, meet no bank twice. */
template <int OUTS> __device__ __forceinline__ int sum_place(int r, int n)
{
    return r * OUTS + (n ^ r / (WARP / OUTS) % (OUTS / MMA_OUTS) * MMA_OUTS);
}

/* Elements from one normed row to the next in shared memory: lanes of two rows meet no bank
 * twice. */
__host__ __device__ __forceinline__ int32_t normed_stride(int32_t n_in)
{
    return (n_in + STEP - 1) / STEP * STEP + HALF;
}

/* The rows, normed, to shared memory; a warp a row. Every block does it for itself: 4 C bytes a row
 * from the second-level cache, against a kernel in between. */
template <class T> __device__ __forceinline__ void norm_rows(T *to, const product &p)
{
    int lane = threadIdx.x % WARP, n_warps = blockDim.x / WARP;
    for (int r = threadIdx.x / WARP; r < p.rows; r += n_warps) {
        const float *row = p.rows_to_norm + (int64_t)r * p.n_in;
        row_stats s = warp_row_stats(p.norm, row, p.n_in);
#pragma unroll 4
        for (int32_t i = lane * 4; i < p.n_in; i += NORM_PIECE)
            norm_piece(to + r * normed_stride(p.n_in), p.norm, s, row, i, p.n_in);
    }
    __syncthreads();
}

/* Sums of the runs, in order. */
template <int ROWS, int OUTS> __device__ __forceinline__ float sum_runs(const float *sums, int runs, int r, int n)
{
    float y = 0;
    for (int i = 0; i < runs; i++) y += sums[i * ROWS * OUTS + sum_place<OUTS>(r, n)];
    return y;
}

/* Gate and up of result n in row r, both rounded as they would be on their way through memory. */
template <class T>
__device__ __forceinline__ void finish_gated(const product &p, int64_t r, int64_t n, float gate, float up)
{
    if (n >= p.gate_outs) return;
    gate = round_to<T>(activate<T>(p, n, gate, 0));
    up = round_to<T>(activate<T>(p, n + p.gate_outs, up, 0));
    ((T *)p.out)[r * p.gate_outs + n] = from_f32<T>(swiglu(gate, up));
}

/* TILES of 16 rows, GROUPS of 8 outputs a warp, weights loaded AHEAD steps before their turn. The
 * warps of a block are the runs of one or more such groups. With gates, half of the groups are
 * gates and half the ups that belong to them. Four steps ahead is for one run, two warps a block.
 * Shared memory: sums [warps][rows][outputs], then normed rows. */
template <class T, class Row, int TILES, int GROUPS, int AHEAD>
__global__ void __launch_bounds__(AHEAD == 4 ? 2 * WARP : SLICES * WARP,
                                  TILES > 1 || Row::QUANTIZED ? 1 : AHEAD == 4 ? 6 : 2)
few_kernel(product p, Row w, const T *x)
{
    constexpr int OUTS = GROUPS * MMA_OUTS, ROWS = TILES * MMA_ROWS, HALF_GROUPS = (GROUPS + 1) / 2;
    constexpr bool NORMS = TILES == 1 && AHEAD == 2; /* the head's rows are normed once for all its blocks */
    extern __shared__ __align__(16) uint8_t memory[];
    float *sums = (float *)memory;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int run = warp % p.runs, n_warps = blockDim.x / WARP, n_groups = n_warps / p.runs;
    /* Outputs, or results of gates, a warp; the second half of its groups begins `apart` from the
     * first. */
    int outs = p.gate_outs ? OUTS / 2 : OUTS;
    int32_t apart = p.gate_outs ? p.gate_outs : HALF_GROUPS * MMA_OUTS;
    int64_t n0 = ((int64_t)blockIdx.x * n_groups + warp / p.runs) * outs + g;
    int32_t begin = run * p.slice, end = min(begin + p.slice, p.n_in);
    decltype(load_raw(w, 0, 0)) raw[AHEAD][GROUPS][2];
    auto load_group = [&](int o, int32_t k) {
        return load_w(w, p, n0 + o % HALF_GROUPS * MMA_OUTS + o / HALF_GROUPS * apart, k, end);
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
#pragma unroll
        for (int o = 0; o < GROUPS; o++)
#pragma unroll
            for (int h = 0; h < 2; h++) raw[i][o][h] = load_group(o, begin + i * STEP + h * HALF + 8 * q);
    wait_for_previous(); /* the weights are on their way */
    int32_t stride = p.n_in;
    if (NORMS && p.norm.weight) {
        T *normed = (T *)(sums + n_warps * ROWS * OUTS);
        norm_rows(normed, p);
        x = normed;
        stride = normed_stride(p.n_in);
    }
    float d[TILES][GROUPS][4] = {};
    for (int32_t k0 = begin; k0 < end; k0 += AHEAD * STEP)
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int32_t k = k0 + i * STEP + h * HALF + 8 * q, later = k + AHEAD * STEP;
                packed<T, 8> weights[GROUPS];
#pragma unroll
                for (int o = 0; o < GROUPS; o++) {
                    weights[o] = widen<T>(raw[i][o][h]);
                    raw[i][o][h] = load_group(o, later);
                }
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    packed<T, 8> low = load_x(x, p, stride, t * MMA_ROWS + g, k, end);
                    packed<T, 8> high = load_x(x, p, stride, t * MMA_ROWS + g + 8, k, end);
#pragma unroll
                    for (int o = 0; o < GROUPS; o++) half_step(d[t][o], low, high, weights[o]);
                }
            }
    float *mine = sums + warp * ROWS * OUTS;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int o = 0; o < GROUPS; o++)
#pragma unroll
            for (int e = 0; e < 4; e += 2)
                store_packed(mine + sum_place<OUTS>(t * MMA_ROWS + g + e / 2 * 8, o * MMA_OUTS + 2 * q),
                             packed<float, 2>{d[t][o][e], d[t][o][e + 1]});
    __syncthreads();
    /* Of the block's outputs, those of one group after the other. */
    int n_rows = (int)min(p.rows, (int64_t)ROWS);
    for (int at = threadIdx.x; at < n_groups * n_rows * outs; at += blockDim.x) {
        int n = at % outs, r = at / outs % n_rows, group = at / outs / n_rows;
        const float *from = sums + group * p.runs * ROWS * OUTS;
        int64_t out = ((int64_t)blockIdx.x * n_groups + group) * outs + n;
        float y = sum_runs<ROWS, OUTS>(from, p.runs, r, n);
        if (GROUPS > 1 && p.gate_outs)
            finish_gated<T>(p, r, out, y, sum_runs<ROWS, OUTS>(from, p.runs, r, n + OUTS / 2));
        else finish<T>(p, r, out, y);
    }
}

/* ---- many rows ---- */

/* A block's rows and outputs, and a warp's. One run needs half the registers for sums. */
struct small_tile { static constexpr int ROWS = 64, OUTS = 64, WARP_ROWS = 32, WARP_OUTS = 32; };
struct middle_tile { static constexpr int ROWS = 128, OUTS = 128, WARP_ROWS = 64, WARP_OUTS = 32; };
struct large_tile { static constexpr int ROWS = 128, OUTS = 256, WARP_ROWS = 64, WARP_OUTS = 64; };

template <class Tile> __host__ __device__ constexpr int tile_threads()
{
    return Tile::ROWS / Tile::WARP_ROWS * (Tile::OUTS / Tile::WARP_OUTS) * WARP;
}

template <class T, class Tile> struct stage { T x[Tile::ROWS][STEP], w[Tile::OUTS][STEP]; };

/* Where the 8 inputs `piece` of a row lie in it. */
__device__ __forceinline__ int place(int row, int piece) { return (piece ^ row % 2 * 4) * 8; }

/* What a thread brings of one side: 8 inputs of every APART-th row. */
template <class T> struct source {
    const T *at; /* its first */
    int64_t stride;
    int32_t rows, k; /* rows that there are from its first on; inputs before its own in a step */
};

template <class T>
__device__ __forceinline__ source<T> source_of(const T *data, int64_t stride, int64_t first, int64_t rows)
{
    int32_t row = threadIdx.x / 8, k = threadIdx.x % 8 * 8;
    int64_t left = rows - first - row;
    return {data + (first + row) * stride + k, stride, (int32_t)min(left, (int64_t)INT32_MAX), k};
}

/* A step of it, from input k0 on, in the background. */
template <int ROWS, int THREADS, class T>
__device__ __forceinline__ void fetch(T (*to)[STEP], const source<T> &s, int32_t k0, int32_t n_in)
{
    constexpr int APART = THREADS / 8;
    T *row = &to[threadIdx.x / 8][place(threadIdx.x / 8, threadIdx.x % 8)];
    const T *from = s.at + k0;
    bool inside = k0 + s.k < n_in;
#pragma unroll
    for (int i = 0; i < ROWS / APART; i++) {
        bool there = inside && i * APART < s.rows;
        copy_async_16(row + i * APART * STEP, there ? from + i * APART * s.stride : s.at, there);
    }
}

/* Others wait in registers while the tensor cores work. */
template <class Row, class Tile> struct waiting {
    static constexpr int N = Tile::OUTS * 8 / tile_threads<Tile>();
    decltype(load_raw(Row(), 0, 0)) raw[N];
};

template <class Row, class Tile>
__device__ __forceinline__ void load_waiting(waiting<Row, Tile> &v, const product &p, Row w, int64_t n0,
                                             int32_t k0)
{
    constexpr int APART = tile_threads<Tile>() / 8;
#pragma unroll
    for (int i = 0; i < v.N; i++)
        v.raw[i] = load_w(w, p, n0 + i * APART + threadIdx.x / 8, k0 + threadIdx.x % 8 * 8, p.n_in);
}

template <class T, class Row, class Tile>
__device__ __forceinline__ void store_waiting(stage<T, Tile> &s, const waiting<Row, Tile> &v)
{
    constexpr int APART = tile_threads<Tile>() / 8;
#pragma unroll
    for (int i = 0; i < v.N; i++) {
        int row = i * APART + threadIdx.x / 8;
        store_packed(&s.w[row][place(row, threadIdx.x % 8)], widen<T>(v.raw[i]));
    }
}

template <class T, class Tile>
using sums_of_warp = float[Tile::WARP_ROWS / MMA_ROWS][Tile::WARP_OUTS / MMA_OUTS][4];

/* d += a step of the warp's tile, which begins at rows wr and outputs wn. */
template <class T, class Tile>
__device__ __forceinline__ void take_step(sums_of_warp<T, Tile> &d, const stage<T, Tile> &s, int wr, int wn)
{
    constexpr int A = Tile::WARP_ROWS / MMA_ROWS, B = Tile::WARP_OUTS / MMA_OUTS;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
        int at = place(g, h * 4 + q);
        packed<T, 8> weights[B];
#pragma unroll
        for (int b = 0; b < B; b++)
            weights[b] = load_packed<T, 8>(&s.w[wn + b * MMA_OUTS + g][at]);
#pragma unroll
        for (int a = 0; a < A; a++) {
            packed<T, 8> low = load_packed<T, 8>(&s.x[wr + a * MMA_ROWS + g][at]);
            packed<T, 8> high = load_packed<T, 8>(&s.x[wr + a * MMA_ROWS + g + 8][at]);
#pragma unroll
            for (int b = 0; b < B; b++) half_step(d[a][b], low, high, weights[b]);
        }
    }
}

/* A run ends: its sum joins those before it. */
template <class T, class Tile>
__device__ __forceinline__ void add_run(sums_of_warp<T, Tile> &total, const sums_of_warp<T, Tile> &d)
{
#pragma unroll
    for (int a = 0; a < Tile::WARP_ROWS / MMA_ROWS; a++)
#pragma unroll
        for (int b = 0; b < Tile::WARP_OUTS / MMA_OUTS; b++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[a][b][e] += d[a][b][e];
}

template <class T, class Row, class Tile, bool ONE_RUN>
__global__ void __launch_bounds__(tile_threads<Tile>()) many_kernel(product p, Row w, const T *x)
{
    constexpr int A = Tile::WARP_ROWS / MMA_ROWS, B = Tile::WARP_OUTS / MMA_OUTS;
    constexpr int WARPS_OF_OUTS = Tile::OUTS / Tile::WARP_OUTS;
    constexpr int THREADS = tile_threads<Tile>();
    extern __shared__ __align__(16) uint8_t memory[];
    stage<T, Tile> *stages = (stage<T, Tile> *)memory;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, q = lane % 4;
    int64_t n0 = (int64_t)(p.rows_first ? blockIdx.y : blockIdx.x) * Tile::OUTS;
    int64_t r0 = (int64_t)(p.rows_first ? blockIdx.x : blockIdx.y) * Tile::ROWS;
    int wn = warp % WARPS_OF_OUTS * Tile::WARP_OUTS, wr = warp / WARPS_OF_OUTS * Tile::WARP_ROWS;
    int32_t steps = (p.n_in + STEP - 1) / STEP;
    sums_of_warp<T, Tile> total = {};
    waiting<Row, Tile> held;

    source<T> of_x = source_of(x, (int64_t)p.n_in, r0, p.rows);
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) {
            fetch<Tile::ROWS, THREADS>(stages[i].x, of_x, i * STEP, p.n_in);
            if constexpr (Row::QUANTIZED) {
                load_waiting(held, p, w, n0, i * STEP);
                store_waiting(stages[i], held);
            } else {
                fetch<Tile::OUTS, THREADS>(stages[i].w, source_of(w.data, w.stride, n0, p.n_out), i * STEP,
                                           p.n_in);
            }
        }
        copy_async_commit();
    }
    for (int32_t i = 0, end = 0; i < steps;) {
        end = min(end + p.slice / STEP, steps);
        float d[A][B][4] = {};
        for (; i < end; i++) {
            int32_t next = i + STAGES - 1;
            copy_async_wait<STAGES - 2>();
            __syncthreads(); /* step i is there for all, and all are done with step i - 1 */
            stage<T, Tile> &to = stages[next % STAGES];
            if (next < steps) {
                fetch<Tile::ROWS, THREADS>(to.x, of_x, next * STEP, p.n_in);
                if constexpr (Row::QUANTIZED)
                    load_waiting(held, p, w, n0, next * STEP);
                else
                    fetch<Tile::OUTS, THREADS>(to.w, source_of(w.data, w.stride, n0, p.n_out), next * STEP,
                                               p.n_in);
            }
            copy_async_commit();
            take_step<T, Tile>(ONE_RUN ? total : d, stages[i % STAGES], wr, wn);
            if constexpr (Row::QUANTIZED)
                if (next < steps) store_waiting(to, held);
        }
        if constexpr (!ONE_RUN) add_run<T, Tile>(total, d);
    }
    /* By way of shared memory, so that results leave in whole rows. */
    constexpr int STRIDE = Tile::OUTS + 8;
    static_assert(Tile::ROWS * STRIDE * sizeof(float) <= STAGES * sizeof(stage<T, Tile>));
    float *results = (float *)memory;
    __syncthreads();
#pragma unroll
    for (int a = 0; a < A; a++)
#pragma unroll
        for (int b = 0; b < B; b++) {
            float *to = results + (wr + a * MMA_ROWS + g) * STRIDE + wn + b * MMA_OUTS + 2 * q;
            store_packed(to, packed<float, 2>{total[a][b][0], total[a][b][1]});
            store_packed(to + 8 * STRIDE, packed<float, 2>{total[a][b][2], total[a][b][3]});
        }
    __syncthreads();
#pragma unroll 1
    for (int at = threadIdx.x; at < Tile::ROWS * Tile::OUTS / 2; at += THREADS) {
        int r = at / (Tile::OUTS / 2), n = at % (Tile::OUTS / 2) * 2;
        packed<float, 2> y = load_packed<float, 2>(results + r * STRIDE + n);
        finish_pair<T>(p, r0 + r, n0 + n, y.at[0], y.at[1]);
    }
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
    for (int32_t k0 = 0; k0 < p.n_in; k0 += PLAIN_STEP) {
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

/* A block's warps, and shared memory, in few_kernel. */
static int few_warps(const product &p) { return p.runs == 1 ? 2 : p.runs; }

static size_t few_shared(const product &p, int tiles, int groups, bool normed)
{
    size_t sums = (size_t)(few_warps(p) * tiles * MMA_ROWS * groups * MMA_OUTS) * sizeof(float);
    return sums + (normed ? (size_t)(p.rows * normed_stride(p.n_in)) * sizeof(bf16) : 0);
}

template <int TILES, int GROUPS, int AHEAD, class T, class Row>
static void launch_few(struct cuda_device *c, const product &p, Row w, const T *x)
{
    int64_t outs = (int64_t)few_warps(p) / p.runs * GROUPS * MMA_OUTS;
    dim3 grid((unsigned)(p.gate_outs ? ceil_div(p.gate_outs, outs / 2) : ceil_div(p.n_out, outs)));
    cuda_launch_early(c, "matmul", few_kernel<T, Row, TILES, GROUPS, AHEAD>, grid,
                      dim3((unsigned)few_warps(p) * WARP),
                      few_shared(p, TILES, GROUPS, p.norm.weight != NULL), p, w, x);
}

template <class Tile> static int64_t n_tiles(const product &p)
{
    return ceil_div(p.n_out, Tile::OUTS) * ceil_div(p.rows, Tile::ROWS);
}

template <class Tile, bool ONE_RUN, class T, class Row>
static void launch_many(struct cuda_device *c, product p, Row w, const T *x)
{
    unsigned outs = (unsigned)ceil_div(p.n_out, Tile::OUTS), rows = (unsigned)ceil_div(p.rows, Tile::ROWS);
    /* What is walked through again and again should be the side that the second-level cache
     * holds. */
    p.rows_first = p.rows < p.n_out;
    dim3 grid = p.rows_first ? dim3(rows, outs) : dim3(outs, rows);
    cuda_launch(c, "matmul", many_kernel<T, Row, Tile, ONE_RUN>, grid, dim3(tile_threads<Tile>()),
                STAGES * sizeof(stage<T, Tile>), p, w, x);
}

static bool is_one_run(const product &p) { return p.runs == 1 && p.n_out >= WIDE_OUTS; }

/* How outputs are spread over blocks, by what keeps the multiprocessors busy. None of it changes a
 * bit. */
template <class T, class Row>
static void launch_mma(struct cuda_device *c, const product &p, Row w, const T *x)
{
    int64_t busy = c->n_multiprocessors;
    bool one_run = is_one_run(p);
    if (p.rows <= MMA_ROWS) {
        if (one_run) launch_few<1, 1, 4>(c, p, w, x);
        else if (p.n_out < 2 * MMA_OUTS * busy && !p.gate_outs) launch_few<1, 1, 2>(c, p, w, x);
        else launch_few<1, 2, 2>(c, p, w, x);
        return;
    }
    if (p.rows <= FEW_ROWS && !one_run) {
        /* Every block reads all rows: more outputs a block, fewer readings. */
        if (p.rows <= 2 * MMA_ROWS) launch_few<2, 2, 2>(c, p, w, x);
        else if (p.n_out < 3 * MMA_OUTS * busy) launch_few<4, 2, 2>(c, p, w, x);
        else launch_few<4, 4, 1>(c, p, w, x);
        return;
    }
    if constexpr (!Row::QUANTIZED)
        if (one_run && c->shared_bytes >= (int32_t)(STAGES * sizeof(stage<T, large_tile>))
            && n_tiles<large_tile>(p) >= busy) {
            launch_many<large_tile, true>(c, p, w, x);
            return;
        }
    if (c->shared_bytes >= (int32_t)(STAGES * sizeof(stage<T, middle_tile>))
        && n_tiles<middle_tile>(p) >= busy)
        launch_many<middle_tile, false>(c, p, w, x);
    else
        launch_many<small_tile, false>(c, p, w, x);
}

/* bf16 needs sm_80, where it is allowed at all. */
static bool has_tensor_cores(const struct cuda_device *c, const struct matrix *w)
{
    return c->sm >= 75 && w->n_in % 8 == 0;
}

template <class T>
static void multiply(struct cuda_device *c, const product &p, const struct matrix *w, const T *x)
{
    bool tensor_cores = has_tensor_cores(c, w);
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

/* x's type is the operands'; its data may be NULL where p norms rows itself. */
static void run_product(struct cuda_device *c, const product &p, struct tensor x, const struct matrix *w)
{
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

static product product_of(struct tensor out, struct tensor x, const struct matrix *w, const float *bias,
                          enum epilogue epilogue)
{
    ASSERT(x.cols == w->n_in && out.rows == x.rows);
    ASSERT(epilogue != EPILOGUE_ADD || out.dtype == DTYPE_F32);
    ASSERT(out.dtype == DTYPE_F32 || out.dtype == x.dtype);
    ASSERT(w->n_in <= INT32_MAX - 16 * STEP);
    int64_t slices = w->n_out >= WIDE_OUTS ? 1 : SLICES;
    int64_t slice = round_up(ceil_div(w->n_in, slices), STEP);
    return {.rows = x.rows, .n_out = w->n_out, .n_in = (int32_t)w->n_in, .slice = (int32_t)slice,
            .runs = (int32_t)ceil_div(w->n_in, slice), .out_f32 = out.dtype == DTYPE_F32,
            .rows_first = false, .epilogue = epilogue, .out = out.data, .bias = bias};
}

void cuda_matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                 const float *bias, enum epilogue epilogue)
{
    ASSERT(out.cols == w->n_out);
    run_product(cuda_of(d), product_of(out, x, w, bias, epilogue), x, w);
}

/* Norm and gates are few_kernel's: each for as many rows as it pays for. */
void cuda_norm_matmul(struct device *d, struct tensor out, const struct norm_matmul *m)
{
    struct cuda_device *c = cuda_of(d);
    bool gated = m->gate_up.data != NULL;
    product p = product_of(out, m->h, m->w, m->bias, m->epilogue);
    ASSERT(m->x.dtype == DTYPE_F32 && m->x.rows == m->h.rows && m->x.cols == m->h.cols);
    ASSERT(m->w->n_out == (gated ? 2 * out.cols : out.cols));
    ASSERT(!gated || (m->epilogue == EPILOGUE_NONE && m->gate_up.dtype == out.dtype));
    bool few = has_tensor_cores(c, m->w) && m->h.dtype != DTYPE_F32 && !is_one_run(p);
    if (few && p.rows <= NORMED_ROWS && few_shared(p, 1, 2, true) <= 48 << 10) {
        p.norm = norm_args_of(m->norm);
        p.rows_to_norm = (const float *)m->x.data;
    } else {
        cuda_norm(d, m->h, m->x, m->norm);
    }
    if (gated && few && p.rows <= FEW_ROWS && out.dtype == m->h.dtype) {
        p.gate_outs = (int32_t)out.cols;
        run_product(c, p, m->h, m->w);
        return;
    }
    if (gated) p.out = m->gate_up.data;
    run_product(c, p, m->h, m->w);
    if (gated) cuda_swiglu(d, out, m->gate_up);
}
