/* AdamW on one block of weights, in whatever format each of their parts has (cpu/cpu_optimizer.c
 * lists them): brought to f32 in a core's first-level cache, stepped, and put back. Plain C,
 * which the compiler turns into the vectors of the file that includes this: no branch in a
 * loop, no call, and operations that IEEE 754 rounds one way only, so what is stored and drawn
 * is the same on every instruction set.
 *
 * Rounding of moments to bf16 and 8 bits is stochastic, by a hash of element and step: rounding to
 * nearest would hold a slowly decaying average in place for ever. The hash depends on nothing else,
 * so resuming gives the same bits.
 *
 * Who includes it has defined adamw_row(w, m, v, g, root, constants, n): one step of n elements in
 * f32, which leaves the square roots of v. */
#pragma once

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/kernels.h"
#include "model/device_train.h"

union word { float f; uint32_t u; };

/* ---- randomness ---- */

/* Bits for elements at + i in this step: 16 for the first moment, 16 for the second. */
static void draw_noise(uint32_t *restrict out, int64_t at, uint32_t step, int32_t n)
{
    uint32_t seed = (uint32_t)(at >> 32) * 0x85EBCA77u ^ step * 0xC2B2AE3Du;
    for (int32_t i = 0; i < n; i++) {
        uint32_t h = ((uint32_t)at + (uint32_t)i) * 0x9E3779B1u ^ seed;
        h = (h ^ h >> 15) * 0x2C1B3C6Du;
        h = (h ^ h >> 12) * 0x297A2D39u;
        out[i] = h ^ h >> 15;
    }
}

static inline uint32_t noise_bits(uint32_t noise, bool second)
{
    return second ? noise & 0xFFFF : noise >> 16;
}

/* Between 0 and 1, neither of them: what a code holds exactly stays as it is. */
static inline float noise_fraction(uint32_t noise, bool second)
{
    return ((float)(int32_t)noise_bits(noise, second) + 0.5f) * 0x1p-16f;
}

/* ---- moments ---- */

static void load_bf16(float *restrict out, const uint16_t *restrict in, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = bf16_to_f32(in[i]);
}

static inline __attribute__((always_inline)) void
store_bf16(uint16_t *restrict out, const float *restrict x, int32_t n,
           const uint32_t *restrict noise, bool second)
{
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = x[i]};
        out[i] = (uint16_t)((v.u + noise_bits(noise[i], second)) >> 16);
    }
}

/* The largest |x|, NaN aside. Of magnitudes the bits are in order, and maxima of integers may be
 * taken in any. */
static float largest(const float *x, int32_t n)
{
    int32_t max = 0;
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = x[i]};
        int32_t magnitude = (int32_t)(v.u & 0x7FFFFFFF);
        magnitude = magnitude > 0x7F800000 ? 0 : magnitude;
        max = magnitude > max ? magnitude : max;
    }
    return (union word){.u = (uint32_t)max}.f;
}

static void load_q8_m(float *restrict out, const int8_t *restrict q, float scale, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        float u = (float)q[i] * (1.0f / 127);
        out[i] = scale * u * fabsf(u);
    }
}

/* Between the codes below and above, with the odds that keep the mean: in units of the square of a
 * code's distance, (y - q^2) to ((q + 1)^2 - q^2). */
static void store_q8_m(int8_t *restrict q, int32_t *restrict codes, const float *restrict x,
                       float scale, int32_t n, const uint32_t *restrict noise)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int32_t i = 0; i < n; i++) {
        float y = fabsf(x[i]) * inverse;
        int32_t code = (int32_t)(sqrtf(y) * 127);
        code = code > 126 ? 126 : code;
        float low = (float)code, above = y * (127 * 127) - low * low;
        code += noise_fraction(noise[i], false) * (2 * low + 1) < above ? 1 : 0;
        codes[i] = x[i] < 0 ? -code : code;
    }
    for (int32_t i = 0; i < n; i++) q[i] = (int8_t)codes[i];
}

static inline float fourth(float u) { return u * u * (u * u); }

static void load_q8_v(float *restrict out, const uint8_t *restrict q, float scale, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = scale * fourth((float)q[i] * (1.0f / 255));
}

/* The same with the fourth power. The step has the roots of x:
 * one of them gives the fourth root of y. */
static void store_q8_v(uint8_t *restrict q, int32_t *restrict codes, const float *restrict x,
                       const float *restrict root, float scale, int32_t n,
                       const uint32_t *restrict noise)
{
    float inverse = scale > 0 ? 1 / scale : 0, inverse_root = scale > 0 ? 1 / sqrtf(scale) : 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t code = (int32_t)(sqrtf(root[i] * inverse_root) * 255), least = x[i] > 0 ? 1 : 0;
        code = code > 254 ? 254 : code;
        float low = (float)code, a = fourth(low), b = fourth(low + 1);
        float above = x[i] * inverse * (255.0f * 255 * 255 * 255) - a;
        code += noise_fraction(noise[i], true) * (b - a) < above ? 1 : 0;
        codes[i] = code > least ? code : least;
    }
    for (int32_t i = 0; i < n; i++) q[i] = (uint8_t)codes[i];
}

/* Scales come after the codes of all n elements. */
static float *q8_scale(void *moment, int64_t n, int64_t at)
{
    return (float *)((uint8_t *)moment + round_up(n, ADAMW_BLOCK)) + at / ADAMW_BLOCK;
}

/* Elements [at, at + n) of a moment: where they lie, or brought to `room`. */
static float *load_moment(const struct adamw_block *b, bool second, float *room)
{
    uint8_t *data = second ? b->t->v : b->t->m;
    float scale;
    switch (second ? b->t->v_format : b->t->m_format) {
    case MOMENT_F32: return (float *)data + b->at;
    case MOMENT_BF16: load_bf16(room, (const uint16_t *)data + b->at, b->n); return room;
    case MOMENT_Q8:
        scale = *q8_scale(data, b->n_elements, b->at);
        if (second) load_q8_v(room, data + b->at, scale, b->n);
        else load_q8_m(room, (const int8_t *)data + b->at, scale, b->n);
        return room;
    }
    return room;
}

/* What of a step its stores read: moments, roots of the second one (adamw_row's), noise. */
struct adamw_rooms {
    _Alignas(64) float w[ADAMW_BLOCK], g[ADAMW_BLOCK], m[ADAMW_BLOCK], v[ADAMW_BLOCK];
    _Alignas(64) float root[ADAMW_BLOCK];
    uint32_t noise[ADAMW_BLOCK];
    int32_t codes[ADAMW_BLOCK];
};

static void store_m(const struct adamw_block *b, const float *x, struct adamw_rooms *rooms)
{
    float *scale;
    switch (b->t->m_format) {
    case MOMENT_F32: return; /* stepped where it lies */
    case MOMENT_BF16: store_bf16((uint16_t *)b->t->m + b->at, x, b->n, rooms->noise, false); return;
    case MOMENT_Q8:
        scale = q8_scale(b->t->m, b->n_elements, b->at);
        *scale = largest(x, b->n);
        store_q8_m((int8_t *)b->t->m + b->at, rooms->codes, x, *scale, b->n, rooms->noise);
        return;
    }
}

static void store_v(const struct adamw_block *b, const float *x, struct adamw_rooms *rooms)
{
    float *scale;
    switch (b->t->v_format) {
    case MOMENT_F32: return;
    case MOMENT_BF16: store_bf16((uint16_t *)b->t->v + b->at, x, b->n, rooms->noise, true); return;
    case MOMENT_Q8:
        scale = q8_scale(b->t->v, b->n_elements, b->at);
        *scale = largest(x, b->n);
        store_q8_v((uint8_t *)b->t->v + b->at, rooms->codes, x, rooms->root, *scale, b->n,
                   rooms->noise);
        return;
    }
}

/* ---- bf16 packed matrices ---- */

/* A row of PANEL elements is one half of a row of pairs. Two rows that share one are taken
 * together, word by word; one alone (the panel's last, where n_in is odd, or half a pair that a
 * block's border cuts) by half-words, since another thread may hold the other half. */
struct row_walk {
    const void *matrix;
    int64_t n_in, at, end; /* elements */
    int64_t k;             /* of the panel's rows */
    uint16_t *row;
};

static void walk_to(struct row_walk *w)
{
    w->k = w->at / PANEL % w->n_in;
    w->row = packed_bf16_row(w->matrix, w->n_in, w->at);
}

static struct row_walk walk_begin(const void *matrix, int64_t n_in, int64_t at, int64_t n)
{
    struct row_walk w = {.matrix = matrix, .n_in = n_in, .at = at, .end = at + n};
    walk_to(&w);
    return w;
}

static bool is_pair(const struct row_walk *w)
{
    return w->k % 2 == 0 && w->k + 1 < w->n_in && w->at + 2 * PANEL <= w->end;
}

/* The next pair follows this one, but for the panel's end: divisions,
 * which would take longer than all the rest, are rare. */
static void walk_on(struct row_walk *w, bool pair)
{
    w->at += pair ? 2 * PANEL : PANEL;
    w->k += 2;
    w->row += 2 * PANEL;
    if (!pair || w->k == w->n_in) walk_to(w);
}

static inline void split_pairs(float *restrict out, const uint32_t *restrict words)
{
    for (int k = 0; k < PANEL; k++) {
        union word even = {.u = words[k] << 16}, odd = {.u = words[k] & 0xFFFF0000};
        out[k] = even.f;
        out[PANEL + k] = odd.f;
    }
}

static inline void join_pairs(uint32_t *restrict words, const uint16_t *restrict halves)
{
    for (int k = 0; k < PANEL; k++) words[k] = halves[k] | (uint32_t)halves[PANEL + k] << 16;
}

static void load_rows(float *out, const void *matrix, int64_t n_in, int64_t at, int64_t n)
{
    for (struct row_walk w = walk_begin(matrix, n_in, at, n); w.at < w.end;) {
        bool pair = is_pair(&w);
        float *to = out + (w.at - at);
        if (pair) split_pairs(to, (const uint32_t *)w.row);
        else for (int k = 0; k < PANEL; k++) to[k] = bf16_to_f32(w.row[2 * k]);
        walk_on(&w, pair);
    }
}

static void store_rows(void *matrix, int64_t n_in, int64_t at, int64_t n, const uint16_t *halves)
{
    for (struct row_walk w = walk_begin(matrix, n_in, at, n); w.at < w.end;) {
        bool pair = is_pair(&w);
        const uint16_t *from = halves + (w.at - at);
        if (pair) join_pairs((uint32_t *)w.row, from);
        else for (int k = 0; k < PANEL; k++) w.row[2 * k] = from[k];
        walk_on(&w, pair);
    }
}

/* ---- weights and gradients ---- */

static const float *load_gradient(const struct adamw_block *b, float *room)
{
    if (b->t->grad_dtype == DTYPE_F32) return (const float *)b->t->grad + b->at;
    load_rows(room, b->t->grad, b->t->n_in, b->at, b->n);
    return room;
}

static void add_remainders(float *restrict w, const int16_t *restrict rest, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = w[i]};
        v.u += (uint32_t)(int32_t)rest[i];
        w[i] = v.f;
    }
}

/* The f32 value of the weights. */
static float *load_weight(const struct adamw_block *b, float *room)
{
    const struct adamw_tensor *t = b->t;
    if (t->dtype == DTYPE_F32) return (float *)t->weight + b->at;
    if (t->master_format == MASTER_F32) return (float *)t->master + b->at;
    load_rows(room, t->weight, t->n_in, b->at, b->n);
    if (t->master_format != MASTER_REMAINDER) return room;
    add_remainders(room, (const int16_t *)t->master + b->at, b->n);
    return room;
}

/* To the nearest bf16, half up, and what is left of it: modulo 2^16. */
static void split_weight(uint16_t *restrict halves, int16_t *restrict rest, const float *restrict w,
                         int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = w[i]};
        halves[i] = (uint16_t)((v.u + 0x8000) >> 16);
        rest[i] = (int16_t)v.u;
    }
}

/* To the nearest bf16, ties to even; NaN stays NaN. */
static void round_weight(uint16_t *restrict halves, const float *restrict w, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = w[i]};
        uint32_t nan = (v.u & 0x7FFFFFFF) > 0x7F800000;
        uint32_t rounded = (v.u + 0x7FFF + (v.u >> 16 & 1)) >> 16;
        halves[i] = (uint16_t)(nan ? v.u >> 16 | 0x40 : rounded);
    }
}

static void store_weight(const struct adamw_block *b, const float *w)
{
    const struct adamw_tensor *t = b->t;
    uint16_t halves[ADAMW_BLOCK];
    if (t->dtype == DTYPE_F32) return; /* stepped where it lies; so is an f32 master */
    if (t->master_format == MASTER_REMAINDER)
        split_weight(halves, (int16_t *)t->master + b->at, w, b->n);
    else round_weight(halves, w, b->n);
    store_rows(t->weight, t->n_in, b->at, b->n, halves);
}

/* ---- the step ---- */

static void adamw_block(const struct adamw_block *b)
{
    struct adamw_rooms rooms;
    bool noisy = b->t->m_format != MOMENT_F32 || b->t->v_format != MOMENT_F32;
    const float *g = load_gradient(b, rooms.g);
    float *w = load_weight(b, rooms.w);
    float *m = load_moment(b, false, rooms.m), *v = load_moment(b, true, rooms.v);
    adamw_row(w, m, v, g, rooms.root, &b->constants, b->n);
    if (noisy) draw_noise(rooms.noise, b->at, b->step, b->n);
    store_m(b, m, &rooms);
    store_v(b, v, &rooms);
    store_weight(b, w);
}
