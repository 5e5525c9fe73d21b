/* What a trainer needs: see train_setup.h. */
#include "server/train_setup.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint.h"
#include "model/file_write.h"
#include "model/train_search.h"
#include "model/tokenizer_char.h"
#include "model/tokenizer_train.h"
#include "model/tokenizer_write.h"

enum { CONFIG_LIMIT = 1 << 20, TOKENIZER_LIMIT = 1 << 30 };

static const char end_of_text[] = "<|endoftext|>";

/* ---- the directory ---- */

/* A name in it that a new run would mix up with its own. */
static bool remove_old_files(const struct train_setup *s, struct error *err)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json", "generation_config.json",
                                        "samples.txt", "checkpoints/best"};
    char path[RUN_PATH_MAX];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!path_join(path, sizeof path, s->dir, names[i], err)) return false;
        unlink(path);
    }
    return train_state_clear(s->dir, err);
}

static bool open_directory(const struct train_options *o, struct train_setup *s, struct error *err)
{
    if (!path_join(s->dir, sizeof s->dir, o->out_dir, o->model_name, err)
        || !directory_make(o->out_dir, err) || !directory_make(s->dir, err)
        || !train_state_lock(s->dir, &s->lock, err))
        return false;
    if (o->resume) {
        int64_t step = train_state_newest(s->dir);
        if (step >= 0) return train_state_path(s->dir, step, s->resume_from, err);
        log_info("%s has no complete checkpoint: training begins at step 1", s->dir);
        return remove_old_files(s, err);
    }
    if (o->overwrite) return remove_old_files(s, err);
    if (!train_state_exists(s->dir)) return true;
    return error_set(err, ERR_INVALID, "model-name", "%s holds a model already: go on with it with "
                     "--resume, lose it with --overwrite, or choose another --model-name", s->dir);
}

/* ---- the config ---- */

bool train_setup_init_config(const char *path, struct gpt_config *model, struct error *err)
{
    char own[RUN_PATH_MAX];
    struct train_config ignored;
    struct checkpoint *ck;
    if (!path_join(own, sizeof own, path, "train_config.json", err)
        || !checkpoint_open(path, &ck, err))
        return false;
    *model = *checkpoint_config(ck);
    bool ok = !file_exists(own) || train_state_read_config(path, model, &ignored, err);
    memcpy(model->arch, checkpoint_config(ck)->arch, sizeof model->arch);
    checkpoint_close(ck);
    return ok;
}

/* --config, if there is one; a model that is known already is what it must agree with. */
static bool read_config(struct train_options *o, struct train_setup *s, bool model_known,
                        struct error *err)
{
    struct buf text;
    if (!o->config) return true;
    train_config_init(&o->training);
    buf_init(&text, CONFIG_LIMIT);
    bool ok = file_read(o->config, &text, err);
    const char *json = text.data ? text.data : "";
    ok = ok && (model_known ? gpt_config_agrees(json, text.len, o->config, &s->model, err)
                            : gpt_config_from_preset(json, text.len, o->config, &s->model, err))
         && train_config_from_json(json, text.len, o->config, &o->training, err);
    buf_free(&text);
    return ok;
}

/* A run goes on with the sizes and formats that it began with, unless the command line names others
 * (and is then refused). What to compute again changes no bits: it may be chosen anew. */
static void keep_begun(const struct train_config *begun, struct train_setup *s,
                       struct train_config *c)
{
    if (c->micro_batch_size == 0) c->micro_batch_size = begun->micro_batch_size;
    if (c->loss_rows == 0) c->loss_rows = begun->loss_rows;
    if ((int)c->moments == TRAIN_AUTO) c->moments = begun->moments;
    if ((int)c->master == TRAIN_AUTO) c->master = begun->master;
    if ((int)c->gradients == TRAIN_AUTO) c->gradients = begun->gradients;
    s->freedom = train_search_freedom(c);
    if ((int)c->recompute == TRAIN_AUTO) c->recompute = begun->recompute;
}

/* The model of the checkpoint, of --init-from, or of --config; then how to train it: of the
 * checkpoint, of --config, or the defaults, and flags over it. */
static bool open_config(struct train_options *o, int argc, char **argv, struct train_setup *s,
                        struct error *err)
{
    bool help, known = *s->resume_from || o->init_from;
    if (o->init_from) train_config_init_fine_tuning(&o->training);
    else train_config_init(&o->training);
    if (!known && !o->config)
        return error_set(err, ERR_INVALID, "config", "there is no checkpoint in %s to resume from; "
                         "to begin, say --config FILE", s->dir);
    if (*s->resume_from && !train_state_read_config(s->resume_from, &s->model, &o->training, err))
        return false;
    struct train_config begun = o->training;
    if (*s->resume_from) o->training.recompute = (enum recompute)TRAIN_AUTO;
    if (!*s->resume_from && o->init_from && !train_setup_init_config(o->init_from, &s->model, err))
        return false;
    if (!read_config(o, s, known, err) || !train_options_parse(o, argc, argv, &help, err))
        return false;
    if (*s->resume_from) keep_begun(&begun, s, &o->training);
    else s->freedom = train_search_freedom(&o->training);
    s->model.dropout = (float)o->training.dropout;
    return train_config_check(&o->training, "the command line", err);
}

/* ---- the tokenizer ---- */

static bool make_tokenizer(const struct train_options *o, struct train_setup *s, struct error *err)
{
    static const char *const specials[] = {end_of_text};
    struct buf json;
    int32_t n;
    buf_init(&json, TOKENIZER_LIMIT);
    bool characters = s->model.vocab_size == 0, ok;
    if (characters) {
        ok = tokenizer_char_make(o->inputs, o->n_inputs, NULL, 0, &json, &n, err);
    } else {
        struct tokenizer_train_report report;
        struct tokenizer_train_options to = {
            .inputs = o->inputs, .n_inputs = o->n_inputs, .specials = specials, .n_specials = 1,
            .vocab_size = (int32_t)s->model.vocab_size, .min_count = 2, .pretokenizer = "gpt2",
        };
        ok = tokenizer_train(&to, &json, &report, err);
        n = ok ? report.vocab_size : 0;
    }
    ok = ok && tokenizer_write(s->dir, &json, characters ? NULL : end_of_text, err);
    buf_free(&json);
    if (ok) log_info("tokenizer of %d %s made from the input", n,
                     characters ? "characters" : "tokens (byte-level BPE)");
    return ok;
}

/* "" when there is none and none can be made. */
static bool find_tokenizer(const struct train_options *o, struct train_setup *s, struct error *err)
{
    const char *from = *s->resume_from ? s->resume_from : o->init_from ? o->init_from
                                                                       : o->tokenizer;
    /* Token shards carry the tokenizer that they were made with. */
    if (!from && file_is_dir(o->inputs[0])) from = o->inputs[0];
    if (!from) {
        if (!make_tokenizer(o, s, err)) return false;
        from = s->dir;
    }
    return command_tokenizer_path(from, s->tokenizer_path, err);
}

static bool open_tokenizer(const struct train_options *o, struct train_setup *s, struct error *err)
{
    if (!find_tokenizer(o, s, err) || !tokenizer_open_path(s->tokenizer_path, &s->tokenizer, err))
        return false;
    if (!s->tokenizer && o->tokenizer)
        return error_set(err, ERR_NOT_FOUND, "tokenizer", "--tokenizer %s: has no tokenizer.json",
                         o->tokenizer);
    if (!s->tokenizer) {
        *s->tokenizer_path = 0;
        if (s->model.vocab_size == 0)
            return error_set(err, ERR_INVALID, "vocab_size", "the config has no vocab_size and "
                             "%s no tokenizer: say --tokenizer PATH", o->inputs[0]);
        return true;
    }
    chat_data_init(&s->chat_data, s->tokenizer, &s->chat);
    int64_t n = tokenizer_vocab_size(s->tokenizer);
    if (s->model.vocab_size == 0) s->model.vocab_size = n;
    if (n <= s->model.vocab_size) return true;
    return error_set(err, ERR_INVALID, "vocab_size", "%s has %lld tokens; the config's vocab_size "
                     "is %lld: it must be at least as large", s->tokenizer_path, (long long)n,
                     (long long)s->model.vocab_size);
}

/* What follows from the model, now that its vocabulary is known. */
static bool resolve_config(struct train_options *o, struct train_setup *s, struct error *err)
{
    struct train_config *c = &o->training;
    if (!gpt_config_check(&s->model, o->config ? o->config : "the model", err)
        || !train_config_check_model(c, &s->model, err))
        return false;
    train_config_resolve(c, s->model.block_size, s->model.vocab_size);
    return true;
}

/* ---- the data ---- */

static bool open_data(const struct train_options *o, const struct train_setup *s,
                      const char *const *inputs, int32_t n, double val_fraction,
                      struct dataset **out, struct error *err)
{
    const struct train_config *c = &o->training;
    struct dataset_options d = {
        .inputs = inputs,
        .n_inputs = n,
        .tokenizer = s->tokenizer,
        .chat = s->tokenizer ? &s->chat : NULL,
        .val_fraction = val_fraction,
        .block_size = c->sequence_length,
        .vocab_size = s->model.vocab_size,
        .keep_documents_apart = c->keep_documents_apart,
        .seed = (uint64_t)c->seed,
    };
    return dataset_open(&d, out, err);
}

/* A file's name without its folders. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static bool open_sets(const struct train_options *o, struct train_setup *s, struct error *err)
{
    for (int32_t i = 0; i < o->val_input.n; i++) {
        if (!open_data(o, s, &o->val_input.at[i], 1, 1, &s->val_data[i], err)) return false;
        s->sets[s->n_sets++] = (struct trainer_set){base_name(o->val_input.at[i]), s->val_data[i],
                                                    SPLIT_VALIDATION};
    }
    if (o->val_input.n == 0 && dataset_sequences(s->data, SPLIT_VALIDATION) > 0)
        s->sets[s->n_sets++] = (struct trainer_set){"validation", s->data, SPLIT_VALIDATION};
    if (s->n_sets == 0 && o->training.eval_interval > 0)
        log_warn("no text is held out for evaluation: see --val-input and --val-fraction");
    return true;
}

/* --epochs in steps: known once the data is. */
static bool resolve_epochs(struct train_options *o, const struct train_setup *s, struct error *err)
{
    struct train_config *c = &o->training;
    int64_t sequences;
    if (o->epochs == 0) return true;
    if (!checked_mul(o->epochs, dataset_sequences(s->data, SPLIT_TRAIN), &sequences))
        sequences = INT64_MAX / 2;
    c->max_iters = ceil_div(sequences, c->batch_size * c->grad_accum_steps);
    return train_config_check(c, "--epochs", err);
}

bool train_setup_open(struct train_options *o, int argc, char **argv, struct train_setup *s,
                      struct error *err)
{
    *s = (struct train_setup){.lock = -1};
    double held_out;
    struct error why;
    if (!open_directory(o, s, err) || !open_config(o, argc, argv, s, err)
        || !open_tokenizer(o, s, err) || !resolve_config(o, s, err))
        return false;
    held_out = o->val_input.n > 0 ? 0 : o->training.val_fraction;
    if (!open_data(o, s, o->inputs, o->n_inputs, held_out, &s->data, err) || !open_sets(o, s, err)
        || !resolve_epochs(o, s, err))
        return false;
    if (!train_config_warms_up(&o->training, &why)) log_warn("%s", why.text);
    log_info("data: %lld tokens to learn from, %lld held out",
             (long long)dataset_tokens(s->data, SPLIT_TRAIN),
             (long long)dataset_tokens(s->data, SPLIT_VALIDATION));
    return true;
}

void train_setup_close(struct train_setup *s)
{
    for (int32_t i = 0; i < TRAINER_MAX_SETS; i++) dataset_close(s->val_data[i]);
    dataset_close(s->data);
    tokenizer_free(s->tokenizer);
    if (s->lock >= 0) close(s->lock);
    *s = (struct train_setup){.lock = -1};
}
