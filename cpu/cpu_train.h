/* Training on the CPU: the operations of model/device_train.h, by file. */
#pragma once

#include "cpu/cpu_internal.h"
#include "model/device_train.h"

extern const struct device_train_ops cpu_train_ops;

/* cpu_matmul_backward.c */
void cpu_matmul_backward_x(struct device *d, struct tensor dx, struct tensor dy,
                           const struct matrix *w);
void cpu_matmul_backward_w(struct device *d, struct matrix *dw, float *dbias, struct tensor dy,
                           struct tensor x, struct random_key rounding);
/* sums[k] += column k of dy. */
void cpu_column_sums(struct cpu_device *c, float *sums, struct tensor dy);
/* Adds tile [n][PANEL] to inputs k0 .. k0 + n of a panel of dw;
 * part and key as in struct bf16_tile. */
void cpu_add_gradient(const struct cpu_kernels *k, struct matrix *dw, int64_t panel, int64_t k0,
                      int64_t n, const float *tile, uint32_t part, uint64_t key);
int64_t cpu_matmul_backward_workspace(const struct cpu_device *c, const struct workspace_shape *s);

/* cpu_train_rows.c */
void cpu_dropout(struct device *d, struct tensor out, struct tensor in, struct dropout drop);
void cpu_add_dropout(struct device *d, struct tensor x, struct tensor y, struct dropout drop);
void cpu_norm_backward(struct device *d, struct tensor dx, float *dweight, float *dbias,
                       struct tensor dy, struct tensor x, const struct norm *n,
                       const struct branch_gradient *next);
void cpu_gelu(struct device *d, struct tensor out, struct tensor in, bool exact);
void cpu_gelu_backward(struct device *d, struct tensor dx, struct tensor dy, struct tensor pre,
                       bool exact);
void cpu_swiglu_backward(struct device *d, struct tensor dgate_up, struct tensor dmlp,
                         struct tensor gate_up);
void cpu_rope_backward(struct device *d, struct tensor out, struct tensor dqkv,
                       struct tensor qkv_pre, float *dq_norm, float *dk_norm, const struct batch *b,
                       const struct attention *a);
void cpu_embed_backward(struct device *d, struct matrix *dwte, float *dwpe, struct tensor dx,
                        const struct batch *b);

/* cpu_attention_backward.c */
void cpu_attention_backward(struct device *d, struct tensor dqkv, struct tensor dout,
                            struct tensor qkv, struct tensor out, const float *lse,
                            const struct batch *b, const struct attention *a);
/* Attention with dropout of its weights: the training forward when a->dropout > 0. */
void cpu_attention_dropout(struct device *d, struct tensor out, struct tensor qkv,
                           const struct batch *b, const struct attention *a);
int64_t cpu_attention_backward_workspace(const struct cpu_device *c,
                                         const struct workspace_shape *s);

/* cpu_loss.c */
void cpu_cross_entropy(struct device *d, struct tensor dlogits, struct tensor logits,
                       const int32_t *targets, const struct loss_options *o,
                       struct loss_row *rows);
int64_t cpu_loss_workspace(const struct cpu_device *c, int64_t vocab_size);

/* cpu_optimizer.c */
void cpu_grad_squares(struct device *d, const struct adamw_tensor *tensors, const bool *skip,
                      int64_t n, double *sum);
void cpu_master_init(struct device *d, const struct adamw_tensor *t);
int64_t cpu_moment_bytes(const struct device *d, enum moment_format format, int64_t n);
void cpu_adamw(struct device *d, const struct adamw_tensor *tensors, const bool *skip, int64_t n,
               const struct adamw_step *s);
