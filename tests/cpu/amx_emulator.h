/* AMX on a machine without it: the instructions of cpu/kernels_amx.c, as they ship, are illegal
 * there, and a handler of SIGILL decodes and executes them, as the architecture defines them: tiles
 * and their configuration for each thread, every check that faults, rows and columns outside a
 * tile's configuration zero, products of bf16 in f32 with denormals as zeros. Where the processor
 * has AMX nothing of this comes into play.
 *
 * A test program opts in with one call in main; from then on CPU_ISA_AMX is among what
 * cpu_isa_best() finds. Not under the thread sanitizer, which has the signals for itself, and not
 * without AVX-512, which the kernels need beside AMX. Under the address sanitizer it checks every
 * byte that a tile's load and store touch.
 *
 * What an illegal instruction meets that is none of these is what it would have met without the
 * emulator. */
#pragma once

#include <stdint.h>

void amx_emulator_use(void);

/* Instructions that were executed here rather than by the processor, in all threads. */
int64_t amx_emulator_count(void);
