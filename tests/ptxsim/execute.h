// Running kernels: blocks one after another, their warps interleaved by a seed, lanes of a warp in
// step as long as they agree on the way. What goes wrong ends the process with a message: source
// line, kernel, block, thread, instruction.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/ptxsim/memory.h"
#include "tests/ptxsim/program.h"

namespace ptxsim {

struct dim { uint32_t x, y, z; };

// Addresses of shared and local memory in the generic space carry one of these on top.
constexpr uint64_t SHARED_WINDOW = 0x5A00000000000000ull, LOCAL_WINDOW = 0x5B00000000000000ull;
constexpr uint64_t WINDOW_MASK = 0xFF00000000000000ull;

struct block;

// A cp.async that was not waited for.
struct pending_copy { uint64_t to, from; int32_t bytes, room, group; };

struct warp {
    block *in = nullptr;
    int32_t number = 0;
    std::vector<uint64_t> file;         // registers
    int32_t pcs[LANES];
    uint32_t live = 0, waiting = 0;     // lanes; waiting: for others, at a collective or a barrier
    uint32_t waited = 0;                // lanes that have waited for the kernel before this one
    const instruction *barrier = nullptr; // where all live lanes wait for the other warps
    uint32_t warp_barriers = 0;
    std::vector<pending_copy> copies[LANES];
    int32_t copy_group[LANES];
    const instruction *now = nullptr;   // for messages
};

struct block {
    const kernel *k;
    dim grid, size, index;
    uint32_t turn;                      // of the blocks that are run, which one
    uint32_t n_threads, barriers, votes; // votes: of a reducing barrier
    bool early;                         // see launch
    std::vector<warp> warps;
    std::vector<uint8_t> shared_bytes;
    std::unique_ptr<region> shared;
    std::vector<uint8_t> local, local_state; // of all threads, one after another
    std::vector<uint8_t> parameters;
};

template <class T> inline T *lanes_of(warp &w, operand o)
{
    return reinterpret_cast<T *>(reinterpret_cast<uint8_t *>(w.file.data()) + o.at);
}

// One lane's bits, whatever the register's width.
inline uint64_t bits_of(warp &w, operand o, int lane)
{
    return o.lane_bytes == 8 ? lanes_of<uint64_t>(w, o)[lane] : lanes_of<uint32_t>(w, o)[lane];
}

inline void set_bits(warp &w, operand o, int lane, uint64_t v)
{
    if (o.at < 0) return;
    if (o.lane_bytes == 8) lanes_of<uint64_t>(w, o)[lane] = v;
    else lanes_of<uint32_t>(w, o)[lane] = (uint32_t)v;
}

inline stamp stamp_of_warp(const warp &w)
{
    return stamp_of(w.in->turn, w.in->barriers, (uint32_t)w.number, w.warp_barriers);
}

// Runs a launch to its end. False: no GPU would take this configuration. `early`: blocks may start
// while the kernel before is at work, so that until they have waited for it (griddepcontrol.wait),
// which every thread must, they may write no global memory, nor read what that kernel has written.
bool launch(kernel &k, dim grid, dim size, size_t dynamic_shared_bytes, void *const *arguments, bool early);

// How warps take turns from now on; the order of blocks too.
void set_seed(uint32_t seed);
// Of the grids from now on, only so many blocks at either end are run; 0: all.
void set_ends(uint64_t n);

struct statistics { uint64_t lane_instructions; double seconds; };
statistics run_statistics();

[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
// The same, with where the lane is.
[[noreturn]] void fail_at(const warp &w, int lane, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

} // namespace ptxsim
