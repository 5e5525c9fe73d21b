/* Normal deviates by their numbers: weights before training (model/gpt.h). Number i of a stream is
 *
 *   (float)(sqrt(-2 ln u) cos(2 pi v))            Box and Muller 1958
 *
 * with u = (word 0 + 1) / (2^32 + 1), v = word 1 / 2^32 of Philox4x32-10 (model/sampler.h) at
 * counter {i low, i high, 0, 0}. Plain C, which compilers turn into the vectors of the file that
 * includes this: no branch in a loop, no call, and operations of f64 that IEEE 754 rounds one way
 * only. So the bits are the same on every instruction set, and with every C library. */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { NORMAL_BLOCK = 256 };

union normal_word { double f; uint64_t u; };

/* Words 0 and 1 of NORMAL_BLOCK counters. */
static void normal_words(uint32_t *restrict u, uint32_t *restrict v, const uint32_t key[2],
                         uint64_t first)
{
    for (int i = 0; i < NORMAL_BLOCK; i++) {
        uint64_t at = first + (uint64_t)i;
        uint32_t c0 = (uint32_t)at, c1 = (uint32_t)(at >> 32), c2 = 0, c3 = 0;
        uint32_t k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
            c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
            c1 = (uint32_t)b;
            c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
            c3 = (uint32_t)a;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        u[i] = c0;
        v[i] = c1;
    }
}

/* ln x of a normal number x > 0, to some 3e-16 of it: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and
 * ln m = 2 atanh s, s = (m - 1) / (m + 1), by its series, whose next term is below 2e-17. */
static inline double normal_log(double x)
{
    const uint64_t one = 0x3FF0000000000000, root = 0x3FE6A09E00000000; /* 1, about sqrt(1/2) */
    union normal_word bits = {.f = x};
    bits.u += one - root;
    /* The exponent as a double without a conversion, which AVX2 lacks: in the low bits of 2^52. */
    union normal_word exponent = {.u = bits.u >> 52 | 0x4330000000000000};
    union normal_word m = {.u = (bits.u & 0x000FFFFFFFFFFFFF) + root};
    double e = exponent.f - (0x1p52 + 1023), f = m.f - 1, s = f / (2 + f), z = s * s;
    double r = z * (1.0 / 21) + 1.0 / 19;
    r = r * z + 1.0 / 17;
    r = r * z + 1.0 / 15;
    r = r * z + 1.0 / 13;
    r = r * z + 1.0 / 11;
    r = r * z + 1.0 / 9;
    r = r * z + 1.0 / 7;
    r = r * z + 1.0 / 5;
    r = r * z + 1.0 / 3;
    /* ln 2 in two parts, of which the first is exact when multiplied by e. */
    return e * 0x1.62E42FEFA38p-1 + (e * 0x1.EF35793C7673p-45 + (2 * s + 2 * s * z * r));
}

/* cos(2 pi w / 2^32): of the nearest quarter turn, and by the series of the angle from there,
 * at most pi/4. */
static inline double normal_cos(uint32_t w)
{
    uint32_t quarter = (w + 0x20000000u) >> 30;
    double t = (double)(int32_t)(w - (quarter << 30)) * 0x1.921FB54442D18p-30, z = t * t;
    double c = z * (1 / 20922789888000.0) - 1 / 87178291200.0; /* 1/16!, 1/14! */
    c = c * z + 1 / 479001600.0;
    c = c * z - 1 / 3628800.0;
    c = c * z + 1 / 40320.0;
    c = c * z - 1 / 720.0;
    c = c * z + 1 / 24.0;
    c = c * z - 0.5;
    double s = 1 / 6227020800.0 - z * (1 / 1307674368000.0); /* 1/13!, 1/15! */
    s = s * z - 1 / 39916800.0;
    s = s * z + 1 / 362880.0;
    s = s * z - 1 / 5040.0;
    s = s * z + 1 / 120.0;
    s = s * z - 1 / 6.0;
    /* cos, -sin, -cos, sin of the angle: chosen by masks, and the sign's bit. */
    union normal_word even = {.f = c * z + 1}, odd = {.f = s * z * t + t}, out;
    uint64_t is_odd = -(uint64_t)(quarter & 1), sign = (uint64_t)((quarter + 1) & 2) << 62;
    out.u = ((odd.u & is_odd) | (even.u & ~is_odd)) ^ sign;
    return out.f;
}

static void normal_block(float *restrict out, const uint32_t key[2], uint64_t first, float std)
{
    uint32_t u[NORMAL_BLOCK], v[NORMAL_BLOCK];
    double radius[NORMAL_BLOCK];
    normal_words(u, v, key, first);
    for (int i = 0; i < NORMAL_BLOCK; i++) {
        double word = (double)(int32_t)(u[i] ^ 0x80000000u) + 2147483648.0;
        radius[i] = sqrt(-2 * normal_log((word + 1) / 4294967297.0));
    }
    for (int i = 0; i < NORMAL_BLOCK; i++) out[i] = std * (float)(radius[i] * normal_cos(v[i]));
}

/* out[i] = std x number first + i of the key's stream. */
static void normal_fill(float *out, int64_t n, const uint32_t key[2], int64_t first, float std)
{
    for (int64_t i = 0; i < n; i += NORMAL_BLOCK) {
        float last[NORMAL_BLOCK], *to = n - i < NORMAL_BLOCK ? last : out + i;
        normal_block(to, key, (uint64_t)(first + i), std);
        if (to == last) memcpy(out + i, last, (size_t)(n - i) * sizeof *last);
    }
}
