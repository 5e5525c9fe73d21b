// Kernels' budgets: what their traffic was and what ptxas said of their registers, beside a
// checked-in table.
#include <cxxabi.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "tests/ptxsim/execute.h"
#include "tests/ptxsim/ptxsim.h"

using namespace ptxsim;
using std::string;

enum { CONFLICTS, SECTORS, REGISTERS_80, REGISTERS_90, SPILLED, N_FIGURES };
static const struct { const char *what; double slack; } figures[N_FIGURES] = {
    {"wavefronts of shared memory over the least", 0.02},
    {"sectors of global memory over the least", 0.02},
    {"registers on sm_80", 4}, {"registers on sm_90", 4},
    {"bytes of spilled registers", 0},
};

// A kernel's figures; NAN: not known.
struct budget {
    double figure[N_FIGURES] = {NAN, NAN, NAN, NAN, NAN};
    tally wavefronts, sectors;
    uint64_t most_lost = 0;
    string worst;               // the source line that most of the excess comes from
};
using budgets = std::map<string, budget>; // by the kernel's short name

static void replace_all(string &s, const string &what, const string &by)
{
    for (size_t at; (at = s.find(what)) != string::npos;) s.replace(at, what.size(), by);
}

// A mangled name without its return type, arguments and spaces.
static string short_name(const string &mangled)
{
    int status;
    char *text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    string name = status == 0 ? text : mangled;
    free(text);
    int depth = 0;
    for (size_t i = 0; i < name.size(); i++) {
        depth += (name[i] == '<') - (name[i] == '>');
        if (name[i] == '(' && depth == 0) name.resize(i);
    }
    if (name.rfind("void ", 0) == 0) name.erase(0, 5);
    replace_all(name, "__nv_bfloat16", "bf16");
    replace_all(name, "__half", "f16");
    replace_all(name, " ", "");
    return name;
}

static double ratio_of(tally t) { return t.least ? (double)t.taken / (double)t.least : 1; }

static void add(tally &to, tally t)
{
    to.taken += t.taken;
    to.least += t.least;
}

static void add_traffic(const kernel &k, budget &b)
{
    for (const instruction &i : k.code) {
        add(b.wavefronts, i.wavefronts);
        add(b.sectors, i.sectors);
        uint64_t had = i.wavefronts.taken + i.sectors.taken, least = i.wavefronts.least + i.sectors.least;
        if (had < least || had - least <= b.most_lost) continue;
        b.most_lost = had - least;
        auto file = k.from->files.find(i.file);
        b.worst = (file == k.from->files.end() ? "?" : file->second) + ":" + std::to_string(i.source_line);
    }
    b.figure[CONFLICTS] = ratio_of(b.wavefronts);
    b.figure[SECTORS] = ratio_of(b.sectors);
}

// Of every kernel that was launched.
static budgets measured()
{
    budgets all;
    for (const auto &m : all_modules())
        for (const auto &k : m->kernels)
            if (k.second->launches > 0) add_traffic(*k.second, all[short_name(k.first)]);
    return all;
}

// What `ptxas -v` printed: "Compiling entry function 'k' for 'sm_80'", then its spills, then "Used
// 40 registers".
static void read_ptxas(const char *path, budgets &all)
{
    std::ifstream in(path);
    if (!in) fail("the budgets' ptxas report %s cannot be read", path);
    budget *b = nullptr;
    int which = -1;
    for (string line; std::getline(in, line);) {
        size_t name = line.find("entry function '"), used = line.find("Used "), spill = line.find("bytes spill");
        if (name != string::npos) {
            name += strlen("entry function '");
            b = &all[short_name(line.substr(name, line.find('\'', name) - name))];
            which = line.find("'sm_80'") != string::npos   ? REGISTERS_80
                    : line.find("'sm_90'") != string::npos ? REGISTERS_90 : -1;
        } else if (b && spill != string::npos) {
            int stack = 0, stores = 0, loads = 0;
            sscanf(line.c_str(), " %d bytes stack frame, %d bytes spill stores, %d", &stack, &stores, &loads);
            b->figure[SPILLED] = std::fmax(b->figure[SPILLED], stores + loads); // on either
        } else if (b && which >= 0 && used != string::npos) {
            double n = atof(line.c_str() + used + strlen("Used "));
            b->figure[which] = std::fmax(b->figure[which], n); // several modules may have it
        }
    }
}

static budgets read_table(const char *path)
{
    budgets all;
    std::ifstream in(path);
    for (string line; std::getline(in, line);) {
        std::istringstream words(line);
        string word[N_FIGURES], name;
        if (line.empty() || line[0] == '#') continue;
        for (string &w : word) words >> w;
        words >> name;
        if (name.empty()) fail("%s: the line '%s' is not %d figures and a kernel", path, line.c_str(), N_FIGURES);
        for (int f = 0; f < N_FIGURES; f++)
            all[name].figure[f] = word[f] == "-" ? NAN : atof(word[f].c_str());
    }
    return all;
}

// Figures that are not known now stay as the table has them.
static void write_table(const char *path, const budgets &had, const budgets &now)
{
    FILE *out = fopen(path, "w");
    if (!out) fail("the budgets %s cannot be written", path);
    fprintf(out, "# Budgets of the CUDA kernels, as their tests run them. Written by: make cuda-budgets RENEW=1\n"
            "# conflicts: wavefronts of shared memory over the least that its bytes need; sectors: of global\n"
            "# memory, the same; sm_80, sm_90: registers by ptxas; spills: bytes of them, stored and loaded.\n"
            "# -: never run by the tests. See docs/gpu.md.\n#\n# conflicts sectors sm_80 sm_90 spills kernel\n");
    for (const auto &k : now) {
        auto old = had.find(k.first);
        for (int f = 0; f < N_FIGURES; f++) {
            double x = k.second.figure[f];
            if (std::isnan(x) && old != had.end()) x = old->second.figure[f];
            int width = f == CONFLICTS ? 11 : f == SECTORS ? 7 : f == SPILLED ? 6 : 5;
            if (std::isnan(x)) fprintf(out, "%*s ", width, "-");
            else fprintf(out, "%*.*f ", width, f <= SECTORS ? 2 : 0, x);
        }
        fprintf(out, "%s\n", k.first.c_str());
    }
    fclose(out);
}

// Figures of one kernel beside its row; how many are over it.
static int compare(const string &name, const budget &now, const budget *row)
{
    int n = 0;
    for (int f = 0; f < N_FIGURES; f++) {
        double budgeted = row ? row->figure[f] : NAN, x = now.figure[f];
        if (std::isnan(x) || x <= budgeted + figures[f].slack) continue;
        n++;
        const char *worst = f <= SECTORS ? now.worst.c_str() : "";
        if (std::isnan(budgeted))
            fprintf(stderr, "budgets: %s: %.2f %s, and no budget %s\n", name.c_str(), x, figures[f].what, worst);
        else
            fprintf(stderr, "budgets: %s: %.2f %s, over its budget of %.2f %s\n", name.c_str(), x,
                    figures[f].what, budgeted, worst);
    }
    return n;
}

// Rows of kernels that are not there any more.
static int compare_gone(const budgets &rows)
{
    budgets there;
    int n = 0;
    for (const auto &m : all_modules())
        for (const auto &k : m->kernels) there[short_name(k.first)];
    for (const auto &row : rows)
        if (!there.count(row.first)) {
            n++;
            fprintf(stderr, "budgets: %s: a row, and no such kernel\n", row.first.c_str());
        }
    return n;
}

bool ptxsim_budgets_hold(const char *table, const char *ptxas, bool renew)
{
    budgets now = measured(), rows = read_table(table);
    if (ptxas) read_ptxas(ptxas, now);
    if (renew) {
        write_table(table, rows, now);
        return true;
    }
    int n_over = compare_gone(rows);
    for (const auto &k : now) {
        auto row = rows.find(k.first);
        n_over += compare(k.first, k.second, row == rows.end() ? nullptr : &row->second);
    }
    if (n_over > 0)
        fprintf(stderr, "budgets: %d figures do not keep to %s; where that is right, `make cuda-budgets RENEW=1` "
                "writes it anew\n", n_over, table);
    return n_over == 0;
}

struct ptxsim_traffic ptxsim_traffic(const char *name)
{
    budgets all = measured();
    auto b = all.find(name);
    if (b == all.end()) fail("the kernel '%s' was not run", name);
    tally w = b->second.wavefronts, s = b->second.sectors;
    return {w.taken, w.least, s.taken, s.least};
}
