/* Training's row kernels in plain C, sums in double: what the vector ones are tested against. */
#include <math.h>
#include <string.h>

#include "cpu/kernels.h"
#include "model/normal.h"
#include "model/sampler.h"

static float load(const void *x, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *out, enum dtype dtype, int64_t i, double y)
{
    if (dtype == DTYPE_F32)
        ((float *)out)[i] = (float)y;
    else
        ((uint16_t *)out)[i] = f32_to_bf16((float)y);
}

static void norm_backward_row(float *dx, float *stats, const float *dy, const float *x, int64_t n,
                              const struct norm *norm)
{
    double mean = 0, squares = 0, sum = 0, dot = 0;
    if (!norm->rms) {
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= (double)n;
    }
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt(squares / (double)n + norm->eps);
    for (int64_t i = 0; i < n; i++) {
        double g = (double)dy[i] * norm->weight[i];
        sum += g;
        dot += g * (x[i] - mean) * scale;
    }
    double mean_g = norm->rms ? 0 : sum / (double)n, mean_dot = dot / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double g = (double)dy[i] * norm->weight[i];
        dx[i] += (float)(scale * (g - mean_g - (x[i] - mean) * scale * mean_dot));
    }
    stats[0] = (float)mean;
    stats[1] = (float)scale;
}

static void norm_backward_columns(float *dweight, float *dbias, const float *dy, const float *x,
                                  const float *stats, int64_t rows, int64_t stride, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double dw = 0, db = 0;
        for (int64_t r = 0; r < rows; r++) {
            float g = dy[r * stride + i];
            dw += (double)g * (x[r * stride + i] - stats[2 * r]) * stats[2 * r + 1];
            db += g;
        }
        dweight[i] += (float)dw;
        if (dbias) dbias[i] += (float)db;
    }
}

static double gelu_slope(double x, bool exact)
{
    if (exact) {
        double cdf = 0.5 * erfc(-x * 0.70710678118654752);
        return cdf + x * exp(-0.5 * x * x) * 0.39894228040143268;
    }
    double c = 0.79788456080286536, u = c * (x + 0.044715 * x * x * x), t = tanh(u);
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

static void gelu_backward_row(void *dx, enum dtype dtype, const float *dy, const void *pre,
                              bool exact, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        store(dx, dtype, i, dy[i] * gelu_slope(load(pre, dtype, i), exact));
}

static void swiglu_backward_row(void *dgate, void *dup, enum dtype dtype, const float *dy,
                                const void *gate, const void *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double x = load(gate, dtype, i), s = 1 / (1 + exp(-x)), d = dy[i];
        double dg = d * load(up, dtype, i) * s * (1 + x * (1 - s));
        store(dup, dtype, i, d * x * s);
        store(dgate, dtype, i, dg);
    }
}

static void adamw_row(float *w, float *m, float *v, const float *g, float *root,
                      const struct adamw_row *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float x = g[i] * a->grad_scale;
        m[i] = a->beta1 * m[i] + (1 - a->beta1) * x;
        v[i] = a->beta2 * v[i] + (1 - a->beta2) * x * x;
        root[i] = sqrtf(v[i]);
        w[i] = w[i] * a->keep - a->rate * m[i] / (root[i] * a->v_correction + a->eps);
    }
}

static double sum_squares(const void *x, enum dtype dtype, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)load(x, dtype, i) * load(x, dtype, i);
    return sum;
}

static void dropout_row(float *keep, const struct dropout_row *d, int64_t n)
{
    uint32_t threshold = (uint32_t)((double)d->p * 4294967296.0), words[4];
    float scale = 1 / (1 - d->p);
    for (int64_t i = 0; i < n; i++) {
        uint32_t counter[4] = {d->counter[0] + (uint32_t)(i / 4), d->counter[1], d->counter[2],
                               d->counter[3]};
        if (i % 4 == 0) philox4x32(counter, d->key, words);
        keep[i] = words[i % 4] >= threshold ? scale : 0;
    }
}

struct philox_keys { uint32_t key[2]; };

static void philox_keys_init(struct philox_keys *keys, const uint32_t key[2])
{
    memcpy(keys->key, key, sizeof keys->key);
}

static void random_words(uint32_t counter[4], const struct philox_keys *keys, uint32_t words[PANEL])
{
    for (int i = 0; i < PANEL; i += 4, counter[0]++) philox4x32(counter, keys->key, words + i);
}

#include "cpu/adamw_block.h"
#include "cpu/bf16_add.h"

static void softmax_backward_row(float *p, float *ds, const float *z, int64_t n, float shift,
                                 float scale, float delta)
{
    for (int64_t i = 0; i < n; i++) {
        float factor = z ? z[i] : 1, e = expf((p[i] - shift) * scale);
        ds[i] = e * (factor * ds[i] - delta) * scale;
        p[i] = e * factor;
    }
}

void cpu_train_kernels_reference(struct cpu_kernels *k)
{
    k->norm_backward_row = norm_backward_row;
    k->norm_backward_columns = norm_backward_columns;
    k->gelu_backward_row = gelu_backward_row;
    k->swiglu_backward_row = swiglu_backward_row;
    k->softmax_backward_row = softmax_backward_row;
    k->adamw_block = adamw_block;
    k->sum_squares = sum_squares;
    k->dropout_row = dropout_row;
    k->bf16_add = bf16_add;
    k->normal_fill = normal_fill;
}
