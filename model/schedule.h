/* The learning rate's path through a run: a linear warm-up, then what the schedule's name says.
 * A pure function of the step, so that resuming needs no state. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum lr_schedule {
    LR_COSINE,   /* half a cosine from learning_rate down to min_lr (Loshchilov & Hutter 2017) */
    LR_LINEAR,   /* a straight line down to min_lr */
    LR_CONSTANT, /* learning_rate to the end */
    LR_WSD,      /* warm-up, stable, decay: constant, and over the last decay_iters down to min_lr
                    as 1 - sqrt (Haegele et al. 2024) */
};

struct schedule {
    enum lr_schedule kind;
    double learning_rate, min_lr;
    int64_t max_iters;    /* > 0 */
    int64_t warmup_iters; /* 0..max_iters */
    int64_t decay_iters;  /* of LR_WSD: 0..max_iters - warmup_iters */
};

/* "Steps or a fraction": a value from 1 on is a number of steps, one between 0 and 1 that share of
 * max_iters. At most max_iters. */
int64_t schedule_steps(double steps_or_fraction, int64_t max_iters);

/* The rate of step 1, 2, ... Step warmup_iters has learning_rate, step max_iters (and any later
 * one) min_lr. */
double schedule_lr(const struct schedule *s, int64_t step);
