/* A checkpoint's training state: see train_state.h. (The directory: train_state_dir.c.) */
#include "model/train_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "model/checkpoint_write.h"
#include "model/config.h"
#include "model/config_json.h"
#include "model/safetensors.h"

enum { STATE_FORMAT = 1, JSON_LIMIT = 1 << 20, JSON_DEPTH = 4, LOAD_BYTES = 4 << 20 };

static const char state_name[] = "trainer_state.json";
static const char config_name[] = "train_config.json";
static const char arrays_name[] = "optimizer.safetensors";

static bool no_memory(struct error *err)
{
    return error_set(err, ERR_MEMORY, NULL, "no memory for the training state");
}

/* Prints the object, which it frees, to DIR/name; NULL: out of memory. */
static bool write_json(const char *dir, const char *name, struct cJSON *object, struct error *err)
{
    char path[RUN_PATH_MAX];
    char *text = object ? cJSON_Print(object) : NULL;
    cJSON_Delete(object);
    if (!text) return no_memory(err);
    bool ok = path_join(path, sizeof path, dir, name, err)
              && file_write_atomic(path, text, strlen(text), err);
    free(text);
    return ok;
}

static struct cJSON *read_json(const char *dir, const char *name, char path[RUN_PATH_MAX],
                               struct buf *text, struct error *err)
{
    buf_init(text, JSON_LIMIT);
    if (!path_join(path, RUN_PATH_MAX, dir, name, err) || !file_read(path, text, err)) return NULL;
    return json_parse(text->data ? text->data : "", text->len, JSON_DEPTH, path, err);
}

/* ---- trainer_state.json ---- */

static bool add_spikes(struct cJSON *object, const struct spike_watch *w)
{
    struct cJSON *losses = cJSON_AddArrayToObject(object, "recent_losses");
    bool ok = losses && json_add_number(object, "ordinary_losses", (double)w->n)
              && json_add_number(object, "spikes_in_a_row", (double)w->off_in_a_row);
    for (int64_t i = 0; ok && i < min_i64(w->n, SPIKE_WINDOW); i++) {
        char number[32];
        snprintf(number, sizeof number, "%.17g", w->losses[i]);
        struct cJSON *item = cJSON_CreateRaw(number);
        ok = item && cJSON_AddItemToArray(losses, item);
    }
    return ok;
}

/* Nothing when it is off. */
static bool add_loss_scale(struct cJSON *object, const struct loss_scale *s)
{
    return s->scale == 0
           || (json_add_number(object, "loss_scale", s->scale)
               && json_add_number(object, "finite_steps_in_a_row", (double)s->finite_in_a_row)
               && json_add_number(object, "skipped_steps", (double)s->skipped));
}

static bool write_state(const char *dir, const struct train_state *s, struct error *err)
{
    struct cJSON *object = cJSON_CreateObject();
    bool ok = object && json_add_number(object, "format", STATE_FORMAT)
              && json_add_number(object, "step", (double)s->step)
              && cJSON_AddStringToObject(object, "data", s->fingerprint)
              && json_add_number(object, "best_step", (double)s->best_step)
              && json_add_number(object, "best_loss", s->best_loss)
              && json_add_number(object, "evaluations_since_best", (double)s->evals_since_best)
              && add_spikes(object, &s->spikes) && add_loss_scale(object, &s->loss_scale);
    if (ok) return write_json(dir, state_name, object, err);
    cJSON_Delete(object);
    return no_memory(err);
}

static void read_spikes(struct config_reader *r, struct spike_watch *w)
{
    w->n = config_int(r, "ordinary_losses", CONFIG_REQUIRED);
    w->off_in_a_row = config_int(r, "spikes_in_a_row", CONFIG_REQUIRED);
    const struct cJSON *losses = config_member(r, "recent_losses"), *item;
    int64_t n = 0;
    cJSON_ArrayForEach(item, losses)
    {
        if (n == SPIKE_WINDOW || !cJSON_IsNumber(item)) break;
        w->losses[n++] = item->valuedouble;
    }
    if (w->n < 0 || n != min_i64(w->n, SPIKE_WINDOW))
        config_fail(r, ERR_FORMAT, "recent_losses", "\"recent_losses\" has not as many numbers as "
                    "\"ordinary_losses\" says");
}

static void read_loss_scale(struct config_reader *r, struct loss_scale *s)
{
    s->scale = config_number(r, "loss_scale", 0);
    s->finite_in_a_row = config_int(r, "finite_steps_in_a_row", 0);
    s->skipped = config_int(r, "skipped_steps", 0);
    if (!(s->scale == 0 || s->scale >= LOSS_SCALE_MIN) || s->finite_in_a_row < 0 || s->skipped < 0)
        config_fail(r, ERR_FORMAT, "loss_scale", "\"loss_scale\" is %g, after %lld and with %lld "
                    "skipped steps: no run writes this", s->scale, (long long)s->finite_in_a_row,
                    (long long)s->skipped);
}

static void read_state(struct config_reader *r, struct train_state *s)
{
    if (config_int(r, "format", CONFIG_REQUIRED) != STATE_FORMAT)
        config_fail(r, ERR_UNSUPPORTED, "format", "the training state's format is not %d",
                    STATE_FORMAT);
    s->step = config_int(r, "step", CONFIG_REQUIRED);
    s->best_step = config_int(r, "best_step", CONFIG_REQUIRED);
    s->best_loss = config_number(r, "best_loss", CONFIG_REQUIRED);
    s->evals_since_best = config_int(r, "evaluations_since_best", CONFIG_REQUIRED);
    snprintf(s->fingerprint, sizeof s->fingerprint, "%s", config_string(r, "data", ""));
    read_spikes(r, &s->spikes);
    read_loss_scale(r, &s->loss_scale);
    if (s->step < 0) config_fail(r, ERR_FORMAT, "step", "\"step\" is negative");
}

bool train_state_read(const char *dir, struct train_state *out, struct error *err)
{
    char path[RUN_PATH_MAX];
    struct buf text;
    struct train_state s = {0};
    struct cJSON *root = read_json(dir, state_name, path, &text, err);
    bool ok = root != NULL;
    if (ok) {
        struct config_reader r = {.object = root, .where = path, .err = err};
        if (cJSON_IsObject(root)) read_state(&r, &s);
        else config_fail(&r, ERR_FORMAT, NULL, "is %s, not an object", json_type_name(root));
        ok = !r.failed;
    }
    cJSON_Delete(root);
    buf_free(&text);
    if (ok) *out = s;
    return ok;
}

/* ---- train_config.json ---- */

bool train_state_write_config(const char *dir, const struct gpt_config *model,
                              const struct train_config *c, struct error *err)
{
    struct cJSON *object = cJSON_CreateObject();
    bool ok = object && gpt_config_to_preset(model, object) && train_config_to_json(c, object);
    if (ok) return write_json(dir, config_name, object, err);
    cJSON_Delete(object);
    return no_memory(err);
}

bool train_state_read_config(const char *dir, struct gpt_config *model, struct train_config *c,
                             struct error *err)
{
    char path[RUN_PATH_MAX];
    struct buf text;
    buf_init(&text, JSON_LIMIT);
    train_config_init(c);
    bool ok = path_join(path, sizeof path, dir, config_name, err) && file_read(path, &text, err);
    const char *json = text.data ? text.data : "";
    ok = ok && gpt_config_from_preset(json, text.len, path, model, err)
         && train_config_from_json(json, text.len, path, c, err);
    buf_free(&text);
    /* What an older gptd did not know to write was the default. */
    if (ok) train_config_resolve(c, model->block_size, max_i64(1, model->vocab_size));
    return ok;
}

/* ---- optimizer.safetensors ---- */

/* What the reader of an array needs. */
struct arrays {
    const struct optimizer *o;
    struct device *d;
};

static bool read_array(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                       uint8_t *out, struct error *err)
{
    const struct arrays *a = ctx;
    struct optimizer_array array = optimizer_array(a->o, a->d, t->tag);
    ASSERT(offset >= 0 && n >= 0 && offset + n <= array.bytes);
    a->d->ops->download(a->d, out, (const uint8_t *)array.data + offset, (size_t)n);
    return a->d->ops->sync(a->d, err);
}

static bool write_arrays(const char *dir, const struct optimizer *o, struct device *d,
                         struct error *err)
{
    static const char *const metadata[] = {"format", "gptd", NULL};
    char path[RUN_PATH_MAX];
    struct arrays a = {o, d};
    int64_t n = optimizer_n_arrays(o); /* none when everything is frozen */
    struct tensor_source *sources = calloc((size_t)max_i64(n, 1), sizeof *sources);
    if (!sources) return no_memory(err);
    for (int64_t i = 0; i < n; i++) {
        struct optimizer_array array = optimizer_array(o, d, i);
        struct tensor_source *s = &sources[i];
        *s = (struct tensor_source){.raw_type = "U8", .n_dims = 1, .dims = {array.bytes},
                                    .bytes = array.bytes, .read = read_array, .ctx = &a, .tag = i};
        memcpy(s->name, array.name, sizeof s->name);
    }
    bool ok = path_join(path, sizeof path, dir, arrays_name, err)
              && safetensors_write(path, sources, n, metadata, err);
    free(sources);
    return ok;
}

static const struct safetensors_tensor *find_tensor(const struct safetensors *s, const char *name)
{
    for (size_t i = 0; i < s->n_tensors; i++)
        if (strcmp(s->tensors[i].name, name) == 0) return &s->tensors[i];
    return NULL;
}

/* The file must hold these arrays, all and only. */
static bool load_arrays(const struct safetensors *s, const char *path, const struct optimizer *o,
                        struct device *d, struct error *err)
{
    int64_t n = optimizer_n_arrays(o);
    if ((int64_t)s->n_tensors != n)
        return error_set(err, ERR_FORMAT, NULL, "%s has %zu arrays; this run has %lld", path,
                         s->n_tensors, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        struct optimizer_array array = optimizer_array(o, d, i);
        const struct safetensors_tensor *t = find_tensor(s, array.name);
        if (!t || t->size != array.bytes)
            return error_set(err, ERR_FORMAT, NULL, "%s: %s is %lld bytes; this run has %lld: it "
                             "was written by another kind of device or version", path, array.name,
                             t ? (long long)t->size : -1LL, (long long)array.bytes);
        for (int64_t at = 0; at < array.bytes; at += LOAD_BYTES) {
            d->ops->upload(d, (uint8_t *)array.data + at, t->data + at,
                           (size_t)min_i64(LOAD_BYTES, array.bytes - at));
            file_map_forget(&s->map);
        }
    }
    return d->ops->sync(d, err);
}

bool train_state_load(const char *dir, struct optimizer *o, struct device *d, struct error *err)
{
    char path[RUN_PATH_MAX];
    struct safetensors *s;
    if (!path_join(path, sizeof path, dir, arrays_name, err) || !safetensors_open(path, &s, err))
        return false;
    bool ok = load_arrays(s, path, o, d, err);
    safetensors_close(s);
    return ok;
}

bool train_state_write(const char *dir, const struct train_state *s, const struct train_config *c,
                       const struct gpt *g, const struct optimizer *o, struct device *d,
                       struct error *err)
{
    return write_arrays(dir, o, d, err) && train_state_write_config(dir, &g->config, c, err)
           && write_state(dir, s, err);
}
