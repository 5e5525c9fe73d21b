/* Watches that the engine gets on with its work: a step that never ends (a device that hangs, a
 * bug) leaves every client waiting, and only someone outside of the engine can tell. And that its
 * device has not failed: then nothing will ever run again in this process. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "api/api.h"

/* Has the engine had work and made no progress for over `timeout_s`? *since_s is how long. Any
 * thread; never waits for the engine. */
bool engine_is_stalled(const struct api_context *api, int64_t timeout_s, double *since_s);

/* Has a model's device failed? Likewise. */
bool engine_device_failed(const struct api_context *api);

struct watchdog_options {
    const struct api_context *api;
    int64_t stall_timeout_s;
    /* Called once, on the watchdog's thread, when a device has failed, after it is logged. May be
     * NULL. */
    void (*on_device_failure)(void *ctx);
    /* Called once, on the watchdog's thread, when a stall begins, after it is logged. May be
     * NULL. */
    void (*on_stall)(void *ctx);
    void *ctx;
};

struct watchdog;

/* Looks every second, or as often as the service manager wants WATCHDOG=1 (notify.h), which it gets
 * while nothing is stalled. */
bool watchdog_start(const struct watchdog_options *o, struct watchdog **out,
                    struct error *err) MUST_CHECK;
void watchdog_stop(struct watchdog *w); /* NULL-safe */
