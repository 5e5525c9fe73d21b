/* What bench_gpu asks of the machine itself: bench_machine.cu on CUDA,
 * bench_machine_cpu.c without. */
#pragma once

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct bench_bandwidth { double copy, read; }; /* bytes a second; a copy's count twice */
struct bench_bandwidth bench_bandwidth(bool small);
/* Between these lies what a profiler is to look at. */
void bench_profiled_begin(void);
void bench_profiled_end(void);

#ifdef __cplusplus
}
#endif
