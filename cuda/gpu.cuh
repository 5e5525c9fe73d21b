/* What kernels share: element types, loads of 16 bytes, sums over a warp and a block, and the only
 * inline PTX of the project (mma.sync, ldmatrix, cp.async), each in a small wrapper. The only file
 * with #if on the architecture.
 *
 * Rules of all kernels: blocks never wait for each other; lanes order memory by __syncwarp and
 * __syncthreads alone; sums in an order fixed by the index, or of integers, so that two runs give
 * the same bits: hence no atomics but sums of integers in shared memory. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

enum { WARP = 32 };

/* Blocks of 128 threads that a multiprocessor has registers for, of a kernel that needs many. */
#if __CUDA_ARCH__ >= 800
enum { LARGE_BLOCKS = 3 };
#else
enum { LARGE_BLOCKS = 2 };
#endif

/* ---- element types ---- */

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }

template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) { return __float2half_rn(x); }

/* x as T would hold it. */
template <class T> __device__ __forceinline__ float round_to(float x) { return to_f32(from_f32<T>(x)); }

/* N elements that are loaded and stored at once: 16 bytes where N allows. */
template <class T, int N> struct alignas(sizeof(T) * N) packed { T at[N]; };

template <class T, int N>
__device__ __forceinline__ packed<T, N> load_packed(const T *p)
{
    return *reinterpret_cast<const packed<T, N> *>(p);
}

template <class T, int N>
__device__ __forceinline__ void store_packed(T *p, const packed<T, N> &v)
{
    *reinterpret_cast<packed<T, N> *>(p) = v;
}

/* x Phi(x), or its tanh form (Hendrycks & Gimpel 2016): one function, so that an activation that is
 * computed again has the bits of the product's epilogue. */
__device__ __forceinline__ float gelu(float x, bool exact)
{
    if (exact) return 0.5f * x * erfcf(-0.7071067812f * x);
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

/* Its slope. */
__device__ __forceinline__ float gelu_slope(float x, bool exact)
{
    if (exact)
        return 0.5f * erfcf(-0.7071067812f * x) + x * expf(-0.5f * x * x) * 0.3989422804f;
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 0.134145f * x * x);
}

/* silu(gate) up, likewise. */
__device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1 + expf(-gate)) * up; }

/* ---- sums ---- */

__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, m);
    return x;
}

__device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int m = WARP / 2; m > 0; m >>= 1) x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, m));
    return x;
}

/* Over a block of whole warps; every thread gets the result. `room` [32] is shared memory that
 * nobody else uses. */
__device__ __forceinline__ float block_sum(float x, float *room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads(); /* an earlier call's readers are done */
    if (lane == 0) room[warp] = x;
    __syncthreads();
    return warp_sum(lane < n ? room[lane] : 0.0f);
}

__device__ __forceinline__ float block_max(float x, float *room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = blockDim.x / WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) room[warp] = x;
    __syncthreads();
    return warp_max(lane < n ? room[lane] : -CUDART_INF_F);
}

/* ---- inline PTX ---- */

/* d += a b: a [16, 16] row-major, b [16, 8] column-major, d [16, 8] f32, in mma.sync's
 * fragments. */
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                          bf16)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap(); /* bf16 is refused before sm_80 when the device is opened */
#endif
}

__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                          f16)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
    /* Turing has half the depth: the two halves of k one after the other. */
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#else
    __trap();
#endif
}

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8
 * of matrix l / 8. For kernels with mma_16816, which are not launched on GPUs without it. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
#if __CUDA_ARCH__ >= 750
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#else
    __trap();
#endif
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row)
{
#if __CUDA_ARCH__ >= 750
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#else
    __trap();
#endif
}

/* For kernels that cuda_launch_early starts: everything that earlier kernels write or read may be
 * touched from here on, and the kernel after this one may begin to start. Every thread calls it,
 * before it may leave. Before it a kernel may load what no kernel writes, or none that is close:
 * weights. */
__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    /* Not sooner: so when the next one starts, all but this one are done. */
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#else
    /* No instruction: a name by which tests/ptxsim knows what a kernel touches before it. */
    asm volatile("{\ngriddepcontrol_wait:\n}\n" ::: "memory");
#endif
}

/* 2 to 16 bytes that this kernel reads once and nobody writes meanwhile: they take no room in the
 * first-level cache, where the GPU can be told. */
#if __CUDA_ARCH__ >= 700
#define LD_ONCE "ld.global.nc.L1::no_allocate."
#else
#define LD_ONCE "ld.global.nc."
#endif
template <class V> __device__ __forceinline__ V load_once(const V *from)
{
    static_assert(sizeof(V) == 2 || sizeof(V) == 8 || sizeof(V) == 16);
    union { V value; uint16_t half; uint32_t word[4]; } to;
    if constexpr (sizeof(V) == 16)
        asm(LD_ONCE "v4.u32 {%0,%1,%2,%3}, [%4];\n"
            : "=r"(to.word[0]), "=r"(to.word[1]), "=r"(to.word[2]), "=r"(to.word[3])
            : "l"(from));
    else if constexpr (sizeof(V) == 8)
        asm(LD_ONCE "v2.u32 {%0,%1}, [%2];\n"
            : "=r"(to.word[0]), "=r"(to.word[1])
            : "l"(from));
    else
        asm(LD_ONCE "u16 %0, [%1];\n" : "=h"(to.half) : "l"(from));
    return to.value;
}

/* 16 bytes from global to shared memory, in the background where the GPU can; not valid: zeros, and
 * src is not read. */
__device__ __forceinline__ void copy_async_16(void *dst, const void *src, bool valid)
{
#if __CUDA_ARCH__ >= 800
    uint32_t at = (uint32_t)__cvta_generic_to_shared(dst);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(src), "r"(bytes)
                 : "memory");
#else
    *(uint4 *)dst = valid ? *(const uint4 *)src : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void copy_async_commit()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

/* Until at most N groups of copies are under way. */
template <int N> __device__ __forceinline__ void copy_async_wait()
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
#endif
}
