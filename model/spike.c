/* Loss spikes: see spike.h. */
#include "model/spike.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define MIN_RISE 1.0
#define DEVIATIONS (8 * 1.4826)

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values. */
static double median(double *values, int64_t n)
{
    qsort(values, (size_t)n, sizeof *values, compare);
    return 0.5 * (values[(n - 1) / 2] + values[n / 2]);
}

static bool is_off(const struct spike_watch *w, double loss)
{
    int64_t n = min_i64(w->n, SPIKE_WINDOW);
    double values[SPIKE_WINDOW];
    if (n < SPIKE_MIN_LOSSES) return false;
    memcpy(values, w->losses, (size_t)n * sizeof *values);
    double middle = median(values, n);
    for (int64_t i = 0; i < n; i++) values[i] = fabs(values[i] - middle);
    double deviation = median(values, n);
    return loss > middle + MIN_RISE && loss > middle + DEVIATIONS * deviation;
}

bool spike_watch_push(struct spike_watch *w, double loss, int64_t patience)
{
    if (is_off(w, loss)) {
        w->off_in_a_row++;
        return patience > 0 && w->off_in_a_row >= patience;
    }
    w->off_in_a_row = 0;
    w->losses[w->n++ % SPIKE_WINDOW] = loss;
    return false;
}
