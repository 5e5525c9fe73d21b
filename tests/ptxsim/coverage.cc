// What tests ask of the interpreter: see ptxsim.h.
#include "tests/ptxsim/ptxsim.h"

#include <cstdio>
#include <cstring>
#include <map>
#include <set>

#include "tests/ptxsim/execute.h"

using namespace ptxsim;

void ptxsim_set_seed(uint32_t seed) { set_seed(seed); }
void ptxsim_set_ends(uint64_t n_blocks) { set_ends(n_blocks); }
void ptxsim_forget(void *p, size_t bytes) { memory_forget(p, bytes); }

void ptxsim_speed(uint64_t *lane_instructions, double *seconds)
{
    *lane_instructions = run_statistics().lane_instructions;
    *seconds = run_statistics().seconds;
}

struct ptxsim_module *ptxsim_load(const char *text) { return (struct ptxsim_module *)load_module(text); }

bool ptxsim_launch(struct ptxsim_module *m, const char *name, const uint32_t grid[3],
                   const uint32_t block[3], size_t shared_bytes, void **arguments)
{
    kernel *k = ((module *)m)->find(name);
    if (!k) fail("there is no kernel '%s'", name);
    return launch(*k, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, arguments, false);
}

void *ptxsim_alloc(size_t bytes) { return memory_alloc(bytes); }

void ptxsim_fill(void *to, const void *from, size_t bytes)
{
    region *r = memory_range(to, bytes, "filling");
    memcpy(to, from, bytes);
    memset(&r->state[(size_t)((uint8_t *)to - r->data)], BYTE_WRITTEN, bytes);
}

void ptxsim_free(void *p)
{
    if (!memory_free(p)) fail("freeing %p, which is no allocation", p);
}

static void count(const kernel &k, bool print, struct ptxsim_coverage *c)
{
    std::set<std::pair<int32_t, int32_t>> run, seen;
    int64_t executed = 0;
    for (const instruction &i : k.code) {
        std::pair<int32_t, int32_t> at = {i.file, i.source_line};
        seen.insert(at);
        if (!i.executed) continue;
        executed++;
        run.insert(at);
    }
    c->n_kernels++;
    c->n_run += k.launches > 0;
    c->n_instructions += (int64_t)k.code.size();
    c->n_executed += executed;
    if (!print) return;
    printf("%5.1f%% of %5zu  %s", 100.0 * (double)executed / (double)k.code.size(), k.code.size(),
           k.name.c_str());
    for (const auto &at : seen) {
        auto file = k.from->files.find(at.first);
        if (!run.count(at) && at.second != 0 && file != k.from->files.end())
            printf(" %s:%d", file->second.c_str(), at.second);
    }
    printf("\n");
}

bool ptxsim_every_form_was_run()
{
    std::map<std::string, const kernel *> missing; // a kernel that has it
    std::set<std::string> run;
    for (const auto &m : all_modules())
        for (const auto &k : m->kernels)
            for (const instruction &i : k.second->code) {
                // The end of a kernel is not written down; and who runs a trap does not come back
                // to ask.
                if (!i.form || i.run == run_trap) continue;
                if (i.executed) run.insert(*i.form);
                else missing.emplace(*i.form, k.second.get());
            }
    for (const std::string &form : run) missing.erase(form);
    for (const auto &it : missing)
        fprintf(stderr, "ptxsim: '%s' was never run; the kernel %s has it\n", it.first.c_str(), it.second->name.c_str());
    return missing.empty();
}

struct ptxsim_coverage ptxsim_coverage(bool print)
{
    struct ptxsim_coverage c = {};
    for (const auto &m : all_modules())
        for (const auto &k : m->kernels) count(*k.second, print, &c);
    return c;
}
