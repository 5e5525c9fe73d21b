/* The kernels in plain C: what every x86-64 runs, and what the vectorised ones are tested against.
 * They keep to the same layouts and orders of summation, and take libm's functions. */
#include <math.h>
#include <string.h>

#include "cpu/softmax_ref.h"

enum { P = KV_PAGE_TOKENS };

static void matmul_f32(const struct matmul_tile *t)
{
    const float *x = t->x, *w = t->w;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, w += PANEL, x += t->rows)
        for (int32_t r = 0; r < t->rows; r++)
            for (int32_t n = 0; n < PANEL; n++) t->out[r * PANEL + n] += x[r] * w[n];
}

static void matmul_bf16(const struct matmul_tile *t)
{
    const float *x = t->x;
    const uint16_t *w = t->w;
    memset(t->out, 0, (size_t)t->rows * PANEL * 4);
    for (int64_t s = 0; s < t->steps; s++, w += 2 * PANEL, x += 2 * t->rows) {
        float even[PANEL], odd[PANEL];
        for (int32_t n = 0; n < PANEL; n++) {
            even[n] = bf16_to_f32(w[2 * n]);
            odd[n] = bf16_to_f32(w[2 * n + 1]);
        }
        for (int32_t r = 0; r < t->rows; r++)
            for (int32_t n = 0; n < PANEL; n++) {
                t->out[r * PANEL + n] += x[r] * even[n];
                t->out[r * PANEL + n] += x[t->rows + r] * odd[n];
            }
    }
}

static void store(void *out, enum dtype dtype, int64_t i, float y)
{
    if (dtype == DTYPE_F32)
        ((float *)out)[i] = y;
    else
        ((uint16_t *)out)[i] = f32_to_bf16(y);
}

static float load(const void *x, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

/* y as a tensor of the type would hold it. */
static float round_to(enum dtype dtype, float y)
{
    return dtype == DTYPE_F32 ? y : bf16_to_f32(f32_to_bf16(y));
}

static float gelu_tanh(float x)
{
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

static float gelu_exact(float x) { return 0.5f * x * erfcf(-0.7071067812f * x); }

static void finish(void *out, enum dtype dtype, const float *y, const float *bias,
                   enum epilogue epilogue, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float v = bias ? y[i] + bias[i] : y[i];
        if (epilogue == EPILOGUE_GELU_TANH) v = gelu_tanh(round_to(dtype, v));
        if (epilogue == EPILOGUE_GELU_EXACT) v = gelu_exact(round_to(dtype, v));
        if (epilogue == EPILOGUE_ADD) v += ((float *)out)[i];
        store(out, dtype, i, v);
    }
}

static void finish_tile(const struct tile_output *t)
{
    int64_t row_bytes = t->out_stride * (t->dtype == DTYPE_BF16 ? 2 : 4);
    for (int64_t r = 0; r < t->rows; r++)
        finish((uint8_t *)t->out + r * row_bytes, t->dtype, t->y + r * PANEL, t->bias, t->epilogue,
               t->n);
}

static void attend_f32(const struct attend_block *b)
{
    int64_t n = b->head_dim, value_stride = b->acc_stride;
    for (int32_t r = 0; r < b->n_rows; r++) {
        const float *q = (const float *)b->q + r * b->q_stride;
        float scores[KEY_BLOCK] = {0}, *acc = b->acc + r * b->acc_stride;
        for (int32_t j = 0; j < b->limit[r]; j++) {
            const float *key = (const float *)b->pages[j / P] + j % P;
            for (int64_t k = 0; k < n; k++) scores[j] += q[k] * key[k * P];
        }
        softmax_row(b, r, scores);
        for (int32_t j = 0; j < b->limit[r]; j++) {
            const float *value = (const float *)b->pages[j / P] + P * n + j % P * value_stride;
            for (int64_t k = 0; k < n; k++) acc[k] += scores[j] * value[k];
        }
    }
}

static void attend_bf16(const struct attend_block *b)
{
    int64_t n = b->head_dim, value_stride = 2 * b->acc_stride;
    for (int32_t r = 0; r < b->n_rows; r++) {
        const float *q = (const float *)b->q + r * b->q_stride;
        float scores[KEY_BLOCK] = {0}, *acc = b->acc + r * b->acc_stride;
        for (int32_t j = 0; j < b->limit[r]; j++) {
            const uint16_t *key = (const uint16_t *)b->pages[j / P] + j % P * 2;
            for (int64_t k = 0; k < n; k++)
                scores[j] += q[k] * bf16_to_f32(key[k / 2 * P * 2 + k % 2]);
        }
        softmax_row(b, r, scores);
        for (int32_t j = 0; j < b->limit[r]; j++) {
            const uint16_t *value =
                (const uint16_t *)b->pages[j / P] + P * n + j % P / 2 * value_stride + j % 2;
            for (int64_t k = 0; k < n; k++) acc[k] += scores[j] * bf16_to_f32(value[k * 2]);
        }
    }
}

static void attend_join(float *max, float *sum, float *acc, float block_max, float block_sum,
                        const float *block_acc, int64_t n)
{
    float highest = *max > block_max ? *max : block_max;
    float a = expf(*max - highest), b = expf(block_max - highest);
    for (int64_t i = 0; i < n; i++) acc[i] = acc[i] * a + block_acc[i] * b;
    *sum = *sum * a + block_sum * b;
    *max = highest;
}

static void scale_row(void *out, enum dtype dtype, const float *x, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) store(out, dtype, i, x[i] * scale);
}

/* out may be x. */
static void norm_row(void *out, enum dtype dtype, const float *x, int64_t n,
                     const struct norm *norm)
{
    double mean = 0, squares = 0;
    if (!norm->rms) {
        for (int64_t i = 0; i < n; i++) mean += x[i];
        mean /= (double)n;
    }
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    float scale = (float)(1 / sqrt(squares / (double)n + norm->eps));
    for (int64_t i = 0; i < n; i++) {
        float y = (x[i] - (float)mean) * scale * norm->weight[i];
        store(out, dtype, i, norm->bias ? y + norm->bias[i] : y);
    }
}

static void swiglu_row(void *out, enum dtype dtype, const void *gate, const void *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float x = load(gate, dtype, i);
        store(out, dtype, i, x / (1 + expf(-x)) * load(up, dtype, i));
    }
}

static void gelu_row(void *out, enum dtype dtype, const void *x, bool exact, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float v = load(x, dtype, i);
        store(out, dtype, i, exact ? gelu_exact(v) : gelu_tanh(v));
    }
}

static void rotate(float *x, const float *cos_sin, int64_t half)
{
    for (int64_t i = 0; i < half; i++) {
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], a = x[i], b = x[i + half];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

static void to_bf16(uint16_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = f32_to_bf16(x[i]);
}

/* NaN and infinities out of the way. */
static float clean(float x) { return isnan(x) ? -INFINITY : x == INFINITY ? 3.402823466e38f : x; }

static float row_max(const float *x, int64_t n)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (clean(x[i]) > max) max = clean(x[i]);
    return max;
}

static float row_exp(float *out, const float *x, int64_t n, float shift, float scale)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float y = expf((clean(x[i]) - shift) * scale);
        if (out) out[i] = y;
        sum += y;
    }
    return (float)sum;
}

static int64_t find_above(const float *x, int64_t i, int64_t n, float t)
{
    while (i < n && !(x[i] > t)) i++;
    return i;
}

static int64_t count_above(const float *x, int64_t n, float t)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) count += x[i] > t;
    return count;
}

static int64_t list_above(int32_t *out, const float *x, int64_t n, float t)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > t) out[count++] = (int32_t)i;
    return count;
}

static float sum_above(const float *x, int64_t n, float t)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i] > t) sum += x[i];
    return (float)sum;
}

void cpu_kernels_reference(struct cpu_kernels *k)
{
    *k = (struct cpu_kernels){
        .name = "plain C",
        .tile_rows = 4,
        .bf16_dot = false,
        .attend_pairs = false,
        .matmul_f32 = matmul_f32,
        .matmul_bf16 = matmul_bf16,
        .finish = finish,
        .finish_tile = finish_tile,
        .attend_f32 = attend_f32,
        .attend_bf16 = attend_bf16,
        .attend_join = attend_join,
        .scale_row = scale_row,
        .norm_row = norm_row,
        .swiglu_row = swiglu_row,
        .gelu_row = gelu_row,
        .rotate = rotate,
        .to_bf16 = to_bf16,
        .row_max = row_max,
        .row_exp = row_exp,
        .find_above = find_above,
        .count_above = count_above,
        .list_above = list_above,
        .sum_above = sum_above,
    };
    cpu_train_kernels_reference(k);
}
