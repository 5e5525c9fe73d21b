/* A config in nanoGPT's words: configs/NAME.json, or the user's own. One table of keys here for the
 * model; those of training are train_config's, which are checked here, too. */
#include <string.h>

#include "base/checked.h"
#include "base/options.h"
#include "model/config.h"
#include "model/config_json.h"
#include "model/train_config.h"

enum { PRESET_MAX_DEPTH = 4 };

enum key_type { KEY_INT, KEY_FLOAT, KEY_BOOL, KEY_WORD };

struct key {
    const char *name;
    enum key_type type;
    size_t offset;            /* in struct gpt_config */
    const char *const *words; /* KEY_WORD: the values of an enum, in order, NULL at the end */
};

static const char *const pos_words[] = {"learned", "rope", NULL};
static const char *const norm_words[] = {"layernorm", "rmsnorm", NULL};
static const char *const mlp_words[] = {"gelu", "gelu_exact", "swiglu", NULL};
static const char *const scaling_words[] = {"none", "linear", "llama3", NULL};

static const struct key keys[] = {
    {"n_layer", KEY_INT, offsetof(struct gpt_config, n_layer), NULL},
    {"n_head", KEY_INT, offsetof(struct gpt_config, n_head), NULL},
    {"n_kv_head", KEY_INT, offsetof(struct gpt_config, n_kv_head), NULL},
    {"head_dim", KEY_INT, offsetof(struct gpt_config, head_dim), NULL},
    {"n_embd", KEY_INT, offsetof(struct gpt_config, n_embd), NULL},
    {"n_ff", KEY_INT, offsetof(struct gpt_config, n_ff), NULL},
    {"vocab_size", KEY_INT, offsetof(struct gpt_config, vocab_size), NULL},
    {"block_size", KEY_INT, offsetof(struct gpt_config, block_size), NULL},
    {"pos_encoding", KEY_WORD, offsetof(struct gpt_config, pos_encoding), pos_words},
    {"norm_type", KEY_WORD, offsetof(struct gpt_config, norm_type), norm_words},
    {"norm_eps", KEY_FLOAT, offsetof(struct gpt_config, norm_eps), NULL},
    {"mlp_type", KEY_WORD, offsetof(struct gpt_config, mlp_type), mlp_words},
    {"bias_qkv", KEY_BOOL, offsetof(struct gpt_config, bias_qkv), NULL},
    {"bias_attn_out", KEY_BOOL, offsetof(struct gpt_config, bias_attn_out), NULL},
    {"bias_mlp", KEY_BOOL, offsetof(struct gpt_config, bias_mlp), NULL},
    {"bias_norm", KEY_BOOL, offsetof(struct gpt_config, bias_norm), NULL},
    {"bias_lm_head", KEY_BOOL, offsetof(struct gpt_config, bias_lm_head), NULL},
    {"qk_norm", KEY_BOOL, offsetof(struct gpt_config, qk_norm), NULL},
    {"tie_weights", KEY_BOOL, offsetof(struct gpt_config, tie_weights), NULL},
    {"rope_theta", KEY_FLOAT, offsetof(struct gpt_config, rope_theta), NULL},
    {"rope_scaling", KEY_WORD, offsetof(struct gpt_config, rope_scaling), scaling_words},
    {"rope_factor", KEY_FLOAT, offsetof(struct gpt_config, rope_factor), NULL},
    {"rope_low_freq", KEY_FLOAT, offsetof(struct gpt_config, rope_low_freq), NULL},
    {"rope_high_freq", KEY_FLOAT, offsetof(struct gpt_config, rope_high_freq), NULL},
    {"rope_original_context", KEY_INT, offsetof(struct gpt_config, rope_original_context), NULL},
    {"dropout", KEY_FLOAT, offsetof(struct gpt_config, dropout), NULL},
};
enum { N_KEYS = sizeof keys / sizeof *keys };

static const char bias_key[] = "bias"; /* all places but lm_head; bias_qkv ... speak after it */

/* Every member is a key we know. */
static void check_known(struct config_reader *r)
{
    enum { N_KNOWN = N_KEYS + N_TRAIN_KEYS + 1 };
    const char *known[N_KNOWN];
    for (size_t i = 0; i < N_KEYS; i++) known[i] = keys[i].name;
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) known[N_KEYS + i] = train_keys[i].name;
    known[N_KNOWN - 1] = bias_key;
    for (const struct cJSON *item = r->object->child; item; item = item->next) {
        bool found = false;
        for (size_t i = 0; i < N_KNOWN && !found; i++) found = strcmp(item->string, known[i]) == 0;
        if (found) continue;
        const char *nearest = nearest_name(item->string, known, N_KNOWN);
        if (nearest)
            config_fail(r, ERR_INVALID, item->string, "unknown key \"%.60s\"; did you mean \"%s\"?",
                        item->string, nearest);
        else
            config_fail(r, ERR_INVALID, item->string, "unknown key \"%.60s\"", item->string);
    }
}

static void read_word(struct config_reader *r, const struct key *key, void *value)
{
    const char *word = config_string(r, key->name, NULL);
    int i = 0;
    if (!word) return;
    while (key->words[i] && strcmp(word, key->words[i]) != 0) i++;
    if (key->words[i])
        *(int *)value = i; /* the enums begin at 0 and follow the words' order */
    else
        config_fail(r, ERR_INVALID, key->name, "\"%s\" is \"%.40s\"; known are %s, %s%s%s",
                    key->name, word, key->words[0], key->words[1], key->words[2] ? ", " : "",
                    key->words[2] ? key->words[2] : "");
}

static void read_key(struct config_reader *r, const struct key *key, struct gpt_config *c)
{
    void *value = (char *)c + key->offset;
    switch (key->type) {
    case KEY_INT: *(int64_t *)value = config_int(r, key->name, *(int64_t *)value); break;
    case KEY_FLOAT:
        *(float *)value = (float)config_number(r, key->name, (double)*(float *)value);
        break;
    case KEY_BOOL: *(bool *)value = config_bool(r, key->name, *(bool *)value); break;
    case KEY_WORD: read_word(r, key, value); break;
    }
}

/* What follows from other keys unless it is given. */
static void fill_derived(struct config_reader *r, struct gpt_config *c)
{
    int64_t width = min_i64(max_i64(c->n_embd, 0), CONFIG_MAX_WIDTH);
    if (c->n_kv_head == 0) c->n_kv_head = c->n_head;
    if (c->head_dim == 0 && c->n_head > 0) {
        if (c->n_embd % c->n_head != 0)
            config_fail(r, ERR_INVALID, "n_head",
                        "n_embd (%lld) is not a multiple of n_head (%lld); set head_dim",
                        (long long)c->n_embd, (long long)c->n_head);
        c->head_dim = c->n_embd / c->n_head;
    }
    /* A gated MLP has three matrices where the plain one has two: 8/3 keeps their size. */
    if (c->n_ff == 0)
        c->n_ff = c->mlp_type == MLP_SWIGLU ? round_up(width * 8 / 3, 64) : 4 * width;
    const char *arch = c->pos_encoding == POS_LEARNED        ? "gpt2"
                       : c->qk_norm                          ? "qwen3"
                       : c->bias_qkv && !c->bias_attn_out    ? "qwen2"
                                                             : "llama";
    strcpy(c->arch, arch);
}

/* Reads the keys that are there over what *c says. */
static void read_over(struct config_reader *r, struct gpt_config *c)
{
    check_known(r);
    if (config_member(r, bias_key)) {
        bool bias = config_bool(r, bias_key, false);
        const struct cJSON *norm = config_member(r, "norm_type");
        bool rms = cJSON_IsString(norm) ? strcmp(norm->valuestring, "rmsnorm") == 0
                                        : c->norm_type == NORM_RMSNORM;
        c->bias_qkv = c->bias_attn_out = c->bias_mlp = bias;
        c->bias_norm = bias && !rms;
    }
    for (size_t i = 0; i < N_KEYS; i++) read_key(r, &keys[i], c);
}

void config_read_preset(struct config_reader *r, struct gpt_config *c)
{
    *c = (struct gpt_config){.norm_eps = 1e-5f, .rope_theta = 10000, .tie_weights = true};
    read_over(r, c);
    fill_derived(r, c);
}

/* Runs `read` on the text; then what is read is checked, training's keys too. */
static bool read_text(const char *json, size_t n, const char *where,
                      void (*read)(struct config_reader *, struct gpt_config *),
                      struct gpt_config *c, struct error *err)
{
    struct cJSON *root = json_parse(json, n, PRESET_MAX_DEPTH, where, err);
    if (!root) return false;
    struct config_reader r = {.object = root, .where = where, .err = err};
    struct train_config training;
    train_config_init(&training);
    if (cJSON_IsObject(root)) {
        read(&r, c);
        train_config_read(&r, &training);
    } else {
        config_fail(&r, ERR_INVALID, NULL, "the config is %s, not an object", json_type_name(root));
    }
    cJSON_Delete(root);
    if (r.failed || !train_config_check(&training, where, err)) return false;
    /* A vocabulary that comes from the data is not known yet: check the rest. */
    struct gpt_config checked = *c;
    if (checked.vocab_size == 0) checked.vocab_size = 1;
    return gpt_config_check(&checked, where, err);
}

bool gpt_config_from_preset(const char *json, size_t n, const char *where, struct gpt_config *out,
                            struct error *err)
{
    struct gpt_config c = {0};
    if (!read_text(json, n, where, config_read_preset, &c, err)) return false;
    *out = c;
    return true;
}

bool gpt_config_agrees(const char *json, size_t n, const char *where,
                       const struct gpt_config *model, struct error *err)
{
    struct gpt_config c = *model;
    if (!read_text(json, n, where, read_over, &c, err)) return false;
    const char *key = gpt_config_difference(&c, model);
    return !key || error_set(err, ERR_INVALID, key, "%s: %s is not that of the model to start from",
                             where, key);
}

static bool add_key(const struct key *key, const struct gpt_config *c, struct cJSON *object)
{
    const void *at = (const char *)c + key->offset;
    switch (key->type) {
    case KEY_INT: return json_add_number(object, key->name, (double)*(const int64_t *)at);
    case KEY_FLOAT: return json_add_float(object, key->name, *(const float *)at);
    case KEY_BOOL: return cJSON_AddBoolToObject(object, key->name, *(const bool *)at) != NULL;
    case KEY_WORD:
        return cJSON_AddStringToObject(object, key->name, key->words[*(const int *)at]) != NULL;
    }
    return false;
}

bool gpt_config_to_preset(const struct gpt_config *c, struct cJSON *object)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (strcmp(keys[i].name, "dropout") != 0 && !add_key(&keys[i], c, object)) return false;
    return true;
}

const char *gpt_config_difference(const struct gpt_config *a, const struct gpt_config *b)
{
    static const size_t sizes[] = {[KEY_INT] = sizeof(int64_t), [KEY_FLOAT] = sizeof(float),
                                   [KEY_BOOL] = sizeof(bool), [KEY_WORD] = sizeof(int)};
    for (size_t i = 0; i < N_KEYS; i++) {
        const char *x = (const char *)a + keys[i].offset, *y = (const char *)b + keys[i].offset;
        if (strcmp(keys[i].name, "dropout") != 0 && memcmp(x, y, sizes[keys[i].type]) != 0)
            return keys[i].name;
    }
    return NULL;
}
