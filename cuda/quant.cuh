/* Rows of weight matrices, whatever their type, as kernels see them.
 *
 *   f32, bf16, f16   [n_out][stride], padding zero
 *   q8_0             int8 codes [n_out][stride], then f16 scales [n_out][stride / 32]
 *   q4_0             nibbles [n_out][stride / 2], a byte holding inputs i and i + 16 of a block as codes 8 more
 *                    than they mean, then f16 scales [n_out][stride / 32]
 *
 * Codes and scales lie apart, so that both can be loaded 16 bytes at a time; together they take GGUF's
 * bytes. */
#pragma once

#include "cuda/gpu.cuh"

enum { QUANT_BLOCK = 32 };

template <class T> struct plain_rows {
    static constexpr bool QUANTIZED = false;
    T *data;
    int64_t stride;
    __device__ float at(int64_t n, int64_t k) const { return to_f32(data[n * stride + k]); }
};

struct q8_rows {
    static constexpr bool QUANTIZED = true;
    int8_t *codes;
    f16 *scales;
    int64_t stride;
    __device__ float at(int64_t n, int64_t k) const
    {
        return to_f32(scales[(n * stride + k) / QUANT_BLOCK]) * (float)codes[n * stride + k];
    }
};

struct q4_rows {
    static constexpr bool QUANTIZED = true;
    uint8_t *codes;
    f16 *scales;
    int64_t stride;
    __device__ float at(int64_t n, int64_t k) const
    {
        int64_t in_block = k % QUANT_BLOCK;
        uint8_t byte = codes[(n * stride + k - in_block) / 2 + in_block % 16];
        int code = in_block < 16 ? byte & 15 : byte >> 4;
        return to_f32(scales[(n * stride + k) / QUANT_BLOCK]) * (float)(code - 8);
    }
};

/* Inputs k .. k + 7 (k a multiple of 8, below the stride) of row n: as they lie in memory
 * (load_raw), and as operands of a product (widen). Between the two a kernel has other things to
 * do. */
template <class T> __device__ __forceinline__ packed<T, 8> load_raw(plain_rows<T> w, int64_t n, int64_t k)
{
    return load_once((const packed<T, 8> *)(w.data + n * w.stride + k));
}

struct q8_raw { packed<int8_t, 8> codes; uint16_t scale; };

__device__ __forceinline__ q8_raw load_raw(q8_rows w, int64_t n, int64_t k)
{
    int64_t at = n * w.stride + k;
    return {load_once((const packed<int8_t, 8> *)(w.codes + at)),
            load_once((const uint16_t *)w.scales + at / QUANT_BLOCK)};
}

/* shift: of the nibbles in their bytes. */
struct q4_raw { packed<uint8_t, 8> codes; uint16_t scale; uint16_t shift; };

__device__ __forceinline__ q4_raw load_raw(q4_rows w, int64_t n, int64_t k)
{
    int64_t block = (n * w.stride + k) / QUANT_BLOCK;
    int in_block = (int)(k % QUANT_BLOCK);
    return {load_once((const packed<uint8_t, 8> *)(w.codes + block * 16 + in_block % 16)),
            load_once((const uint16_t *)w.scales + block), (uint16_t)(in_block / 16 * 4)};
}

template <class T> __device__ __forceinline__ packed<T, 8> widen(const packed<T, 8> &raw) { return raw; }

template <class T> __device__ __forceinline__ packed<T, 8> widen(const q8_raw &raw)
{
    float scale = __half2float(__ushort_as_half(raw.scale));
    packed<T, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.at[i] = from_f32<T>(scale * (float)raw.codes.at[i]);
    return out;
}

template <class T> __device__ __forceinline__ packed<T, 8> widen(const q4_raw &raw)
{
    float scale = __half2float(__ushort_as_half(raw.scale));
    packed<T, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i++)
        out.at[i] = from_f32<T>(scale * (float)((raw.codes.at[i] >> raw.shift & 15) - 8));
    return out;
}

/* Runs the statement with `rows` as one of the above for matrix w. */
#define WITH_ROWS(w, statement)                                                                     \
    do {                                                                                            \
        int64_t stride_ = cuda_row_stride((w).dtype, (w).n_in), codes_ = (w).n_out * stride_;       \
        uint8_t *data_ = (uint8_t *)(w).data;                                                       \
        switch ((w).dtype) {                                                                        \
        case DTYPE_F32: { plain_rows<float> rows = {(float *)data_, stride_}; statement; break; }   \
        case DTYPE_BF16: { plain_rows<bf16> rows = {(bf16 *)data_, stride_}; statement; break; }    \
        case DTYPE_F16: { plain_rows<f16> rows = {(f16 *)data_, stride_}; statement; break; }       \
        case DTYPE_Q8_0: {                                                                          \
            q8_rows rows = {(int8_t *)data_, (f16 *)(data_ + codes_), stride_};                     \
            statement;                                                                              \
            break;                                                                                  \
        }                                                                                           \
        case DTYPE_Q4_0: {                                                                          \
            q4_rows rows = {data_, (f16 *)(data_ + codes_ / 2), stride_};                           \
            statement;                                                                              \
            break;                                                                                  \
        }                                                                                           \
        default: ASSERT(!"a type that weights have");                                               \
        }                                                                                           \
    } while (0)
