/* Products of f32, and of bf16 widened to f32, for every vector width: the two ways of multiplying
 * that AVX2 and AVX-512 share. The includer sets TILE_MAX and QUERY_MAX. */
#pragma once

#include <string.h>

#include "cpu/kernels.h"
#include "cpu/softmax_simd.h"

static inline vf broadcast_word(const uint32_t *x)
{
    float f;
    memcpy(&f, x, sizeof f);
    return vf_set(f);
}

typedef vf right_f32;
typedef vf left_f32;

static inline vf load_f32(const void *p) { return vf_load(p); }
static inline vf load_first_f32(const void *p) { return vf_load(p); }
static inline vf broadcast_f32(const uint32_t *x, int64_t stride) { return broadcast_word(x); }
static inline vf madd_f32(vf x, vf w, vf acc) { return vf_fma(x, w, acc); }
static inline void pack_f32(uint32_t *words, const float *p, int64_t n)
{
    memcpy(words, p, (size_t)n * 4);
}

#define TYPED(name) name##_f32
#define STEP 1
#define X_WORDS 1
#include "cpu/products_simd.h"
#undef TYPED
#undef STEP
#undef X_WORDS

typedef struct { vf even, odd; } right_wide;
typedef struct { vf even, odd; } left_wide;

static inline right_wide load_wide(const void *p)
{
    vi pairs = vi_load(p);
    return (right_wide){vf_even(pairs), vf_odd(pairs)};
}
static inline right_wide load_first_wide(const void *p)
{
    return (right_wide){vf_even(vi_load(p)), vf_set(0)};
}
static inline left_wide broadcast_wide(const uint32_t *x, int64_t stride)
{
    return (left_wide){broadcast_word(x), broadcast_word(x + stride)};
}
static inline vf madd_wide(left_wide x, right_wide w, vf acc)
{
    return vf_fma(x.odd, w.odd, vf_fma(x.even, w.even, acc));
}
static inline void pack_wide(uint32_t *words, const float *p, int64_t n)
{
    memcpy(words, p, (size_t)n * 4);
}

#define TYPED(name) name##_wide
#define STEP 2
#define X_WORDS 2
#include "cpu/products_simd.h"
#undef TYPED
#undef STEP
#undef X_WORDS

static void products_simd(struct cpu_kernels *k)
{
    k->tile_rows = TILE_MAX;
    k->bf16_dot = false;
    k->matmul_f32 = matmul_f32;
    k->matmul_bf16 = matmul_wide;
    k->attend_f32 = attend_f32;
    k->attend_bf16 = attend_wide;
}
