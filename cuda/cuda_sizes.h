/* How many bytes things take on a CUDA device: plain C, compiled into every build, so that a plan
 * for a GPU needs neither the GPU nor the toolkit. The device itself uses the very same functions.
 *
 * Layouts:
 *   matrix    [n_out, n_in] row-major, each row padded to 16 bytes
 *   KV page   of a layer: keys [G, P, K], then values [G, K, P]
 *   moments   q8: int8 codes in blocks of 256, then an f32 scale a block */
#pragma once

#include "model/device.h"
#include "model/device_train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A device that answers sizes and nothing else (its other operations are NULL), for compute
 * capability sm (10 x major + minor: 75, 80, 90). Static. */
const struct device *cuda_sizes(int32_t sm);

int64_t cuda_matrix_bytes(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in);
int64_t cuda_row_stride(enum dtype dtype, int64_t n_in); /* elements from one row to the next */
int64_t cuda_kv_page_bytes(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                           int32_t head_dim);
int64_t cuda_moment_bytes(const struct device *d, enum moment_format format, int64_t n);

/* The workspace, part by part: the largest decides, since operations run one at a time. */
enum { CUDA_STAGING_BYTES = 4 << 20 /* weights on their way in or out; at least one row of f32 */ };
/* Decode attention split over the sequence: partial outputs and their log-sums. */
enum { CUDA_ATTENTION_SPLITS = 16, CUDA_SPLIT_ROWS = 128 };
int64_t cuda_attention_workspace(const struct workspace_shape *s);
/* Backward: sums over rows in slices (norms, biases), attention's delta [R, H], partial sums of
 * squares. */
enum { CUDA_ROW_SLICES = 512, CUDA_SLICE_FLOATS = 1 << 19 };
int64_t cuda_backward_workspace(const struct workspace_shape *s);
/* cuBLASLt's scratch, in training: whether the library is there or not, so that a plan does not
 * depend on it. */
int64_t cuda_blas_workspace(int32_t sm);

#ifdef __cplusplus
}
#endif
