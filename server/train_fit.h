/* How a run is made to fit: what its config leaves open is chosen so that the step is fastest
 * within the memory budget (model/train_search.h), and people are told why. */
#pragma once

#include "model/train_search.h"

struct train_fit {
    unsigned freedom;      /* what may be chosen: train_search_freedom */
    int64_t budget;        /* bytes */
    bool budget_given;     /* else a config whose defaults fit stays as it is */
    bool explain;          /* print the choice and the runners-up, to stdout */
    struct device_rates rates; /* filled in: measured */
};

/* Changes o->config, which is resolved, as far as the freedom goes. The device's workspace must
 * be set anew. ERR_NO_FIT when nothing fits; the plans that would, and the budgets they need,
 * are then on stderr. */
bool train_fit(struct train_fit *f, struct device *d, struct trainer_options *o, struct error *err)
    MUST_CHECK;
