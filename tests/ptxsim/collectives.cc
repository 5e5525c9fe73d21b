// What lanes of a warp do together: shuffles, votes, warp barriers, products of small matrices.
#include "tests/ptxsim/lanes.h"

namespace ptxsim {

// src: value, b, c, members. c: bits 0-4 the clamp, bits 8-12 the mask that cuts the warp into
// segments.
void run_shuffle(warp &w, const instruction &i, uint32_t lanes)
{
    const uint32_t *a = lanes_of<uint32_t>(w, i.src[0]);
    uint32_t out[LANES], in_range = 0;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        int b = (int)(bits_of(w, i.src[1], l) & 31), c = (int)bits_of(w, i.src[2], l);
        int segment = c >> 8 & 31, clamp = c & 31;
        int most = (l & segment) | (clamp & ~segment), least = l & segment, from;
        bool inside;
        switch (i.mode) {
        case SHUFFLE_UP: from = l - b; inside = from >= most; break;
        case SHUFFLE_DOWN: from = l + b; inside = from <= most; break;
        case SHUFFLE_XOR: from = l ^ b; inside = from <= most; break;
        default: from = least | (b & ~segment); inside = from <= most;
        }
        if (!inside) from = l;
        if (!(lanes >> from & 1))
            fail_at(w, l, "MASK: a shuffle from lane %d, which does not take part", from);
        out[l] = a[from];
        in_range |= (uint32_t)inside << l;
    }
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        set_bits(w, i.dst[0], l, out[l]);
        set_bits(w, i.pair, l, in_range >> l & 1);
    }
}

void run_vote(warp &w, const instruction &i, uint32_t lanes)
{
    const uint32_t *p = lanes_of<uint32_t>(w, i.src[0]);
    uint32_t yes = 0;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1 && (p[l] != 0) != i.source_negated) yes |= 1u << l;
    uint32_t result = i.mode == VOTE_BALLOT ? yes : i.mode == VOTE_ANY ? yes != 0 : yes == lanes;
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, result);
}

// Memory is ordered for the whole warp: so all live lanes have to come.
void run_warp_barrier(warp &w, const instruction &, uint32_t lanes)
{
    if (lanes != w.live)
        fail_at(w, __builtin_ctz(lanes), "a warp barrier of some lanes only is not supported");
    if (++w.warp_barriers > MAX_WARP_BARRIERS)
        fail_at(w, 0, "too many warp barriers between two block barriers");
}

// D [16, 8] = A [16, DEPTH] B [DEPTH, 8] + C, f32 sums. Registers: PTX ISA, "Matrix Fragments for
// mma.m16n8k16", and m16n8k8, which has their first halves. The products are exact; their sum is
// rounded once, which no hardware promises: results agree with it to the rounding of f32 sums.
template <int DEPTH, float VALUE(uint16_t)> static void run_mma(warp &w, const instruction &i, uint32_t)
{
    enum { A = DEPTH / 4, B = DEPTH / 8 }; // registers
    float a[16][DEPTH], b[DEPTH][8], d[16][8];
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, q = l % 4 * 2;
        for (int r = 0; r < A; r++)
            for (int e = 0; e < 2; e++)
                a[g + r % 2 * 8][q + e + r / 2 * 8] =
                    VALUE((uint16_t)(lanes_of<uint32_t>(w, i.src[r])[l] >> 16 * e));
        for (int r = 0; r < B; r++)
            for (int e = 0; e < 2; e++)
                b[q + e + r * 8][g] = VALUE((uint16_t)(lanes_of<uint32_t>(w, i.src[A + r])[l] >> 16 * e));
        for (int e = 0; e < 4; e++)
            d[g + e / 2 * 8][q + e % 2] = value_of<float>(lanes_of<uint32_t>(w, i.src[A + B + e])[l]);
    }
    for (int m = 0; m < 16; m++) {
        double sum[8];
        for (int n = 0; n < 8; n++) sum[n] = d[m][n];
        for (int k = 0; k < DEPTH; k++)
            for (int n = 0; n < 8; n++) sum[n] += (double)a[m][k] * b[k][n];
        for (int n = 0; n < 8; n++) d[m][n] = (float)sum[n];
    }
    for (int l = 0; l < LANES; l++)
        for (int e = 0; e < 4; e++)
            set_bits(w, i.dst[e], l, bits_from(d[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2]));
}

void run_mma_bf16(warp &w, const instruction &i, uint32_t lanes) { run_mma<16, bf16_value>(w, i, lanes); }
void run_mma_f16(warp &w, const instruction &i, uint32_t lanes) { run_mma<16, f16_value>(w, i, lanes); }
void run_mma_f16_k8(warp &w, const instruction &i, uint32_t lanes) { run_mma<8, f16_value>(w, i, lanes); }

} // namespace ptxsim
