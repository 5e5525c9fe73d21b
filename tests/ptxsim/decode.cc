// Instructions: operands by their syntax, actions by their names. What is not here is refused by
// name, never guessed: among it atomics on global memory and branches to computed places, which the
// project's kernels do without.
#include <algorithm>
#include <set>
#include <sstream>

#include "tests/ptxsim/execute.h"
#include "tests/ptxsim/parse.h"

namespace ptxsim {

using std::string;
using std::vector;

static vector<string> parts_of(const string &full)
{
    vector<string> parts;
    std::stringstream in(full);
    for (string part; std::getline(in, part, '.');) parts.push_back(part);
    return parts;
}

static bool has(const vector<string> &m, const char *name)
{
    return std::find(m.begin(), m.end(), name) != m.end();
}

// ---- operands ----

// a, {a, b}, or a|b
void body::read_results(instruction &i)
{
    if (t.eat("{")) {
        do i.dst[i.n_dst++] = result();
        while (t.eat(","));
        t.need("}");
        return;
    }
    i.dst[i.n_dst++] = result();
    if (t.eat("|")) i.pair = result();
}

void body::read_values(instruction &i, const string &type)
{
    do {
        if (t.eat("{")) {
            do i.src[i.n_src++] = value(type);
            while (t.eat(","));
            t.need("}");
        } else {
            if (t.eat("!")) i.source_negated = true;
            i.src[i.n_src++] = value(type);
        }
    } while (t.eat(","));
}

void body::read_address(instruction &i)
{
    t.need("[");
    i.src[i.n_src++] = value("b64");
    if (t.eat("+")) {
        bool negative = t.eat("-");
        int64_t n = strtoll(t.next().c_str(), nullptr, 0);
        i.offset = negative ? -n : n;
    }
    t.need("]");
}

// ---- by kind ----

static space space_of(const vector<string> &m)
{
    if (has(m, "global") || has(m, "const")) return space::global;
    if (has(m, "shared") || has(m, "shared::cta")) return space::shared;
    if (has(m, "local")) return space::local;
    return has(m, "param") ? space::param : space::generic;
}

void body::decode_memory(const string &op, const vector<string> &m, instruction &i)
{
    const string &type = m.back();
    i.where = space_of(m);
    i.count = has(m, "v2") ? 2 : has(m, "v4") ? 4 : 1;
    if (op == "ld") {
        i.mode = type[0] == 's' && i.size < 8;
        i.used_bytes = used_bytes;
        used_bytes = ~0u;
        read_results(i);
        t.need(",");
        read_address(i);
        i.run = run_load;
    } else {
        read_address(i);
        t.need(",");
        read_values(i, type);
        i.run = run_store;
    }
}

// Sums of 32-bit integers in shared memory: those whose order shows in no result but atom's.
bool body::decode_atomic(const string &op, const vector<string> &m, instruction &i)
{
    bool sums = has(m, "add") && (m.back() == "u32" || m.back() == "s32");
    i.where = space_of(m);
    if (!sums || i.where != space::shared) return false;
    if (op == "atom") {
        read_results(i);
        t.need(",");
    }
    read_address(i);
    t.need(",");
    read_values(i, m.back());
    i.run = run_atomic_add;
    return i.n_src == 2;
}

bool body::decode_copy(const vector<string> &m, instruction &i)
{
    if (!has(m, "async") || has(m, "bulk") || has(m, "mbarrier")) return false;
    if (has(m, "commit_group")) {
        i.run = run_copy_commit;
    } else if (has(m, "wait_group")) {
        read_values(i, "u32");
        i.run = run_copy_wait;
    } else if (has(m, "wait_all")) {
        i.mode = 1;
        i.run = run_copy_wait;
    } else {
        read_address(i);
        int64_t offset = i.offset;
        i.offset = 0;
        t.need(",");
        read_address(i);
        if (i.offset != 0) return false;
        i.offset = offset;
        t.need(",");
        read_values(i, "u32");
        i.run = run_copy_async;
    }
    return true;
}

void body::decode_barrier(const string &op, const vector<string> &m, instruction &i)
{
    i.kind = flow::barrier;
    bool reduces = has(m, "red");
    if (reduces && has(m, "or")) i.mode = BARRIER_OR;
    else if (reduces && has(m, "and")) i.mode = BARRIER_AND;
    else if (!has(m, "sync")) fail("PTX line %d: '%s' of this kind is not supported", t.line() + 1, op.c_str());
    if (reduces) {
        read_results(i);
        t.need(",");
    }
    read_values(i, reduces ? "pred" : "u32");
    if (i.n_src != (reduces ? 2 : 1))
        fail("PTX line %d: a barrier of some threads is not supported", t.line() + 1);
}

bool body::decode_collective(const string &op, const vector<string> &m, instruction &i)
{
    i.kind = flow::collective;
    if (op == "bar" || op == "barrier") {
        read_values(i, "u32");
        i.members = i.src[0];
        i.run = run_warp_barrier;
        return true;
    }
    read_results(i);
    t.need(",");
    if (op == "ldmatrix") {
        if (!has(m, "m8n8") || !has(m, "b16")) return false;
        i.count = has(m, "x4") ? 4 : has(m, "x2") ? 2 : 1;
        i.mode = has(m, "trans");
        read_address(i);
        i.run = run_ldmatrix;
    } else if (op == "mma") {
        bool half_deep = has(m, "m16n8k8") && has(m, "f16");
        bool shape = (half_deep || has(m, "m16n8k16")) && has(m, "row") && has(m, "col") && m.back() == "f32";
        if (!shape || (!has(m, "bf16") && !has(m, "f16"))) return false;
        read_values(i, "b32");
        i.run = half_deep ? run_mma_f16_k8 : has(m, "bf16") ? run_mma_bf16 : run_mma_f16;
    } else if (op == "shfl") {
        i.mode = has(m, "bfly") ? SHUFFLE_XOR : has(m, "idx") ? SHUFFLE_INDEX
                 : has(m, "up")  ? SHUFFLE_UP : SHUFFLE_DOWN;
        read_values(i, "b32");
        if (i.n_src != 4) return false;
        i.members = i.src[3];
        i.run = run_shuffle;
    } else {
        i.mode = has(m, "ballot") ? VOTE_BALLOT : has(m, "any") ? VOTE_ANY : VOTE_ALL;
        if (i.mode == VOTE_ALL && !has(m, "all")) return false;
        if (t.eat("!")) i.source_negated = true;
        i.src[i.n_src++] = value("pred");
        t.need(",");
        i.src[i.n_src++] = value("b32");
        i.members = i.src[1];
        i.run = run_vote;
    }
    return true;
}

void body::decode_compare(const vector<string> &m, instruction &i)
{
    string how = m[1];
    i.mode = -1;
    for (int32_t c = 0; comparison_names[c]; c++)
        if (how == comparison_names[c]) i.mode = c;
    read_results(i);
    t.need(",");
    read_values(i, m.back());
    // Combined with a third operand: nvcc does not write that here.
    if (i.mode >= 0 && i.n_src == 2) i.run = compare_action(m.back());
}

// cvta: global addresses are generic ones.
void body::decode_address_space(const vector<string> &m, instruction &i)
{
    bool to = has(m, "to");
    read_results(i);
    t.need(",");
    read_values(i, m.back());
    if (has(m, "shared")) i.run = to ? run_from_generic_shared : run_to_generic_shared;
    else if (has(m, "local")) i.run = to ? run_from_generic_shared : run_to_generic_local;
    else if (has(m, "global") || has(m, "param") || has(m, "const")) i.run = run_move;
}

// ---- one instruction ----

// Alike for all instructions that are decoded alike. Kept as long as the process lives: modules
// are, too.
static const string *form_of(const string &full, const instruction &i)
{
    static auto *forms = new std::set<string>; // kernels register before main
    string form = full;
    if (i.run == run_pack) form += " of several";
    if (i.run == run_unpack) form += " to several";
    if (i.run == run_copy_async && i.n_src > 3) form += " with zeros behind";
    if (i.pair.at >= 0) form += " with a second result";
    return &*forms->insert(form).first;
}

void body::decode(const string &full, instruction i)
{
    vector<string> m = parts_of(full);
    const string &op = m[0], &type = m.back();
    int32_t line = i.text_line;
    i.size = type_bytes(type);
    bool known = true;
    if (op == "bra") {
        i.kind = flow::branch;
        jumps.push_back({k.code.size(), t.next()});
    } else if (op == "ret" || op == "exit") {
        i.kind = flow::exit;
    } else if ((op == "bar" || op == "barrier") && !has(m, "warp")) {
        decode_barrier(op, m, i);
    } else if (op == "bar" || op == "ldmatrix" || op == "mma" || op == "shfl" || op == "vote") {
        known = decode_collective(op, m, i);
    } else if (op == "ld" || op == "st") {
        decode_memory(op, m, i);
    } else if (op == "atom" || op == "red") {
        known = decode_atomic(op, m, i);
    } else if (op == "cp") {
        known = decode_copy(m, i);
    } else if (op == "setp") {
        decode_compare(m, i);
    } else if (op == "cvta") {
        decode_address_space(m, i);
    } else if (op == "trap") {
        i.run = run_trap;
    } else if (op == "griddepcontrol") {
        i.run = has(m, "wait") ? run_wait_for_previous : run_launch_dependents;
    } else {
        read_results(i);
        t.need(",");
        if (op == "shl" || op == "shr" || op == "bfe") {
            i.src[i.n_src++] = value(type);
            t.need(",");
            read_values(i, "u32"); // whatever the type is
        } else {
            read_values(i, type);
        }
        i.mode = has(m, "rzi") ? 1 : has(m, "rmi") ? 2 : has(m, "rpi") ? 3 : 0; // of a conversion
        if (op == "mov") i.run = i.n_dst > 1 ? run_unpack : i.n_src > 1 ? run_pack : run_move;
        else if (op == "selp") i.run = run_select;
        else if (op == "cvt") i.run = convert_action(m, m[m.size() - 2], type);
        else i.run = arithmetic_action(op, m, type);
        known = i.run != nullptr;
    }
    if (!known || (i.kind == flow::plain && !i.run))
        fail("PTX line %d: the instruction '%s' is not supported", line + 1, full.c_str());
    t.need(";");
    i.form = form_of(full, i);
    k.code.push_back(i);
}

} // namespace ptxsim
