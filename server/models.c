/* The models of a server: see models.h. */
#include "server/models.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/chat.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/log.h"

/* A model with what it needs to answer. */
struct resident {
    struct api_resident shared; /* first: the registry's */
    struct model model;
    struct chat_template chat;
    char spec[PATH_MAX + 160]; /* "ID=PATH"; model.path points into it */
    int64_t bytes;             /* of the budget */
};

struct models {
    struct api_registry registry;
    struct api_context api;
    struct model_options options;
    const char *models_dir;
    char device[160];
    char device_name[16];   /* that of the API: it outlives the first model */
    int64_t budget;         /* of all together */
    _Atomic int64_t taken;  /* of it */
    pthread_t closer;
    pthread_mutex_t load_mutex; /* one at a time: each takes memory and all cores */
};

/* ---- opening and closing one ---- */

static void close_resident(struct models *m, struct resident *r)
{
    model_close(&r->model);
    atomic_fetch_sub(&m->taken, r->bytes);
}

/* Opens it within what is left of the budget. */
static bool open_in_budget(struct models *m, struct resident *r, struct error *err)
{
    struct model_options o = m->options;
    struct engine_stats stats;
    int64_t taken = atomic_load(&m->taken);
    o.memory_budget = m->budget - taken;
    if (m->options.memory_budget == 0)
        o.memory_budget = min_i64(o.memory_budget, device_budget_default(&o.device));
    o.memory_budget = max_i64(1, o.memory_budget); /* 0 would say: as much as there is */
    if (!model_open(r->spec, &o, &r->model, err)) {
        struct error why = *err;
        if (why.code != ERR_NO_FIT || taken == 0) return false;
        return error_set(err, ERR_NO_FIT, why.param, "%s: %s; %lld bytes of the budget of %lld are "
                         "taken by other models", r->spec, why.text, (long long)taken,
                         (long long)m->budget);
    }
    engine_stats(r->model.engine, &stats);
    r->bytes = stats.memory.planned_bytes;
    atomic_fetch_add(&m->taken, r->bytes);
    return true;
}

static bool open_resident(struct models *m, const char *spec, struct resident **out,
                          struct error *err)
{
    struct resident *r = calloc(1, sizeof *r);
    if (!r) return error_set(err, ERR_MEMORY, NULL, "no memory for the model");
    int n = snprintf(r->spec, sizeof r->spec, "%s", spec);
    if (n < 0 || (size_t)n >= sizeof r->spec) {
        free(r);
        return error_set(err, ERR_TOO_LARGE, "model", "the model's path is too long");
    }
    if (!open_in_budget(m, r, err)) {
        free(r);
        return false;
    }
    const struct tokenizer *t = r->model.tokenizer;
    if (t) chat_template_init(&r->chat, tokenizer_chat_template(t));
    r->shared.api = (struct api_context){
        .engine = r->model.engine,
        .model_id = r->model.id,
        .model_path = r->model.path,
        .created = time(NULL),
        .limits = m->api.limits,
        .chat = t ? &r->chat : NULL,
    };
    *out = r;
    return true;
}

/* The thread that closes. */
static void *close_retired(void *arg)
{
    struct models *m = arg;
    struct api_resident *shared;
    while ((shared = api_registry_take_idle(&m->registry))) {
        struct resident *r = (struct resident *)shared;
        struct engine_stats stats;
        engine_stats(r->model.engine, &stats);
        api_registry_count_gone(&m->registry, &stats);
        log_info("model %s: closing, its last request has ended", r->model.id);
        close_resident(m, r);
        api_registry_closed(&m->registry, shared);
        free(r);
    }
    return NULL;
}

/* ---- all ---- */

bool models_start(const char *const *specs, int n, const struct model_options *o,
                  const struct api_limits *limits, const char *models_dir, struct models **out,
                  struct error *err)
{
    struct models *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, ERR_MEMORY, NULL, "no memory to start the server");
    m->options = *o;
    m->budget = o->memory_budget > 0 ? o->memory_budget : device_budget_default(&o->device);
    m->models_dir = models_dir;
    m->api = (struct api_context){.limits = *limits, .registry = &m->registry};
    api_registry_init(&m->registry);
    pthread_mutex_init(&m->load_mutex, NULL);
    int failed = pthread_create(&m->closer, NULL, close_retired, m);
    if (failed) {
        api_registry_free(&m->registry);
        pthread_mutex_destroy(&m->load_mutex);
        free(m);
        errno = failed;
        return error_errno(err, "cannot start the models' thread");
    }
    for (int i = 0; i < n; i++) {
        struct resident *r;
        if (!open_resident(m, specs[i], &r, err)) {
            models_stop(m);
            return false;
        }
        if (i == 0) {
            snprintf(m->device, sizeof m->device, "%s",
                     r->model.device->ops->description(r->model.device));
            snprintf(m->device_name, sizeof m->device_name, "%s", r->model.device->name);
            m->api.device_name = m->device_name;
        }
        api_registry_add(&m->registry, &r->shared);
    }
    *out = m;
    return true;
}

const struct api_context *models_api(const struct models *m) { return &m->api; }

const char *models_device(const struct models *m) { return m->device; }

void models_stop(struct models *m)
{
    if (!m) return;
    api_registry_stop(&m->registry);
    pthread_join(m->closer, NULL);
    api_registry_free(&m->registry);
    pthread_mutex_destroy(&m->load_mutex);
    free(m);
}

bool models_load(struct models *m, const char *id, const char *path, struct error *err)
{
    char spec[PATH_MAX + 160];
    struct resident *r;
    if (pthread_mutex_trylock(&m->load_mutex) != 0)
        return error_set(err, ERR_BUSY, NULL, "another model is being loaded; retry when it is");
    int n = snprintf(spec, sizeof spec, "%s=%s", id, path);
    bool ok = n > 0 && (size_t)n < sizeof spec;
    if (!ok) error_set(err, ERR_TOO_LARGE, "model", "the model's path is too long");
    ok = ok && open_resident(m, spec, &r, err);
    if (ok) api_registry_add(&m->registry, &r->shared);
    pthread_mutex_unlock(&m->load_mutex);
    return ok;
}

bool models_unload(struct models *m, const char *id, struct error *err)
{
    const struct api_resident *gone;
    if (!api_registry_retire(&m->registry, id, &gone, err)) return false;
    api_registry_wait_closed(&m->registry, gone);
    return true;
}

/* What of the name is within `root`, when the name begins with it; else NULL. */
static const char *beneath(const char *name, const char *root)
{
    size_t n = strlen(root);
    return n && strncmp(name, root, n) == 0 && name[n] == '/' ? name + n + strspn(name + n, "/")
                                                              : NULL;
}

bool models_find_path(const struct models *m, const char *name, char *path, size_t size,
                      struct error *err)
{
    char root[PATH_MAX];
    const char *inner = beneath(name, m->models_dir);
    if (!inner && realpath(m->models_dir, root)) inner = beneath(name, root);
    if (path_find_beneath(m->models_dir, name, path, size, NULL)
        || (inner && path_find_beneath(m->models_dir, inner, path, size, NULL)))
        return true;
    return error_set(err, ERR_NOT_FOUND, "model",
                     "there is no model '%.64s': give a fine-tuned or a loaded model's id, or a "
                     "path in the server's folder of models (--models-dir)", name);
}

/* ---- the end ---- */

static void drain_one(void *ctx, const struct api_context *model) { engine_drain(model->engine); }

void models_drain(struct models *m) { api_visit(&m->api, drain_one, NULL); }

static void look_at_one(void *ctx, const struct api_context *model)
{
    bool *idle = ctx;
    *idle = *idle && engine_idle(model->engine);
}

bool models_idle(struct models *m)
{
    bool idle = true;
    api_visit(&m->api, look_at_one, &idle);
    return idle;
}
