/* Hugging Face directories: config.json beside model.safetensors, or beside shards that
 * model.safetensors.index.json lists. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/checkpoint_internal.h"

enum { CONFIG_MAX_BYTES = 1 << 20, INDEX_MAX_BYTES = 16 << 20, INDEX_DEPTH = 4 };

/* ---- Names ---- */

static const char *gpt2_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
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

static const char *llama_roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS] = {
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

/* ---- Files ---- */

static bool read_config(struct checkpoint *ck, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct buf text;
    if (!path_join(path, sizeof path, ck->path, "config.json", err)) return false;
    if (!file_exists(path))
        return error_set(err, ERR_NOT_FOUND, "model",
                         "%s is no model directory: it has no config.json", ck->path);
    buf_init(&text, CONFIG_MAX_BYTES);
    bool ok = file_read(path, &text, err) &&
              gpt_config_from_hf(text.data, text.len, path, &ck->config, err);
    buf_free(&text);
    return ok;
}

/* A shard lies in the directory itself: its name must not lead elsewhere. */
static bool add_shard(struct checkpoint *ck, const char *file, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    if (!*file || strchr(file, '/') || strstr(file, ".."))
        return error_set(err, ERR_FORMAT, NULL,
                         "%s: the index names the file \"%.80s\"; shards must lie beside it",
                         ck->path, file);
    if (ck->n_shards == CHECKPOINT_MAX_SHARDS)
        return error_set(err, ERR_TOO_LARGE, NULL, "%s: over %d shards", ck->path,
                         CHECKPOINT_MAX_SHARDS);
    if (!path_join(path, sizeof path, ck->path, file, err)) return false;
    if (!ck->shards) {
        ck->shards = calloc(CHECKPOINT_MAX_SHARDS, sizeof *ck->shards);
        ck->shard_paths = calloc(CHECKPOINT_MAX_SHARDS, sizeof *ck->shard_paths);
    }
    char *copy = strdup(path);
    if (!ck->shards || !ck->shard_paths || !copy) {
        free(copy);
        return error_set(err, ERR_MEMORY, NULL, "%s: no memory", ck->path);
    }
    if (!safetensors_open(path, &ck->shards[ck->n_shards], err)) {
        free(copy);
        return false;
    }
    ck->shard_paths[ck->n_shards++] = copy;
    return true;
}

static bool has_shard(const struct checkpoint *ck, const char *file)
{
    size_t dir = strlen(ck->path) + 1;
    for (int32_t i = ck->n_shards - 1; i >= 0; i--)
        if (strcmp(ck->shard_paths[i] + dir, file) == 0) return true;
    return false;
}

static bool open_indexed(struct checkpoint *ck, const struct cJSON *root, const char *path,
                         struct error *err)
{
    const struct cJSON *map = json_get(root, "weight_map");
    if (!cJSON_IsObject(map))
        return error_set(err, ERR_FORMAT, "weight_map", "%s: weight_map is missing", path);
    for (const struct cJSON *item = map->child; item; item = item->next) {
        if (!cJSON_IsString(item))
            return error_set(err, ERR_FORMAT, "weight_map", "%s: the file of %.80s is %s", path,
                             item->string, json_type_name(item));
        if (!has_shard(ck, item->valuestring) && !add_shard(ck, item->valuestring, err))
            return false;
    }
    return true;
}

static bool open_shards(struct checkpoint *ck, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct buf text;
    if (!path_join(path, sizeof path, ck->path, "model.safetensors", err)) return false;
    if (file_exists(path)) return add_shard(ck, "model.safetensors", err);
    if (!path_join(path, sizeof path, ck->path, "model.safetensors.index.json", err)) return false;
    if (!file_exists(path))
        return error_set(err, ERR_NOT_FOUND, "model",
                         "%s has neither model.safetensors nor model.safetensors.index.json",
                         ck->path);
    buf_init(&text, INDEX_MAX_BYTES);
    struct cJSON *root = NULL;
    if (file_read(path, &text, err)) root = json_parse(text.data, text.len, INDEX_DEPTH, path, err);
    buf_free(&text);
    bool ok = root && open_indexed(ck, root, path, err);
    cJSON_Delete(root);
    return ok;
}

/* ---- Opening ---- */

bool checkpoint_open_hf(struct checkpoint *ck, struct error *err)
{
    ck->format = CHECKPOINT_HF;
    if (!read_config(ck, err) || !open_shards(ck, err) || !checkpoint_list_tensors(ck, err))
        return false;
    bool gpt2 = strcmp(ck->config.arch, "gpt2") == 0;
    struct tensor_names names = {.roles = gpt2 ? gpt2_roles : llama_roles,
                                 .layer_prefix = gpt2 ? "h." : "layers.",
                                 .prefix = gpt2 ? "transformer." : "model.",
                                 .conv1d = gpt2};
    /* The bare model (without its head's wrapper) saves its tensors without the prefix. */
    struct tensor_names bare = names;
    bare.prefix = "";
    if (checkpoint_has(ck, &bare, WEIGHT_TOKEN_EMBEDDING)) names = bare;
    if (!checkpoint_has(ck, &names, WEIGHT_LM_HEAD)) ck->config.tie_weights = true;
    if (gpt2) checkpoint_switches_by_presence(ck, &names);
    names.needless = gpt2 ? (ck->config.tie_weights ? gpt2_tied_needless : gpt2_needless)
                          : (ck->config.tie_weights ? llama_tied_needless : llama_needless);
    return checkpoint_bind(ck, &names, err);
}
