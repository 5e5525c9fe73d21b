// A parsed PTX module: what the parser makes and the executor runs. Immutable while kernels run,
// except for each instruction's `executed` flag (coverage) and its tallies of memory traffic.
//
// Every register, immediate and special register of a kernel has a place in one register file a
// warp: 32 lanes of 4 bytes (types up to 32 bits, and predicates) or of 8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptxsim {

enum { LANES = 32 };
constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;

struct operand {
    int32_t at = -1;       // byte in the register file; -1: "_", a result that nobody wants
    uint8_t lane_bytes = 4;
};

enum class flow : uint8_t { plain, branch, exit, barrier, collective };
enum class space : uint8_t { generic, global, shared, local, param };

struct warp;
struct instruction;
using action = void (*)(warp &, const instruction &, uint32_t lanes);

// Of requests to memory: units moved, and those that the bytes asked for need at best. See
// traffic.h.
struct tally { uint64_t taken = 0, least = 0; };

struct instruction {
    action run = nullptr;
    flow kind = flow::plain;
    operand guard;         // at < 0: none
    bool guard_negated = false;
    bool source_negated = false; // a predicate operand written !p
    operand dst[4], pair;  // pair: the second result of a|b
    operand src[12];
    uint8_t n_dst = 0, n_src = 0;
    operand members;       // of a collective: its lane mask; at < 0: all lanes (.aligned)
    space where = space::generic;
    int64_t offset = 0;    // added to the address
    int32_t size = 4, count = 1; // bytes of an element, elements of a vector
    int32_t mode = 0;      // of the operation: see where it is decoded
    uint32_t used_bytes = ~0u;   // of a load: those whose values matter
    int32_t target = -1;   // of a branch
    int32_t text_line = 0, file = 0, source_line = 0;
    const std::string *form = nullptr; // as it is written, but for its operands; and their kinds, where those matter
    mutable bool executed = false;
    mutable tally wavefronts, sectors; // of shared, of global memory
};

struct parameter { std::string name; size_t offset, bytes; };
struct constant { operand at; uint64_t value; };
struct special { operand at; int32_t which; };
struct shared_variable { size_t offset, bytes; };

struct module;

struct kernel {
    std::string name;
    const module *from = nullptr;
    std::vector<instruction> code;
    std::vector<parameter> parameters;
    size_t parameter_bytes = 0;
    size_t file_bytes = 0;             // of the register file
    std::vector<constant> constants;
    std::vector<special> specials;
    std::vector<int32_t> dynamic;      // constants that are the address of dynamic shared memory
    std::vector<shared_variable> shared;
    size_t shared_bytes = 0, local_bytes = 0;
    int32_t max_threads = 256;         // .maxntid; without it ptxas may take 255 of the 65,536 registers for each
    uint64_t launches = 0;
};

struct module {
    std::vector<std::string> lines;            // of the text, for messages
    std::map<int32_t, std::string> files;
    std::map<std::string, std::unique_ptr<kernel>> kernels;
    std::map<std::string, uint64_t> globals;   // variables: their address
    kernel *find(const std::string &name) const;
};

// Special registers by number: special::which. Ends with NULL.
extern const char *const special_names[];
enum special_register {
    TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z,
    NCTAID_X, NCTAID_Y, NCTAID_Z, LANE_ID, WARP_ID,
};

// Dynamic shared memory begins here.
size_t dynamic_shared_offset(const kernel &k);

// The module of a PTX text; an instruction that is not known, and whatever else cannot be
// understood, ends the process with a message that names it. Modules live as long as the process.
module *load_module(const std::string &text);
const std::vector<std::unique_ptr<module>> &all_modules();

// Decoding, by parse.cc: the action of an arithmetic operation on a type ("f32"), or nullptr.
action arithmetic_action(const std::string &op, const std::vector<std::string> &modifiers,
                         const std::string &type);
action compare_action(const std::string &type);
action convert_action(const std::vector<std::string> &modifiers, const std::string &to,
                      const std::string &from);
// Names of setp's comparisons; index = instruction.mode.
extern const char *const comparison_names[];

// Actions by name, in operations_*.cc.
void run_move(warp &, const instruction &, uint32_t);
void run_pack(warp &, const instruction &, uint32_t);
void run_unpack(warp &, const instruction &, uint32_t);
void run_select(warp &, const instruction &, uint32_t);
void run_to_generic_shared(warp &, const instruction &, uint32_t);
void run_from_generic_shared(warp &, const instruction &, uint32_t);
void run_to_generic_local(warp &, const instruction &, uint32_t);
void run_load(warp &, const instruction &, uint32_t);
void run_store(warp &, const instruction &, uint32_t);
void run_atomic_add(warp &, const instruction &, uint32_t);
void run_copy_async(warp &, const instruction &, uint32_t);
void run_copy_commit(warp &, const instruction &, uint32_t);
void run_copy_wait(warp &, const instruction &, uint32_t);
void run_shuffle(warp &, const instruction &, uint32_t);
void run_vote(warp &, const instruction &, uint32_t);
void run_warp_barrier(warp &, const instruction &, uint32_t);
void run_mma_bf16(warp &, const instruction &, uint32_t);
void run_mma_f16(warp &, const instruction &, uint32_t);
void run_mma_f16_k8(warp &, const instruction &, uint32_t);
void run_wait_for_previous(warp &, const instruction &, uint32_t);
void run_launch_dependents(warp &, const instruction &, uint32_t);
void run_ldmatrix(warp &, const instruction &, uint32_t);
void run_trap(warp &, const instruction &, uint32_t);
enum shuffle_mode { SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, SHUFFLE_INDEX };
enum vote_mode { VOTE_BALLOT, VOTE_ANY, VOTE_ALL };
enum barrier_mode { BARRIER_SYNC, BARRIER_OR, BARRIER_AND };

} // namespace ptxsim
