/* Sampling on the CUDA device: the CPU's tokens, log-probabilities, ranks and alternatives. */
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
        if (i >= 6) p.repetition_penalty = 1.3f, p.presence_penalty = 0.5f, p.frequency_penalty = 0.2f;
        if (i % 2 && vocab >= 21) p.n_bias = 3, p.bias = q->bias;
        q->params[i] = p;
        q->rows[i] = (struct sample_row){
            .params = &q->params[i], .history = q->history, .n_prompt = 10, .n_history = HISTORY - i,
            .choice = i % 2, .forced = i == 8 ? (int32_t)(vocab - 1) : -1, .n_top = i % 4 == 1 ? 20 : i % 4,
            .ban_stops = i == 3 || i == 7, .stop_ids = q->stops, .n_stop_ids = 3,
        };
    }
}

static void sample(struct side *s, const float *logits, int64_t vocab, const struct requests *q,
                   struct sample_out *out)
{
    struct tensor x = side_tensor(s, DTYPE_F32, ROWS, vocab, logits);
    float *after = malloc((size_t)(ROWS * vocab) * sizeof *after);
    s->d->ops->sample(s->d, x, q->rows, out);
    side_sync(s);
    side_read(s, x, after); /* the raw logits are there again */
    if (s->is_cuda) assert_memory_equal(after, logits, (size_t)(ROWS * vocab) * sizeof *after);
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
            for (int s = 0; s < N_SIDES; s++) sample(&sides[s], logits, vocabs[v], &q, out[s]);
            for (int64_t r = 0; r < ROWS; r++) compare(&out[1][r], &out[0][r], r);
        }
    free(logits);
    sides_close(sides);
}
