/* The fastest way to train within a memory budget: what the config leaves open (micro-batch,
 * recompute level, formats of moments, masters and gradients, rows of logits) is tried in every
 * combination, each planned to the byte (trainer_plan) and timed by a model of the step:
 * floating-point operations and bytes moved, over what the device does a second. Nothing is
 * allocated on the device, which need not be there. */
#pragma once

#include "model/device_rates.h"
#include "model/trainer.h"

/* What the search may choose. */
enum train_freedom {
    FREE_MICRO_BATCH = 1,
    FREE_RECOMPUTE = 2,
    FREE_MOMENTS = 4,
    FREE_MASTER = 8,
    FREE_GRADIENTS = 16,
    FREE_LOSS_ROWS = 32,
    FREE_ALL = 63,
};

/* One combination. */
struct train_choice {
    struct train_config config; /* resolved */
    struct memory_plan memory;
    double seconds;             /* of a step, estimated */
    double flops, bytes;        /* of a step, moved and computed: what the estimate rests on */
    int32_t lossy;              /* formats that round what f32 training would keep: 0, 1, 2, ... */
};

struct train_search {
    struct train_choice *choices; /* malloc'd; those that fit first, by time; then
                                     those that do not, by bytes over the budget */
    int32_t n, n_fit;
};

/* All combinations of what is free; `o` gives the rest. budget 0: everything fits. Among plans
 * within 2 % of one another's time the one with fewer lossy formats goes first, then the smaller.
 * ERR_NO_FIT only when sizes do not fit 63 bits; that nothing fits is n_fit = 0. */
bool train_search(const struct trainer_options *o, const struct device *d,
                  const struct device_rates *rates, unsigned freedom, int64_t budget,
                  struct train_search *out, struct error *err) MUST_CHECK;
void train_search_free(struct train_search *s);

/* What a config that is not resolved yet leaves open: sizes of 0, formats that are TRAIN_AUTO. Ask
 * before train_config_resolve fills it in. */
unsigned train_search_freedom(const struct train_config *c);
/* The way down from choices[0], for people: of those that fit, in their order, each that takes at
 * least a tenth less than the one before; the smallest is last. Borrowed from s; returns how many,
 * at most max. */
int32_t train_search_ladder(const struct train_search *s, const struct train_choice **out,
                            int32_t max);

/* The estimate for one resolved config, whose plan is known. */
void train_cost(const struct trainer_options *o, const struct device *d,
                const struct device_rates *rates, struct train_choice *choice);
