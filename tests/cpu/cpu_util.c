#include "tests/cpu/cpu_util.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"

void *device_bytes(int64_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, DEVICE_ALIGN, bytes > 0 ? (size_t)bytes : 1), 0);
    memset(p, 0xA5, bytes > 0 ? (size_t)bytes : 1);
    return p;
}

void cpu_fixture_open(struct cpu_fixture *f, enum cpu_isa isa, int32_t n_threads,
                  const struct workspace_shape *shape)
{
    struct cpu_options o = {.n_threads = n_threads, .isa = isa};
    struct error err;
    if (!cpu_device_open(&o, &f->d, &err)) fail_msg("%s", err.text);
    int64_t bytes = f->d->ops->workspace_bytes(f->d, shape);
    f->workspace = device_bytes(bytes);
    f->d->ops->set_workspace(f->d, f->workspace, bytes);
}

void cpu_fixture_close(struct cpu_fixture *f)
{
    f->d->ops->close(f->d);
    free(f->workspace);
}

uint32_t cpu_rng_next(struct cpu_rng *r)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->state >> 32);
}

int32_t cpu_rng_below(struct cpu_rng *r, int32_t n)
{
    return (int32_t)((uint64_t)cpu_rng_next(r) * (uint64_t)n >> 32);
}

float cpu_rng_float(struct cpu_rng *r) { return (float)(int32_t)cpu_rng_next(r) * 0x1p-31f; }

void cpu_rng_fill(struct cpu_rng *r, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = cpu_rng_float(r);
}

struct tensor tensor_blank(enum dtype dtype, int64_t rows, int64_t cols)
{
    int64_t bytes = rows * cols * (int64_t)element_bytes(dtype);
    return (struct tensor){device_bytes(bytes), dtype, rows, cols};
}

struct tensor tensor_from(enum dtype dtype, int64_t rows, int64_t cols, const float *values)
{
    struct tensor t = tensor_blank(dtype, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        if (dtype == DTYPE_F32)
            ((float *)t.data)[i] = values[i];
        else
            ((uint16_t *)t.data)[i] = f32_to_bf16(values[i]);
    }
    return t;
}

float tensor_at(struct tensor t, int64_t row, int64_t col)
{
    int64_t i = row * t.cols + col;
    return t.dtype == DTYPE_F32 ? ((float *)t.data)[i] : bf16_to_f32(((uint16_t *)t.data)[i]);
}

float rounded(enum dtype dtype, float x)
{
    return dtype == DTYPE_F32 ? x : bf16_to_f32(f32_to_bf16(x));
}

void assert_near(double got, double want, double tolerance, const char *what, int64_t row,
                 int64_t col)
{
    double allowed = tolerance * fmax(1, fabs(want));
    if (!(fabs(got - want) <= allowed))
        fail_msg("%s [%lld, %lld]: got %.9g, want %.9g (allowed %.3g)", what, (long long)row,
                 (long long)col, got, want, allowed);
}

void sample_rows(struct device *d, struct tensor logits, const struct sample_row *rows,
                 struct sample_out *out)
{
    int64_t n = logits.rows, most = 0;
    for (int64_t i = 0; i < n; i++) most += sample_max_words(logits.cols, rows[i].n_history);
    size_t request_bytes = (size_t)n * sizeof(struct sample_request);
    size_t out_bytes = (size_t)n * sizeof *out;
    int32_t *entry_of = calloc((size_t)logits.cols, sizeof *entry_of);
    int32_t *words = malloc((size_t)most * sizeof *words);
    struct sample_request *requests = malloc(request_bytes);
    int32_t n_words = 0;
    for (int64_t i = 0; i < n; i++)
        n_words += sample_request_write(&rows[i], logits.cols, entry_of, words, n_words,
                                        &requests[i]);
    for (int64_t i = 0; i < logits.cols; i++) assert_int_equal(entry_of[i], 0);
    size_t word_bytes = (size_t)n_words * sizeof *words;
    size_t bytes = request_bytes + out_bytes + word_bytes;
    struct error err;
    uint8_t *at = d->ops->alloc(d, bytes, &err), *outs = at + request_bytes;
    uint8_t *lists = outs + out_bytes;
    assert_non_null(at);
    d->ops->upload(d, at, requests, request_bytes);
    if (word_bytes > 0) d->ops->upload(d, lists, words, word_bytes);
    d->ops->sample(d, logits, (struct sample_request *)at, (int32_t *)lists,
                   (struct sample_out *)outs);
    d->ops->download(d, out, outs, out_bytes);
    if (!d->ops->sync(d, &err)) fail_msg("%s", err.text);
    d->ops->free(d, at, bytes);
    free(requests);
    free(words);
    free(entry_of);
}
