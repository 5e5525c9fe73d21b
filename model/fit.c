/* Does a model fit, and how? See fit.h. */
#include "model/fit.h"

#include "base/checked.h"
#include "model/gpt.h"

enum {
    LEAST_ROWS = 4,         /* of a generating step: a prompt goes in by so many tokens */
    LEAST_SEQUENCE = 16,    /* no shorter sequence is proposed */
    MAX_SEQUENCES = 65536,  /* of a micro-batch: batch_size's own limit */
};

void fit_serving_init(struct engine_options *o)
{
    engine_options_init(o);
    o->max_seqs = 1;
    o->max_batch_tokens = LEAST_ROWS;
}

int64_t fit_step_tokens(const struct train_config *c)
{
    return c->batch_size * c->grad_accum_steps * c->sequence_length;
}

static bool within(const struct fit_question *q, const struct memory_plan *m)
{
    return q->budget == 0 || m->total_bytes <= q->budget;
}

static int64_t shortfall(const struct fit_question *q, const struct memory_plan *m)
{
    return within(q, m) ? 0 : m->total_bytes - q->budget;
}

int64_t fit_shortfall_training(const struct fit_question *q, const struct fit_answer *a)
{
    return shortfall(q, &a->training.memory);
}

int64_t fit_shortfall_generation(const struct fit_question *q, const struct fit_answer *a)
{
    return shortfall(q, &a->generation.memory);
}

/* ---- training -------------------------------------------------------------------------------- */

static struct trainer_options trainer_options(const struct fit_question *q)
{
    struct trainer_options o = {.config = q->training, .model = q->model};
    train_config_resolve(&o.config, q->model.block_size, q->model.vocab_size);
    return o;
}

static bool search(const struct fit_question *q, unsigned freedom, struct train_search *found,
                   struct error *err)
{
    struct trainer_options o = trainer_options(q);
    return train_search(&o, q->device, &q->rates, freedom, q->budget, found, err);
}

static const struct train_choice *smallest(const struct train_search *s)
{
    const struct train_choice *least = &s->choices[0];
    for (int32_t i = 1; i < s->n; i++)
        if (s->choices[i].memory.total_bytes < least->memory.total_bytes) least = &s->choices[i];
    return least;
}

/* The way down from the fastest that fits; without it, where it is the answer already. Where
 * there are more steps than room the last is the smallest all the same. */
static void add_alternatives(const struct train_search *s, bool skip_first, struct fit_answer *a)
{
    const struct train_choice *ladder[FIT_MAX_ALTERNATIVES + 1];
    int32_t n = train_search_ladder(s, ladder, FIT_MAX_ALTERNATIVES + skip_first);
    if (n == FIT_MAX_ALTERNATIVES + skip_first) {
        const struct train_choice *least = smallest(s);
        if (least->memory.total_bytes < ladder[n - 1]->memory.total_bytes) ladder[n - 1] = least;
    }
    for (int32_t i = skip_first; i < n; i++) a->alternatives[a->n_alternatives++] = *ladder[i];
}

/* The longest sequences, by halves, that fit at all. */
static bool shorten(const struct fit_question *q, struct fit_answer *a, struct error *err)
{
    struct fit_question shorter = *q;
    int64_t length = a->training.config.sequence_length / 2;
    for (; length >= LEAST_SEQUENCE && a->n_alternatives == 0; length /= 2) {
        struct train_search found;
        shorter.training.sequence_length = length;
        if (!search(&shorter, FREE_ALL, &found, err)) return false;
        add_alternatives(&found, false, a);
        train_search_free(&found);
    }
    return true;
}

/* What a run takes however short its sequences are. */
static int64_t resident(const struct memory_plan *m)
{
    const int64_t *c = m->component;
    return c[MEMORY_WEIGHTS] + c[MEMORY_MASTER] + c[MEMORY_GRADIENTS] + c[MEMORY_OPTIMIZER];
}

/* Nothing of `found` fits: what would, with less said, and then with shorter sequences. */
static bool find_nearest(const struct fit_question *q, const struct train_search *found,
                         struct fit_answer *a, struct error *err)
{
    int64_t least = resident(&smallest(found)->memory);
    if (q->freedom != FREE_ALL) {
        struct train_search all;
        if (!search(q, FREE_ALL, &all, err)) return false;
        add_alternatives(&all, false, a);
        least = resident(&smallest(&all)->memory);
        train_search_free(&all);
    }
    return a->n_alternatives > 0 || least > q->budget || shorten(q, a, err);
}

static bool fits_as(const struct fit_question *q, const struct trainer_options *o)
{
    struct memory_plan m;
    struct error ignored;
    return trainer_plan(o, q->device, NULL, NULL, &m, &ignored) && within(q, &m);
}

/* How far the smallest plan can be stretched, in sequences at a time and in their length. */
static void stretch(const struct fit_question *q, const struct train_config *least,
                    struct fit_answer *a)
{
    struct trainer_options o = {.config = *least, .model = q->model};
    int64_t good = 0, bad = MAX_SEQUENCES + 1;
    while (bad - good > 1) {
        int64_t middle = good + (bad - good) / 2;
        o.config.micro_batch_size = middle;
        if (fits_as(q, &o)) good = middle;
        else bad = middle;
    }
    a->max_micro_batch_size = good;
    o.config.micro_batch_size = 1;
    good = 0;
    bad = (q->longer_context ? CONFIG_MAX_CONTEXT : q->model.block_size) + 1;
    while (bad - good > 1) {
        int64_t middle = good + (bad - good) / 2;
        o.config.sequence_length = middle;
        o.config.loss_rows = min_i64(least->loss_rows, middle);
        o.model.block_size = max_i64(q->longer_context ? 0 : q->model.block_size, middle);
        if (fits_as(q, &o)) good = middle;
        else bad = middle;
    }
    a->max_sequence_length = good;
}

static bool answer_training(const struct fit_question *q, struct fit_answer *a, struct error *err)
{
    struct train_search found;
    if (!search(q, q->freedom, &found, err)) return false;
    a->training = found.choices[0];
    a->training_fits = found.n_fit > 0;
    if (a->training_fits) add_alternatives(&found, true, a);
    stretch(q, &smallest(&found)->config, a);
    bool ok = a->training_fits || find_nearest(q, &found, a, err);
    train_search_free(&found);
    return ok;
}

/* ---- generation ------------------------------------------------------------------------------ */

static bool answer_generation(const struct fit_question *q, struct fit_answer *a,
                              struct error *err)
{
    a->serving = q->serving;
    if (a->serving.max_context == 0) a->serving.max_context = q->model.block_size;
    if (!serve_plan_full(&q->model, &a->serving, q->device, NULL, NULL, &a->generation, err))
        return false;
    a->generation_fits = within(q, &a->generation.memory);
    return serve_search(&q->model, &a->serving, q->device, q->budget, &a->limits, err);
}

enum dtype fit_serving_dtype(const struct fit_question *q)
{
    const struct engine_options *o = &q->serving;
    bool kept = o->formats && gpt_keeps_formats(q->device);
    return kept ? weight_formats_main(o->formats, &q->model) : o->dtype;
}

void fit_half(struct fit_question *q)
{
    const struct device_ops *ops = q->device->ops;
    if (ops->computes_in(q->device, DTYPE_BF16)) return;
    if (q->training.dtype == DTYPE_BF16) q->training.dtype = DTYPE_F16;
    if (q->serving.dtype == DTYPE_BF16) q->serving.dtype = DTYPE_F16;
}

bool fit_answer(const struct fit_question *q, struct fit_answer *out, struct error *err)
{
    *out = (struct fit_answer){.parameters = gpt_config_parameters(&q->model)};
    return answer_training(q, out, err) && answer_generation(q, out, err);
}

/* ---- cards ----------------------------------------------------------------------------------- */

/* The first of the search's choices that a card holds. */
static void place(const struct fit_question *q, const struct train_search *found,
                  const struct memory_plan *generation, struct fit_card *card)
{
    int64_t budget = gpu_budget(card->gpu);
    struct device_rates rates = gpu_rates(card->gpu);
    struct trainer_options o = trainer_options(q);
    card->generates = generation->total_bytes <= budget;
    for (int32_t i = 0; i < found->n && !card->trains; i++) {
        if (found->choices[i].memory.total_bytes > budget) continue;
        card->trains = true;
        card->plan = found->choices[i];
        o.config = card->plan.config;
        train_cost(&o, q->device, &rates, &card->plan);
    }
}

/* Devices of one class take the same bytes: one search serves them all. */
bool fit_cards(const struct fit_question *q, fit_sizes sizes, struct fit_card *cards,
               struct error *err)
{
    for (size_t i = 0; i < n_gpus; i++) cards[i] = (struct fit_card){.gpu = &gpus[i]};
    for (size_t i = 0; i < n_gpus; i++) {
        const struct device *class = sizes(gpus[i].sm);
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++) seen = sizes(gpus[j].sm) == class;
        if (seen) continue;
        struct fit_question asked = *q;
        struct train_search found;
        struct engine_need need;
        asked.device = class;
        asked.training = q->card_training;
        asked.serving.kv_dtype = KV_AUTO; /* what was asked for is about the device in question */
        fit_half(&asked);
        asked.budget = 0;
        asked.rates = gpu_rates(&gpus[i]);
        if (!serve_plan_full(&q->model, &asked.serving, class, NULL, NULL, &need, err)
            || !search(&asked, q->freedom, &found, err))
            return false;
        for (size_t j = i; j < n_gpus; j++)
            if (sizes(gpus[j].sm) == class) place(&asked, &found, &need.memory, &cards[j]);
        train_search_free(&found);
    }
    return true;
}
