/* Kernels in AVX-512: 16 lanes, 32 registers, so tiles of 12 rows by 2 vectors or 6 by 4. */
#include "cpu/simd_avx512.h"

#include "cpu/simd_math.h"

#include "cpu/rows_simd.h"
#include "cpu/train_simd.h"

#define TILE_MAX 12
#define QUERY_MAX 6
#include "cpu/f32_simd.h"

void cpu_kernels_avx512(struct cpu_kernels *k)
{
    k->name = "AVX-512";
    rows_simd(k);
    train_simd(k);
    products_simd(k);
}
