// Between the files that parse PTX: tokens, and one kernel's body while it is read.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/ptxsim/program.h"

namespace ptxsim {

struct token { std::string text; int32_t line; };

class token_list {
public:
    explicit token_list(const std::string &text);
    bool at_end() const { return at >= tokens.size(); }
    bool is(const char *text) const { return !at_end() && tokens[at].text == text; }
    bool eat(const char *text);                // true: it was next, and is behind us now
    void need(const char *text);
    const std::string &next();
    int32_t line() const { return at_end() ? -1 : tokens[at].line; }
    void skip_line();                          // to the first token of another line
    void skip_past(const char *text);

private:
    std::vector<token> tokens;
    size_t at = 0;
};

// Bytes of a type's name without its dot: "b8" 1, "pred" and "f32" 4.
int32_t type_bytes(const std::string &type);
// 0x1F, 31, 0f3F800000, 0d...: the bits.
bool number_bits(const std::string &text, uint64_t *bits);

// One kernel's body: names in scope, and instructions as they are decoded.
class body {
public:
    body(token_list &t_, module &m_, kernel &k_,
         std::map<std::string, std::pair<size_t, size_t>> &shared_of_module, const std::string &dynamic);
    void parse();

private:
    token_list &t;
    module &m;
    kernel &k;
    std::map<std::string, std::pair<size_t, size_t>> &module_shared; // name: bytes, alignment
    const std::string &dynamic_name;
    struct range { operand first; int32_t count; };
    std::vector<std::map<std::string, range>> scopes; // by the name before the number
    std::map<std::string, uint64_t> symbols;          // shared and local variables, parameters
    std::map<std::string, int32_t> labels;
    std::vector<std::pair<size_t, std::string>> jumps;
    std::map<std::pair<uint64_t, int>, operand> known_constants;
    std::map<std::string, operand> known_specials;
    int32_t dynamic_constant = -1;
    int32_t file = 0, source_line = 0;
    uint32_t used_bytes = ~0u; // of the next load

    operand place(int32_t lane_bytes, int32_t count = 1);
    void declare_registers();
    void declare_variable(bool shared);
    uint64_t add_shared(const std::string &name, size_t bytes, size_t align);
    void label(const std::string &name, int32_t line);
    void directive(const std::string &name, int32_t line);
    void statement(const std::string &first, int32_t line);

    operand constant_of(uint64_t value, int32_t lane_bytes);
    operand register_of(const std::string &name);     // at < 0: there is none
    operand special_of(const std::string &name);
    operand symbol_of(const std::string &name, int32_t lane_bytes);
    operand value(const std::string &type);            // a register, a number or a symbol
    operand result();

    // decode.cc
    void decode(const std::string &full, instruction i);
    void read_results(instruction &i);
    void read_values(instruction &i, const std::string &type);
    void read_address(instruction &i);
    void decode_memory(const std::string &op, const std::vector<std::string> &m, instruction &i);
    bool decode_atomic(const std::string &op, const std::vector<std::string> &m, instruction &i);
    bool decode_copy(const std::vector<std::string> &m, instruction &i);
    void decode_barrier(const std::string &op, const std::vector<std::string> &m, instruction &i);
    bool decode_collective(const std::string &op, const std::vector<std::string> &m, instruction &i);
    void decode_compare(const std::vector<std::string> &m, instruction &i);
    void decode_address_space(const std::vector<std::string> &m, instruction &i);
};

} // namespace ptxsim
