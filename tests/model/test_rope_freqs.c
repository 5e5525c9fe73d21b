/* RoPE factors spelled out by GGUF come back as the parameters that made them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/rope_freqs.h"

static struct gpt_config llama3(float factor, float theta, int64_t context, int64_t head_dim)
{
    return (struct gpt_config){
        .head_dim = head_dim, .rope_theta = theta, .rope_scaling = ROPE_SCALING_LLAMA3,
        .rope_factor = factor, .rope_low_freq = 1, .rope_high_freq = 4,
        .rope_original_context = context};
}

static bool recover(const struct gpt_config *made_by, struct gpt_config *out, struct error *err)
{
    float factors[64];
    int64_t n = made_by->head_dim / 2;
    for (int64_t i = 0; i < n; i++) factors[i] = (float)rope_llama3_factor(made_by, i);
    *out = (struct gpt_config){.head_dim = made_by->head_dim, .rope_theta = made_by->rope_theta};
    return rope_freqs_to_config(factors, n, "test", out, err);
}

/* Llama 3.1's wavelengths: below 2048 tokens kept, above 8192 divided by 8, a ramp between. */
static void test_factors_follow_the_published_formula(void **state)
{
    struct gpt_config c = llama3(8, 500000, 8192, 128);
    bool ramp = false;
    for (int64_t i = 0; i < 64; i++) {
        double wavelength = 2 * 3.14159265358979323846 * pow(500000, (double)i / 64);
        double factor = rope_llama3_factor(&c, i);
        if (wavelength < 2048) {
            assert_true(factor == 1);
        } else if (wavelength > 8192) {
            assert_true(factor == 8);
        } else {
            double smooth = (8192 / wavelength - 1) / (4 - 1);
            double wanted = 1 / ((1 - smooth) / 8 + smooth);
            assert_true(fabs(factor - wanted) < 1e-9);
            ramp = true;
        }
    }
    assert_true(ramp);
}

static void test_llama3_parameters_come_back(void **state)
{
    static const struct { float factor, theta; int64_t context, head_dim; } cases[] = {
        {8, 500000, 8192, 128}, {32, 500000, 8192, 64}, {4, 10000, 2048, 128}, {8, 10000, 64, 64},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gpt_config made = llama3(cases[i].factor, cases[i].theta, cases[i].context,
                                        cases[i].head_dim), c;
        struct error err;
        if (!recover(&made, &c, &err)) fail_msg("%s", err.text);
        assert_int_equal(c.rope_scaling, ROPE_SCALING_LLAMA3);
        assert_true(c.rope_factor == cases[i].factor);
        assert_int_equal(c.rope_original_context, cases[i].context);
    }
}

static void test_uniform_factors_are_none_or_linear(void **state)
{
    float ones[16], fours[16];
    struct gpt_config c = {.head_dim = 32, .rope_theta = 10000};
    struct error err;
    for (int i = 0; i < 16; i++) {
        ones[i] = 1;
        fours[i] = 4;
    }
    assert_true(rope_freqs_to_config(ones, 16, "test", &c, &err));
    assert_int_equal(c.rope_scaling, ROPE_SCALING_NONE);
    assert_true(rope_freqs_to_config(fours, 16, "test", &c, &err));
    assert_int_equal(c.rope_scaling, ROPE_SCALING_LINEAR);
    assert_true(c.rope_factor == 4.0f);
    /* Ones change nothing, whatever the scaling. */
    assert_true(rope_freqs_to_config(ones, 16, "test", &c, &err));
    assert_false(rope_freqs_to_config(fours, 16, "test", &c, &err));
    assert_non_null(strstr(err.text, "on top of another"));
}

static void test_other_factors_are_refused(void **state)
{
    struct gpt_config made = llama3(8, 500000, 8192, 128), c;
    struct error err;
    made.rope_high_freq = 8;
    assert_false(recover(&made, &c, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    float factors[4] = {1, 2, NAN, 4};
    c = (struct gpt_config){.head_dim = 8, .rope_theta = 10000};
    assert_false(rope_freqs_to_config(factors, 4, "test", &c, &err));
    factors[2] = 0;
    assert_false(rope_freqs_to_config(factors, 4, "test", &c, &err));
    assert_non_null(strstr(err.text, "rope_freqs.weight[2]"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_factors_follow_the_published_formula),
        cmocka_unit_test(test_llama3_parameters_come_back),
        cmocka_unit_test(test_uniform_factors_are_none_or_linear),
        cmocka_unit_test(test_other_factors_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
