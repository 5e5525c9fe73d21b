/* Bandwidth of a GPU's memory: see bench_machine.h. */
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "scripts/gpu/bench_machine.h"

static constexpr int THREADS = 512, BLOCKS = 1056, ROUNDS = 12;

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "bench_gpu: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

/* Anything but zeros, which may move faster. */
__global__ void fill_noise(uint4 *p, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t x = (uint32_t)i * 2654435761u;
        p[i] = make_uint4(x, x * 1664525u + 1, x ^ 0x9E3779B9u, ~x);
    }
}

__global__ void copy_words(uint4 *to, const uint4 *from, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) to[i] = from[i];
}

/* The sum is stored only if it is a number that it never is, so that the reads stay. Four loads
 * under way a thread. */
__global__ void read_words(uint32_t *out, const uint4 *from, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = from[i + k * step];
#pragma unroll
        for (int k = 0; k < 4; k++) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    if (sum == 0xDEADBEEFu) *out = sum;
}

/* Bytes a second of the fastest of some rounds. */
template <class F>
static double fastest(cudaStream_t stream, double bytes, F launch)
{
    double best = 0;
    for (int i = 0; i < ROUNDS; i++) {
        int64_t begin = clock_ns();
        launch();
        must(cudaGetLastError(), "measuring bandwidth");
        must(cudaStreamSynchronize(stream), "measuring bandwidth");
        double rate = bytes / (1e-9 * (double)(clock_ns() - begin));
        if (rate > best) best = rate;
    }
    return best;
}

struct bench_bandwidth bench_bandwidth(bool small)
{
    int64_t bytes = small ? 1 << 16 : (int64_t)2 << 30, n = bytes / (int64_t)sizeof(uint4);
    int blocks = small ? 4 : BLOCKS, threads = small ? 64 : THREADS;
    uint4 *a, *b;
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    must(cudaMalloc((void **)&a, bytes), "memory to measure");
    must(cudaMalloc((void **)&b, bytes), "memory to measure");
    fill_noise<<<blocks, threads, 0, stream>>>(a, n);
    struct bench_bandwidth r;
    r.copy = fastest(stream, 2.0 * (double)bytes,
                     [&] { copy_words<<<blocks, threads, 0, stream>>>(b, a, n); });
    r.read = fastest(stream, (double)bytes,
                     [&] { read_words<<<blocks, threads, 0, stream>>>((uint32_t *)b, a, n); });
    cudaFree(a);
    cudaFree(b);
    cudaStreamDestroy(stream);
    return r;
}

void bench_profiled_begin(void) { cudaProfilerStart(); }
void bench_profiled_end(void) { cudaProfilerStop(); }
