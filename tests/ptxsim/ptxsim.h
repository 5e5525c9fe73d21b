/* PTX run on the CPU, watched: the interpreter in the place of a GPU, for tests. Link it instead of
 * libcudart with objects that nvcc made (-gencode arch=compute_80,code=compute_80 --no-compress; or
 * 75, 90): it registers their kernels, and stands in for the runtime calls that cuda/ makes.
 *
 * What a kernel does wrong ends the process (status 87) with a message on stderr: an access out of
 * bounds or misaligned, a read of bytes that nobody wrote or that are still in flight, a race,
 * barriers and collectives that lanes do not reach together, an instruction that is not known. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How warps take turns, and the order of blocks, from the next launch on. */
void ptxsim_set_seed(uint32_t seed);
/* Of the grids from now on only so many blocks at either end are run, so that tensors may be as
 * large as they get: memory that nobody touches costs nothing. 0, at first: all blocks. */
void ptxsim_set_ends(uint64_t n_blocks);
/* The GPU's memory; 8 GiB at first. */
void ptxsim_set_memory(size_t bytes);
/* So many GPUs, up to 64, all alike and with one memory; 1 at first. A stream serves only threads
 * that work on its GPU; memory taken on a GPU on which no stream was made, once there is one on
 * another, ends the process. */
void ptxsim_set_gpus(int32_t n);
/* A GPU of this many multiprocessors, as its properties say; 4 at first. */
void ptxsim_set_multiprocessors(int32_t n);
/* The compute capability that its properties name, 10 x major + minor; at first, and for 0, that of
 * the objects' code, or 90 with sm_80's, so that kernels are launched early. The code stays what it
 * is. */
void ptxsim_set_compute_capability(int32_t sm);
/* That of the objects' code. */
int32_t ptxsim_code(void);
/* The n-th wait for a stream from now on fails, and every one after it; 0: none does. At first the
 * environment's PTXSIM_FAIL_AFTER. */
void ptxsim_fail_after(int64_t n_waits);
/* Is cuBLASLt there for devices that are opened from now on? At first it is not. The stand-in
 * computes on the host and ends the process when arguments do not fit together. */
void ptxsim_set_cublas(bool there);
/* Products that it has done; times that it was asked for an algorithm. */
int64_t ptxsim_cublas_products(void);
int64_t ptxsim_cublas_choices(void);
/* These bytes of device memory count as never written. */
void ptxsim_forget(void *p, size_t bytes);

struct ptxsim_coverage {
    int32_t n_kernels, n_run;             /* registered; launched at least once */
    int64_t n_instructions, n_executed;   /* of all kernels */
};
/* What was run so far. Prints, if asked, each kernel with its share of instructions, and the source
 * lines of which nothing was executed. */
struct ptxsim_coverage ptxsim_coverage(bool print);

/* Was each form of an instruction (its operation with modifiers and types) that any loaded kernel
 * has run, in whatever kernel? Those that were not are named on stderr. */
bool ptxsim_every_form_was_run(void);

struct ptxsim_traffic {
    uint64_t wavefronts, least_wavefronts; /* of shared memory: the least is without bank conflicts */
    uint64_t sectors, least_sectors;       /* of 32 bytes of global memory: the least, what is asked for in a row */
};
/* Memory requests of all launches so far of a kernel: its demangled name without arguments and
 * spaces, bf16 and f16 for nvcc's types, such as "norm_kernel<bf16>". It must have run. */
struct ptxsim_traffic ptxsim_traffic(const char *kernel);
/* Compares the kernels that were run with their rows in the file `table`, ratios of traffic and,
 * where `ptxas` is the path of what ptxas -v said of them, registers and spills. What is over, or
 * has no row, is printed. `renew`: writes the table instead. */
bool ptxsim_budgets_hold(const char *table, const char *ptxas, bool renew);

/* What the host has asked for so far. */
struct ptxsim_calls {
    int64_t launches, graph_launches; /* of kernels outside graphs; of graphs */
    int64_t graph_kernels;            /* of all launched graphs together */
    int64_t uploads, downloads, waits;
    int64_t pageable;                 /* of the copies: those whose host side is not page-locked */
};
struct ptxsim_calls ptxsim_calls(void);
/* No more than so many bytes of host memory can be page-locked from now on. */
void ptxsim_set_host_limit(size_t bytes);
/* There is no memory for recordings from now on, or there is again. */
void ptxsim_refuse_graphs(bool yes);

/* Instructions times lanes so far, and seconds that they took. */
void ptxsim_speed(uint64_t *lane_instructions, double *seconds);

/* PTX text as a module of its own, and a launch of one of its kernels: what the interpreter's own
 * tests use. Arguments as cudaLaunchKernel takes them. */
struct ptxsim_module;
struct ptxsim_module *ptxsim_load(const char *text);
bool ptxsim_launch(struct ptxsim_module *m, const char *kernel, const uint32_t grid[3],
                   const uint32_t block[3], size_t shared_bytes, void **arguments);
void *ptxsim_alloc(size_t bytes);  /* device memory, never written */
void ptxsim_fill(void *to, const void *from, size_t bytes); /* ... and written by the host */
void ptxsim_free(void *p);

#ifdef __cplusplus
}
#endif
