/* Who uses which model: see registry.h. */
#include "api/registry.h"

#include <string.h>

void api_registry_init(struct api_registry *r)
{
    *r = (struct api_registry){0};
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->news, NULL);
}

void api_registry_free(struct api_registry *r)
{
    ASSERT(!r->residents && !r->retired && !r->closing);
    pthread_cond_destroy(&r->news);
    pthread_mutex_destroy(&r->mutex);
}

/* The link that points to the model called id, or to NULL at the end. */
static struct api_resident **find_link(struct api_registry *r, const char *id)
{
    struct api_resident **link = &r->residents;
    while (*link && strcmp((*link)->api.model_id, id) != 0) link = &(*link)->next;
    return link;
}

/* With the mutex held. */
static void retire(struct api_registry *r, struct api_resident *m)
{
    m->next = r->retired;
    r->retired = m;
    pthread_cond_broadcast(&r->news);
}

void api_registry_add(struct api_registry *r, struct api_resident *m)
{
    pthread_mutex_lock(&r->mutex);
    m->api.registry = r;
    struct api_resident **link = find_link(r, m->api.model_id), *old = *link;
    m->next = old ? old->next : NULL;
    *link = m;
    if (old) retire(r, old);
    pthread_mutex_unlock(&r->mutex);
}

static bool not_found(const struct api_registry *r, const char *id, struct error *err)
{
    if (!id || !r->residents)
        return error_set(err, ERR_NOT_FOUND, "model", "no model is loaded");
    return error_set(err, ERR_NOT_FOUND, "model",
                     "no model '%.64s' is loaded; '%.64s'%s: GET /v1/models lists them, and those "
                     "that POST /v1/models/load could load", id,
                     r->residents->api.model_id, r->residents->next ? " and others are" : " is");
}

bool api_registry_retire(struct api_registry *r, const char *id, const struct api_resident **out,
                         struct error *err)
{
    pthread_mutex_lock(&r->mutex);
    struct api_resident **link = find_link(r, id), *m = *link;
    if (m) {
        *link = m->next;
        retire(r, m);
        *out = m;
    } else {
        not_found(r, id, err);
    }
    pthread_mutex_unlock(&r->mutex);
    return m != NULL;
}

struct api_resident *api_registry_take_idle(struct api_registry *r)
{
    struct api_resident *found = NULL;
    pthread_mutex_lock(&r->mutex);
    for (;;) {
        struct api_resident **link = &r->retired;
        while (*link && (*link)->users > 0) link = &(*link)->next;
        found = *link;
        if (found) {
            *link = found->next;
            r->closing = found;
            break;
        }
        if (r->stopping && !r->retired) break;
        pthread_cond_wait(&r->news, &r->mutex);
    }
    pthread_mutex_unlock(&r->mutex);
    return found;
}

static void add_counters(struct engine_stats *sum, const struct engine_stats *s)
{
    sum->n_steps += s->n_steps;
    sum->n_prefill_tokens += s->n_prefill_tokens;
    sum->n_decode_tokens += s->n_decode_tokens;
    sum->n_model_failures += s->n_model_failures;
    sum->busy_ns += s->busy_ns;
    sum->kv.lookup_tokens += s->kv.lookup_tokens;
    sum->kv.hit_tokens += s->kv.hit_tokens;
    sum->kv.evictions += s->kv.evictions;
}

void api_registry_count_gone(struct api_registry *r, const struct engine_stats *s)
{
    pthread_mutex_lock(&r->mutex);
    add_counters(&r->gone, s);
    pthread_mutex_unlock(&r->mutex);
}

void api_registry_closed(struct api_registry *r, struct api_resident *m)
{
    pthread_mutex_lock(&r->mutex);
    ASSERT(r->closing == m);
    r->closing = NULL;
    pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->mutex);
}

static bool is_open(const struct api_registry *r, const struct api_resident *m)
{
    if (r->closing == m) return true;
    for (const struct api_resident *x = r->retired; x; x = x->next)
        if (x == m) return true;
    return false;
}

void api_registry_wait_closed(struct api_registry *r, const struct api_resident *m)
{
    pthread_mutex_lock(&r->mutex);
    while (is_open(r, m)) pthread_cond_wait(&r->news, &r->mutex);
    pthread_mutex_unlock(&r->mutex);
}

void api_registry_stop(struct api_registry *r)
{
    pthread_mutex_lock(&r->mutex);
    r->stopping = true;
    while (r->residents) {
        struct api_resident *m = r->residents;
        r->residents = m->next;
        retire(r, m);
    }
    pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->mutex);
}

/* ---- using a model ---- */

const struct api_context *api_acquire(const struct api_context *c, const char *id,
                                      struct error *err)
{
    struct api_registry *r = c->registry;
    if (!r) {
        if (!id || strcmp(id, c->model_id) == 0) return c;
        error_set(err, ERR_NOT_FOUND, "model",
                  "the model '%.64s' does not exist; '%.64s' is served", id, c->model_id);
        return NULL;
    }
    pthread_mutex_lock(&r->mutex);
    struct api_resident *m = id ? *find_link(r, id) : r->residents;
    if (m) m->users++;
    else not_found(r, id, err);
    pthread_mutex_unlock(&r->mutex);
    return m ? &m->api : NULL;
}

void api_release(const struct api_context *c)
{
    if (!c || !c->registry) return;
    struct api_registry *r = c->registry;
    struct api_resident *m = (struct api_resident *)c;
    pthread_mutex_lock(&r->mutex);
    ASSERT(m->users > 0);
    if (--m->users == 0) pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->mutex);
}

void api_visit(const struct api_context *c,
               void (*visit)(void *ctx, const struct api_context *model), void *ctx)
{
    struct api_registry *r = c->registry;
    if (!r) {
        visit(ctx, c);
        return;
    }
    pthread_mutex_lock(&r->mutex);
    for (struct api_resident *m = r->residents; m; m = m->next) visit(ctx, &m->api);
    pthread_mutex_unlock(&r->mutex);
}

/* ---- sums ---- */

static void add_memory(struct engine_memory *sum, const struct engine_memory *m)
{
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        sum->planned[i] += m->planned[i];
        sum->allocated[i] += m->allocated[i];
        sum->in_use[i] += m->in_use[i];
        sum->peak[i] += m->peak[i];
    }
    sum->planned_bytes += m->planned_bytes;
    sum->allocated_bytes += m->allocated_bytes;
    sum->host_bytes += m->host_bytes;
}

static void add_stats(void *ctx, const struct api_context *model)
{
    struct engine_stats *sum = ctx, s;
    engine_stats(model->engine, &s);
    add_counters(sum, &s);
    add_memory(&sum->memory, &s.memory);
    bool works = s.running > 0 || s.queued > 0;
    if (works && (sum->last_progress_ns == 0 || s.last_progress_ns < sum->last_progress_ns))
        sum->last_progress_ns = s.last_progress_ns;
    sum->running += s.running;
    sum->queued += s.queued;
    sum->draining = sum->draining || s.draining;
    sum->device_failed = sum->device_failed || s.device_failed;
    sum->kv.total += s.kv.total;
    sum->kv.active += s.kv.active;
    sum->kv.free += s.kv.free;
    sum->kv.cached += s.kv.cached;
    sum->kv.reserved += s.kv.reserved;
    sum->kv.shared += s.kv.shared;
    sum->kv.high_water += s.kv.high_water;
}

void api_stats(const struct api_context *c, struct engine_stats *out)
{
    *out = (struct engine_stats){0};
    if (c->registry) {
        pthread_mutex_lock(&c->registry->mutex);
        add_counters(out, &c->registry->gone);
        pthread_mutex_unlock(&c->registry->mutex);
    }
    api_visit(c, add_stats, out);
}
