/* The learning rate's path: see schedule.h. */
#include "model/schedule.h"

#include <math.h>

#include "base/checked.h"

int64_t schedule_steps(double steps_or_fraction, int64_t max_iters)
{
    ASSERT(steps_or_fraction >= 0);
    double steps = steps_or_fraction < 1 ? steps_or_fraction * (double)max_iters
                                         : steps_or_fraction;
    return steps < (double)max_iters ? (int64_t)steps : max_iters;
}

/* How far the way down has come, from 0 to 1. */
static double progress(const struct schedule *s, int64_t step, int64_t length)
{
    int64_t begin = s->max_iters - length;
    if (step <= begin) return 0;
    if (step >= s->max_iters) return 1;
    return (double)(step - begin) / (double)length;
}

double schedule_lr(const struct schedule *s, int64_t step)
{
    ASSERT(step > 0 && s->max_iters > 0);
    if (step < s->warmup_iters) return s->learning_rate * (double)step / (double)s->warmup_iters;
    double p = progress(s, step, s->max_iters - s->warmup_iters), left = 0;
    switch (s->kind) {
    case LR_COSINE: left = 0.5 * (1 + cos(M_PI * p)); break;
    case LR_LINEAR: left = 1 - p; break;
    case LR_CONSTANT: return s->learning_rate;
    case LR_WSD: left = 1 - sqrt(progress(s, step, s->decay_iters)); break;
    }
    return s->min_lr + left * (s->learning_rate - s->min_lr);
}
