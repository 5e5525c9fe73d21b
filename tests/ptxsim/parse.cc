// From the text of a PTX module to kernels: directives, declarations, names. Instructions are
// decoded in decode.cc.
#include "tests/ptxsim/parse.h"

#include <cctype>
#include <cstring>

#include "tests/ptxsim/execute.h"

namespace ptxsim {

using std::string;

// ---- tokens ----

static bool is_word(char c) { return isalnum((unsigned char)c) || (c && strchr("_$%.", c)); }

token_list::token_list(const string &s)
{
    int32_t line = 0;
    for (size_t i = 0; i < s.size();) {
        if (s[i] == '\n') line++, i++;
        else if (isspace((unsigned char)s[i])) i++;
        else if (s.compare(i, 2, "//") == 0) while (i < s.size() && s[i] != '\n') i++;
        else if (s[i] == '"') {
            size_t end = s.find('"', i + 1);
            if (end == string::npos) fail("PTX line %d: a text without an end", line + 1);
            tokens.push_back({s.substr(i, end - i + 1), line});
            i = end + 1;
        } else if (is_word(s[i])) {
            size_t end = i;
            while (end < s.size() && (is_word(s[end]) || s.compare(end, 2, "::") == 0
                                      || (s[end] == ':' && s[end - 1] == ':')))
                end++;
            tokens.push_back({s.substr(i, end - i), line});
            i = end;
        } else {
            tokens.push_back({string(1, s[i++]), line});
        }
    }
}

bool token_list::eat(const char *text)
{
    if (!is(text)) return false;
    at++;
    return true;
}

const string &token_list::next()
{
    if (at_end()) fail("PTX ends too early");
    return tokens[at++].text;
}

void token_list::need(const char *text)
{
    if (!eat(text))
        fail("PTX line %d: '%s' where '%s' belongs", line() + 1, at_end() ? "" : tokens[at].text.c_str(),
             text);
}

void token_list::skip_line()
{
    for (int32_t here = tokens[at - 1].line; !at_end() && tokens[at].line == here;) at++;
}

void token_list::skip_past(const char *text)
{
    while (!eat(text)) next();
}

int32_t type_bytes(const string &type)
{
    if (type == "pred") return 4;
    size_t digits = type.find_first_of("0123456789");
    return digits == string::npos ? 4 : std::stoi(type.substr(digits)) / 8;
}

bool number_bits(const string &s, uint64_t *bits)
{
    if (!isdigit((unsigned char)s[0])) return false;
    bool is_float = s.size() > 2 && s[0] == '0' && strchr("fFdD", s[1]);
    *bits = is_float ? strtoull(s.c_str() + 2, nullptr, 16) : strtoull(s.c_str(), nullptr, 0);
    return true;
}

// ---- names ----

const char *const special_names[] = {"%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z",
                                     "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y",
                                     "%nctaid.z", "%laneid", "%warpid", nullptr};

body::body(token_list &t_, module &m_, kernel &k_,
           std::map<string, std::pair<size_t, size_t>> &shared_of_module, const string &dynamic)
    : t(t_), m(m_), k(k_), module_shared(shared_of_module), dynamic_name(dynamic), scopes(1)
{
    for (const parameter &p : k.parameters) symbols[p.name] = p.offset;
}

operand body::place(int32_t lane_bytes, int32_t count)
{
    operand o = {(int32_t)k.file_bytes, (uint8_t)lane_bytes};
    k.file_bytes += (size_t)lane_bytes * LANES * (size_t)count;
    return o;
}

operand body::constant_of(uint64_t value, int32_t lane_bytes)
{
    auto key = std::make_pair(value, (int)lane_bytes);
    auto known = known_constants.find(key);
    if (known != known_constants.end()) return known->second;
    operand o = place(lane_bytes);
    k.constants.push_back({o, value});
    return known_constants[key] = o;
}

operand body::register_of(const string &name)
{
    size_t digits = name.size();
    while (digits > 0 && isdigit((unsigned char)name[digits - 1])) digits--;
    for (size_t s = scopes.size(); s-- > 0;) {
        auto whole = scopes[s].find(name);
        if (whole != scopes[s].end() && whole->second.count == 0) return whole->second.first;
        if (digits == name.size()) continue;
        auto r = scopes[s].find(name.substr(0, digits));
        int32_t number = atoi(name.c_str() + digits);
        if (r == scopes[s].end() || number >= r->second.count) continue;
        operand o = r->second.first;
        o.at += number * o.lane_bytes * LANES;
        return o;
    }
    return {};
}

operand body::special_of(const string &name)
{
    auto known = known_specials.find(name);
    if (known != known_specials.end()) return known->second;
    for (int32_t i = 0; special_names[i]; i++)
        if (name == special_names[i]) {
            operand o = place(4);
            k.specials.push_back({o, i});
            return known_specials[name] = o;
        }
    return {};
}

uint64_t body::add_shared(const string &name, size_t bytes, size_t align)
{
    enum { GAP = 64 }; // bytes that nobody may touch, so that one too far is seen
    k.shared_bytes += GAP;
    k.shared_bytes = (k.shared_bytes + align - 1) / align * align;
    k.shared.push_back({k.shared_bytes, bytes});
    symbols[name] = k.shared_bytes;
    k.shared_bytes += bytes;
    return symbols[name];
}

operand body::symbol_of(const string &name, int32_t lane_bytes)
{
    if (name == dynamic_name && !name.empty()) {
        if (dynamic_constant < 0) {
            dynamic_constant = (int32_t)k.constants.size();
            k.constants.push_back({place(8), 0});
            k.dynamic.push_back(dynamic_constant);
        }
        operand o = k.constants[(size_t)dynamic_constant].at;
        return o;
    }
    auto in_module = module_shared.find(name);
    if (!symbols.count(name) && in_module != module_shared.end())
        add_shared(name, in_module->second.first, in_module->second.second);
    auto known = symbols.find(name);
    if (known != symbols.end()) return constant_of(known->second, lane_bytes);
    auto global = m.globals.find(name);
    if (global != m.globals.end()) return constant_of(global->second, 8);
    fail("PTX line %d: unknown name '%s'", t.line() + 1, name.c_str());
}

operand body::value(const string &type)
{
    int32_t bytes = type_bytes(type);
    bool negative = t.eat("-");
    const string s = t.next();
    uint64_t bits;
    if (number_bits(s, &bits)) {
        if (negative) bits = -bits;
        if (bytes < 8) bits &= (1ull << bytes * 8) - 1;
        return constant_of(bits, bytes == 8 ? 8 : 4);
    }
    operand o = register_of(s);
    if (o.at < 0) o = special_of(s);
    return o.at >= 0 ? o : symbol_of(s, bytes == 8 ? 8 : 4);
}

operand body::result()
{
    const string s = t.next();
    if (s == "_") return {};
    operand o = register_of(s);
    if (o.at < 0) fail("PTX line %d: unknown register '%s'", t.line() + 1, s.c_str());
    return o;
}

// ---- declarations ----

// .reg .b32 %r<9>, %x;
void body::declare_registers()
{
    int32_t bytes = type_bytes(t.next().substr(1)) == 8 ? 8 : 4;
    do {
        const string name = t.next();
        int32_t count = 0;
        if (t.eat("<")) {
            count = atoi(t.next().c_str());
            t.need(">");
        }
        scopes.back()[name] = {place(bytes, count ? count : 1), count};
    } while (t.eat(","));
    t.need(";");
}

struct declaration { string type, name; size_t align = 1, bytes = 0; };

// .align 4 .b8 name[10][2]
static declaration read_declaration(token_list &t)
{
    declaration d;
    while (d.name.empty()) {
        const string s = t.next();
        if (s == ".align") d.align = (size_t)atoi(t.next().c_str());
        else if (s == ".ptr" || s == ".global" || s == ".param") continue;
        else if (s[0] == '.') d.type = s.substr(1);
        else d.name = s;
    }
    d.bytes = (size_t)type_bytes(d.type);
    if (d.align < d.bytes) d.align = d.bytes;
    while (t.eat("[")) {
        d.bytes *= t.is("]") ? 0 : (size_t)atoi(t.next().c_str());
        t.need("]");
    }
    return d;
}

void body::declare_variable(bool shared)
{
    declaration d = read_declaration(t);
    t.need(";");
    if (shared) {
        add_shared(d.name, d.bytes, d.align);
        return;
    }
    k.local_bytes = (k.local_bytes + d.align - 1) / d.align * d.align;
    symbols[d.name] = k.local_bytes;
    k.local_bytes += d.bytes;
}

void body::directive(const string &name, int32_t line)
{
    if (name == ".loc") {
        file = atoi(t.next().c_str());
        source_line = atoi(t.next().c_str());
        if (t.line() == line) t.skip_line();
    } else if (name == ".pragma") {
        const string what = t.next();
        const char *mask = "\"used_bytes_mask ";
        if (what.compare(0, strlen(mask), mask) == 0)
            used_bytes = (uint32_t)strtoul(what.c_str() + strlen(mask), nullptr, 0);
        t.need(";");
    } else {
        fail("PTX line %d: the directive '%s' is not supported", line + 1, name.c_str());
    }
}

void body::statement(const string &first, int32_t line)
{
    instruction i;
    i.text_line = line;
    i.file = file;
    i.source_line = source_line;
    string op = first;
    if (op == "@") {
        i.guard_negated = t.eat("!");
        i.guard = register_of(t.next());
        op = t.next();
    }
    decode(op, i);
}

// Where code of sm_90 waits for the kernel before it, older code has a label that says so
// (cuda/gpu.cuh).
void body::label(const string &name, int32_t line)
{
    labels[name] = (int32_t)k.code.size();
    if (name != "griddepcontrol_wait") return;
    instruction i;
    i.text_line = line;
    i.file = file;
    i.source_line = source_line;
    i.run = run_wait_for_previous;
    k.code.push_back(i);
}

void body::parse()
{
    t.need("{");
    while (!scopes.empty()) {
        int32_t line = t.line();
        const string s = t.next();
        if (s == "{") scopes.emplace_back();
        else if (s == "}") scopes.pop_back();
        else if (s == ";") continue;
        else if (s == ".reg") declare_registers();
        else if (s == ".shared" || s == ".local") declare_variable(s == ".shared");
        else if (s[0] == '.') directive(s, line);
        else if (t.eat(":")) label(s, line);
        else statement(s, line);
    }
    for (const auto &j : jumps) {
        auto to = labels.find(j.second);
        if (to == labels.end()) fail("kernel %s: unknown label %s", k.name.c_str(), j.second.c_str());
        k.code[j.first].target = to->second;
    }
    instruction end;
    end.kind = flow::exit;
    if (!k.code.empty()) end.text_line = k.code.back().text_line;
    k.code.push_back(end);
    for (int32_t c : k.dynamic) k.constants[(size_t)c].value = dynamic_shared_offset(k);
}

// ---- a module ----

size_t dynamic_shared_offset(const kernel &k)
{
    enum { GAP = 64, ALIGN = 128 };
    return k.shared_bytes == 0 ? 0 : (k.shared_bytes + GAP + ALIGN - 1) / ALIGN * ALIGN;
}

kernel *module::find(const string &name) const
{
    auto k = kernels.find(name);
    return k == kernels.end() ? nullptr : k->second.get();
}

// A variable of the module, with its first value.
static void read_global(token_list &t, module &m)
{
    declaration d = read_declaration(t);
    size_t each = (size_t)type_bytes(d.type), at = 0;
    uint8_t *p = (uint8_t *)memory_alloc(d.bytes);
    memset(p, 0, d.bytes);
    memset(memory_find((uint64_t)p)->state, BYTE_WRITTEN, d.bytes);
    if (t.eat("=")) {
        bool list = t.eat("{");
        do {
            bool negative = t.eat("-");
            uint64_t bits;
            if (!number_bits(t.next(), &bits)) fail("PTX line %d: a value that is no number", t.line() + 1);
            if (negative) bits = -bits;
            if (at + each <= d.bytes) memcpy(p + at, &bits, each);
            at += each;
        } while (t.eat(","));
        if (list) t.need("}");
    }
    t.need(";");
    m.globals[d.name] = (uint64_t)p;
}

static void read_parameters(token_list &t, kernel &k)
{
    if (!t.eat("(")) return;
    while (!t.eat(")")) {
        declaration d = read_declaration(t);
        k.parameter_bytes = (k.parameter_bytes + d.align - 1) / d.align * d.align;
        k.parameters.push_back({d.name, k.parameter_bytes, d.bytes});
        k.parameter_bytes += d.bytes;
        t.eat(",");
    }
}

static void read_kernel(token_list &t, module &m, std::map<string, std::pair<size_t, size_t>> &shared,
                        const string &dynamic)
{
    auto k = std::make_unique<kernel>();
    k->name = t.next();
    k->from = &m;
    read_parameters(t, *k);
    while (!t.is("{")) {
        const string s = t.next();
        if (s != ".maxntid") continue;
        k->max_threads = 1;
        do k->max_threads *= atoi(t.next().c_str());
        while (t.eat(","));
    }
    body(t, m, *k, shared, dynamic).parse();
    m.kernels[k->name] = std::move(k);
}

static std::vector<std::unique_ptr<module>> &modules()
{
    static auto *list = new std::vector<std::unique_ptr<module>>; // registered before main
    return *list;
}

const std::vector<std::unique_ptr<module>> &all_modules() { return modules(); }

static void read_file(token_list &t, module &m)
{
    int32_t number = atoi(t.next().c_str());
    string path = t.next();
    path = path.substr(1, path.size() - 2);
    m.files[number] = path.substr(path.rfind('/') + 1);
    while (t.eat(",")) t.next();
}

module *load_module(const string &text)
{
    modules().push_back(std::make_unique<module>());
    module &m = *modules().back();
    for (size_t at = 0; at < text.size();) {
        size_t end = text.find('\n', at);
        if (end == string::npos) end = text.size();
        m.lines.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    token_list t(text);
    std::map<string, std::pair<size_t, size_t>> shared;
    string dynamic;
    while (!t.at_end()) {
        int32_t line = t.line();
        const string s = t.next();
        if (s == ".version" || s == ".target" || s == ".address_size") t.skip_line();
        else if (s == ".visible" || s == ".weak") continue;
        else if (s == ".extern") {
            t.need(".shared");
            dynamic = read_declaration(t).name;
            t.need(";");
        } else if (s == ".shared") {
            declaration d = read_declaration(t);
            t.need(";");
            shared[d.name] = {d.bytes, d.align};
        } else if (s == ".global" || s == ".const") read_global(t, m);
        else if (s == ".entry") read_kernel(t, m, shared, dynamic);
        else if (s == ".file") read_file(t, m);
        else if (s == ".section") t.skip_past("}");
        else fail("PTX line %d: '%s' is not supported in a module", line + 1, s.c_str());
    }
    return &m;
}

} // namespace ptxsim
