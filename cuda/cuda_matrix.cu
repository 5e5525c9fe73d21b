/* Weights from the host and back: f32 rows by way of the workspace, a piece at a time.
 *
 * Grid: a block a row; a warp's lanes are the 32 inputs of a quantized block. Bytes: 4 a weight
 * over the bus. CPU twins: cpu_matrix_write, cpu_matrix_read. */
#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/quant.cuh"

enum { MATRIX_THREADS = 128 };

template <class T>
__device__ void write_row(plain_rows<T> to, int64_t n, const float *from, int64_t n_in)
{
    for (int64_t k = threadIdx.x; k < to.stride; k += blockDim.x)
        to.data[n * to.stride + k] = from_f32<T>(k < n_in ? from[k] : 0);
}

/* A block with a NaN has it as its scale: codes have none, and a broken weight is not to become a
 * wrong one. */
__device__ __forceinline__ float scale_or_nan(float scale, float x)
{
    return __any_sync(0xFFFFFFFFu, isnan(x)) ? CUDART_NAN_F : scale;
}

/* The scale takes the largest magnitude to 127, as GGML's reference has it; codes are made with the
 * scale before it is rounded. */
__device__ void write_row(q8_rows to, int64_t n, const float *from, int64_t n_in)
{
    for (int64_t k = threadIdx.x; k < to.stride; k += blockDim.x) {
        float x = k < n_in ? from[k] : 0, scale = scale_or_nan(warp_max(fabsf(x)) / 127, x);
        float code = scale > 0 ? roundf(x * (1 / scale)) : 0;
        to.codes[n * to.stride + k] = (int8_t)fmaxf(-127, fminf(127, code));
        if (k % QUANT_BLOCK == 0) to.scales[(n * to.stride + k) / QUANT_BLOCK] = from_f32<f16>(scale);
    }
}

/* The value of the largest magnitude becomes -8: of two alike the earlier. */
__device__ void write_row(q4_rows to, int64_t n, const float *from, int64_t n_in)
{
    for (int64_t k = threadIdx.x; k < to.stride; k += blockDim.x) {
        float x = k < n_in ? from[k] : 0, largest = warp_max(fabsf(x));
        int first = __ffs(__ballot_sync(0xFFFFFFFFu, fabsf(x) == largest)) - 1;
        float scale = scale_or_nan(__shfl_sync(0xFFFFFFFFu, x, first < 0 ? 0 : first) / -8, x);
        float code = scale != 0 ? roundf(x * (1 / scale)) + 8 : 8;
        int low = (int)fmaxf(0, fminf(15, code)), high = __shfl_down_sync(0xFFFFFFFFu, low, 16);
        int64_t block = (n * to.stride + k) / QUANT_BLOCK;
        if (k % QUANT_BLOCK < 16)
            to.codes[block * 16 + k % QUANT_BLOCK] = (uint8_t)(low | high << 4);
        if (k % QUANT_BLOCK == 0) to.scales[block] = from_f32<f16>(scale);
    }
}

template <class Row>
__global__ void write_kernel(Row to, int64_t row0, const float *from, int64_t n_in)
{
    write_row(to, row0 + blockIdx.x, from + blockIdx.x * n_in, n_in);
}

template <class Row>
__global__ void read_kernel(float *to, Row from, int64_t row0, int64_t n_in)
{
    for (int64_t k = threadIdx.x; k < n_in; k += blockDim.x)
        to[blockIdx.x * n_in + k] = from.at(row0 + blockIdx.x, k);
}

/* Rows that the workspace holds at a time. */
static int64_t piece_rows(const struct cuda_device *c, int64_t n_in)
{
    int64_t rows = c->workspace_bytes / (n_in * (int64_t)sizeof(float));
    ASSERT(rows > 0);
    return rows;
}

void cuda_matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                       const float *rows_in)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n_out);
    int64_t piece = piece_rows(c, w->n_in);
    for (int64_t i = 0; i < n_rows; i += piece) {
        int64_t n = min_i64(piece, n_rows - i);
        d->ops->upload(d, c->workspace, rows_in + i * w->n_in, (size_t)(n * w->n_in) * sizeof(float));
        WITH_ROWS(*w, cuda_launch(c, "matrix_write", write_kernel<decltype(rows)>, dim3((unsigned)n),
                                  dim3(MATRIX_THREADS), 0, rows, row0 + i,
                                  (const float *)c->workspace, w->n_in));
        /* The caller's rows, and the piece, may be written again. */
        cuda_note(c, cudaStreamSynchronize(c->stream), "matrix_write");
    }
}

void cuda_matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                      float *rows_out)
{
    struct cuda_device *c = cuda_of(d);
    ASSERT(row0 >= 0 && n_rows >= 0 && row0 + n_rows <= w->n_out);
    int64_t piece = piece_rows(c, w->n_in);
    for (int64_t i = 0; i < n_rows; i += piece) {
        int64_t n = min_i64(piece, n_rows - i);
        WITH_ROWS(*w, cuda_launch(c, "matrix_read", read_kernel<decltype(rows)>, dim3((unsigned)n),
                                  dim3(MATRIX_THREADS), 0, (float *)c->workspace, rows, row0 + i,
                                  w->n_in));
        d->ops->download(d, rows_out + i * w->n_in, c->workspace,
                         (size_t)(n * w->n_in) * sizeof(float));
        cuda_note(c, cudaStreamSynchronize(c->stream), "matrix_read");
    }
}
