/* How a model is trained: every training key, its default, range and meaning, in one table that
 * the config file (configs/NAME.json), the command line and the saved train_config.json go
 * through. Plain values: resolved once, at the start; nothing reads options later. */
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "model/gpt_train.h"
#include "model/optimizer.h"
#include "model/schedule.h"

struct config_reader; /* model/config_json.h */

/* The word "auto", which leaves a format to the trainer (as 0 does a size): beyond every enum's
 * values, and gone once the config is resolved. */
#define TRAIN_AUTO 3

struct train_config {
    /* A step learns from grad_accum_steps x batch_size sequences, micro_batch_size at a time. */
    int64_t batch_size, grad_accum_steps, micro_batch_size;
    int64_t sequence_length;
    int64_t loss_rows; /* rows whose logits exist at a time */
    int64_t max_iters;
    double learning_rate, min_lr;
    double warmup_iters, decay_iters; /* steps, or below 1 a share of max_iters */
    enum lr_schedule lr_schedule;
    double weight_decay, beta1, beta2, eps, grad_clip;
    double dropout, label_smoothing, z_loss;
    int64_t freeze_layers;
    bool freeze_embeddings;
    enum dtype dtype;
    enum recompute recompute;
    enum moment_format moments;
    enum master_format master;
    enum dtype gradients; /* of the blocks' matrices */
    double loss_scale;    /* model/loss_scale.h */
    int64_t seed;
    double val_fraction;
    bool keep_documents_apart;
    int64_t eval_interval, eval_iters, early_stop_patience, spike_patience, sample_tokens;
    int64_t save_interval, keep_checkpoints, log_interval;
};

enum train_key_type { TRAIN_INT, TRAIN_DOUBLE, TRAIN_BOOL, TRAIN_WORD };

struct train_key {
    const char *name;         /* "batch_size"; the flag is --batch-size */
    enum train_key_type type;
    size_t offset;            /* in struct train_config */
    double min, max;          /* TRAIN_INT, TRAIN_DOUBLE */
    const char *const *words; /* TRAIN_WORD: an enum's values in order, NULL at the end; "": none
                                 may be chosen */
    bool fixed;               /* another value would change the weights: a resumed run refuses it */
    const char *arg, *help;   /* for the command line */
};

enum { N_TRAIN_KEYS = 38 };
extern const struct train_key train_keys[N_TRAIN_KEYS];

void train_config_init(struct train_config *c); /* the defaults */
/* The defaults of a run that begins with a trained model: a tenth of the learning rate, since what
 * it has learned is to be bent, not begun again. */
void train_config_init_fine_tuning(struct train_config *c);
/* Reads the keys that are there into *c; the others stay. Ranges are checked by
 * train_config_check. */
void train_config_read(struct config_reader *r, struct train_config *c);
/* The same from a config file's text; the model's keys in it are left to gpt_config_from_preset,
 * which refuses keys that neither knows. */
bool train_config_from_json(const char *json, size_t n, const char *where, struct train_config *c,
                            struct error *err) MUST_CHECK;
/* TRAIN_WORD by its text. ERR_INVALID names the words there are. */
bool train_key_set_word(const struct train_key *key, const char *word, const char *where,
                        struct train_config *c, struct error *err) MUST_CHECK;
const char *train_key_word(const struct train_key *key, const struct train_config *c);
/* The value, as an error says it. */
void train_key_text(const struct train_key *key, const struct train_config *c, char *out,
                    size_t size);
/* Every range and relation that the trainer relies on. Names the key; `where` begins the text. */
bool train_config_check(const struct train_config *c, const char *where, struct error *err)
    MUST_CHECK;
/* What the trainer relies on beside that: sequence_length within the model's block_size,
 * freeze_layers among its layers. Names the key. */
bool train_config_check_model(const struct train_config *c, const struct gpt_config *model,
                              struct error *err) MUST_CHECK;
/* False where a run ends before its warm-up does, which is allowed and hardly meant; *why says
 * so. */
bool train_config_warms_up(const struct train_config *c, struct error *why);
/* Fills in what is left to the trainer: sequence_length, micro_batch_size and loss_rows of 0,
 * min_lr of -1; recompute, moments, master and gradients of TRAIN_AUTO become none, f32, remainder
 * and f32. */
void train_config_resolve(struct train_config *c, int64_t block_size, int64_t vocab_size);
/* Adds every key to a JSON object, numbers exact. False: out of memory. */
bool train_config_to_json(const struct train_config *c, struct cJSON *object) MUST_CHECK;
/* The first key that a resumed run may not change and that differs; NULL when there is none. */
const struct train_key *train_config_difference(const struct train_config *a,
                                                const struct train_config *b);
struct schedule train_config_schedule(const struct train_config *c);
/* A member that reads back as the same double or float. False: out of memory, or not finite. */
bool json_add_number(struct cJSON *object, const char *key, double value) MUST_CHECK;
bool json_add_float(struct cJSON *object, const char *key, float value) MUST_CHECK;
