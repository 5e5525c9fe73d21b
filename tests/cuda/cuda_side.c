/* See cuda_side.h. */
#include "tests/cuda/cuda_side.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "tests/ptxsim/ptxsim.h"

/* There when the program is linked with the interpreter. */
#pragma weak ptxsim_set_seed
#pragma weak ptxsim_forget
#pragma weak ptxsim_code

bool on_interpreter(void) { return ptxsim_set_seed != NULL; }

void schedule_seed(uint32_t seed)
{
    if (ptxsim_set_seed) ptxsim_set_seed(seed);
}

/* What the side_... functions have made since the last side_clear but one: a failure far away, on a
 * GPU that nobody here has, must say which case it was. */
static struct { char text[512]; size_t length; bool over; } operands;

static void note_operand(const struct side *s, const char *kind, enum dtype dtype, int64_t rows, int64_t cols)
{
    if (operands.over) operands.length = 0, operands.over = false;
    size_t room = sizeof operands.text - operands.length;
    int n = snprintf(operands.text + operands.length, room, " %s%s%s [%lld, %lld]", s->is_cuda ? "" : "cpu's ", kind,
                     dtype_info(dtype)->name, (long long)rows, (long long)cols);
    if (n > 0 && (size_t)n < room) operands.length += (size_t)n;
    operands.text[operands.length] = 0;
}

static void must(bool ok, const struct error *err)
{
    if (!ok) fail_msg("%s; operands:%s", err->text, operands.text);
}

void skip_without_cuda(void)
{
    if (cuda_device_count() == 0) skip();
}

void sides_open(struct side sides[N_SIDES], const struct workspace_shape *shape)
{
    struct error err = {0};
    skip_without_cuda();
    memset(sides, 0, N_SIDES * sizeof *sides);
    struct cpu_options cpu = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    must(cpu_device_open(&cpu, &sides[SIDE_CPU].d, &err), &err);
    must(cuda_device_open(0, &sides[SIDE_CUDA].d, &err), &err);
    sides[SIDE_CUDA].is_cuda = true;
    for (int i = 0; i < N_SIDES; i++) {
        struct device *d = sides[i].d;
        int64_t bytes = d->train->workspace_bytes(d, shape);
        void *p = d->ops->alloc(d, (size_t)bytes, &err);
        must(p != NULL, &err);
        if (sides[i].is_cuda && ptxsim_forget) ptxsim_forget(p, (size_t)bytes);
        d->ops->set_workspace(d, p, bytes);
        sides[i].blocks[0].p = p;
        sides[i].blocks[0].bytes = (size_t)bytes;
        sides[i].n_blocks = 1;
    }
}

void sides_close(struct side sides[N_SIDES])
{
    for (int i = 0; i < N_SIDES; i++) {
        side_clear(&sides[i]);
        sides[i].d->ops->free(sides[i].d, sides[i].blocks[0].p, sides[i].blocks[0].bytes);
        sides[i].d->ops->close(sides[i].d);
    }
}

void side_clear(struct side *s)
{
    operands.over = true;
    while (s->n_blocks > 1) {
        s->n_blocks--;
        s->d->ops->free(s->d, s->blocks[s->n_blocks].p, s->blocks[s->n_blocks].bytes);
    }
}

void *side_bytes(struct side *s, int64_t bytes, const void *from)
{
    struct error err = {0};
    assert_true(s->n_blocks < MAX_SIDE_BLOCKS);
    size_t n = bytes > 0 ? (size_t)bytes : 1;
    void *p = s->d->ops->alloc(s->d, n, &err);
    must(p != NULL, &err);
    s->blocks[s->n_blocks].p = p;
    s->blocks[s->n_blocks++].bytes = n;
    if (from) s->d->ops->upload(s->d, p, from, n);
    else if (s->is_cuda && ptxsim_forget) ptxsim_forget(p, n);
    side_sync(s);
    return p;
}

int32_t *side_ints(struct side *s, const int32_t *from, int64_t n)
{
    return side_bytes(s, n * (int64_t)sizeof *from, from);
}

float *side_floats(struct side *s, const float *from, int64_t n)
{
    return side_bytes(s, n * (int64_t)sizeof *from, from);
}

struct random_key side_key(struct side *s, uint64_t key)
{
    const uint64_t add = 0xD1B54A32D192ED03u, base = (key << 4) - add;
    return (struct random_key){side_bytes(s, sizeof base, &base), add, key >> 60 << 60};
}

/* On the interpreter the code decides: of sm_80, it runs kernels of bf16 without tensor cores too,
 * for devices that are said to be older. */
static bool lacks_bf16(const struct side *s)
{
    return on_interpreter() ? ptxsim_code() < 80 : !s->d->ops->computes_in(s->d, DTYPE_BF16);
}

bool side_has_tensor_cores(const struct side *cuda)
{
    const char *text = strstr(cuda->d->ops->description(cuda->d), ", sm_");
    assert_non_null(text);
    return atoi(text + strlen(", sm_")) >= 75;
}

enum dtype side_dtype(const struct side *s, enum dtype dtype)
{
    if (!s->is_cuda) return dtype == DTYPE_F16 ? DTYPE_F32 : dtype;
    return dtype == DTYPE_BF16 && lacks_bf16(s) ? DTYPE_F16 : dtype;
}

float rounded_to(enum dtype dtype, float x)
{
    if (dtype == DTYPE_F16) return f16_to_f32(f32_to_f16(x));
    return dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

void side_write(struct side *s, struct tensor t, int64_t first, int64_t n, const float *values)
{
    uint8_t *host = malloc((size_t)dtype_bytes(t.dtype, n) + 1);
    for (int64_t i = 0; i < n; i++) {
        if (t.dtype == DTYPE_F32) ((float *)host)[i] = values[i];
        else ((uint16_t *)host)[i] = t.dtype == DTYPE_BF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
    }
    s->d->ops->upload(s->d, (uint8_t *)t.data + dtype_bytes(t.dtype, first), host, (size_t)dtype_bytes(t.dtype, n));
    side_sync(s);
    free(host);
}

struct tensor side_tensor(struct side *s, enum dtype dtype, int64_t rows, int64_t cols,
                          const float *values)
{
    enum dtype type = side_dtype(s, dtype);
    int64_t n = rows * cols;
    note_operand(s, "", type, rows, cols);
    struct tensor t = {side_bytes(s, dtype_bytes(type, n), NULL), type, rows, cols};
    if (!values) return t;
    float *rounded = malloc((size_t)n * sizeof *rounded + 1);
    for (int64_t i = 0; i < n; i++) rounded[i] = rounded_to(dtype, values[i]);
    side_write(s, t, 0, n, rounded);
    free(rounded);
    return t;
}

struct matrix side_matrix(struct side *s, enum dtype dtype, int64_t n_out, int64_t n_in,
                          const float *values)
{
    enum dtype type = side_dtype(s, dtype);
    struct matrix w = {.dtype = type, .n_out = n_out, .n_in = n_in};
    note_operand(s, "matrix ", type, n_out, n_in);
    w.data = side_bytes(s, s->d->ops->matrix_bytes(s->d, type, n_out, n_in), NULL);
    float *rows = malloc((size_t)(n_out * n_in) * sizeof *rows);
    for (int64_t i = 0; i < n_out * n_in; i++) rows[i] = rounded_to(dtype, values[i]);
    s->d->ops->matrix_write(s->d, &w, 0, n_out, rows);
    side_sync(s);
    free(rows);
    return w;
}

void side_sync(struct side *s)
{
    struct error err = {0};
    must(s->d->ops->sync(s->d, &err), &err);
}

void side_read(struct side *s, struct tensor t, float *out)
{
    int64_t n = t.rows * t.cols, bytes = dtype_bytes(t.dtype, n);
    void *host = malloc((size_t)bytes + 1);
    s->d->ops->download(s->d, host, t.data, (size_t)bytes);
    side_sync(s);
    dtype_to_f32(t.dtype, host, n, out);
    free(host);
}

void side_read_floats(struct side *s, const float *p, int64_t n, float *out)
{
    side_read(s, (struct tensor){(void *)p, DTYPE_F32, 1, n}, out);
}

double tolerance_of(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 0x1p-7 : dtype == DTYPE_F16 ? 0x1p-9 : 2e-5;
}

void assert_all_near(const float *got, const float *want, int64_t n, int64_t cols, double tolerance,
                     const char *what)
{
    enum { SHOWN = 6 };
    int64_t n_bad = 0, first = 0, last = 0;
    for (int64_t i = 0; i < n; i++) {
        double allowed = tolerance * fmax(1, fabs(want[i]));
        if (fabs(got[i] - want[i]) <= allowed) continue;
        if (n_bad == 0) first = i;
        last = i;
        if (n_bad++ < SHOWN)
            print_message("# %s [%lld, %lld]: got %.9g, want %.9g\n", what, (long long)(i / cols),
                          (long long)(i % cols), got[i], want[i]);
    }
    if (n_bad > 0)
        fail_msg("%s: %lld of %lld are wrong, from [%lld, %lld] to [%lld, %lld]; tolerance %.3g; operands:%s", what,
                 (long long)n_bad, (long long)n, (long long)(first / cols), (long long)(first % cols),
                 (long long)(last / cols), (long long)(last % cols), tolerance, operands.text);
}
