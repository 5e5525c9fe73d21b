/* SIGINT, SIGTERM and, for who wants it, SIGHUP, taken by a thread of their own: an ordinary
 * function call in an ordinary thread, instead of a handler that may do next to nothing. Start it
 * before any other thread (they inherit the blocked signals). SIGPIPE is ignored from then on:
 * writes report it. */
#pragma once

#include <stdbool.h>

#include "base/error.h"

struct signals;

/* What SIGHUP does: end the process, or nothing (under nohup), as without us; or call `handle`. */
enum signals_hangup { HANGUP_DEFAULT, HANGUP_HANDLE };

/* `handle` runs for each signal, one at a time; `count` is 1 for the first. It may end the
 * process. */
bool signals_start(enum signals_hangup hangup,
                   void (*handle)(void *ctx, int signal_number, int count), void *ctx,
                   struct signals **out, struct error *err) MUST_CHECK;
void signals_stop(struct signals *s); /* no `handle` runs after; NULL-safe */
