/* A model as a Hugging Face directory: config.json and model.safetensors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "model/checkpoint_write.h"
#include "model/checkpoint_write_internal.h"
#include "model/file_write.h"
#include "model/hf_config_write.h"
#include "model/tokenizer.h"

enum { CONFIG_LIMIT = 1 << 20 };

static bool read_tensor(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                        uint8_t *out, struct error *err)
{
    return export_read(ctx, t->tag, offset, n, out, err);
}

static bool write_tensors(const char *path, const struct weight_source *source,
                          const struct export_tensor *tensors, int64_t n, struct error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL}; /* transformers asks for it */
    struct export_reader reader;
    struct tensor_source *sources = calloc((size_t)n, sizeof *sources);
    if (!sources) return error_set(err, ERR_MEMORY, NULL, "%s: no memory to write it", path);
    if (!export_reader_open(&reader, source, tensors, n, err)) {
        free(sources);
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        struct tensor_source *s = &sources[i];
        *s = (struct tensor_source){.dtype = tensors[i].dtype, .bytes = export_bytes(&tensors[i]),
                                    .read = read_tensor, .ctx = &reader, .tag = i};
        s->n_dims = export_shape(&tensors[i], s->dims);
        ASSERT(strlen(tensors[i].name) < sizeof s->name);
        strcpy(s->name, tensors[i].name);
    }
    bool ok = safetensors_write(path, sources, n, metadata, err);
    export_reader_close(&reader);
    free(sources);
    return ok;
}

static bool write_config(const char *dir, const struct gpt_config *as, enum dtype dtype,
                         int32_t bos, int32_t eos, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct buf text;
    if (!path_join(path, sizeof path, dir, "config.json", err)) return false;
    buf_init(&text, CONFIG_LIMIT);
    hf_config_print(&text, as, dtype, bos, eos);
    bool ok = buf_check(&text, path, err) && file_write_atomic(path, text.data, text.len, err);
    buf_free(&text);
    return ok;
}

/* A tokenizer that is in the directory already knows the markers; one that comes later tells them
 * then (checkpoint_write_markers). */
static bool read_markers(const char *dir, int32_t *bos, int32_t *eos, struct error *err)
{
    struct tokenizer *t;
    if (!tokenizer_open_dir(dir, &t, err)) return false;
    *bos = t ? tokenizer_bos(t) : -1;
    *eos = t ? tokenizer_eos(t) : -1;
    tokenizer_free(t);
    return true;
}

static bool id_is(const struct cJSON *root, const char *key, int32_t id)
{
    int64_t value;
    return json_to_i64(json_get(root, key), &value) ? value == id : id < 0;
}

/* The element type that a config.json names; f32 when it names none that gptd writes. */
static enum dtype named_dtype(const struct cJSON *root)
{
    const struct cJSON *item = json_get(root, "torch_dtype");
    if (cJSON_IsString(item) && strcmp(item->valuestring, "bfloat16") == 0) return DTYPE_BF16;
    if (cJSON_IsString(item) && strcmp(item->valuestring, "float16") == 0) return DTYPE_F16;
    return DTYPE_F32;
}

bool checkpoint_write_markers(const char *dir, int32_t bos, int32_t eos, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct gpt_config c, as;
    struct buf text;
    if (!path_join(path, sizeof path, dir, "config.json", err)) return false;
    if (!file_exists(path)) return true;
    buf_init(&text, CONFIG_LIMIT);
    struct cJSON *root = NULL;
    if (file_read(path, &text, err)) root = json_parse(text.data, text.len, 32, path, err);
    bool ok = root != NULL;
    if (ok && !(id_is(root, "bos_token_id", bos) && id_is(root, "eos_token_id", eos))) {
        ok = gpt_config_from_hf(text.data, text.len, path, &c, err);
        if (ok) hf_config_family(&c, &as);
        ok = ok && write_config(dir, &as, named_dtype(root), bos, eos, err);
    }
    cJSON_Delete(root);
    buf_free(&text);
    return ok;
}

/* What the manifest says of the old files is about to be wrong. */
static bool remove_manifest(const char *dir, struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    if (!path_join(path, sizeof path, dir, "manifest.json", err)) return false;
    if (!file_exists(path) || unlink(path) == 0) return true;
    return error_errno(err, "cannot remove %s", path);
}

bool checkpoint_write_source(const struct weight_source *source, enum dtype dtype, const char *dir,
                             struct error *err)
{
    char path[CHECKPOINT_PATH_MAX];
    struct gpt_config as;
    struct export_tensor *tensors = NULL;
    int64_t n;
    int32_t bos, eos;
    ASSERT(dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16);
    hf_config_family(source->config, &as);
    struct tensor_names names = tensor_names_hf(as.arch, as.tie_weights);
    bool ok = path_join(path, sizeof path, dir, "model.safetensors", err) &&
              directory_make(dir, err) && remove_manifest(dir, err) &&
              export_list(source, &names, &as, dtype, &tensors, &n, err) &&
              read_markers(dir, &bos, &eos, err) && write_tensors(path, source, tensors, n, err) &&
              write_config(dir, &as, dtype, bos, eos, err);
    free(tensors);
    return ok;
}

bool checkpoint_write(const struct gpt *g, struct device *d, const char *dir, struct error *err)
{
    struct weight_source source;
    bool ok = weight_source_of_gpt(&source, g, d, err) &&
              checkpoint_write_source(&source, g->dtype, dir, err);
    weight_source_free(&source);
    return ok;
}
