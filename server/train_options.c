/* The command line of `gptd train`: see train_options.h. */
#include "server/train_options.h"

#include <stdio.h>
#include <string.h>


enum { NAME_MAX_BYTES = 100 };

static void own_options(struct train_options *o)
{
    const struct option entries[N_TRAIN_OPTIONS - N_DEVICE_OPTIONS] = {
        {"config", OPTION_STRING, &o->config, 0, 0, "FILE",
         "The model and how to train it: configs/NAME.json, or your own."},
        {"model-name", OPTION_STRING, &o->model_name, 0, 0, "NAME",
         "The model goes to OUT_DIR/NAME."},
        {"input", OPTION_LIST, &o->input, 0, 0, "FILE",
         "Text or JSON lines to learn from: a file, a glob, or a directory of token shards; more "
         "may follow."},
        {"val-input", OPTION_LIST, &o->val_input, 0, 0, "FILE",
         "Text to evaluate on, instead of a part of the input; each is a set of its own."},
        {"tokenizer", OPTION_STRING, &o->tokenizer, 0, 0, "PATH",
         "A directory with tokenizer.json, or a .gguf file. Without it one is made from the input: "
         "characters where the config has no vocab_size, else a byte-level BPE."},
        {"out-dir", OPTION_STRING, &o->out_dir, 0, 0, "DIR", "Where models lie."},
        {"init-from", OPTION_STRING, &o->init_from, 0, 0, "PATH",
         "Begin with this model's weights, tokenizer and shape."},
        {"resume", OPTION_FLAG, &o->resume, 0, 0, NULL,
         "Go on from the newest checkpoint, or begin where there is none."},
        {"overwrite", OPTION_FLAG, &o->overwrite, 0, 0, NULL,
         "Begin anew where there is a run already, which is lost."},
        {"epochs", OPTION_INT, &o->epochs, 0, 1000000, "N",
         "Train as many steps as see the input N times, instead of --max-iters; 0: --max-iters."},
        {"memory-budget", OPTION_BYTES, &o->memory_budget, 0, 0, "SIZE",
         "The most that training may take. What the config leaves open is chosen to be the fastest "
         "within it; what cannot fit is refused at start. 0: 80 % of what the GPU, or the machine "
         "and the cgroup, leave, and the defaults where they fit."},
        {"explain", OPTION_FLAG, &o->explain, 0, 0, NULL,
         "Print the plan chosen for the memory budget and those next to it, with bytes and time."},
    };
    memcpy(o->table, entries, sizeof entries);
    device_options_table(&o->device,
                         "Where to train; auto: on the first GPU if there is a usable one, else on "
                         "the CPU.",
                         o->table + N_TRAIN_OPTIONS - N_DEVICE_OPTIONS);
}

static struct option key_option(struct train_options *o, size_t i)
{
    static const enum option_type types[] = {
        [TRAIN_INT] = OPTION_INT, [TRAIN_DOUBLE] = OPTION_DOUBLE, [TRAIN_BOOL] = OPTION_FLAG,
        [TRAIN_WORD] = OPTION_STRING,
    };
    const struct train_key *key = &train_keys[i];
    char *name = o->names[i];
    ASSERT(strlen(key->name) < TRAIN_FLAG_BYTES);
    strcpy(name, key->name);
    for (char *s = name; *s; s++)
        if (*s == '_') *s = '-';
    void *value = (char *)&o->training + key->offset;
    if (key->type == TRAIN_WORD) value = &o->words[i];
    return (struct option){name, types[key->type], value, key->min, key->max, key->arg, key->help};
}

/* Words of options are texts; in the config they are enums. */
static void words_from_config(struct train_options *o)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (train_keys[i].type == TRAIN_WORD)
            o->words[i] = train_key_word(&train_keys[i], &o->training);
}

void train_options_init(struct train_options *o)
{
    *o = (struct train_options){.device = {.name = "auto", .cpu_isa = "best"},
                                .out_dir = "models"};
    train_config_init(&o->training);
    own_options(o);
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) o->table[N_TRAIN_OPTIONS + i] = key_option(o, i);
    words_from_config(o);
}

bool train_options_parse(struct train_options *o, int argc, char **argv, bool *help,
                         struct error *err)
{
    int n_positional;
    words_from_config(o);
    o->input.n = o->val_input.n = 0;
    if (!options_parse(o->table, N_TRAIN_OPTIONS + N_TRAIN_KEYS, argc, argv, 2, o->inputs,
                       COMMAND_MAX_INPUTS, &n_positional, help, err))
        return false;
    o->n_inputs = command_inputs(&o->input, o->inputs, n_positional);
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (train_keys[i].type == TRAIN_WORD &&
            !train_key_set_word(&train_keys[i], o->words[i], "the command line", &o->training, err))
            return false;
    return true;
}

void train_options_help(const struct train_options *o)
{
    options_print_help(stdout, "gptd train --config FILE --model-name NAME --input FILE [OPTIONS]",
                       "Trains a model from text, or goes on training one.", o->table,
                       N_TRAIN_OPTIONS + N_TRAIN_KEYS);
}

/* The name becomes a directory's and a model's. */
static bool check_name(const char *name, struct error *err)
{
    bool plain = *name && *name != '.' && strlen(name) <= NAME_MAX_BYTES;
    for (const char *s = name; *s && plain; s++)
        plain = *s > ' ' && *s != 0x7F && !strchr("/\"\\?#%=", *s);
    return plain || error_set(err, ERR_INVALID, "model-name",
                              "--model-name %.100s: must be 1 to %d printable characters without "
                              "slashes and spaces, and not begin with a dot", name, NAME_MAX_BYTES);
}

bool train_options_check(const struct train_options *o, struct error *err)
{
    if (!o->model_name)
        return error_set(err, ERR_INVALID, "model-name",
                         "say what the model is to be called: --model-name NAME");
    if (!check_name(o->model_name, err)) return false;
    if (!o->config && !o->init_from && !o->resume)
        return error_set(err, ERR_INVALID, "config", "say which model to train: --config FILE, or "
                         "--init-from PATH to go on training one");
    if (o->n_inputs == 0)
        return error_set(err, ERR_INVALID, "input", "say what to learn from: --input FILE");
    if (o->init_from && o->tokenizer)
        return error_set(err, ERR_INVALID, "tokenizer", "--init-from brings its own tokenizer; "
                         "another would make nonsense of what the model knows");
    if (o->resume && o->overwrite)
        return error_set(err, ERR_INVALID, "overwrite", "--resume keeps what --overwrite would "
                         "remove: give one of them");
    return device_options_check(&o->device, err);
}
