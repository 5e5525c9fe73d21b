/* Attention over a q8_0 cache in AVX-512: VNNI's vpdpwssd multiplies pairs of 16-bit numbers and
 * adds both products to the sum. */
#include <string.h>

#include "cpu/simd_avx512.h"

static inline vi vi_even_bytes(vi a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); }
static inline vi vi_odd_bytes(vi a) { return _mm512_srai_epi16(a, 8); }
static inline vi vi_dot16(vi acc, vi a, vi b) { return _mm512_dpwssd_epi32(acc, a, b); }
static inline vi vi_broadcast(const void *p)
{
    int word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
static inline vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi vi_round(vf a) { return _mm512_cvtps_epi32(a); }
static inline void vi_store(int32_t *p, vi a) { _mm512_storeu_si512(p, a); }
static inline void vi_store_i16(int16_t *p, vi a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(a));
}

#define QUERY_MAX 6
#include "cpu/attend_q8_simd.h"

void cpu_attend_q8_avx512vnni(struct cpu_kernels *k)
{
    k->attend_q8 = attend_q8;
    k->quantize_kv = quantize_kv;
}
