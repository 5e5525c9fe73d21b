/* What the tests of cpu/ share: devices at every instruction set that this machine has, with a
 * workspace of exactly the bytes that were planned (so that the address sanitizer sees one
 * byte too far), and repeatable numbers. */
#pragma once

#include "cpu/cpu_internal.h"

struct cpu_fixture {
    struct device *d;
    void *workspace;
};

/* Every instruction set from the reference to the best:
 * for (isa = 0; isa <= cpu_isa_best(); isa++). */
void cpu_fixture_open(struct cpu_fixture *f, enum cpu_isa isa, int32_t n_threads,
                  const struct workspace_shape *shape);
void cpu_fixture_close(struct cpu_fixture *f);

/* Exactly `bytes`, aligned as device memory is, filled with 0xA5 (never a sane number). */
void *device_bytes(int64_t bytes);

/* The device's `sample` of rows as they are on the host, and a wait. */
struct sample_row;
struct sample_out;
void sample_rows(struct device *d, struct tensor logits, const struct sample_row *rows,
                 struct sample_out *out);

struct cpu_rng { uint64_t state; };
uint32_t cpu_rng_next(struct cpu_rng *r);
int32_t cpu_rng_below(struct cpu_rng *r, int32_t n); /* 0..n-1 */
float cpu_rng_float(struct cpu_rng *r);              /* -1..1 */
void cpu_rng_fill(struct cpu_rng *r, float *x, int64_t n);

/* A new tensor of the type with these values (rounded to it); free its data. */
struct tensor tensor_from(enum dtype dtype, int64_t rows, int64_t cols, const float *values);
struct tensor tensor_blank(enum dtype dtype, int64_t rows, int64_t cols);
float tensor_at(struct tensor t, int64_t row, int64_t col);
float rounded(enum dtype dtype, float x); /* x as the type holds it */

/* Fails, naming the place, when |got - want| > tolerance * max(1, |want|) or got is NaN. */
void assert_near(double got, double want, double tolerance, const char *what, int64_t row,
                 int64_t col);
