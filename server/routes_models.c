/* The routes of models that come and go: loading, swapping, removing. They run on threads of their
 * own (work.c): a model takes its time to be read, and to drain. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/request.h"

_Static_assert(sizeof((struct api_available *)0)->path == DATA_PATH_MAX, "a path of a job's");

enum { LOAD_ARENA = 16 * 1024, MAX_AVAILABLE = 1000 };

/* ---- models that jobs left ---- */

struct available {
    const struct api_context *api;
    struct api_available *at;
    size_t n;
    bool failed;
};

static bool is_loaded(const struct api_context *api, const char *id)
{
    struct error err;
    const struct api_context *model = api_acquire(api, id, &err);
    api_release(model);
    return model != NULL;
}

/* jobs_model_fn */
static void collect(void *ctx, const char *name, const char *path, int64_t created)
{
    struct available *a = ctx;
    if (a->failed || a->n == MAX_AVAILABLE || is_loaded(a->api, name)) return;
    struct api_available *more = realloc(a->at, (a->n + 1) * sizeof *more);
    a->failed = !more;
    if (!more) return;
    a->at = more;
    struct api_available *m = &a->at[a->n++];
    *m = (struct api_available){.created = created};
    snprintf(m->id, sizeof m->id, "%s", name);
    snprintf(m->path, sizeof m->path, "%s", path);
}

static bool list_available(struct request *r, struct available *out, struct error *err)
{
    *out = (struct available){.api = r->server->api};
    if (r->server->options.jobs) jobs_visit_models(r->server->options.jobs, collect, out);
    if (!out->failed) return true;
    free(out->at);
    return error_set(err, ERR_MEMORY, NULL, "no memory to list the models");
}

bool get_models(struct request *r, struct buf *out, struct error *err)
{
    struct available more;
    if (!list_available(r, &more, err)) return false;
    api_models(r->server->api, more.at, more.n, out);
    free(more.at);
    return true;
}

/* One that is not loaded: of a job, or a checkpoint. */
static bool find_available(struct request *r, const char *name, struct api_available *out)
{
    if (!r->server->options.jobs
        || !jobs_find_model(r->server->options.jobs, name, out->path, &out->created))
        return false;
    snprintf(out->id, sizeof out->id, "%.127s", name);
    return true;
}

bool get_model(struct request *r, struct buf *out, struct error *err)
{
    struct api_available other;
    if (api_model(r->server->api, r->param, out, err)) return true;
    if (!find_available(r, r->param, &other)) return false;
    api_render_available(&other, out);
    return true;
}

/* ---- loading and removing ---- */

static bool models_of(struct request *r, struct models **out, struct error *err)
{
    *out = r->server->options.models;
    return *out || error_set(err, ERR_UNAVAILABLE, NULL, "this server's model is fixed");
}

/* Where what the client calls `name` is, and the id it gets unless told otherwise. */
static bool find_model(struct request *r, struct models *models, const char *name, char *id,
                       size_t id_size, char path[DATA_PATH_MAX], struct error *err)
{
    struct error ignored;
    struct api_available other;
    const char *end;
    const struct api_context *loaded = api_acquire(r->server->api, name, &ignored);
    bool found = loaded != NULL;
    if (loaded) snprintf(path, DATA_PATH_MAX, "%s", loaded->model_path);
    api_release(loaded);
    if (!found && find_available(r, name, &other)) {
        snprintf(path, DATA_PATH_MAX, "%s", other.path);
        found = true;
    }
    if (found) {
        snprintf(id, id_size, "%s", name);
        return true;
    }
    return models_find_path(models, name, path, DATA_PATH_MAX, err)
           && model_name(path, id, id_size, &end, err);
}

/* An id of the client's choice must do in a URL: model_name's rules, and no "=". */
static bool take_id(const char *wanted, char *id, size_t size, struct error *err)
{
    char spec[256], checked[128];
    const char *path;
    struct error why;
    bool ok = strlen(wanted) < sizeof checked && !strpbrk(wanted, "=/");
    snprintf(spec, sizeof spec, "%.127s=x", wanted);
    ok = ok && model_name(spec, checked, sizeof checked, &path, &why);
    if (ok) snprintf(id, size, "%s", checked);
    return ok || error_set(err, ERR_INVALID, "id", "'id' must be 1 to %zu printable characters "
                           "without = / \" \\ ? # %%", sizeof checked - 1);
}

static bool load(struct request *r, struct models *models, const struct api_load *body,
                 struct buf *out, struct error *err)
{
    char id[128], path[DATA_PATH_MAX];
    if (!find_model(r, models, body->model, id, sizeof id, path, err)) return false;
    if (!take_id(body->id ? body->id : id, id, sizeof id, err)) return false;
    struct error why;
    if (!models_load(models, id, path, &why)) {
        /* The server's files are not the client's fault, but its choice. */
        bool unreadable = why.code == ERR_IO || why.code == ERR_FORMAT;
        enum error_code code = unreadable ? ERR_INVALID : why.code;
        return error_set(err, code, why.code == ERR_BUSY ? NULL : "model", "%s", why.text);
    }
    return api_model(r->server->api, id, out, err);
}

bool post_model_load(struct request *r, struct buf *out, struct error *err)
{
    struct models *models;
    struct api_load body;
    struct arena arena;
    if (!models_of(r, &models, err)) return false;
    arena_init(&arena, 2 * r->body.len + LOAD_ARENA);
    bool ok = api_load_parse(&r->server->api->limits, r->body.data ? r->body.data : "",
                             r->body.len, &arena, &body, err)
              && load(r, models, &body, out, err);
    arena_free(&arena);
    return ok;
}

bool delete_model(struct request *r, struct buf *out, struct error *err)
{
    struct models *models;
    if (!models_of(r, &models, err) || !models_unload(models, r->param, err)) return false;
    api_render_deleted(out, "model", r->param);
    return true;
}
