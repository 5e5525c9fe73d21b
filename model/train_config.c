/* Every training key: see train_config.h. */
#include "model/train_config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/config.h"
#include "model/config_json.h"
#include "model/loss_scale.h"

enum {
    CONFIG_DEPTH = 4,
    MICRO_BATCH_ROWS = 2048,         /* enough rows for the products to run at full speed */
    /* Logits at a time. For each of its chunks the head's weights are turned and its gradient goes
     * through memory, which 512 rows make up for; a small vocabulary may have more. */
    LOSS_CHUNK_ROWS = 512, LOSS_CHUNK_BYTES = 128 << 20, LOSS_CHUNK_CHEAP_BYTES = 32 << 20,
    LOSS_CHUNK_UNIT = 64, LOSS_CHUNK_MIN = 128,
};
#define MAX_EXACT 9007199254740992.0 /* 2^53: above, doubles skip integers */

static const char *const schedule_words[] = {"cosine", "linear", "constant", "wsd", NULL};
static const char *const dtype_words[] = {"f32", "f16", "bf16", NULL}; /* as enum dtype */
static const char *const gradient_words[] = {"f32", "", "bf16", "auto", NULL};
static const char *const recompute_words[] = {"none", "selective", "block", "auto", NULL};
static const char *const moment_words[] = {"f32", "bf16", "q8", "auto", NULL};
static const char *const master_words[] = {"", "f32", "remainder", "auto", NULL};
_Static_assert(DTYPE_F32 == 0 && DTYPE_F16 == 1 && DTYPE_BF16 == 2, "dtype_words");
_Static_assert(RECOMPUTE_BLOCK + 1 == TRAIN_AUTO && MOMENT_Q8 + 1 == TRAIN_AUTO, "words");
_Static_assert(MASTER_REMAINDER + 1 == TRAIN_AUTO && DTYPE_BF16 + 1 == TRAIN_AUTO, "words");
_Static_assert(MASTER_NONE == 0 && MASTER_F32 == 1 && MASTER_REMAINDER == 2, "master_words");

#define AT(member) offsetof(struct train_config, member)
const struct train_key train_keys[N_TRAIN_KEYS] = {
    {"batch_size", TRAIN_INT, AT(batch_size), 1, 65536, NULL, true, "N",
     "Sequences of a batch."},
    {"grad_accum_steps", TRAIN_INT, AT(grad_accum_steps), 1, 65536, NULL, true, "N",
     "Batches whose gradients add up to one step."},
    {"micro_batch_size", TRAIN_INT, AT(micro_batch_size), 0, 65536, NULL, true, "N",
     "Sequences computed at a time: fewer need less memory. 0: as --memory-budget "
     "asks, else about 2,048 tokens."},
    {"sequence_length", TRAIN_INT, AT(sequence_length), 0, CONFIG_MAX_CONTEXT, NULL, true, "N",
     "Tokens of a training sequence; 0: the model's block_size."},
    {"loss_rows", TRAIN_INT, AT(loss_rows), 0, 1 << 20, NULL, true, "N",
     "Tokens whose logits exist at a time; 0: as --memory-budget asks, else 512, or as "
     "many as fit into 128 MiB; more where those fit into 32 MiB."},
    {"max_iters", TRAIN_INT, AT(max_iters), 1, 1e9, NULL, true, "N", "Steps of the run."},
    {"learning_rate", TRAIN_DOUBLE, AT(learning_rate), 0, 10, NULL, true, "X",
     "The learning rate after warm-up; with --init-from and no --config 1e-4."},
    {"min_lr", TRAIN_DOUBLE, AT(min_lr), -1, 10, NULL, true, "X",
     "Where the learning rate ends; -1: a tenth of where it begins."},
    {"warmup_iters", TRAIN_DOUBLE, AT(warmup_iters), 0, 1e9, NULL, true, "N",
     "Steps of warm-up; below 1, the share of all steps."},
    {"decay_iters", TRAIN_DOUBLE, AT(decay_iters), 0, 1e9, NULL, true, "N",
     "Steps of decay at the end of the wsd schedule; below 1, the share of all steps."},
    {"lr_schedule", TRAIN_WORD, AT(lr_schedule), 0, 0, schedule_words, true, "NAME",
     "The learning rate's path: cosine, linear, constant or wsd (warm-up, stable, decay)."},
    {"weight_decay", TRAIN_DOUBLE, AT(weight_decay), 0, 10, NULL, true, "X",
     "AdamW's decay of matrices."},
    {"beta1", TRAIN_DOUBLE, AT(beta1), 0, 0.99999, NULL, true, "X",
     "AdamW's average of gradients."},
    {"beta2", TRAIN_DOUBLE, AT(beta2), 0, 0.9999999, NULL, true, "X",
     "AdamW's average of their squares."},
    {"eps", TRAIN_DOUBLE, AT(eps), 1e-16, 1, NULL, true, "X", "AdamW's denominator, at least."},
    {"grad_clip", TRAIN_DOUBLE, AT(grad_clip), 0, 1e9, NULL, true, "X",
     "The gradients' global norm, at most; 0: no limit."},
    {"dropout", TRAIN_DOUBLE, AT(dropout), 0, 0.99, NULL, true, "P",
     "Of embeddings, attention weights and both branches."},
    {"label_smoothing", TRAIN_DOUBLE, AT(label_smoothing), 0, 0.99, NULL, true, "P",
     "Probability that the targets give to all tokens alike."},
    {"z_loss", TRAIN_DOUBLE, AT(z_loss), 0, 1, NULL, true, "X",
     "Weight of log(Z)^2 in the loss, which keeps logits small."},
    {"freeze_layers", TRAIN_INT, AT(freeze_layers), 0, CONFIG_MAX_LAYER, NULL, true, "N",
     "The first N layers do not learn."},
    {"freeze_embeddings", TRAIN_BOOL, AT(freeze_embeddings), 0, 0, NULL, true, NULL,
     "The embeddings do not learn."},
    {"dtype", TRAIN_WORD, AT(dtype), 0, 0, dtype_words, true, "f32|f16|bf16",
     "Element type of weights and matrix products; f16 on CUDA devices."},
    {"recompute", TRAIN_WORD, AT(recompute), 0, 0, recompute_words, false, "NAME",
     "What the backward pass computes again instead of keeping: none, selective or block. auto: "
     "as --memory-budget asks, else none."},
    {"moments", TRAIN_WORD, AT(moments), 0, 0, moment_words, true, "f32|bf16|q8",
     "How AdamW keeps its averages. auto: as --memory-budget asks, else f32."},
    {"master", TRAIN_WORD, AT(master), 0, 0, master_words, true, "f32|remainder",
     "What bf16 weights lack of f32 ones: a copy, or the 16 missing bits. auto: as --memory-budget "
     "asks, else remainder."},
    {"gradients", TRAIN_WORD, AT(gradients), 0, 0, gradient_words, true, "f32|bf16",
     "How the blocks' matrices add up their gradients: bf16 is rounded stochastically. auto: as "
     "--memory-budget asks, else f32."},
    {"loss_scale", TRAIN_DOUBLE, AT(loss_scale), 0, 1e38, NULL, true, "X",
     "The loss's factor while gradients are computed; it halves, and the step is skipped, when "
     "they are not finite. 0: adjusted for f16, none otherwise."},
    {"seed", TRAIN_INT, AT(seed), 0, MAX_EXACT, NULL, true, "N",
     "Of first weights, data order, dropout and samples."},
    {"val_fraction", TRAIN_DOUBLE, AT(val_fraction), 0, 0.9, NULL, true, "P",
     "The share of the input held out for evaluation, where there is no --val-input."},
    {"keep_documents_apart", TRAIN_BOOL, AT(keep_documents_apart), 0, 0, NULL, true, NULL,
     "Attention and positions do not cross documents."},
    {"eval_interval", TRAIN_INT, AT(eval_interval), 0, 1e9, NULL, false, "N",
     "Evaluate every N steps, and after the last; 0: never."},
    {"eval_iters", TRAIN_INT, AT(eval_iters), 1, 1e9, NULL, false, "N",
     "Batches of an evaluation, at most; the set's end comes first where it is small."},
    {"early_stop_patience", TRAIN_INT, AT(early_stop_patience), 0, 1e6, NULL, false, "N",
     "Stop after N evaluations without a new best, and leave the best; 0: never."},
    {"spike_patience", TRAIN_INT, AT(spike_patience), 0, 1e6, NULL, false, "N",
     "Stop after N steps in a row whose loss is far above the usual; 0: never."},
    {"sample_tokens", TRAIN_INT, AT(sample_tokens), 0, 1 << 20, NULL, false, "N",
     "Tokens of the sample text at each evaluation; 0: none."},
    {"save_interval", TRAIN_INT, AT(save_interval), 0, 1e9, NULL, false, "N",
     "Write a checkpoint every N steps, and after the last; 0: after the last alone."},
    {"keep_checkpoints", TRAIN_INT, AT(keep_checkpoints), 1, 1e6, NULL, false, "N",
     "Checkpoints to keep, the best one aside."},
    {"log_interval", TRAIN_INT, AT(log_interval), 1, 1e9, NULL, false, "N",
     "Without a terminal, a line every N steps."},
};
#undef AT

void train_config_init(struct train_config *c)
{
    *c = (struct train_config){
        .batch_size = 16, .grad_accum_steps = 1,
        .max_iters = 5000, .learning_rate = 1e-3, .min_lr = -1,
        .warmup_iters = 0.02, .decay_iters = 0.2, .lr_schedule = LR_COSINE,
        .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .grad_clip = 1,
        .dtype = DTYPE_F32, .recompute = (enum recompute)TRAIN_AUTO,
        .moments = (enum moment_format)TRAIN_AUTO, .master = (enum master_format)TRAIN_AUTO,
        .gradients = (enum dtype)TRAIN_AUTO, .seed = 1337, .val_fraction = 0.1,
        .eval_interval = 250, .eval_iters = 50, .spike_patience = 5, .sample_tokens = 100,
        .save_interval = 1000, .keep_checkpoints = 2, .log_interval = 10,
    };
}

void train_config_init_fine_tuning(struct train_config *c)
{
    train_config_init(c);
    c->learning_rate = 1e-4;
}

/* ---- reading ---- */

/* The words that may be chosen, for messages. */
static void list_words(const struct train_key *key, char *out, size_t size)
{
    out[0] = 0;
    for (size_t i = 0, used = 0; key->words[i] && used < size; i++)
        if (key->words[i][0])
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "",
                                     key->words[i]);
}

bool train_key_set_word(const struct train_key *key, const char *word, const char *where,
                        struct train_config *c, struct error *err)
{
    ASSERT(key->type == TRAIN_WORD);
    for (int i = 0; key->words[i]; i++) {
        if (!*word || strcmp(word, key->words[i]) != 0) continue;
        *(int *)((char *)c + key->offset) = i;
        return true;
    }
    char known[100];
    list_words(key, known, sizeof known);
    return error_set(err, ERR_INVALID, key->name, "%s: %s is \"%.40s\"; known are %s", where,
                     key->name, word, known);
}

const char *train_key_word(const struct train_key *key, const struct train_config *c)
{
    ASSERT(key->type == TRAIN_WORD);
    return key->words[*(const int *)((const char *)c + key->offset)];
}

static void read_key(struct config_reader *r, const struct train_key *key, struct train_config *c)
{
    void *value = (char *)c + key->offset;
    switch (key->type) {
    case TRAIN_INT: *(int64_t *)value = config_int(r, key->name, *(int64_t *)value); break;
    case TRAIN_DOUBLE: *(double *)value = config_number(r, key->name, *(double *)value); break;
    case TRAIN_BOOL: *(bool *)value = config_bool(r, key->name, *(bool *)value); break;
    case TRAIN_WORD: {
        const char *word = config_string(r, key->name, NULL);
        if (word && !r->failed && !train_key_set_word(key, word, r->where, c, r->err))
            r->failed = true;
        break;
    }
    }
}

void train_config_read(struct config_reader *r, struct train_config *c)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) read_key(r, &train_keys[i], c);
}

bool train_config_from_json(const char *json, size_t n, const char *where, struct train_config *c,
                            struct error *err)
{
    struct cJSON *root = json_parse(json, n, CONFIG_DEPTH, where, err);
    if (!root) return false;
    struct config_reader r = {.object = root, .where = where, .err = err};
    if (cJSON_IsObject(root)) train_config_read(&r, c);
    else config_fail(&r, ERR_INVALID, NULL, "the config is %s, not an object",
                     json_type_name(root));
    cJSON_Delete(root);
    return !r.failed;
}

void train_key_text(const struct train_key *key, const struct train_config *c, char *out,
                    size_t size)
{
    const void *at = (const char *)c + key->offset;
    switch (key->type) {
    case TRAIN_INT: snprintf(out, size, "%" PRId64, *(const int64_t *)at); break;
    case TRAIN_DOUBLE: snprintf(out, size, "%.15g", *(const double *)at); break;
    case TRAIN_BOOL: snprintf(out, size, "%s", *(const bool *)at ? "true" : "false"); break;
    case TRAIN_WORD: snprintf(out, size, "%s", train_key_word(key, c)); break;
    }
}

/* ---- checking ---- */

/* NaN fails every comparison, so it is out of range too. */
static bool check_range(const struct train_key *key, const struct train_config *c,
                        const char *where, struct error *err)
{
    const void *at = (const char *)c + key->offset;
    if (key->type != TRAIN_INT && key->type != TRAIN_DOUBLE) return true;
    double value = key->type == TRAIN_INT ? (double)*(const int64_t *)at : *(const double *)at;
    if (value >= key->min && value <= key->max) return true;
    return error_set(err, ERR_INVALID, key->name, "%s: %s is %.15g; it must be from %.15g to %.15g",
                     where, key->name, value, key->min, key->max);
}

bool train_config_check(const struct train_config *c, const char *where, struct error *err)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (!check_range(&train_keys[i], c, where, err)) return false;
    if (c->min_lr > c->learning_rate)
        return error_set(err, ERR_INVALID, "min_lr", "%s: min_lr (%g) is above learning_rate (%g)",
                         where, c->min_lr, c->learning_rate);
    if (c->min_lr < 0 && c->min_lr != -1)
        return error_set(err, ERR_INVALID, "min_lr", "%s: min_lr is %g; it must be from 0 to "
                         "learning_rate, or -1", where, c->min_lr);
    int64_t warmup = schedule_steps(c->warmup_iters, c->max_iters);
    int64_t decay = schedule_steps(c->decay_iters, c->max_iters);
    if (c->lr_schedule == LR_WSD && decay > c->max_iters - warmup)
        return error_set(err, ERR_INVALID, "decay_iters",
                         "%s: warmup_iters and decay_iters are %lld and %lld steps, over max_iters "
                         "(%lld)", where, (long long)warmup, (long long)decay,
                         (long long)c->max_iters);
    if (c->loss_scale != 0 && c->loss_scale < LOSS_SCALE_MIN)
        return error_set(err, ERR_INVALID, "loss_scale", "%s: loss_scale is %g; it must be 0, or "
                         "at least %g", where, c->loss_scale, LOSS_SCALE_MIN);
    if (c->dtype == DTYPE_F16 && c->master == MASTER_REMAINDER)
        return error_set(err, ERR_INVALID, "master",
                         "%s: master is remainder, which makes f32 of bf16 weights; those of f16 "
                         "need f32 masters", where);
    if (c->micro_batch_size > c->batch_size * c->grad_accum_steps)
        return error_set(err, ERR_INVALID, "micro_batch_size",
                         "%s: micro_batch_size is %lld; a step has %lld sequences", where,
                         (long long)c->micro_batch_size,
                         (long long)(c->batch_size * c->grad_accum_steps));
    return true;
}

bool train_config_check_model(const struct train_config *c, const struct gpt_config *model,
                              struct error *err)
{
    if (c->sequence_length > model->block_size)
        return error_set(err, ERR_INVALID, "sequence_length",
                         "sequence_length is %lld; the model's block_size is %lld",
                         (long long)c->sequence_length, (long long)model->block_size);
    if (c->freeze_layers > model->n_layer)
        return error_set(err, ERR_INVALID, "freeze_layers",
                         "freeze_layers is %lld; the model has %lld layers",
                         (long long)c->freeze_layers, (long long)model->n_layer);
    return true;
}

bool train_config_warms_up(const struct train_config *c, struct error *why)
{
    if (c->max_iters <= 1 || schedule_steps(c->warmup_iters, c->max_iters) < c->max_iters)
        return true;
    return error_set(why, ERR_INVALID, "warmup_iters",
                     "warmup_iters is %g and the run has %lld steps, so that learning_rate is not "
                     "reached before the last: choose fewer, or a share of the steps such as 0.02",
                     c->warmup_iters, (long long)c->max_iters);
}

static int64_t loss_rows(int64_t vocab_size)
{
    int64_t row = vocab_size * (int64_t)sizeof(float);
    int64_t fit = max_i64(LOSS_CHUNK_CHEAP_BYTES / row,
                          min_i64(LOSS_CHUNK_ROWS, LOSS_CHUNK_BYTES / row));
    return max_i64(LOSS_CHUNK_MIN, fit / LOSS_CHUNK_UNIT * LOSS_CHUNK_UNIT);
}

void train_config_resolve(struct train_config *c, int64_t block_size, int64_t vocab_size)
{
    if (c->min_lr < 0) c->min_lr = c->learning_rate / 10;
    if (c->sequence_length == 0) c->sequence_length = block_size;
    if (c->micro_batch_size == 0)
        c->micro_batch_size = min_i64(c->batch_size,
                                      max_i64(1, MICRO_BATCH_ROWS / c->sequence_length));
    if ((int)c->recompute == TRAIN_AUTO) c->recompute = RECOMPUTE_NONE;
    if ((int)c->moments == TRAIN_AUTO) c->moments = MOMENT_F32;
    if ((int)c->master == TRAIN_AUTO)
        c->master = c->dtype == DTYPE_F16 ? MASTER_F32 : MASTER_REMAINDER;
    if ((int)c->gradients == TRAIN_AUTO) c->gradients = DTYPE_F32;
    int64_t rows = c->micro_batch_size * c->sequence_length;
    if (c->loss_rows == 0) c->loss_rows = loss_rows(vocab_size);
    c->loss_rows = min_i64(c->loss_rows, rows);
}

/* ---- writing and comparing ---- */

/* The fewest digits that read back as `value`, rounded to a float if `single`. */
static bool add_shortest(struct cJSON *object, const char *key, double value, bool single)
{
    char text[40];
    if (!isfinite(value)) return false;
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        double back = strtod(text, NULL);
        if (back == value || (single && (float)back == (float)value)) break;
    }
    if (value == floor(value) && fabs(value) < 1e15) snprintf(text, sizeof text, "%.0f", value);
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

bool json_add_number(struct cJSON *object, const char *key, double value)
{
    return add_shortest(object, key, value, false);
}

bool json_add_float(struct cJSON *object, const char *key, float value)
{
    return add_shortest(object, key, value, true);
}

static bool add_key(const struct train_key *key, const struct train_config *c,
                    struct cJSON *object)
{
    const void *at = (const char *)c + key->offset;
    switch (key->type) {
    case TRAIN_INT: return json_add_number(object, key->name, (double)*(const int64_t *)at);
    case TRAIN_DOUBLE: return json_add_number(object, key->name, *(const double *)at);
    case TRAIN_BOOL: return cJSON_AddBoolToObject(object, key->name, *(const bool *)at) != NULL;
    case TRAIN_WORD:
        return cJSON_AddStringToObject(object, key->name, train_key_word(key, c)) != NULL;
    }
    return false;
}

bool train_config_to_json(const struct train_config *c, struct cJSON *object)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (!add_key(&train_keys[i], c, object)) return false;
    return true;
}

static bool same(const struct train_key *key, const struct train_config *a,
                 const struct train_config *b)
{
    const void *x = (const char *)a + key->offset, *y = (const char *)b + key->offset;
    switch (key->type) {
    case TRAIN_INT: return *(const int64_t *)x == *(const int64_t *)y;
    case TRAIN_DOUBLE: return *(const double *)x == *(const double *)y;
    case TRAIN_BOOL: return *(const bool *)x == *(const bool *)y;
    case TRAIN_WORD: return *(const int *)x == *(const int *)y;
    }
    return false;
}

const struct train_key *train_config_difference(const struct train_config *a,
                                                const struct train_config *b)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (train_keys[i].fixed && !same(&train_keys[i], a, b)) return &train_keys[i];
    return NULL;
}

struct schedule train_config_schedule(const struct train_config *c)
{
    return (struct schedule){
        .kind = c->lr_schedule,
        .learning_rate = c->learning_rate,
        .min_lr = c->min_lr,
        .max_iters = c->max_iters,
        .warmup_iters = schedule_steps(c->warmup_iters, c->max_iters),
        .decay_iters = schedule_steps(c->decay_iters, c->max_iters),
    };
}
