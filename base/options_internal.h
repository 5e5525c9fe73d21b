/* What options.c, options_env.c and options_file.c share. */
#pragma once

#include "base/options.h"

#define OPTIONS_PREFIX "GPTD_"

enum { OPTIONS_MAX = 128 }; /* in one table */

/* Stands in argv where the environment counts: this very pointer, so that no text a user gives can
 * be taken for it. */
extern const char options_environment_mark[];

/* Sets an option that takes a value from its text. */
bool option_set(const struct option *o, const char *text, struct error *err) MUST_CHECK;
/* What the environment has for the table. */
bool options_from_environment(const struct option *table, size_t n, struct error *err) MUST_CHECK;
