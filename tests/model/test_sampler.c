/* Sampling parameters and the generator. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/sampler.h"

/* The published known answers of Philox4x32-10 (Random123's kat_vectors). */
static void test_philox_known_answers(void **state)
{
    (void)state;
    static const struct { uint32_t counter[4], key[2], want[4]; } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t out[4];
        philox4x32(cases[i].counter, cases[i].key, out);
        assert_memory_equal(out, cases[i].want, sizeof out);
    }
}

static void test_uniform_is_uniform(void **state)
{
    (void)state;
    enum { N = 1 << 16, BINS = 64 };
    int count[BINS] = {0};
    double sum = 0;
    for (int i = 0; i < N; i++) {
        float u = sample_uniform(42, i & 3, i >> 2);
        assert_true(u >= 0 && u < 1);
        sum += (double)u;
        count[(int)(u * BINS)]++;
    }
    assert_true(fabs(sum / N - 0.5) < 0.005);
    double chi = 0, expected = (double)N / BINS;
    for (int b = 0; b < BINS; b++) chi += (count[b] - expected) * (count[b] - expected) / expected;
    assert_true(chi < 120); /* 63 degrees of freedom: p < 1e-5 */
}

static void test_uniform_depends_on_each_argument(void **state)
{
    (void)state;
    float u = sample_uniform(1, 2, 3);
    assert_true(u == sample_uniform(1, 2, 3));
    assert_true(u != sample_uniform(2, 2, 3));
    assert_true(u != sample_uniform(1 + (1ull << 32), 2, 3));
    assert_true(u != sample_uniform(1, 3, 3));
    assert_true(u != sample_uniform(1, 2, 4));
    assert_true(u != sample_uniform(1, 2, 3 + (1ll << 32)));
}

static void expect(struct sample_params p, const char *param)
{
    struct error err = {0};
    bool ok = sample_params_check(&p, 100, &err);
    if (!param) {
        assert_true(ok);
        return;
    }
    assert_false(ok);
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err.param, param);
    assert_non_null(strstr(err.text, param));
}

#define WITH(field, v) (p = base, p.field = (v), p)

static void test_params_ranges(void **state)
{
    (void)state;
    struct sample_params base, p;
    sample_params_init(&base);
    expect(base, NULL);
    assert_true(base.temperature == 1 && base.top_p == 1 && base.repetition_penalty == 1);

    expect(WITH(temperature, 0), NULL);
    expect(WITH(temperature, 100), NULL);
    expect(WITH(temperature, -0.1f), "temperature");
    expect(WITH(temperature, 100.5f), "temperature");
    expect(WITH(temperature, NAN), "temperature");
    expect(WITH(temperature, INFINITY), "temperature");
    expect(WITH(top_k, INT32_MAX), NULL);
    expect(WITH(top_k, -1), "top_k");
    expect(WITH(top_p, 0), "top_p");
    expect(WITH(top_p, 1e-9f), NULL);
    expect(WITH(top_p, 1.01f), "top_p");
    expect(WITH(top_p, NAN), "top_p");
    expect(WITH(min_p, 1), NULL);
    expect(WITH(min_p, -0.01f), "min_p");
    expect(WITH(min_p, NAN), "min_p");
    expect(WITH(repetition_penalty, 0), "repetition_penalty");
    expect(WITH(repetition_penalty, 0.5f), NULL);
    expect(WITH(repetition_penalty, INFINITY), "repetition_penalty");
    expect(WITH(presence_penalty, -2), NULL);
    expect(WITH(presence_penalty, 2.1f), "presence_penalty");
    expect(WITH(frequency_penalty, NAN), "frequency_penalty");
    expect(WITH(frequency_penalty, 2), NULL);
}

static void test_params_bias(void **state)
{
    (void)state;
    struct sample_params p;
    sample_params_init(&p);
    struct token_bias bias[3] = {{0, 1}, {99, -100}, {5, 2}};
    p.bias = bias;
    p.n_bias = 3;
    expect(p, NULL);
    bias[2].id = 100;
    expect(p, "logit_bias");
    bias[2].id = -1;
    expect(p, "logit_bias");
    bias[2].id = 99;
    expect(p, "logit_bias"); /* twice */
    bias[2] = (struct token_bias){5, NAN};
    expect(p, "logit_bias");
    p.n_bias = SAMPLE_MAX_BIAS + 1;
    expect(p, "logit_bias");
}

/* Each id has one change, in the order in which they turn up;
 * what is out of the vocabulary is no stop. */
static void test_requests_have_one_change_an_id(void **state)
{
    enum { VOCAB = 20, AT = 5 };
    const int32_t history[] = {4, 9, 4, 9, 9, 2}, stops[] = {7, 9, -1, VOCAB, 7};
    const struct token_bias bias[] = {{2, 1.5f}, {11, -3}};
    const struct logit_change want[] = {{4, 1, 0, 0}, {9, 2, -INFINITY, 0}, {2, 1, 1.5f, 0},
                                        {11, -1, -3, 0}, {7, -1, -INFINITY, 0}};
    struct sample_params p;
    sample_params_init(&p);
    p.presence_penalty = 1;
    p.bias = bias;
    p.n_bias = 2;
    p.seed = 12;
    struct sample_row row = {.params = &p, .history = history, .n_prompt = 2, .n_history = 6,
                             .choice = 3, .forced = -1, .n_top = SAMPLE_MAX_TOP, .ban_stops = true,
                             .stop_ids = stops, .n_stop_ids = 5};
    struct sample_request q;
    int32_t words[AT + 100], entry_of[VOCAB] = {0}, zeros[VOCAB] = {0};
    assert_true(sample_max_words(VOCAB, 6) <= 100);
    assert_int_equal(sample_request_write(&row, VOCAB, entry_of, words, AT, &q), 5 * 4);
    assert_memory_equal(words + AT, want, sizeof want);
    assert_memory_equal(entry_of, zeros, sizeof zeros);
    assert_int_equal(q.changes, AT);
    assert_int_equal(q.n_changes, 5);
    assert_int_equal(q.n_top, VOCAB);
    assert_true(q.uniform == sample_uniform(12, 3, 6));
    row.forced = 3;
    assert_int_equal(sample_request_write(&row, VOCAB, NULL, NULL, AT, &q), 0);
    assert_int_equal(q.forced, 3);
    assert_int_equal(q.n_changes, 0);
    /* A vocabulary's changes are no more than it has ids. */
    assert_int_equal(sample_max_words(VOCAB, 1000), VOCAB * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_uniform_is_uniform),
        cmocka_unit_test(test_uniform_depends_on_each_argument),
        cmocka_unit_test(test_params_ranges),
        cmocka_unit_test(test_params_bias),
        cmocka_unit_test(test_requests_have_one_change_an_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
