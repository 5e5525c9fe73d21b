/* What scripts/gpu_check.sh runs to compare a device with the CPU and to measure it: the engine and
 * the trainer as they ship, with random weights. Works on every device, so that `bench_gpu cpu ...`
 * tries all of it where there is no GPU.
 *
 * A result is a line on stdout, and the script's table is made of them:
 *     RESULT <tab> section <tab> name <tab> value <tab> unit <tab> note
 *
 * Linked with --wrap=gpt_load, --wrap=checkpoint_config and --wrap=dataset_add: between
 * bench_random_begin and bench_random_end an engine opens a model of any config with random
 * weights, without files, and a trainer learns from random tokens. */
#pragma once

#include "model/device.h"
#include "model/gpt.h"
#include "model/train_config.h"
#include "scripts/gpu/bench_machine.h"

struct bench {
    struct device *d;
    bool small;      /* try everything out on tiny shapes: no figure means anything */
    double peak;     /* operations a second of bf16 products by the data sheet; 0: not known */
};

void bench_report(const char *section, const char *name, double value, const char *unit,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
/* Ends the program with the error unless ok. */
void bench_must(bool ok, const struct error *err);
void *bench_alloc(struct device *d, int64_t bytes);

/* Free bytes as the driver says; 0 on the CPU. */
int64_t bench_driver_free(const struct bench *b);

/* A preset's file; in a small run, its layers, widths and sizes are cut. */
void bench_read_preset(const struct bench *b, const char *path, struct gpt_config *model,
                       struct train_config *training);
const char *bench_preset_name(const char *path); /* "150M" of "configs/150M.json"; static */
/* Weights that depend on `seed` and the config alone, whatever the device. */
void bench_fill_weights(struct gpt *g, struct device *d, float *staging, uint32_t seed);
int32_t bench_random_token(uint32_t *state, int64_t vocab_size);
void bench_random_begin(const struct gpt_config *model, int64_t sequence_length);
void bench_random_end(void);

/* bench_rates.c: ceilings, measured in a few tenths of a second. */
double bench_product_rate(const struct bench *b, int64_t rows, int64_t n_out, int64_t n_in);
void bench_rates(const struct bench *b);
/* bench_serve.c */
void bench_decode(const struct bench *b, const char *preset, const int32_t *batches, int32_t n);
void bench_prefill(const struct bench *b, const char *preset);
/* bench_train.c */
void bench_train(const struct bench *b, const char *preset, int32_t n_steps);
/* bench_parity.c: both devices on small models of both families; writes what torch needs to do the
 * same under `dir`. Returns how many comparisons failed. */
int bench_parity(const struct bench *b, const char *dir);
