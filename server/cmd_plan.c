/* `gptd plan`: what a model takes, before anything is taken. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/memory_plan.h"
#include "base/file.h"
#include "cpu/cpu.h"
#include "cuda/cuda_sizes.h"
#include "model/checkpoint.h"
#include "server/command.h"
#include "server/plan_report.h"
#include "server/plan_tables.h"

enum {
    N_OWN = 11, FLAG_BYTES = 32, WORDS_BYTES = 64,
    REPORT_LIMIT = 64 << 20, CONFIG_LIMIT = 1 << 20,
};

struct plan_options {
    const char *config, *model, *table_axis, *configs_dir;
    int64_t threads;
    bool json, list, guide, explain;
    struct plan_request request;
    char names[N_PLAN_KEYS][FLAG_BYTES], words[N_PLAN_KEYS][WORDS_BYTES];
    struct option table[N_OWN + N_PLAN_KEYS];
};

/* "f32","bf16" as help shows it: f32|bf16. */
static void plain_words(const char *literals, char out[WORDS_BYTES])
{
    size_t n = 0;
    for (const char *s = literals; *s; s++) {
        ASSERT(n + 1 < WORDS_BYTES);
        if (*s != '"') out[n++] = *s == ',' ? '|' : *s;
    }
    out[n] = 0;
}

static struct option key_option(struct plan_options *o, size_t i)
{
    const struct plan_key *key = &plan_keys[i];
    char *name = o->names[i];
    ASSERT(strlen(key->name) < FLAG_BYTES);
    strcpy(name, key->name);
    for (char *s = name; *s; s++)
        if (*s == '_') *s = '-';
    void *value = (char *)&o->request + key->offset;
    if (!key->words)
        return (struct option){name, OPTION_INT, value, 0, (double)key->max, "N", key->help};
    plain_words(key->words, o->words[i]);
    return (struct option){name, OPTION_STRING, value, 0, 0, o->words[i], key->help};
}

static void options_init(struct plan_options *o)
{
    *o = (struct plan_options){.configs_dir = "configs"};
    const struct option own[N_OWN] = {
        {"config", OPTION_STRING, &o->config, 0, 0, "FILE",
         "A model to be: configs/NAME.json, or your own."},
        {"model", OPTION_STRING, &o->model, 0, 0, "PATH",
         "A model that is there: a Hugging Face directory or a .gguf file. Its weights are not "
         "read."},
        {"gpu", OPTION_STRING, &o->request.gpu, 0, 0, "NAME|SIZE",
         "A card (\"RTX 3060\") or its memory (8GiB). Without a model: all presets on it."},
        {"memory-budget", OPTION_BYTES, &o->request.memory_budget, 0, 0, "SIZE",
         "The most that may be taken; 0: no limit."},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "Print one JSON object."},
        {"list", OPTION_FLAG, &o->list, 0, 0, NULL,
         "Print every tensor and buffer, with its place in memory."},
        {"table", OPTION_STRING, &o->table_axis, 0, 0, "AXIS",
         "Bytes over batch, block, dtype, recompute or moments, as a table."},
        {"guide", OPTION_FLAG, &o->guide, 0, 0, NULL,
         "Print the memory guide over all presets, as Markdown."},
        {"explain", OPTION_FLAG, &o->explain, 0, 0, NULL,
         "Print which plans of training were compared, and by what."},
        {"configs-dir", OPTION_STRING, &o->configs_dir, 0, 0, "DIR", "Where the presets are."},
        {"threads", OPTION_INT, &o->threads, 0, 4096, "N",
         "CPU threads to plan for; 0: one for each core that the process may use."},
    };
    memcpy(o->table, own, sizeof own);
    for (size_t i = 0; i < N_PLAN_KEYS; i++) o->table[N_OWN + i] = key_option(o, i);
}

static bool options_check(const struct plan_options *o, struct error *err)
{
    bool has_model = o->config || o->model;
    if (o->config && o->model)
        return error_set(err, ERR_INVALID, "config", "--config and --model each say which model: "
                         "give one of them");
    if (!has_model && !o->guide && !o->request.gpu)
        return error_set(err, ERR_INVALID, "config", "say what to plan: --config FILE, --model "
                         "PATH, --gpu NAME for all presets on a card, or --guide");
    if (!has_model && (o->json || o->list || o->explain || o->table_axis))
        return error_set(err, ERR_INVALID, "config", "--json, --list, --explain and --table are "
                         "about one model: say --config FILE or --model PATH");
    if (o->json + o->list + o->guide + (o->table_axis != NULL) > 1 || (o->explain && o->json))
        return error_set(err, ERR_INVALID, "json", "--json, --list, --table, --guide and --explain "
                         "each print something else: give one of them");
    return true;
}

/* ---- one model ------------------------------------------------------------------------------- */

struct work {
    const struct plan_options *options;
    struct plan_devices devices;
    struct plan_case c;
    struct fit_answer answer;
    struct fit_card *cards; /* [n_gpus] */
    struct buf out;
    bool fits;
};

static bool report(struct work *w, const struct plan_request *r, struct error *err)
{
    const struct plan_options *o = w->options;
    if (o->table_axis) return plan_table(r, &w->devices, o->table_axis, &w->out, err);
    if (!plan_request_resolve(r, &w->devices, &w->c, err)
        || !fit_answer(&w->c.question, &w->answer, err))
        return false;
    w->fits = plan_case_fits(&w->c, &w->answer);
    if (o->list) return plan_report_pieces(&w->c, &w->answer, &w->out, err);
    /* Cards matter to who has not named one. */
    bool with_cards = o->json || !w->c.has_gpu;
    if (with_cards && !fit_cards(&w->c.question, w->devices.cuda, w->cards, err)) return false;
    if (!o->json) plan_report(&w->c, &w->answer, with_cards ? w->cards : NULL, &w->out);
    else memory_plan_render(&w->c, &w->answer, w->cards, &w->out);
    if (o->json) buf_putc(&w->out, '\n');
    return !o->explain || plan_report_choices(&w->c, &w->out, err);
}

static bool report_config(struct work *w, struct error *err)
{
    struct plan_request r = w->options->request;
    struct buf text;
    buf_init(&text, CONFIG_LIMIT);
    bool ok = file_read(w->options->config, &text, err);
    r.name = w->options->config;
    r.config = text.data ? text.data : "";
    r.n_config = text.len;
    ok = ok && report(w, &r, err);
    buf_free(&text);
    return ok;
}

/* The file's header is checked, its weights stay on the disk. */
static bool report_model(struct work *w, struct error *err)
{
    struct plan_request r = w->options->request;
    struct checkpoint *ck;
    if (!checkpoint_open(w->options->model, &ck, err)) return false;
    r.name = w->options->model;
    r.known = checkpoint_config(ck);
    r.formats = checkpoint_formats(ck);
    bool ok = report(w, &r, err);
    checkpoint_close(ck);
    return ok;
}

static bool run(struct work *w, struct error *err)
{
    const struct plan_options *o = w->options;
    struct cpu_options cpu = {.n_threads = (int32_t)o->threads, .isa = CPU_ISA_BEST};
    struct device *device;
    bool ok;
    if (!cpu_device_open(&cpu, &device, err)) return false;
    w->devices = (struct plan_devices){.cpu = device, .cuda = cuda_sizes};
    w->fits = true;
    if (o->guide) ok = plan_guide(&w->devices, o->configs_dir, &w->out, err);
    else if (o->config) ok = report_config(w, err);
    else if (o->model) ok = report_model(w, err);
    else ok = plan_presets(&o->request, &w->devices, o->configs_dir, &w->out, err);
    device->ops->close(device);
    if (!ok || !buf_check(&w->out, "the report", err)) return false;
    if (fwrite(w->out.data, 1, w->out.len, stdout) != w->out.len || fflush(stdout) != 0)
        return error_errno(err, "cannot write the report");
    return true;
}

/* On stderr what falls short, for people and for scripts that keep stdout. */
static void say_shortfall(const struct work *w)
{
    struct buf text;
    buf_init(&text, 4096);
    plan_report_shortfall(&w->c, &w->answer, &text);
    if (text.data) fprintf(stderr, "gptd plan: %s\n", text.data);
    buf_free(&text);
}

int cmd_plan(int argc, char **argv)
{
    struct plan_options o;
    struct error err;
    bool help;
    options_init(&o);
    const size_t n = N_OWN + N_PLAN_KEYS;
    if (!options_parse(o.table, n, argc, argv, 2, NULL, 0, NULL, &help, &err))
        return command_usage("plan", &err);
    if (help) {
        options_init(&o);
        options_print_help(stdout, "gptd plan --config FILE | --model PATH [OPTIONS]",
                           "Prints what training and generating take, byte for byte, what fits a "
                           "GPU or a\nbudget, and what else would. Allocates none of it.",
                           o.table, n);
        return EXIT_DONE;
    }
    if (!options_check(&o, &err)) return command_usage("plan", &err);
    struct work *w = calloc(1, sizeof *w);
    struct fit_card *cards = calloc(n_gpus, sizeof *cards);
    int code = EXIT_DONE;
    if (!w || !cards) {
        error_set(&err, ERR_MEMORY, NULL, "no memory to plan in");
        code = command_fail("plan", &err);
    } else {
        w->options = &o;
        w->cards = cards;
        buf_init(&w->out, REPORT_LIMIT);
        if (!run(w, &err)) {
            code = err.code == ERR_INVALID && err.param[0] ? command_usage("plan", &err)
                                                           : command_fail("plan", &err);
        } else if (!w->fits) {
            say_shortfall(w);
            code = EXIT_NO_FIT;
        }
        buf_free(&w->out);
    }
    free(cards);
    free(w);
    return code;
}
