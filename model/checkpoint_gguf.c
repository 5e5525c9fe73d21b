/* GGUF files as checkpoints: the config from the metadata, names and layouts of the tensors. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model/checkpoint_internal.h"
#include "model/rope_freqs.h"

/* Metadata under "ARCH.", with sticky failure. */
struct metadata {
    const struct gguf *gguf;
    const char *path;
    char arch[24];
    struct error *err;
    bool failed;
};

static bool metadata_fail(struct metadata *m, enum error_code code, const char *key,
                          const char *why)
{
    if (m->failed) return false;
    m->failed = true;
    return error_set(m->err, code, key, "%s: key %s.%s %s", m->path, m->arch, key, why);
}

static const struct gguf_value *metadata_find(const struct metadata *m, const char *key)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", m->arch, key);
    return gguf_find(m->gguf, name);
}

/* `absent` below 0: the key is required. */
static int64_t metadata_int(struct metadata *m, const char *key, int64_t absent)
{
    const struct gguf_value *v = metadata_find(m, key);
    int64_t value = absent;
    if (!v && absent < 0) metadata_fail(m, ERR_FORMAT, key, "is missing");
    if (v && v->type == GGUF_ARRAY)
        metadata_fail(m, ERR_UNSUPPORTED, key, "differs between layers, which is not supported");
    else if (v && !gguf_get_i64(v, &value))
        metadata_fail(m, ERR_FORMAT, key, "is not an integer");
    return value;
}

static float metadata_float(struct metadata *m, const char *key, float absent)
{
    const struct gguf_value *v = metadata_find(m, key);
    double value = (double)absent;
    if (!v && absent < 0) metadata_fail(m, ERR_FORMAT, key, "is missing");
    if (v && !gguf_get_f64(v, &value)) metadata_fail(m, ERR_FORMAT, key, "is not a number");
    return (float)value;
}

static bool metadata_string_is(const struct metadata *m, const char *key, const char *wanted)
{
    struct gguf_string s;
    return gguf_get_string(metadata_find(m, key), &s) && s.len == strlen(wanted) &&
           memcmp(s.data, wanted, s.len) == 0;
}

/* ---- The config ---- */

static bool read_arch(struct metadata *m)
{
    static const char *const known[] = {"llama", "mistral", "qwen2", "qwen3", "gpt2"};
    struct gguf_string s;
    if (!gguf_get_string(gguf_find(m->gguf, "general.architecture"), &s))
        return error_set(m->err, ERR_FORMAT, "general.architecture",
                         "%s: the key general.architecture is missing", m->path);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (s.len != strlen(known[i]) || memcmp(s.data, known[i], s.len) != 0) continue;
        snprintf(m->arch, sizeof m->arch, "%s", known[i]);
        return true;
    }
    return error_set(m->err, ERR_UNSUPPORTED, "general.architecture",
                     "%s: architecture \"%.*s\" is not supported (llama, mistral, qwen2, qwen3 and "
                     "gpt2 are)", m->path, s.len > 40 ? 40 : (int)s.len, s.data);
}

/* Linear scaling, by its new key or its old one. */
static void read_rope_scaling(struct metadata *m, struct gpt_config *c)
{
    float factor = metadata_float(m, "rope.scaling.factor", 0);
    if (metadata_find(m, "rope.scaling.type")) {
        if (metadata_string_is(m, "rope.scaling.type", "none")) return;
        if (!metadata_string_is(m, "rope.scaling.type", "linear")) {
            metadata_fail(m, ERR_UNSUPPORTED, "rope.scaling.type",
                          "is not supported (none and linear are)");
            return;
        }
    } else if (factor == 0) {
        factor = metadata_float(m, "rope.scale_linear", 0);
    }
    if (factor == 0 || factor == 1) return;
    c->rope_scaling = ROPE_SCALING_LINEAR;
    c->rope_factor = factor;
}

static void read_rope(struct metadata *m, struct gpt_config *c)
{
    c->pos_encoding = POS_ROPE;
    c->rope_theta = metadata_float(m, "rope.freq_base", 10000);
    if (metadata_int(m, "rope.dimension_count", c->head_dim) != c->head_dim)
        metadata_fail(m, ERR_UNSUPPORTED, "rope.dimension_count",
                      "is not the head size: a partial rotary embedding is not supported");
    read_rope_scaling(m, c);
}

static void read_sizes(struct metadata *m, struct gpt_config *c)
{
    c->n_layer = metadata_int(m, "block_count", -1);
    c->n_embd = metadata_int(m, "embedding_length", -1);
    c->n_ff = metadata_int(m, "feed_forward_length", -1);
    c->n_head = metadata_int(m, "attention.head_count", -1);
    c->n_kv_head = metadata_int(m, "attention.head_count_kv", c->n_head < 0 ? 0 : c->n_head);
    c->block_size = metadata_int(m, "context_length", -1);
    int64_t head_dim = c->n_head > 0 && c->n_embd > 0 ? c->n_embd / c->n_head : 0;
    c->head_dim = metadata_int(m, "attention.key_length", head_dim);
    if (metadata_int(m, "attention.value_length", c->head_dim) != c->head_dim)
        metadata_fail(m, ERR_UNSUPPORTED, "attention.value_length", "differs from key_length");
    if (metadata_int(m, "expert_count", 0) != 0)
        metadata_fail(m, ERR_UNSUPPORTED, "expert_count",
                      "is set: mixtures of experts are not supported");
    /* As in config_hf.c: within the window, full attention is exact. */
    int64_t window = metadata_int(m, "attention.sliding_window", 0);
    if (window > 0 && window < c->block_size) c->block_size = window;
}

/* Settings of related models that change the arithmetic: refused unless they have no effect, which
 * 0 (unset) never has. */
static void refuse_other_arithmetic(struct metadata *m)
{
    static const struct { const char *key; float neutral; } settings[] = {
        {"attention.scale", 0},        {"attention.max_alibi_bias", 0},
        {"attention.clamp_kqv", 0},    {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0}, {"logit_scale", 1},
        {"residual_scale", 1},         {"embedding_scale", 1},
    };
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        float value = metadata_float(m, settings[i].key, 0);
        if (value != 0 && value != settings[i].neutral)
            metadata_fail(m, ERR_UNSUPPORTED, settings[i].key, "is set, which is not supported");
    }
    bool causal = true;
    if (gguf_get_bool(metadata_find(m, "attention.causal"), &causal) && !causal)
        metadata_fail(m, ERR_UNSUPPORTED, "attention.causal",
                      "is false: the model does not generate text");
}

static bool check_whole(const struct checkpoint *ck, struct error *err)
{
    int64_t n_files;
    if (!gguf_get_i64(gguf_find(ck->gguf, "split.count"), &n_files) || n_files <= 1) return true;
    return error_set(err, ERR_UNSUPPORTED, "split.count",
                     "%s is one of %" PRId64 " files that make the model: merge them first",
                     ck->path, n_files);
}

static bool read_config(struct checkpoint *ck, struct error *err)
{
    struct metadata m = {.gguf = ck->gguf, .path = ck->path, .err = err};
    struct gpt_config *c = &ck->config;
    if (!read_arch(&m)) return false;
    memcpy(c->arch, m.arch, sizeof m.arch);
    bool gpt2 = strcmp(m.arch, "gpt2") == 0;
    refuse_other_arithmetic(&m);
    read_sizes(&m, c);
    if (gpt2) {
        c->norm_type = NORM_LAYERNORM;
        c->norm_eps = metadata_float(&m, "attention.layer_norm_epsilon", -1);
    } else {
        c->norm_type = NORM_RMSNORM;
        c->norm_eps = metadata_float(&m, "attention.layer_norm_rms_epsilon", -1);
        c->mlp_type = MLP_SWIGLU;
        c->qk_norm = strcmp(m.arch, "qwen3") == 0;
        read_rope(&m, c);
    }
    if (m.failed) return false;
    const struct tensor_entry *wte = checkpoint_find(ck, "token_embd.weight");
    if (!wte || wte->n_dims != 2)
        return error_set(err, ERR_FORMAT, NULL, "%s: the weights lack the matrix token_embd.weight",
                         ck->path);
    c->vocab_size = wte->dims[0];
    return true;
}

/* rope_freqs.weight divides each frequency: Llama 3's scaling, spelled out. */
static bool read_rope_freqs(struct checkpoint *ck, struct error *err)
{
    const struct tensor_entry *t = checkpoint_find(ck, "rope_freqs.weight");
    if (!t || ck->config.pos_encoding != POS_ROPE) return true;
    float factors[CONFIG_MAX_HEAD_DIM / 2];
    int64_t n = ck->config.head_dim / 2;
    if (t->n_dims != 1 || t->dims[0] != n || t->dtype != DTYPE_F32)
        return error_set(err, ERR_FORMAT, NULL,
                         "%s: rope_freqs.weight is not a vector of %" PRId64 " f32", ck->path, n);
    dtype_to_f32(DTYPE_F32, t->data, n, factors);
    return rope_freqs_to_config(factors, n, ck->path, &ck->config, err);
}

bool checkpoint_open_gguf(struct checkpoint *ck, struct error *err)
{
    ck->format = CHECKPOINT_GGUF;
    if (!gguf_open(ck->path, &ck->gguf, err) || !check_whole(ck, err) ||
        !checkpoint_list_tensors(ck, err) || !read_config(ck, err))
        return false;
    struct gpt_config *c = &ck->config;
    bool fused_qkv = checkpoint_find(ck, "blk.0.attn_qkv.weight") != NULL;
    struct tensor_names names = tensor_names_gguf(c->arch, fused_qkv);
    checkpoint_switches_by_presence(ck, &names);
    c->tie_weights = !checkpoint_has(ck, &names, WEIGHT_LM_HEAD);
    return gpt_config_check(c, ck->path, err) && read_rope_freqs(ck, err) &&
           checkpoint_bind(ck, &names, err);
}
