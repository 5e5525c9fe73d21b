/* Scales of kquant.h's types by vectors of LANES outputs, for whichever instruction set includes
 * this: after its simd_*.h, and after load_bytes (a byte for each lane), load_f16 (LANES halves),
 * unsigned_floats and signed_floats (of those bytes). */

/* What a step's codes of LANES outputs are to be multiplied by. */
struct scales { vf scale[2], minimum; };

static inline __m128i and_bytes(__m128i a, char mask)
{
    return _mm_and_si128(a, _mm_set1_epi8(mask));
}
/* The upper two bits of each byte as bits 4 and 5. */
static inline __m128i top_bits(__m128i a) { return and_bytes(_mm_srli_epi16(a, 2), 48); }

/* Scales and minima of step g of eight: see kquant_scale. v: which vector of the panel. */
static inline __attribute__((always_inline)) struct scales
super_scales(const uint8_t *head, int64_t g, const int v)
{
    const uint8_t *bytes = head + 4 * PANEL + g * PANEL + v * LANES;
    __m128i scale, minimum;
    if (g < 4) {
        scale = and_bytes(load_bytes(bytes), 63);
        minimum = and_bytes(load_bytes(bytes + 4 * PANEL), 63);
    } else {
        __m128i low = load_bytes(bytes + 4 * PANEL);
        scale = _mm_or_si128(and_bytes(low, 15), top_bits(load_bytes(bytes - 4 * PANEL)));
        minimum = _mm_or_si128(and_bytes(_mm_srli_epi16(low, 4), 15), top_bits(load_bytes(bytes)));
    }
    vf d = load_f16(head + v * LANES * 2), dmin = load_f16(head + 2 * PANEL + v * LANES * 2);
    return (struct scales){
        .scale = {vf_mul(d, unsigned_floats(scale))},
        .minimum = vf_sub(vf_set(-0.0f), vf_mul(dmin, unsigned_floats(minimum))),
    };
}

static inline __attribute__((always_inline)) struct scales
load_scales(const struct kquant q, const uint8_t *head, int64_t step, const int v)
{
    int64_t g = step % KQUANT_SUPER;
    vf d = load_f16(head + v * LANES * 2);
    if (!q.super)
        return (struct scales){.scale = {d},
                               .minimum = q.minimum ? load_f16(head + 2 * PANEL + v * LANES * 2)
                                                    : vf_set(0)};
    if (q.n_scales == 1) return super_scales(head, g, v);
    const uint8_t *bytes = head + 2 * PANEL + 2 * g * PANEL + v * LANES;
    return (struct scales){.scale = {vf_mul(d, signed_floats(load_bytes(bytes))),
                                     vf_mul(d, signed_floats(load_bytes(bytes + PANEL)))}};
}
