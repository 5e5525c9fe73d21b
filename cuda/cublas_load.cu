/* Finds cuBLASLt: where the loader looks, then in the toolkit's folder. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda/cublas.h"

static const char *const versions[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

static void *open_library(void)
{
    const char *home = getenv("CUDA_HOME");
    for (const char *name : versions) {
        char path[4096];
        void *library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
        if (library) return library;
        snprintf(path, sizeof path, "%s/lib64/%s", home ? home : "/usr/local/cuda", name);
        library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
        if (library) return library;
    }
    return NULL;
}

template <class F> static bool find(void *library, const char *name, F *function)
{
    *function = (F)dlsym(library, name);
    return *function != NULL;
}

bool cublas_load(struct cublas_calls *c)
{
    void *l = open_library();
    return l && find(l, "cublasLtCreate", &c->create) && find(l, "cublasLtDestroy", &c->destroy)
           && find(l, "cublasLtGetVersion", &c->version)
           && find(l, "cublasLtMatmulDescCreate", &c->desc_create)
           && find(l, "cublasLtMatmulDescDestroy", &c->desc_destroy)
           && find(l, "cublasLtMatmulDescSetAttribute", &c->desc_set)
           && find(l, "cublasLtMatrixLayoutCreate", &c->layout_create)
           && find(l, "cublasLtMatrixLayoutDestroy", &c->layout_destroy)
           && find(l, "cublasLtMatmulPreferenceCreate", &c->preference_create)
           && find(l, "cublasLtMatmulPreferenceDestroy", &c->preference_destroy)
           && find(l, "cublasLtMatmulPreferenceSetAttribute", &c->preference_set)
           && find(l, "cublasLtMatmulAlgoGetHeuristic", &c->heuristic)
           && find(l, "cublasLtMatmul", &c->matmul);
}
