/* Training the GPT: the same forward pass as serving (gpt_block_forward), keeping what the backward
 * pass needs, and the backward pass itself. One micro-batch at a time; gradients add up until the
 * optimizer takes them, in f32 or, those of the blocks' matrices, in bf16 with stochastic rounding.
 * Nothing is allocated here: all buffers come from the plan.
 *
 * What is kept of a layer, per token (bf16 | f32 activations, bytes; C width, F feed-forward):
 *   none       x_in, x_mid f32; normed twice, q k v, attention, log-sums, before and after the
 *              activation
 *   selective  the normed rows and the activation are computed again: cheap, 1 % of the time
 *   block      x_in alone; the whole block is computed again: 15 to 20 %
 * Recomputing runs the same operations on the same inputs, so gradients are equal to the bit.
 *
 * The thread that owns the device calls all of it. */
#pragma once

#include "model/device_train.h"
#include "model/gpt.h"

enum recompute { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_BLOCK };

const char *recompute_name(enum recompute r); /* "none" "selective" "block" */

struct gpt_train_options {
    int64_t max_rows;     /* R of a micro-batch */
    int64_t max_spans;    /* sequences (documents) in it */
    int64_t loss_rows;    /* rows whose logits exist at a time; 1..max_rows */
    enum recompute recompute;
    float dropout;        /* of embeddings, attention weights and both branches */
    float label_smoothing, z_loss;
    enum dtype gradients; /* of the blocks' matrices: f32 or bf16 */
};

struct gpt_train {
    struct gpt *gpt;
    struct gpt_train_options options;
    struct gpt grads;           /* twins of the weights; layers given by the caller */
    struct gpt_block *blocks;   /* [L], given by the caller: what is kept; the rest is shared */
    struct gpt_block shared;    /* of whichever block is at work */
    struct kv_cache kv;         /* one layer's worth: attention reads keys through pages */
    struct tensor h_final;      /* [R, C] act */
    struct tensor logits, dlogits;      /* [loss_rows, V] f32; act */
    /* Gradients on their way down. */
    struct tensor dx, dh;       /* [R, C] f32 */
    struct tensor dy;           /* [R, C] act: dx as the operand of a product, after dropout */
    struct tensor dmlp;         /* [R, F] f32; none where dup is computed at once */
    struct tensor dup;          /* [R, F] or [R, 2F] act */
    struct tensor dattn;        /* [R, H K] f32; act where the device writes it */
    struct tensor dqkv;         /* [R, (H + 2G) K] f32, before the
                                   rotation is undone; or dqkv_act */
    struct tensor dqkv_act;     /* the same, act */
    struct loss_row *losses;    /* [R] */
};

/* Pages that a micro-batch of these sizes may need. */
int64_t gpt_train_pages(const struct gpt_train_options *o);
/* Lays out gradients, kept activations, shared buffers. t->gpt, t->options, t->grads.layers [L] and
 * t->blocks [L] (zeroed) must be set. The workspace is the caller's:
 * device_train_ops.workspace_bytes. */
void gpt_train_layout(struct gpt_train *t, const struct device *d, struct plan *plan);

/* What else changes from micro-batch to micro-batch. It goes to the device with the rows: a
 * recorded pass finds all that is new in device memory. */
struct gpt_micro_scalars {
    uint64_t random_key; /* of dropout and rounding; differs per step and micro-batch */
    float grad_scale;    /* 1 / targets of the whole step, times any loss scale */
};

/* The rows of a micro-batch: spans (a document, or a part of one) that each begin at position 0 and
 * see only themselves. One on the host to fill, its twin on the device. */
struct gpt_rows {
    struct gpt_micro_scalars *scalars;   /* [1] */
    int32_t *tokens, *positions, *slots; /* [R] */
    int32_t *targets;                    /* [R] the next token; -1: no loss here */
    struct span *spans;                  /* [max_spans] */
    int32_t *pages;                      /* page tables, back to back */
    int32_t n_rows, n_spans, n_pages;
};
void gpt_rows_layout(struct gpt_rows *r, const struct gpt_train_options *o, struct plan *plan);
void gpt_rows_clear(struct gpt_rows *r);
/* Adds a span of n tokens with their targets; false, and nothing changed, when there is no room. */
bool gpt_rows_add(struct gpt_rows *r, const struct gpt_train_options *o, const int32_t *tokens,
                  const int32_t *targets, int32_t n);
/* Copies host rows to their device twin, scalars as the caller has set them, and describes them. */
struct gpt_micro_batch {
    struct batch batch;
    const int32_t *targets;
    const struct gpt_micro_scalars *scalars; /* device memory */
};
struct gpt_micro_batch gpt_rows_upload(const struct gpt_rows *host, const struct gpt_rows *device,
                                       struct device *d);

/* Forward and backward: adds this micro-batch's share to the gradients and leaves each row's
 * loss in t->losses (device memory). */
void gpt_train_micro_step(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m);
/* Its two halves: what the second needs of the first is in t->blocks,
 * t->shared.x_out and t->h_final. */
void gpt_train_forward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m);
void gpt_train_backward(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m);
/* Forward only, without dropout, smoothing or z-loss: each row's loss in t->losses. */
void gpt_train_evaluate(struct gpt_train *t, struct device *d, const struct gpt_micro_batch *m);
void gpt_train_zero_grads(struct gpt_train *t, struct device *d);
