// The calls of cuBLASLt that cuda/ makes, in the place of the library: plain sums on the host, and
// every argument looked at. What does not fit ends the process, as a kernel's mistakes do.
#include "cuda/cublas.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "model/dtype.h"
#include "tests/ptxsim/execute.h"
#include "tests/ptxsim/ptxsim.h"
#include "tests/ptxsim/record.h"

using namespace ptxsim;

struct cublasLtContext { int unused; };

static bool library_is_there;
static int64_t n_products, n_choices;

void ptxsim_set_cublas(bool there)
{
    library_is_there = there;
    setenv("CUDA_MODULE_LOADING", there ? "LAZY" : "EAGER", 1); // else no device looks for it
}

int64_t ptxsim_cublas_products() { return n_products; }
int64_t ptxsim_cublas_choices() { return n_choices; }

// What the opaque descriptors hold here. All are of plain data, and begin with what they are.
enum kind : int32_t { LAYOUT = 0x4C61, DESC, PREFERENCE, ALGORITHM };
struct layout { kind is; cudaDataType type; int64_t rows, cols, ld; };
struct desc { kind is; bool b_turned; uint32_t epilogue; int64_t aux_ld; const void *aux; };
struct preference { kind is; uint64_t workspace; uint32_t reductions, alignment[4]; };
struct algorithm { kind is; desc of; uint64_t workspace; uint32_t alignment[4]; layout a, b, d; };

template <class T, class Handle> static T &of(Handle handle, kind is, const char *what)
{
    T *t = (T *)handle;
    if (!t || t->is != is) fail("cublasLt: %s is none", what);
    return *t;
}

template <class T, class Handle> static cublasStatus_t make(Handle *out, const T &value)
{
    *out = (Handle) new T(value);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T, class Handle> static cublasStatus_t destroy(Handle handle, kind is, const char *what)
{
    delete &of<T>(handle, is, what);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t create(cublasLtHandle_t *out) { return make(out, cublasLtContext{}); }

static cublasStatus_t destroy_handle(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

static size_t version() { return 130100; }

static cublasStatus_t desc_create(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) fail("cublasLt: sums are not in f32");
    return make(out, desc{DESC, false, CUBLASLT_EPILOGUE_DEFAULT, 0, nullptr});
}

static cublasStatus_t desc_destroy(cublasLtMatmulDesc_t d) { return destroy<desc>(d, DESC, "a description"); }

static cublasStatus_t desc_set(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t attribute,
                               const void *value, size_t bytes)
{
    desc &d = of<desc>(handle, DESC, "a description");
    cublasOperation_t operation;
    void *to = attribute == CUBLASLT_MATMUL_DESC_TRANSB                 ? (void *)&operation
               : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE             ? (void *)&d.epilogue
               : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD      ? (void *)&d.aux_ld
               : attribute == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER ? (void *)&d.aux : nullptr;
    bool is_long = to == &d.aux_ld || to == &d.aux;
    if (!to || bytes != (is_long ? 8 : 4))
        fail("cublasLt: attribute %d of a description, %zu bytes", attribute, bytes);
    memcpy(to, value, bytes);
    if (to == &operation) d.b_turned = operation == CUBLAS_OP_T;
    if (d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && d.epilogue != CUBLASLT_EPILOGUE_DGELU)
        fail("cublasLt: epilogue %u", d.epilogue);
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t layout_create(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
                                    uint64_t cols, int64_t ld)
{
    if (rows == 0 || cols == 0 || ld < (int64_t)rows)
        fail("cublasLt: a matrix of %llu x %llu with %lld from column to column", (unsigned long long)rows,
             (unsigned long long)cols, (long long)ld);
    return make(out, layout{LAYOUT, type, (int64_t)rows, (int64_t)cols, ld});
}

static cublasStatus_t layout_destroy(cublasLtMatrixLayout_t l) { return destroy<layout>(l, LAYOUT, "a layout"); }

static cublasStatus_t preference_create(cublasLtMatmulPreference_t *out)
{
    return make(out, preference{PREFERENCE, 0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}});
}

static cublasStatus_t preference_destroy(cublasLtMatmulPreference_t p)
{
    return destroy<preference>(p, PREFERENCE, "a preference");
}

static cublasStatus_t preference_set(cublasLtMatmulPreference_t handle,
                                     cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                     size_t bytes)
{
    preference &p = of<preference>(handle, PREFERENCE, "a preference");
    int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    void *to = attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? (void *)&p.workspace
               : attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK ? (void *)&p.reductions
               : operand >= 0 && operand < 4 ? (void *)&p.alignment[operand] : nullptr;
    if (!to || bytes != (to == &p.workspace ? 8 : 4))
        fail("cublasLt: attribute %d of a preference, %zu bytes", attribute, bytes);
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

static int64_t size_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

// Operands that do not begin, or go on, at multiples of 16 bytes have no algorithm here: callers
// need another way.
static bool has_algorithm(const layout &l, uint32_t alignment)
{
    return alignment >= 16 && l.ld * size_of(l.type) % 16 == 0;
}

// The slope's operand has D's type and rules like D's.
static layout aux_layout(const desc &d, const layout &out)
{
    return {LAYOUT, out.type, out.rows, out.cols, d.aux_ld};
}

// As the library says of the slope of GELU: a distance between columns that is a multiple of 8, in
// 16 bits. Without the operand's pointer it would choose for one that is aligned to nothing.
static bool has_epilogue(const desc &d, const layout &out)
{
    if (d.epilogue == CUBLASLT_EPILOGUE_DEFAULT) return true;
    if (!d.aux) fail("cublasLt: an algorithm is asked for before the epilogue's operand is known");
    if (d.aux_ld < out.rows) fail("cublasLt: the epilogue's operand has %lld from column to column", (long long)d.aux_ld);
    return out.type != CUDA_R_32F && d.aux_ld % 8 == 0 && (uintptr_t)d.aux % 16 == 0;
}

static cublasStatus_t heuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                cublasLtMatmulPreference_t handle, int n,
                                cublasLtMatmulHeuristicResult_t results[], int *found)
{
    const preference &p = of<preference>(handle, PREFERENCE, "a preference");
    n_choices++;
    algorithm best = {ALGORITHM, of<desc>(d, DESC, "a description"), p.workspace, {},
                      of<layout>(a, LAYOUT, "A"), of<layout>(b, LAYOUT, "B"), of<layout>(out, LAYOUT, "D")};
    memcpy(best.alignment, p.alignment, sizeof best.alignment);
    if (memcmp(&of<layout>(c, LAYOUT, "C"), &best.d, sizeof best.d) != 0) fail("cublasLt: C is not D");
    if (p.reductions & (CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE))
        fail("cublasLt: reductions in the output's place are allowed");
    *found = n > 0 && has_algorithm(best.a, p.alignment[0]) && has_algorithm(best.b, p.alignment[1])
             && has_algorithm(best.d, p.alignment[3]) && has_epilogue(best.of, best.d);
    if (!*found) return CUBLAS_STATUS_NOT_SUPPORTED;
    static_assert(sizeof(algorithm *) <= sizeof results[0].algo, "room");
    algorithm *kept = new algorithm(best); // as long as the process, as the library's are by value
    memcpy(&results[0].algo, &kept, sizeof kept);
    results[0].workspaceSize = p.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_SUCCESS;
}

// Of the values, columns apart; all of them written, if they are to be read.
static void look_at(const layout &l, const void *data, uint32_t alignment, bool read, const char *name)
{
    size_t column = (size_t)(l.rows * size_of(l.type));
    if ((uintptr_t)data % alignment != 0) fail("cublasLt: %s is not aligned to %u bytes", name, alignment);
    for (int64_t j = 0; j < l.cols; j++) {
        const uint8_t *p = (const uint8_t *)data + j * l.ld * size_of(l.type);
        region *r = memory_range(p, column, name);
        if (read && !r->all_written((size_t)(p - r->data), column))
            fail("cublasLt: column %lld of %s has parts that nobody wrote", (long long)j, name);
        if (!read) memset(&r->state[(size_t)(p - r->data)], BYTE_WRITTEN, column);
    }
}

static float value(const layout &l, const void *data, int64_t i, int64_t j)
{
    int64_t at = j * l.ld + i;
    if (l.type == CUDA_R_32F) return ((const float *)data)[at];
    uint16_t bits = ((const uint16_t *)data)[at];
    return l.type == CUDA_R_16BF ? bf16_to_f32(bits) : f16_to_f32(bits);
}

static void put(const layout &l, void *data, int64_t i, int64_t j, float y)
{
    int64_t at = j * l.ld + i;
    if (l.type == CUDA_R_32F) ((float *)data)[at] = y;
    else ((uint16_t *)data)[at] = l.type == CUDA_R_16BF ? f32_to_bf16(y) : f32_to_f16(y);
}

// Of tanh GELU, which is the library's.
static float slope(float x)
{
    float t = tanhf(0.7978845608f * (x + 0.044715f * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.7978845608f * (1 + 0.134145f * x * x);
}

static void product(const algorithm &g, const void *a, const void *b, float beta, const void *aux, void *d)
{
    layout aux_of = aux_layout(g.of, g.d);
    for (int64_t j = 0; j < g.d.cols; j++)
        for (int64_t i = 0; i < g.d.rows; i++) {
            float sum = 0;
            for (int64_t k = 0; k < g.a.cols; k++)
                sum += value(g.a, a, i, k) * (g.of.b_turned ? value(g.b, b, j, k) : value(g.b, b, k, j));
            if (beta != 0) sum += beta * value(g.d, d, i, j);
            put(g.d, d, i, j, aux ? sum * slope(value(aux_of, aux, i, j)) : sum);
        }
}

static cublasStatus_t matmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void *alpha,
                             const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                             cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                             cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                             const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                             cudaStream_t stream)
{
    // A graph has the description, the scalars and the algorithm as they are now.
    auto again = [=, of_now = of<desc>(description, DESC, "a description"), one = *(const float *)alpha,
                  scale = *(const float *)beta, algorithm = *algo]() mutable {
        matmul(nullptr, (cublasLtMatmulDesc_t)&of_now, &one, a, a_layout, b, b_layout, &scale, c, c_layout, d,
               d_layout, &algorithm, workspace, workspace_bytes, stream);
    };
    if (record(again)) return CUBLAS_STATUS_SUCCESS;
    algorithm *g;
    memcpy(&g, algo, sizeof g);
    if (!g || g->is != ALGORITHM) fail("cublasLt: the algorithm is none");
    const layout *const given[] = {&of<layout>(a_layout, LAYOUT, "A"), &of<layout>(b_layout, LAYOUT, "B"),
                                   &of<layout>(c_layout, LAYOUT, "C"), &of<layout>(d_layout, LAYOUT, "D")};
    const layout *const chosen[] = {&g->a, &g->b, &g->d, &g->d};
    for (int i = 0; i < 4; i++)
        if (memcmp(given[i], chosen[i], sizeof(layout)) != 0) fail("cublasLt: an algorithm of other shapes");
    const desc &now = of<desc>(description, DESC, "a description");
    if (now.b_turned != g->of.b_turned || now.epilogue != g->of.epilogue || now.aux_ld != g->of.aux_ld)
        fail("cublasLt: an algorithm of another description");
    int64_t n = now.b_turned ? g->b.rows : g->b.cols, k = now.b_turned ? g->b.cols : g->b.rows;
    if (g->a.rows != g->d.rows || n != g->d.cols || k != g->a.cols) fail("cublasLt: shapes do not meet");
    if (g->a.type != g->b.type || (g->d.type != CUDA_R_32F && g->d.type != g->a.type) || c != d || !stream)
        fail("cublasLt: types, or a C that is not D, or no stream");
    if (workspace_bytes < g->workspace || (uintptr_t)workspace % 256 != 0)
        fail("cublasLt: %zu bytes of scratch at %p", workspace_bytes, workspace);
    memory_range(workspace, workspace_bytes, "cublasLt: scratch");
    if (*(const float *)alpha != 1) fail("cublasLt: alpha is %g", *(const float *)alpha);
    float scale = *(const float *)beta;
    look_at(g->a, a, g->alignment[0], true, "A");
    look_at(g->b, b, g->alignment[1], true, "B");
    if (scale != 0) look_at(g->d, d, g->alignment[2], true, "C");
    const void *aux = now.epilogue == CUBLASLT_EPILOGUE_DGELU ? now.aux : nullptr;
    if (aux) look_at(aux_layout(now, g->d), aux, 16, true, "the epilogue's operand");
    look_at(g->d, d, g->alignment[3], false, "D");
    memory_forget(workspace, workspace_bytes);
    product(*g, a, b, scale, aux, d);
    n_products++;
    return CUBLAS_STATUS_SUCCESS;
}

bool cublas_load(struct cublas_calls *calls)
{
    *calls = {create, destroy_handle, version, desc_create, desc_destroy, desc_set, layout_create,
              layout_destroy, preference_create, preference_destroy, preference_set, heuristic, matmul};
    return library_is_there;
}
