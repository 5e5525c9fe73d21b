/* What a device does for the model: memory, and a moderate number of moderately fused operations.
 * The only header that cpu/ and cuda/ share with the rest. Compiles as C and C++.
 *
 * Rules of every device:
 *  - One thread (the engine's, or the trainer's) calls all operations of a device, in order.
 *    Operations return nothing; a failure sticks and sync reports it.
 *  - All pointers in tensors, matrices and batches are device memory, from alloc (on the CPU that
 *    is plain memory).
 *  - Nothing is allocated by an operation: what it needs beside its operands comes from the
 *    workspace that set_workspace gave (workspace_bytes says how much).
 *  - **The bits of an output row depend on that row's inputs only**: never on the number of rows
 *    in the call, their order, the thread count, or how a sequence was cut into calls. Reductions
 *    over k run in an order fixed by k alone; attention runs over keys in an order fixed by their
 *    positions alone.
 *
 * Element types: f32 everywhere, or bf16 or f16 where computes_in says so ("activation type"):
 * weights have it, or are quantized when serving; operands of matrix products are rounded to it
 * (nearest even; to 8 bits beside quantized weights), sums are f32; the residual stream, norms,
 * softmax and logits stay f32; the KV cache has the activation type,
 * or one that keeps_kv_in allows.
 *
 * Shape letters: see model/config.h. R rows (tokens of this step), S spans (sequences of it). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "model/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { KV_PAGE_TOKENS = 16 }; /* P */
enum { DEVICE_ALIGN = 256 };  /* every tensor begins at a multiple */

/* An activation: [rows, cols], row-major, contiguous. */
struct tensor {
    void *data;
    enum dtype dtype; /* f32 or bf16 */
    int64_t rows, cols;
};

enum { MATRIX_PARTS = 3 };
struct matrix_part {
    enum dtype dtype;
    int64_t n_out; /* 0: past the last */
};

/* A weight matrix [n_out, n_in] in the device's own packed layout. n_out and n_in are the true
 * sizes; the layout pads as it likes (device_matrix_bytes).
 *
 * A matrix for serving may be made of up to three parts: rows of types of their own, all
 * quantized, which lie under each other as so many matrices of their own (matrix_part_of).
 * Without parts all rows have `dtype`. */
struct matrix {
    void *data;
    enum dtype dtype; /* with parts: the first one's */
    int64_t n_out, n_in;
    struct matrix_part parts[MATRIX_PARTS]; /* all zero: none */
};

/* One sequence's part of a step: rows [row0, row0 + n_rows) are its positions
 * [start, start + n_rows); its key and value of position p lie in page pages[p / P]. */
struct span {
    int32_t row0, n_rows;
    int32_t start;
    int32_t table; /* offset of this sequence's first entry in batch.pages */
};

/* The step's shape, in device memory except the counts. */
struct batch {
    int32_t n_rows, n_spans;
    int32_t max_keys;         /* no span's positions go further; 0: nobody said */
    const int32_t *tokens;    /* [R] */
    const int32_t *positions; /* [R] */
    const int32_t *slots;     /* [R] where the row's key and value go: page * P + position % P */
    const struct span *spans; /* [S], covering the rows in order */
    const int32_t *pages;     /* page tables, found by span.table */
};

/* The KV cache of all layers: page p of layer l holds P tokens' keys and values of all G heads. Its
 * inner layout belongs to the device. Bytes: n_layer * n_pages * kv_page_bytes. */
struct kv_cache {
    void *data;
    enum dtype dtype;
    int32_t n_layer, n_pages, n_kv_head, head_dim;
};

struct norm {
    const float *weight; /* [cols] */
    const float *bias;   /* [cols] or NULL */
    float eps;
    bool rms; /* RMSNorm, else LayerNorm */
};

enum epilogue {
    EPILOGUE_NONE,
    EPILOGUE_GELU_TANH, /* out = gelu(y rounded to out's type), Hendrycks & Gimpel's tanh form */
    EPILOGUE_GELU_EXACT,
    EPILOGUE_ADD, /* out += y; out is the f32 residual stream */
};

/* A product with the norm before it: out = epilogue(norm(x) W^T + bias), or with gate_up, of that,
 * swiglu. `h` and `gate_up` are room for what lies between; nobody may read them afterwards. */
struct norm_matmul {
    struct tensor x; /* [R, n_in] f32 */
    const struct norm *norm;
    struct tensor h; /* [R, n_in] of the type that the product takes */
    const struct matrix *w;
    const float *bias; /* [n_out] or NULL */
    enum epilogue epilogue; /* none with gate_up */
    struct tensor gate_up;  /* [R, n_out] of out's type; data NULL:
                               no SwiGLU, and out is [R, n_out] */
};

/* Names a stream of random bits: its key (Philox: model/sampler.h) is ((*base + add) >> 4) ^ flip.
 * `base` is in device memory and read when the operation runs, so a recorded step draws anew
 * whenever it is launched; NULL where nothing is drawn. */
struct random_key {
    const uint64_t *base;
    uint64_t add, flip;
};

/* RoPE and the heads of one attention layer. */
struct attention {
    int32_t n_head, n_kv_head, head_dim;
    float scale;            /* of q.k: 1/sqrt(K) */
    const float *rope;      /* [block_size, K/2, 2] cos and sin, or NULL (no rotation) */
    const float *q_norm;    /* [K] RMSNorm weight of each query head before RoPE, or NULL */
    const float *k_norm;    /* [K] */
    float qk_norm_eps;
    /* Of training; zero when serving. */
    float *lse;             /* [R, H]: where attention leaves log(sum exp(scale q.k)), or NULL */
    float dropout;          /* of the attention weights: model/device_train.h */
    struct random_key dropout_key;
};

/* How one row of logits becomes a token: see model/sampler.h for the meaning and the order of the
 * steps. */
struct sample_request;
struct sample_out;

/* The largest shapes that a run will pass: fixes the workspace. */
struct workspace_shape {
    enum dtype dtype;
    int64_t max_rows;    /* R */
    int64_t max_logit_rows;
    int64_t n_embd, n_ff, n_head, n_kv_head, head_dim, vocab_size, block_size;
    enum dtype gradients; /* of training: device_train.h; DTYPE_F32 (0) or DTYPE_BF16 */
};

struct device;
struct device_graph; /* what graph_end recorded */

/* What a GPU's driver says of its memory. Everything on the GPU counts, other processes' too;
 * `start_bytes` is what was in use when the device had been opened, its context and kernels
 * included, before any arena of this one. */
struct device_memory { int64_t total_bytes, free_bytes, start_bytes; };

struct device_ops {
    void (*close)(struct device *d);
    const char *(*description)(const struct device *d); /* "cpu: 2 threads, AVX-512 BF16" */

    /* Memory. alloc is called once per arena at start: zeroed, DEVICE_ALIGN-aligned. */
    void *(*alloc)(struct device *d, size_t bytes, struct error *err);
    void (*free)(struct device *d, void *p, size_t bytes);
    /* Optional: host memory that copies go to and from without a detour, page-locked; aligned like
     * device memory, contents undefined. NULL: the host's own will do. */
    void *(*alloc_host)(struct device *d, size_t bytes, struct error *err);
    void (*free_host)(struct device *d, void *p);
    /* Between device memory and the host's, which stays as it is until the next sync. */
    void (*upload)(struct device *d, void *dst, const void *src, size_t bytes);
    void (*download)(struct device *d, void *dst, const void *src, size_t bytes);
    bool (*sync)(struct device *d, struct error *err);
    /* As of now; any thread. False: the driver does not answer. NULL:
     * the device's memory is the host's. */
    bool (*memory)(const struct device *d, struct device_memory *out);

    /* May weights and activations have this type? */
    bool (*computes_in)(const struct device *d, enum dtype dtype);
    /* May the KV cache have this type beside activations of that one, which is always allowed?
     * q8_0 here means 8-bit codes with scales of the device's own layout. Serving only:
     * training's cache is the activations'. */
    bool (*keeps_kv_in)(const struct device *d, enum dtype kv, enum dtype activations);
    /* Sizes, known without touching a model. */
    int64_t (*matrix_bytes)(const struct device *d, enum dtype dtype, int64_t n_out, int64_t n_in);
    int64_t (*kv_page_bytes)(const struct device *d, enum dtype dtype, int32_t n_kv_head,
                             int32_t head_dim); /* of one layer */
    /* The scratch that any operation may need, given the largest shapes of the run. */
    int64_t (*workspace_bytes)(const struct device *d, const struct workspace_shape *shape);
    void (*set_workspace)(struct device *d, void *workspace, int64_t bytes);

    /* Packs rows [row0, row0 + n_rows) of W from host f32, row-major [n_rows, n_in]. row0 is a
     * multiple of 64; n_rows too unless it reaches n_out. */
    void (*matrix_write)(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                         const float *rows);
    /* The same without loss for a matrix of one quantized type, from rows of GGUF's blocks of that
     * type, each of dtype_bytes(w->dtype, n_in) bytes. NULL: this device does not hold every type
     * that files have, nor matrices of several parts. */
    void (*matrix_write_blocks)(struct device *d, struct matrix *w, int64_t row0, int64_t n_rows,
                                const uint8_t *blocks);

    /* out[r,:] = wte[tokens[r],:] (+ wpe[positions[r],:] unless wpe is NULL). out f32 [R, C];
     * wte packed (it may be the tied lm_head), wpe f32 [block_size, C]. */
    void (*embed)(struct device *d, struct tensor out, const struct batch *b,
                  const struct matrix *wte, const float *wpe);
    /* out = norm(x). x f32 [R, C]; out f32 or bf16. */
    void (*norm)(struct device *d, struct tensor out, struct tensor x, const struct norm *n);
    /* y = x W^T + bias, then the epilogue. x [R, n_in] of W's type (f32 with f32, bf16 with bf16),
     * or of 16 bits; out [R, n_out] f32 or bf16. bias f32 [n_out] or NULL. */
    void (*matmul)(struct device *d, struct tensor out, struct tensor x, const struct matrix *w,
                   const float *bias, enum epilogue epilogue);
    /* norm, matmul and swiglu, with their bits. Optional:
     * NULL where one operation gains nothing on three. */
    void (*norm_matmul)(struct device *d, struct tensor out, const struct norm_matmul *m);
    /* out = silu(gate) * up; gate_up [R, 2F] of out's type, gate first. out f32 or bf16 [R, F]. */
    void (*swiglu)(struct device *d, struct tensor out, struct tensor gate_up);
    /* qkv f32 [R, (H + 2G) K]: norms (if any) and rotates Q and K in place; writes K and V to their
     * slots of `layer`. */
    void (*kv_write)(struct device *d, struct tensor qkv, const struct batch *b,
                     const struct attention *a, const struct kv_cache *kv, int32_t layer);
    /* Causal attention of each row's query over its sequence's keys at positions 0..its own,
     * through the page tables. Q is the first H K columns of qkv; out f32 or bf16 [R, H K]. */
    void (*attention)(struct device *d, struct tensor out, struct tensor qkv, const struct batch *b,
                      const struct attention *a, const struct kv_cache *kv, int32_t layer);
    /* kv_write, then attention, with their bits; but who reads qkv afterwards may find it as it
     * was. Optional: NULL where one operation gains nothing on two. */
    void (*kv_attention)(struct device *d, struct tensor out, struct tensor qkv,
                         const struct batch *b, const struct attention *a,
                         const struct kv_cache *kv, int32_t layer);
    /* out[i,:] = x[rows[i],:]; rows in device memory. f32. */
    void (*gather)(struct device *d, struct tensor out, struct tensor x, const int32_t *rows);
    /* One token (and what was asked about it) for each row of logits f32 [n, V], which keep their
     * values. requests [n] and out [n]; `words` holds the requests' changes, whose `raw` may be
     * written. */
    void (*sample)(struct device *d, struct tensor logits, const struct sample_request *requests,
                   int32_t *words, struct sample_out *out);

    /* Optional: NULL where launching costs nothing. What is called between graph_begin and
     * graph_end is recorded and not run; graph_launch runs it as often as one likes, with the
     * pointers and counts that it had: what changes from time to time lies in device memory. Only
     * embed, norm, matmul, norm_matmul, swiglu, kv_write, attention, kv_attention, gather and
     * sample may be recorded; and, once they have run with the same shapes, training's from zero to
     * cross_entropy. NULL from graph_end: it failed, as sync will report. */
    void (*graph_begin)(struct device *d);
    struct device_graph *(*graph_end)(struct device *d);
    void (*graph_launch)(struct device *d, struct device_graph *graph);
    void (*graph_free)(struct device *d, struct device_graph *graph);
};

struct device_train_ops; /* model/device_train.h */

struct device {
    const struct device_ops *ops;
    const struct device_train_ops *train; /* NULL: this device only serves */
    char name[16]; /* "cpu", "cuda:0" */
};

/* Part i of a matrix (the matrix itself is part 0 of one without parts) as a matrix of its own;
 * *row0: the row at which it begins. False past the last. */
static inline bool matrix_part_of(const struct device *d, const struct matrix *w, int i,
                                  struct matrix *out, int64_t *row0)
{
    bool whole = w->parts[0].n_out == 0;
    if (i >= (whole ? 1 : MATRIX_PARTS) || (!whole && w->parts[i].n_out == 0)) return false;
    *out = *w;
    *row0 = 0;
    if (whole) return true;
    uint8_t *data = (uint8_t *)w->data;
    for (int j = 0; j < i; j++) {
        int64_t bytes = d->ops->matrix_bytes(d, w->parts[j].dtype, w->parts[j].n_out, w->n_in);
        if (data) data += bytes;
        *row0 += w->parts[j].n_out;
    }
    out->data = data;
    out->dtype = w->parts[i].dtype;
    out->n_out = w->parts[i].n_out;
    for (int j = 0; j < MATRIX_PARTS; j++) out->parts[j].n_out = 0;
    return true;
}

/* Bytes of the packed matrix, with all its parts. */
static inline int64_t device_matrix_bytes(const struct device *d, const struct matrix *w)
{
    struct matrix part;
    int64_t bytes = 0, row0;
    for (int i = 0; matrix_part_of(d, w, i, &part, &row0); i++)
        bytes += d->ops->matrix_bytes(d, part.dtype, part.n_out, part.n_in);
    return bytes;
}

#ifdef __cplusplus
}
#endif
