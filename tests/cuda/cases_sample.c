/* Sampling on the CUDA device: the CPU's tokens, log-probabilities, ranks and alternatives; and
 * over rows that make it hard, what the definition says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"
#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"

enum { ROWS = 9, MAX_VOCAB = 1500, HISTORY = 40 };

/* A request a row, everything that there is among them. */
struct requests {
    struct sample_params params[ROWS];
    struct sample_row rows[ROWS];
    struct token_bias bias[3];
    int32_t history[HISTORY], stops[3];
};

static void requests_make(struct requests *q, int64_t vocab, int round)
{
    struct cpu_rng rng = {(uint64_t)(vocab * 10 + round)};
    for (int i = 0; i < HISTORY; i++) q->history[i] = cpu_rng_below(&rng, vocab < 30 ? (int32_t)vocab : 30);
    for (int i = 0; i < 3; i++) {
        q->bias[i] = (struct token_bias){(int32_t)(((int64_t)i * 7 + round) % vocab), (float)i * 3 - 2};
        q->stops[i] = (int32_t)(((int64_t)i * 3 + round) % vocab);
    }
    for (int i = 0; i < ROWS; i++) {
        struct sample_params p;
        sample_params_init(&p);
        p.seed = (uint64_t)(round * 100 + i);
        if (i % 3 == 0) p.temperature = 0;
        if (i % 3 == 1) p.temperature = 0.7f;
        if (i == 2 || i == 4) p.top_k = 1 + round * 5;
        if (i == 4 || i == 5) p.top_p = 0.6f;
        if (i == 7 || i == 5) p.min_p = 0.05f;
        if (i >= 6) p.repetition_penalty = 1.3f, p.presence_penalty = 0.5f, p.frequency_penalty = 1.7f;
        if (i % 2 && vocab >= 21) p.n_bias = 3, p.bias = q->bias;
        q->params[i] = p;
        q->rows[i] = (struct sample_row){
            .params = &q->params[i], .history = q->history, .n_prompt = 10, .n_history = HISTORY - i,
            .choice = i % 2, .forced = i == 8 ? (int32_t)(vocab - 1) : -1, .n_top = i % 4 == 1 ? 20 : i % 4,
            .ban_stops = i == 3 || i == 7, .stop_ids = q->stops, .n_stop_ids = 3,
        };
    }
}

static void sample(struct side *s, const float *logits, int64_t n, int64_t vocab, const struct sample_row *rows,
                   struct sample_out *out)
{
    struct tensor x = side_tensor(s, DTYPE_F32, n, vocab, logits);
    float *after = malloc((size_t)(n * vocab) * sizeof *after);
    sample_rows(s->d, x, rows, out);
    side_read(s, x, after); /* the raw logits are there again */
    if (s->is_cuda) assert_memory_equal(after, logits, (size_t)(n * vocab) * sizeof *after);
    free(after);
    side_clear(s);
}

static void compare(const struct sample_out *got, const struct sample_out *want, int64_t row)
{
    if (got->id != want->id)
        fail_msg("row %lld: got %d (%g), want %d (%g)", (long long)row, got->id, got->logprob, want->id,
                 want->logprob);
    assert_near(got->logprob, want->logprob, 2e-5, "logprob", row, 0);
    assert_int_equal(got->rank, want->rank);
    assert_int_equal(got->n_top, want->n_top);
    for (int32_t i = 0; i < want->n_top; i++) {
        assert_int_equal(got->top[i].id, want->top[i].id);
        assert_near(got->top[i].logprob, want->top[i].logprob, 2e-5, "alternative", row, i);
    }
}

void test_sampling(void **state)
{
    static const int64_t vocabs[] = {1, 2, 21, 511, 512, 513, 1500};
    struct workspace_shape plan = {
        .dtype = DTYPE_F32, .max_rows = ROWS, .max_logit_rows = ROWS, .n_embd = 16, .n_ff = 16, .n_head = 1,
        .n_kv_head = 1, .head_dim = 16, .vocab_size = MAX_VOCAB, .block_size = HISTORY,
    };
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *logits = malloc(ROWS * MAX_VOCAB * sizeof *logits);
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++)
        for (int round = 0; round < 4; round++) {
            struct cpu_rng rng = {v * 10 + (uint64_t)round};
            struct requests q;
            struct sample_out out[N_SIDES][ROWS];
            int64_t n = ROWS * vocabs[v];
            /* Small whole numbers: ties everywhere. Then what networks do wrong. */
            for (int64_t i = 0; i < n; i++) {
                logits[i] = cpu_rng_float(&rng) * 6;
                if (round == 1) logits[i] = roundf(logits[i]);
                if (round == 2 && i % 5 == 0) logits[i] = i % 10 ? -INFINITY : NAN;
            }
            if (round == 3) logits[n / 2] = INFINITY;
            requests_make(&q, vocabs[v], round);
            schedule_seed((uint32_t)round);
            memset(out, 0, sizeof out);
            for (int s = 0; s < N_SIDES; s++) sample(&sides[s], logits, ROWS, vocabs[v], q.rows, out[s]);
            for (int64_t r = 0; r < ROWS; r++) compare(&out[1][r], &out[0][r], r);
        }
    free(logits);
    sides_close(sides);
}

/* Two tokens of which one, A, was there before: so often in the prompt, so often in the output.
 * Which is the best? */
void test_penalties(void **state)
{
    enum { A = 3, B = 1, N_VOCAB = 5, MAX_HISTORY = 4 };
    static const struct {
        float a, b, repetition, presence, frequency;
        int32_t in_prompt, in_output, want;
    } cases[] = {
        {1, 0.6f, 1, 0.5f, 0, 0, 1, B},     {1, 0.4f, 1, 0.5f, 0, 0, 1, A},
        {1, 0.6f, 1, 0.5f, 0, 1, 0, A},     {1, 0.4f, 1, 0.5f, 0, 0, 3, A}, /* once, of the output alone */
        {1, 0.5f, 1, 0, 0.2f, 0, 3, B},     {1, 0.5f, 1, 0, 0.2f, 0, 2, A},     {1, 0.5f, 1, 0, 0.2f, 3, 0, A},
        {1, 0.8f, 1.3f, 0, 0, 1, 0, B},     {1, 0.7f, 1.3f, 0, 0, 0, 3, A},
        {-1, -1.2f, 1.3f, 0, 0, 0, 1, B},   {-1, -1.4f, 1.3f, 0, 0, 0, 1, A}, /* below 0 it multiplies */
        {1, 0.25f, 1.25f, 0.3f, 0.1f, 1, 2, A}, {1, 0.35f, 1.25f, 0.3f, 0.1f, 1, 2, B}, /* 0.8 - 0.5 */
    };
    enum { N = sizeof cases / sizeof *cases };
    struct workspace_shape plan = {
        .dtype = DTYPE_F32, .max_rows = N, .max_logit_rows = N, .n_embd = 16, .n_ff = 16, .n_head = 1,
        .n_kv_head = 1, .head_dim = 16, .vocab_size = N_VOCAB, .block_size = MAX_HISTORY,
    };
    struct side sides[N_SIDES];
    struct sample_params params[N];
    struct sample_row rows[N];
    struct sample_out out[N];
    int32_t history[N][MAX_HISTORY];
    float logits[N * N_VOCAB];
    sides_open(sides, &plan);
    for (int i = 0; i < N; i++) {
        int32_t n = 0;
        for (int j = 0; j < N_VOCAB; j++) logits[i * N_VOCAB + j] = -9;
        logits[i * N_VOCAB + A] = cases[i].a, logits[i * N_VOCAB + B] = cases[i].b;
        history[i][n++] = 0;
        while (n < 1 + cases[i].in_prompt + cases[i].in_output) history[i][n++] = A;
        sample_params_init(&params[i]);
        params[i].temperature = 0;
        params[i].repetition_penalty = cases[i].repetition;
        params[i].presence_penalty = cases[i].presence;
        params[i].frequency_penalty = cases[i].frequency;
        rows[i] = (struct sample_row){.params = &params[i], .history = history[i], .n_history = n,
                                      .n_prompt = 1 + cases[i].in_prompt, .forced = -1};
    }
    for (int s = 0; s < N_SIDES; s++) {
        sample(&sides[s], logits, N, N_VOCAB, rows, out);
        for (int i = 0; i < N; i++)
            if (out[i].id != cases[i].want) fail_msg("case %d: %d is the best, got %d", i, cases[i].want, out[i].id);
    }
    sides_close(sides);
}

/* ---- hard rows, and what the definition says ---- */

enum pattern { EQUAL, ONE_FINITE, TWO_VALUES, WHOLE_NUMBERS, RISING, HUGE_RANGE, BROKEN, NO_NUMBER, INFINITE, CLOSE, NORMAL,
               N_PATTERNS };

static void make_row(float *x, int64_t vocab, enum pattern pattern, struct cpu_rng *rng)
{
    for (int64_t i = 0; i < vocab; i++) {
        float r = cpu_rng_float(rng); /* -1..1 */
        switch (pattern) {
        case EQUAL: x[i] = -3.25f; break;
        case ONE_FINITE: x[i] = i == vocab / 3 ? -7 : -INFINITY; break;
        case TWO_VALUES: x[i] = r > 0 ? 1.5f : -0.0f; break;
        case WHOLE_NUMBERS: x[i] = roundf(r * 4); break;
        case RISING: x[i] = (float)i / (float)vocab; break; /* the cut's candidate has the lowest id */
        case HUGE_RANGE: x[i] = r * powf(10, (float)(i % 39)); break;
        case BROKEN: x[i] = i % 4 == 0 ? NAN : i % 4 == 1 ? -INFINITY : i % 97 == 2 ? 3e38f : r; break;
        case NO_NUMBER: x[i] = i % 3 ? NAN : -INFINITY; break;
        case INFINITE: x[i] = i == vocab / 3 ? INFINITY : i % 4 == 0 ? NAN : r; break;
        case CLOSE: x[i] = i == vocab / 2 ? 16 : r * 1e-6f; break; /* more values than distances from the best */
        default: x[i] = r * 9 + cpu_rng_float(rng) * 4;
        }
    }
}

/* A row as the definition sees it: candidates best first, weights in double, by id. */
struct ranking { float *x; int32_t *ids; double *weights; int64_t n_vocab, n; };

static const float *compared; /* qsort has no context */

static int best_first(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    float x = compared[i], y = compared[j];
    return x > y ? -1 : x < y ? 1 : i - j;
}

static void rank_row(struct ranking *r, const float *logits, int64_t vocab)
{
    r->n_vocab = vocab;
    r->n = 0;
    for (int64_t i = 0; i < vocab; i++) {
        r->x[i] = isnan(logits[i]) ? -INFINITY : fminf(logits[i], 0x1.fffffep127f);
        if (r->x[i] > -INFINITY) r->ids[r->n++] = (int32_t)i;
    }
    compared = r->x;
    qsort(r->ids, (size_t)r->n, sizeof *r->ids, best_first);
}

static double sum_of_best(const struct ranking *r, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += r->weights[r->ids[i]];
    return sum;
}

/* Is `id` what a draw from the best n gives, to the rounding of f32 sums? */
static bool drawn_from(const struct ranking *r, int64_t n, double u, int32_t id)
{
    double total = sum_of_best(r, n), before = 0;
    bool among = false;
    for (int64_t i = 0; i < n; i++) {
        among |= r->ids[i] == id;
        if (r->ids[i] < id) before += r->weights[r->ids[i]];
    }
    double slack = 3e-6 * total;
    return among && before <= u * total + slack && before + r->weights[id] >= u * total - slack;
}

/* How many of the best n the least set has whose sum reaches a share of all n. */
static int64_t reaching(const struct ranking *r, int64_t n, double share)
{
    double target = share * sum_of_best(r, n), sum = 0;
    int64_t kept = 0;
    while (kept < n && (sum < target || kept == 0)) sum += r->weights[r->ids[kept++]];
    return kept;
}

/* Else no token can come of it. */
static bool has_highest(const struct ranking *r) { return r->n > 0 && r->x[r->ids[0]] < 0x1.fffffep127f; }

static bool may_draw(struct ranking *r, const struct sample_row *row, int32_t id)
{
    const struct sample_params *p = row->params;
    if (!has_highest(r)) return id == SAMPLE_NO_TOKEN;
    if (p->temperature == 0) return id == r->ids[0];
    float scale = fminf(1 / p->temperature, 0x1.fffffep127f), best = r->x[r->ids[0]];
    for (int64_t i = 0; i < r->n; i++)
        r->weights[r->ids[i]] = exp((double)(r->x[r->ids[i]] - best) * (double)scale);
    int64_t n = p->top_k > 0 && p->top_k < r->n ? p->top_k : r->n;
    double u = (double)sample_uniform(p->seed, row->choice, row->n_history);
    for (int way = -1; way <= 1; way++) { /* as if f32 had rounded either way, or not */
        double slightly = 1 + way * 3e-6;
        int64_t kept = p->top_p < 1 ? reaching(r, n, fmin(1, (double)p->top_p * slightly)) : n;
        while (kept > 1 && r->weights[r->ids[kept - 1]] < (double)p->min_p * slightly) kept--;
        if (drawn_from(r, kept, u, id)) return true;
    }
    return false;
}

static void check_report(const struct ranking *r, const struct sample_row *row, const struct sample_out *out)
{
    int64_t rank = 1, n_top = row->n_top < r->n ? row->n_top : r->n;
    if (!has_highest(r)) {
        static const struct sample_out nothing = {.id = SAMPLE_NO_TOKEN};
        assert_memory_equal(out, &nothing, sizeof nothing);
        return;
    }
    for (int64_t i = 0; i < r->n_vocab; i++)
        rank += r->x[i] > r->x[out->id] || (r->x[i] == r->x[out->id] && i < out->id);
    assert_int_equal(out->rank, row->n_top > 0 ? rank : 0);
    assert_int_equal(out->n_top, n_top);
    for (int32_t i = 0; i < out->n_top; i++) assert_int_equal(out->top[i].id, r->ids[i]);
}

/* So that the draw takes the first of the kept ids, if it is not worth less than the others. */
static uint64_t seed_near_zero(int64_t from)
{
    uint64_t seed = (uint64_t)from;
    while (sample_uniform(seed, 0, 1) > 1e-4f) seed++;
    return seed;
}

static void check_hard_rows(struct side *cuda, int64_t vocab, enum pattern pattern, struct ranking *r, float *logits)
{
    const struct sample_params cases[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.7f, .top_p = 1e-6f},
        {.temperature = 1, .top_p = 0.999999f},
        {.temperature = 1e-4f, .top_k = 5, .top_p = 0.9f},
        {.temperature = 100, .top_k = (int32_t)vocab, .top_p = 0.5f, .min_p = 0.1f},
        {.temperature = 100, .top_k = (int32_t)vocab / 2 + 1, .top_p = 0.9f},
        {.temperature = 1, .top_k = 7, .top_p = 1, .min_p = 0.3f},
        {.temperature = 0, .top_p = 1},
        {.temperature = 100, .top_k = 1300, .top_p = 1},
        {.temperature = 1, .top_p = 1, .min_p = 1}, /* the best and its equals */
    };
    enum { N = sizeof cases / sizeof *cases };
    struct sample_params params[N];
    struct sample_row rows[N];
    struct sample_out out[N];
    struct cpu_rng rng = {(uint64_t)(vocab * 100 + pattern)};
    const int32_t history[] = {0};
    for (int i = 0; i < N; i++) {
        params[i] = cases[i];
        params[i].repetition_penalty = 1;
        params[i].seed = pattern == RISING ? seed_near_zero(vocab * i) : (uint64_t)(vocab + i + 40 * pattern);
        rows[i] = (struct sample_row){.params = &params[i], .history = history, .n_prompt = 1, .n_history = 1,
                                      .forced = -1, .n_top = i % 3 == 0 ? 20 : 0};
    }
    make_row(logits, vocab, pattern, &rng);
    for (int i = 1; i < N; i++) memcpy(logits + i * vocab, logits, (size_t)vocab * sizeof *logits);
    sample(cuda, logits, N, vocab, rows, out);
    rank_row(r, logits, vocab);
    for (int i = 0; i < N; i++) {
        if (!may_draw(r, &rows[i], out[i].id))
            fail_msg("vocabulary %lld, pattern %d, case %d: drew %d", (long long)vocab, (int)pattern, i, out[i].id);
        check_report(r, &rows[i], &out[i]);
    }
}

void test_sampling_of_hard_rows(void **state)
{
    static const int64_t vocabs[] = {1, 2, 31, 257, 2051};
    enum { MOST_ROWS = 10, MOST = 151936 };
    struct workspace_shape plan = {
        .dtype = DTYPE_F32, .max_rows = 1, .max_logit_rows = MOST_ROWS, .n_embd = 16, .n_ff = 16, .n_head = 1,
        .n_kv_head = 1, .head_dim = 16, .vocab_size = MOST, .block_size = 1,
    };
    struct side sides[N_SIDES];
    sides_open(sides, &plan);
    float *logits = malloc((size_t)MOST_ROWS * MOST * sizeof *logits);
    struct ranking r = {malloc(MOST * sizeof *r.x), malloc(MOST * sizeof *r.ids), malloc(MOST * sizeof *r.weights), 0, 0};
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++)
        for (int pattern = 0; pattern < N_PATTERNS; pattern++) {
            schedule_seed((uint32_t)pattern);
            check_hard_rows(&sides[SIDE_CUDA], vocabs[v], pattern, &r, logits);
        }
    check_hard_rows(&sides[SIDE_CUDA], 50304, TWO_VALUES, &r, logits);
    check_hard_rows(&sides[SIDE_CUDA], 151936, NORMAL, &r, logits);
    free(r.x);
    free(r.ids);
    free(r.weights);
    free(logits);
    sides_close(sides);
}
