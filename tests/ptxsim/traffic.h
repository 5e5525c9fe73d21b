// What a warp's requests to memory cost on a GPU, added to each instruction's tallies as kernels
// run.
//
// Shared memory has 32 banks of 4 bytes. Accesses of up to 4 bytes are served for the whole warp at
// once, of 8 for half of it, of 16 (and each matrix of ldmatrix) for a quarter: one wavefront,
// unless lanes want different words of one bank. Global memory moves in sectors of 32 bytes: the
// least is what the different bytes asked for fill.
#pragma once

#include "tests/ptxsim/execute.h"

namespace ptxsim {

// Addresses of the lanes that take part, each aligned to the bytes of its access.
struct request {
    uint64_t at[LANES];
    uint32_t lanes;
};

void count_shared(const instruction &i, const request &r, int32_t bytes);
void count_global(const instruction &i, const request &r, int32_t bytes);
// A load or store where the instruction says; for a generic one, where the first lane's address
// lies.
void count_request(const instruction &i, const request &r, int32_t bytes);

} // namespace ptxsim
