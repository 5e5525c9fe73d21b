/* What the files of cuda/ share: the device struct, launching, and the operations of model/device.h
 * and model/device_train.h, one group a .cu file. Owned by the engine's (or trainer's) thread. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "base/checked.h"
#include "cuda/cublas.h"
#include "cuda/cuda_sizes.h"
#include "model/device_train.h"
#include "model/sampler.h"

struct cuda_device {
    struct device base; /* first: a struct device * is a struct cuda_device * */
    int32_t ordinal, sm, n_multiprocessors;
    int32_t shared_bytes; /* that a block may have */
    cudaStream_t stream;  /* everything runs on it, in order */
    cudaError_t failure;  /* the first one; sticks */
    const char *failed_at;
    struct cublas *blas;  /* NULL: the library is missing */
    uint8_t *workspace;   /* device memory: of the operation at work */
    int64_t workspace_bytes;
    int64_t start_bytes; /* in use on the GPU before the first arena: model/device.h */
    char description[384];
};

/* Every operation begins with it: a thread works on GPU 0 until it names another, and operations
 * come from whichever thread has the device at the time. */
static inline struct cuda_device *cuda_of(struct device *d)
{
    struct cuda_device *c = (struct cuda_device *)d;
    cudaSetDevice(c->ordinal);
    return c;
}

/* Remembers the first failure; device_sync reports it. */
static inline void cuda_note(struct cuda_device *c, cudaError_t e, const char *what)
{
    if (e == cudaSuccess || c->failure != cudaSuccess) return;
    c->failure = e;
    c->failed_at = what;
}

/* Workspace from byte `offset` on. What an operation takes of it is part of cuda_sizes.c's sums. */
static inline void *cuda_workspace(struct cuda_device *c, int64_t offset, int64_t bytes)
{
    ASSERT(offset >= 0 && offset % 16 == 0 && offset + bytes <= c->workspace_bytes);
    return c->workspace + offset;
}

#ifdef __CUDACC__
/* Runs the statement with T as the type of activations that `dtype` names. */
#define WITH_TYPE(dtype_, statement)                                                                \
    switch (dtype_) {                                                                               \
    case DTYPE_F32: { typedef float T; statement; break; }                                          \
    case DTYPE_BF16: { typedef __nv_bfloat16 T; statement; break; }                                 \
    case DTYPE_F16: { typedef __half T; statement; break; }                                         \
    default: ASSERT(!"a type that activations have");                                               \
    }

/* Launches on the device's stream; arguments are converted to the kernel's parameters. A grid of 0
 * blocks is nothing to do. */
template <class... P, class... A>
void cuda_launch(struct cuda_device *c, const char *what, void (*kernel)(P...), dim3 grid, dim3 block,
                 size_t shared_bytes, A... args)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || c->failure != cudaSuccess) return;
    if (shared_bytes > 48 << 10)
        cuda_note(c, cudaFuncSetAttribute((const void *)kernel,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)shared_bytes), what);
    kernel<<<grid, block, shared_bytes, c->stream>>>(static_cast<P>(args)...);
    cuda_note(c, cudaGetLastError(), what);
}

/* The same for a kernel that calls wait_for_previous: where the GPU can (sm_90), its blocks start
 * while the kernel before it still runs, so that a chain of short kernels is not bound by launching
 * them. */
template <class... P, class... A>
void cuda_launch_early(struct cuda_device *c, const char *what, void (*kernel)(P...), dim3 grid,
                       dim3 block, size_t shared_bytes, A... args)
{
    if (c->sm < 90 || shared_bytes > 48 << 10) {
        cuda_launch(c, what, kernel, grid, block, shared_bytes, args...);
        return;
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || c->failure != cudaSuccess) return;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = c->stream;
    config.attrs = &early;
    config.numAttrs = 1;
    cuda_note(c, cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...), what);
}
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* cuda_graph.cu */
void cuda_graph_begin(struct device *d);
struct device_graph *cuda_graph_end(struct device *d);
void cuda_graph_launch(struct device *d, struct device_graph *graph);
void cuda_graph_free(struct device *d, struct device_graph *graph);
/* cuda_matrix.cu */
void cuda_matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                       const float *rows);
void cuda_matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                      float *rows);
/* embed.cu */
void cuda_embed(struct device *d, struct tensor out, const struct batch *b, const struct matrix *wte,
                const float *wpe);
void cuda_gather(struct device *d, struct tensor out, struct tensor x, const int32_t *rows);
/* norm.cu */
void cuda_norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n);
/* matmul.cu */
void cuda_matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                 const float *bias, enum epilogue epilogue);
void cuda_norm_matmul(struct device *d, struct tensor out, const struct norm_matmul *m);
/* activation.cu */
void cuda_swiglu(struct device *d, struct tensor out, struct tensor gate_up);
void cuda_gelu(struct device *d, struct tensor out, struct tensor in, bool exact);
void cuda_gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                        bool exact);
void cuda_swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                          struct tensor gate_up);
/* kv_write.cu */
void cuda_kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer);
/* attention.cu */
void cuda_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                    const struct attention *a, const struct kv_cache *kv, int32_t layer);
void cuda_kv_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                       const struct attention *a, const struct kv_cache *kv, int32_t layer);
/* sample.cu */
void cuda_sample(struct device *d, struct tensor logits, const struct sample_request *requests, int32_t *words,
                 struct sample_out *out);

/* dropout.cu */
void cuda_zero(struct device *d, void *p, int64_t bytes);
void cuda_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop);
void cuda_add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop);
/* matmul_backward.cu */
void cuda_matmul_backward_x(struct device *d, struct tensor dx, struct tensor dy,
                            const struct matrix *w);
void cuda_matmul_gelu_backward(struct device *d, struct tensor dpre, struct tensor dy,
                               const struct matrix *w, struct tensor pre, bool exact);
void cuda_matmul_backward_w(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                            struct tensor x, struct random_key rounding);
/* norm_backward.cu */
void cuda_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                        struct tensor dy, struct tensor x, const struct norm *n,
                        const struct branch_gradient *next);
/* attention_backward.cu */
void cuda_attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                             struct tensor qkv, struct tensor out, const float *lse,
                             const struct batch *b, const struct attention *a);
/* rope_backward.cu */
void cuda_rope_backward(struct device *d, struct tensor out, struct tensor dqkv, struct tensor qkv_pre,
                        float *dq_norm, float *dk_norm, const struct batch *b, const struct attention *a);
/* embed_backward.cu */
void cuda_embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                         const struct batch *b);
/* cross_entropy.cu */
void cuda_cross_entropy(struct device *d, struct tensor dlogits, struct tensor logits,
                        const int32_t *targets, const struct loss_options *o, struct loss_row *rows);
/* optimizer.cu */
void cuda_grad_squares(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                       int64_t n, double *sum);
void cuda_master_init(struct device *d, const struct adamw_tensor *t);
void cuda_adamw(struct device *d, const struct adamw_tensor *tensors, const bool *skip, int64_t n,
               const struct adamw_step *s);

#ifdef __cplusplus
}
#endif
