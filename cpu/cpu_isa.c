/* Which instruction sets the processor (and the system, which must save their registers) has. */
#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/amx.h"
#include "cpu/kernels.h"

static const char *const names[] = {"reference", "avx2", "avx512", "avx512_bf16", "amx", "best"};

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

static uint64_t enabled_state(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Eight tiles of 16 rows of 64 bytes (palette 1), and products of bf16 and of bytes on them. */
static bool has_amx(void)
{
    enum { OSXSAVE = 1 << 27, TILE_STATE = 3 << 17 };
    enum { BF16 = 1 << 22, TILE = 1 << 24, INT8 = 1 << 25 };
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx & (BF16 | TILE | INT8)) != (BF16 | TILE | INT8)) return false;
    if (!__get_cpuid_count(0x1D, 1, &eax, &ebx, &ecx, &edx)) return false;
    if (eax >> 16 != 1024 || (ebx & 0xFFFF) != 64 || ebx >> 16 < 8 || (ecx & 0xFFFF) != 16)
        return false;
    return (enabled_state() & TILE_STATE) == TILE_STATE;
}

/* Linux keeps the tiles' 8 KiB of state from processes that do not ask for it; asking again changes
 * nothing. It may refuse: an old kernel, a sandbox, a thread whose signal stack is too small. */
static bool may_use_amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}

/* Absent but in tests. */
#pragma weak cpu_amx_emulated

static bool amx_works(void)
{
    return (has_amx() && may_use_amx()) || (cpu_amx_emulated && cpu_amx_emulated());
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
    if (!__builtin_cpu_supports("avx512bf16")) return CPU_ISA_AVX512;
    return amx_works() ? CPU_ISA_AMX : CPU_ISA_AVX512_BF16;
}

void cpu_kernels_init(struct cpu_kernels *k, enum cpu_isa isa)
{
    enum cpu_isa best = cpu_isa_best();
    if (isa > best) isa = best;
    cpu_kernels_reference(k);
    cpu_quant_kernels_reference(k);
    cpu_kquant_kernels_reference(k);
    cpu_attend_q8_reference(k);
    if (isa >= CPU_ISA_AVX2) {
        cpu_kernels_avx2(k);
        cpu_quant_kernels_avx2(k);
        cpu_kquant_kernels_avx2(k);
        cpu_attend_q8_avx2(k);
    }
    if (isa >= CPU_ISA_AVX512) {
        cpu_kernels_avx512(k);
        if (__builtin_cpu_supports("avx512vnni")) {
            cpu_quant_kernels_avx512vnni(k);
            cpu_kquant_kernels_avx512vnni(k);
            cpu_attend_q8_avx512vnni(k);
        }
    }
    /* Sapphire Rapids multiplies bf16 by vdpbf16ps at half the rate of f32:
     * beside AMX it has no place. */
    if (isa == CPU_ISA_AVX512_BF16) cpu_kernels_avx512bf16(k);
    if (isa == CPU_ISA_AMX) {
        k->name = "AMX";
        k->amx = true;
        k->attend_pairs = true;
        k->attend_bf16 = amx_attend_bf16;
    }
}
