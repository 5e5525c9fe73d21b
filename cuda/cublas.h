/* cuBLASLt for the large products of the backward pass. The forward ones are our own kernels',
 * because the bits of a row must be the same in any batch; gradients need only be the same in every
 * run.
 *
 * The library (over 500 MB) is opened at run time and never linked. Where it is missing,
 * cuda_blas_product says so and our own kernels do the work. Owned by the device, used by its
 * thread. */
#pragma once

#include <cublasLt.h>

#include "model/dtype.h"

/* The functions that are called, from whichever version of the library was found. */
struct cublas_calls {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmul) matmul;
};

/* cublas_load.cu: false where no library is found that has them all. It stays open until the
 * process ends. */
bool cublas_load(struct cublas_calls *calls);

/* d [n, m] = (added: d +) the sum over k of b and a, in rows: row i of d is the sum over t of b(i,
 * t) times row t of a. All strides in elements; a and b of one type, d f32 or of theirs. gelu_of
 * [n, m], of d's type and stride: each sum is multiplied by the slope of tanh GELU there before it
 * is rounded; NULL: it is not.
 *
 *   a [k, m] rows of a_stride;  b [n, k] rows of b_stride, or turned: [k, n];  d rows of
 * d_stride */
struct blas_product {
    enum dtype type, d_type; /* of a and b; of d */
    bool turned, added;
    int64_t n, m, k, a_stride, b_stride, d_stride;
    const void *a, *b, *gelu_of;
    void *d;
};

struct cuda_device;
struct cublas;
/* The library's state of a device, with its part of the device's description, ", cuBLASLt 13.1";
 * NULL where it is missing (or no memory is). */
struct cublas *cublas_open(char *text, size_t text_bytes);
void cublas_close(struct cublas *b);
/* Puts the product on the stream, with the workspace as scratch. Its algorithm is chosen when a
 * shape is seen first (by trainer_warm_up, before the first step) and kept; it depends on the shape
 * alone, so that a run's products are the same bits every time. False: not done, nothing happened;
 * the library is missing or knows no way. */
bool cuda_blas_product(struct cuda_device *c, const struct blas_product *p);
