/* Hugging Face's config.json: gpt2, llama, mistral, qwen2 and qwen3. Where a key is absent, the
 * family's own default holds (those of transformers' configuration classes). */
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "model/config.h"
#include "model/config_json.h"

enum { HF_MAX_DEPTH = 32 };

/* What differs between the RoPE families when config.json does not say. */
struct family {
    const char *model_type;
    int64_t n_kv_head;      /* 0: as many as n_head */
    int64_t head_dim;       /* 0: n_embd / n_head */
    int64_t sliding_window; /* 0: the family has none */
    bool window_is_switched; /* by use_sliding_window */
    bool bias_qkv;          /* always on, with none on the output; else attention_bias says */
    bool qk_norm;
};

static const struct family families[] = {
    {.model_type = "llama"},
    {.model_type = "mistral", .n_kv_head = 8, .sliding_window = 4096},
    {.model_type = "qwen2", .n_kv_head = 32, .sliding_window = 4096, .window_is_switched = true,
     .bias_qkv = true},
    {.model_type = "qwen3", .n_kv_head = 32, .head_dim = 128, .sliding_window = 4096,
     .window_is_switched = true, .qk_norm = true},
};

/* A switch that must have one value, because the other changes the arithmetic. */
static void require_bool(struct config_reader *r, const char *key, bool wanted)
{
    if (config_bool(r, key, wanted) != wanted)
        config_fail(r, ERR_UNSUPPORTED, key, "\"%s\": %s is not supported", key,
                    wanted ? "false" : "true");
}

/* An integer for which absent and null mean different things. */
static int64_t int_or(struct config_reader *r, const char *key, int64_t absent, int64_t null)
{
    return config_int(r, key, json_get(r->object, key) ? null : absent);
}

static void read_gelu(struct config_reader *r, struct gpt_config *c)
{
    const char *name = config_string(r, "activation_function", "gelu_new");
    if (strcmp(name, "gelu_new") == 0 || strcmp(name, "gelu_pytorch_tanh") == 0 ||
        strcmp(name, "gelu_fast") == 0)
        c->mlp_type = MLP_GELU_TANH;
    else if (strcmp(name, "gelu") == 0)
        c->mlp_type = MLP_GELU_EXACT;
    else
        config_fail(r, ERR_UNSUPPORTED, "activation_function",
                    "activation_function \"%.40s\" is not supported (gelu_new, gelu_pytorch_tanh "
                    "and gelu are)", name);
}

/* Biases are on here; the checkpoint switches off those that its file leaves out. */
static void read_gpt2(struct config_reader *r, struct gpt_config *c)
{
    c->n_layer = config_int(r, "n_layer", CONFIG_REQUIRED);
    c->n_head = c->n_kv_head = config_int(r, "n_head", CONFIG_REQUIRED);
    c->n_embd = config_int(r, "n_embd", CONFIG_REQUIRED);
    c->head_dim = c->n_head > 0 ? c->n_embd / c->n_head : 0;
    c->n_ff = config_int(r, "n_inner", 4 * min_i64(c->n_embd, CONFIG_MAX_WIDTH));
    c->vocab_size = config_int(r, "vocab_size", CONFIG_REQUIRED);
    c->block_size = config_int(r, config_member(r, "n_positions") ? "n_positions" : "n_ctx",
                               CONFIG_REQUIRED);
    c->norm_type = NORM_LAYERNORM;
    c->norm_eps = (float)config_number(r, "layer_norm_epsilon", 1e-5);
    c->bias_qkv = c->bias_attn_out = c->bias_mlp = c->bias_norm = true;
    c->tie_weights = config_bool(r, "tie_word_embeddings", true);
    c->dropout = (float)config_number(r, "resid_pdrop", 0);
    read_gelu(r, c);
    require_bool(r, "scale_attn_weights", true);
    require_bool(r, "scale_attn_by_inverse_layer_idx", false);
    require_bool(r, "add_cross_attention", false);
    if (c->n_head > 0 && c->n_embd % c->n_head != 0)
        config_fail(r, ERR_FORMAT, "n_head", "n_embd (%lld) is not a multiple of n_head (%lld)",
                    (long long)c->n_embd, (long long)c->n_head);
}

/* Llama 3.1's parameters; `r` reads the rope object. */
static void read_rope_llama3(struct config_reader *r, struct gpt_config *c)
{
    c->rope_scaling = ROPE_SCALING_LLAMA3;
    c->rope_factor = (float)config_number(r, "factor", CONFIG_REQUIRED);
    c->rope_low_freq = (float)config_number(r, "low_freq_factor", CONFIG_REQUIRED);
    c->rope_high_freq = (float)config_number(r, "high_freq_factor", CONFIG_REQUIRED);
    c->rope_original_context = config_int(r, "original_max_position_embeddings", CONFIG_REQUIRED);
}

/* rope_theta and rope_scaling; newer files put both into one rope_parameters object. */
static void read_rope(struct config_reader *r, struct gpt_config *c)
{
    const char *key = config_member(r, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const struct cJSON *object = config_member(r, key);
    double theta = config_number(r, "rope_theta", 10000);
    c->pos_encoding = POS_ROPE;
    c->rope_theta = (float)theta;
    if (!object) return;
    if (!cJSON_IsObject(object)) {
        config_fail(r, ERR_FORMAT, key, "\"%s\" is %s, not an object", key, json_type_name(object));
        return;
    }
    struct config_reader rope = {object, r->where, r->err, r->failed};
    c->rope_theta = (float)config_number(&rope, "rope_theta", theta);
    if (config_number(&rope, "partial_rotary_factor", 1) != 1)
        config_fail(&rope, ERR_UNSUPPORTED, key, "a partial rotary embedding is not supported");
    for (const struct cJSON *item = object->child; item; item = item->next)
        if (cJSON_IsObject(item))
            config_fail(&rope, ERR_UNSUPPORTED, key, "\"%s\" with parameters per layer type is "
                        "not supported", key);
    const char *type = config_string(&rope, "rope_type", config_string(&rope, "type", "default"));
    if (strcmp(type, "llama3") == 0) {
        read_rope_llama3(&rope, c);
    } else if (strcmp(type, "linear") == 0) {
        c->rope_scaling = ROPE_SCALING_LINEAR;
        c->rope_factor = (float)config_number(&rope, "factor", CONFIG_REQUIRED);
    } else if (strcmp(type, "default") != 0) {
        config_fail(&rope, ERR_UNSUPPORTED, key,
                    "rope type \"%.40s\" is not supported (default, linear and llama3 are)", type);
    }
    r->failed = rope.failed;
}

/* True when some layer attends through a sliding window, as layer_types says. */
static bool any_sliding_layer(struct config_reader *r, bool absent)
{
    const struct cJSON *types = config_member(r, "layer_types"), *item;
    bool sliding = false;
    if (!types) return absent;
    cJSON_ArrayForEach(item, types)
    {
        const char *type = cJSON_IsString(item) ? item->valuestring : json_type_name(item);
        if (strcmp(type, "sliding_attention") == 0)
            sliding = true;
        else if (strcmp(type, "full_attention") != 0)
            config_fail(r, ERR_UNSUPPORTED, "layer_types", "layer type \"%.40s\" is not supported",
                        type);
    }
    return sliding;
}

/* A query sees the window's newest keys, its own among them. Contexts up to the window therefore
 * see everything, and full attention is exact: the window limits block_size. */
static void read_sliding_window(struct config_reader *r, const struct family *f,
                                struct gpt_config *c)
{
    bool on = f->sliding_window > 0;
    if (f->window_is_switched) on = config_bool(r, "use_sliding_window", false);
    if (!any_sliding_layer(r, on) || !on) return;
    int64_t window = int_or(r, "sliding_window", f->sliding_window, 0);
    if (window < 0) config_fail(r, ERR_FORMAT, "sliding_window", "\"sliding_window\" is negative");
    if (window > 0) c->block_size = min_i64(c->block_size, window);
}

static void read_llama(struct config_reader *r, const struct family *f, struct gpt_config *c)
{
    c->n_layer = config_int(r, "num_hidden_layers", CONFIG_REQUIRED);
    c->n_head = config_int(r, "num_attention_heads", CONFIG_REQUIRED);
    c->n_embd = config_int(r, "hidden_size", CONFIG_REQUIRED);
    c->n_kv_head = int_or(r, "num_key_value_heads", f->n_kv_head ? f->n_kv_head : c->n_head,
                          c->n_head);
    int64_t head_dim = c->n_head > 0 ? c->n_embd / c->n_head : 0;
    c->head_dim = int_or(r, "head_dim", f->head_dim ? f->head_dim : head_dim, head_dim);
    c->n_ff = config_int(r, "intermediate_size", CONFIG_REQUIRED);
    c->vocab_size = config_int(r, "vocab_size", CONFIG_REQUIRED);
    c->block_size = config_int(r, "max_position_embeddings", CONFIG_REQUIRED);
    c->norm_type = NORM_RMSNORM;
    c->norm_eps = (float)config_number(r, "rms_norm_eps", 1e-6);
    c->mlp_type = MLP_SWIGLU;
    c->bias_attn_out = config_bool(r, "attention_bias", false) && !f->bias_qkv;
    c->bias_qkv = c->bias_attn_out || f->bias_qkv;
    c->bias_mlp = config_bool(r, "mlp_bias", false);
    c->qk_norm = f->qk_norm;
    c->tie_weights = config_bool(r, "tie_word_embeddings", false);
    const char *act = config_string(r, "hidden_act", "silu");
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        config_fail(r, ERR_UNSUPPORTED, "hidden_act",
                    "hidden_act \"%.40s\" is not supported (silu is)", act);
    if (config_number(r, "partial_rotary_factor", 1) != 1)
        config_fail(r, ERR_UNSUPPORTED, "partial_rotary_factor",
                    "a partial rotary embedding is not supported");
    read_rope(r, c);
    read_sliding_window(r, f, c);
}

/* gptd's own words, for models that no family can express: written by hf_config_write.c. */
static void read_gptd(struct config_reader *r, struct gpt_config *c)
{
    const struct cJSON *object = config_member(r, "gptd");
    if (!cJSON_IsObject(object)) {
        config_fail(r, ERR_FORMAT, "gptd", "model_type is \"gptd\", but the object \"gptd\" is %s",
                    object ? json_type_name(object) : "missing");
        return;
    }
    struct config_reader own = {object, r->where, r->err, r->failed};
    config_read_preset(&own, c);
    snprintf(c->arch, sizeof c->arch, "gptd");
    r->failed = own.failed;
}

static void read_family(struct config_reader *r, struct gpt_config *c)
{
    const char *type = config_string(r, "model_type", "");
    if (config_member(r, "quantization_config"))
        config_fail(r, ERR_UNSUPPORTED, "quantization_config",
                    "quantized Hugging Face checkpoints are not supported (GGUF files are)");
    snprintf(c->arch, sizeof c->arch, "%s", type);
    if (strcmp(type, "gpt2") == 0 || strcmp(type, "gptd") == 0) {
        if (strcmp(type, "gpt2") == 0) read_gpt2(r, c);
        else read_gptd(r, c);
        return;
    }
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(type, families[i].model_type) != 0) continue;
        read_llama(r, &families[i], c);
        return;
    }
    config_fail(r, ERR_UNSUPPORTED, "model_type", "model_type \"%.40s\" is not supported (gpt2, "
                "llama, mistral, qwen2 and qwen3 are)", type);
}

bool gpt_config_from_hf(const char *json, size_t n, const char *where, struct gpt_config *out,
                        struct error *err)
{
    struct cJSON *root = json_parse(json, n, HF_MAX_DEPTH, where, err);
    if (!root) return false;
    struct config_reader r = {.object = root, .where = where, .err = err};
    struct gpt_config c = {0};
    if (cJSON_IsObject(root))
        read_family(&r, &c);
    else
        config_fail(&r, ERR_FORMAT, NULL, "the config is %s, not an object", json_type_name(root));
    cJSON_Delete(root);
    if (r.failed || !gpt_config_check(&c, where, err)) return false;
    *out = c;
    return true;
}
