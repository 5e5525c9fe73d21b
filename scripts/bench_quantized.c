/* Quantized products, type by type, in turns with a plain read of the same bytes by as many
 * threads: of one thread by its processor time, so that others who use the machine matter little,
 * of several by the clock. A part of bench_kernels. */
#include <stdio.h>
#include <stdlib.h>

#include "scripts/bench_kernels.h"

/* MAX_ROWS: what the workspace has room for */
enum { N_OUT = 65536, N_IN = 1536, ROUNDS = 9, MAX_ROWS = 64 };

static int64_t read_ns(struct cpu_device *cpu, const struct matrix *w, int64_t bytes, uint64_t *sum)
{
    int64_t t = bench_ns(cpu);
    *sum += bench_read(cpu, w->data, bytes);
    return bench_ns(cpu) - t;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double median(int64_t ns[ROUNDS])
{
    qsort(ns, ROUNDS, sizeof *ns, compare);
    return (double)ns[ROUNDS / 2];
}

static void bench_type(struct cpu_device *c, enum dtype type, void *x, float *y)
{
    struct device *d = &c->base;
    static const int64_t rows[] = {1, 4, 12, MAX_ROWS};
    struct matrix w = {.dtype = type, .n_out = N_OUT, .n_in = N_IN};
    int64_t bytes = device_matrix_bytes(d, &w), read[ROUNDS], ns[ROUNDS];
    uint64_t sum = 0;
    w.data = bench_take(d, bytes);
    bench_fill(DTYPE_BF16, w.data, bytes);
    printf("%-5s %5.1f MB", dtype_info(type)->name, (double)bytes / 1e6);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct matrix part = w; /* enough for many rows to show */
        if (rows[i] > 4) part.n_out = N_OUT / 16;
        for (int round = 0; round < ROUNDS; round++) {
            if (i == 0) read[round] = read_ns(c, &w, bytes, &sum);
            int64_t t = bench_ns(c);
            d->ops->matmul(d, (struct tensor){y, DTYPE_F32, rows[i], part.n_out},
                           (struct tensor){x, DTYPE_BF16, rows[i], N_IN}, &part, NULL,
                           EPILOGUE_NONE);
            ns[round] = bench_ns(c) - t;
        }
        double time = median(ns), ops = 2.0 * (double)part.n_out * N_IN * (double)rows[i];
        if (i == 0)
            printf(" read %4.1f GB/s (%d); 1 row %4.1f GB/s, %4.2f of the read's time",
                   (double)bytes / median(read), (int)(sum & 1), (double)bytes / time,
                   time / median(read));
        else
            printf("; %d rows %5.1f Gop/s", (int)rows[i], ops / time);
    }
    printf("\n");
    d->ops->free(d, w.data, (size_t)bytes);
}

void bench_quantized(struct cpu_device *c)
{
    static const enum dtype types[] = {DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_Q5_0,
                                       DTYPE_Q5_1, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
    struct device *d = &c->base;
    void *x = bench_take(d, MAX_ROWS * N_IN * 2);
    float *y = bench_take(d, MAX_ROWS * (int64_t)N_OUT * 4);
    bench_fill(DTYPE_BF16, x, MAX_ROWS * N_IN * 2);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) bench_type(c, types[i], x, y);
}
