/* From a command line to all that a trainer needs: directory, config, tokenizer, data. Opened in
 * that order, closed in reverse. */
#pragma once

#include "model/train_state.h"
#include "model/trainer.h"
#include "server/chat_data.h"
#include "server/command.h"
#include "server/train_options.h"

struct train_setup {
    char dir[RUN_PATH_MAX];         /* OUT_DIR/NAME */
    char resume_from[RUN_PATH_MAX]; /* the checkpoint to go on from; "": begin */
    int lock;
    unsigned freedom;               /* what the config leaves open: train_search_freedom */
    struct gpt_config model;
    struct tokenizer *tokenizer;    /* NULL: token shards without one */
    char tokenizer_path[TOKENIZER_PATH_BYTES]; /* its directory or .gguf file; "" without one */
    struct chat_data chat_data;     /* conversations in its template */
    struct dataset_chat chat;
    struct dataset *data;
    struct dataset *val_data[TRAINER_MAX_SETS];
    struct trainer_set sets[TRAINER_MAX_SETS];
    int32_t n_sets;
};

/* `*s` stays where it is until it is closed. `o` was parsed once and checked; its flags are read
 * again, over the config's values. */
bool train_setup_open(struct train_options *o, int argc, char **argv, struct train_setup *s,
                      struct error *err) MUST_CHECK;
/* The shape of the model to start from. A model that gptd trained says more of itself than
 * config.json can: which biases it never had. */
bool train_setup_init_config(const char *path, struct gpt_config *model,
                             struct error *err) MUST_CHECK;
void train_setup_close(struct train_setup *s); /* harmless on a zeroed struct with lock -1 */
