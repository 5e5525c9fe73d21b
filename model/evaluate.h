/* The loss of a model on text, through the forward pass that serves: each token's negative
 * log-probability under what comes before it in its sequence. No gradients, no training buffers. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "model/checkpoint.h"
#include "model/dataset.h"
#include "model/device.h"
#include "model/plan.h"

struct evaluation {
    int64_t tokens; /* predicted */
    double nll;     /* sum of -log p, nats: loss = nll / tokens, perplexity = exp(loss) */
};

struct evaluator;

struct evaluator_options {
    const struct checkpoint *checkpoint;
    enum dtype dtype;        /* f32, bf16, q8_0 or q4_0 */
    bool keep_formats;       /* with bf16 or f16: quantized matrices stay as they
                                are in the file, where the device keeps them */
    enum dtype kv_dtype;     /* as in struct engine_options */
    int64_t max_sequence;    /* tokens of a sequence, at most: its keys and values must fit */
    int64_t memory_budget;   /* 0: none */
};

/* Plans, allocates and loads. ERR_NO_FIT over the budget, with the numbers. */
bool evaluator_open(struct device *d, const struct evaluator_options *o, struct evaluator **out,
                    struct error *err) MUST_CHECK;
void evaluator_close(struct evaluator *e); /* NULL-safe */
int64_t evaluator_memory(const struct evaluator *e);
/* Sequence `index` of a split of `data`, whose block_size is at most max_sequence and whose
 * documents flow (are not kept apart). Adds to *sum. */
bool evaluator_add(struct evaluator *e, const struct dataset *data, enum dataset_split split,
                   int64_t index, struct evaluation *sum, struct error *err) MUST_CHECK;
