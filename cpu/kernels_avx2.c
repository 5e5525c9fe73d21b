/* Kernels in AVX2 and FMA: 8 lanes, 16 registers, so tiles of 3 rows by 4 vectors. */
#include "cpu/simd_avx2.h"

#include "cpu/simd_math.h"

#include "cpu/rows_simd.h"
#include "cpu/train_simd.h"

#define TILE_MAX 3
#define QUERY_MAX 3
#include "cpu/f32_simd.h"

void cpu_kernels_avx2(struct cpu_kernels *k)
{
    k->name = "AVX2";
    rows_simd(k);
    train_simd(k);
    products_simd(k);
}
