// Device memory and the shadow that watches it: see memory.h.
#include "tests/ptxsim/memory.h"

#include <cstring>
#include <map>

#include "tests/ptxsim/execute.h"

namespace ptxsim {

enum : uint32_t { SEVERAL = 63, SEVERAL_BLOCKS = 0xFFFFFF };

stamp stamp_of(uint32_t block, uint32_t barriers, uint32_t warp, uint32_t warp_barriers)
{
    return (stamp)(block + 1) << 40 | (stamp)barriers << 24 | (stamp)warp << 18
           | (stamp)warp_barriers << 6;
}

stamp_fields fields_of(stamp s)
{
    uint32_t w = s >> 18 & 63, lane = s & 63;
    return {(uint32_t)(s >> 40) - 1, w == SEVERAL ? -1 : (int32_t)w,
            lane == SEVERAL ? -1 : (int32_t)lane};
}

// Does something order the earlier access before the later one?
static inline bool ordered(stamp earlier, stamp later)
{
    stamp x = earlier ^ later;
    if (x >> 40) return false;
    if (x >> 24 & 0xFFFF) return true;
    if (x >> 18 & 63) return false;
    if (x >> 6 & 0xFFF) return true;
    return (x & 63) == 0;
}

// One stamp that stands for two readers that nothing orders.
static inline stamp join_readers(stamp a, stamp b)
{
    stamp x = a ^ b;
    if (x >> 40) return (stamp)SEVERAL_BLOCKS << 40;
    if (x >> 18 & 63) return b | (stamp)SEVERAL << 18 | SEVERAL;
    return b | SEVERAL;
}

region::region(uint8_t *data_, size_t bytes_)
    : data(data_), bytes(bytes_), state(bytes_, BYTE_UNWRITTEN), pages(bytes_ / PAGE_BYTES + 1)
{
}

bool region::all_written(size_t offset, size_t n) const
{
    for (size_t i = 0; i < n; i++)
        if (state[offset + i] != BYTE_WRITTEN) return false;
    return true;
}

region::page &region::page_of(size_t offset, size_t n)
{
    std::unique_ptr<page> &slot = pages[offset / PAGE_BYTES];
    if (!slot) slot = std::make_unique<page>();
    page &p = *slot;
    if (p.generation != generation) {
        p.generation = generation;
        p.shift = 2;
        p.cells.assign(PAGE_BYTES >> 2, cell{0, 0});
    }
    int shift = n >= 4 ? 2 : n == 2 ? 1 : 0;
    if (shift < p.shift) {
        std::vector<cell> finer(PAGE_BYTES >> shift);
        for (size_t i = 0; i < finer.size(); i++) finer[i] = p.cells[i >> (p.shift - shift)];
        p.cells.swap(finer);
        p.shift = shift;
    }
    return p;
}

template <bool WRITE> stamp region::note(size_t offset, size_t n, stamp who)
{
    page &p = page_of(offset, n);
    size_t first = (offset % PAGE_BYTES) >> p.shift, last = (offset % PAGE_BYTES + n - 1) >> p.shift;
    for (size_t i = first; i <= last; i++) {
        cell &c = p.cells[i];
        if (c.write && c.write != who && !ordered(c.write, who)) return c.write;
        if (WRITE) {
            if (c.read && c.read != who && !ordered(c.read, who)) return c.read;
            c = {who, 0};
        } else if (c.read != who) {
            c.read = !c.read || ordered(c.read, who) ? who : join_readers(c.read, who);
        }
    }
    return 0;
}

template stamp region::note<true>(size_t, size_t, stamp);
template stamp region::note<false>(size_t, size_t, stamp);

// ---- device memory ----

enum { ALLOC_ALIGN = 512 };

struct heap {
    std::map<uint64_t, std::unique_ptr<region>> regions; // by address
    region *last = nullptr;
    size_t in_use = 0;
};

// Modules register from static constructors: the heap must be there before them.
static heap &the_heap()
{
    static heap *h = new heap;
    return *h;
}

void *memory_alloc(size_t bytes)
{
    heap &h = the_heap();
    size_t room = (bytes + ALLOC_ALIGN - 1) / ALLOC_ALIGN * ALLOC_ALIGN;
    uint8_t *p = (uint8_t *)aligned_alloc(ALLOC_ALIGN, room);
    if (!p) return nullptr;
    memset(p, 0x7F, room);
    h.regions[(uint64_t)p] = std::make_unique<region>(p, bytes);
    h.in_use += bytes;
    return p;
}

bool memory_free(void *p)
{
    heap &h = the_heap();
    auto it = h.regions.find((uint64_t)p);
    if (it == h.regions.end()) return false;
    h.in_use -= it->second->bytes;
    h.regions.erase(it);
    h.last = nullptr;
    free(p);
    return true;
}

size_t memory_in_use() { return the_heap().in_use; }

region *memory_find(uint64_t address)
{
    heap &h = the_heap();
    if (h.last && address - (uint64_t)h.last->data < h.last->bytes) return h.last;
    auto it = h.regions.upper_bound(address);
    if (it == h.regions.begin()) return nullptr;
    region *r = (--it)->second.get();
    if (address - (uint64_t)r->data >= r->bytes) return nullptr;
    return h.last = r;
}

region *memory_range(const void *p, size_t n, const char *what)
{
    region *r = memory_find((uint64_t)p);
    if (!r || (uint64_t)p + n > (uint64_t)r->data + r->bytes)
        fail("%s: %zu bytes at %p are not inside one allocation of device memory", what, n, p);
    return r;
}

void memory_begin_launch()
{
    for (auto &r : the_heap().regions) r.second->forget_accesses();
}

void memory_forget(void *p, size_t n)
{
    region *r = memory_range(p, n, "forgetting");
    memset(r->state.data() + ((uint8_t *)p - r->data), BYTE_UNWRITTEN, n);
    memset(p, 0x7F, n);
}

} // namespace ptxsim
