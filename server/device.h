/* The device that a command runs on, chosen once at start: "auto" is the first GPU if this build
 * and this machine have a usable one, else the CPU, and the log says which. A device that was asked
 * for and is not there is an error: gptd never falls back to another one. */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "base/options.h"
#include "model/device.h"

struct device_options {
    const char *name;    /* "auto", "cpu", "cuda:N" */
    int64_t threads;     /* of the CPU; 0: one for each core that the process may use */
    const char *cpu_isa; /* at most this instruction set: see cpu/cpu.h */
    bool profile;        /* time every operation: model/profile.h */
};

enum { N_DEVICE_OPTIONS = 4 };
#define DEVICE_HELP_RUN \
    "Where the model runs; auto: on the first GPU if there is a usable one, else on the CPU."
/* The table's entries for `o` at table[0..N_DEVICE_OPTIONS); `help` is --device's. */
void device_options_table(struct device_options *o, const char *help, struct option *table);
/* Do the options make sense, whatever this machine has? ERR_INVALID names the one that does not. */
bool device_options_check(const struct device_options *o, struct error *err) MUST_CHECK;

/* Options that were checked. ERR_UNSUPPORTED for a device that is not there. Logs what was chosen.
 * Close with device_close, which prints the profile, if one was asked for, to stderr. */
bool device_open(const struct device_options *o, struct device **out, struct error *err) MUST_CHECK;
void device_close(struct device *d); /* NULL-safe */

/* Without --memory-budget: 80 % of what is free now, on the GPU, or of what the machine and the
 * cgroup leave. The rest is for the process itself, for requests, and for the page cache under the
 * model's files. */
int64_t device_budget_default(const struct device_options *o);
