/* What the files of cpu/ share: the device struct and its operations.
 * Owned by the engine thread. */
#pragma once

#include <sched.h>

#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

struct cpu_device {
    struct device base; /* first: a struct device * is a struct cpu_device * */
    struct cpu_kernels kernels;
    struct pool *pool;
    uint8_t *workspace;
    int64_t workspace_bytes;
    char description[96];
};

static inline struct cpu_device *cpu_of(struct device *d) { return (struct cpu_device *)d; }
static inline const struct cpu_device *cpu_of_const(const struct device *d)
{
    return (const struct cpu_device *)d;
}

/* Below about this many elements a row operation is not worth waking a thread. */
enum { CPU_INLINE_ELEMENTS = 8192 };
/* Rows a thread should take at once, each of `cols` elements. */
static inline int64_t cpu_row_grain(int64_t cols)
{
    return cols >= CPU_INLINE_ELEMENTS ? 1 : CPU_INLINE_ELEMENTS / (cols > 0 ? cols : 1);
}

/* A device's memory is the host's here. */
static inline uint64_t cpu_random_key(struct random_key k)
{
    return (*k.base + k.add) >> 4 ^ k.flip;
}

static inline size_t element_bytes(enum dtype dtype) { return dtype == DTYPE_F32 ? 4 : 2; }
/* Row r of a tensor. */
static inline void *tensor_row(struct tensor t, int64_t r)
{
    return (uint8_t *)t.data + (size_t)(r * t.cols) * element_bytes(t.dtype);
}

/* Cores that have a processor in the mask. `root` is "" but in tests:
 * it goes before /sys and /proc. */
int32_t cpu_cores(const char *root, const cpu_set_t *mask);
/* As many threads as there are cores, or fewer where the cgroup's CPU quota says so; at least 1. */
int32_t cpu_count(const char *root, int32_t n_cores);

/* cpu_matrix.c */
bool cpu_is_quantized(enum dtype dtype); /* GGUF's types of blocks */
/* A panel is a stream of steps: of one input (f32), a pair (bf16), or a block of 32 (quantized). */
int64_t cpu_panel_steps(enum dtype dtype, int64_t n_in);
int64_t cpu_panel_step_bytes(enum dtype dtype);
int64_t cpu_matrix_bytes(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in);
void cpu_matrix_write(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                      const float *rows);
void cpu_matrix_write_blocks(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                             const uint8_t *blocks);
void cpu_matrix_read(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                     float *rows);
void cpu_embed(struct device *d, struct tensor out, const struct batch *b,
               const struct matrix *wte, const float *wpe);
/* cpu_matmul.c */
int64_t cpu_matmul_workspace(const struct cpu_device *c, int64_t n_rows, int64_t n_in);
void cpu_matmul(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                const float *bias, enum epilogue epilogue);
void cpu_norm_matmul(struct device *d, struct tensor out, const struct norm_matmul *m);
/* cpu_rows.c */
void cpu_norm(struct device *d, struct tensor out, struct tensor x, const struct norm *n);
void cpu_swiglu(struct device *d, struct tensor out, struct tensor gate_up);
void cpu_gather(struct device *d, struct tensor out, struct tensor x, const int32_t *rows);
/* cpu_kv.c */
int64_t cpu_kv_page_bytes(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                          int32_t head_dim);
const uint8_t *cpu_kv_head(const struct kv_cache *kv, int32_t layer, int32_t page, int32_t head);
void cpu_kv_write(struct device *d, struct tensor qkv, const struct batch *b,
                  const struct attention *a, const struct kv_cache *kv, int32_t layer);
struct kv_write {
    const struct cpu_kernels *kernels;
    struct tensor qkv;
    const struct batch *batch;
    const struct attention *attention;
    const struct kv_cache *kv;
    int32_t layer;
};
/* kv_write of one row and KV head with its query heads. */
void cpu_kv_write_head(const struct kv_write *job, int64_t row, int32_t kv_head);
/* Calls for the cache's lines that it will write. */
void cpu_kv_call_for(const struct kv_write *job, int64_t row, int32_t kv_head);
/* cpu_attention.c */
int64_t cpu_attention_workspace(const struct cpu_device *c);
void cpu_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                   const struct attention *a, const struct kv_cache *kv, int32_t layer);
void cpu_kv_attention(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                      const struct attention *a, const struct kv_cache *kv, int32_t layer);
/* cpu_sample.c */
int64_t cpu_sample_workspace(const struct cpu_device *c, int64_t vocab_size);
/* log sum exp of a row is shift + log_sum. */
struct logsumexp { float shift, log_sum; };
/* The exponentials of x - shift too, unless `exps` is NULL, and their sum. A row of nothing but
 * -inf has none: its sum is 0, its log_sum 0. */
struct logsumexp cpu_logsumexp(const struct cpu_kernels *k, const float *x, int64_t n, float *exps,
                               float *sum);
/* The log-probability of a logit x of that row: what sampling reports and training computes. */
float cpu_logprob(struct logsumexp z, float x);
void cpu_sample(struct device *d, struct tensor logits, const struct sample_request *requests,
                int32_t *words, struct sample_out *out);
