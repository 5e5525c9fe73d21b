/* Choice of a device: see device.h. */
#include "server/device.h"

#include <string.h>

#include "base/log.h"
#include "cpu/cpu.h"

static bool open_cpu(const struct device_options *o, struct device **out, struct error *err)
{
    struct cpu_options cpu = {.n_threads = (int32_t)o->threads};
    if (!cpu_isa_parse(o->cpu_isa, &cpu.isa))
        return error_set(err, ERR_INVALID, "cpu-isa",
                         "--cpu-isa %s: must be reference, avx2, avx512, avx512_bf16 or best",
                         o->cpu_isa);
    return cpu_device_open(&cpu, out, err);
}

bool device_open(const struct device_options *o, struct device **out, struct error *err)
{
    if (strncmp(o->name, "cuda", 4) == 0)
        return error_set(err, ERR_UNSUPPORTED, "device",
                         "--device %s: this build of gptd has no CUDA; use --device cpu", o->name);
    if (strcmp(o->name, "cpu") != 0)
        return error_set(err, ERR_INVALID, "device", "--device %s: must be cpu or cuda:N", o->name);
    if (!open_cpu(o, out, err)) return false;
    log_info("device %s", (*out)->ops->description(*out));
    return true;
}

void device_close(struct device *d)
{
    if (d) d->ops->close(d);
}
