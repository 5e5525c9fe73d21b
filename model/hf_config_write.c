/* Writing config.json: see hf_config_write.h. Read back by config_hf.c. */
#include "model/hf_config_write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The family ---- */

static bool is_gpt2(const struct gpt_config *c)
{
    return c->pos_encoding == POS_LEARNED && c->norm_type == NORM_LAYERNORM &&
           c->mlp_type != MLP_SWIGLU && c->n_kv_head == c->n_head && !c->qk_norm &&
           c->head_dim * c->n_head == c->n_embd && !c->bias_lm_head;
}

static bool is_llama_like(const struct gpt_config *c)
{
    return c->pos_encoding == POS_ROPE && c->norm_type == NORM_RMSNORM &&
           c->mlp_type == MLP_SWIGLU && !c->bias_norm && !c->bias_lm_head;
}

static const char *llama_family(const struct gpt_config *c)
{
    bool biased = c->bias_qkv || c->bias_attn_out || c->bias_mlp;
    if (c->qk_norm) return c->bias_mlp ? "gptd" : "qwen3";
    if (c->bias_qkv && !c->bias_attn_out && !c->bias_mlp) return "qwen2";
    return strcmp(c->arch, "mistral") == 0 && !biased ? "mistral" : "llama";
}

void hf_config_family(const struct gpt_config *c, struct gpt_config *as)
{
    const char *family = is_gpt2(c) ? "gpt2" : is_llama_like(c) ? llama_family(c) : "gptd";
    *as = *c;
    snprintf(as->arch, sizeof as->arch, "%s", family);
    if (strcmp(family, "gpt2") == 0)
        as->bias_qkv = as->bias_attn_out = as->bias_mlp = as->bias_norm = true;
    /* attention_bias stands for all four projections. */
    if (strcmp(family, "llama") == 0 || strcmp(family, "qwen3") == 0)
        as->bias_qkv = as->bias_attn_out = c->bias_qkv || c->bias_attn_out;
}

/* ---- The keys ---- */

/* An object that is being written, and how deep it lies. */
struct object {
    struct buf *out;
    int depth;
    bool begun;
};

static void put_key(struct object *o, const char *key)
{
    buf_printf(o->out, "%s\n%*s\"%s\": ", o->begun ? "," : "", 2 * o->depth, "", key);
    o->begun = true;
}

static struct object begin_object(struct object *parent, const char *key)
{
    put_key(parent, key);
    buf_putc(parent->out, '{');
    return (struct object){parent->out, parent->depth + 1, false};
}

static void end_object(const struct object *o)
{
    buf_printf(o->out, "\n%*s}", 2 * (o->depth - 1), "");
}

static void put_int(struct object *o, const char *key, int64_t value)
{
    put_key(o, key);
    buf_printf(o->out, "%" PRId64, value);
}

static void put_bool(struct object *o, const char *key, bool value)
{
    put_key(o, key);
    buf_puts(o->out, value ? "true" : "false");
}

static void put_word(struct object *o, const char *key, const char *value)
{
    put_key(o, key);
    buf_printf(o->out, "\"%s\"", value);
}

/* The shortest decimal that reads back as the same float, whole numbers with a point: transformers
 * wants a float where it expects one. */
static void put_float(struct object *o, const char *key, float value)
{
    char text[48];
    bool whole = value == floorf(value) && fabsf(value) < 1e15f;
    for (int digits = 1; digits <= 9 && !whole; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    if (whole) snprintf(text, sizeof text, "%.1f", (double)value);
    put_key(o, key);
    buf_puts(o->out, text);
}

static void put_null(struct object *o, const char *key)
{
    put_key(o, key);
    buf_puts(o->out, "null");
}

static void put_id(struct object *o, const char *key, int32_t id)
{
    if (id < 0) put_null(o, key);
    else put_int(o, key, id);
}

static void print_gpt2(struct object *o, const struct gpt_config *c)
{
    put_int(o, "n_layer", c->n_layer);
    put_int(o, "n_head", c->n_head);
    put_int(o, "n_embd", c->n_embd);
    put_int(o, "n_inner", c->n_ff);
    put_int(o, "n_positions", c->block_size);
    put_int(o, "n_ctx", c->block_size);
    put_word(o, "activation_function", c->mlp_type == MLP_GELU_EXACT ? "gelu" : "gelu_new");
    put_float(o, "layer_norm_epsilon", c->norm_eps);
    put_float(o, "resid_pdrop", c->dropout);
    put_float(o, "embd_pdrop", c->dropout);
    put_float(o, "attn_pdrop", c->dropout);
    put_bool(o, "scale_attn_weights", true);
}

static void print_rope(struct object *o, const struct gpt_config *c)
{
    put_float(o, "rope_theta", c->rope_theta);
    if (c->rope_scaling == ROPE_SCALING_NONE) {
        put_null(o, "rope_scaling");
        return;
    }
    bool llama3 = c->rope_scaling == ROPE_SCALING_LLAMA3;
    struct object scaling = begin_object(o, "rope_scaling");
    put_word(&scaling, "rope_type", llama3 ? "llama3" : "linear");
    put_float(&scaling, "factor", c->rope_factor);
    if (llama3) {
        put_float(&scaling, "low_freq_factor", c->rope_low_freq);
        put_float(&scaling, "high_freq_factor", c->rope_high_freq);
        put_int(&scaling, "original_max_position_embeddings", c->rope_original_context);
    }
    end_object(&scaling);
}

static void print_llama(struct object *o, const struct gpt_config *c)
{
    put_int(o, "num_hidden_layers", c->n_layer);
    put_int(o, "num_attention_heads", c->n_head);
    put_int(o, "num_key_value_heads", c->n_kv_head);
    put_int(o, "head_dim", c->head_dim);
    put_int(o, "hidden_size", c->n_embd);
    put_int(o, "intermediate_size", c->n_ff);
    put_int(o, "max_position_embeddings", c->block_size);
    put_word(o, "hidden_act", "silu");
    put_float(o, "rms_norm_eps", c->norm_eps);
    print_rope(o, c);
    if (strcmp(c->arch, "llama") == 0 || strcmp(c->arch, "qwen3") == 0)
        put_bool(o, "attention_bias", c->bias_attn_out);
    if (strcmp(c->arch, "llama") == 0) put_bool(o, "mlp_bias", c->bias_mlp);
    if (strcmp(c->arch, "mistral") == 0) {
        put_null(o, "sliding_window");
    } else if (strcmp(c->arch, "llama") != 0) {
        put_bool(o, "use_sliding_window", false);
    }
}

/* gptd's own words, in an object of their own: the keys of configs/NAME.json. */
static void print_gptd(struct object *parent, const struct gpt_config *c)
{
    static const char *const mlps[] = {"gelu", "gelu_exact", "swiglu"};
    static const char *const scalings[] = {"none", "linear", "llama3"};
    struct object gptd = begin_object(parent, "gptd"), *o = &gptd;
    put_int(o, "n_layer", c->n_layer);
    put_int(o, "n_head", c->n_head);
    put_int(o, "n_kv_head", c->n_kv_head);
    put_int(o, "head_dim", c->head_dim);
    put_int(o, "n_embd", c->n_embd);
    put_int(o, "n_ff", c->n_ff);
    put_int(o, "vocab_size", c->vocab_size);
    put_int(o, "block_size", c->block_size);
    put_word(o, "pos_encoding", c->pos_encoding == POS_ROPE ? "rope" : "learned");
    if (c->pos_encoding == POS_ROPE) {
        put_float(o, "rope_theta", c->rope_theta);
        put_word(o, "rope_scaling", scalings[c->rope_scaling]);
        put_float(o, "rope_factor", c->rope_factor);
        put_float(o, "rope_low_freq", c->rope_low_freq);
        put_float(o, "rope_high_freq", c->rope_high_freq);
        put_int(o, "rope_original_context", c->rope_original_context);
    }
    put_word(o, "norm_type", c->norm_type == NORM_RMSNORM ? "rmsnorm" : "layernorm");
    put_float(o, "norm_eps", c->norm_eps);
    put_word(o, "mlp_type", mlps[c->mlp_type]);
    put_bool(o, "bias_qkv", c->bias_qkv);
    put_bool(o, "bias_attn_out", c->bias_attn_out);
    put_bool(o, "bias_mlp", c->bias_mlp);
    put_bool(o, "bias_norm", c->bias_norm);
    put_bool(o, "bias_lm_head", c->bias_lm_head);
    put_bool(o, "qk_norm", c->qk_norm);
    put_bool(o, "tie_weights", c->tie_weights);
    put_float(o, "dropout", c->dropout);
    end_object(o);
}

static const char *architecture(const char *arch)
{
    static const char *const names[][2] = {
        {"gpt2", "GPT2LMHeadModel"},      {"llama", "LlamaForCausalLM"},
        {"mistral", "MistralForCausalLM"}, {"qwen2", "Qwen2ForCausalLM"},
        {"qwen3", "Qwen3ForCausalLM"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(arch, names[i][0]) == 0) return names[i][1];
    return "GptdForCausalLM";
}

void hf_config_print(struct buf *out, const struct gpt_config *as, enum dtype dtype, int32_t bos,
                     int32_t eos)
{
    struct object whole = {.out = out, .depth = 1}, *o = &whole;
    buf_putc(out, '{');
    put_key(o, "architectures");
    buf_printf(o->out, "[\"%s\"]", architecture(as->arch));
    put_word(o, "model_type", as->arch);
    put_int(o, "vocab_size", as->vocab_size);
    if (strcmp(as->arch, "gpt2") == 0) print_gpt2(o, as);
    else if (strcmp(as->arch, "gptd") == 0) print_gptd(o, as);
    else print_llama(o, as);
    put_bool(o, "tie_word_embeddings", as->tie_weights);
    put_float(o, "initializer_range", 0.02f);
    put_bool(o, "use_cache", true);
    put_word(o, "torch_dtype", dtype == DTYPE_F32   ? "float32"
                                 : dtype == DTYPE_F16 ? "float16"
                                                      : "bfloat16");
    put_id(o, "bos_token_id", bos);
    put_id(o, "eos_token_id", eos);
    end_object(o);
    buf_putc(out, '\n');
}
