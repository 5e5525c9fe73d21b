/* Checkpoints of a run: written, restored, published as the model that serves. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint.h"
#include "model/checkpoint_write.h"
#include "model/file_write.h"
#include "model/trainer_internal.h"

/* ---- writing ---- */

static bool write_checkpoint(struct trainer *t, const char *path, struct error *err)
{
    const struct trainer_options *o = &t->options;
    return directory_make(path, err) && checkpoint_write(&t->gpt, t->device, path, err)
           && checkpoint_write_tokenizer(o->dir, path, err)
           && train_state_write(path, &t->state, &o->config, &t->gpt, &t->optimizer, t->device, err)
           && checkpoint_seal(path, err);
}

/* `from`/name becomes `to`/name at once: a second name of the file, which is never changed in place. */
static bool link_file(const char *from, const char *to, const char *name, struct error *err)
{
    char source[RUN_PATH_MAX], target[RUN_PATH_MAX], temporary[RUN_PATH_MAX];
    if (!path_join(source, sizeof source, from, name, err)
        || !path_join(target, sizeof target, to, name, err)
        || (size_t)snprintf(temporary, sizeof temporary, "%s/.%s.new", to, name)
               >= sizeof temporary)
        return false;
    unlink(temporary); /* of a run that was killed here */
    if (link(source, temporary) == 0 && rename(temporary, target) == 0) return true;
    if (errno != EPERM && errno != EOPNOTSUPP && errno != EMLINK && errno != EXDEV)
        return error_errno(err, "cannot link %s to %s", target, source);
    /* A file system without hard links: a copy. */
    struct file_map map;
    if (!file_map_open(source, &map, err)) return false;
    bool ok = file_write_atomic(target, map.data, map.size, err);
    file_map_close(&map);
    return ok;
}

bool trainer_publish(struct trainer *t, int64_t step, struct error *err)
{
    static const char *const names[] = {"config.json", "generation_config.json",
                                        "model.safetensors"};
    char from[RUN_PATH_MAX], source[RUN_PATH_MAX];
    if (!train_state_path(t->options.dir, step, from, err)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!path_join(source, sizeof source, from, names[i], err)) return false;
        if (file_exists(source) && !link_file(from, t->options.dir, names[i], err)) return false;
    }
    return true;
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
    if (key)
        return error_set(err, ERR_INVALID, key->name, "%s is another than in %s, so that resuming "
                         "would not give the run that was begun: leave it as it was, or begin a new "
                         "run with --init-from %s", key->name, from, from);
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

static bool load_weights(struct trainer *t, const char *from, struct error *err)
{
    struct checkpoint *ck;
    if (!checkpoint_open(from, &ck, err)) return false;
    bool ok = gpt_load(&t->gpt, t->device, ck, t->load_staging, err);
    checkpoint_close(ck);
    return ok;
}

bool trainer_restore(struct trainer *t, const char *from, struct error *err)
{
    struct train_state s;
    if (!train_state_read(from, &s, err) || !check_same_run(t, from, &s, err)
        || !load_weights(t, from, err))
        return false;
    optimizer_start(&t->optimizer, t->device);
    if (!train_state_load(from, &t->optimizer, t->device, err)) return false;
    t->state = s;
    t->saved_step = s.step;
    return true;
}
