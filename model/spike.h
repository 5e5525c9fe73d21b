/* Has the loss left its path? Single odd batches are normal; a run that diverges stays off.
 *
 * The rule: a step is off when its loss is above the median of the last 64 ordinary losses by
 * more than 1 nat and by more than 8 robust standard deviations (1.4826 x the median absolute
 * deviation, which one outlier cannot move). Losses of steps that are off do not enter the
 * window. `patience` steps off in a row are a spike. The first 32 losses are never off: a run
 * must find its path first. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { SPIKE_WINDOW = 64, SPIKE_MIN_LOSSES = 32 };

struct spike_watch {
    double losses[SPIKE_WINDOW]; /* the last n of them, ring order */
    int64_t n;                   /* ordinary losses seen */
    int64_t off_in_a_row;
};

/* Takes in a step's finite loss. True: off_in_a_row has reached patience (> 0). */
bool spike_watch_push(struct spike_watch *w, double loss, int64_t patience);
