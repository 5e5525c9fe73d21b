/* Products of bf16 pairs by AVX-512 BF16's vdpbf16ps; everything else is plain AVX-512. */
#include "cpu/simd_avx512.h"

#include "cpu/simd_math.h"

#include "cpu/softmax_simd.h"

typedef __m512bh right_dot;
typedef __m512bh left_dot;

static inline __m512bh load_dot(const void *p) { return (__m512bh)vi_load(p); }
static inline __m512bh load_first_dot(const void *p) { return (__m512bh)vi_low_half(vi_load(p)); }
static inline __m512bh broadcast_dot(const uint32_t *x, int64_t stride)
{
    return (__m512bh)_mm512_set1_epi32((int)*x);
}
static inline vf madd_dot(__m512bh x, __m512bh w, vf acc) { return _mm512_dpbf16_ps(acc, w, x); }
/* Rounds p to bf16, as every operand of a product. */
static inline void pack_dot(uint32_t *words, const float *p, int64_t n)
{
    for (int64_t i = 0; i < n; i += LANES)
        _mm256_storeu_si256((__m256i *)(words + i / 2),
                            (__m256i)_mm512_cvtneps_pbh(vf_load(p + i)));
}

#define TILE_MAX 12
#define QUERY_MAX 6
#define TYPED(name) name##_dot
#define STEP 2
#define X_WORDS 1
#include "cpu/products_simd.h"

void cpu_kernels_avx512bf16(struct cpu_kernels *k)
{
    k->name = "AVX-512 BF16";
    k->bf16_dot = true;
    k->attend_pairs = true;
    k->matmul_bf16 = matmul_dot;
    k->attend_bf16 = attend_dot;
}
