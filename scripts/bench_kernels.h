/* What the parts of bench_kernels share: memory with numbers in it, and the parts themselves. */
#pragma once

#include "cpu/cpu_train.h"

/* Device memory; ends the program when there is none. */
void *bench_take(struct device *d, int64_t bytes);
/* Numbers from -0.5 to 0.5: anything but zeros, which memory and multipliers handle faster. */
void bench_fill(enum dtype dtype, void *p, int64_t bytes);

/* Now: of one thread its processor time, which others on the machine disturb least. */
int64_t bench_ns(const struct cpu_device *c);

/* Reads so many bytes with every thread, each an even share from front to back, and does as good as
 * nothing with them: what memory gives. Returns a sum of some of them, for someone to look at. */
uint64_t bench_read(struct cpu_device *c, const void *p, int64_t bytes);

/* bench_quantized.c: products with quantized matrices,
 * one row's beside a plain read of as many bytes. */
void bench_quantized(struct cpu_device *c);

/* bench_rows.c: operations that memory bounds, each beside a plain copy of as many bytes. */
void bench_rows(struct cpu_device *c);
