// The scheduler: see execute.h.
//
// Lanes that part ways are run in groups, the group at the lowest address first, until a branch or
// the place where another group stands: so they meet again as early as the code allows. A lane that
// comes to a collective or a barrier waits there for the lanes that it needs; when nobody can run
// on, the program is wrong.
#include "tests/ptxsim/execute.h"

#include <chrono>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ptxsim {

enum { FAILURE_STATUS = 87, MAX_QUANTUM = 400, MAX_SHARED_BYTES = 228 << 10 };

static struct { uint32_t seed, random; uint64_t ends; statistics total; } run_state;

void set_seed(uint32_t seed) { run_state.seed = seed; }
void set_ends(uint64_t n) { run_state.ends = n; }
statistics run_statistics() { return run_state.total; }

static uint32_t random_next()
{
    uint32_t &r = run_state.random;
    r ^= r << 13, r ^= r >> 17, r ^= r << 5;
    return r;
}

// ---- messages ----

[[noreturn]] static void end_with(const char *text)
{
    fflush(stdout);
    fprintf(stderr, "ptxsim: %s\n", text);
    fflush(stderr);
    _Exit(FAILURE_STATUS);
}

void fail(const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    end_with(text);
}

void fail_at(const warp &w, int lane, const char *format, ...)
{
    char what[512], text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    const block &b = *w.in;
    const module &m = *b.k->from;
    const instruction &i = *w.now;
    auto file = m.files.find(i.file);
    const char *line = i.text_line < (int)m.lines.size() ? m.lines[i.text_line].c_str() : "";
    snprintf(text, sizeof text, "%s\n  at %s:%d, kernel %s, block (%u,%u,%u), thread %d\n  PTX line %d: %s",
             what, file == m.files.end() ? "?" : file->second.c_str(), i.source_line, b.k->name.c_str(),
             b.index.x, b.index.y, b.index.z, w.number * LANES + lane, i.text_line + 1, line);
    end_with(text);
}

// ---- a warp ----

static uint32_t lanes_at(const warp &w, int32_t pc)
{
    uint32_t lanes = 0;
    for (int l = 0; l < LANES; l++)
        if (w.live >> l & 1 && w.pcs[l] == pc) lanes |= 1u << l;
    return lanes;
}

static void set_pcs(warp &w, uint32_t lanes, int32_t pc)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) w.pcs[l] = pc;
}

// The lanes that run next, from where, and how far they may go before others join them.
struct group { uint32_t lanes; int32_t pc, until; };

static group next_group(warp &w)
{
    uint32_t able = w.live & ~w.waiting;
    group g = {0, INT_MAX, INT_MAX};
    if (able == 0) {
        int lane = __builtin_ctz(w.waiting);
        w.now = &w.in->k->code[w.pcs[lane]];
        fail_at(w, lane, "DIVERGED: waits for lanes of its warp that do not come (here %08x, live %08x)",
                lanes_at(w, w.pcs[lane]), w.live);
    }
    for (int l = 0; l < LANES; l++)
        if (able >> l & 1 && w.pcs[l] < g.pc) g.pc = w.pcs[l];
    g.lanes = lanes_at(w, g.pc);
    for (int l = 0; l < LANES; l++)
        if (w.live >> l & 1 && w.pcs[l] > g.pc && w.pcs[l] < g.until) g.until = w.pcs[l];
    return g;
}

static uint32_t guarded(warp &w, const instruction &i, uint32_t lanes)
{
    if (i.guard.at < 0) return lanes;
    const uint32_t *p = lanes_of<uint32_t>(w, i.guard);
    uint32_t taken = 0;
    for (int l = 0; l < LANES; l++) taken |= (uint32_t)((p[l] != 0) != i.guard_negated) << l;
    return lanes & taken;
}

// Lanes that a collective needs; ends the process when its mask is nonsense.
static uint32_t members_of(warp &w, const instruction &i, uint32_t lanes)
{
    if (i.members.at < 0) {
        uint32_t exist = w.in->n_threads - (uint32_t)w.number * LANES;
        if (i.kind == flow::collective && (w.live != ALL_LANES || exist < LANES))
            fail_at(w, __builtin_ctz(lanes), "MASK: an .aligned operation of a warp that is not whole "
                    "(live %08x)", w.live);
        return w.live;
    }
    const uint32_t *mask = lanes_of<uint32_t>(w, i.members);
    uint32_t need = mask[__builtin_ctz(lanes)];
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1) {
            if (mask[l] != need)
                fail_at(w, l, "MASK: lanes give different masks, %08x and %08x", mask[l], need);
            if (!(need >> l & 1)) fail_at(w, l, "MASK: the lane is not in its own mask %08x", need);
        }
    if (need & ~w.live)
        fail_at(w, __builtin_ctz(lanes), "MASK: %08x names lanes that have exited or never were "
                "(live %08x)", need, w.live);
    return need;
}

static void exit_lanes(warp &w, uint32_t lanes)
{
    for (int l = 0; l < LANES; l++)
        if (lanes >> l & 1 && !w.copies[l].empty())
            fail_at(w, l, "IN FLIGHT: exits with copies that were never waited for");
    uint32_t early = w.in->early ? lanes & ~w.waited : 0;
    if (early) fail_at(w, __builtin_ctz(early), "EARLY: exits without having waited for the kernel before");
    w.live &= ~lanes;
}

enum class outcome { next, regroup, stop };

// A collective or a barrier by `lanes`, all of which want it. Stop: the warp waits for others.
static outcome meet(warp &w, const instruction &i, uint32_t lanes)
{
    uint32_t need = members_of(w, i, lanes);
    if ((lanes & need) != need) {
        w.waiting |= lanes;
        return outcome::regroup;
    }
    w.waiting &= ~lanes;
    if (i.kind == flow::barrier) {
        w.barrier = &i;
        if (i.mode != BARRIER_SYNC)
            for (int l = 0; l < LANES; l++)
                if (lanes >> l & 1) {
                    bool yes = (lanes_of<uint32_t>(w, i.src[1])[l] != 0) != i.source_negated;
                    w.in->votes |= yes ? 1u : 2u;
                }
        return outcome::stop;
    }
    i.run(w, i, lanes);
    return outcome::next;
}

// Runs the warp for a while, or until it waits for other warps or has ended.
static void run_warp(warp &w, int32_t quantum)
{
    const std::vector<instruction> &code = w.in->k->code;
    uint64_t count = 0;
    while (w.live && !w.barrier && quantum > 0) {
        group g = next_group(w);
        int32_t pc = g.pc;
        outcome out = outcome::next;
        while (out == outcome::next && pc < g.until && quantum-- > 0) {
            const instruction &i = code[pc];
            w.now = &i;
            uint32_t lanes = guarded(w, i, g.lanes);
            count += (uint64_t)__builtin_popcount(lanes);
            if (lanes) i.executed = true;
            if (i.kind == flow::plain) {
                if (lanes) i.run(w, i, lanes);
                pc++;
            } else if (i.kind == flow::branch) {
                if (lanes == g.lanes) pc = i.target;
                else if (lanes == 0) pc++;
                else {
                    set_pcs(w, lanes, i.target);
                    g.lanes &= ~lanes;
                    pc++;
                    out = outcome::regroup;
                }
                if (g.lanes != w.live) out = outcome::regroup; // others may stand where it leads
            } else if (i.kind == flow::exit) {
                exit_lanes(w, lanes);
                g.lanes &= ~lanes;
                pc++;
                out = outcome::regroup;
            } else if (lanes == 0) {
                pc++;
            } else {
                if (lanes != g.lanes)
                    fail_at(w, __builtin_ctz(g.lanes), "DIVERGED: a guarded operation of the warp whose "
                            "lanes disagree");
                out = meet(w, i, lanes);
                if (out != outcome::regroup) pc++;
            }
        }
        set_pcs(w, g.lanes, pc);
    }
    run_state.total.lane_instructions += count;
}

// ---- a block ----

static uint32_t special_value(const block &b, int32_t which, uint32_t thread)
{
    switch (which) {
    case TID_X: return thread % b.size.x;
    case TID_Y: return thread / b.size.x % b.size.y;
    case TID_Z: return thread / b.size.x / b.size.y;
    case NTID_X: return b.size.x;
    case NTID_Y: return b.size.y;
    case NTID_Z: return b.size.z;
    case CTAID_X: return b.index.x;
    case CTAID_Y: return b.index.y;
    case CTAID_Z: return b.index.z;
    case NCTAID_X: return b.grid.x;
    case NCTAID_Y: return b.grid.y;
    case NCTAID_Z: return b.grid.z;
    case LANE_ID: return thread % LANES;
    default: return thread / LANES;
    }
}

static void begin_warp(block &b, warp &w)
{
    uint32_t n = b.n_threads - (uint32_t)w.number * LANES;
    w.live = n >= LANES ? ALL_LANES : (1u << n) - 1;
    w.waiting = w.waited = w.warp_barriers = 0;
    w.barrier = nullptr;
    for (int l = 0; l < LANES; l++) {
        w.pcs[l] = w.copy_group[l] = 0;
        w.copies[l].clear();
    }
    for (const special &s : b.k->specials)
        for (uint32_t l = 0; l < LANES; l++)
            set_bits(w, s.at, (int)l, special_value(b, s.which, (uint32_t)w.number * LANES + l));
}

static void begin_block(block &b, uint32_t turn, uint64_t linear, size_t dynamic_bytes)
{
    uint64_t row = linear / b.grid.x;
    b.turn = turn;
    b.index = {(uint32_t)(linear % b.grid.x), (uint32_t)(row % b.grid.y), (uint32_t)(row / b.grid.y)};
    b.barriers = b.votes = 0;
    std::fill(b.shared_bytes.begin(), b.shared_bytes.end(), 0x7F);
    uint8_t *state = b.shared->state;
    memset(state, BYTE_OUTSIDE, b.shared->bytes);
    for (const shared_variable &v : b.k->shared) memset(state + v.offset, BYTE_UNWRITTEN, v.bytes);
    memset(state + dynamic_shared_offset(*b.k), BYTE_UNWRITTEN, dynamic_bytes);
    b.shared->forget_accesses();
    std::fill(b.local_state.begin(), b.local_state.end(), BYTE_UNWRITTEN);
    for (warp &w : b.warps) begin_warp(b, w);
}

// All warps wait: lets them pass.
static void pass_barrier(block &b)
{
    const instruction *where = nullptr;
    for (warp &w : b.warps) {
        if (!w.barrier) {
            w.now = where ? where : b.k->code.data();
            fail_at(w, 0, "DIVERGED: a barrier that this warp has exited before reaching");
        }
        w.now = w.barrier;
        if (where && where != w.barrier)
            fail_at(w, 0, "DIVERGED: warps wait at different barriers, PTX lines %d and %d",
                    where->text_line + 1, w.barrier->text_line + 1);
        where = w.barrier;
    }
    for (warp &w : b.warps) {
        if (where->mode != BARRIER_SYNC) {
            uint32_t result = where->mode == BARRIER_OR ? b.votes & 1 : !(b.votes & 2);
            for (int l = 0; l < LANES; l++) set_bits(w, where->dst[0], l, result);
        }
        w.barrier = nullptr;
        w.warp_barriers = 0;
    }
    b.votes = 0;
    if (++b.barriers > MAX_BARRIERS) fail("%s: too many barriers in a block", b.k->name.c_str());
}

static void run_block(block &b)
{
    for (;;) {
        uint32_t live = 0, waiting = 0, able[LANES], n = 0;
        for (warp &w : b.warps) {
            live += w.live != 0;
            waiting += w.barrier != nullptr;
            if (w.live && !w.barrier) able[n++] = (uint32_t)w.number;
        }
        if (live == 0) return;
        if (waiting == live) pass_barrier(b);
        else run_warp(b.warps[able[random_next() % n]], 1 + (int32_t)(random_next() % MAX_QUANTUM));
    }
}

static void make_block(block &b, const kernel &k, dim grid, dim size, size_t dynamic_bytes,
                       void *const *arguments)
{
    b.k = &k;
    b.grid = grid;
    b.size = size;
    b.n_threads = size.x * size.y * size.z;
    b.shared_bytes.resize(dynamic_shared_offset(k) + dynamic_bytes);
    b.shared = std::make_unique<region>(b.shared_bytes.data(), b.shared_bytes.size());
    b.warps.resize((b.n_threads + LANES - 1) / LANES);
    b.local.resize(k.local_bytes * b.warps.size() * LANES);
    b.local_state.resize(b.local.size());
    b.parameters.resize(k.parameter_bytes);
    for (size_t i = 0; i < k.parameters.size(); i++)
        memcpy(&b.parameters[k.parameters[i].offset], arguments[i], k.parameters[i].bytes);
    for (size_t i = 0; i < b.warps.size(); i++) {
        warp &w = b.warps[i];
        w.in = &b;
        w.number = (int32_t)i;
        w.file.assign(k.file_bytes / 8 + 1, 0xDEADBEEFDEADBEEFull);
        for (const constant &c : k.constants)
            for (int l = 0; l < LANES; l++) set_bits(w, c.at, l, c.value);
    }
}

bool launch(kernel &k, dim grid, dim size, size_t dynamic_bytes, void *const *arguments, bool early)
{
    uint64_t threads = (uint64_t)size.x * size.y * size.z, blocks = (uint64_t)grid.x * grid.y * grid.z;
    if (threads == 0 || threads > (uint64_t)k.max_threads || blocks == 0
        || size.z > 64 || grid.x > INT_MAX || grid.y > 65535 || grid.z > 65535
        || dynamic_shared_offset(k) + dynamic_bytes > MAX_SHARED_BYTES)
        return false;
    auto begin = std::chrono::steady_clock::now();
    run_state.random = run_state.seed * 2654435761u + 1;
    k.launches++;
    memory_begin_launch(early);
    block b;
    b.early = early;
    make_block(b, k, grid, size, dynamic_bytes, arguments);
    uint64_t n = run_state.ends && run_state.ends * 2 < blocks ? run_state.ends * 2 : blocks;
    if (n > MAX_BLOCKS) fail("%s: %llu blocks are more than can be watched", k.name.c_str(), (unsigned long long)n);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t turn = run_state.seed % 2 ? (uint32_t)n - 1 - i : i;
        begin_block(b, turn, turn < n / 2 ? turn : blocks - n + turn, dynamic_bytes);
        run_block(b);
    }
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    run_state.total.seconds += took.count();
    return true;
}

} // namespace ptxsim
