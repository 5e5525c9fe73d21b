/* A CUDA GPU as a device: opening, memory, the tables of operations. Everything runs on one stream
 * in order; the first failure sticks and is reported by device_sync. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda.h"
#include "cuda/cuda_internal.h"

static void device_close(struct device *d)
{
    struct cuda_device *c = cuda_of(d);
    cublas_close(c->blas);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

static const char *device_description(const struct device *d)
{
    return ((const struct cuda_device *)d)->description;
}

static bool failed(const char *what, cudaError_t e, struct error *err)
{
    return error_set(err, e == cudaErrorMemoryAllocation ? ERR_MEMORY : ERR_DEVICE, NULL,
                     "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

static void *device_alloc(struct device *d, size_t bytes, struct error *err)
{
    struct cuda_device *c = cuda_of(d);
    void *p = NULL;
    char what[64];
    snprintf(what, sizeof what, "%s: allocating %zu bytes", d->name, bytes);
    cudaError_t e = bytes == 0 ? cudaErrorInvalidValue : cudaMalloc(&p, bytes);
    if (e == cudaSuccess) e = cudaMemsetAsync(p, 0, bytes, c->stream);
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->stream);
    if (e == cudaSuccess) return p;
    cudaFree(p);
    cudaGetLastError(); /* a refused allocation is no failure of the device */
    failed(what, e, err);
    return NULL;
}

static void device_free(struct device *d, void *p, size_t bytes)
{
    cuda_of(d); /* else the thread's GPU may be another, and get a context */
    if (p) cudaFree(p);
}

static void *device_alloc_host(struct device *d, size_t bytes, struct error *err)
{
    void *p = NULL;
    char what[80];
    cuda_of(d);
    snprintf(what, sizeof what, "%s: page-locking %zu bytes of host memory", d->name, bytes);
    cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);
    if (e == cudaSuccess) return p;
    cudaGetLastError();
    failed(what, e, err);
    return NULL;
}

static void device_free_host(struct device *d, void *p)
{
    cuda_of(d);
    if (p) cudaFreeHost(p);
}

static void device_upload(struct device *d, void *dst, const void *src, size_t bytes)
{
    struct cuda_device *c = cuda_of(d);
    if (bytes == 0 || c->failure != cudaSuccess) return;
    cuda_note(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, c->stream), "upload");
}

static void device_download(struct device *d, void *dst, const void *src, size_t bytes)
{
    struct cuda_device *c = cuda_of(d);
    if (bytes == 0 || c->failure != cudaSuccess) return;
    cuda_note(c, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, c->stream), "download");
}

static bool device_sync(struct device *d, struct error *err)
{
    struct cuda_device *c = cuda_of(d);
    if (c->failure == cudaSuccess) cuda_note(c, cudaStreamSynchronize(c->stream), "a kernel");
    if (c->failure == cudaSuccess) return true;
    return error_set(err, ERR_DEVICE, NULL, "%s failed in %s: %s (%s)", d->name, c->failed_at,
                     cudaGetErrorString(c->failure), cudaGetErrorName(c->failure));
}

/* Threads that never opened a device have none until they name one. */
static bool device_memory(const struct device *d, struct device_memory *out)
{
    const struct cuda_device *c = (const struct cuda_device *)d;
    size_t free_bytes = 0, total = 0;
    if (cudaSetDevice(c->ordinal) != cudaSuccess || cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    *out = (struct device_memory){(int64_t)total, (int64_t)free_bytes, c->start_bytes};
    return true;
}

static void device_set_workspace(struct device *d, void *workspace, int64_t bytes)
{
    cuda_of(d)->workspace = (uint8_t *)workspace;
    cuda_of(d)->workspace_bytes = bytes;
}

/* The sizes' functions and everything else. */
static void fill_ops(struct device_ops *ops, const struct device_ops *sizes)
{
    *ops = *sizes;
    ops->close = device_close;
    ops->description = device_description;
    ops->alloc = device_alloc;
    ops->free = device_free;
    ops->alloc_host = device_alloc_host;
    ops->free_host = device_free_host;
    ops->upload = device_upload;
    ops->download = device_download;
    ops->sync = device_sync;
    ops->memory = device_memory;
    ops->set_workspace = device_set_workspace;
    ops->matrix_write = cuda_matrix_write;
    ops->embed = cuda_embed;
    ops->norm = cuda_norm;
    ops->matmul = cuda_matmul;
    ops->norm_matmul = cuda_norm_matmul;
    ops->swiglu = cuda_swiglu;
    ops->kv_write = cuda_kv_write;
    ops->attention = cuda_attention;
    ops->kv_attention = cuda_kv_attention;
    ops->gather = cuda_gather;
    ops->sample = cuda_sample;
    ops->graph_begin = cuda_graph_begin;
    ops->graph_end = cuda_graph_end;
    ops->graph_launch = cuda_graph_launch;
    ops->graph_free = cuda_graph_free;
}

static void fill_train_ops(struct device_train_ops *ops, const struct device_train_ops *sizes)
{
    *ops = *sizes;
    ops->matrix_read = cuda_matrix_read;
    ops->zero = cuda_zero;
    ops->dropout = cuda_dropout;
    ops->add_dropout = cuda_add_dropout;
    ops->gelu = cuda_gelu;
    ops->matmul_backward_x = cuda_matmul_backward_x;
    ops->matmul_gelu_backward = cuda_matmul_gelu_backward;
    ops->matmul_backward_w = cuda_matmul_backward_w;
    ops->norm_backward = cuda_norm_backward;
    ops->gelu_backward = cuda_gelu_backward;
    ops->swiglu_backward = cuda_swiglu_backward;
    ops->attention_backward = cuda_attention_backward;
    ops->rope_backward = cuda_rope_backward;
    ops->embed_backward = cuda_embed_backward;
    ops->cross_entropy = cuda_cross_entropy;
    ops->grad_squares = cuda_grad_squares;
    ops->master_init = cuda_master_init;
    ops->adamw = cuda_adamw;
}

/* The device with its tables, which differ by compute capability in their sizes. */
struct cuda_device_and_tables {
    struct cuda_device device;
    struct device_ops ops;
    struct device_train_ops train;
};

/* Does nothing: that it runs shows that this build has code for the GPU. */
static __global__ void try_kernel(void) {}

static bool try_out(struct cuda_device *c, const cudaDeviceProp *prop, struct error *err)
{
    cudaGetLastError(); /* of a device that was closed after it had failed */
    try_kernel<<<1, 1, 0, c->stream>>>();
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->stream);
    if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorUnsupportedPtxVersion)
        return error_set(err, ERR_UNSUPPORTED, "device", "--device %s: this build of gptd has no code for the "
                         "%s's compute capability %d.%d; build it with a CUDA toolkit that has, or use "
                         "--device cpu", c->base.name, prop->name, prop->major, prop->minor);
    return e == cudaSuccess || failed("trying the GPU", e, err);
}

void cuda_device_will_train(void) { setenv("CUDA_MODULE_LOADING", "LAZY", 1); }

/* cuBLASLt is opened only then: else all of its kernels would be loaded, more than some GPUs hold
 * beside a model. */
static bool loads_when_used(void)
{
    const char *loading = getenv("CUDA_MODULE_LOADING");
    return loading && strcmp(loading, "LAZY") == 0;
}

/* Takes the context and loads the kernels, so that what they cost is known before the first
 * arena. */
static bool begin(struct cuda_device *c, struct error *err)
{
    size_t free_bytes = 0, total = 0;
    char blas[64] = "";
    cudaDeviceProp prop;
    cudaError_t e = cudaGetDeviceProperties(&prop, c->ordinal);
    if (e == cudaSuccess) e = cudaSetDevice(c->ordinal);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess && loads_when_used()) c->blas = cublas_open(blas, sizeof blas);
    if (e != cudaSuccess) return failed("opening the GPU", e, err);
    if (!try_out(c, &prop, err)) return false;
    e = cudaMemGetInfo(&free_bytes, &total);
    if (e != cudaSuccess) return failed("opening the GPU", e, err);
    c->sm = prop.major * 10 + prop.minor;
    c->n_multiprocessors = prop.multiProcessorCount;
    c->shared_bytes = (int32_t)prop.sharedMemPerBlockOptin;
    c->start_bytes = (int64_t)(total - free_bytes);
    snprintf(c->description, sizeof c->description,
             "%s: %s, sm_%d, %d multiprocessors, %.1f GiB, of which %.2f GiB were in use at the start%s",
             c->base.name, prop.name, c->sm, c->n_multiprocessors, (double)total / (1 << 30),
             (double)c->start_bytes / (1 << 30), blas);
    return true;
}

/* Kernels are loaded when the context is made, not when each is first used: no step allocates, and
 * what they take is known. The driver reads this once; who set it otherwise is heeded. */
static cudaError_t count_devices(int *n)
{
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    return cudaGetDeviceCount(n);
}

int32_t cuda_device_count(void)
{
    int n = 0;
    return count_devices(&n) == cudaSuccess ? n : 0;
}

bool cuda_device_open(int32_t ordinal, struct device **out, struct error *err)
{
    int n = 0;
    cudaError_t e = count_devices(&n);
    if (e != cudaSuccess)
        return error_set(err, ERR_UNSUPPORTED, "device", "--device cuda:%d: there is no usable NVIDIA "
                         "driver here (%s); use --device cpu", ordinal, cudaGetErrorString(e));
    if (ordinal < 0 || ordinal >= n)
        return error_set(err, ERR_UNSUPPORTED, "device", "--device cuda:%d: this machine has %d GPU%s, "
                         "numbered from 0", ordinal, n, n == 1 ? "" : "s");
    struct cuda_device_and_tables *all = (struct cuda_device_and_tables *)calloc(1, sizeof *all);
    if (!all) return error_set(err, ERR_MEMORY, NULL, "no memory for the device");
    struct cuda_device *c = &all->device;
    c->ordinal = ordinal;
    snprintf(c->base.name, sizeof c->base.name, "cuda:%d", ordinal);
    if (!begin(c, err)) {
        device_close(&c->base);
        return false;
    }
    const struct device *sizes = cuda_sizes(c->sm);
    fill_ops(&all->ops, sizes->ops);
    fill_train_ops(&all->train, sizes->train);
    c->base.ops = &all->ops;
    c->base.train = &all->train;
    *out = &c->base;
    return true;
}
