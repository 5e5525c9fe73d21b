// Memory under watch: every byte knows whether it was written, and who touched it last in this
// launch.
//
// Two accesses race if one of them writes, they touch a byte in common, and nothing orders them.
// Threads of different blocks are never ordered within a launch; threads of a block are by a block
// barrier between the two; threads of a warp by a warp barrier too. This is checked as kernels run,
// on every byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace ptxsim {

// Who: block 24 bits, block barriers passed 16, warp 6, warp barriers passed since 12, lane 6. 0:
// nobody.
using stamp = uint64_t;
stamp stamp_of(uint32_t block, uint32_t barriers, uint32_t warp, uint32_t warp_barriers);
// Atomics of one block do not race with each other: to the shadow they are all one thread's.
// Between them and any other access there has to be a block barrier.
stamp stamp_of_atomics(uint32_t block, uint32_t barriers);
enum { MAX_BARRIERS = 0xFFFF, MAX_WARP_BARRIERS = 0xFFF, MAX_BLOCKS = 0xFFFFFE };
struct stamp_fields { uint32_t block; int32_t warp, lane; }; // -1: several, or atomics
stamp_fields fields_of(stamp s);

enum byte_state : uint8_t { BYTE_UNWRITTEN = 0, BYTE_WRITTEN, BYTE_IN_FLIGHT, BYTE_OUTSIDE };

// Bytes that are zero at first. Those that nobody touches take no memory: so a tensor may be larger
// than the machine.
class sparse_bytes {
public:
    explicit sparse_bytes(size_t bytes);
    ~sparse_bytes();
    sparse_bytes(const sparse_bytes &) = delete;
    sparse_bytes &operator=(const sparse_bytes &) = delete;
    uint8_t *const at; // nullptr: there is no room for them
    // Zero again.
    void clear(size_t offset, size_t n);

private:
    size_t bytes;
};

class region {
public:
    // Of memory at `data`, or (nullptr) of its own.
    region(uint8_t *data, size_t bytes);

private:
    sparse_bytes own_data, states, page_pointers;

public:
    uint8_t *const data; // nullptr: there is no room for it
    const size_t bytes;
    uint8_t *const state; // byte_state each
    // As if the bytes had never been written.
    void forget(size_t offset, size_t n);

    // A new launch (or block, for shared memory): nobody has touched anything yet.
    void forget_accesses() { generation++; }
    // Did the launch before write to where the byte is?
    bool written_before(size_t offset) const;
    // Notes an access of n bytes (a power of two up to 16, aligned); 0, or who raced with it.
    stamp note_read(size_t offset, size_t n, stamp who) { return note<false>(offset, n, who); }
    stamp note_write(size_t offset, size_t n, stamp who) { return note<true>(offset, n, who); }
    bool all_written(size_t offset, size_t n) const;

private:
    // Cells of one page, each for `1 << shift` bytes: 4 until somebody accesses less.
    enum { PAGE_BYTES = 4096 };
    struct cell { stamp write, read; };
    struct page {
        uint64_t generation = 0;
        int shift = 2;
        std::vector<cell> cells;
        std::vector<bool> before; // 4 bytes each: written by the launch before that of `generation`
    };
    static std::vector<bool> writes_of(const page &p);
    page **const pages; // nullptr: not touched so far
    std::deque<page> touched;
    uint64_t generation = 1;
    page &page_of(size_t offset, size_t n);
    template <bool WRITE> stamp note(size_t offset, size_t n, stamp who);
};

// Device memory. Contents begin as zeros, marked unwritten.
void *memory_alloc(size_t bytes);
bool memory_free(void *p);               // false: no such allocation
size_t memory_in_use();
region *memory_find(uint64_t address);   // nullptr: outside every allocation
// Ends the process unless [p, p + n) lies inside one allocation.
region *memory_range(const void *p, size_t n, const char *what);
// early: it may start while the one before is at work.
void memory_begin_launch(bool early);
// What was launched so far is done before all that comes.
void memory_order();
// The bytes count as never written again.
void memory_forget(void *p, size_t n);

} // namespace ptxsim
