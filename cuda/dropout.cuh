/* Dropout's factors as kernels take them: model/device_train.h says which elements are kept. */
#pragma once

#include "cuda/cuda_internal.h"
#include "cuda/gpu.cuh"
#include "cuda/philox.cuh"

struct keep { uint32_t threshold; float scale; random_key key; bool on; };

static inline struct keep keep_of(struct dropout drop)
{
    ASSERT(drop.p >= 0 && drop.p < 1);
    return {(uint32_t)((double)drop.p * 4294967296.0), 1 / (1 - drop.p), drop.key, drop.p > 0};
}

/* The factors of elements first .. first + N - 1: N is 1, or 4 and first a multiple of it. Without
 * dropout ones. */
template <int N> __device__ __forceinline__ packed<float, N> keep_factors(const keep &k, uint64_t first)
{
    static_assert(N == 1 || N == 4);
    packed<float, N> z;
    philox_words w = {};
    if (k.on) w = philox(first / 4, 0, 0, key_of(k.key));
#pragma unroll
    for (int e = 0; e < N; e++) {
        uint32_t word = N == 4 ? w.at[e] : philox_word(w, (uint32_t)first);
        z.at[e] = !k.on ? 1.0f : word >= k.threshold ? k.scale : 0.0f;
    }
    return z;
}
