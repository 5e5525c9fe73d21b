/* The tests of cuda/: every operation runs on two sides, the CPU's reference kernels and a CUDA
 * device, and the results are compared. The CUDA device is a GPU, or the interpreter of
 * tests/ptxsim where the program is linked with it: the cases are the same.
 *
 * f16, which the CPU does not compute in, is compared with f32 on numbers that f16 holds. On GPUs
 * before sm_80, which do not compute in bf16, f16 is compared with the CPU's bf16. */
#pragma once

#include "model/device.h"
#include "model/device_train.h"
#include "tests/cpu/cpu_util.h"

enum { SIDE_CPU, SIDE_CUDA, N_SIDES };
enum { MAX_SIDE_BLOCKS = 64 };

struct side {
    struct device *d;
    bool is_cuda;
    int32_t n_blocks;
    struct { void *p; size_t bytes; } blocks[MAX_SIDE_BLOCKS];
};

/* Skips the test where no CUDA device is: for those that take memory before they open one. */
void skip_without_cuda(void);
/* Both devices, with the workspace that the shape asks for and not a byte more. Skips the test
 * where no CUDA device is. */
void sides_open(struct side sides[N_SIDES], const struct workspace_shape *shape);
void sides_close(struct side sides[N_SIDES]);
/* Frees what the side_... functions below gave. */
void side_clear(struct side *s);

/* Does the CUDA device compute with mma.sync? GPUs since sm_75 do. */
bool side_has_tensor_cores(const struct side *cuda);

/* Device memory of exactly these bytes, never written; or a copy of what `from` points to. */
void *side_bytes(struct side *s, int64_t bytes, const void *from);
int32_t *side_ints(struct side *s, const int32_t *from, int64_t n);
float *side_floats(struct side *s, const float *from, int64_t n);

/* A stream of random bits with this key. */
struct random_key side_key(struct side *s, uint64_t key);

/* The type that stands for `dtype` on this side: f32 for f16 on the CPU; f16 for bf16 on GPUs
 * without it. */
enum dtype side_dtype(const struct side *s, enum dtype dtype);
/* A tensor of the type with these values, rounded to it; NULL: never written. */
struct tensor side_tensor(struct side *s, enum dtype dtype, int64_t rows, int64_t cols,
                          const float *values);
/* Elements [first, first + n) of a tensor of 32 or 16 bits an element. */
void side_write(struct side *s, struct tensor t, int64_t first, int64_t n, const float *values);
struct matrix side_matrix(struct side *s, enum dtype dtype, int64_t n_out, int64_t n_in,
                          const float *values);
/* Waits, and fails the test if the device has failed. */
void side_sync(struct side *s);
/* Back to the host, as floats. */
void side_read(struct side *s, struct tensor t, float *out);
void side_read_floats(struct side *s, const float *p, int64_t n, float *out);

/* x as the type holds it. */
float rounded_to(enum dtype dtype, float x);
/* How far results of the type may be from the CPU's: the rounding of the type, and of sums in
 * f32. */
double tolerance_of(enum dtype dtype);
/* |got - want| <= tolerance max(1, |want|) for all n, or the test fails with places, values and the operands that the
 * side_... functions made. */
void assert_all_near(const float *got, const float *want, int64_t n, int64_t cols, double tolerance,
                     const char *what);

/* The interpreter's hooks; they do nothing on a GPU. */
bool on_interpreter(void);
void schedule_seed(uint32_t seed);
