/* The body that creates a job: see fine_tuning.h. Everything the trainer can be told by name is one
 * table, model/train_config.h's; its rows are this route's parameters too. */
#include "api/fine_tuning.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

#include "api/params.h"
#include "base/json.h"
#include "model/train_config.h"

enum { MAX_SUFFIX = 64, MAX_METADATA = 16, MAX_EPOCHS = 1000000 };
#define MAX_SEED 9007199254740991.0

/* ---- plain parameters ------------------------------------------------------------------------ */

static bool read_seed(const struct param_reader *r, const char *name, const struct cJSON *item,
                      struct error *err)
{
    struct ft_request *p = r->out;
    return param_int(item, name, 0, (int64_t)MAX_SEED, &p->seed, err);
}

/* The suffix becomes the model's name, a part of URLs and of paths. */
static bool read_suffix(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct ft_request *p = r->out;
    size_t n;
    if (!param_string(r->arena, item, name, &p->suffix, &n, err)) return false;
    bool plain = n > 0 && n <= MAX_SUFFIX && p->suffix[0] != '.';
    for (size_t i = 0; i < n && plain; i++) {
        char c = p->suffix[i];
        plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9')
                || strchr("-_.:", c);
    }
    if (plain) return true;
    return error_set(err, ERR_INVALID, name,
                     "'suffix' must be 1 to %d letters, digits, or any of -_.: and not begin with "
                     "a dot", MAX_SUFFIX);
}

static bool read_metadata(const struct param_reader *r, const char *name, const struct cJSON *item,
                          struct error *err)
{
    struct ft_request *p = r->out;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    int n = 0;
    const struct cJSON *pair;
    cJSON_ArrayForEach(pair, item) {
        if (!cJSON_IsString(pair)) return param_wrong_type(pair, name, "an object of strings", err);
        n++;
    }
    char *json = cJSON_PrintUnformatted(item);
    if (!json) return param_out_of_memory(err);
    bool fits = n <= MAX_METADATA && strlen(json) < sizeof((struct ft_job *)0)->metadata;
    p->metadata = fits ? arena_strdup(r->arena, json) : NULL;
    cJSON_free(json);
    if (!fits)
        return error_set(err, ERR_INVALID, name, "'metadata' may have %d pairs and %zu bytes",
                         MAX_METADATA, sizeof((struct ft_job *)0)->metadata - 1);
    return p->metadata || param_out_of_memory(err);
}

/* ---- hyperparameters ------------------------------------------------------------------------- */

static bool is_auto(const struct cJSON *item)
{
    return cJSON_IsNull(item) || (cJSON_IsString(item) && strcmp(item->valuestring, "auto") == 0);
}

static bool read_hyperparameter(struct ft_request *p, const char *at, const struct cJSON *item,
                                struct error *err)
{
    char path[64];
    snprintf(path, sizeof path, "%.30s.%.30s", at, item->string);
    if (strcmp(item->string, "n_epochs") == 0)
        return is_auto(item) || param_int(item, path, 1, MAX_EPOCHS, &p->n_epochs, err);
    if (strcmp(item->string, "batch_size") == 0)
        return is_auto(item) || param_int(item, path, 1, 65536, &p->batch_size, err);
    if (strcmp(item->string, "learning_rate_multiplier") == 0)
        return is_auto(item) || param_number(item, path, 0, 1e6, true,
                                             &p->learning_rate_multiplier, err);
    return error_set(err, ERR_INVALID, path,
                     "unknown parameter '%s'; known are n_epochs, batch_size and "
                     "learning_rate_multiplier; gptd's own keys go beside 'hyperparameters'", path);
}

static bool read_hyperparameters(struct ft_request *p, const char *at, const struct cJSON *item,
                                 struct error *err)
{
    if (cJSON_IsNull(item)) return true;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, at, "an object", err);
    const struct cJSON *member;
    cJSON_ArrayForEach(member, item)
        if (!read_hyperparameter(p, at, member, err)) return false;
    return true;
}

static bool read_top(const struct param_reader *r, const char *name, const struct cJSON *item,
                     struct error *err)
{
    struct ft_request *p = r->out;
    p->has_top_hyperparameters = true;
    return read_hyperparameters(p, name, item, err);
}

static bool read_supervised(struct ft_request *p, const struct cJSON *item, struct error *err)
{
    if (!cJSON_IsObject(item)) return param_wrong_type(item, "method.supervised", "an object", err);
    const struct cJSON *member;
    cJSON_ArrayForEach(member, item) {
        if (strcmp(member->string, "hyperparameters") != 0)
            return error_set(err, ERR_INVALID, "method.supervised",
                             "unknown parameter 'method.supervised.%.40s'; only hyperparameters "
                             "goes there", member->string);
        if (!read_hyperparameters(p, "method.supervised", member, err)) return false;
    }
    return true;
}

static bool read_method(const struct param_reader *r, const char *name, const struct cJSON *item,
                        struct error *err)
{
    struct ft_request *p = r->out;
    p->has_method = true;
    if (!cJSON_IsObject(item)) return param_wrong_type(item, name, "an object", err);
    const struct cJSON *type = json_get(item, "type");
    if (!cJSON_IsString(type) || strcmp(type->valuestring, "supervised") != 0)
        return error_set(err, ERR_UNSUPPORTED, "method.type",
                         "'method.type' must be \"supervised\": gptd trains in no other way");
    const struct cJSON *member;
    cJSON_ArrayForEach(member, item) {
        if (strcmp(member->string, "type") == 0) continue;
        if (strcmp(member->string, "supervised") != 0)
            return error_set(err, ERR_INVALID, name, "unknown parameter 'method.%.40s'",
                             member->string);
        if (!read_supervised(p, member, err)) return false;
    }
    return true;
}

/* ---- training keys --------------------------------------------------------------------------- */

static const struct train_key *find_key(const char *name)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].name, name) == 0) return &train_keys[i];
    return NULL;
}

static bool read_word(const struct train_key *key, const struct cJSON *item, struct ft_key *out,
                      struct error *err)
{
    struct train_config scratch;
    train_config_init(&scratch);
    if (!cJSON_IsString(item)) return param_wrong_type(item, key->name, "a string", err);
    if (!train_key_set_word(key, item->valuestring, "the body", &scratch, err)) return false;
    out->is_word = true;
    snprintf(out->value, sizeof out->value, "%s", item->valuestring);
    return true;
}

static bool read_key_value(const struct train_key *key, const struct cJSON *item,
                           struct ft_key *out, struct error *err)
{
    int64_t i;
    double d;
    bool b;
    switch (key->type) {
    case TRAIN_INT:
        if (!param_int(item, key->name, (int64_t)key->min, (int64_t)key->max, &i, err))
            return false;
        snprintf(out->value, sizeof out->value, "%lld", (long long)i);
        return true;
    case TRAIN_DOUBLE:
        if (!param_number(item, key->name, key->min, key->max, false, &d, err)) return false;
        snprintf(out->value, sizeof out->value, "%.17g", d);
        return true;
    case TRAIN_BOOL:
        if (!param_bool(item, key->name, &b, err)) return false;
        snprintf(out->value, sizeof out->value, b ? "true" : "false");
        return true;
    case TRAIN_WORD: return read_word(key, item, out, err);
    }
    return false;
}

static bool read_key(const struct param_reader *r, const char *name, const struct cJSON *item,
                     struct error *err)
{
    struct ft_request *p = r->out;
    const struct train_key *key = find_key(name);
    ASSERT(key && p->n_keys < FT_MAX_KEYS); /* names are unique, and the table is shorter */
    struct ft_key *out = &p->keys[p->n_keys];
    *out = (struct ft_key){.name = key->name};
    if (!read_key_value(key, item, out, err)) return false;
    p->n_keys++;
    return true;
}

/* ---- the table ------------------------------------------------------------------------------- */

#define HYPERPARAMETERS \
    "\"type\":[\"object\",\"null\"],\"additionalProperties\":false,\"properties\":{" \
    "\"n_epochs\":{\"anyOf\":[{\"const\":\"auto\"},{\"type\":\"integer\",\"minimum\":1}]}," \
    "\"batch_size\":{\"anyOf\":[{\"const\":\"auto\"},{\"type\":\"integer\",\"minimum\":1}]}," \
    "\"learning_rate_multiplier\":{\"anyOf\":[{\"const\":\"auto\"},{\"type\":\"number\"," \
    "\"exclusiveMinimum\":0}]}}"
#define TEXT(member) .type = PARAM_STRING, .offset = offsetof(struct ft_request, member)
#define CUSTOM(reader, json) .type = PARAM_CUSTOM, .read = reader, .schema = json

#define KEY(key_name, json) \
    {.name = key_name, .routes = ROUTE_FINE_TUNING, CUSTOM(read_key, json), \
     .help = "A training key, as in a config file."}
#define KEY_INTEGER(name) KEY(name, "\"type\":[\"integer\",\"null\"]")
#define KEY_NUMBER(name) KEY(name, "\"type\":[\"number\",\"null\"]")
#define KEY_BOOLEAN(name) KEY(name, "\"type\":[\"boolean\",\"null\"]")
#define KEY_WORD(name, words) KEY(name, "\"enum\":[" words ",null]")

static const struct param rows[] = {
    {.name = "model", .routes = ROUTE_FINE_TUNING, .required = true, TEXT(model),
     .help = "What to begin with: a served or fine-tuned model's id, or a checkpoint's; or "
             "configs/NAME for a new model of that preset."},
    {.name = "training_file", .routes = ROUTE_FINE_TUNING, .required = true, TEXT(training_file),
     .help = "The id of an uploaded file: text, or JSON lines with text, prompt and completion, "
             "or messages."},
    {.name = "validation_file", .routes = ROUTE_FINE_TUNING, TEXT(validation_file),
     .help = "The id of a file to evaluate on; without it, a share of the training file is held "
             "out (val_fraction)."},
    {.name = "suffix", .routes = ROUTE_FINE_TUNING,
     CUSTOM(read_suffix, "\"type\":[\"string\",\"null\"],\"minLength\":1,\"maxLength\":64"),
     .help = "The name of the model that comes out; without it, ft: and the job's number."},
    {.name = "seed", .routes = ROUTE_FINE_TUNING,
     CUSTOM(read_seed, "\"type\":[\"integer\",\"null\"],\"minimum\":0"),
     .help = "The same seed, data and settings give the same model."},
    {.name = "hyperparameters", .routes = ROUTE_FINE_TUNING, CUSTOM(read_top, HYPERPARAMETERS),
     .help = "OpenAI's names. auto: the preset's or the trainer's own value. The multiplier is of "
             "the preset's learning_rate, or of 1e-4 where a trained model is the beginning."},
    {.name = "method", .routes = ROUTE_FINE_TUNING,
     CUSTOM(read_method, "\"type\":[\"object\",\"null\"],\"required\":[\"type\"],\"properties\":{"
            "\"type\":{\"const\":\"supervised\"},\"supervised\":{\"type\":\"object\","
            "\"properties\":{\"hyperparameters\":{" HYPERPARAMETERS "}}}},"
            "\"default\":{\"type\":\"supervised\"}"),
     .help = "OpenAI's newer place for hyperparameters."},
    {.name = "metadata", .routes = ROUTE_FINE_TUNING,
     CUSTOM(read_metadata, "\"type\":[\"object\",\"null\"],\"additionalProperties\":{\"type\":"
            "\"string\"}"),
     .help = "Kept and shown."},
    {.name = "integrations", .routes = ROUTE_FINE_TUNING, .type = PARAM_NEUTRAL, .neutral = "[]"},
    KEY_INTEGER("batch_size"), KEY_INTEGER("grad_accum_steps"), KEY_INTEGER("micro_batch_size"),
    KEY_INTEGER("sequence_length"),
    KEY_INTEGER("loss_rows"), KEY_INTEGER("max_iters"), KEY_NUMBER("learning_rate"),
    KEY_NUMBER("min_lr"), KEY_NUMBER("warmup_iters"), KEY_NUMBER("decay_iters"),
    KEY_WORD("lr_schedule", "\"cosine\",\"linear\",\"constant\",\"wsd\""),
    KEY_NUMBER("weight_decay"), KEY_NUMBER("beta1"), KEY_NUMBER("beta2"), KEY_NUMBER("eps"),
    KEY_NUMBER("grad_clip"), KEY_NUMBER("dropout"), KEY_NUMBER("label_smoothing"),
    KEY_NUMBER("z_loss"), KEY_INTEGER("freeze_layers"), KEY_BOOLEAN("freeze_embeddings"),
    KEY_WORD("dtype", "\"f32\",\"f16\",\"bf16\""),
    KEY_WORD("recompute", "\"none\",\"selective\",\"block\",\"auto\""),
    KEY_WORD("moments", "\"f32\",\"bf16\",\"q8\",\"auto\""),
    KEY_WORD("master", "\"f32\",\"remainder\",\"auto\""),
    KEY_WORD("gradients", "\"f32\",\"bf16\",\"auto\""), KEY_NUMBER("loss_scale"),
    KEY_NUMBER("val_fraction"), KEY_BOOLEAN("keep_documents_apart"), KEY_INTEGER("eval_interval"),
    KEY_INTEGER("eval_iters"), KEY_INTEGER("early_stop_patience"), KEY_INTEGER("spike_patience"),
    KEY_INTEGER("sample_tokens"), KEY_INTEGER("save_interval"), KEY_INTEGER("keep_checkpoints"),
    KEY_INTEGER("log_interval"),
};
enum { N_ROWS = sizeof rows / sizeof *rows };

const struct param *ft_param_table(size_t *n)
{
    *n = N_ROWS;
    return rows;
}

static bool has_key(const struct ft_request *p, const char *name)
{
    for (int32_t i = 0; i < p->n_keys; i++)
        if (strcmp(p->keys[i].name, name) == 0) return true;
    return false;
}

bool ft_request_parse(const struct api_limits *l, const char *body, size_t n, struct arena *arena,
                      struct ft_request *out, struct error *err)
{
    *out = (struct ft_request){.seed = -1};
    struct param_reader r = {.limits = l, .arena = arena, .out = out};
    if (!params_parse(rows, N_ROWS, ROUTE_FINE_TUNING, &r, body, n, err)) return false;
    if (out->has_top_hyperparameters && out->has_method)
        return error_set(err, ERR_INVALID, "method",
                         "'hyperparameters' and 'method' say the same: give one of them");
    if (out->batch_size && has_key(out, "batch_size"))
        return error_set(err, ERR_INVALID, "batch_size",
                         "'batch_size' is given twice: beside and in hyperparameters");
    if (out->n_epochs && has_key(out, "max_iters"))
        return error_set(err, ERR_INVALID, "max_iters",
                         "'n_epochs' and 'max_iters' both say how long to train: give one");
    if (strlen(out->model) >= sizeof((struct ft_job *)0)->model)
        return error_set(err, ERR_INVALID, "model", "'model' is longer than any model's id");
    return true;
}
