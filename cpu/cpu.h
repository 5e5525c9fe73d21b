/* The CPU as a device (model/device.h): x86-64, kernels chosen at run time by what the processor
 * has. */
#pragma once

#include "model/device.h"

enum cpu_isa {
    CPU_ISA_REFERENCE, CPU_ISA_AVX2, CPU_ISA_AVX512, CPU_ISA_AVX512_BF16, CPU_ISA_AMX, CPU_ISA_BEST
};

struct cpu_options {
    int32_t n_threads;   /* 0: the cores that the affinity mask and the cgroup's quota allow */
    enum cpu_isa isa;    /* at most this; CPU_ISA_BEST: the best there is */
};

/* reference avx2 avx512 avx512_bf16 amx best */
bool cpu_isa_parse(const char *name, enum cpu_isa *out);
/* ERR_UNSUPPORTED when the processor lacks the instruction set asked for. */
bool cpu_device_open(const struct cpu_options *o, struct device **out,
                     struct error *err) MUST_CHECK;
