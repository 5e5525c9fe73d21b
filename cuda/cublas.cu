/* Products by cuBLASLt: see cublas.h. Its matrices lie in columns: our rows of m are its columns of
 * m, so its D [m, n] is our d [n, m], its A [m, k] our a, and its B our b, transposed when ours is
 * turned. */
#include "cuda/cublas.h"

#include <stdio.h>
#include <stdlib.h>

#include "cuda/cuda_internal.h"

/* A micro-batch has some ten kinds of products, each of which has a plan by the micro-batch's rows.
 * Where text flows these are of one or two lengths; documents that are kept apart make ever new
 * ones. */
static constexpr int MAX_PLANS = 64;

/* What an algorithm is chosen by. */
struct blas_shape {
    enum dtype type, d_type;
    bool turned, added, gelu;
    int64_t n, m, k, a_stride, b_stride, d_stride;
    uint32_t alignment; /* of all pointers: a power of two up to 256 */
};

struct blas_plan {
    blas_shape shape;
    bool works; /* the library has a way */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
};

struct cublas {
    cublas_calls calls;
    cublasLtHandle_t handle;
    uint32_t next; /* plan to give away */
    blas_plan plans[MAX_PLANS]; /* without a description: none */
};

struct cublas *cublas_open(char *text, size_t text_bytes)
{
    struct cublas *b = (struct cublas *)calloc(1, sizeof *b);
    if (!b || !cublas_load(&b->calls) || b->calls.create(&b->handle) != CUBLAS_STATUS_SUCCESS) {
        free(b);
        snprintf(text, text_bytes, ", no cuBLASLt (own kernels)");
        return NULL;
    }
    size_t v = b->calls.version(); /* 130100: 13.1.0 */
    snprintf(text, text_bytes, ", cuBLASLt %zu.%zu", v / 10000, v / 100 % 100);
    return b;
}

static void plan_free(struct cublas *b, blas_plan *p)
{
    if (p->desc) b->calls.desc_destroy(p->desc);
    if (p->a) b->calls.layout_destroy(p->a);
    if (p->b) b->calls.layout_destroy(p->b);
    if (p->d) b->calls.layout_destroy(p->d);
}

void cublas_close(struct cublas *b)
{
    if (!b) return;
    for (blas_plan &p : b->plans) plan_free(b, &p);
    b->calls.destroy(b->handle);
    free(b);
}

static cudaDataType type_of(enum dtype type)
{
    switch (type) {
    case DTYPE_F32: return CUDA_R_32F;
    case DTYPE_BF16: return CUDA_R_16BF;
    case DTYPE_F16: return CUDA_R_16F;
    default: ASSERT(!"a type that activations have");
    }
    return CUDA_R_32F;
}

static uint32_t alignment_of(const struct blas_product *p)
{
    uintptr_t bits = (uintptr_t)p->a | (uintptr_t)p->b | (uintptr_t)p->d | (uintptr_t)p->gelu_of | 256;
    return (uint32_t)(bits & -bits);
}

static blas_shape shape_of(const struct blas_product *p)
{
    return {p->type, p->d_type, p->turned, p->added, p->gelu_of != NULL, p->n, p->m, p->k, p->a_stride,
            p->b_stride, p->d_stride, alignment_of(p)};
}

static bool same(const blas_shape &x, const blas_shape &y)
{
    return x.type == y.type && x.d_type == y.d_type && x.turned == y.turned && x.added == y.added
           && x.gelu == y.gelu && x.n == y.n && x.m == y.m && x.k == y.k && x.a_stride == y.a_stride && x.b_stride == y.b_stride
           && x.d_stride == y.d_stride && x.alignment == y.alignment;
}

/* Where this product's epilogue reads. */
static bool point_to(const cublas_calls &calls, const blas_plan *p, const void *gelu_of)
{
    return !p->shape.gelu
           || calls.desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &gelu_of, sizeof gelu_of)
                  == CUBLAS_STATUS_SUCCESS;
}

static bool set_epilogue(const cublas_calls &calls, const blas_shape &s, blas_plan *p)
{
    cublasLtEpilogue_t slope = CUBLASLT_EPILOGUE_DGELU;
    if (!s.gelu) return true;
    return calls.desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &slope, sizeof slope)
               == CUBLAS_STATUS_SUCCESS
           && calls.desc_set(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &s.d_stride, sizeof s.d_stride)
                  == CUBLAS_STATUS_SUCCESS;
}

static bool describe(const cublas_calls &calls, const blas_shape &s, blas_plan *p)
{
    cudaDataType type = type_of(s.type);
    cublasOperation_t turned = CUBLAS_OP_T;
    uint64_t b_rows = (uint64_t)(s.turned ? s.n : s.k), b_cols = (uint64_t)(s.turned ? s.k : s.n);
    return calls.desc_create(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS
           && (!s.turned || calls.desc_set(p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &turned, sizeof turned)
                                == CUBLAS_STATUS_SUCCESS)
           && set_epilogue(calls, s, p) && calls.layout_create(&p->a, type, (uint64_t)s.m, (uint64_t)s.k, s.a_stride)
                  == CUBLAS_STATUS_SUCCESS
           && calls.layout_create(&p->b, type, b_rows, b_cols, s.b_stride) == CUBLAS_STATUS_SUCCESS
           && calls.layout_create(&p->d, type_of(s.d_type), (uint64_t)s.m, (uint64_t)s.n, s.d_stride)
                  == CUBLAS_STATUS_SUCCESS;
}

/* A sum over k may be cut into parts, which weights with few outputs need to fill a GPU, if the
 * parts meet in the workspace, in f32, in a step of its own: nothing then depends on which block
 * comes first. */
static bool set_preferences(const cublas_calls &calls, cublasLtMatmulPreference_t preference,
                            uint64_t workspace, uint32_t alignment)
{
    static constexpr cublasLtMatmulPreferenceAttributes_t operands[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    bool ok = calls.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                   sizeof workspace) == CUBLAS_STATUS_SUCCESS
              && calls.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                      sizeof reductions) == CUBLAS_STATUS_SUCCESS;
    for (cublasLtMatmulPreferenceAttributes_t operand : operands)
        ok = ok && calls.preference_set(preference, operand, &alignment, sizeof alignment)
                       == CUBLAS_STATUS_SUCCESS;
    return ok;
}

static bool choose(struct cublas *b, const blas_shape &s, uint64_t workspace, blas_plan *p)
{
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    if (b->calls.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    bool ok = set_preferences(b->calls, preference, workspace, s.alignment)
              && b->calls.heuristic(b->handle, p->desc, p->a, p->b, p->d, p->d, preference, 1, &best,
                                    &found) == CUBLAS_STATUS_SUCCESS
              && found == 1 && best.state == CUBLAS_STATUS_SUCCESS;
    b->calls.preference_destroy(preference);
    p->algorithm = best.algo;
    return ok;
}

/* The shape's plan. A new one takes the place of the oldest: what a plan holds is a function of its
 * shape, so that the bits of a product never depend on which shapes came before it, and a run that
 * is resumed goes on as one that was not. Plans are the host's alone: the stream, and what was
 * recorded of it, need them no longer. */
static blas_plan *plan_for(struct cublas *b, const blas_shape &s, const void *gelu_of,
                           uint64_t workspace)
{
    for (blas_plan &p : b->plans)
        if (p.desc && same(p.shape, s)) return &p;
    blas_plan *p = &b->plans[b->next++ % MAX_PLANS];
    plan_free(b, p);
    *p = {};
    p->shape = s;
    /* The library looks at the pointer's alignment when it chooses. */
    p->works = describe(b->calls, s, p) && point_to(b->calls, p, gelu_of)
               && choose(b, s, workspace, p);
    return p;
}

bool cuda_blas_product(struct cuda_device *c, const struct blas_product *p)
{
    if (!c->blas || p->n == 0) return false;
    int64_t workspace = cuda_blas_workspace(c->sm);
    void *scratch = cuda_workspace(c, 0, workspace);
    blas_plan *plan = plan_for(c->blas, shape_of(p), p->gelu_of, (uint64_t)workspace);
    if (!plan->works) return false;
    if (c->failure != cudaSuccess) return true;
    const cublas_calls &calls = c->blas->calls;
    float one = 1, beta = p->added ? 1 : 0;
    cublasStatus_t status = CUBLAS_STATUS_INTERNAL_ERROR;
    if (point_to(calls, plan, p->gelu_of))
        status = calls.matmul(c->blas->handle, plan->desc, &one, p->a, plan->a, p->b, plan->b, &beta, p->d,
                              plan->d, p->d, plan->d, &plan->algorithm, scratch, (size_t)workspace,
                              c->stream);
    if (status != CUBLAS_STATUS_SUCCESS) cuda_note(c, cudaErrorLaunchFailure, "cublasLtMatmul");
    return true;
}
