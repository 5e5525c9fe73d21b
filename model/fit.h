/* Does a model fit, and how? Plans for training and for generating within a budget, how far they
 * can be stretched, and what else would fit: what `gptd plan` and POST /v1/memory/plan answer.
 * Everything is planned to the byte by trainer_plan and engine_plan; nothing is allocated on the
 * device, which need not be there. Plain values; any thread. */
#pragma once

#include "model/gpus.h"
#include "model/serve_search.h"
#include "model/train_search.h"

struct fit_question {
    struct gpt_config model;       /* checked */
    /* Checked, not resolved: what is open stays open. */
    struct train_config training;
    struct train_config card_training; /* the same on CUDA, where bf16 is usual: for fit_cards */
    unsigned freedom;              /* of training: enum train_freedom */
    struct engine_options serving; /* memory_budget and kv_bytes are not read */
    bool longer_context;           /* the model does not exist yet: its block_size may grow */
    const struct device *device;   /* of which only sizes are asked */
    struct device_rates rates;
    int64_t budget;                /* 0: none */
};

/* The least that generates: bf16, one sequence, prompts in pieces of 4 tokens. */
void fit_serving_init(struct engine_options *o);

/* The type that most weights have when serving: of the file's, where they are kept. */
enum dtype fit_serving_dtype(const struct fit_question *q);

/* bf16 becomes f16 where the device does not compute in bf16 (GPUs before sm_80). */
void fit_half(struct fit_question *q);

enum { FIT_MAX_ALTERNATIVES = 8 };

struct fit_answer {
    int64_t parameters;

    struct train_choice training;    /* the fastest that fits; where none does, the nearest */
    bool training_fits;
    /* Others that fit, the fastest first, each a tenth smaller than the one before; the smallest
     * is last. Where nothing fits, those of a freer search: every format and recompute level,
     * then shorter sequences. */
    struct train_choice alternatives[FIT_MAX_ALTERNATIVES];
    int32_t n_alternatives;
    int64_t max_micro_batch_size;    /* at a time, in the smallest formats that are free; 0: none */
    int64_t max_sequence_length;     /* of one sequence at a time, likewise */

    struct engine_options serving;   /* max_context resolved */
    struct engine_need generation;   /* for max_seqs full sequences */
    bool generation_fits;
    struct serve_limits limits;
};

/* ERR_INVALID for options that make no sense together; ERR_NO_FIT only for sizes that do not fit 63
 * bits. That something does not fit the budget is an answer. */
bool fit_answer(const struct fit_question *q, struct fit_answer *out, struct error *err) MUST_CHECK;
/* Bytes that are missing: of training, of generation; 0 where it fits. */
int64_t fit_shortfall_training(const struct fit_question *q, const struct fit_answer *a);
int64_t fit_shortfall_generation(const struct fit_question *q, const struct fit_answer *a);

/* What one card does for the model. */
struct fit_card {
    const struct gpu *gpu;
    bool trains, generates;
    struct train_choice plan; /* of training: the fastest that fits, with the card's estimate */
};
/* All cards, against plans for CUDA: `sizes` answers for a compute capability. cards: [n_gpus]. */
typedef const struct device *(*fit_sizes)(int32_t sm);
bool fit_cards(const struct fit_question *q, fit_sizes sizes, struct fit_card *cards,
               struct error *err) MUST_CHECK;

/* Tokens that a step of this config learns from. */
int64_t fit_step_tokens(const struct train_config *c);
