/* The command line of `gptd train`: the run's own options and, as flags, every training key. */
#pragma once

#include "base/options.h"
#include "model/train_config.h"
#include "server/command.h"
#include "server/device.h"

enum { N_TRAIN_OPTIONS = 16, TRAIN_FLAG_BYTES = 32 };

struct train_options {
    struct device_options device;
    const char *config, *model_name, *tokenizer, *out_dir, *init_from; /* NULL: not given */
    const char *inputs[COMMAND_MAX_INPUTS + OPTION_LIST_MAX];
    int32_t n_inputs;
    struct option_list input, val_input;
    int64_t memory_budget; /* 0: what the machine leaves */
    int64_t epochs;        /* 0: max_iters says how long */
    bool resume, overwrite, explain;

    /* Flags over `training`, which holds what they do not name. */
    struct train_config training;
    const char *words[N_TRAIN_KEYS];
    char names[N_TRAIN_KEYS][TRAIN_FLAG_BYTES];
    struct option table[N_TRAIN_OPTIONS + N_TRAIN_KEYS];
};

/* Reads argv over what `training` says. Run it once to learn which config is meant, set `training`
 * from that, and run it again: flags count more than files. */
bool train_options_parse(struct train_options *o, int argc, char **argv, bool *help,
                         struct error *err) MUST_CHECK;
/* Defaults, and the table. */
void train_options_init(struct train_options *o);
void train_options_help(const struct train_options *o);
/* What can be said without looking at files. ERR_INVALID names the option. */
bool train_options_check(const struct train_options *o, struct error *err) MUST_CHECK;
