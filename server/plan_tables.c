/* Tables of plans: see plan_tables.h. */
#include "server/plan_tables.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "server/format.h"

enum { CONFIG_LIMIT = 1 << 20, PATH_BYTES = 1024, N_PRESETS = 13 };
#define GB 1e9

/* The guide's rows: presets from small to large, and what people expect of models of their size,
 * in GB: the figures of common guides, 0 where they have none. */
static const struct preset {
    const char *name;
    double training, generating;
} presets[N_PRESETS] = {
    {"tiny_char", 0, 0},     {"tiny", 0.5, 0.1},     {"small_char", 0, 0},
    {"small", 2, 0.3},       {"150M", 8, 1},         {"200M", 10, 1.2},
    {"250M", 12, 1.5},       {"150M_1024", 10, 1.5}, {"200M_1024", 12, 2},
    {"250M_1024", 14, 2.5},  {"350M_1024", 18, 3},   {"500M_1024", 22, 4},
    {"750M_1024", 0, 0},
};

/* ---- one preset ------------------------------------------------------------------------------ */

/* The case of a preset: its file, with the request's keys over it. */
static bool open_preset(const struct plan_request *r, const struct plan_devices *devices,
                        const char *configs_dir, const char *name, struct plan_case *c,
                        struct error *err)
{
    char file[64], path[PATH_BYTES];
    struct plan_request own = *r;
    struct buf text;
    snprintf(file, sizeof file, "%s.json", name);
    if (!path_join(path, sizeof path, configs_dir, file, err)) return false;
    if (!file_exists(path))
        return error_set(err, ERR_NOT_FOUND, "configs-dir",
                         "there is no %s, where a preset should be: say --configs-dir DIR, or "
                         "--config FILE for one model", path);
    buf_init(&text, CONFIG_LIMIT);
    bool ok = file_read(path, &text, err);
    own.name = name;
    own.config = text.data ? text.data : "";
    own.n_config = text.len;
    ok = ok && plan_request_resolve(&own, devices, c, err);
    buf_free(&text);
    return ok;
}

/* ---- the guide ------------------------------------------------------------------------------- */

/* A plan whose time is within this of the fastest's counts as fast: nobody would pay in memory
 * for the rest. */
static const double as_fast = 1.05;

/* Of the answer's way down: the smallest that is fast, and the smallest. */
static const struct train_choice *smallest_fast(const struct fit_answer *a)
{
    const struct train_choice *fast = &a->training;
    for (int32_t i = 0; i < a->n_alternatives; i++)
        if (a->alternatives[i].seconds <= as_fast * a->training.seconds) fast = &a->alternatives[i];
    return fast;
}

static const struct train_choice *smallest(const struct fit_answer *a)
{
    return a->n_alternatives > 0 ? &a->alternatives[a->n_alternatives - 1] : &a->training;
}

static void print_expected(double training, double generating, struct buf *out)
{
    if (training > 0) buf_printf(out, "%g / %g", training, generating);
    else buf_puts(out, "–");
}

static void print_guide_row(const struct preset *preset, const struct fit_answer *a,
                            struct buf *out)
{
    const struct train_choice *fast = smallest_fast(a), *least = smallest(a);
    buf_printf(out, "| %s | ", preset->name);
    format_grouped(out, a->parameters);
    buf_puts(out, " | ");
    print_expected(preset->training, preset->generating, out);
    buf_printf(out, " | %.2f | %.2f | x %.2f | %.2f |\n", (double)fast->memory.total_bytes / GB,
               (double)least->memory.total_bytes / GB, least->seconds / fast->seconds,
               (double)a->generation.memory.total_bytes / GB);
}

bool plan_guide(const struct plan_devices *devices, const char *configs_dir, struct buf *out,
                struct error *err)
{
    const struct plan_request r = {.device = "cuda"};
    struct fit_answer *a = malloc(sizeof *a);
    bool ok = a || error_set(err, ERR_MEMORY, NULL, "no memory to plan in");
    buf_puts(out, "| preset | parameters | common guides, GB: training / generating | training at "
                  "full speed, GB | training, smallest plan, GB | its time | generating, GB |\n"
                  "| --- | --: | --: | --: | --: | --: | --: |\n");
    for (int i = 0; ok && i < N_PRESETS; i++) {
        struct plan_case c;
        ok = open_preset(&r, devices, configs_dir, presets[i].name, &c, err)
             && fit_answer(&c.question, a, err);
        if (ok) print_guide_row(&presets[i], a, out);
    }
    free(a);
    return ok;
}

/* ---- presets on a card ----------------------------------------------------------------------- */

bool plan_presets(const struct plan_request *r, const struct plan_devices *devices,
                  const char *configs_dir, struct buf *out, struct error *err)
{
    struct fit_answer *a = malloc(sizeof *a);
    bool ok = a || error_set(err, ERR_MEMORY, NULL, "no memory to plan in");
    for (int i = 0; ok && i < N_PRESETS; i++) {
        struct plan_case c;
        ok = open_preset(r, devices, configs_dir, presets[i].name, &c, err)
             && fit_answer(&c.question, a, err);
        if (!ok) break;
        if (i == 0)
            buf_printf(out, "%s: %.2f GB to plan with; times are estimates (%s)\n\n"
                       "| preset | on this card | training, GB | tokens/s, about | how | "
                       "generating, GB | full sequences at once |\n"
                       "| --- | --- | --: | --: | --- | --: | --: |\n", c.gpu.name,
                        (double)c.question.budget / GB, c.question.rates.source);
        const struct train_choice *t = &a->training;
        buf_printf(out, "| %s | %s | ", presets[i].name,
                   a->training_fits     ? "trains"
                   : a->generation_fits ? "only generates"
                                        : "neither");
        if (a->training_fits)
            buf_printf(out, "%.2f | %.0f | %s, micro-batch %" PRId64 ", moments %s |",
                       (double)t->memory.total_bytes / GB,
                       (double)fit_step_tokens(&t->config) / t->seconds,
                       recompute_name(t->config.recompute), t->config.micro_batch_size,
                       t->config.moments == MOMENT_Q8     ? "q8"
                       : t->config.moments == MOMENT_BF16 ? "bf16"
                                                          : "f32");
        else
            buf_puts(out, "– | – | – |");
        buf_printf(out, " %.2f | %d |\n", (double)a->generation.memory.total_bytes / GB,
                   a->limits.max_seqs);
    }
    free(a);
    return ok;
}

/* ---- an axis --------------------------------------------------------------------------------- */

/* What an axis sets, value by value, in a request. */
struct axis {
    const char *name, *title;
    int32_t n;
    int64_t numbers[10];
    const char *words[10];
    void (*set)(struct plan_request *r, const struct axis *axis, int32_t i);
};

/* A batch as large as it is, at a time. */
static void set_batch(struct plan_request *r, const struct axis *axis, int32_t i)
{
    r->batch_size = r->micro_batch_size = axis->numbers[i];
}

static void set_block(struct plan_request *r, const struct axis *axis, int32_t i)
{
    if (r->known) r->sequence_length = r->max_context = axis->numbers[i];
    else r->block_size = axis->numbers[i];
}

static void set_dtype(struct plan_request *r, const struct axis *axis, int32_t i)
{
    r->dtype = axis->words[i];
}

static void set_recompute(struct plan_request *r, const struct axis *axis, int32_t i)
{
    r->recompute = axis->words[i];
}

static void set_moments(struct plan_request *r, const struct axis *axis, int32_t i)
{
    r->moments = axis->words[i];
}

static const struct axis axes[] = {
    {"batch", "sequences at a time", 8, {1, 2, 4, 8, 16, 32, 64, 128}, {0}, set_batch},
    {"block", "context", 8, {64, 128, 256, 512, 1024, 2048, 4096, 8192}, {0}, set_block},
    {"dtype", "dtype", 2, {0}, {"f32", "bf16"}, set_dtype},
    {"recompute", "recompute", 3, {0}, {"none", "selective", "block"}, set_recompute},
    {"moments", "moments", 3, {0}, {"f32", "bf16", "q8"}, set_moments},
};
enum { N_AXES = sizeof axes / sizeof *axes };

/* What the planner chose becomes what is asked for, so that along an axis nothing else changes. */
static void fix_choices(const struct train_config *c, struct plan_request *r)
{
    static const struct { const char *key; size_t offset; } words[] = {
        {"dtype", offsetof(struct plan_request, dtype)},
        {"recompute", offsetof(struct plan_request, recompute)},
        {"moments", offsetof(struct plan_request, moments)},
        {"master", offsetof(struct plan_request, master)},
        {"gradients", offsetof(struct plan_request, gradients)},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        const struct train_key *key = train_keys;
        while (strcmp(key->name, words[i].key) != 0) key++;
        const char **at = (const char **)((char *)r + words[i].offset);
        const char *word = train_key_word(key, c);
        if (!*at && *word) *at = word;
    }
    r->micro_batch_size = c->micro_batch_size;
    r->loss_rows = c->loss_rows;
}

static void print_row(const struct axis *axis, int32_t i, const struct fit_answer *a,
                      struct buf *out)
{
    static const enum memory_component shown[] = {
        MEMORY_WEIGHTS, MEMORY_MASTER, MEMORY_GRADIENTS, MEMORY_OPTIMIZER, MEMORY_ACTIVATIONS,
        MEMORY_LOGITS,
    };
    const struct memory_plan *m = &a->training.memory;
    int64_t rest = m->total_bytes;
    if (axis->words[i]) buf_printf(out, "| %s |", axis->words[i]);
    else buf_printf(out, "| %" PRId64 " |", axis->numbers[i]);
    for (size_t s = 0; s < sizeof shown / sizeof *shown; s++) {
        buf_putc(out, ' ');
        format_grouped(out, m->component[shown[s]]);
        buf_puts(out, " |");
        rest -= m->component[shown[s]];
    }
    const int64_t sums[] = {rest, m->total_bytes, a->generation.memory.total_bytes};
    for (int s = 0; s < 3; s++) {
        buf_putc(out, ' ');
        format_grouped(out, sums[s]);
        buf_puts(out, " |");
    }
    buf_putc(out, '\n');
}

static bool print_axis(const struct plan_request *r, const struct plan_devices *devices,
                       const struct axis *axis, const struct train_config *best,
                       struct fit_answer *a, struct buf *out, struct error *err)
{
    buf_printf(out, "| %s | weights | master | gradients | optimizer | activations | logits | rest "
               "| training | generation |\n| --- | --: | --: | --: | --: | --: | --: | --: | --: "
               "| --: |\n", axis->title);
    for (int32_t i = 0; i < axis->n; i++) {
        struct plan_request one = *r;
        struct plan_case c;
        fix_choices(best, &one);
        axis->set(&one, axis, i);
        if (one.known && axis->numbers[i] > one.known->block_size && axis->set == set_block) break;
        if (!plan_request_resolve(&one, devices, &c, err) || !fit_answer(&c.question, a, err))
            return false;
        print_row(axis, i, a, out);
    }
    return true;
}

bool plan_table(const struct plan_request *r, const struct plan_devices *devices, const char *name,
                struct buf *out, struct error *err)
{
    const struct axis *axis = NULL;
    struct plan_case c;
    for (int i = 0; i < N_AXES; i++)
        if (strcmp(axes[i].name, name) == 0) axis = &axes[i];
    if (!axis)
        return error_set(err, ERR_INVALID, "table", "--table %.40s: must be batch, block, dtype, "
                         "recompute or moments", name);
    struct fit_answer *a = malloc(sizeof *a);
    bool ok = a || error_set(err, ERR_MEMORY, NULL, "no memory to plan in");
    ok = ok && plan_request_resolve(r, devices, &c, err) && fit_answer(&c.question, a, err);
    if (ok) {
        struct train_config best = a->training.config;
        ok = print_axis(r, devices, axis, &best, a, out, err);
    }
    free(a);
    return ok;
}
