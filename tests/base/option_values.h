/* A table with an option of every type, and where the values go. */
#pragma once

#include "base/options.h"

enum { N_TABLE = 7 };

struct values {
    bool hint, cache;
    int64_t port, budget;
    double temperature;
    const char *model;
    struct option_list stops;
};

/* Sets the defaults, and has the table's entries point into `v`. */
void values_init(struct values *v, struct option table[N_TABLE]);
