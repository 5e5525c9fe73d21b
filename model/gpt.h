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
    enum dtype dtype; /* of the matrices and activations: f32, bf16 or f16 */
    /* Serving may store the matrices as q8_0 or q4_0 blocks, with 16-bit activations; 0: not. The
     * token embedding and the head, which decide every token, never go below q8_0. */
    enum dtype quantized;
    /* Matrices that a file has quantized stay so, each as it is, with 16-bit activations:
     * checkpoint_formats of config's model, [1 + n_layer]. NULL: not. */
    const struct weight_formats *kept;
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
    struct tensor up;      /* [R, 2F] activation type, with swiglu */
    struct tensor mlp;     /* [R, F] activation type */
    struct tensor out_x;   /* [M, C] f32: rows that want logits */
    struct tensor out_h;   /* [M, C] */
    struct tensor logits;  /* [M, V] f32 */
};

/* How weights of `type` (f32, bf16, f16, q8_0, q4_0) are kept and computed with on the device: sets
 * g->dtype and g->quantized. ERR_UNSUPPORTED for what the device does not compute in. */
bool gpt_set_type(struct gpt *g, enum dtype type, const struct device *d, struct error *err)
    MUST_CHECK;
/* Can the device keep a file's quantized matrices as they are, instead of converting them? */
bool gpt_keeps_formats(const struct device *d);
bool gpt_type_is_served(enum dtype type);
/* The type of the KV cache when serving: KV_AUTO stands for that of the activations, g->dtype. The
 * name may be auto, f32, bf16 or q8_0. ERR_UNSUPPORTED for what the device does not keep beside
 * g->dtype. */
#define KV_AUTO N_DTYPES
bool gpt_kv_type_parse(const char *name, enum dtype *out) MUST_CHECK;
bool gpt_kv_type(const struct gpt *g, enum dtype asked, const struct device *d, enum dtype *out,
                 struct error *err) MUST_CHECK;
/* Lays out the weights (as component c) for the config: all pointers of `g` that live on the
 * device. g->layers must point to config.n_layer zeroed layers; config, dtype, max_context set. */
void gpt_layout(struct gpt *g, const struct device *d, enum memory_component c, struct plan *plan);
/* Lays out gradients, f32 twins of the weights; the layers' matrices have the type `blocks`,
 * f32 or bf16. */
void gpt_gradients_layout(struct gpt *grads, enum dtype blocks, const struct device *d,
                          struct plan *plan);
/* Lays out a step's buffers for max_rows rows of which at most max_logit_rows want logits. */
void gpt_state_layout(struct gpt_state *s, const struct gpt *g, int64_t max_rows,
                      int64_t max_logit_rows, struct plan *plan);
/* What the device's workspace must be enough for: the model's sizes, and the run's. Training adds
 * its gradients' type. */
struct workspace_shape gpt_workspace_shape(const struct gpt *g, int64_t max_rows,
                                           int64_t max_logit_rows, int64_t block_size);
/* Bytes of staging (host memory, in use only until the call returns) that gpt_load, gpt_init and
 * gpt_write_rope need: about a megabyte, more only for rows of more than 4096 numbers. */
int64_t gpt_load_staging_bytes(const struct gpt *g);
/* Uploads n floats of the staging, and waits: it may be filled again. */
bool gpt_upload(struct device *d, float *to, const float *staging, int64_t n,
                struct error *err) MUST_CHECK;
/* Fills the rotation table, if the model has one. */
bool gpt_write_rope(const struct gpt *g, struct device *d, float *staging,
                    struct error *err) MUST_CHECK;
/* Reads every weight from the checkpoint into the device layout, by way of `staging`. */
bool gpt_load(struct gpt *g, struct device *d, const struct checkpoint *ck, float *staging,
              struct error *err) MUST_CHECK;

/* Sees every named intermediate tensor of a forward pass, as soon as it is computed: for tests.
 * `layer` is -1 for tensors of the whole model. Names: "embed" "attn_norm" "qkv" (before rotation)
 * "qkv_rotated" "attn" "attn_resid" "mlp_norm" "mlp_act" "mlp_resid" "out_rows" "final_norm"
 * "logits". */
struct gpt_observer {
    void (*see)(void *ctx, const char *name, int32_t layer, struct tensor t);
    void *ctx;
};

/* The tensors of one block (layer) at work, all with the step's number of rows. Serving lets x_in,
 * x_mid and x_out be one buffer and keeps nothing; training keeps what its backward pass needs, in
 * buffers of each layer's own. The arithmetic is the same. */
struct gpt_block {
    struct tensor x_in, x_mid, x_out; /* [R, C] f32: before, after attention, after the MLP */
    struct tensor h_attn, h_mlp;      /* [R, C] act: normed */
    bool h_kept;                      /* ... and read again later; else
                                         they are room for one product */
    struct tensor qkv;                /* [R, (H + 2G) K] f32 */
    struct tensor attn;               /* [R, H K] act */
    struct tensor up;                 /* [R, F] act, or [R, 2F] with swiglu: before the activation.
                                         With gelu data may be NULL: fused into the product */
    struct tensor mlp;                /* [R, F] act */
    struct tensor branch;             /* [R, C] f32, with dropout */
    /* Kept for the backward pass; data NULL: not kept. */
    struct tensor qkv_kept;           /* [R, (H + 2G) K] act: rotated */
    struct tensor qkv_pre;            /* [R, (H + 2G) K] act: before q_norm and k_norm */
    float *lse;                       /* [R, H] */
    float dropout;                    /* of attention weights and both branches; 0: off */
    struct random_key random_key;     /* of this layer and step: gpt_random_key */
};

/* Block `layer` of the forward pass, through layer kv_layer of the cache. */
void gpt_block_forward(const struct gpt *g, int32_t layer, const struct gpt_block *t,
                       struct device *d, const struct batch *b, const struct kv_cache *kv,
                       int32_t kv_layer, const struct gpt_observer *observer);
/* mlp = act(up), where up is kept. */
void gpt_mlp_activation(const struct gpt *g, const struct gpt_block *t, struct device *d);
/* What attention of this block needs to know. */
struct attention gpt_attention(const struct gpt *g, int32_t layer, const struct gpt_block *t);
/* What is drawn at random in a block: dropout, and the rounding of bf16 gradients.
 * Each has its key. */
enum gpt_random_place {
    DROPOUT_ATTENTION, DROPOUT_ATTN_OUT, DROPOUT_MLP_OUT,
    ROUND_QKV, ROUND_ATTN_OUT, ROUND_MLP_UP, ROUND_MLP_DOWN,
};
struct random_key gpt_random_key(struct random_key block_key, enum gpt_random_place place);

/* The weights one by one, in a fixed order: whole-model roles, then layer by layer. */
struct gpt_param {
    enum weight_role role;
    int64_t layer;         /* 0 for whole-model roles */
    struct matrix *matrix; /* NULL: a vector */
    float *vector;
    int64_t n_out, n_in;
};
int64_t gpt_n_params(const struct gpt *g);
struct gpt_param gpt_param(struct gpt *g, int64_t i);
/* The same for who asks for many: which weights a config has, in order, is worked out once. */
struct gpt_roles {
    enum weight_role whole[N_WEIGHT_ROLES], layer[N_WEIGHT_ROLES];
    int64_t n_whole, n_layer;
};
struct gpt_roles gpt_roles(const struct gpt_config *c);
struct gpt_param gpt_param_of(struct gpt *g, const struct gpt_roles *r, int64_t i);
/* Random weights as GPT-2 starts: normal, 0.02; projections into the residual stream scaled by
 * 1 / sqrt(2 L); biases 0, norms 1. The bits depend on seed and config alone.
 * `staging`: gpt_load's. */
bool gpt_init(struct gpt *g, struct device *d, uint64_t seed, float *staging, struct error *err)
    MUST_CHECK;

/* One forward pass: rows of the batch through all layers, writing their keys and values to kv;
 * then logits [n_out, V] in s->logits for the rows listed in out_rows (device memory, n_out <=
 * max_logit_rows; n_out may be 0: a prefill chunk that wants none). observer may be NULL. */
void gpt_forward(const struct gpt *g, struct gpt_state *s, struct device *d, const struct batch *b,
                 const struct kv_cache *kv, const int32_t *out_rows, int32_t n_out,
                 const struct gpt_observer *observer);
