// Moves, loads and stores. Every access to memory is checked here: its place, its alignment, that
// what is read was written, and that nobody else is at it.
#include "tests/ptxsim/lanes.h"
#include "tests/ptxsim/traffic.h"

namespace ptxsim {

void run_move(warp &w, const instruction &i, uint32_t lanes)
{
    if (i.dst[0].lane_bytes == 4 && i.src[0].lane_bytes == 4 && lanes == ALL_LANES) {
        memmove(lanes_of<uint32_t>(w, i.dst[0]), lanes_of<uint32_t>(w, i.src[0]), LANES * 4);
        return;
    }
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, bits_of(w, i.src[0], l));
}

// d = {a, b, ...}
void run_pack(warp &w, const instruction &i, uint32_t lanes)
{
    int bits = i.size * 8 / i.n_src;
    uint64_t mask = (1ull << bits) - 1;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t v = 0;
        for (int j = 0; j < i.n_src; j++) v |= (bits_of(w, i.src[j], l) & mask) << bits * j;
        set_bits(w, i.dst[0], l, v);
    }
}

// {a, b, ...} = s
void run_unpack(warp &w, const instruction &i, uint32_t lanes)
{
    int bits = i.size * 8 / i.n_dst;
    uint64_t mask = (1ull << bits) - 1;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t v = bits_of(w, i.src[0], l);
        for (int j = 0; j < i.n_dst; j++) set_bits(w, i.dst[j], l, v >> bits * j & mask);
    }
}

void run_select(warp &w, const instruction &i, uint32_t lanes)
{
    const uint32_t *p = lanes_of<uint32_t>(w, i.src[2]);
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, bits_of(w, p[l] ? i.src[0] : i.src[1], l));
}

void run_to_generic_shared(warp &w, const instruction &i, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, SHARED_WINDOW | bits_of(w, i.src[0], l));
}

void run_from_generic_shared(warp &w, const instruction &i, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, bits_of(w, i.src[0], l) & ~WINDOW_MASK);
}

void run_to_generic_local(warp &w, const instruction &i, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) set_bits(w, i.dst[0], l, LOCAL_WINDOW | bits_of(w, i.src[0], l));
}

void run_wait_for_previous(warp &w, const instruction &, uint32_t lanes) { w.waited |= lanes; }

void run_launch_dependents(warp &w, const instruction &, uint32_t lanes)
{
    uint32_t early = w.in->early ? lanes & ~w.waited : 0;
    if (early) fail_at(w, __builtin_ctz(early), "EARLY: lets the next kernel start before it has waited itself");
}

void run_trap(warp &w, const instruction &, uint32_t lanes)
{
    fail_at(w, __builtin_ctz(lanes), "TRAP");
}

// ---- checked access ----

enum { READ, WRITE, ADD, FLY, LAND }; // ADD: atomics; FLY, LAND: the two ends of a cp.async

static void check_race(warp &w, int lane, region &r, size_t offset, int n, int how, const char *where)
{
    bool write = how != READ;
    stamp me = how == ADD ? stamp_of_atomics(w.in->turn, w.in->barriers) : stamp_of_warp(w) | (stamp)lane;
    stamp other = write ? r.note_write(offset, (size_t)n, me) : r.note_read(offset, (size_t)n, me);
    if (!other) return;
    stamp_fields o = fields_of(other);
    fail_at(w, lane, "RACE (%s memory): %s byte %zu of %zu, which block %d thread %d accessed with nothing "
            "between (-1: several)", where, write ? "writes" : "reads", offset, r.bytes, (int)o.block,
            o.warp < 0 || o.lane < 0 ? -1 : o.warp * LANES + o.lane);
}

static uint8_t *shared_at(warp &w, int lane, uint64_t at, int n, int how)
{
    region &r = *w.in->shared;
    if (at + (uint64_t)n > r.bytes)
        fail_at(w, lane, "OUT OF BOUNDS: byte %llu of %zu bytes of shared memory",
                (unsigned long long)at, r.bytes);
    for (int i = 0; i < n; i++) {
        uint8_t &s = r.state[at + (uint64_t)i];
        if (s == BYTE_OUTSIDE)
            fail_at(w, lane, "OUT OF BOUNDS: byte %llu of shared memory is between variables",
                    (unsigned long long)at);
        if (s == BYTE_IN_FLIGHT && how != LAND)
            fail_at(w, lane, "IN FLIGHT: byte %llu of shared memory belongs to a copy that was not waited "
                    "for", (unsigned long long)at);
        if (s == BYTE_UNWRITTEN && (how == READ || how == ADD))
            fail_at(w, lane, "UNWRITTEN: reads byte %llu of shared memory", (unsigned long long)at);
        if (how != READ) s = how == FLY ? BYTE_IN_FLIGHT : BYTE_WRITTEN;
    }
    check_race(w, lane, r, at, n, how, "shared");
    return r.data + at;
}

static uint8_t *local_at(warp &w, int lane, uint64_t at, int n, int how)
{
    size_t each = w.in->k->local_bytes;
    if (at + (uint64_t)n > each)
        fail_at(w, lane, "OUT OF BOUNDS: byte %llu of %zu bytes of local memory", (unsigned long long)at,
                each);
    size_t offset = (size_t)(w.number * LANES + lane) * each + at;
    for (int i = 0; i < n; i++) {
        uint8_t &s = w.in->local_state[offset + (size_t)i];
        if (how == WRITE) s = BYTE_WRITTEN;
        else if (s != BYTE_WRITTEN)
            fail_at(w, lane, "UNWRITTEN: reads byte %llu of local memory", (unsigned long long)at);
    }
    return &w.in->local[offset];
}

static uint8_t *global_at(warp &w, int lane, uint64_t at, int n, int how, uint32_t used)
{
    region *r = memory_find(at);
    size_t offset = r ? at - (uint64_t)r->data : 0;
    if (!r || offset + (size_t)n > r->bytes)
        fail_at(w, lane, "OUT OF BOUNDS: %d bytes at %llx of global memory%s", n, (unsigned long long)at,
                r ? ", past the end of an allocation" : "");
    if (w.in->early && !(w.waited >> lane & 1) && (how != READ || r->written_before(offset)))
        fail_at(w, lane, "EARLY: %s byte %zu of %zu of global memory before waiting for the kernel before%s",
                how == READ ? "reads" : "writes", offset, r->bytes, how == READ ? ", which wrote it" : "");
    if (how != READ) memset(&r->state[offset], BYTE_WRITTEN, (size_t)n);
    else if (!r->all_written(offset, (size_t)n))
        for (int i = 0; i < n; i++)
            if (used >> i & 1 && r->state[offset + (size_t)i] != BYTE_WRITTEN)
                fail_at(w, lane, "UNWRITTEN: reads byte %zu of %zu of global memory", offset + (size_t)i,
                        r->bytes);
    check_race(w, lane, *r, offset, n, how, "global");
    return (uint8_t *)at;
}

static uint8_t *access(warp &w, int lane, space where, uint64_t at, int n, int how, uint32_t used)
{
    if (where == space::generic) {
        uint64_t window = at & WINDOW_MASK;
        where = window == SHARED_WINDOW ? space::shared : window == LOCAL_WINDOW ? space::local
                                                                                : space::global;
        if (where != space::global) at &= ~WINDOW_MASK;
    }
    if (at % (uint64_t)n != 0)
        fail_at(w, lane, "MISALIGNED: %d bytes at %llx", n, (unsigned long long)at);
    if (where == space::shared) return shared_at(w, lane, at, n, how);
    if (where == space::local) return local_at(w, lane, at, n, how);
    return global_at(w, lane, at, n, how, used);
}

static uint64_t load_element(const uint8_t *p, int size, bool is_signed)
{
    uint64_t v = 0;
    memcpy(&v, p, (size_t)size);
    if (!is_signed) return v;
    return size == 1 ? (uint64_t)(int8_t)v : size == 2 ? (uint64_t)(int16_t)v : (uint64_t)(int32_t)v;
}

// mode: sign-extends, to the whole register.
void run_load(warp &w, const instruction &i, uint32_t lanes)
{
    int n = i.size * i.count;
    request r;
    r.lanes = lanes;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t at = r.at[l] = bits_of(w, i.src[0], l) + (uint64_t)i.offset;
        const uint8_t *p;
        if (i.where == space::param) {
            if (at + (uint64_t)n > w.in->parameters.size()) fail_at(w, l, "OUT OF BOUNDS: parameters");
            p = &w.in->parameters[at];
        } else {
            p = access(w, l, i.where, at, n, READ, i.used_bytes);
        }
        for (int j = 0; j < i.count; j++)
            set_bits(w, i.dst[j], l, load_element(p + j * i.size, i.size, i.mode));
    }
    count_request(i, r, n);
}

void run_store(warp &w, const instruction &i, uint32_t lanes)
{
    request r;
    r.lanes = lanes;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t at = r.at[l] = bits_of(w, i.src[0], l) + (uint64_t)i.offset;
        uint8_t *p = access(w, l, i.where, at, i.size * i.count, WRITE, 0);
        for (int j = 0; j < i.count; j++) {
            uint64_t v = bits_of(w, i.src[1 + j], l);
            memcpy(p + j * i.size, &v, (size_t)i.size);
        }
    }
    count_request(i, r, i.size * i.count);
}

// Traffic counts lanes that add to the same word as one.
void run_atomic_add(warp &w, const instruction &i, uint32_t lanes)
{
    request r;
    r.lanes = lanes;
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t at = r.at[l] = bits_of(w, i.src[0], l) + (uint64_t)i.offset;
        uint8_t *p = access(w, l, i.where, at, 4, ADD, 0);
        uint32_t before, after;
        memcpy(&before, p, sizeof before);
        after = before + (uint32_t)bits_of(w, i.src[1], l);
        memcpy(p, &after, sizeof after);
        if (i.n_dst > 0) set_bits(w, i.dst[0], l, before);
    }
    count_request(i, r, 4);
}

// ---- cp.async: dst, src, bytes (and of them how many are read; the rest is zeros) ----

void run_copy_async(warp &w, const instruction &i, uint32_t lanes)
{
    request read, written;
    read.lanes = 0;
    written.lanes = lanes;
    int32_t room = 0; // the same for all lanes: PTX wants a constant
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        uint64_t to = bits_of(w, i.src[0], l) + (uint64_t)i.offset, from = bits_of(w, i.src[1], l);
        room = (int32_t)bits_of(w, i.src[2], l);
        int32_t bytes = i.n_src > 3 ? (int32_t)bits_of(w, i.src[3], l) : room;
        if (bytes < 0 || bytes > room) fail_at(w, l, "cp.async of %d bytes into %d", bytes, room);
        if (bytes > 0) access(w, l, space::global, from, room, READ, (1u << bytes) - 1);
        memset(access(w, l, space::shared, to, room, FLY, 0), 0x7F, (size_t)room);
        w.copies[l].push_back({to, from, bytes, room, w.copy_group[l]});
        written.at[l] = to;
        read.at[l] = from;
        read.lanes |= (uint32_t)(bytes > 0) << l;
    }
    count_shared(i, written, room);
    count_global(i, read, room);
}

void run_copy_commit(warp &w, const instruction &, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) w.copy_group[l]++;
}

// mode: wait_all, of what was not committed too; else src[0] groups may stay under way.
void run_copy_wait(warp &w, const instruction &i, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++) {
        if (!(lanes >> l & 1)) continue;
        int32_t keep = i.mode ? -1 : (int32_t)bits_of(w, i.src[0], l);
        std::vector<pending_copy> rest;
        for (const pending_copy &c : w.copies[l]) {
            if (c.group >= w.copy_group[l] - keep) {
                rest.push_back(c);
                continue;
            }
            uint8_t *p = access(w, l, space::shared, c.to, c.room, LAND, 0);
            memset(p, 0, (size_t)c.room);
            if (c.bytes > 0) memcpy(p, (const void *)c.from, (size_t)c.bytes);
        }
        w.copies[l].swap(rest);
    }
}

// ---- ldmatrix: count 8 x 8 matrices of 16 bits; lane l gives the address of row l % 8 of matrix l
// / 8; mode: transposed ----

void run_ldmatrix(warp &w, const instruction &i, uint32_t)
{
    uint16_t m[4][8][8];
    request r;
    r.lanes = ALL_LANES >> (LANES - i.count * 8);
    for (int q = 0; q < i.count * 8; q++) {
        uint64_t at = r.at[q] = bits_of(w, i.src[0], q) + (uint64_t)i.offset;
        memcpy(m[q / 8][q % 8], access(w, q, space::shared, at, 16, READ, ~0u), 16);
    }
    for (int l = 0; l < LANES; l++)
        for (int q = 0; q < i.count; q++) {
            int r = l / 4, c = l % 4 * 2;
            uint32_t low = i.mode ? m[q][c][r] : m[q][r][c];
            uint32_t high = i.mode ? m[q][c + 1][r] : m[q][r][c + 1];
            set_bits(w, i.dst[q], l, low | high << 16);
        }
    count_shared(i, r, 16);
}

} // namespace ptxsim
