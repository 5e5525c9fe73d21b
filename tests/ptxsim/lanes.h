// Values in registers, and loops over lanes, for the operations. A register holds 4 or 8 bytes a
// lane; values of fewer bits lie in the low ones; what is above them does not matter.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "tests/ptxsim/execute.h"

namespace ptxsim {

template <class T> using slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T> inline T value_of(slot<T> bits)
{
    T v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <class T> inline slot<T> bits_from(T v)
{
    slot<T> bits = 0;
    memcpy(&bits, &v, sizeof v);
    return bits;
}

// d = f(a) for the lanes. All lanes at once is the common case, which the compiler turns into
// vectors.
template <class D, class A, class F>
inline void each(warp &w, const instruction &i, uint32_t lanes, F f)
{
    slot<D> *d = lanes_of<slot<D>>(w, i.dst[0]);
    const slot<A> *a = lanes_of<slot<A>>(w, i.src[0]);
    slot<D> out[LANES];
    if (lanes == ALL_LANES) {
        for (int l = 0; l < LANES; l++) out[l] = bits_from<D>(f(value_of<A>(a[l])));
        memcpy(d, out, sizeof out);
        return;
    }
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) d[l] = bits_from<D>(f(value_of<A>(a[l])));
}

template <class D, class A, class B, class F>
inline void each(warp &w, const instruction &i, uint32_t lanes, F f)
{
    slot<D> *d = lanes_of<slot<D>>(w, i.dst[0]);
    const slot<A> *a = lanes_of<slot<A>>(w, i.src[0]);
    const slot<B> *b = lanes_of<slot<B>>(w, i.src[1]);
    slot<D> out[LANES];
    if (lanes == ALL_LANES) {
        for (int l = 0; l < LANES; l++) out[l] = bits_from<D>(f(value_of<A>(a[l]), value_of<B>(b[l])));
        memcpy(d, out, sizeof out);
        return;
    }
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) d[l] = bits_from<D>(f(value_of<A>(a[l]), value_of<B>(b[l])));
}

template <class D, class A, class B, class C, class F>
inline void each(warp &w, const instruction &i, uint32_t lanes, F f)
{
    slot<D> *d = lanes_of<slot<D>>(w, i.dst[0]);
    const slot<A> *a = lanes_of<slot<A>>(w, i.src[0]);
    const slot<B> *b = lanes_of<slot<B>>(w, i.src[1]);
    const slot<C> *c = lanes_of<slot<C>>(w, i.src[2]);
    slot<D> out[LANES];
    if (lanes == ALL_LANES) {
        for (int l = 0; l < LANES; l++)
            out[l] = bits_from<D>(f(value_of<A>(a[l]), value_of<B>(b[l]), value_of<C>(c[l])));
        memcpy(d, out, sizeof out);
        return;
    }
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1)
            d[l] = bits_from<D>(f(value_of<A>(a[l]), value_of<B>(b[l]), value_of<C>(c[l])));
}

inline float bf16_value(uint16_t b) { return value_of<float>((uint32_t)b << 16); }

inline uint16_t bf16_bits(float x)
{
    uint32_t u = bits_from(x);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF; // NaN, as the hardware writes it
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

inline float f16_value(uint16_t b)
{
    _Float16 h;
    memcpy(&h, &b, sizeof h);
    return (float)h;
}

inline uint16_t f16_bits(float x)
{
    _Float16 h = (_Float16)x;
    uint16_t b;
    memcpy(&b, &h, sizeof b);
    return b;
}

} // namespace ptxsim
