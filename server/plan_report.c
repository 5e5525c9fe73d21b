/* A plan for people: see plan_report.h. */
#include "server/plan_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "server/format.h"

enum { NAME_WIDTH = 12, NUMBER_WIDTH = 18, MOST_CHOICES = 12, MOST_MISSES = 4, LINE = 74,
       CARD_WIDTH = 18 };

static const char *word(const struct train_config *c, const char *name)
{
    const struct train_key *key = train_keys;
    while (strcmp(key->name, name) != 0) key++;
    return train_key_word(key, c);
}

/* "bf16, micro-batches of 8 x 256 tokens, recompute block, moments q8, ..." */
static void print_options(const struct train_config *c, struct buf *out)
{
    buf_printf(out, "%s, %" PRId64 " x %" PRId64 " tokens at a time, recompute %s, moments %s, ",
               word(c, "dtype"), c->micro_batch_size, c->sequence_length, word(c, "recompute"),
               word(c, "moments"));
    if (c->dtype != DTYPE_F32) buf_printf(out, "master %s, ", word(c, "master"));
    buf_printf(out, "gradients %s, logits of %" PRId64 " rows", word(c, "gradients"),
               c->loss_rows);
}

/* ---- the two plans --------------------------------------------------------------------------- */

static void print_components(const struct memory_plan *training,
                             const struct memory_plan *generation, struct buf *out)
{
    buf_printf(out, "%-*s%*s%*s\n", NAME_WIDTH, "bytes", NUMBER_WIDTH, "training", NUMBER_WIDTH,
               "generation");
    for (int i = 0; i < N_MEMORY_COMPONENTS; i++) {
        int64_t t = training->component[i], g = generation->component[i];
        if (t == 0 && g == 0) continue;
        buf_printf(out, "%-*s", NAME_WIDTH, memory_component_name((enum memory_component)i));
        format_grouped_right(out, t, NUMBER_WIDTH);
        format_grouped_right(out, g, NUMBER_WIDTH);
        buf_putc(out, '\n');
    }
    buf_printf(out, "%-*s", NAME_WIDTH, "total");
    format_grouped_right(out, training->total_bytes, NUMBER_WIDTH);
    format_grouped_right(out, generation->total_bytes, NUMBER_WIDTH);
    buf_printf(out, "\n%-*s%*.1f : 1\n\n", NAME_WIDTH, "ratio", NUMBER_WIDTH + 4,
               (double)training->total_bytes / (double)generation->total_bytes);
}

static void print_estimate(const struct train_choice *choice, const char *source, struct buf *out)
{
    buf_printf(out, "about %.3g s a step of ", choice->seconds);
    format_grouped(out, fit_step_tokens(&choice->config));
    buf_puts(out, " tokens, ");
    format_grouped(out, (int64_t)((double)fit_step_tokens(&choice->config) / choice->seconds));
    buf_printf(out, " tokens/s (estimate; %s)\n", source);
}

static void print_basis(const struct plan_case *c, const struct fit_answer *a, struct buf *out)
{
    buf_printf(out, "%-*s", NAME_WIDTH, "training");
    print_options(&a->training.config, out);
    buf_printf(out, ";\n%-*sbatch %" PRId64 " x %" PRId64 "; the text to learn from comes on "
               "top\n%-*s", NAME_WIDTH, "", a->training.config.batch_size,
               a->training.config.grad_accum_steps, NAME_WIDTH, "");
    print_estimate(&a->training, c->question.rates.source, out);
    buf_printf(out,
               "%-*s%s, keys and values %s, %d full sequence%s of %" PRId64
               " tokens, %d tokens a step\n",
               NAME_WIDTH, "generation", dtype_info(fit_serving_dtype(&c->question))->name,
               dtype_info(a->generation.kv_dtype)->name, a->serving.max_seqs,
               a->serving.max_seqs == 1 ? "" : "s", a->serving.max_context,
               a->serving.max_batch_tokens);
    buf_printf(out, "%-*sabout ", NAME_WIDTH, "device");
    format_size(out, c->overhead_bytes);
    buf_printf(out, " on top (%s)\n", c->overhead_source);
}

/* ---- does it fit ----------------------------------------------------------------------------- */

static void print_budget(const struct plan_case *c, struct buf *out)
{
    buf_printf(out, "%-*s", NAME_WIDTH, "budget");
    format_bytes(out, c->question.budget);
    if (c->has_gpu && c->question.budget == gpu_budget(&c->gpu)) {
        buf_printf(out, ": %s has ", c->gpu.name);
        format_size(out, c->gpu.memory_bytes);
        buf_puts(out, ", less the above and a margin of ");
        format_size(out, gpu_margin_bytes(&c->gpu));
    }
    buf_putc(out, '\n');
}

static void print_verdict(const char *what, int64_t total, int64_t missing, int64_t budget,
                          struct buf *out)
{
    buf_printf(out, "%-*s%s ", NAME_WIDTH, "", what);
    if (missing > 0) {
        buf_puts(out, "does not fit: ");
        format_bytes(out, missing);
        buf_puts(out, " too many\n");
    } else {
        buf_puts(out, "fits, ");
        format_bytes(out, budget - total);
        buf_puts(out, " to spare\n");
    }
}

static void print_largest(const struct plan_case *c, const struct fit_answer *a, struct buf *out)
{
    buf_printf(out, "%-*straining: %" PRId64 " sequences at a time, or one of ", NAME_WIDTH,
               "at most", a->max_micro_batch_size);
    format_grouped(out, a->max_sequence_length);
    buf_printf(out, " tokens (in the smallest formats)\n%-*sgeneration: a context of ", NAME_WIDTH,
               "");
    format_grouped(out, a->limits.max_context);
    buf_printf(out, " tokens%s, %d full sequences at once, or ",
               a->limits.max_context == c->question.model.block_size ? " (the model's own)" : "",
               a->limits.max_seqs);
    format_grouped(out, a->limits.max_batch_tokens);
    buf_puts(out, " tokens a step\n");
}

static void print_fit(const struct plan_case *c, const struct fit_answer *a, struct buf *out)
{
    int64_t budget = c->question.budget;
    if (budget == 0) return;
    print_budget(c, out);
    print_verdict("training", a->training.memory.total_bytes,
                  fit_shortfall_training(&c->question, a), budget, out);
    print_verdict("generation", a->generation.memory.total_bytes,
                  fit_shortfall_generation(&c->question, a), budget, out);
    print_largest(c, a, out);
}

static void print_alternatives(const struct fit_answer *a, struct buf *out)
{
    if (a->n_alternatives == 0) return;
    buf_printf(out, "\n%s\n", a->training_fits ? "smaller plans for training, by their time"
                                               : "the nearest plans for training that fit, by "
                                                 "their time");
    for (int32_t i = 0; i < a->n_alternatives; i++) {
        const struct train_choice *choice = &a->alternatives[i];
        format_grouped_right(out, choice->memory.total_bytes, NUMBER_WIDTH);
        buf_printf(out, "  time x %.2f  ", choice->seconds / a->training.seconds);
        print_options(&choice->config, out);
        buf_putc(out, '\n');
    }
}

void plan_report_shortfall(const struct plan_case *c, const struct fit_answer *a, struct buf *out)
{
    int64_t training = fit_shortfall_training(&c->question, a);
    int64_t generation = fit_shortfall_generation(&c->question, a);
    const struct memory_plan *m = training > 0 && c->purpose != PLAN_GENERATION
                                      ? &a->training.memory : &a->generation.memory;
    buf_printf(out, "%s: %s takes %" PRId64 " bytes, %" PRId64 " over the budget of %" PRId64,
               c->name, m == &a->training.memory ? "training" : "generating", m->total_bytes,
               m == &a->training.memory ? training : generation, c->question.budget);
    if (m == &a->training.memory && a->n_alternatives > 0) {
        buf_puts(out, "; what would fit: ");
        print_options(&a->alternatives[0].config, out);
    }
}

/* ---- cards ----------------------------------------------------------------------------------- */

enum card_class { CARD_TRAINS, CARD_GENERATES, CARD_NEITHER, N_CARD_CLASSES };

static enum card_class class_of(const struct fit_card *c)
{
    return c->trains ? CARD_TRAINS : c->generates ? CARD_GENERATES : CARD_NEITHER;
}

/* Names with commas, broken where a line is full. */
static void print_names(const struct fit_card *cards, enum card_class class, struct buf *out)
{
    int column = 0;
    for (size_t i = 0; i < n_gpus; i++) {
        if (class_of(&cards[i]) != class) continue;
        int n = (int)strlen(cards[i].gpu->name) + 2;
        if (column + n > LINE) {
            buf_printf(out, ",\n%*s", CARD_WIDTH, "");
            column = 0;
        } else if (column > 0) {
            buf_puts(out, ", ");
        }
        buf_puts(out, cards[i].gpu->name);
        column += n;
    }
    buf_putc(out, '\n');
}

/* The largest class has the rest: it need not be read out. */
static void print_cards(const struct fit_card *cards, struct buf *out)
{
    static const char *const labels[N_CARD_CLASSES] = {"train it", "only generate", "neither"};
    int n[N_CARD_CLASSES] = {0}, largest = 0;
    for (size_t i = 0; i < n_gpus; i++) n[class_of(&cards[i])]++;
    for (int i = 1; i < N_CARD_CLASSES; i++)
        if (n[i] > n[largest]) largest = i;
    buf_printf(out, "\ncards, of the %zu that gptd knows\n", n_gpus);
    for (int i = 0; i < N_CARD_CLASSES; i++) {
        if (n[i] == 0) continue;
        buf_printf(out, "  %-*s", CARD_WIDTH - 2, labels[i]);
        if (i != largest) print_names(cards, (enum card_class)i, out);
        else if (n[i] == (int)n_gpus) buf_puts(out, "all of them\n");
        else buf_printf(out, "the other %d\n", n[i]);
    }
}

void plan_report(const struct plan_case *c, const struct fit_answer *a,
                 const struct fit_card *cards, struct buf *out)
{
    buf_printf(out, "%s: ", c->name);
    format_grouped(out, a->parameters);
    buf_printf(out, " parameters, on %s%s%s\n", c->on_cuda ? "cuda" : "the CPU",
               c->has_gpu ? ": " : "", c->has_gpu ? c->gpu.name : "");
    if (c->assumed_vocab)
        buf_printf(out, "(assumed: a vocabulary of %d characters; --vocab-size says another)\n",
                   PLAN_ASSUMED_VOCAB);
    buf_putc(out, '\n');
    print_components(&a->training.memory, &a->generation.memory, out);
    print_basis(c, a, out);
    print_fit(c, a, out);
    print_alternatives(a, out);
    if (cards) print_cards(cards, out);
}

/* ---- pieces ---------------------------------------------------------------------------------- */

struct pieces {
    struct plan_item *at;
    size_t n, capacity;
    size_t device; /* where the second arena's begin */
    bool failed;
};

/* The host's arena comes first and shares nothing, so a second piece at offset 0 begins the
 * device's. */
static void collect(void *ctx, const struct plan_item *item)
{
    struct pieces *p = ctx;
    if (p->n == p->capacity && !p->failed) {
        size_t capacity = p->capacity ? 2 * p->capacity : 512;
        struct plan_item *more = realloc(p->at, capacity * sizeof *more);
        p->failed = !more;
        if (more) {
            p->at = more;
            p->capacity = capacity;
        }
    }
    if (p->failed) return;
    if (p->n > 0 && p->device == 0 && item->offset == 0) p->device = p->n;
    p->at[p->n++] = *item;
}

/* Another piece of the same arena that lies over the same bytes, or NULL. */
static const struct plan_item *shares(const struct pieces *p, size_t i)
{
    size_t from = i < p->device ? 0 : p->device, to = i < p->device ? p->device : p->n;
    const struct plan_item *a = &p->at[i];
    for (size_t j = from; j < to; j++) {
        const struct plan_item *b = &p->at[j];
        if (j != i && a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes)
            return b;
    }
    return NULL;
}

static void print_pieces(const char *what, const struct pieces *p, struct buf *out)
{
    buf_printf(out, "%s\n%-7s%-20s%6s  %-12s%-19s%18s%18s  %s\n", what, "arena", "piece", "layer",
               "component", "in use", "offset", "bytes", "shares bytes with");
    for (size_t i = 0; i < p->n; i++) {
        const struct plan_item *item = &p->at[i], *other = shares(p, i);
        char layer[16] = "";
        if (item->layer >= 0) snprintf(layer, sizeof layer, "%d", item->layer);
        buf_printf(out, "%-7s%-20s%6s  %-12s%-19s%18" PRId64 "%18" PRId64 "%s%s\n",
                   i < p->device ? "host" : "device", item->name, layer,
                   memory_component_name(item->component), plan_life_name(item->life),
                   item->offset, item->bytes, other ? "  " : "", other ? other->name : "");
    }
}

bool plan_report_pieces(const struct plan_case *c, const struct fit_answer *a, struct buf *out,
                        struct error *err)
{
    const struct fit_question *q = &c->question;
    struct trainer_options o = {.config = a->training.config, .model = q->model};
    struct memory_plan ignored;
    struct engine_need need;
    struct pieces training = {0}, generation = {0};
    bool ok = trainer_plan(&o, q->device, collect, &training, &ignored, err)
              && serve_plan_full(&q->model, &a->serving, q->device, collect, &generation, &need,
                                 err);
    if (ok && (training.failed || generation.failed))
        ok = error_set(err, ERR_MEMORY, NULL, "no memory for the list of pieces");
    if (ok) {
        print_pieces("training", &training, out);
        buf_putc(out, '\n');
        print_pieces("generation", &generation, out);
    }
    free(training.at);
    free(generation.at);
    return ok;
}

/* ---- the search ------------------------------------------------------------------------------ */

bool plan_report_choices(const struct plan_case *c, struct buf *out, struct error *err)
{
    const struct fit_question *q = &c->question;
    struct trainer_options o = {.config = q->training, .model = q->model};
    struct train_search found;
    train_config_resolve(&o.config, q->model.block_size, q->model.vocab_size);
    if (!train_search(&o, q->device, &q->rates, q->freedom, q->budget, &found, err)) return false;
    buf_printf(out, "\n%d of %d plans fit; by their time (%.3g FLOP/s, %.3g bytes/s: %s)\n",
               found.n_fit, found.n, q->rates.flops, q->rates.bytes, q->rates.source);
    int32_t last = found.n_fit > 0 ? min_i64(found.n_fit, MOST_CHOICES)
                                   : min_i64(found.n, MOST_MISSES);
    for (int32_t i = 0; i < last; i++) {
        const struct train_choice *choice = &found.choices[i];
        format_grouped_right(out, choice->memory.total_bytes, NUMBER_WIDTH);
        buf_printf(out, "  %8.4g s  %8.3g FLOP  %8.3g bytes moved  ", choice->seconds,
                   choice->flops, choice->bytes);
        print_options(&choice->config, out);
        buf_puts(out, i < found.n_fit ? "\n" : " (does not fit)\n");
    }
    train_search_free(&found);
    return true;
}
