/* The device that a command runs on, chosen once at start. A device that was asked for and is not
 * there is an error: gptd never falls back to another one. */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "model/device.h"

struct device_options {
    const char *name;    /* "cpu", "cuda:N" */
    int64_t threads;     /* of the CPU; 0: as many as the process may use */
    const char *cpu_isa; /* at most this instruction set: see cpu/cpu.h */
};

/* Logs what was chosen. Close with device_close. */
bool device_open(const struct device_options *o, struct device **out, struct error *err) MUST_CHECK;
void device_close(struct device *d); /* NULL-safe */
