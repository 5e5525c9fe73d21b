// The CUDA runtime's functions that nvcc's objects and cuda/ call, on the interpreter. Copies to
// the host arrive when the stream is synchronized and not before: whoever reads them earlier reads
// what was there.
#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "tests/ptxsim/execute.h"
#include "tests/ptxsim/ptxsim.h"
#include "tests/ptxsim/record.h"

using namespace ptxsim;

struct pending_download { void *to; std::vector<uint8_t> bytes; };
// What comes from page-locked memory is read some time before the stream is synchronized.
struct pending_upload { const void *from; std::vector<uint8_t> bytes; };

// A graph: its work in order, and how many kernels are among it.
struct recorded_work {
    std::vector<std::function<void()>> work;
    int64_t kernels;
};

// A stream is its GPU's: only threads that work on that one may use it.
struct gpu_stream { int32_t gpu; };
static thread_local int32_t the_gpu; // what this thread works on
static thread_local bool captures;   // this thread has begun to record

struct runtime {
    std::map<const void *, kernel *> kernels;        // by their stub on the host
    std::map<const kernel *, size_t> shared_limits;  // where more than 48 KiB were asked for
    std::vector<pending_download> downloads;
    std::vector<pending_upload> uploads;
    std::map<const uint8_t *, size_t> page_locked;   // blocks of the host's memory, their bytes
    size_t memory_bytes = (size_t)8 << 30;           // the GPU's
    size_t host_limit = SIZE_MAX;                    // of page_locked
    bool refuses_graphs = false;
    dim3 grid, block;                                // of the launch being written down
    size_t shared_bytes = 0;
    cudaStream_t stream = nullptr;
    recorded_work *recording = nullptr;              // between cudaStreamBeginCapture and EndCapture
    bool recording_is_lost = false;                  // a call came that may not, meanwhile
    bool has_context[64] = {};                       // of each GPU, on which a stream was made
    int32_t n_streams = 0;
    struct ptxsim_calls calls = {};
    cudaError_t last = cudaSuccess;
    int32_t n_gpus = 1, n_multiprocessors = 4, compute_capability = 80;
    int32_t code = 0;                                // what compute capability the objects' PTX is for
    int64_t waits_left = 0;                          // counting the one that fails; 0: none does
};

enum { DEFAULT_SHARED_BYTES = 48 << 10 };
static constexpr size_t CONTEXT_BYTES = (size_t)400 << 20;

static runtime *new_runtime()
{
    runtime *r = new runtime;
    const char *fail_after = getenv("PTXSIM_FAIL_AFTER");
    if (fail_after) r->waits_left = atoll(fail_after);
    return r;
}

static runtime &the_runtime()
{
    static runtime *r = new_runtime(); // kernels register before main
    return *r;
}

void ptxsim_set_memory(size_t bytes) { the_runtime().memory_bytes = bytes; }

void ptxsim_set_gpus(int32_t n) { the_runtime().n_gpus = n; }

void ptxsim_set_multiprocessors(int32_t n) { the_runtime().n_multiprocessors = n; }

void ptxsim_fail_after(int64_t n_waits) { the_runtime().waits_left = n_waits; }

struct ptxsim_calls ptxsim_calls() { return the_runtime().calls; }

void ptxsim_set_host_limit(size_t bytes) { the_runtime().host_limit = bytes; }

void ptxsim_refuse_graphs(bool yes) { the_runtime().refuses_graphs = yes; }

// Code of sm_80 runs on GPUs of sm_90 too, and is launched early there.
static int32_t newest_that_runs(int32_t code) { return code == 80 ? 90 : code; }

void ptxsim_set_compute_capability(int32_t sm)
{
    the_runtime().compute_capability = sm ? sm : newest_that_runs(the_runtime().code);
}

int32_t ptxsim_code() { return the_runtime().code; }

// The 80 of PTX that says ".target sm_80".
static int32_t target_of(const char *ptx)
{
    const char *at = strstr(ptx, ".target sm_");
    if (!at) fail("PTX without a .target");
    return atoi(at + strlen(".target sm_"));
}

static cudaError_t note(cudaError_t e)
{
    if (e != cudaSuccess) the_runtime().last = e;
    return e;
}

// What may not be called while this thread records: it spoils the recording.
static bool forbidden()
{
    if (captures) the_runtime().recording_is_lost = true;
    return captures;
}

// The GPU that the thread works on gets a context by any call that needs one, hundreds of megabytes
// of it; nobody has asked for one where no stream was made.
static void need_context(const char *what)
{
    const runtime &r = the_runtime();
    bool any = false;
    for (bool has : r.has_context) any = any || has;
    if (any && !r.has_context[the_gpu]) fail("%s on GPU %d, which nobody has opened", what, the_gpu);
}

// Shared memory that a block may have, its own variables' included.
static size_t most_shared_bytes()
{
    switch (the_runtime().compute_capability) {
    case 70: return 96 << 10;
    case 75: return 64 << 10;
    case 80: return 163 << 10;
    case 86:
    case 89: return 99 << 10;
    case 90: return 227 << 10;
    default: return DEFAULT_SHARED_BYTES;
    }
}

// A kernel's variables in shared memory, without the gaps that are watched here.
static size_t own_shared_bytes(const kernel &k)
{
    size_t bytes = 0;
    for (const shared_variable &v : k.shared) bytes += v.bytes;
    return bytes;
}

// Stream 0 is that of the GPU that the thread works on. Nothing orders it and streams that were
// made with flags.
static bool usable(cudaStream_t stream)
{
    if (!stream && the_runtime().n_streams > 0) fail("stream 0 is used beside others, which do not wait for it");
    return !stream || ((gpu_stream *)stream)->gpu == the_gpu;
}

bool ptxsim::record(std::function<void()> work)
{
    recorded_work *to = the_runtime().recording;
    if (to) to->work.push_back(std::move(work));
    return to;
}

// Its arguments are copied.
static void record_launch(kernel *k, dim3 grid, dim3 size, void **arguments, size_t shared_bytes, bool early)
{
    std::vector<std::vector<uint8_t>> values;
    for (size_t i = 0; i < k->parameters.size(); i++) {
        const uint8_t *from = (const uint8_t *)arguments[i];
        values.emplace_back(from, from + k->parameters[i].bytes);
    }
    the_runtime().recording->kernels++;
    record([=]() mutable {
        std::vector<void *> to;
        for (std::vector<uint8_t> &v : values) to.push_back(v.data());
        if (!launch(*k, {grid.x, grid.y, grid.z}, {size.x, size.y, size.z}, shared_bytes, to.data(), early))
            fail("a graph launches a kernel in a configuration that no GPU would take");
    });
}

static cudaError_t run(const void *stub, dim3 grid, dim3 size, void **arguments, size_t shared_bytes,
                       cudaStream_t stream, bool early = false)
{
    runtime &r = the_runtime();
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    auto k = r.kernels.find(stub);
    if (k == r.kernels.end()) return note(cudaErrorInvalidDeviceFunction);
    auto raised = r.shared_limits.find(k->second);
    bool enough = raised != r.shared_limits.end() && shared_bytes <= raised->second;
    if (!enough && own_shared_bytes(*k->second) + shared_bytes > DEFAULT_SHARED_BYTES)
        return note(cudaErrorInvalidValue);
    if (r.recording) {
        record_launch(k->second, grid, size, arguments, shared_bytes, early);
        return cudaSuccess;
    }
    r.calls.launches++;
    bool fits = launch(*k->second, {grid.x, grid.y, grid.z}, {size.x, size.y, size.z}, shared_bytes,
                       arguments, early);
    return note(fits ? cudaSuccess : cudaErrorInvalidConfiguration);
}

// ---- what nvcc's objects call ----

extern "C" {

// A fat binary: a header, then entries of a kind (1: PTX), their header's size, their size and
// flags.
void **__cudaRegisterFatBinary(void *wrapper)
{
    enum { PTX = 1 };
    struct { int32_t magic, version; const uint8_t *data; void *unused; } w;
    memcpy(&w, wrapper, sizeof w);
    uint16_t header_bytes;
    uint64_t bytes;
    memcpy(&header_bytes, w.data + 6, sizeof header_bytes);
    memcpy(&bytes, w.data + 8, sizeof bytes);
    const uint8_t *entry = w.data + header_bytes, *end = entry + bytes;
    module *m = nullptr;
    while (entry < end) {
        uint16_t kind;
        uint32_t entry_header;
        uint64_t entry_bytes;
        memcpy(&kind, entry, sizeof kind);
        memcpy(&entry_header, entry + 4, sizeof entry_header);
        memcpy(&entry_bytes, entry + 8, sizeof entry_bytes);
        const char *text = (const char *)entry + entry_header;
        if (kind == PTX && entry_bytes > 8 && strnlen(text, entry_bytes) > 8 && strstr(text, ".version"))
            m = load_module(std::string(text, strnlen(text, entry_bytes)));
        if (m && !the_runtime().code) {
            the_runtime().code = target_of(text);
            ptxsim_set_compute_capability(0);
        }
        entry += entry_header + entry_bytes;
    }
    if (!m)
        fail("an object without plain PTX: build it with -gencode arch=compute_80,code=compute_80 "
             "--no-compress");
    return (void **)m;
}

void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

void __cudaRegisterFunction(void **handle, const char *stub, char *, const char *name, int, uint3 *,
                            uint3 *, dim3 *, dim3 *, int *)
{
    kernel *k = ((module *)handle)->find(name);
    if (!k) fail("the PTX lacks the kernel %s", name);
    the_runtime().kernels[stub] = k;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream)
{
    runtime &r = the_runtime();
    r.grid = grid;
    r.block = block;
    r.shared_bytes = shared_bytes;
    r.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream)
{
    runtime &r = the_runtime();
    *grid = r.grid;
    *block = r.block;
    *shared_bytes = r.shared_bytes;
    *(cudaStream_t *)stream = r.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *stub)
{
    *k = (cudaKernel_t)stub;
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void **arguments,
                               size_t shared_bytes, cudaStream_t stream)
{
    return run((const void *)k, grid, block, arguments, shared_bytes, stream);
}

// ---- what cuda/ calls ----

cudaError_t cudaLaunchKernel(const void *stub, dim3 grid, dim3 block, void **arguments,
                             size_t shared_bytes, cudaStream_t stream)
{
    return run(stub, grid, block, arguments, shared_bytes, stream);
}

// Kernels run one after the other here; what may start early is watched all the more.
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *stub, void **arguments)
{
    bool early = false;
    for (unsigned i = 0; i < c->numAttrs; i++)
        early = early || (c->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization
                          && c->attrs[i].val.programmaticStreamSerializationAllowed);
    return run(stub, c->gridDim, c->blockDim, arguments, c->dynamicSmemBytes, c->stream, early);
}

cudaError_t cudaFuncSetAttribute(const void *stub, cudaFuncAttribute attribute, int value)
{
    runtime &r = the_runtime();
    auto k = r.kernels.find(stub);
    if (k == r.kernels.end()) return note(cudaErrorInvalidDeviceFunction);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || own_shared_bytes(*k->second) + (size_t)value > most_shared_bytes())
        return note(cudaErrorInvalidValue);
    r.shared_limits[k->second] = (size_t)value;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = the_runtime().n_gpus;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int n)
{
    if (n < 0 || n >= the_runtime().n_gpus) return note(cudaErrorInvalidDevice);
    the_gpu = n;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int n)
{
    if (n < 0 || n >= the_runtime().n_gpus) return note(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "PTX interpreter");
    p->major = the_runtime().compute_capability / 10;
    p->minor = the_runtime().compute_capability % 10;
    p->multiProcessorCount = the_runtime().n_multiprocessors;
    p->totalGlobalMem = the_runtime().memory_bytes;
    p->warpSize = LANES;
    p->maxThreadsPerBlock = 1024;
    p->sharedMemPerBlock = DEFAULT_SHARED_BYTES;
    p->sharedMemPerBlockOptin = most_shared_bytes();
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = the_runtime().memory_bytes;
    *free_bytes = *total - CONTEXT_BYTES - memory_in_use();
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    size_t free_bytes, total;
    if (forbidden()) return note(cudaErrorStreamCaptureUnsupported);
    need_context("cudaMalloc");
    cudaMemGetInfo(&free_bytes, &total);
    *p = bytes > free_bytes ? nullptr : memory_alloc(bytes);
    return note(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void *p)
{
    if (forbidden()) return note(cudaErrorStreamCaptureUnsupported);
    need_context("cudaFree");
    return note(!p || memory_free(p) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    enum { PAGE = 4096 };
    runtime &r = the_runtime();
    size_t locked = 0;
    if (forbidden()) return note(cudaErrorStreamCaptureUnsupported);
    need_context("cudaHostAlloc");
    for (const auto &block : r.page_locked) locked += block.second;
    bool fits = bytes <= r.host_limit && locked <= r.host_limit - bytes;
    *p = fits ? aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE) : nullptr;
    if (*p) r.page_locked[(uint8_t *)*p] = bytes;
    return note(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p)
{
    if (forbidden()) return note(cudaErrorStreamCaptureUnsupported);
    need_context("cudaFreeHost");
    if (p && the_runtime().page_locked.erase((uint8_t *)p) == 0) return note(cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}

static bool is_page_locked(const void *p, size_t bytes)
{
    const auto &blocks = the_runtime().page_locked;
    auto after = blocks.upper_bound((const uint8_t *)p);
    if (after == blocks.begin()) return false;
    --after;
    return (const uint8_t *)p + bytes <= after->first + after->second;
}

// Copies are not recorded: what cuda/ records has none, and of pageable memory there can be none.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    runtime &rt = the_runtime();
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    if (rt.recording) {
        rt.recording_is_lost = true;
        return note(cudaErrorStreamCaptureUnsupported);
    }
    bool down = kind == cudaMemcpyDeviceToHost, locked = is_page_locked(down ? to : from, bytes);
    if (memory_find((uint64_t)(down ? to : from))) return note(cudaErrorInvalidValue);
    rt.calls.pageable += !locked;
    if (down) {
        rt.calls.downloads++;
        region *r = memory_range(from, bytes, "copying to the host");
        size_t offset = (size_t)((const uint8_t *)from - r->data);
        if (!r->all_written(offset, bytes))
            fail("copying to the host: bytes %zu to %zu of %zu have parts that nobody wrote", offset,
                 offset + bytes, r->bytes);
        const uint8_t *p = (const uint8_t *)from;
        rt.downloads.push_back({to, std::vector<uint8_t>(p, p + bytes)});
        return cudaSuccess;
    }
    if (kind != cudaMemcpyHostToDevice) return note(cudaErrorInvalidMemcpyDirection);
    rt.calls.uploads++;
    memory_order();
    const uint8_t *p = (const uint8_t *)from;
    if (locked) rt.uploads.push_back({from, std::vector<uint8_t>(p, p + bytes)});
    ptxsim_fill(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    if (record([=] { cudaMemsetAsync(p, value, bytes, stream); })) return cudaSuccess;
    region *r = memory_range(p, bytes, "setting");
    memory_order();
    memset(p, value, bytes);
    memset(&r->state[(size_t)((uint8_t *)p - r->data)], BYTE_WRITTEN, bytes);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = (cudaStream_t) new gpu_stream{the_gpu};
    the_runtime().has_context[the_gpu] = true;
    the_runtime().n_streams++;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete (gpu_stream *)stream;
    the_runtime().n_streams--;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    runtime &r = the_runtime();
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    r.calls.waits++;
    memory_order();
    if (r.waits_left == 1) return note(cudaErrorIllegalAddress); // it sticks
    if (r.waits_left > 1) r.waits_left--;
    if (r.recording) {
        r.recording_is_lost = true;
        return note(cudaErrorStreamCaptureUnsupported);
    }
    for (const pending_download &d : r.downloads) memcpy(d.to, d.bytes.data(), d.bytes.size());
    r.downloads.clear();
    for (const pending_upload &u : r.uploads)
        if (memcmp(u.from, u.bytes.data(), u.bytes.size()) != 0)
            fail("copying to the device: %zu bytes of page-locked memory were written again before the "
                 "stream was synchronized", u.bytes.size());
    r.uploads.clear();
    return cudaSuccess;
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// Graphs: kernels, memory set, and products by cuBLASLt, which is what cuda/ records.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    runtime &r = the_runtime();
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    if (r.recording) return note(cudaErrorStreamCaptureUnsupported);
    r.recording = new recorded_work{};
    r.recording_is_lost = false;
    captures = true;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    runtime &r = the_runtime();
    *graph = nullptr;
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    if (!r.recording) return note(cudaErrorIllegalState);
    if (!captures) return note(cudaErrorStreamCaptureWrongThread);
    captures = false;
    if (r.recording_is_lost) delete r.recording;
    else *graph = (cudaGraph_t)r.recording;
    r.recording = nullptr;
    return note(*graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    if (the_runtime().refuses_graphs) return note(cudaErrorMemoryAllocation);
    *out = (cudaGraphExec_t) new recorded_work(*(recorded_work *)graph);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete (recorded_work *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    delete (recorded_work *)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    if (!usable(stream)) return note(cudaErrorInvalidResourceHandle);
    memory_order();
    the_runtime().calls.graph_launches++;
    the_runtime().calls.graph_kernels += ((recorded_work *)graph)->kernels;
    for (std::function<void()> &work : ((recorded_work *)graph)->work) work();
    return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
    runtime &r = the_runtime();
    cudaError_t e = r.last;
    r.last = cudaSuccess;
    return e;
}

static const struct { cudaError_t e; const char *name, *text; } error_names[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};

const char *cudaGetErrorName(cudaError_t e)
{
    for (const auto &n : error_names)
        if (n.e == e) return n.name;
    return "unrecognized error";
}

const char *cudaGetErrorString(cudaError_t e)
{
    for (const auto &n : error_names)
        if (n.e == e) return n.text;
    return "unrecognized error code";
}

} // extern "C"
