/* AdamW over packed weights. A block of 256 elements at a time is brought to f32 in a core's first-level cache, stepped by
 * one kernel, and put back in whatever format each of its parts has:
 *
 *   weight     f32 itself; or bf16 in the pair layout of a packed matrix
 *   master     an f32 copy; or the 16 bits by which the f32 value exceeds its bf16 weight (exact: the weight
 *              is the value rounded half up, so the difference fits an int16)
 *   gradient   f32; or bf16 in the pair layout
 *   moments    f32; bf16; or 8 bits: a block's largest |x| and codes of it. m: sign and 7 bits of
 *              (q / 127)^2; v: (q / 255)^4, never 0 for a v that is not, so that no step explodes
 *
 * Rounding of moments to bf16 and 8 bits is stochastic, by a hash of element and step: rounding to nearest would hold a slowly
 * decaying average in place for ever. The hash depends on nothing else, so resuming gives the same bits. */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "cpu/cpu_train.h"

enum { BLOCK = 256, BLOCK_ROWS = BLOCK / PANEL, BLOCKS_PER_TASK = 64 };

struct adamw_job {
    const struct cpu_kernels *kernels;
    const struct adamw_tensor *t;
    struct adamw_row constants;
    int64_t n; /* elements */
    uint32_t step;
};

static int64_t n_elements(const struct device *d, const struct adamw_tensor *t)
{
    if (!t->packed) return t->n_out * t->n_in;
    return cpu_matrix_bytes(d, DTYPE_F32, t->n_out, t->n_in) / (int64_t)sizeof(float);
}

/* ---- formats ---- */

/* 24 uniform bits for element i in this step; `stream` keeps m and v apart. */
static float noise(int64_t i, uint32_t step, uint32_t stream)
{
    uint32_t h = (uint32_t)i * 0x9E3779B1u ^ (uint32_t)(i >> 32) * 0x85EBCA77u;
    h ^= step * 0xC2B2AE3Du ^ stream * 0x27D4EB2Fu;
    h = (h ^ h >> 15) * 0x2C1B3C6Du;
    h = (h ^ h >> 12) * 0x297A2D39u;
    h ^= h >> 15;
    return (float)(h >> 8) * 0x1p-24f;
}

static void load_bf16(float *out, const uint16_t *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(in[i]);
}

static void store_bf16(uint16_t *out, const float *x, int64_t at, int64_t n, uint32_t step,
                       uint32_t stream)
{
    for (int64_t i = 0; i < n; i++) {
        union { float f; uint32_t u; } v = {.f = x[i]};
        uint32_t bits = v.u + (uint32_t)(noise(at + i, step, stream) * 65536.0f);
        out[i] = (uint16_t)(bits >> 16);
    }
}

/* Codes first, then a scale for each block. */
static int8_t *q8_codes(void *moment) { return moment; }
static float *q8_scale(void *moment, int64_t n, int64_t block)
{
    return (float *)((uint8_t *)moment + round_up(n, BLOCK)) + block;
}

static float largest(const float *x, int64_t n)
{
    float max = 0;
    for (int64_t i = 0; i < n; i++) max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return max;
}

static void load_q8_m(float *out, const int8_t *q, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float u = (float)q[i] * (1.0f / 127);
        out[i] = scale * u * fabsf(u);
    }
}

static void store_q8_m(int8_t *q, const float *x, float scale, int64_t at, int64_t n, uint32_t step)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < n; i++) {
        /* Between the codes below and above, with the odds that keep the mean. */
        float y = fabsf(x[i]) * inverse, low = floorf(sqrtf(y) * 127);
        low = low > 126 ? 126 : low;
        float a = low * low, b = (low + 1) * (low + 1), p = (y * (127 * 127) - a) / (b - a);
        float code = noise(at + i, step, 0) < p ? low + 1 : low;
        q[i] = (int8_t)(x[i] < 0 ? -code : code);
    }
}

static float fourth(float u) { return u * u * (u * u); }

static void load_q8_v(float *out, const int8_t *q, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = scale * fourth((float)(uint8_t)q[i] * (1.0f / 255));
}

static void store_q8_v(int8_t *q, const float *x, float scale, int64_t at, int64_t n, uint32_t step)
{
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < n; i++) {
        float y = x[i] * inverse, low = floorf(sqrtf(sqrtf(y)) * 255);
        low = low > 254 ? 254 : low;
        float a = fourth(low * (1.0f / 255)), b = fourth((low + 1) * (1.0f / 255));
        float code = noise(at + i, step, 1) < (y - a) / (b - a) ? low + 1 : low;
        q[i] = (int8_t)(uint8_t)(code < 1 && x[i] > 0 ? 1 : code);
    }
}

static void load_moment(const struct adamw_job *j, bool second, int64_t at, int64_t n, float *out)
{
    void *data = second ? j->t->v : j->t->m;
    switch (second ? j->t->v_format : j->t->m_format) {
    case MOMENT_F32: memcpy(out, (const float *)data + at, (size_t)n * 4); return;
    case MOMENT_BF16: load_bf16(out, (const uint16_t *)data + at, n); return;
    case MOMENT_Q8:
        (second ? load_q8_v : load_q8_m)(out, q8_codes(data) + at, *q8_scale(data, j->n, at / BLOCK),
                                         n);
        return;
    }
}

static void store_moment(const struct adamw_job *j, bool second, int64_t at, int64_t n,
                         const float *x)
{
    void *data = second ? j->t->v : j->t->m;
    float *scale;
    switch (second ? j->t->v_format : j->t->m_format) {
    case MOMENT_F32: memcpy((float *)data + at, x, (size_t)n * 4); return;
    case MOMENT_BF16: store_bf16((uint16_t *)data + at, x, at, n, j->step, second); return;
    case MOMENT_Q8:
        scale = q8_scale(data, j->n, at / BLOCK);
        *scale = largest(x, n);
        (second ? store_q8_v : store_q8_m)(q8_codes(data) + at, x, *scale, at, n, j->step);
        return;
    }
}

/* Where elements [at, at + PANEL) of a bf16 packed matrix lie: every other half-word of a row of
 * pairs. */
static uint16_t *bf16_row(const void *matrix, int64_t n_in, int64_t at)
{
    int64_t row = at / PANEL, panel = row / n_in, k = row % n_in;
    return (uint16_t *)matrix + ((panel * ceil_div(n_in, 2) + k / 2) * PANEL) * 2 + k % 2;
}

/* The gradients of elements [at, at + n): where they lie, or brought to `room`. */
static const float *load_gradient(const struct adamw_tensor *t, int64_t at, int64_t n, float *room)
{
    if (t->grad_dtype == DTYPE_F32) return (const float *)t->grad + at;
    for (int64_t i = 0; i < n; i += PANEL) {
        const uint16_t *row = bf16_row(t->grad, t->n_in, at + i);
        for (int64_t k = 0; k < PANEL; k++) room[i + k] = bf16_to_f32(row[2 * k]);
    }
    return room;
}

/* The f32 value of the weights. */
static void load_weight(const struct adamw_tensor *t, int64_t at, int64_t n, float *w)
{
    if (t->dtype == DTYPE_F32) {
        memcpy(w, (const float *)t->weight + at, (size_t)n * 4);
        return;
    }
    if (t->master_format == MASTER_F32) {
        memcpy(w, (const float *)t->master + at, (size_t)n * 4);
        return;
    }
    const int16_t *rest = t->master_format == MASTER_REMAINDER ? (const int16_t *)t->master + at : NULL;
    for (int64_t i = 0; i < n; i += PANEL) {
        const uint16_t *row = bf16_row(t->weight, t->n_in, at + i);
        for (int64_t k = 0; k < PANEL; k++) {
            union { uint32_t u; float f; } v = {.u = (uint32_t)row[2 * k] << 16};
            if (rest) v.u += (uint32_t)(int32_t)rest[i + k];
            w[i + k] = v.f;
        }
    }
}

static void store_weight(const struct adamw_tensor *t, int64_t at, int64_t n, const float *w)
{
    if (t->dtype == DTYPE_F32) {
        memcpy((float *)t->weight + at, w, (size_t)n * 4);
        return;
    }
    if (t->master_format == MASTER_F32) memcpy((float *)t->master + at, w, (size_t)n * 4);
    int16_t *rest = t->master_format == MASTER_REMAINDER ? (int16_t *)t->master + at : NULL;
    for (int64_t i = 0; i < n; i += PANEL) {
        uint16_t *row = bf16_row(t->weight, t->n_in, at + i);
        for (int64_t k = 0; k < PANEL; k++) {
            union { float f; uint32_t u; } v = {.f = w[i + k]};
            if (!rest) {
                row[2 * k] = f32_to_bf16(w[i + k]);
                continue;
            }
            uint16_t high = (uint16_t)((v.u + 0x8000) >> 16);
            row[2 * k] = high;
            rest[i + k] = (int16_t)(v.u - ((uint32_t)high << 16));
        }
    }
}

/* ---- the step ---- */

static void step_block(const struct adamw_job *j, int64_t at)
{
    int64_t n = min_i64(BLOCK, j->n - at);
    float w[BLOCK], m[BLOCK], v[BLOCK], room[BLOCK];
    const float *g = load_gradient(j->t, at, n, room);
    load_weight(j->t, at, n, w);
    load_moment(j, false, at, n, m);
    load_moment(j, true, at, n, v);
    j->kernels->adamw_row(w, m, v, g, &j->constants, n);
    store_moment(j, false, at, n, m);
    store_moment(j, true, at, n, v);
    store_weight(j->t, at, n, w);
}

static void step_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct adamw_job *j = ctx;
    for (int64_t b = begin; b < end; b++) step_block(j, b * BLOCK);
}

void cpu_adamw(struct device *d, const struct adamw_tensor *t, const struct adamw_step *s)
{
    struct cpu_device *c = cpu_of(d);
    ASSERT(s->step >= 1);
    ASSERT((t->dtype == DTYPE_F32 && t->grad_dtype == DTYPE_F32) || t->packed);
    double c1 = 1 - pow(s->beta1, (double)s->step), c2 = 1 - pow(s->beta2, (double)s->step);
    struct adamw_job job = {
        .kernels = &c->kernels,
        .t = t,
        .n = n_elements(d, t),
        .step = (uint32_t)s->step,
        .constants = {
            .grad_scale = s->grad_scale, .beta1 = s->beta1, .beta2 = s->beta2, .eps = s->eps,
            .keep = 1 - s->lr * t->weight_decay,
            .rate = (float)(s->lr / c1),
            .v_correction = (float)(1 / sqrt(c2)),
        },
    };
    pool_for(c->pool, ceil_div(job.n, BLOCK), BLOCKS_PER_TASK, step_blocks, &job);
}

struct master_job { const struct adamw_tensor *t; int64_t n; };

static void master_blocks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct master_job *j = ctx;
    struct adamw_tensor bare = *j->t;
    bare.master_format = MASTER_NONE;
    for (int64_t b = begin; b < end; b++) {
        int64_t at = b * BLOCK;
        load_weight(&bare, at, min_i64(BLOCK, j->n - at), (float *)j->t->master + at);
    }
}

void cpu_master_init(struct device *d, const struct adamw_tensor *t)
{
    struct master_job job = {t, n_elements(d, t)};
    if (t->master_format == MASTER_REMAINDER) memset(t->master, 0, (size_t)job.n * 2);
    if (t->master_format != MASTER_F32) return;
    pool_for(cpu_of(d)->pool, ceil_div(job.n, BLOCK), BLOCKS_PER_TASK, master_blocks, &job);
}

int64_t cpu_moment_bytes(const struct device *d, enum moment_format format, int64_t n)
{
    switch (format) {
    case MOMENT_F32: return n * 4;
    case MOMENT_BF16: return n * 2;
    case MOMENT_Q8: return round_up(n, BLOCK) + ceil_div(n, BLOCK) * (int64_t)sizeof(float);
    }
    ASSERT(!"moment_format");
    return 0;
}

/* ---- the norm ---- */

enum { SQUARES_TASK = 1 << 16, SQUARES_MAX_TASKS = 1 << 16, SQUARES_ROOM = 4096 };

struct squares_job {
    const struct cpu_kernels *kernels;
    const void *x;
    enum dtype dtype;
    int64_t n, task;
    double *sums; /* of each task */
};

static double sum_task(const struct squares_job *j, int64_t begin, int64_t end)
{
    float room[SQUARES_ROOM];
    double sum = 0;
    if (j->dtype == DTYPE_F32)
        return j->kernels->sum_squares((const float *)j->x + begin, end - begin);
    for (int64_t i = begin; i < end; i += SQUARES_ROOM) {
        int64_t n = min_i64(SQUARES_ROOM, end - i);
        load_bf16(room, (const uint16_t *)j->x + i, n);
        sum += j->kernels->sum_squares(room, n);
    }
    return sum;
}

static void sum_tasks(void *ctx, int64_t begin, int64_t end, int32_t thread)
{
    const struct squares_job *j = ctx;
    for (int64_t i = begin; i < end; i++)
        j->sums[i] = sum_task(j, i * j->task, min_i64((i + 1) * j->task, j->n));
}

/* Parts of a size fixed by n, added in order. */
double cpu_sum_squares(struct device *d, const void *x, enum dtype dtype, int64_t n)
{
    struct cpu_device *c = cpu_of(d);
    int64_t room = min_i64(SQUARES_MAX_TASKS, c->workspace_bytes / (int64_t)sizeof(double));
    ASSERT(room > 0);
    struct squares_job job = {&c->kernels, x, dtype, n, SQUARES_TASK, (double *)c->workspace};
    while (ceil_div(n, job.task) > room) job.task *= 2;
    int64_t n_tasks = ceil_div(n, job.task);
    pool_for(c->pool, n_tasks, 1, sum_tasks, &job);
    double sum = 0;
    for (int64_t i = 0; i < n_tasks; i++) sum += job.sums[i];
    return sum;
}
