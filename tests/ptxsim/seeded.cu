/* Kernels that are wrong, one bug each, and one that is right: so that the interpreter's checks
 * cannot rot. See test_ptxsim.cc, which says what each has to be told. */
#include "cuda/gpu.cuh"
#include "tests/ptxsim/ptxsim.h"
#include "tests/ptxsim/seeded.h"

/* ---- right: out [16, 8] = a [16, 16] b [8, 16]^T, through cp.async, ldmatrix and mma.sync ---- */

__global__ void product_kernel(float *out, const f16 *a, const f16 *b, bool waits)
{
    __shared__ __align__(16) f16 as[16][16], bs[8][16];
    int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    copy_async_16(&as[lane / 2][lane % 2 * 8], a + lane * 8, true);
    if (lane < 16) copy_async_16(&bs[lane / 2][lane % 2 * 8], b + lane * 8, true);
    copy_async_commit();
    if (waits) copy_async_wait<0>();
    __syncthreads();
    uint32_t fa[4], fb[2];
    ldmatrix_x4(fa, &as[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8]);
    fb[0] = *(const uint32_t *)&bs[g][2 * q];
    fb[1] = *(const uint32_t *)&bs[g][2 * q + 8];
    float d[4] = {};
    mma_16816(d, fa, fb, f16());
    for (int e = 0; e < 4; e++) out[(g + e / 2 * 8) * 8 + 2 * q + e % 2] = d[e];
    if (!waits) copy_async_wait<0>();
}

bool seeded_product(bool waits)
{
    float want[16 * 8], got[16 * 8], *out;
    f16 a[16 * 16], b[8 * 16], *da, *db;
    for (int i = 0; i < 256; i++) a[i] = __float2half_rn((float)(i * 37 % 61) - 30);
    for (int i = 0; i < 128; i++) b[i] = __float2half_rn((float)(i * 29 % 53) - 26);
    for (int i = 0; i < 128; i++) {
        want[i] = 0;
        for (int k = 0; k < 16; k++)
            want[i] += __half2float(a[i / 8 * 16 + k]) * __half2float(b[i % 8 * 16 + k]);
    }
    cudaMalloc((void **)&out, sizeof got);
    cudaMalloc((void **)&da, sizeof a);
    cudaMalloc((void **)&db, sizeof b);
    cudaMemcpyAsync(da, a, sizeof a, cudaMemcpyHostToDevice, 0);
    cudaMemcpyAsync(db, b, sizeof b, cudaMemcpyHostToDevice, 0);
    product_kernel<<<1, 32>>>(out, da, db, waits);
    cudaMemcpyAsync(got, out, sizeof got, cudaMemcpyDeviceToHost, 0);
    cudaStreamSynchronize(0);
    bool same = true;
    for (int i = 0; i < 128; i++) same &= got[i] == want[i];
    return same;
}

/* ---- right: a histogram by atomics ---- */

enum { COUNTED = 64, COUNTED_BINS = 13 };

__global__ void histogram_kernel(unsigned *bins, unsigned *places)
{
    __shared__ unsigned s[COUNTED_BINS];
    unsigned i = threadIdx.x;
    if (i < COUNTED_BINS) s[i] = 0;
    __syncthreads();
    places[i] = atomicAdd(&s[i % COUNTED_BINS], 1u);
    __syncthreads();
    if (i < COUNTED_BINS) bins[i] = s[i];
}

bool seeded_histogram(void)
{
    unsigned bins[COUNTED_BINS], places[COUNTED], seen[COUNTED_BINS] = {}, *dbins, *dplaces;
    cudaMalloc((void **)&dbins, sizeof bins);
    cudaMalloc((void **)&dplaces, sizeof places);
    histogram_kernel<<<1, COUNTED>>>(dbins, dplaces);
    cudaMemcpyAsync(bins, dbins, sizeof bins, cudaMemcpyDeviceToHost, 0);
    cudaMemcpyAsync(places, dplaces, sizeof places, cudaMemcpyDeviceToHost, 0);
    cudaStreamSynchronize(0);
    bool right = true;
    for (unsigned i = 0; i < COUNTED; i++) {
        right &= places[i] < 32 && !(seen[i % COUNTED_BINS] >> places[i] & 1);
        seen[i % COUNTED_BINS] |= 1u << places[i];
    }
    for (unsigned b = 0; b < COUNTED_BINS; b++)
        right &= bins[b] == (COUNTED - b + COUNTED_BINS - 1) / COUNTED_BINS && seen[b] == (1u << bins[b]) - 1;
    return right;
}

/* 10 x major + minor. */
static int compiled_for(void)
{
    cudaDeviceProp p;
    return cudaGetDeviceProperties(&p, 0) == cudaSuccess ? p.major * 10 + p.minor : 0;
}

bool seeded_has_tensor_cores(void) { return compiled_for() >= 75; }
bool seeded_copies_are_async(void) { return compiled_for() >= 80; }

/* ---- wrong, each in its way; n = 64 threads, x [64] of which the host wrote all but the last
 * ---- */

__global__ void bug_kernel(enum seeded_bug bug, int *x, int n)
{
    __shared__ int s[64];
    int i = threadIdx.x;
    if (bug == BUG_NO_BARRIER) {
        s[i] = 0;
        __syncthreads();
        s[i] = i;
        x[i] = s[(i + 33) % n];
    }
    if (bug == BUG_NO_WARP_BARRIER) {
        s[i] = i;
        x[i] = s[i ^ 1];
    }
    if (bug == BUG_ONE_TOO_FAR) x[i + 1] = i;
    if (bug == BUG_SHARED_TOO_FAR) s[i + 1] = i;
    if (bug == BUG_UNWRITTEN_SHARED) {
        if (i > 0) s[i] = i;
        __syncthreads();
        x[i] = s[i];
    }
    if (bug == BUG_UNWRITTEN_GLOBAL) s[i] = x[i];
    if (bug == BUG_RACE_OF_BLOCKS) x[i] = (int)blockIdx.x;
    if (bug == BUG_DIVERGENT_BARRIER && i < 40) __syncthreads();
    if (bug == BUG_SHUFFLE_MASK && i < 16) x[i] = __shfl_xor_sync(0xFFFFFFFFu, i, 1);
    if (bug == BUG_ATOMIC_AND_PLAIN) {
        s[i] = 0;
        __syncthreads();
        atomicAdd(&s[i / 2], 1);
        x[i] = s[i];
    }
    if (bug == BUG_MISALIGNED) *(int *)((char *)x + 4 * i + 2) = i;
}

void seeded_run(enum seeded_bug bug)
{
    int host[64] = {}, *x;
    cudaMalloc((void **)&x, sizeof host);
    cudaMemcpyAsync(x, host, sizeof host - sizeof *host, cudaMemcpyHostToDevice, 0);
    bug_kernel<<<bug == BUG_RACE_OF_BLOCKS ? 2 : 1, 64>>>(bug, x, 64);
    cudaStreamSynchronize(0);
}

/* ---- right, and slow ---- */

__global__ void conflict_kernel(int *out, int stride)
{
    __shared__ int s[32 * 32];
    for (int i = threadIdx.x; i < 32 * 32; i += 32) s[i] = i;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x * stride];
}

void seeded_conflicts(int conflicts)
{
    int *out;
    cudaMalloc((void **)&out, 32 * sizeof *out);
    conflict_kernel<<<1, 32>>>(out, conflicts);
    cudaStreamSynchronize(0);
}

/* Sixteen bytes a lane, `stride` of them from lane to lane. */
__global__ void wide_conflict_kernel(int4 *out, int stride)
{
    __shared__ int4 s[32 * 8];
    for (int i = threadIdx.x; i < 32 * 8; i += 32) s[i] = make_int4(i, i, i, i);
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x * stride];
}

void seeded_wide_conflicts(int stride)
{
    int4 *out;
    cudaMalloc((void **)&out, 32 * sizeof *out);
    wide_conflict_kernel<<<1, 32>>>(out, stride);
    cudaStreamSynchronize(0);
}

__global__ void strided_kernel(int *out, const int *in, int stride)
{
    out[threadIdx.x] = in[threadIdx.x * stride];
}

void seeded_strides(int stride)
{
    int host[32 * 8] = {}, *out, *in;
    cudaMalloc((void **)&out, 32 * sizeof *out);
    cudaMalloc((void **)&in, sizeof host);
    cudaMemcpyAsync(in, host, sizeof host, cudaMemcpyHostToDevice, 0);
    strided_kernel<<<1, 32>>>(out, in, stride);
    cudaStreamSynchronize(0);
}

/* ---- larger than what 32 bits count ---- */

__global__ void index_kernel(uint8_t *out, bool narrow)
{
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    out[narrow ? (int64_t)(int)i : i] = (uint8_t)(i * 7 >> 3);
}

bool seeded_ends(int narrow)
{
    enum { ENDS = 3, THREADS = 256, BYTES = ENDS * THREADS };
    const int64_t n = (int64_t)1 << 33;
    static uint8_t first[BYTES], last[BYTES];
    uint8_t *out;
    ptxsim_set_memory((size_t)n * 2);
    ptxsim_set_ends(ENDS);
    bool same = cudaMalloc((void **)&out, n) == cudaSuccess;
    index_kernel<<<n / THREADS, THREADS>>>(out, narrow);
    ptxsim_set_ends(0);
    cudaMemcpyAsync(first, out, BYTES, cudaMemcpyDeviceToHost, 0);
    cudaMemcpyAsync(last, out + n - BYTES, BYTES, cudaMemcpyDeviceToHost, 0);
    cudaStreamSynchronize(0);
    for (int64_t i = 0; i < BYTES; i++)
        same &= first[i] == (uint8_t)(i * 7 >> 3) && last[i] == (uint8_t)((n - BYTES + i) * 7 >> 3);
    cudaFree(out);
    return same;
}

/* ---- kernels that start early ---- */

__global__ void number_kernel(int *x) { x[threadIdx.x] = threadIdx.x; }

/* x is the kernel before's, y nobody's; half of the threads leave at once. */
__global__ void early_kernel(enum seeded_order order, const int *x, const int *y, int *out)
{
    int i = threadIdx.x, sum = y[i];
    if (order == ORDER_NEVER_WAITS && i >= 16) return;
    if (order == ORDER_READS_FIRST) sum += x[i];
    if (order == ORDER_WRITES_FIRST) out[i] = sum;
    wait_for_previous();
    out[i] = sum + x[i];
}

void seeded_early(int order)
{
    int host[32] = {}, *x, *y, *out;
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc((void **)&x, sizeof host);
    cudaMalloc((void **)&y, sizeof host);
    cudaMalloc((void **)&out, sizeof host);
    cudaMemcpyAsync(y, host, sizeof host, cudaMemcpyHostToDevice, stream);
    number_kernel<<<1, 32, 0, stream>>>(x);
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(1), config.blockDim = dim3(32), config.stream = stream;
    config.attrs = &early, config.numAttrs = 1;
    cudaLaunchKernelEx(&config, early_kernel, (enum seeded_order)order, (const int *)x, (const int *)y, out);
    cudaStreamSynchronize(stream);
}

void seeded_stream_0(int unused)
{
    int *x;
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaMalloc((void **)&x, 32 * sizeof *x);
    number_kernel<<<1, 32>>>(x);
}

/* ---- what no runtime takes ---- */

__global__ void shared_kernel(int *out)
{
    extern __shared__ int dynamic[];
    __shared__ int own[256];
    own[threadIdx.x % 256] = dynamic[0] = 1;
    if (threadIdx.x == 0) *out = own[0];
}

static cudaError_t launched(dim3 grid, dim3 block, size_t shared_bytes)
{
    static int *out;
    if (!out) cudaMalloc((void **)&out, sizeof *out);
    shared_kernel<<<grid, block, shared_bytes>>>(out);
    return cudaGetLastError();
}

static cudaError_t allow_shared(int bytes)
{
    cudaError_t e = cudaFuncSetAttribute((const void *)shared_kernel,
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    cudaGetLastError();
    return e;
}

/* What ending a recording says after `call`, which must be refused in it. */
template <class F> static cudaError_t recording_after(F call)
{
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    bool refused = call(stream) == cudaErrorStreamCaptureUnsupported;
    cudaError_t e = cudaStreamEndCapture(stream, &graph);
    if (e == cudaSuccess) cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaGetLastError();
    return refused ? e : cudaErrorUnknown;
}

static const int own = 256 * sizeof(int); /* bytes of shared_kernel's */

bool seeded_gives_a_block(int bytes)
{
    cudaDeviceProp gpu;
    cudaGetDeviceProperties(&gpu, 0);
    return (int)gpu.sharedMemPerBlockOptin == bytes && allow_shared(bytes - own) == cudaSuccess
           && allow_shared(bytes - own + 1) == cudaErrorInvalidValue;
}

const char *seeded_lenience(void)
{
    const int most = 48 << 10;
    int host = 0, *p;
    cudaDeviceProp gpu;
    cudaGetDeviceProperties(&gpu, 0);
    if (launched(1, 1, most - own) != cudaSuccess) return "48 KiB are refused";
    if (launched(1, 1, most) != cudaErrorInvalidValue) return "48 KiB beside a kernel's own";
    int all = (int)gpu.sharedMemPerBlockOptin;
    if (allow_shared(all) != cudaErrorInvalidValue) return "all shared memory and a kernel's own";
    if (allow_shared(all - own) != cudaSuccess) return "all shared memory is refused";
    if (launched(1, 1, (size_t)(all - own)) != cudaSuccess) return "what was asked for is refused";
    if (launched(1, 257, 8) == cudaSuccess) return "more threads than there are registers for";
    if (launched(dim3(1, 65536), 1, 8) == cudaSuccess) return "65,536 rows of blocks";
    cudaMalloc((void **)&p, 2 * sizeof *p);
    if (cudaMemcpyAsync(p, p + 1, sizeof *p, cudaMemcpyHostToDevice, 0) == cudaSuccess)
        return "a copy from the device as if from the host";
    cudaGetLastError();
    auto copy = [&](cudaStream_t s) { return cudaMemcpyAsync(p, &host, sizeof host, cudaMemcpyHostToDevice, s); };
    auto take = [&](cudaStream_t) { return cudaMalloc((void **)&p, sizeof *p); };
    auto wait = [&](cudaStream_t s) { return cudaStreamSynchronize(s); };
    if (recording_after(copy) != cudaErrorStreamCaptureInvalidated) return "a copy in a recording";
    if (recording_after(take) != cudaErrorStreamCaptureInvalidated) return "memory taken in a recording";
    if (recording_after(wait) != cudaErrorStreamCaptureInvalidated) return "a wait in a recording";
    return nullptr;
}

void seeded_other_gpu(int opens)
{
    cudaStream_t stream;
    int *p;
    ptxsim_set_gpus(2);
    cudaSetDevice(1);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (!opens) cudaSetDevice(0);
    cudaMalloc((void **)&p, sizeof *p);
}
