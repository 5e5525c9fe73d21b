/* Which instruction sets the processor (and the system, which must save their registers) has. */
#include <cpuid.h>
#include <string.h>

#include "cpu/kernels.h"

static const char *const names[] = {"reference", "avx2", "avx512", "avx512_bf16", "best"};

bool cpu_isa_parse(const char *name, enum cpu_isa *out)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i])) continue;
        *out = (enum cpu_isa)i;
        return true;
    }
    return false;
}

const char *cpu_isa_name(enum cpu_isa isa) { return names[isa]; }

/* clang 14's __builtin_cpu_supports does not know the name. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

enum cpu_isa cpu_isa_best(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !has_f16c())
        return CPU_ISA_REFERENCE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return CPU_ISA_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? CPU_ISA_AVX512_BF16 : CPU_ISA_AVX512;
}

void cpu_kernels_init(struct cpu_kernels *k, enum cpu_isa isa)
{
    enum cpu_isa best = cpu_isa_best();
    if (isa > best) isa = best;
    cpu_kernels_reference(k);
    cpu_quant_kernels_reference(k);
    cpu_attend_q8_reference(k);
    if (isa >= CPU_ISA_AVX2) {
        cpu_kernels_avx2(k);
        cpu_quant_kernels_avx2(k);
        cpu_attend_q8_avx2(k);
    }
    if (isa >= CPU_ISA_AVX512) {
        cpu_kernels_avx512(k);
        if (__builtin_cpu_supports("avx512vnni")) {
            cpu_quant_kernels_avx512vnni(k);
            cpu_attend_q8_avx512vnni(k);
        }
    }
    if (isa >= CPU_ISA_AVX512_BF16) cpu_kernels_avx512bf16(k);
}
