/* What a run's config becomes under a budget: nothing changes without need, and what is given
 * stays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "server/train_fit.h"

static struct device *device;

static int set_up(void **state)
{
    struct error err;
    struct cpu_options one = {.n_threads = 1, .isa = CPU_ISA_BEST};
    return cpu_device_open(&one, &device, &err) ? 0 : -1;
}

static int tear_down(void **state)
{
    device->ops->close(device);
    return 0;
}

static struct trainer_options options(void)
{
    static const char model[] = "{\"n_layer\":2,\"n_head\":2,\"n_embd\":64,\"block_size\":64,"
                                "\"vocab_size\":500}";
    struct trainer_options o = {0};
    struct error err;
    if (!gpt_config_from_preset(model, strlen(model), "test", &o.model, &err))
        fail_msg("%s", err.text);
    train_config_init(&o.config);
    train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
    return o;
}

static int64_t bytes_of(const struct trainer_options *o)
{
    struct memory_plan m;
    struct error err;
    if (!trainer_plan(o, device, NULL, NULL, &m, &err)) fail_msg("%s", err.text);
    return m.total_bytes;
}

static void fit(struct train_fit f, struct trainer_options *o)
{
    struct error err;
    if (!train_fit(&f, device, o, &err)) fail_msg("%s", err.text);
    assert_true(f.rates.flops > 0 && f.rates.bytes > 0);
    assert_true(bytes_of(o) <= f.budget);
}

static bool same(const struct trainer_options *a, const struct trainer_options *b)
{
    return !train_config_difference(&a->config, &b->config)
           && a->config.recompute == b->config.recompute;
}

static void test_defaults_that_fit_stay(void **state)
{
    struct trainer_options o = options(), before = o;
    fit((struct train_fit){.freedom = FREE_ALL, .budget = bytes_of(&o)}, &o);
    assert_true(same(&o, &before));
}

static void test_defaults_that_do_not_fit_are_chosen_anew(void **state)
{
    struct trainer_options o = options(), before = o;
    fit((struct train_fit){.freedom = FREE_ALL, .budget = bytes_of(&o) - 1}, &o);
    assert_false(same(&o, &before));
}

static void test_a_given_budget_is_used(void **state)
{
    struct trainer_options o = options(), before = o;
    o.config.recompute = before.config.recompute = RECOMPUTE_BLOCK;
    struct train_fit f = {.freedom = FREE_RECOMPUTE, .budget = (int64_t)1 << 40,
                          .budget_given = true};
    fit(f, &o);
    assert_int_equal(o.config.recompute, RECOMPUTE_NONE); /* nothing to save for */
    o.config.recompute = RECOMPUTE_BLOCK;
    f.freedom = 0;
    fit(f, &o);
    assert_true(same(&o, &before));
}

static void refuse(struct train_fit f, struct trainer_options *o, const char *why)
{
    struct trainer_options before = *o;
    struct error err;
    assert_false(train_fit(&f, device, o, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_true(same(o, &before));
}

static void test_what_cannot_fit(void **state)
{
    struct trainer_options o = options();
    int64_t bytes = bytes_of(&o);
    char over[64];
    snprintf(over, sizeof over, "%lld over the memory budget of %lld", 7LL, (long long)bytes - 7);
    refuse((struct train_fit){.budget = bytes - 7}, &o, over);
    refuse((struct train_fit){.budget = bytes - 7, .budget_given = true}, &o, "may be left out");
    refuse((struct train_fit){.freedom = FREE_ALL, .budget = 1000}, &o, "training needs");
    refuse((struct train_fit){.freedom = FREE_ALL, .budget = 1000, .explain = true}, &o, "1000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_that_fit_stay),
        cmocka_unit_test(test_defaults_that_do_not_fit_are_chosen_anew),
        cmocka_unit_test(test_a_given_budget_is_used),
        cmocka_unit_test(test_what_cannot_fit),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
