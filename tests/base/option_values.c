#include "tests/base/option_values.h"

#include <string.h>

void values_init(struct values *v, struct option table[N_TABLE])
{
    const struct option entries[N_TABLE] = {
        {"hint", OPTION_FLAG, &v->hint, 0, 0, NULL, "Print a hint."},
        {"cache", OPTION_FLAG, &v->cache, 0, 0, NULL, "Do not cache."},
        {"port", OPTION_INT, &v->port, 0, 65535, "N", "Where."},
        {"memory-budget", OPTION_BYTES, &v->budget, 0, 0, "SIZE", "The most."},
        {"temperature", OPTION_DOUBLE, &v->temperature, 0, 100, "T", "Heat."},
        {"model", OPTION_STRING, &v->model, 0, 0, "PATH", "Which."},
        {"stop", OPTION_LIST, &v->stops, 0, 0, "TEXT", "Where to end."},
    };
    *v = (struct values){.cache = true, .port = 8080, .temperature = 0.8, .model = "none"};
    memcpy(table, entries, sizeof entries);
}
