/* Attention over a q8_0 cache in plain C, and the codes that it is made of: see kernels.h. */
#include <math.h>
#include <string.h>

#include "cpu/softmax_ref.h"

enum { P = KV_PAGE_TOKENS };

static void quantize_kv(int16_t *codes, float *scale, const float *x, int64_t n, int32_t most)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(x[i]));
    bool some = largest >= KV_Q8_LEAST;
    float inverse = some ? (float)most / largest : 0;
    *scale = some ? largest / (float)most : 0;
    for (int64_t i = 0; i < n; i++) {
        float code = nearbyintf(x[i] * inverse);
        codes[i] = (int16_t)(fabsf(code) <= (float)most ? code : 0);
    }
}

/* Scores of one row, with every scale but the softmax's. */
static void score_row(const struct attend_block *b, int32_t r, float *scores)
{
    const int16_t *q = (const int16_t *)((const uint32_t *)b->q + r * b->q_stride);
    float q_scale;
    memcpy(&q_scale, q + b->head_dim, sizeof q_scale);
    for (int32_t j = 0; j < b->limit[r]; j++) {
        const int8_t *keys = (const int8_t *)b->pages[j / P];
        const float *scales = kv_q8_key_scales(b->pages[j / P], b->head_dim) + j % P;
        scores[j] = 0;
        for (int32_t k = 0; k < b->head_dim;) {
            int32_t sum = 0, block = k / KV_Q8_BLOCK;
            for (; k < b->head_dim && k / KV_Q8_BLOCK == block; k++)
                sum += q[k] * keys[(k / 4 * P + j % P) * 4 + kv_q8_place(k)];
            scores[j] = fmaf((float)sum * scales[block * P], q_scale, scores[j]);
        }
    }
}

/* p becomes codes of p times the values' scales; returns what a code of 1 stands for. */
static float weigh_row(const struct attend_block *b, int32_t r, const float *p, int16_t *codes)
{
    float weights[KEY_BLOCK], scale;
    for (int32_t j = 0; j < b->limit[r]; j++)
        weights[j] = p[j] * kv_q8_value_scales(b->pages[j / P], b->head_dim)[j % P];
    quantize_kv(codes, &scale, weights, b->limit[r], KV_Q8_LEFT_MOST);
    return scale;
}

static void attend_q8(const struct attend_block *b)
{
    int64_t n = b->head_dim, padded = b->acc_stride;
    for (int32_t r = 0; r < b->n_rows; r++) {
        float scores[KEY_BLOCK], *acc = b->acc + r * b->acc_stride;
        int16_t codes[KEY_BLOCK];
        score_row(b, r, scores);
        softmax_row(b, r, scores);
        float scale = weigh_row(b, r, scores, codes);
        for (int64_t k = 0; k < n; k++) {
            int32_t total = 0;
            for (int32_t j = 0; j < b->limit[r]; j++) {
                const int8_t *values = (const int8_t *)b->pages[j / P] + P * n;
                total += codes[j] * values[(j % P / 4 * padded + k) * 4 + kv_q8_place(j)];
            }
            acc[k] = (float)total * scale;
        }
    }
}

void cpu_attend_q8_reference(struct cpu_kernels *k)
{
    k->attend_q8 = attend_q8;
    k->quantize_kv = quantize_kv;
}
