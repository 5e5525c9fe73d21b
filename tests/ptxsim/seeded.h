/* Kernels with a bug each (seeded.cu): running one has to end the process with a message. */
#pragma once

enum seeded_bug {
    BUG_NONE, BUG_NO_BARRIER, BUG_NO_WARP_BARRIER, BUG_ONE_TOO_FAR, BUG_SHARED_TOO_FAR, BUG_UNWRITTEN_SHARED,
    BUG_UNWRITTEN_GLOBAL, BUG_RACE_OF_BLOCKS, BUG_DIVERGENT_BARRIER, BUG_SHUFFLE_MASK, BUG_MISALIGNED,
    BUG_ATOMIC_AND_PLAIN,
};

void seeded_run(enum seeded_bug bug);
/* A product by way of cp.async, ldmatrix and mma.sync: true when it is right. Not `waits`: for the
 * copies, too late. */
bool seeded_product(bool waits);
/* There is mma.sync of the product's shape in what the kernels were compiled for: since sm_75. */
bool seeded_has_tensor_cores(void);
/* There is cp.async in what the kernels were compiled for: since sm_80. */
bool seeded_copies_are_async(void);

/* Atomics on shared memory: true when every thread was counted once. */
bool seeded_histogram(void);

/* Right, and slow: a warp that loads from shared memory, elements of 4 (conflict_kernel) or 16
 * bytes (wide_conflict_kernel), or from global memory, 4 bytes (strided_kernel), `stride` elements
 * from lane to lane. */
void seeded_conflicts(int stride);
void seeded_wide_conflicts(int stride);
void seeded_strides(int stride);

/* A grid of 2^33 threads that writes a byte each, its index's lowest, of which only the blocks at
 * the ends are run: true when all of theirs are right. `narrow`: with indices of 32 bits. */
bool seeded_ends(int narrow);

/* Can a block ask for so many bytes of shared memory, its own variables' included, and for no
 * more? */
bool seeded_gives_a_block(int bytes);

/* A kernel that may start before the one whose result it reads is done (launched as
 * cuda_launch_early does). */
enum seeded_order { ORDER_RIGHT, ORDER_READS_FIRST, ORDER_WRITES_FIRST, ORDER_NEVER_WAITS };
void seeded_early(int order);

/* Works on stream 0 beside a stream that does not wait for it: that has to end the process. */
void seeded_stream_0(int unused);

/* Calls of the runtime that a GPU's refuses: NULL when they are refused here, else what was not, or
 * wrongly was. */
const char *seeded_lenience(void);
/* Takes memory on GPU 1, which was opened, or (not `opens`) on GPU 0, which was not: that has to
 * end the process. */
void seeded_other_gpu(int opens);
