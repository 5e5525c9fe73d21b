/* Philox4x32-10 (Salmon et al. 2011), the very words of model/sampler.h. */
#pragma once

#include "model/device.h"

/* The loads of a launch are all of one address, whose value no kernel changes. */
__device__ __forceinline__ uint64_t key_of(const random_key &k)
{
    return (__ldg((const unsigned long long *)k.base) + k.add) >> 4 ^ k.flip;
}

struct philox_words { uint32_t at[4]; };

/* w.at[i % 4] without an index: words stay in registers. */
__device__ __forceinline__ uint32_t philox_word(const philox_words &w, uint32_t i)
{
    uint32_t low = i & 1 ? w.at[1] : w.at[0], high = i & 1 ? w.at[3] : w.at[2];
    return i & 2 ? high : low;
}

__device__ __forceinline__ philox_words philox(uint64_t counter, uint32_t c2, uint32_t c3, uint64_t key)
{
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t a_high = __umulhi(0xD2511F53u, c0), a_low = 0xD2511F53u * c0;
        uint32_t b_high = __umulhi(0xCD9E8D57u, c2), b_low = 0xCD9E8D57u * c2;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}
