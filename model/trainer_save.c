/* Checkpoints of a run: written, restored, published as the model that serves. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "model/checkpoint.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"
#include "model/trainer_internal.h"

/* ---- writing ---- */

static bool write_tokenizer(const struct trainer_options *o, const char *path, struct error *err)
{
    return !o->tokenizer_dir || checkpoint_write_tokenizer(o->tokenizer_dir, path, err);
}

static bool write_checkpoint(struct trainer *t, const char *path, struct error *err)
{
    const struct trainer_options *o = &t->options;
    return directory_make(path, err) && checkpoint_write(&t->gpt, t->device, path, err)
           && write_tokenizer(o, path, err)
           && train_state_write(path, &t->state, &o->config, &t->gpt, &t->optimizer, t->device, err)
           && checkpoint_seal(path, err);
}

static bool same_bytes(const char *path, const struct file_map *map)
{
    struct file_map there;
    if (!file_map_open(path, &there, NULL)) return false;
    bool same = there.size == map->size &&
                (map->size == 0 || memcmp(there.data, map->data, map->size) == 0);
    file_map_close(&there);
    return same;
}

/* A copy, unless it is there: people may edit the run's files, the checkpoint's stay as they are
 * sealed. */
static bool copy_file(const char *source, const char *target, struct error *err)
{
    struct file_map map;
    if (!file_map_open(source, &map, err)) return false;
    bool ok = same_bytes(target, &map) || file_write_atomic(target, map.data, map.size, err);
    file_map_close(&map);
    return ok;
}

/* `target` becomes a second name of the file: for weights, which nobody edits in place. */
static bool link_file(const char *source, const char *target, struct error *err)
{
    char temporary[RUN_PATH_MAX + 8];
    snprintf(temporary, sizeof temporary, "%s.link", target);
    unlink(temporary); /* of a run that was killed here */
    if (link(source, temporary) == 0) {
        if (rename(temporary, target) != 0)
            return error_errno(err, "cannot rename %s", temporary);
        unlink(temporary); /* which rename leaves where the two were one file already */
        return true;
    }
    return copy_file(source, target, err); /* a file system without links */
}

static bool publish_file(const char *from, const char *to, const char *name, struct error *err)
{
    char source[RUN_PATH_MAX], target[RUN_PATH_MAX];
    if (!path_join(source, sizeof source, from, name, err)
        || !path_join(target, sizeof target, to, name, err))
        return false;
    return strcmp(name, "model.safetensors") == 0 ? link_file(source, target, err)
                                                  : copy_file(source, target, err);
}

/* What of a checkpoint is the run's business alone. */
static bool is_training_state(const char *name)
{
    static const char *const names[] = {"manifest.json", "optimizer.safetensors",
                                        "trainer_state.json", "train_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return name[0] == '.';
}

bool trainer_publish(struct trainer *t, int64_t step, struct error *err)
{
    char from[RUN_PATH_MAX];
    if (!train_state_path(t->options.dir, step, from, err)) return false;
    DIR *dir = opendir(from);
    if (!dir) return error_errno(err, "cannot list %s", from);
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir));)
        ok = is_training_state(e->d_name) || publish_file(from, t->options.dir, e->d_name, err);
    closedir(dir);
    return ok;
}

bool trainer_save(struct trainer *t, struct error *err)
{
    const struct trainer_options *o = &t->options;
    char path[RUN_PATH_MAX];
    int64_t step = t->state.step;
    if (!path_join(path, sizeof path, o->dir, "checkpoints", err) || !directory_make(path, err)
        || !train_metrics_sync(&t->metrics, err)
        || !train_state_path(o->dir, step, path, err)
        || !train_state_remove(o->dir, step, err) /* what a killed run left of it */
        || !write_checkpoint(t, path, err))
        return false;
    t->saved_step = step;
    bool is_best = t->state.best_step == step;
    if (!trainer_publish(t, step, err) || (is_best && !train_state_link_best(o->dir, step, err))
        || !train_state_prune(o->dir, step, t->state.best_step, o->config.keep_checkpoints, err))
        return false;
    if (o->listener.saved) o->listener.saved(o->listener.ctx, step, path);
    return true;
}

/* ---- restoring ---- */

static bool check_same_run(const struct trainer *t, const char *from, const struct train_state *s,
                           struct error *err)
{
    const struct trainer_options *o = &t->options;
    struct gpt_config model;
    struct train_config c;
    if (!train_state_read_config(from, &model, &c, err)) return false;
    const struct train_key *key = train_config_difference(&c, &o->config);
    if (key) {
        char now[32], then[32];
        train_key_text(key, &o->config, now, sizeof now);
        train_key_text(key, &c, then, sizeof then);
        return error_set(err, ERR_INVALID, key->name, "%s is %s, and is %s in %s: resuming would not give "
                         "the run that was begun; leave it as it was, or begin a new run with "
                         "--init-from %s", key->name, now, then, from, from);
    }
    const char *model_key = gpt_config_difference(&model, &o->model);
    if (model_key)
        return error_set(err, ERR_INVALID, model_key, "%s is another than in %s: a run goes on "
                         "with the model that it began with", model_key, from);
    if (strcmp(s->fingerprint, dataset_fingerprint(o->data)) != 0)
        return error_set(err, ERR_INVALID, "input", "the training data are not those of %s: their "
                         "digest is %.16s..., it was %.16s...; give the same files, or begin a new "
                         "run with --init-from %s", from, dataset_fingerprint(o->data),
                         s->fingerprint, from);
    return true;
}

/* Every weight of the model must be in the file, in its shape: a file may have more (biases of
 * zeros). */
static bool check_shapes(const struct gpt_config *model, const struct gpt_config *file,
                         const char *from, struct error *err)
{
    int64_t n_out, n_in, file_out, file_in;
    if (model->n_layer != file->n_layer)
        return error_set(err, ERR_INVALID, "n_layer", "%s has %lld layers; the config says %lld",
                         from, (long long)file->n_layer, (long long)model->n_layer);
    for (int i = 0; i < N_WEIGHT_ROLES; i++) {
        enum weight_role role = (enum weight_role)i;
        if (!weight_role_shape(model, role, &n_out, &n_in)) continue;
        if (!weight_role_shape(file, role, &file_out, &file_in))
            return error_set(err, ERR_INVALID, NULL, "%s has no %s, which the config asks for",
                             from, weight_role_name(role));
        if (n_out != file_out || n_in != file_in)
            return error_set(err, ERR_INVALID, NULL, "%s: %s is %lld x %lld; the config asks for "
                             "%lld x %lld", from, weight_role_name(role), (long long)file_out,
                             (long long)file_in, (long long)n_out, (long long)n_in);
    }
    return true;
}

bool trainer_load_weights(struct trainer *t, const char *from, struct error *err)
{
    struct checkpoint *ck;
    if (!checkpoint_open(from, &ck, err)) return false;
    bool ok = check_shapes(&t->gpt.config, checkpoint_config(ck), from, err)
              && gpt_load(&t->gpt, t->device, ck, t->load_staging, err)
              && checkpoint_unchanged(ck, err);
    checkpoint_close(ck);
    return ok;
}

bool trainer_restore(struct trainer *t, const char *from, struct error *err)
{
    struct train_state s;
    if (!train_state_read(from, &s, err) || !check_same_run(t, from, &s, err)
        || !trainer_load_weights(t, from, err))
        return false;
    optimizer_start(&t->optimizer, t->device);
    if (!train_state_load(from, &t->optimizer, t->device, err)) return false;
    t->state = s;
    t->state.loss_scale.grows = loss_scale_begin(t->options.config.loss_scale,
                                                 t->options.config.dtype).grows;
    t->saved_step = s.step;
    /* In case it was killed before it did; and this checkpoint will not stay for ever. */
    if (!trainer_publish(t, s.step, err)) return false;
    if (t->options.tokenizer_dir) t->options.tokenizer_dir = t->options.dir;
    return true;
}
