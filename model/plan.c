/* The memory plan: see plan.h. */
#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/device.h"

const char *memory_component_name(enum memory_component c)
{
    static const char *const names[N_MEMORY_COMPONENTS] = {
        [MEMORY_WEIGHTS] = "weights",         [MEMORY_MASTER] = "master",
        [MEMORY_GRADIENTS] = "gradients",     [MEMORY_OPTIMIZER] = "optimizer",
        [MEMORY_ACTIVATIONS] = "activations", [MEMORY_LOGITS] = "logits",
        [MEMORY_KV_CACHE] = "kv_cache",       [MEMORY_WORKSPACE] = "workspace",
        [MEMORY_STAGING] = "staging",         [MEMORY_DATA] = "data",
        [MEMORY_HOST] = "host",
    };
    ASSERT(c >= 0 && c < N_MEMORY_COMPONENTS);
    return names[c];
}

const char *plan_life_name(enum plan_life life)
{
    static const char *const names[N_PLAN_LIVES] = {
        [LIFE_RUN] = "run",           [LIFE_START] = "start",
        [LIFE_STEP] = "step",         [LIFE_FORWARD] = "forward",
        [LIFE_ATTENTION] = "attention", [LIFE_MLP] = "mlp",
        [LIFE_LOGITS] = "logits",     [LIFE_BACKWARD_ATTENTION] = "backward_attention",
        [LIFE_BACKWARD_MLP] = "backward_mlp",
    };
    ASSERT(life >= 0 && life < N_PLAN_LIVES);
    return names[life];
}

void plan_init(struct plan *p) { *p = (struct plan){.layer = -1}; }

void plan_restart(struct plan *p, void *base)
{
    ASSERT(!p->overflow && !p->share.open);
    *p = (struct plan){.base = base, .planned = p->total, .layer = -1};
}

void *plan_take(struct plan *p, enum memory_component c, const char *name, int64_t n, int64_t size)
{
    ASSERT(n >= 0 && size >= 0);
    int64_t bytes, total;
    if (p->overflow) return NULL;
    if (!checked_mul(n, size, &bytes) || !checked_add(bytes, DEVICE_ALIGN - 1, &bytes) ||
        !checked_add(p->total, bytes / DEVICE_ALIGN * DEVICE_ALIGN, &total)) {
        p->overflow = true;
        return NULL;
    }
    bytes = bytes / DEVICE_ALIGN * DEVICE_ALIGN;
    void *at = p->base && bytes > 0 ? p->base + p->total : NULL;
    ASSERT(!p->base || total <= p->planned);
    if (p->see && bytes > 0)
        p->see(p->ctx, &(struct plan_item){name, p->layer, c, p->life, p->total, bytes});
    p->total = total;
    p->component[c] += bytes;
    return at;
}

void plan_share_begin(struct plan *p, enum plan_life life)
{
    ASSERT(!p->share.open);
    p->share = (struct plan_share){.open = true, .outside = p->life, .begin = p->total,
                                   .end = p->total};
    memcpy(p->share.before, p->component, sizeof p->component);
    memcpy(p->share.largest, p->component, sizeof p->component);
    p->life = life;
}

/* The side that ends here counts if none was larger; the next one begins where it began. */
static void end_side(struct plan *p)
{
    struct plan_share *s = &p->share;
    ASSERT(s->open);
    if (p->total > s->end) {
        s->end = p->total;
        memcpy(s->largest, p->component, sizeof s->largest);
    }
    p->total = s->begin;
    memcpy(p->component, s->before, sizeof p->component);
}

void plan_share_next(struct plan *p, enum plan_life life)
{
    end_side(p);
    p->life = life;
}

void plan_share_end(struct plan *p)
{
    end_side(p);
    p->total = p->share.end;
    memcpy(p->component, p->share.largest, sizeof p->component);
    p->life = p->share.outside;
    p->share.open = false;
}

bool plan_sum(const struct plan *host, const struct plan *device, int64_t data_bytes,
              struct memory_plan *out)
{
    *out = (struct memory_plan){.host_bytes = host->total, .device_bytes = device->total};
    if (host->overflow || device->overflow
        || !checked_add(host->total, device->total, &out->total_bytes)
        || !checked_add(out->total_bytes, data_bytes, &out->total_bytes))
        return false;
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++)
        out->component[i] = host->component[i] + device->component[i];
    out->component[MEMORY_DATA] += data_bytes;
    return true;
}

static void *alloc_host(struct device *d, int64_t bytes, struct error *err)
{
    if (d->ops->alloc_host) return d->ops->alloc_host(d, (size_t)bytes, err);
    void *p = aligned_alloc(DEVICE_ALIGN, (size_t)bytes);
    if (!p)
        error_set(err, ERR_MEMORY, NULL, "the allocator refused %lld bytes of host memory",
                  (long long)bytes);
    return p;
}

static void free_host(struct device *d, void *p)
{
    if (d->ops->free_host) d->ops->free_host(d, p);
    else free(p);
}

bool plan_alloc(struct plan *host, struct plan *device, struct device *d, void **host_arena,
                void **device_arena, struct error *err)
{
    void *h = alloc_host(d, host->total, err);
    if (!h) return false;
    memset(h, 0, (size_t)host->total);
    void *at = d->ops->alloc(d, (size_t)device->total, err);
    if (!at) {
        free_host(d, h);
        return false;
    }
    plan_restart(host, h);
    plan_restart(device, at);
    *host_arena = h;
    *device_arena = at;
    return true;
}

void plan_release(struct device *d, void *host_arena, void *device_arena, int64_t device_bytes)
{
    d->ops->free(d, device_arena, (size_t)device_bytes);
    free_host(d, host_arena);
}

bool plan_matches(const struct plan *p) { return !p->overflow && p->total == p->planned; }
