/* The models of a running server: opened at start or when a client asks, swapped, closed when their
 * last request has ended. Each has a device, a tokenizer and an engine of its own (server/model.h).
 * A thread of its own closes them: nobody else waits for requests to end. Any thread. */
#pragma once

#include "api/registry.h"
#include "server/model.h"

struct models;

/* Opens the models, n at least 1, of different names; the first is the default one. They share the
 * memory budget, with each other and with what is loaded later: first come, and what is left for
 * the next. `models_dir`: where clients may load others from. The options' strings are borrowed. */
bool models_start(const char *const *specs, int n, const struct model_options *o,
                  const struct api_limits *limits, const char *models_dir, struct models **out,
                  struct error *err) MUST_CHECK;
/* The context to serve with: its registry has the models. */
const struct api_context *models_api(const struct models *m);
/* What the first model's device says of itself. */
const char *models_device(const struct models *m);

/* Opens the model at `path` and lets it answer as `id`, in the place of the one that did; for a
 * time both are in memory, and count. Takes as long as reading it takes; one at a time
 * (ERR_BUSY). */
bool models_load(struct models *m, const char *id, const char *path, struct error *err) MUST_CHECK;
/* A path that a client gave, relative to the folder of models or beginning with it, to one without
 * links. The kernel sees to it that it does not lead out (path_find_beneath). ERR_NOT_FOUND. */
bool models_find_path(const struct models *m, const char *name, char *path, size_t size,
                      struct error *err) MUST_CHECK;
/* No new request gets it; returns when its last one has ended and its memory is free. */
bool models_unload(struct models *m, const char *id, struct error *err) MUST_CHECK;

void models_drain(struct models *m); /* no engine takes requests any more */
bool models_idle(struct models *m);
/* Closes all. Nobody may use them any more. NULL-safe. */
void models_stop(struct models *m);
