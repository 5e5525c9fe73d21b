/* The memory plan: see plan.h. */
#include "model/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "model/device.h"

const char *memory_component_name(enum memory_component c)
{
    static const char *const names[N_MEMORY_COMPONENTS] = {
        [MEMORY_WEIGHTS] = "weights",     [MEMORY_KV_CACHE] = "kv_cache",
        [MEMORY_ACTIVATIONS] = "activations", [MEMORY_WORKSPACE] = "workspace",
        [MEMORY_STAGING] = "staging",     [MEMORY_GRADIENTS] = "gradients",
        [MEMORY_OPTIMIZER] = "optimizer", [MEMORY_HOST] = "host",
    };
    ASSERT(c >= 0 && c < N_MEMORY_COMPONENTS);
    return names[c];
}

void plan_init(struct plan *p) { *p = (struct plan){0}; }

void plan_restart(struct plan *p, void *base)
{
    ASSERT(!p->overflow);
    *p = (struct plan){.base = base, .planned = p->total};
}

void *plan_take(struct plan *p, enum memory_component c, int64_t n, int64_t size)
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
    p->total = total;
    p->component[c] += bytes;
    return at;
}

bool plan_alloc(struct plan *host, struct plan *device, struct device *d, void **host_arena,
                void **device_arena, struct error *err)
{
    void *h = aligned_alloc(DEVICE_ALIGN, (size_t)host->total);
    if (!h)
        return error_set(err, ERR_MEMORY, NULL, "the allocator refused %lld bytes of host memory",
                         (long long)host->total);
    memset(h, 0, (size_t)host->total);
    void *at = d->ops->alloc(d, (size_t)device->total, err);
    if (!at) {
        free(h);
        return false;
    }
    plan_restart(host, h);
    plan_restart(device, at);
    *host_arena = h;
    *device_arena = at;
    return true;
}

bool plan_matches(const struct plan *p) { return !p->overflow && p->total == p->planned; }
