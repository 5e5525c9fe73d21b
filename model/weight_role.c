/* The weights of the decoder by role: which a config has, and their shapes. See checkpoint.h. */
#include "model/checkpoint.h"

static const char *const names[N_WEIGHT_ROLES] = {
    [WEIGHT_TOKEN_EMBEDDING] = "token_embedding",
    [WEIGHT_POSITION_EMBEDDING] = "position_embedding",
    [WEIGHT_FINAL_NORM] = "final_norm",
    [WEIGHT_FINAL_NORM_BIAS] = "final_norm_bias",
    [WEIGHT_LM_HEAD] = "lm_head",
    [WEIGHT_LM_HEAD_BIAS] = "lm_head_bias",
    [WEIGHT_ATTN_NORM] = "attn_norm",
    [WEIGHT_ATTN_NORM_BIAS] = "attn_norm_bias",
    [WEIGHT_QKV] = "qkv",
    [WEIGHT_QKV_BIAS] = "qkv_bias",
    [WEIGHT_Q_NORM] = "q_norm",
    [WEIGHT_K_NORM] = "k_norm",
    [WEIGHT_ATTN_OUT] = "attn_out",
    [WEIGHT_ATTN_OUT_BIAS] = "attn_out_bias",
    [WEIGHT_MLP_NORM] = "mlp_norm",
    [WEIGHT_MLP_NORM_BIAS] = "mlp_norm_bias",
    [WEIGHT_MLP_UP] = "mlp_up",
    [WEIGHT_MLP_UP_BIAS] = "mlp_up_bias",
    [WEIGHT_MLP_DOWN] = "mlp_down",
    [WEIGHT_MLP_DOWN_BIAS] = "mlp_down_bias",
};

const char *weight_role_name(enum weight_role role)
{
    ASSERT((unsigned)role < N_WEIGHT_ROLES);
    return names[role];
}

bool weight_role_is_layer(enum weight_role role) { return role >= WEIGHT_ATTN_NORM; }

static bool shape(int64_t *n_out, int64_t *n_in, int64_t out, int64_t in, bool exists)
{
    *n_out = out;
    *n_in = in;
    return exists;
}

bool weight_role_shape(const struct gpt_config *c, enum weight_role role, int64_t *n_out,
                       int64_t *n_in)
{
    int64_t C = c->n_embd, V = c->vocab_size, K = c->head_dim;
    int64_t qkv = (c->n_head + 2 * c->n_kv_head) * K, heads = c->n_head * K;
    int64_t up = c->mlp_type == MLP_SWIGLU ? 2 * c->n_ff : c->n_ff;
    switch (role) {
    case WEIGHT_TOKEN_EMBEDDING: return shape(n_out, n_in, V, C, true);
    case WEIGHT_POSITION_EMBEDDING:
        return shape(n_out, n_in, c->block_size, C, c->pos_encoding == POS_LEARNED);
    case WEIGHT_LM_HEAD: return shape(n_out, n_in, V, C, !c->tie_weights);
    case WEIGHT_LM_HEAD_BIAS: return shape(n_out, n_in, 1, V, c->bias_lm_head);
    case WEIGHT_FINAL_NORM:
    case WEIGHT_ATTN_NORM:
    case WEIGHT_MLP_NORM: return shape(n_out, n_in, 1, C, true);
    case WEIGHT_FINAL_NORM_BIAS:
    case WEIGHT_ATTN_NORM_BIAS:
    case WEIGHT_MLP_NORM_BIAS: return shape(n_out, n_in, 1, C, c->bias_norm);
    case WEIGHT_QKV: return shape(n_out, n_in, qkv, C, true);
    case WEIGHT_QKV_BIAS: return shape(n_out, n_in, 1, qkv, c->bias_qkv);
    case WEIGHT_Q_NORM:
    case WEIGHT_K_NORM: return shape(n_out, n_in, 1, K, c->qk_norm);
    case WEIGHT_ATTN_OUT: return shape(n_out, n_in, C, heads, true);
    case WEIGHT_ATTN_OUT_BIAS: return shape(n_out, n_in, 1, C, c->bias_attn_out);
    case WEIGHT_MLP_UP: return shape(n_out, n_in, up, C, true);
    case WEIGHT_MLP_UP_BIAS: return shape(n_out, n_in, 1, up, c->bias_mlp);
    case WEIGHT_MLP_DOWN: return shape(n_out, n_in, C, c->n_ff, true);
    case WEIGHT_MLP_DOWN_BIAS: return shape(n_out, n_in, 1, C, c->bias_mlp);
    case N_WEIGHT_ROLES: break;
    }
    ASSERT(!"a weight role");
    return false;
}
