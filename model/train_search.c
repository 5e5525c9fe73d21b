/* The search: see train_search.h. There are about a thousand combinations and each is planned in
 * microseconds, so that all of them are tried: what is fastest needs no argument. */
#include "model/train_search.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum {
    MAX_CANDIDATES = 48, /* of one key */
};
/* Plans whose times differ by less are as fast as each other: the estimate knows no better. */
#define SAME_TIME 1.02

/* The values of one key, ascending and each once. */
struct candidates { int64_t at[MAX_CANDIDATES]; int32_t n; };

static void add(struct candidates *c, int64_t value)
{
    int32_t i = 0;
    while (i < c->n && c->at[i] < value) i++;
    if ((i < c->n && c->at[i] == value) || c->n == MAX_CANDIDATES) return;
    memmove(&c->at[i + 1], &c->at[i], (size_t)(c->n - i) * sizeof *c->at);
    c->at[i] = value;
    c->n++;
}

static struct candidates only(int64_t value) { return (struct candidates){{value}, 1}; }

static struct candidates up_to(int64_t first, int64_t last)
{
    struct candidates c = {.n = 0};
    for (int64_t i = first; i <= last; i++) add(&c, i);
    return c;
}

/* Powers of two, and what halving the batch gives: those leave no micro-batch short. */
static struct candidates micro_batches(const struct train_config *c)
{
    struct candidates all = {.n = 0};
    /* The most that a trainer takes; one sequence always is. */
    int64_t most = max_i64(1, min_i64(c->batch_size, TRAINER_MAX_ROWS / c->sequence_length));
    for (int64_t n = 1; n <= most; n *= 2) add(&all, n);
    for (int64_t n = c->batch_size;; n /= 2) {
        if (n <= most) add(&all, n);
        if (n % 2 != 0) break;
    }
    return all;
}

/* Rows of logits for a micro-batch of n sequences: few, as many as gradients are summed over at a
 * time, many, and the trainer's own choice. */
static struct candidates loss_rows(const struct train_config *c, int64_t n, int64_t vocab_size)
{
    static const int64_t sizes[] = {32, 64, 128, 512, 2048};
    struct candidates all = {.n = 0};
    struct train_config own = *c;
    own.micro_batch_size = n;
    own.loss_rows = 0;
    train_config_resolve(&own, c->sequence_length, vocab_size);
    add(&all, own.loss_rows);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        add(&all, min_i64(sizes[i], n * c->sequence_length));
    return all;
}

unsigned train_search_freedom(const struct train_config *c)
{
    return (c->micro_batch_size == 0 ? FREE_MICRO_BATCH : 0u)
           | ((int)c->recompute == TRAIN_AUTO ? FREE_RECOMPUTE : 0u)
           | ((int)c->moments == TRAIN_AUTO ? FREE_MOMENTS : 0u)
           | ((int)c->master == TRAIN_AUTO ? FREE_MASTER : 0u)
           | ((int)c->gradients == TRAIN_AUTO ? FREE_GRADIENTS : 0u)
           | (c->loss_rows == 0 ? FREE_LOSS_ROWS : 0u);
}

/* ---- trying ---- */

struct search {
    const struct trainer_options *options;
    const struct device *device;
    const struct device_rates *rates;
    unsigned freedom;
    struct train_search *out;
    int32_t capacity;
    struct error *err;
};

static bool push(struct search *s, const struct train_config *c)
{
    struct train_search *out = s->out;
    if (out->n == s->capacity) {
        int32_t capacity = s->capacity ? 2 * s->capacity : 256;
        struct train_choice *grown = realloc(out->choices, (size_t)capacity * sizeof *grown);
        if (!grown)
            return error_set(s->err, ERR_MEMORY, NULL, "no memory for comparing training plans");
        out->choices = grown;
        s->capacity = capacity;
    }
    struct train_choice *choice = &out->choices[out->n++];
    struct trainer_options o = *s->options;
    o.config = *c;
    *choice = (struct train_choice){.config = *c};
    if (!trainer_plan(&o, s->device, NULL, NULL, &choice->memory, s->err)) return false;
    train_cost(&o, s->device, s->rates, choice);
    return true;
}

/* All formats for given sizes. f32 weights are their own masters; remainders are bf16's. */
static bool try_formats(struct search *s, struct train_config c)
{
    struct candidates gradients = {.n = 0};
    if (s->freedom & FREE_GRADIENTS) add(&gradients, DTYPE_BF16);
    add(&gradients, s->freedom & FREE_GRADIENTS ? DTYPE_F32 : (int64_t)c.gradients);
    bool masters = s->freedom & FREE_MASTER && c.dtype != DTYPE_F32;
    struct candidates moments = s->freedom & FREE_MOMENTS ? up_to(MOMENT_F32, MOMENT_Q8)
                                                          : only((int64_t)c.moments);
    enum master_format least = c.dtype == DTYPE_BF16 ? MASTER_REMAINDER : MASTER_F32;
    struct candidates master = masters ? up_to(MASTER_F32, least) : only((int64_t)c.master);
    for (int32_t i = 0; i < moments.n; i++) {
        for (int32_t k = 0; k < master.n; k++) {
            c.moments = (enum moment_format)moments.at[i];
            c.master = (enum master_format)master.at[k];
            for (int32_t g = 0; g < gradients.n; g++) {
                c.gradients = (enum dtype)gradients.at[g];
                if (!push(s, &c)) return false;
            }
        }
    }
    return true;
}

static bool try_all(struct search *s)
{
    struct train_config c = s->options->config;
    struct candidates micro = s->freedom & FREE_MICRO_BATCH ? micro_batches(&c)
                                                            : only(c.micro_batch_size);
    struct candidates levels = s->freedom & FREE_RECOMPUTE
                               ? up_to(RECOMPUTE_NONE, RECOMPUTE_BLOCK)
                               : only((int64_t)c.recompute);
    for (int32_t i = 0; i < micro.n; i++) {
        c.micro_batch_size = micro.at[i];
        struct candidates rows = s->freedom & FREE_LOSS_ROWS
            ? loss_rows(&c, micro.at[i], s->options->model.vocab_size)
            : only(min_i64(s->options->config.loss_rows, micro.at[i] * c.sequence_length));
        for (int32_t j = 0; j < rows.n; j++) {
            for (int32_t k = 0; k < levels.n; k++) {
                c.loss_rows = rows.at[j];
                c.recompute = (enum recompute)levels.at[k];
                if (!try_formats(s, c)) return false;
            }
        }
    }
    return true;
}

/* ---- ordering ---- */

static int compare(double a, double b) { return (a > b) - (a < b); }

/* Every key, so that the order does not depend on the sort. */
static int by_config(const struct train_config *a, const struct train_config *b)
{
    if (a->micro_batch_size != b->micro_batch_size)
        return a->micro_batch_size < b->micro_batch_size ? -1 : 1;
    if (a->loss_rows != b->loss_rows) return a->loss_rows < b->loss_rows ? -1 : 1;
    if (a->recompute != b->recompute) return a->recompute < b->recompute ? -1 : 1;
    if (a->moments != b->moments) return a->moments < b->moments ? -1 : 1;
    if (a->master != b->master) return a->master < b->master ? -1 : 1;
    return (a->gradients > b->gradients) - (a->gradients < b->gradients);
}

static int by_bytes(const void *x, const void *y)
{
    const struct train_choice *a = x, *b = y;
    if (a->memory.total_bytes != b->memory.total_bytes)
        return a->memory.total_bytes < b->memory.total_bytes ? -1 : 1;
    int order = compare(a->seconds, b->seconds);
    return order ? order : by_config(&a->config, &b->config);
}

static int by_time(const void *x, const void *y)
{
    const struct train_choice *a = x, *b = y;
    int order = compare(a->seconds, b->seconds);
    return order ? order : by_bytes(x, y);
}

static int by_loss(const void *x, const void *y)
{
    const struct train_choice *a = x, *b = y;
    return a->lossy != b->lossy ? (a->lossy < b->lossy ? -1 : 1) : by_bytes(x, y);
}

/* Those that fit by time; then, from the fastest on, groups of the same time are ordered anew. */
static void sort(struct train_search *s, int64_t budget)
{
    struct train_choice *c = s->choices;
    qsort(c, (size_t)s->n, sizeof *c, by_bytes);
    s->n_fit = 0;
    while (s->n_fit < s->n && (budget == 0 || c[s->n_fit].memory.total_bytes <= budget)) s->n_fit++;
    qsort(c, (size_t)s->n_fit, sizeof *c, by_time);
    for (int32_t i = 0, end; i < s->n_fit; i = end) {
        for (end = i + 1; end < s->n_fit && c[end].seconds <= c[i].seconds * SAME_TIME;) end++;
        qsort(c + i, (size_t)(end - i), sizeof *c, by_loss);
    }
}

bool train_search(const struct trainer_options *o, const struct device *d,
                  const struct device_rates *rates, unsigned freedom, int64_t budget,
                  struct train_search *out, struct error *err)
{
    struct search s = {o, d, rates, freedom, out, 0, err};
    *out = (struct train_search){0};
    if (!try_all(&s)) {
        train_search_free(out);
        return false;
    }
    sort(out, budget);
    return true;
}

void train_search_free(struct train_search *s)
{
    free(s->choices);
    *s = (struct train_search){0};
}

int32_t train_search_ladder(const struct train_search *s, const struct train_choice **out,
                            int32_t max)
{
    int32_t n = 0, smallest = 0;
    for (int32_t i = 0; i < s->n_fit; i++) {
        int64_t bytes = s->choices[i].memory.total_bytes;
        if (bytes < s->choices[smallest].memory.total_bytes) smallest = i;
        if (n < max && (n == 0 || bytes <= out[n - 1]->memory.total_bytes / 10 * 9))
            out[n++] = &s->choices[i];
    }
    if (n > 0 && n < max && out[n - 1] != &s->choices[smallest]
        && s->choices[smallest].memory.total_bytes < out[n - 1]->memory.total_bytes)
        out[n++] = &s->choices[smallest];
    return n;
}
