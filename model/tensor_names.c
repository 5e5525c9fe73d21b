/* How the families name the tensors of each weight role: what readers and writers share. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model/checkpoint_internal.h"

/* ---- Hugging Face ---- */

static const char *const gpt2_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
    [WEIGHT_TOKEN_EMBEDDING] = {"wte.weight"},
    [WEIGHT_POSITION_EMBEDDING] = {"wpe.weight"},
    [WEIGHT_FINAL_NORM] = {"ln_f.weight"},
    [WEIGHT_FINAL_NORM_BIAS] = {"ln_f.bias"},
    [WEIGHT_LM_HEAD] = {"lm_head.weight"},
    [WEIGHT_LM_HEAD_BIAS] = {"lm_head.bias"},
    [WEIGHT_ATTN_NORM] = {"ln_1.weight"},
    [WEIGHT_ATTN_NORM_BIAS] = {"ln_1.bias"},
    [WEIGHT_QKV] = {"attn.c_attn.weight"},
    [WEIGHT_QKV_BIAS] = {"attn.c_attn.bias"},
    [WEIGHT_ATTN_OUT] = {"attn.c_proj.weight"},
    [WEIGHT_ATTN_OUT_BIAS] = {"attn.c_proj.bias"},
    [WEIGHT_MLP_NORM] = {"ln_2.weight"},
    [WEIGHT_MLP_NORM_BIAS] = {"ln_2.bias"},
    [WEIGHT_MLP_UP] = {"mlp.c_fc.weight"},
    [WEIGHT_MLP_UP_BIAS] = {"mlp.c_fc.bias"},
    [WEIGHT_MLP_DOWN] = {"mlp.c_proj.weight"},
    [WEIGHT_MLP_DOWN_BIAS] = {"mlp.c_proj.bias"},
};

static const char *const llama_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
    [WEIGHT_TOKEN_EMBEDDING] = {"embed_tokens.weight"},
    [WEIGHT_FINAL_NORM] = {"norm.weight"},
    [WEIGHT_LM_HEAD] = {"lm_head.weight"},
    [WEIGHT_ATTN_NORM] = {"input_layernorm.weight"},
    [WEIGHT_QKV] = {"self_attn.q_proj.weight", "self_attn.k_proj.weight",
                    "self_attn.v_proj.weight"},
    [WEIGHT_QKV_BIAS] = {"self_attn.q_proj.bias", "self_attn.k_proj.bias",
                         "self_attn.v_proj.bias"},
    [WEIGHT_Q_NORM] = {"self_attn.q_norm.weight"},
    [WEIGHT_K_NORM] = {"self_attn.k_norm.weight"},
    [WEIGHT_ATTN_OUT] = {"self_attn.o_proj.weight"},
    [WEIGHT_ATTN_OUT_BIAS] = {"self_attn.o_proj.bias"},
    [WEIGHT_MLP_NORM] = {"post_attention_layernorm.weight"},
    [WEIGHT_MLP_UP] = {"mlp.gate_proj.weight", "mlp.up_proj.weight"},
    [WEIGHT_MLP_UP_BIAS] = {"mlp.gate_proj.bias", "mlp.up_proj.bias"},
    [WEIGHT_MLP_DOWN] = {"mlp.down_proj.weight"},
    [WEIGHT_MLP_DOWN_BIAS] = {"mlp.down_proj.bias"},
};

/* Causal masks that old versions saved; the output of a tied head. */
static const char *const gpt2_needless[] = {".attn.bias", ".attn.masked_bias", NULL};
static const char *const gpt2_tied_needless[] = {".attn.bias", ".attn.masked_bias",
                                                 "lm_head.weight", NULL};
static const char *const llama_needless[] = {".rotary_emb.inv_freq", NULL};
static const char *const llama_tied_needless[] = {".rotary_emb.inv_freq", "lm_head.weight", NULL};

/* ---- gptd's own: a tensor a role, by the role's name, as plain [n_out, n_in] rows ---- */

static const char *const gptd_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
    [WEIGHT_TOKEN_EMBEDDING] = {"token_embedding"},
    [WEIGHT_POSITION_EMBEDDING] = {"position_embedding"},
    [WEIGHT_FINAL_NORM] = {"final_norm"},
    [WEIGHT_FINAL_NORM_BIAS] = {"final_norm_bias"},
    [WEIGHT_LM_HEAD] = {"lm_head"},
    [WEIGHT_LM_HEAD_BIAS] = {"lm_head_bias"},
    [WEIGHT_ATTN_NORM] = {"attn_norm"},
    [WEIGHT_ATTN_NORM_BIAS] = {"attn_norm_bias"},
    [WEIGHT_QKV] = {"qkv"},
    [WEIGHT_QKV_BIAS] = {"qkv_bias"},
    [WEIGHT_Q_NORM] = {"q_norm"},
    [WEIGHT_K_NORM] = {"k_norm"},
    [WEIGHT_ATTN_OUT] = {"attn_out"},
    [WEIGHT_ATTN_OUT_BIAS] = {"attn_out_bias"},
    [WEIGHT_MLP_NORM] = {"mlp_norm"},
    [WEIGHT_MLP_NORM_BIAS] = {"mlp_norm_bias"},
    [WEIGHT_MLP_UP] = {"mlp_up"},
    [WEIGHT_MLP_UP_BIAS] = {"mlp_up_bias"},
    [WEIGHT_MLP_DOWN] = {"mlp_down"},
    [WEIGHT_MLP_DOWN_BIAS] = {"mlp_down_bias"},
};

/* ---- GGUF ---- */

static const char *const gguf_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
    [WEIGHT_TOKEN_EMBEDDING] = {"token_embd.weight"},
    [WEIGHT_POSITION_EMBEDDING] = {"position_embd.weight"},
    [WEIGHT_FINAL_NORM] = {"output_norm.weight"},
    [WEIGHT_FINAL_NORM_BIAS] = {"output_norm.bias"},
    [WEIGHT_LM_HEAD] = {"output.weight"},
    [WEIGHT_LM_HEAD_BIAS] = {"output.bias"},
    [WEIGHT_ATTN_NORM] = {"attn_norm.weight"},
    [WEIGHT_ATTN_NORM_BIAS] = {"attn_norm.bias"},
    [WEIGHT_QKV] = {"attn_q.weight", "attn_k.weight", "attn_v.weight"},
    [WEIGHT_QKV_BIAS] = {"attn_q.bias", "attn_k.bias", "attn_v.bias"},
    [WEIGHT_Q_NORM] = {"attn_q_norm.weight"},
    [WEIGHT_K_NORM] = {"attn_k_norm.weight"},
    [WEIGHT_ATTN_OUT] = {"attn_output.weight"},
    [WEIGHT_ATTN_OUT_BIAS] = {"attn_output.bias"},
    [WEIGHT_MLP_NORM] = {"ffn_norm.weight"},
    [WEIGHT_MLP_NORM_BIAS] = {"ffn_norm.bias"},
    [WEIGHT_MLP_UP] = {"ffn_gate.weight", "ffn_up.weight"},
    [WEIGHT_MLP_UP_BIAS] = {"ffn_gate.bias", "ffn_up.bias"},
    [WEIGHT_MLP_DOWN] = {"ffn_down.weight"},
    [WEIGHT_MLP_DOWN_BIAS] = {"ffn_down.bias"},
};

/* Read into the config, not bound to a weight. */
static const char *const gguf_needless[] = {"rope_freqs.weight", NULL};

/* ---- By family ---- */

struct tensor_names tensor_names_hf(const char *model_type, bool tied)
{
    struct tensor_names gptd = {.prefix = "", .layer_prefix = "layers."};
    struct tensor_names gpt2 = {.prefix = "transformer.", .layer_prefix = "h.", .conv1d = true,
                                .needless = tied ? gpt2_tied_needless : gpt2_needless};
    struct tensor_names llama = {.prefix = "model.", .layer_prefix = "layers.",
                                 .needless = tied ? llama_tied_needless : llama_needless};
    memcpy(gptd.roles, gptd_roles, sizeof gptd_roles);
    memcpy(gpt2.roles, gpt2_roles, sizeof gpt2_roles);
    memcpy(llama.roles, llama_roles, sizeof llama_roles);
    if (strcmp(model_type, "gptd") == 0) return gptd;
    return strcmp(model_type, "gpt2") == 0 ? gpt2 : llama;
}

static void set_parts(struct tensor_names *names, enum weight_role role, const char *only)
{
    names->roles[role][0] = only;
    names->roles[role][1] = names->roles[role][2] = NULL;
}

struct tensor_names tensor_names_gguf(const char *arch, bool fused_qkv)
{
    struct tensor_names names = {.prefix = "", .layer_prefix = "blk.", .needless = gguf_needless};
    memcpy(names.roles, gguf_roles, sizeof gguf_roles);
    /* llama.cpp rotates neighbouring pairs in this family; its converter reorders the rows. */
    names.rope_pairs = strcmp(arch, "llama") == 0 || strcmp(arch, "mistral") == 0;
    if (!names.rope_pairs && fused_qkv) {
        set_parts(&names, WEIGHT_QKV, "attn_qkv.weight");
        set_parts(&names, WEIGHT_QKV_BIAS, "attn_qkv.bias");
    }
    if (strcmp(arch, "gpt2") == 0) { /* no gate */
        set_parts(&names, WEIGHT_MLP_UP, "ffn_up.weight");
        set_parts(&names, WEIGHT_MLP_UP_BIAS, "ffn_up.bias");
    }
    return names;
}

/* ---- One tensor ---- */

bool tensor_name(const struct tensor_names *names, enum weight_role role, int i, int64_t layer,
                 char out[TENSOR_NAME_BYTES])
{
    const char *name = i < CHECKPOINT_MAX_PARTS ? names->roles[role][i] : NULL;
    char layer_part[64] = "";
    if (!name) return false;
    bool head = role == WEIGHT_LM_HEAD || role == WEIGHT_LM_HEAD_BIAS;
    if (weight_role_is_layer(role))
        snprintf(layer_part, sizeof layer_part, "%s%" PRId64 ".", names->layer_prefix, layer);
    snprintf(out, TENSOR_NAME_BYTES, "%s%s%s", head ? "" : names->prefix, layer_part, name);
    return true;
}

int tensor_n_parts(const struct tensor_names *names, enum weight_role role)
{
    int n = 0;
    while (n < CHECKPOINT_MAX_PARTS && names->roles[role][n]) n++;
    return n;
}

int64_t tensor_part_rows(const struct gpt_config *c, enum weight_role role, int i, int n_parts,
                         int64_t all)
{
    if (n_parts == 1) return all;
    if (role == WEIGHT_MLP_UP || role == WEIGHT_MLP_UP_BIAS) return c->n_ff;
    return (i == 0 ? c->n_head : c->n_kv_head) * c->head_dim;
}

enum part_layout tensor_part_layout(const struct tensor_names *names, enum weight_role role, int i)
{
    bool qk = (role == WEIGHT_QKV || role == WEIGHT_QKV_BIAS) && i < 2;
    if (names->rope_pairs && qk) return PART_ROPE_PAIRS;
    if (names->conv1d && weight_role_is_layer(role) && !weight_role_is_vector(role))
        return PART_TRANSPOSED;
    return PART_ROWS;
}

bool weight_role_is_vector(enum weight_role role)
{
    return role != WEIGHT_TOKEN_EMBEDDING && role != WEIGHT_LM_HEAD &&
           role != WEIGHT_POSITION_EMBEDDING && role != WEIGHT_QKV && role != WEIGHT_ATTN_OUT &&
           role != WEIGHT_MLP_UP && role != WEIGHT_MLP_DOWN;
}
