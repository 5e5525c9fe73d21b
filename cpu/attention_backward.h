/* What the ways of computing attention's backward pass share: cpu_attention_backward.c in f32,
 * cpu_attention_backward_bf16.c, and attend_backward_amx.c. */
#pragma once

#include "cpu/cpu_train.h"

enum { BACKWARD_KEYS = PANEL }; /* keys of a block */

struct backward {
    const struct cpu_kernels *kernels;
    struct tensor dqkv, dout, qkv, out;
    const float *lse;
    const struct batch *batch;
    const struct attention *a;
    int64_t max_rows;   /* of a span: sizes the scratch */
    int64_t n_dim;      /* K rounded up to PANEL */
    float *scratch;     /* [threads][scratch_floats] */
    int64_t scratch_floats;
};

/* n elements of row r from column `at`, as f32. */
void backward_read_row(struct tensor t, int64_t r, int64_t at, int64_t n, float *out);
/* The first column of a KV head's keys (or values) in qkv. */
int64_t backward_kv_column(const struct attention *a, int64_t kv_head, bool value);
/* Where floats of scratch begin that come after `used`; returns what is used then. */
int64_t backward_take(float **at, float *base, int64_t used, int64_t n);
/* Dropout's factors of a head at (query row, keys key0 ..): 0 or 1 / (1 - p). */
void backward_dropout_factors(const struct backward *m, int64_t head, int64_t row, int64_t key0,
                              float z[BACKWARD_KEYS]);
/* Scores p [n, KEYS] of queries query0 .. of a head become probabilities, with dropout's factor,
 * and dp in ds becomes the scores' gradient (scale included); zero where a query does not see a
 * key. lse and delta: of all queries. */
void backward_finish_block(const struct backward *m, float *p, float *ds, const float *lse,
                           const float *delta, int64_t head, int64_t row0, int64_t query0,
                           int64_t n, int64_t key0);
/* What a query head adds to a block's keys (dk) and values (dv), both [K, KEYS]; words:
 * [KEYS * K]. */
void backward_add_keys(const struct backward *m, const struct span *s, int64_t kv_head,
                       int64_t key0, const float *dk, const float *dv, float *words);
/* cpu_attention_backward_bf16.c */
int64_t backward_bf16_floats(int64_t T, int64_t K); /* of scratch */
void backward_bf16_head(const struct backward *m, const struct span *s, int64_t kv_head,
                        int64_t head, float *scratch);
/* Row i of a span's head in bf16: its query and, rounded, do, both [K]; its log-sum, and D = do . o
 * with do as the products see it. Zeros past the span. */
void backward_bf16_query(const struct backward *m, const struct span *s, int64_t head, int64_t i,
                         uint16_t *q, uint16_t *dout, float *lse, float *delta);
/* Keys (or values) [key0, key0 + BACKWARD_KEYS) of a KV head to `rows` [BACKWARD_KEYS, K]; absent
 * ones are zero. */
void backward_bf16_keys(const struct backward *m, const struct span *s, int64_t kv_head,
                        int64_t key0, bool value, uint16_t *rows);
/* attend_backward_amx.c */
int64_t backward_amx_floats(int64_t T, int64_t K); /* of scratch */
void backward_amx_head(const struct backward *m, const struct span *s, int64_t kv_head,
                       int64_t head, float *scratch);
