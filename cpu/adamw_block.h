/* AdamW on one block of weights, in whatever format each of their parts has (cpu/cpu_optimizer.c
 * lists them): brought to f32 in a core's first-level cache, stepped, and put back. Plain C, which the
 * compiler turns into the vectors of the file that includes this: no branch in a loop, no call, and
 * operations that IEEE 754 rounds one way only, so what is stored and drawn is the same on every
 * instruction set.
 *
 * Rounding of moments to bf16 and 8 bits is stochastic, by a hash of element and step: rounding to nearest
 * would hold a slowly decaying average in place for ever. The hash depends on nothing else, so resuming
 * gives the same bits.
 *
 * Who includes it has defined adamw_row(w, m, v, g, constants, n): one step of n elements in f32. */
#pragma once

#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/kernels.h"
#include "model/device_train.h"

union word { float f; uint32_t u; };

/* ---- randomness ---- */

/* Bits for element at + i in this step, at a multiple of the block's size; `stream` keeps m and v
 * apart. The upper bits are the best. */
struct noise { uint32_t at, seed; };

static struct noise noise_of(int64_t at, uint32_t step, uint32_t stream)
{
    uint32_t high = (uint32_t)(at >> 32) * 0x85EBCA77u;
    return (struct noise){(uint32_t)at, high ^ step * 0xC2B2AE3Du ^ stream * 0x27D4EB2Fu};
}

static inline uint32_t noise_bits(struct noise n, int32_t i)
{
    uint32_t h = (n.at + (uint32_t)i) * 0x9E3779B1u ^ n.seed;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    return h ^ h >> 15;
}

/* 24 uniform bits, 0 to 1. */
static inline float noise_fraction(struct noise n, int32_t i)
{
    return (float)(int32_t)(noise_bits(n, i) >> 8) * 0x1p-24f;
}

/* ---- moments ---- */

static void load_bf16(float *restrict out, const uint16_t *restrict in, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = bf16_to_f32(in[i]);
}

static void store_bf16(uint16_t *restrict out, const float *restrict x, int32_t n, struct noise noise)
{
    for (int32_t i = 0; i < n; i++) {
        union word v = {.f = x[i]};
        out[i] = (uint16_t)((v.u + (noise_bits(noise, i) >> 16)) >> 16);
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

/* Between the codes below and above, with the odds that keep the mean. */
static void store_q8_m(int8_t *restrict q, const float *restrict x, float scale, int32_t n, struct noise noise)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int32_t i = 0; i < n; i++) {
        float y = fabsf(x[i]) * inverse;
        int32_t code = (int32_t)(sqrtf(y) * 127);
        code = code > 126 ? 126 : code;
        float low = (float)code, next = low + 1, a = low * low, b = next * next;
        float p = (y * (127 * 127) - a) / (b - a);
        code += noise_fraction(noise, i) < p ? 1 : 0;
        q[i] = (int8_t)(x[i] < 0 ? -code : code);
    }
}

static inline float fourth(float u) { return u * u * (u * u); }

static void load_q8_v(float *restrict out, const uint8_t *restrict q, float scale, int32_t n)
{
    for (int32_t i = 0; i < n; i++) out[i] = scale * fourth((float)q[i] * (1.0f / 255));
}

static void store_q8_v(uint8_t *restrict q, const float *restrict x, float scale, int32_t n, struct noise noise)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int32_t i = 0; i < n; i++) {
        float y = x[i] * inverse;
        int32_t code = (int32_t)(sqrtf(sqrtf(y)) * 255), least = x[i] > 0 ? 1 : 0;
        code = code > 254 ? 254 : code;
        float low = (float)code;
        float a = fourth(low * (1.0f / 255)), b = fourth((low + 1) * (1.0f / 255));
        float p = (y - a) / (b - a);
        code += noise_fraction(noise, i) < p ? 1 : 0;
        q[i] = (uint8_t)(code > least ? code : least);
    }
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

static void store_moment(const struct adamw_block *b, bool second, const float *x)
{
    uint8_t *data = second ? b->t->v : b->t->m;
    struct noise noise = noise_of(b->at, b->step, second);
    float *scale;
    switch (second ? b->t->v_format : b->t->m_format) {
    case MOMENT_F32: return; /* stepped where it lies */
    case MOMENT_BF16: store_bf16((uint16_t *)data + b->at, x, b->n, noise); return;
    case MOMENT_Q8:
        scale = q8_scale(data, b->n_elements, b->at);
        *scale = largest(x, b->n);
        if (second) store_q8_v(data + b->at, x, *scale, b->n, noise);
        else store_q8_m((int8_t *)data + b->at, x, *scale, b->n, noise);
        return;
    }
}

/* ---- bf16 packed matrices ---- */

/* A row of PANEL elements is one half of a row of pairs. Two rows that share one are taken together, word by
 * word; one alone (the panel's last, where n_in is odd, or half a pair that a block's border cuts) by
 * half-words, since another thread may hold the other half. */
static bool is_pair(int64_t n_in, int64_t at, int64_t end)
{
    int64_t k = at / PANEL % n_in;
    return k % 2 == 0 && k + 1 < n_in && at + 2 * PANEL <= end;
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
    for (int64_t i = 0, step; i < n; i += step) {
        const uint16_t *row = packed_bf16_row(matrix, n_in, at + i);
        step = is_pair(n_in, at + i, at + n) ? 2 * PANEL : PANEL;
        if (step == 2 * PANEL) split_pairs(out + i, (const uint32_t *)row);
        else for (int k = 0; k < PANEL; k++) out[i + k] = bf16_to_f32(row[2 * k]);
    }
}

static void store_rows(void *matrix, int64_t n_in, int64_t at, int64_t n, const uint16_t *halves)
{
    for (int64_t i = 0, step; i < n; i += step) {
        uint16_t *row = packed_bf16_row(matrix, n_in, at + i);
        step = is_pair(n_in, at + i, at + n) ? 2 * PANEL : PANEL;
        if (step == 2 * PANEL) join_pairs((uint32_t *)row, halves + i);
        else for (int k = 0; k < PANEL; k++) row[2 * k] = halves[i + k];
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
static void split_weight(uint16_t *restrict halves, int16_t *restrict rest, const float *restrict w, int32_t n)
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
    if (t->master_format == MASTER_REMAINDER) split_weight(halves, (int16_t *)t->master + b->at, w, b->n);
    else round_weight(halves, w, b->n);
    store_rows(t->weight, t->n_in, b->at, b->n, halves);
}

/* ---- the step ---- */

static void adamw_block(const struct adamw_block *b)
{
    _Alignas(64) float w_room[ADAMW_BLOCK], m_room[ADAMW_BLOCK], v_room[ADAMW_BLOCK];
    _Alignas(64) float g_room[ADAMW_BLOCK];
    const float *g = load_gradient(b, g_room);
    float *w = load_weight(b, w_room);
    float *m = load_moment(b, false, m_room), *v = load_moment(b, true, v_room);
    adamw_row(w, m, v, g, &b->constants, b->n);
    store_moment(b, false, m);
    store_moment(b, true, v);
    store_weight(b, w);
}
