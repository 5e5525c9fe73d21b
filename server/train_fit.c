/* Choosing a plan and showing it: see train_fit.h. */
#include "server/train_fit.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

enum { MAX_ROWS = 12, NEAREST_PLANS = 6, PLAN_TEXT_BYTES = 160 };

static double mb(int64_t bytes) { return (double)bytes / 1e6; }

static double tokens_of(const struct train_config *c)
{
    return (double)(c->batch_size * c->grad_accum_steps * c->sequence_length);
}

/* The word of the key whose value lies at `at`. */
static const char *word_of(const struct train_config *c, const char *name)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++)
        if (strcmp(train_keys[i].name, name) == 0) return train_key_word(&train_keys[i], c);
    ASSERT(!"a training key");
    return "";
}

static bool same_plan(const struct train_config *a, const struct train_config *b)
{
    return !train_config_difference(a, b) && a->recompute == b->recompute;
}

/* "micro_batch_size 4, recompute none, ..." */
static void describe(const struct train_config *c, char out[PLAN_TEXT_BYTES])
{
    snprintf(out, PLAN_TEXT_BYTES, "micro_batch_size %lld, recompute %s, moments %s, master %s, "
             "gradients %s, loss_rows %lld", (long long)c->micro_batch_size,
             word_of(c, "recompute"), word_of(c, "moments"),
             c->dtype == DTYPE_F32 ? "none" : word_of(c, "master"), word_of(c, "gradients"),
             (long long)c->loss_rows);
}

/* ---- the table ---- */

static void print_header(FILE *to)
{
    fprintf(to, "  %5s  %-9s %-7s %-9s %-9s %5s  %9s %9s %9s %9s %9s %14s  %9s %9s\n", "micro",
            "", "", "", "", "loss", "weights,", "", "", "activat.,", "", "total", "seconds",
            "tokens");
    fprintf(to, "  %5s  %-9s %-7s %-9s %-9s %5s  %9s %9s %9s %9s %9s %14s  %9s %9s  %s\n", "batch",
            "recompute", "moments", "master", "gradients", "rows", "master MB", "grads MB",
            "optim. MB", "logits MB", "other MB", "MB", "a step", "a second", "beside the choice");
}

/* `chosen`: what the others are compared with. */
static void print_row(FILE *to, const struct train_choice *choice,
                      const struct train_choice *chosen)
{
    const struct train_config *c = &choice->config;
    const int64_t *m = choice->memory.component;
    int64_t weights = m[MEMORY_WEIGHTS] + m[MEMORY_MASTER];
    int64_t activations = m[MEMORY_ACTIVATIONS] + m[MEMORY_LOGITS];
    int64_t other = choice->memory.total_bytes - weights - activations - m[MEMORY_GRADIENTS]
                    - m[MEMORY_OPTIMIZER];
    char beside[64] = "";
    if (chosen && choice != chosen)
        snprintf(beside, sizeof beside, "%+.1f MB, time %+.1f %%",
                 mb(choice->memory.total_bytes - chosen->memory.total_bytes),
                 100 * (choice->seconds / chosen->seconds - 1));
    fprintf(to, "%c %5lld  %-9s %-7s %-9s %-9s %5lld  %9.1f %9.1f %9.1f %9.1f %9.1f %14lld  %9.4g "
            "%9.0f  %s\n", choice == chosen ? '*' : ' ', (long long)c->micro_batch_size,
            word_of(c, "recompute"), word_of(c, "moments"),
            c->dtype == DTYPE_F32 ? "-" : word_of(c, "master"), word_of(c, "gradients"),
            (long long)c->loss_rows, mb(weights), mb(m[MEMORY_GRADIENTS]), mb(m[MEMORY_OPTIMIZER]),
            mb(activations), mb(other), (long long)choice->memory.total_bytes, choice->seconds,
            tokens_of(c) / choice->seconds, beside);
}

static void print_basis(FILE *to, const struct train_fit *f, const struct device *d,
                        const struct train_config *c)
{
    fprintf(to, "%s, %s: %.1f GFLOP/s, %.1f GB/s (%s); memory budget %lld bytes%s\n", d->name,
            dtype_info(c->dtype)->name, f->rates.flops / 1e9, f->rates.bytes / 1e9,
            f->rates.source, (long long)f->budget,
            f->budget_given ? "" : " (80 % of what the machine leaves)");
}

/* The choice, then the way down: what takes less, and what that costs. */
static void explain(const struct train_fit *f, const struct device *d,
                    const struct train_search *s, const struct train_choice *chosen)
{
    const struct train_choice *ladder[MAX_ROWS];
    int32_t n = train_search_ladder(s, ladder, MAX_ROWS);
    print_basis(stdout, f, d, &chosen->config);
    print_header(stdout);
    print_row(stdout, chosen, chosen);
    for (int32_t i = 0; i < n; i++)
        if (!same_plan(&ladder[i]->config, &chosen->config)) print_row(stdout, ladder[i], chosen);
    printf("%d plans compared, %d fit\n", s->n, s->n_fit);
    fflush(stdout);
}

/* ---- what does not fit ---- */

/* The cheapest ways to go on: the end of the ladder of all plans, fastest first. */
static bool print_nearest(const struct train_fit *f, const struct device *d,
                          const struct trainer_options *o, struct error *err)
{
    const struct train_choice *ladder[64];
    struct train_search all;
    if (!train_search(o, d, &f->rates, f->freedom, 0, &all, err)) return false;
    int32_t n = train_search_ladder(&all, ladder, 64);
    int32_t first = n > NEAREST_PLANS ? n - NEAREST_PLANS : 0;
    print_basis(stderr, f, d, &o->config);
    fprintf(stderr, "the nearest plans, the fastest first; each fits a --memory-budget of its "
            "total bytes\n");
    print_header(stderr);
    for (int32_t i = first; i < n; i++) print_row(stderr, ladder[i], NULL);
    train_search_free(&all);
    return true;
}

/* `least`: the smallest plan there is. */
static bool refuse(const struct train_fit *f, const struct train_choice *least, struct error *err)
{
    const int64_t *c = least->memory.component, total = least->memory.total_bytes;
    return error_set(err, ERR_NO_FIT, "memory_budget",
                     "training needs %lld bytes at the least (weights and master %lld, gradients "
                     "%lld, optimizer %lld, activations and logits %lld, the rest %lld), which is "
                     "%lld over the memory budget of %lld%s",
                     (long long)total, (long long)(c[MEMORY_WEIGHTS] + c[MEMORY_MASTER]),
                     (long long)c[MEMORY_GRADIENTS], (long long)c[MEMORY_OPTIMIZER],
                     (long long)(c[MEMORY_ACTIVATIONS] + c[MEMORY_LOGITS]),
                     (long long)(total - c[MEMORY_WEIGHTS] - c[MEMORY_MASTER] - c[MEMORY_GRADIENTS]
                                 - c[MEMORY_OPTIMIZER] - c[MEMORY_ACTIVATIONS] - c[MEMORY_LOGITS]),
                     (long long)(total - f->budget), (long long)f->budget,
                     f->freedom == FREE_ALL ? "" : "; what the config or a flag fixes of "
                     "micro_batch_size, loss_rows, recompute, moments, master and gradients may be "
                     "left out, to be chosen");
}

/* ---- choosing ---- */

static void log_choice(const struct train_choice *c)
{
    char text[PLAN_TEXT_BYTES];
    describe(&c->config, text);
    log_info("plan: %s: about %.3g s a step, %.0f tokens/s", text, c->seconds,
             tokens_of(&c->config) / c->seconds);
}

static bool choose(const struct train_fit *f, const struct device *d, struct trainer_options *o,
                   const struct train_choice *base, struct error *err)
{
    struct train_search s;
    bool keep = !f->budget_given && base->memory.total_bytes <= f->budget;
    if (!train_search(o, d, &f->rates, f->freedom, f->budget, &s, err)) return false;
    if (!keep && s.n_fit == 0) {
        (void)(print_nearest(f, d, o, err) && refuse(f, &s.choices[0], err));
        train_search_free(&s);
        return false;
    }
    const struct train_choice *chosen = keep ? base : &s.choices[0];
    o->config = chosen->config;
    if (f->explain) explain(f, d, &s, chosen);
    log_choice(chosen);
    train_search_free(&s);
    return true;
}

bool train_fit(struct train_fit *f, struct device *d, struct trainer_options *o, struct error *err)
{
    struct train_choice base = {.config = o->config};
    if (!trainer_plan(o, d, NULL, NULL, &base.memory, err)
        || !device_rates_measure(d, o->config.dtype, &f->rates, err))
        return false;
    train_cost(o, d, &f->rates, &base);
    bool fits = base.memory.total_bytes <= f->budget;
    if (f->explain || !fits || (f->budget_given && f->freedom)) return choose(f, d, o, &base, err);
    log_choice(&base);
    return true;
}
