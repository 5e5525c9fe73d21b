/* The GPT: weights on a device and one straight forward pass over a batch of rows.
 *
 * Three things that never mix: gpt_config (what), struct gpt (weights, read-only after load) and
 * struct gpt_state (the buffers of a step). The thread that owns the device calls all of it. */
#pragma once

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/device.h"
#include "model/plan.h"

struct gpt_layer {
    struct norm attn_norm, mlp_norm;
    struct matrix qkv, attn_out, mlp_up, mlp_down;
    float *qkv_bias, *attn_out_bias, *mlp_up_bias, *mlp_down_bias; /* NULL: none */
    float *q_norm, *k_norm;                                        /* [K]; NULL: none */
};

struct gpt {
    struct gpt_config config;
    enum dtype dtype; /* of the matrices and activations: f32 or bf16 */
    struct matrix wte;
    float *wpe;  /* [block_size, C] f32; NULL with RoPE */
    float *rope; /* [max_context, K/2, 2] f32 cos, sin; NULL with learned positions */
    int64_t max_context; /* positions that rope and wpe cover: <= config.block_size */
    struct gpt_layer *layers; /* [L], host */
    struct norm final_norm;
    struct matrix lm_head; /* = wte when tied */
    float *lm_head_bias;
};

/* The buffers of a step. */
struct gpt_state {
    int64_t max_rows, max_logit_rows;
    struct tensor x;       /* [R, C] f32: the residual stream */
    struct tensor h;       /* [R, C]: normed, activation type */
    struct tensor qkv;     /* [R, (H + 2G) K] f32 */
    struct tensor attn;    /* [R, H K] activation type */
    struct tensor up;      /* [R, F] activation type (gelu), or [R, 2F] f32 (swiglu) */
    struct tensor mlp;     /* [R, F] activation type; = up for gelu */
    struct tensor out_x;   /* [M, C] f32: rows that want logits */
    struct tensor out_h;   /* [M, C] */
    struct tensor logits;  /* [M, V] f32 */
};

/* Lays out the weights (component weights) for the config: all pointers of `g` that live on the
 * device. g->layers must point to config.n_layer zeroed layers; config, dtype, max_context set. */
void gpt_layout(struct gpt *g, const struct device *d, struct plan *plan);
/* Lays out a step's buffers for max_rows rows of which at most max_logit_rows want logits. */
void gpt_state_layout(struct gpt_state *s, const struct gpt *g, int64_t max_rows,
                      int64_t max_logit_rows, struct plan *plan);
/* Bytes of the staging buffer that gpt_load needs (host, freed after). */
int64_t gpt_load_staging_bytes(const struct gpt *g);
/* Reads every weight from the checkpoint into the device layout. */
bool gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, struct error *err)
    MUST_CHECK;

/* Sees every named intermediate tensor of a forward pass, as soon as it is computed: for tests. `layer` is -1
 * for tensors of the whole model. Names: "embed" "attn_norm" "qkv" (before rotation) "qkv_rotated"
 * "attn" "attn_resid" "mlp_norm" "mlp_up" "mlp_act" "mlp_resid" "out_rows" "final_norm" "logits". */
struct gpt_observer {
    void (*see)(void *ctx, const char *name, int32_t layer, struct tensor t);
    void *ctx;
};

/* One forward pass: rows of the batch through all layers, writing their keys and values to kv;
 * then logits [n_out, V] in s->logits for the rows listed in out_rows (device memory, n_out <= max_logit_rows; n_out
 * may be 0: a prefill chunk that wants none). observer may be NULL. */
void gpt_forward(const struct gpt *g, struct gpt_state *s, struct device *d, const struct batch *b,
                 const struct kv_cache *kv, const int32_t *out_rows, int32_t n_out,
                 const struct gpt_observer *observer);
