/* Choice of a device: see device.h. */
#include "server/device.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "model/profile.h"
#include "server/process.h"

void device_options_table(struct device_options *o, const char *help, struct option *table)
{
    const struct option entries[N_DEVICE_OPTIONS] = {
        {"device", OPTION_STRING, &o->name, 0, 0, "auto|cpu|cuda:N", help},
        {"threads", OPTION_INT, &o->threads, 0, 4096, "N",
         "CPU threads; 0: one for each core that the process may use."},
        {"cpu-isa", OPTION_STRING, &o->cpu_isa, 0, 0, "NAME",
         "Instruction set, at most: reference, avx2, avx512, avx512_bf16, amx, best."},
        {"profile", OPTION_FLAG, &o->profile, 0, 0, NULL,
         "At the end, print how long each operation of the device took, and how near it came to "
         "what the device can do."},
    };
    memcpy(table, entries, sizeof entries);
}

bool device_options_check(const struct device_options *o, struct error *err)
{
    enum cpu_isa isa;
    bool is_cuda = strcmp(o->name, "cuda") == 0
                   || (strncmp(o->name, "cuda:", 5) == 0 && o->name[5]
                       && strspn(o->name + 5, "0123456789") == strlen(o->name + 5));
    if (!is_cuda && strcmp(o->name, "cpu") != 0 && strcmp(o->name, "auto") != 0)
        return error_set(err, ERR_INVALID, "device",
                         "--device %s: must be auto, cpu or cuda:N", o->name);
    if (!cpu_isa_parse(o->cpu_isa, &isa))
        return error_set(err, ERR_INVALID, "cpu-isa",
                         "--cpu-isa %s: must be reference, avx2, avx512, avx512_bf16, amx or best",
                         o->cpu_isa);
    return true;
}

/* Of "cuda" and "cuda:N": a number too large for any machine is one that no machine has. */
static int32_t cuda_ordinal(const char *name)
{
    long n = name[4] ? strtol(name + 5, NULL, 10) : 0;
    return n < INT32_MAX ? (int32_t)n : INT32_MAX;
}

static bool open_named(const struct device_options *o, struct device **out, struct error *err)
{
    if (strcmp(o->name, "auto") == 0 && cuda_device_count() > 0) {
        struct error why;
        if (cuda_device_open(0, out, &why)) return true;
        log_warn("the GPU cannot be used, the CPU is: %s", why.text);
    }
    if (strncmp(o->name, "cuda", 4) == 0) return cuda_device_open(cuda_ordinal(o->name), out, err);
    struct cpu_options cpu = {.n_threads = (int32_t)o->threads};
    ASSERT(cpu_isa_parse(o->cpu_isa, &cpu.isa));
    return cpu_device_open(&cpu, out, err);
}

bool device_open(const struct device_options *o, struct device **out, struct error *err)
{
    struct device *d;
    if (!open_named(o, &d, err)) return false;
    log_info("device %s", d->ops->description(d));
    if (o->profile && !profile_open(d, stderr, &d, err)) {
        device_close(d);
        return false;
    }
    *out = d;
    return true;
}

int64_t device_budget_default(const struct device_options *o)
{
    enum { PERCENT = 80 };
    int64_t left = -1;
    struct device *d;
    struct device_memory m;
    struct error ignored; /* whoever opens it for use says what is wrong */
    bool named = strncmp(o->name, "cuda", 4) == 0;
    bool on_gpu = named || (strcmp(o->name, "auto") == 0 && cuda_device_count() > 0);
    if (on_gpu && cuda_device_open(named ? cuda_ordinal(o->name) : 0, &d, &ignored)) {
        if (d->ops->memory && d->ops->memory(d, &m)) left = m.free_bytes;
        d->ops->close(d);
    }
    if (left < 0) left = process_memory_available("");
    return left / 100 * PERCENT;
}

void device_close(struct device *d)
{
    if (d) d->ops->close(d);
}
