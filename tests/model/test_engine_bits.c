/* The same request gives the same bytes, alone or beside any others: every kind of request, first
 * alone on a plain engine, then all at once on engines of many makeups. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "model/gpt.h"
#include "tests/model/engine_fixture.h"

enum { N_JOBS = 60 };

static struct job jobs[N_JOBS];
static struct buf alone[N_JOBS];

/* The ways to end that the jobs have met. */
struct tally { int by_id, by_string, by_length, scored, several; };

static void tally_add(struct tally *t, const struct engine_request *r)
{
    t->scored += r->prompt_scores != NULL;
    t->several += r->params.n > 1;
    for (int32_t i = 0; i < r->params.n; i++) {
        const struct engine_choice *c = &r->choices[i];
        if (c->finish == FINISH_LENGTH) t->by_length++;
        else if (c->text_bytes >= 0) t->by_string++;
        else t->by_id++;
    }
}

static void run_alone(const char *model, enum dtype dtype, enum dtype kv_dtype)
{
    struct tally t = {0};
    struct engine_options o = fixture_options();
    o.dtype = dtype;
    o.kv_dtype = kv_dtype;
    o.prefix_cache = false;
    struct engine_fixture f;
    fixture_open(&f, model, &o);
    for (int i = 0; i < N_JOBS; i++) {
        job_init(&jobs[i], (uint64_t)i, f.engine);
        assert_true(job_new(&jobs[i], f.engine));
        job_submit(&jobs[i], f.engine);
        engine_wait(f.engine, jobs[i].request);
        buf_init(&alone[i], 1 << 20);
        job_render(&jobs[i], &alone[i]);
        tally_add(&t, jobs[i].request);
        job_free(&jobs[i]);
        fixture_assert_clean(&f);
    }
    fixture_close(&f);
    print_message("ended by id %d, by string %d, by length %d; scored %d, several choices %d\n",
                  t.by_id, t.by_string, t.by_length, t.scored, t.several);
    assert_true(t.by_id > 1 && t.by_string > 1 && t.by_length > 1 && t.scored > 1 && t.several > 1);
}

static void expect_same(int i, const char *makeup)
{
    struct buf now;
    buf_init(&now, 1 << 20);
    job_render(&jobs[i], &now);
    if (strcmp(now.data, alone[i].data) != 0)
        fail_msg("job %d on %s: alone it said\n%snow\n%s", i, makeup, alone[i].data, now.data);
    buf_free(&now);
}

/* All jobs at once, in an order of the seed's. Requests are admitted in order of arrival. */
static void run_together(struct engine_fixture *f, struct rng *g, const char *makeup)
{
    int order[N_JOBS], n = 0;
    for (int i = 0; i < N_JOBS; i++)
        if (job_new(&jobs[i], f->engine)) order[n++] = i;
    for (int i = n - 1; i > 0; i--) {
        int k = rng_below(g, i + 1), t = order[i];
        order[i] = order[k];
        order[k] = t;
    }
    for (int i = 0; i < n; i++) job_submit(&jobs[order[i]], f->engine);
    int64_t admitted = 0;
    for (int i = 0; i < n; i++) {
        struct engine_request *r = jobs[order[i]].request;
        engine_wait(f->engine, r);
        expect_same(order[i], makeup);
        assert_true(r->admitted_ns >= admitted);
        admitted = r->admitted_ns;
    }
    for (int i = 0; i < n; i++) job_free(&jobs[order[i]]);
    fixture_assert_clean(f);
}

/* Twice, so that the second round meets the first one's pages in the index. */
static void run_makeup(const char *model, enum dtype dtype, enum dtype kv_dtype, int32_t rows,
                       int32_t seqs, bool prefix, int32_t pages)
{
    struct engine_options o = fixture_options();
    o.dtype = dtype;
    o.kv_dtype = kv_dtype;
    o.max_batch_tokens = rows;
    o.max_seqs = seqs;
    o.prefix_cache = prefix;
    struct engine_fixture f;
    if (pages > 0) {
        fixture_open(&f, model, &o);
        struct engine_stats s;
        engine_stats(f.engine, &s);
        o.kv_bytes = pages * s.memory.kv_page_bytes;
        fixture_close(&f);
    }
    fixture_open(&f, model, &o);
    char makeup[128];
    snprintf(makeup, sizeof makeup, "%s: %d rows, %d seqs, prefix %d, %d pages", model, rows, seqs,
             prefix, pages);
    struct rng g = {(uint64_t)(rows * 100 + seqs)};
    run_together(&f, &g, makeup);
    run_together(&f, &g, makeup);
    struct engine_stats s;
    engine_stats(f.engine, &s);
    assert_int_equal(s.kv.hit_tokens > 0, prefix);
    if (pages > 0 && prefix) assert_true(s.kv.evictions > 0);
    fixture_close(&f);
}

static void test_makeups(const char *model, enum dtype dtype, enum dtype kv)
{
    run_alone(model, dtype, kv);
    run_makeup(model, dtype, kv, 64, 8, true, 0);
    run_makeup(model, dtype, kv, 7, 8, true, 0);
    run_makeup(model, dtype, kv, 1, 8, true, 0);
    run_makeup(model, dtype, kv, 64, 8, false, 0);
    run_makeup(model, dtype, kv, 7, 3, false, 12);
    run_makeup(model, dtype, kv, 64, 1, true, 7);
    run_makeup(model, dtype, kv, 13, 5, true, 18);
    run_makeup(model, dtype, kv, 200, 16, true, 30);
    for (int i = 0; i < N_JOBS; i++) buf_free(&alone[i]);
}

static void test_llama_f32(void **state)
{
    (void)state;
    test_makeups("tests/golden/llama", DTYPE_F32, KV_AUTO);
}

static void test_gpt2_bf16(void **state)
{
    (void)state;
    test_makeups("tests/golden/gpt2", DTYPE_BF16, KV_AUTO);
}

static void test_quantized(void **state)
{
    (void)state;
    test_makeups("tests/golden/llama", DTYPE_Q8_0, KV_AUTO);
    test_makeups("tests/golden/gpt2", DTYPE_Q4_0, KV_AUTO);
}

static void test_quantized_cache(void **state)
{
    (void)state;
    test_makeups("tests/golden/llama", DTYPE_BF16, DTYPE_Q8_0);
}

/* What scoring says of a text is, to the bit, what decoding said as it wrote it. */
static void score_again(struct engine *e, struct job *written, const char *makeup)
{
    const struct engine_request *r = written->request;
    const struct engine_choice *c = &r->choices[0];
    int32_t n_prompt = r->params.n_prompt, n = atomic_load(&c->n_tokens), n_top = r->params.n_top;
    struct job j;
    job_init_plain(&j, 1, 0);
    memcpy(j.prompt, written->prompt, (size_t)n_prompt * sizeof *j.prompt);
    for (int32_t i = 0; i < n; i++) j.prompt[n_prompt + i] = c->tokens[i].id;
    j.params.n_prompt = n_prompt + n;
    j.params.prompt_logprobs = true;
    j.params.n_top = n_top;
    job_run(&j, e);
    assert_int_equal(atomic_load(&j.request->n_prompt_scored), n_prompt + n);
    assert_int_equal(atomic_load(&j.request->choices[0].finish), FINISH_LENGTH);
    for (int32_t i = 0; i < n; i++) {
        const struct token_logprob *score = &j.request->prompt_scores[n_prompt + i];
        if (score->id != c->tokens[i].id || score->logprob != c->tokens[i].logprob)
            fail_msg("%s: token %d was %d %a, scored %d %a", makeup, i, c->tokens[i].id,
                     (double)c->tokens[i].logprob, score->id, (double)score->logprob);
        assert_memory_equal(j.request->prompt_top + (n_prompt + i) * n_top, c->top + i * n_top,
                            (size_t)n_top * sizeof *c->top);
    }
    job_free(&j);
}

static void test_scoring_equals_decoding(void **state)
{
    (void)state;
    static const int32_t rows[] = {1, 7, 64, 150};
    for (int k = 0; k < 4; k++) {
        struct engine_options o = fixture_options();
        o.max_batch_tokens = rows[k];
        struct engine_fixture f;
        fixture_open(&f, "tests/golden/llama", &o);
        for (int32_t n_prompt = 1; n_prompt < 60; n_prompt += 14) {
            struct job j;
            job_init_plain(&j, n_prompt, 40);
            j.params.sampling.temperature = 1;
            j.params.n_top = 3;
            job_run(&j, f.engine);
            char makeup[32];
            snprintf(makeup, sizeof makeup, "%d rows", rows[k]);
            score_again(f.engine, &j, makeup);
            job_free(&j);
        }
        fixture_assert_clean(&f);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama_f32),
        cmocka_unit_test(test_gpt2_bf16),
        cmocka_unit_test(test_quantized),
        cmocka_unit_test(test_quantized_cache),
        cmocka_unit_test(test_scoring_equals_decoding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
