/* Sampling at every instruction set against the contract (model/sampler.h) written down in the
 * plainest way: sort everything, sum in double. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"
#include "tests/cpu/cpu_util.h"

static void open_at(struct cpu_fixture *f, int isa, int32_t threads, int64_t vocab)
{
    struct workspace_shape plan = {.max_rows = 1, .max_logit_rows = 64, .n_embd = 1, .n_ff = 1,
                                   .n_head = 1, .n_kv_head = 1, .head_dim = 1, .vocab_size = vocab};
    cpu_fixture_open(f, (enum cpu_isa)isa, threads, &plan);
}

static struct sample_params plain_params(void)
{
    return (struct sample_params){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static struct sample_out sample_row_at(struct cpu_fixture *f, const float *logits, int64_t vocab,
                                       const struct sample_row *row)
{
    struct sample_out out;
    sample_rows(f->d, (struct tensor){(void *)logits, DTYPE_F32, 1, vocab}, row, &out);
    return out;
}

/* The plain way. */
struct entry { double value; int32_t id; };

static int best_first(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
    return ((const struct entry *)a)->id - ((const struct entry *)b)->id;
}

static double plain_logit(float x) { return isnan(x) ? -INFINITY : x == INFINITY ? FLT_MAX : x; }

static void plain_adjust(double *y, const struct sample_row *row, int64_t vocab)
{
    const struct sample_params *p = row->params;
    for (int64_t id = 0; id < vocab; id++) {
        int32_t seen = 0, count = 0;
        for (int32_t i = 0; i < row->n_history; i++) {
            seen += row->history[i] == id;
            count += row->history[i] == id && i >= row->n_prompt;
        }
        if (seen) y[id] = y[id] > 0 ? y[id] / p->repetition_penalty : y[id] * p->repetition_penalty;
        if (count) y[id] -= p->presence_penalty + count * p->frequency_penalty;
        for (int32_t i = 0; i < p->n_bias; i++)
            if (p->bias[i].id == id) y[id] += p->bias[i].bias;
        for (int32_t i = 0; row->ban_stops && i < row->n_stop_ids; i++)
            if (row->stop_ids[i] == id) y[id] = -INFINITY;
    }
}

/* What the contract leaves, in order of ids, with probabilities. `margin` is how near top_p's sum
 * came to its target: a hair decides there, and float may decide otherwise. */
static int64_t plain_kept(const float *logits, int64_t vocab, const struct sample_row *row,
                          struct entry *kept, double *margin)
{
    const struct sample_params *p = row->params;
    double *y = malloc((size_t)vocab * sizeof *y), sum = 0;
    for (int64_t i = 0; i < vocab; i++) y[i] = plain_logit(logits[i]);
    plain_adjust(y, row, vocab);
    int64_t n = 0;
    for (int64_t i = 0; i < vocab; i++)
        if (y[i] > -INFINITY) kept[n++] = (struct entry){y[i], (int32_t)i};
    free(y);
    qsort(kept, (size_t)n, sizeof *kept, best_first);
    if (p->top_k > 0 && n > p->top_k) n = p->top_k;
    double max = kept[0].value;
    for (int64_t i = 0; i < n; i++)
        sum += kept[i].value = exp((kept[i].value - max) / p->temperature);
    int64_t last = n;
    for (last = 0; last < n && kept[last].value >= p->min_p; last++) {}
    *margin = 1;
    double reached = 0;
    for (n = 0; n < last && (p->top_p >= 1 || reached < p->top_p * sum); n++) {
        reached += kept[n].value;
        *margin = fmin(*margin, fabs(reached / sum - p->top_p) + (p->top_p >= 1));
    }
    qsort(kept, (size_t)n, sizeof *kept, by_id);
    return n;
}

/* Checks the drawn id. Returns false where float and double may rightly differ. */
static bool check_draw(struct cpu_fixture *f, const float *logits, int64_t vocab,
                       const struct sample_row *row)
{
    struct entry *kept = malloc((size_t)vocab * sizeof *kept);
    double margin, sum = 0, reached = 0, nearest = 1;
    int64_t n = plain_kept(logits, vocab, row, kept, &margin), want = -1;
    double u = sample_uniform(row->params->seed, row->choice, row->n_history);
    for (int64_t i = 0; i < n; i++) sum += kept[i].value;
    for (int64_t i = 0; i < n; i++) {
        reached += kept[i].value;
        nearest = fmin(nearest, fabs(reached / sum - u));
        if (want < 0 && reached > u * sum) want = kept[i].id;
    }
    free(kept);
    struct sample_out out = sample_row_at(f, logits, vocab, row);
    if (margin < 1e-5 || nearest < 1e-5) return false;
    if (out.id != want)
        fail_msg("%s: V %lld, u %.7f: drew %d, want %lld", f->d->ops->description(f->d),
                 (long long)vocab, u, out.id, (long long)want);
    return true;
}

static struct sample_params random_params(struct cpu_rng *rng, int64_t vocab)
{
    static const float temperatures[] = {1, 0.7f, 1.5f, 0.1f, 3};
    static const float top_ps[] = {1, 0.95f, 0.5f, 0.01f, 0.999f}, min_ps[] = {0, 0, 0.05f, 0.5f};
    const int32_t top_ks[] = {0, 0, 1, 2, 50, 1024, 1025, (int32_t)vocab - 1, (int32_t)vocab,
                              (int32_t)vocab + 5};
    return (struct sample_params){.temperature = temperatures[cpu_rng_below(rng, 5)],
                                  .top_k = top_ks[cpu_rng_below(rng, 10)],
                                  .top_p = top_ps[cpu_rng_below(rng, 5)],
                                  .min_p = min_ps[cpu_rng_below(rng, 4)],
                                  .repetition_penalty = cpu_rng_below(rng, 2) ? 1 : 1.3f,
                                  .presence_penalty = cpu_rng_below(rng, 2) ? 0 : 0.5f,
                                  .frequency_penalty = cpu_rng_below(rng, 2) ? 0 : -0.25f,
                                  .seed = cpu_rng_next(rng)};
}

static void draws_follow_the_contract(void **state)
{
    static const int64_t vocabs[] = {1, 2, 15, 16, 17, 33, 300, 1500, 2500};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        int checked = 0, all = 0;
        open_at(&f, isa, 2, 2500);
        for (int v = 0; v < 9; v++) {
            struct cpu_rng rng = {(uint64_t)v + 40};
            int64_t vocab = vocabs[v];
            float *logits = malloc((size_t)vocab * 4);
            for (int i = 0; i < 60; i++, all++) {
                struct sample_params p = random_params(&rng, vocab);
                bool as_is = i % 3 == 0; /* the row's own softmax, cut or not */
                if (as_is) p.temperature = p.repetition_penalty = 1;
                if (as_is) p.presence_penalty = p.frequency_penalty = 0;
                /* Coarse values, so that there are ties; one in four rows is flat. */
                for (int64_t j = 0; j < vocab; j++)
                    logits[j] = roundf(cpu_rng_float(&rng) * 40) / (i % 4 ? 4 : 4000);
                int32_t history[20], stops[2] = {0, (int32_t)vocab - 1};
                for (int j = 0; j < 20; j++) history[j] = cpu_rng_below(&rng, (int32_t)vocab);
                struct token_bias bias[] = {{(int32_t)vocab / 2, 3}, {0, -100}};
                p.bias = bias;
                p.n_bias = vocab > 2 && !as_is ? cpu_rng_below(&rng, 3) : 0;
                struct sample_row row = {.params = &p, .history = history, .n_prompt = 12,
                                         .n_history = 20, .choice = i % 3, .forced = -1,
                                         .ban_stops = i % 5 == 0 && vocab > 2, .stop_ids = stops,
                                         .n_stop_ids = 2};
                checked += check_draw(&f, logits, vocab, &row);
            }
            free(logits);
        }
        assert_true(checked > all * 8 / 10);
        cpu_fixture_close(&f);
    }
}

/* 40,000 positions draw from a few dozen ids: Pearson's statistic within five deviations of its
 * mean. */
static void draws_have_their_frequencies(void **state)
{
    enum { VOCAB = 40, DRAWS = 40000 };
    for (int kind = 0; kind < 3; kind++) {
        struct cpu_fixture f;
        open_at(&f, CPU_ISA_BEST, 1, VOCAB);
        struct cpu_rng rng = {3};
        float logits[VOCAB];
        for (int i = 0; i < VOCAB; i++) logits[i] = cpu_rng_float(&rng) * 2;
        struct sample_params p = plain_params();
        p.seed = 99;
        if (kind == 1) p.top_k = 20, p.temperature = 0.8f;
        if (kind == 2) p.top_p = 0.9f;
        struct sample_row row = {.params = &p, .forced = -1};
        struct entry kept[VOCAB];
        double margin, sum = 0, statistic = 0;
        int64_t n = plain_kept(logits, VOCAB, &row, kept, &margin), counts[VOCAB] = {0}, inside = 0;
        int32_t *history = calloc(DRAWS, sizeof *history);
        for (row.history = history; row.n_history < DRAWS; row.n_history++)
            counts[sample_row_at(&f, logits, VOCAB, &row).id]++;
        for (int64_t i = 0; i < n; i++) sum += kept[i].value;
        for (int64_t i = 0; i < n; i++) {
            double expected = DRAWS * kept[i].value / sum;
            statistic += pow((double)counts[kept[i].id] - expected, 2) / expected;
            inside += counts[kept[i].id];
        }
        assert_int_equal(inside, DRAWS);
        assert_true(statistic < (double)(n - 1) + 5 * sqrt(2.0 * (double)(n - 1)));
        free(history);
        cpu_fixture_close(&f);
    }
}

/* Log-probabilities, rank and alternatives of the raw logits, whatever the parameters. */
static void reports_are_of_the_raw_logits(void **state)
{
    static const int64_t vocabs[] = {1, 5, 16, 17, 1000, 50257};
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int v = 0; v < 6; v++) {
            struct cpu_fixture f;
            int64_t vocab = vocabs[v];
            open_at(&f, isa, 1, vocab);
            struct cpu_rng rng = {(uint64_t)v};
            float *logits = malloc((size_t)vocab * 4);
            struct entry *sorted = malloc((size_t)vocab * sizeof *sorted);
            double sum = 0;
            for (int64_t i = 0; i < vocab; i++) {
                logits[i] = roundf(cpu_rng_float(&rng) * 64) / 8;
                sorted[i] = (struct entry){logits[i], (int32_t)i};
                sum += exp(logits[i]);
            }
            qsort(sorted, (size_t)vocab, sizeof *sorted, best_first);
            struct token_bias bias = {0, 50};
            struct sample_params p = plain_params();
            p.bias = &bias, p.n_bias = 1, p.temperature = 0.5f;
            for (int64_t place = 0; place < vocab; place = place * 3 + 1) {
                struct sample_row row = {.params = &p, .forced = sorted[place].id,
                                         .n_top = SAMPLE_MAX_TOP};
                struct sample_out out = sample_row_at(&f, logits, vocab, &row);
                assert_int_equal(out.id, sorted[place].id);
                assert_int_equal(out.rank, place + 1);
                assert_near(out.logprob, sorted[place].value - log(sum), 2e-6, "logprob", v, place);
                assert_int_equal(out.n_top, vocab < SAMPLE_MAX_TOP ? vocab : SAMPLE_MAX_TOP);
                for (int32_t i = 0; i < out.n_top; i++) {
                    assert_int_equal(out.top[i].id, sorted[i].id);
                    assert_near(out.top[i].logprob, sorted[i].value - log(sum), 2e-6, "top", v, i);
                }
            }
            free(logits), free(sorted);
            cpu_fixture_close(&f);
        }
}

static void greedy_takes_the_lower_of_equals(void **state)
{
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture f;
        open_at(&f, isa, 1, 100);
        float logits[100] = {0};
        struct sample_params p = plain_params();
        p.temperature = 0;
        struct sample_row row = {.params = &p, .forced = -1};
        assert_int_equal(sample_row_at(&f, logits, 100, &row).id, 0);
        logits[77] = logits[41] = 3;
        struct sample_out out = sample_row_at(&f, logits, 100, &row);
        assert_int_equal(out.id, 41);
        assert_int_equal(out.rank, 0); /* n_top is 0: nobody asked */
        assert_int_equal(out.n_top, 0);
        int32_t stop = 41;
        row.ban_stops = true, row.stop_ids = &stop, row.n_stop_ids = 1;
        assert_int_equal(sample_row_at(&f, logits, 100, &row).id, 77);
        row.ban_stops = false;
        assert_int_equal(sample_row_at(&f, logits, 100, &row).id, 41);
        cpu_fixture_close(&f);
    }
}

/* The same logits are drawn from again right after a penalized row:
 * penalties leave nothing behind. */
static void penalties_do_not_stick(void **state)
{
    struct cpu_fixture f;
    open_at(&f, CPU_ISA_BEST, 1, 50);
    float logits[50] = {0}, before[50];
    logits[7] = 1, logits[9] = 0.75f;
    memcpy(before, logits, sizeof before);
    struct sample_params p = plain_params();
    p.temperature = 0, p.presence_penalty = 2;
    int32_t history[] = {7, 7};
    struct sample_row row = {.params = &p, .history = history, .n_prompt = 1, .n_history = 2,
                             .forced = -1};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(sample_row_at(&f, logits, 50, &row).id, 9);
        row.n_prompt = 2; /* all of it is prompt: presence does not count */
        assert_int_equal(sample_row_at(&f, logits, 50, &row).id, 7);
        row.n_prompt = 1;
    }
    assert_memory_equal(logits, before, sizeof before);
    cpu_fixture_close(&f);
}

/* What a broken model may hand over. */
static void strange_logits_are_survived(void **state)
{
    enum { VOCAB = 70 };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++)
        for (int kind = 0; kind < 7; kind++) {
            struct cpu_fixture f;
            open_at(&f, isa, 1, VOCAB);
            float logits[VOCAB];
            for (int i = 0; i < VOCAB; i++)
                logits[i] = kind == 0   ? NAN
                            : kind == 1 ? -INFINITY
                            : kind == 2 ? INFINITY
                            : kind == 3 ? (i == 66 ? -3e38f : NAN)
                            : kind == 4 ? (i % 2 ? 3e38f : -3e38f)
                            : kind == 5 ? -NAN
                            : i == 66   ? INFINITY
                            : i % 3     ? NAN
                                        : 1;
            for (int setting = 0; setting < 6; setting++) {
                struct sample_params p = plain_params();
                int32_t history[] = {3, 66};
                if (setting == 0) p.temperature = 0;
                if (setting == 2) p.top_k = 5;
                if (setting == 3) p.top_p = 0.5f;
                if (setting == 4) p.min_p = 1;
                if (setting == 5) p.temperature = 1e-38f, p.repetition_penalty = 2;
                struct sample_row row = {.params = &p, .history = history, .n_prompt = 1,
                                         .n_history = 2, .forced = -1, .n_top = 3};
                struct sample_out out = sample_row_at(&f, logits, VOCAB, &row);
                if (kind != 3 && kind != 4) {
                    static const struct sample_out nothing = {.id = SAMPLE_NO_TOKEN};
                    assert_memory_equal(&out, &nothing, sizeof out);
                    row.forced = 7; /* nor is there anything to say of a token that is given */
                    out = sample_row_at(&f, logits, VOCAB, &row);
                    assert_memory_equal(&out, &nothing, sizeof out);
                    continue;
                }
                assert_true(out.id >= 0 && out.id < VOCAB);
                /* Setting 5 doubles -3e38 to -inf. */
                if (kind == 3) assert_int_equal(out.id, setting == 5 ? 0 : 66);
                if (kind == 4) assert_true(out.id % 2 == 1 || setting == 5);
                assert_true(isfinite(out.logprob) && out.logprob <= 0);
                assert_true(out.rank >= 1 && out.rank <= VOCAB);
                for (int i = 0; i < out.n_top; i++) assert_true(isfinite(out.top[i].logprob));
            }
            cpu_fixture_close(&f);
        }
}

/* Sixty rows of all kinds in one call by several threads, and each alone. */
static void rows_do_not_know_their_neighbours(void **state)
{
    enum { ROWS = 60, VOCAB = 5000 };
    for (int isa = 0; isa <= (int)cpu_isa_best(); isa++) {
        struct cpu_fixture many, one;
        open_at(&many, isa, 3, VOCAB), open_at(&one, isa, 1, VOCAB);
        struct cpu_rng rng = {77};
        float *logits = malloc(ROWS * VOCAB * sizeof *logits);
        struct sample_params p[ROWS];
        struct sample_row rows[ROWS];
        struct sample_out out[ROWS];
        int32_t history[ROWS][10];
        cpu_rng_fill(&rng, logits, ROWS * VOCAB);
        for (int i = 0; i < ROWS * VOCAB; i++) logits[i] *= 12;
        for (int r = 0; r < ROWS; r++) {
            for (int i = 0; i < 10; i++) history[r][i] = cpu_rng_below(&rng, VOCAB);
            p[r] = random_params(&rng, VOCAB);
            rows[r] = (struct sample_row){.params = &p[r], .history = history[r], .n_prompt = 5,
                                          .n_history = 10, .forced = r % 9 ? -1 : r,
                                          .n_top = r % 4};
        }
        sample_rows(many.d, (struct tensor){logits, DTYPE_F32, ROWS, VOCAB}, rows, out);
        for (int r = 0; r < ROWS; r++) {
            struct sample_out alone = sample_row_at(&one, logits + r * VOCAB, VOCAB, &rows[r]);
            assert_int_equal(alone.id, out[r].id);
            assert_int_equal(alone.rank, out[r].rank);
            assert_memory_equal(&alone.logprob, &out[r].logprob, 4);
            assert_int_equal(alone.n_top, out[r].n_top);
            assert_memory_equal(alone.top, out[r].top, (size_t)out[r].n_top * sizeof *alone.top);
        }
        free(logits);
        cpu_fixture_close(&many), cpu_fixture_close(&one);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_contract),
        cmocka_unit_test(draws_have_their_frequencies),
        cmocka_unit_test(reports_are_of_the_raw_logits),
        cmocka_unit_test(greedy_takes_the_lower_of_equals),
        cmocka_unit_test(penalties_do_not_stick),
        cmocka_unit_test(strange_logits_are_survived),
        cmocka_unit_test(rows_do_not_know_their_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
