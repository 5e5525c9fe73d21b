/* Attention over a q8_0 cache in AVX2: vpmaddwd multiplies and adds pairs of 16-bit numbers. */
#include "cpu/simd_avx2.h"

static inline vi vi_even_bytes(vi a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
static inline vi vi_odd_bytes(vi a) { return _mm256_srai_epi16(a, 8); }
static inline vi vi_dot16(vi acc, vi a, vi b)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
}
static inline vi vi_broadcast(const void *p)
{
    int word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}
static inline vf vi_to_vf(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vi vi_round(vf a) { return _mm256_cvtps_epi32(a); }
static inline void vi_store(int32_t *p, vi a) { _mm256_storeu_si256((__m256i *)p, a); }
static inline void vi_store_i16(int16_t *p, vi a)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storeu_si128((__m128i *)p, words);
}

#define QUERY_MAX 3
#include "cpu/attend_q8_simd.h"

void cpu_attend_q8_avx2(struct cpu_kernels *k)
{
    k->attend_q8 = attend_q8;
    k->quantize_kv = quantize_kv;
}
