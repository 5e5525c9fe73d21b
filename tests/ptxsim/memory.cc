// Device memory and the shadow that watches it: see memory.h.
#include "tests/ptxsim/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <memory>

#include "tests/ptxsim/execute.h"

namespace ptxsim {

enum : uint32_t { SEVERAL = 63, ATOMIC = 62, SEVERAL_BLOCKS = 0xFFFFFF };

stamp stamp_of(uint32_t block, uint32_t barriers, uint32_t warp, uint32_t warp_barriers)
{
    return (stamp)(block + 1) << 40 | (stamp)barriers << 24 | (stamp)warp << 18
           | (stamp)warp_barriers << 6;
}

stamp stamp_of_atomics(uint32_t block, uint32_t barriers)
{
    return stamp_of(block, barriers, ATOMIC, 0) | ATOMIC;
}

stamp_fields fields_of(stamp s)
{
    uint32_t w = s >> 18 & 63, lane = s & 63;
    return {(uint32_t)(s >> 40) - 1, w >= ATOMIC ? -1 : (int32_t)w, lane >= ATOMIC ? -1 : (int32_t)lane};
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

// ---- bytes of which few are touched ----

enum : size_t { HOST_PAGE = 4096 };

static uint8_t *map_bytes(size_t bytes)
{
    if (bytes == 0) return nullptr;
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : (uint8_t *)p;
}

sparse_bytes::sparse_bytes(size_t bytes_) : at(map_bytes(bytes_)), bytes(bytes_) {}

sparse_bytes::~sparse_bytes()
{
    if (at) munmap(at, bytes);
}

void sparse_bytes::clear(size_t offset, size_t n)
{
    size_t first = (offset + HOST_PAGE - 1) / HOST_PAGE * HOST_PAGE, last = (offset + n) / HOST_PAGE * HOST_PAGE;
    if (first >= last) {
        memset(at + offset, 0, n);
        return;
    }
    memset(at + offset, 0, first - offset);
    if (madvise(at + first, last - first, MADV_DONTNEED) != 0) fail("cannot give back %zu bytes", last - first);
    memset(at + last, 0, offset + n - last);
}

// Device memory.
struct heap {
    std::map<uint64_t, std::unique_ptr<region>> regions; // by address
    region *last = nullptr;
    size_t in_use = 0;
    bool early = false; // the launch at work may have begun while the one before was not done
};

// Modules register from static constructors: the heap must be there before them.
static heap &the_heap()
{
    static heap *h = new heap;
    return *h;
}

// ---- a region ----

region::region(uint8_t *data_, size_t bytes_)
    : own_data(data_ ? 0 : bytes_), states(bytes_), page_pointers((bytes_ / PAGE_BYTES + 1) * sizeof(page *)),
      data(data_ ? data_ : own_data.at), bytes(bytes_), state(states.at), pages((page **)page_pointers.at)
{
    if (bytes > 0 && (!state || !pages)) fail("there is no room to watch %zu bytes", bytes);
}

void region::forget(size_t offset, size_t n)
{
    states.clear(offset, n);
    if (own_data.at) own_data.clear(offset, n);
}

bool region::all_written(size_t offset, size_t n) const
{
    for (size_t i = 0; i < n; i++)
        if (state[offset + i] != BYTE_WRITTEN) return false;
    return true;
}

std::vector<bool> region::writes_of(const page &p)
{
    std::vector<bool> writes(PAGE_BYTES >> 2);
    for (size_t i = 0; i < p.cells.size(); i++)
        if (p.cells[i].write) writes[i << p.shift >> 2] = true;
    return writes;
}

bool region::written_before(size_t offset) const
{
    const page *p = pages[offset / PAGE_BYTES];
    size_t at = offset % PAGE_BYTES;
    if (!p) return false;
    if (p->generation == generation) return !p->before.empty() && p->before[at >> 2];
    return p->generation + 1 == generation && writes_of(*p)[at >> 2];
}

region::page &region::page_of(size_t offset, size_t n)
{
    page *&slot = pages[offset / PAGE_BYTES];
    if (!slot) slot = &touched.emplace_back();
    page &p = *slot;
    if (p.generation != generation) {
        p.before = the_heap().early && p.generation + 1 == generation ? writes_of(p) : std::vector<bool>();
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

void *memory_alloc(size_t bytes)
{
    heap &h = the_heap();
    auto r = std::make_unique<region>(nullptr, bytes > 0 ? bytes : 1);
    uint8_t *p = r->data; // of pages: aligned like what cudaMalloc gives
    if (!p) return nullptr;
    h.in_use += r->bytes;
    h.regions[(uint64_t)p] = std::move(r);
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

void memory_order()
{
    for (auto &r : the_heap().regions) r.second->forget_accesses();
}

void memory_begin_launch(bool early)
{
    the_heap().early = early;
    memory_order();
}

void memory_forget(void *p, size_t n)
{
    region *r = memory_range(p, n, "forgetting");
    r->forget((size_t)((uint8_t *)p - r->data), n);
}

} // namespace ptxsim
