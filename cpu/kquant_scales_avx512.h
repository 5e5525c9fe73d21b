/* load_scales of kquant_scales_simd.h by AVX-512. */
#pragma once

#include "cpu/kquant.h"
#include "cpu/simd_avx512.h"

static inline __m128i load_bytes(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline vf load_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf unsigned_floats(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a)); }
static inline vf signed_floats(__m128i a) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(a)); }

#include "cpu/kquant_scales_simd.h"
