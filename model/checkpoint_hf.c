/* Hugging Face directories: config.json beside model.safetensors, or beside shards that
 * model.safetensors.index.json lists. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "model/checkpoint_internal.h"

enum { CONFIG_MAX_BYTES = 1 << 20, INDEX_MAX_BYTES = 16 << 20, INDEX_DEPTH = 4 };

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
    struct gpt_config *c = &ck->config;
    bool gpt2 = strcmp(c->arch, "gpt2") == 0;
    struct tensor_names names = tensor_names_hf(c->arch, c->tie_weights);
    /* The bare model (without its head's wrapper) saves its tensors without the prefix. */
    struct tensor_names bare = names;
    bare.prefix = "";
    if (checkpoint_has(ck, &bare, WEIGHT_TOKEN_EMBEDDING)) names = bare;
    if (!checkpoint_has(ck, &names, WEIGHT_LM_HEAD)) c->tie_weights = true;
    names.needless = tensor_names_hf(c->arch, c->tie_weights).needless;
    if (gpt2) checkpoint_switches_by_presence(ck, &names);
    return checkpoint_bind(ck, &names, err);
}
