/* What training adds to a device: backward operations, the loss, the optimizer. The rules of
 * model/device.h hold: one thread, sticky errors, no allocation, and results that do not depend on
 * the thread count. Sums over rows (weight gradients, column sums) run in an order fixed by the
 * row index, so that two runs give the same bits.
 *
 * Gradients of weights are f32: vectors as plain arrays, matrices in the layout of an f32 packed
 * matrix (device_ops.matrix_bytes of DTYPE_F32), padding zero. Those of the blocks' matrices may be
 * bf16 packed matrices instead: matmul_backward_w sums in f32 and rounds stochastically as it adds.
 * "act" is the activation type, which the weights have: f32, bf16 or f16. Gradients of
 * activations are f32 in the residual stream and, but for devices that write act at once
 * (writes_act), where a kernel reads them once; operands of matrix products are act. */
#pragma once

#include "model/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Dropout (Srivastava et al. 2014): element i (row-major index) is kept when the 32-bit word of
 * Philox4x32-10 (model/sampler.h) at counter {i/4 low, i/4 high, 0, 0}, key {key low, key high},
 * word i % 4, is >= p * 2^32; kept elements are scaled by 1 / (1 - p). Counter-based: recomputing
 * reproduces it. p = 0: all kept, unscaled, and no key is read. */
struct dropout {
    float p; /* 0 <= p < 1 */
    struct random_key key;
};

/* The gradient of the residual stream as the operand of the products that end a branch:
 * dy = dropout(dx). */
struct branch_gradient {
    struct tensor dy; /* act [R, C] */
    struct dropout drop;
    float *dbias; /* += column sums of dy; NULL: none */
};

/* What cross_entropy does besides -log p(target). */
struct loss_options {
    const float *scale;    /* of the gradient, in device memory: 1 / (targets of the
                              whole step), times any loss scale. NULL without dlogits */
    float label_smoothing; /* 0: off; else the target distribution is (1 - s) one-hot + s / V */
    float z_loss;          /* weight of log(Z)^2 (PaLM); 0: off */
};

struct loss_row {
    float logprob; /* log p(target): the bits that sampling's `logprob` would have; 0 if ignored */
    float loss;    /* with smoothing and z-loss; 0 if ignored */
};

enum moment_format { MOMENT_F32, MOMENT_BF16, MOMENT_Q8 }; /* Q8: int8 blocks of 256 + f32 scale */
enum master_format {
    MASTER_NONE,      /* the weight itself is f32 */
    MASTER_F32,       /* an f32 copy beside bf16 weights */
    MASTER_REMAINDER, /* int16 beside bf16 weights: master bits = weight << 16 + remainder, exact */
};

/* One weight and all that AdamW keeps for it. Master and moments are in the order of an f32 packed
 * matrix, or of a plain vector. */
struct adamw_tensor {
    void *weight;          /* f32, or bf16 in the layout of a bf16 packed matrix */
    enum dtype dtype;
    int64_t n_out, n_in;   /* of the matrix; a vector is n_out = 1 and is never packed */
    bool packed;           /* a matrix in the device's layout; else a plain f32 vector */
    const void *grad;      /* f32, or (packed) bf16 */
    enum dtype grad_dtype;
    enum master_format master_format;
    void *master;
    enum moment_format m_format, v_format;
    void *m, *v;           /* Q8: moment_bytes() long, scales after the codes */
    float weight_decay;    /* 0 for vectors and embeddings' biases */
};

/* Decoupled weight decay (Loshchilov & Hutter 2019):
 * m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; w -= lr (m^ / (sqrt(v^) + eps) + decay w). */
struct adamw_step {
    float lr, beta1, beta2, eps;
    int64_t step;     /* 1, 2, ...: for the bias correction */
    float grad_scale; /* multiplies every gradient: clipping, loss scale */
};

struct device_train_ops {
    /* This device takes and writes act where the CPU has f32 between two products, rounded
     * once from sums in f32: dx of matmul_backward_x may be act, attention_backward takes dout
     * in act and may write dqkv so, and matmul_gelu_backward is there. A property of the
     * device's sizes: plans depend on it. */
    bool writes_act;

    /* Rows [row0, row0 + n_rows) of a packed matrix as f32: the inverse of matrix_write. */
    void (*matrix_read)(struct device *d, const struct matrix *w, int64_t row0, int64_t n_rows,
                        float *rows);
    void (*zero)(struct device *d, void *p, int64_t bytes);
    /* out[i] = std x normal number first + i of the key's stream, i < n, in host memory:
     * model/normal.h, to the bit. Optional: NULL where nothing is faster than the caller. */
    void (*normal)(struct device *d, float *out, int64_t n, const uint32_t key[2], int64_t first,
                   float std);

    /* out = dropout(in), rounded to out's type; out may be in. With p = 0 a plain conversion. */
    void (*dropout)(struct device *d, struct tensor out, struct tensor in, struct dropout drop);
    /* x += dropout(y); both f32. */
    void (*add_dropout)(struct device *d, struct tensor x, struct tensor y, struct dropout drop);
    /* out = gelu(in), both act: the very bits of matmul's GELU epilogues. */
    void (*gelu)(struct device *d, struct tensor out, struct tensor in, bool exact);

    /* dx = dy W. dy [R, n_out] act, dx [R, n_in] f32 (act: writes_act). */
    void (*matmul_backward_x)(struct device *d, struct tensor dx, struct tensor dy,
                              const struct matrix *w);
    /* dpre = dy W gelu'(pre): matmul_backward_x and gelu_backward at once. dpre and pre act [R,
     * n_in]. Only with writes_act; else NULL. */
    void (*matmul_gelu_backward)(struct device *d, struct tensor dpre, struct tensor dy,
                                 const struct matrix *w, struct tensor pre, bool exact);
    /* dw += dy^T x; dbias += column sums of dy unless NULL. x [R, n_in] and dy [R, n_out] act; dw
     * f32 or bf16. Into bf16 the f32 sum over all rows (or over each 2,048 of them or more) is
     * added with stochastic rounding: up with the odds that keep the mean, by random bits that
     * depend on rounding (not read for f32) and the element's place alone (and on which of those
     * parts). What bf16 holds exactly stays as it is. */
    void (*matmul_backward_w)(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                              struct tensor x, struct random_key rounding);
    /* dx += d norm(x) / dx applied to dy; dweight +=, dbias += (NULL: none). dx, dy, x f32 [R,
     * C]. Of dx as it is then, `next` is filled: what the backward pass of the branch before
     * the norm begins with (NULL: nothing). */
    void (*norm_backward)(struct device *d, struct tensor dx, float *dweight, float *dbias,
                          struct tensor dy, struct tensor x, const struct norm *n,
                          const struct branch_gradient *next);
    /* dx = dy * gelu'(pre). dx act, dy f32, pre act; [R, F]. */
    void (*gelu_backward)(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                          bool exact);
    /* d gate_up act [R, 2F] from dmlp f32 [R, F] and gate_up act [R, 2F]. */
    void (*swiglu_backward)(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                            struct tensor gate_up);
    /* dqkv f32 [R, (H + 2G) K] = gradient of attention's output with respect to the rotated q, k
     * and v. qkv act (as attention saw them: rotated), out act, dout f32 [R, H K], lse f32 [R, H]
     * (attention's). With writes_act dout is act, and dqkv f32 or act. dout's memory may be used
     * for other things and is lost. Spans of `b` start at position 0 of their rows: a span attends
     * to itself alone. No T x T matrix. */
    void (*attention_backward)(struct device *d, struct tensor dqkv, struct tensor dout,
                               struct tensor qkv, struct tensor out, const float *lse,
                               const struct batch *b, const struct attention *a);
    /* out = dqkv with the rotation of q and k undone, then their norms (dq_norm, dk_norm +=; NULL
     * without qk_norm). dqkv f32, lost; out act, and dqkv itself where act is f32. Without rotation
     * and norms out is dqkv, rounded; then it may be dqkv itself in any case. qkv_pre act: q and k
     * before their norms; ignored without qk_norm. */
    void (*rope_backward)(struct device *d, struct tensor out, struct tensor dqkv,
                          struct tensor qkv_pre, float *dq_norm, float *dk_norm,
                          const struct batch *b, const struct attention *a);
    /* dwte[tokens[r]] += dx[r]; dwpe[positions[r]] += dx[r] unless NULL.
     * Rows are added in order. */
    void (*embed_backward)(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                           const struct batch *b);
    /* Per row of logits f32 [M, V]: rows[i], and dlogits (act [M, V]; may be logits itself when act
     * is f32; data NULL: loss only). targets[i] < 0: ignored, gradient zero. */
    void (*cross_entropy)(struct device *d, struct tensor dlogits, struct tensor logits,
                          const int32_t *targets, const struct loss_options *o,
                          struct loss_row *rows);

    /* The sum of squares of the gradients of n tensors, without those where skip[i],
     * to *sum in device memory. */
    void (*grad_squares)(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                         int64_t n, double *sum);
    /* The master copy of a weight as it stands: widened (F32), or a remainder of zero. */
    void (*master_init)(struct device *d, const struct adamw_tensor *t);
    int64_t (*moment_bytes)(const struct device *d, enum moment_format format, int64_t n);
    /* Each of n tensors but those where skip[i]. */
    void (*adamw)(struct device *d, const struct adamw_tensor *tensors, const bool *skip, int64_t n,
                  const struct adamw_step *s);
    /* Scratch of the above, given the largest shapes (rows: of a micro-batch). */
    int64_t (*workspace_bytes)(const struct device *d, const struct workspace_shape *shape);
};

#ifdef __cplusplus
}
#endif
