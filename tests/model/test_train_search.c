/* The search for a plan: every answer is the planner's to the byte, more memory never makes a run
 * slower, and equal times are told apart as documented. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "cpu/cpu.h"
#include "model/train_search.h"

static struct device *device;
static const struct device_rates rates = {100e9, 20e9, "given"};

static int set_up(void **state)
{
    struct error err;
    return cpu_device_open(&(struct cpu_options){.n_threads = 2}, &device, &err) ? 0 : -1;
}

static int tear_down(void **state)
{
    device->ops->close(device);
    return 0;
}

/* A model of which activations, logits and weights all take a share; batch 24. */
static struct trainer_options options(enum dtype dtype)
{
    static const char model[] = "{\"n_layer\":3,\"n_head\":4,\"n_embd\":128,\"block_size\":64,"
                                "\"vocab_size\":4000,\"bias\":false}";
    struct trainer_options o = {0};
    struct error err;
    if (!gpt_config_from_preset(model, strlen(model), "test", &o.model, &err))
        fail_msg("%s", err.text);
    train_config_init(&o.config);
    o.config.batch_size = 24;
    o.config.dtype = dtype;
    train_config_resolve(&o.config, o.model.block_size, o.model.vocab_size);
    return o;
}

static struct train_search search(const struct trainer_options *o, unsigned freedom, int64_t budget)
{
    struct train_search s;
    struct error err;
    if (!train_search(o, device, &rates, freedom, budget, &s, &err)) fail_msg("%s", err.text);
    return s;
}

static struct memory_plan planned(const struct trainer_options *o, const struct train_config *c)
{
    struct trainer_options with = *o;
    struct memory_plan m;
    struct error err;
    with.config = *c;
    if (!trainer_plan(&with, device, NULL, NULL, &m, &err)) fail_msg("%s", err.text);
    return m;
}

static int64_t bytes_of(const struct train_choice *c) { return c->memory.total_bytes; }

/* The smallest and the largest of all. */
static void extremes(const struct trainer_options *o, int64_t *least, int64_t *most)
{
    struct train_search s = search(o, FREE_ALL, 0);
    *least = INT64_MAX, *most = 0;
    for (int32_t i = 0; i < s.n; i++) {
        if (bytes_of(&s.choices[i]) < *least) *least = bytes_of(&s.choices[i]);
        if (bytes_of(&s.choices[i]) > *most) *most = bytes_of(&s.choices[i]);
    }
    train_search_free(&s);
}

static void test_bytes_are_the_planners(void **state)
{
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; dtype += DTYPE_BF16) {
        struct trainer_options o = options((enum dtype)dtype);
        struct train_search s = search(&o, FREE_ALL, 0);
        assert_true(s.n > 100 && s.n_fit == s.n);
        for (int32_t i = 0; i < s.n; i++) {
            struct memory_plan m = planned(&o, &s.choices[i].config);
            assert_memory_equal(&m, &s.choices[i].memory, sizeof m);
        }
        train_search_free(&s);
    }
}

static void test_what_fits_comes_first(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    int64_t least, most;
    extremes(&o, &least, &most);
    for (int64_t budget = least - 1; budget < most + most / 7; budget += most / 7) {
        struct train_search s = search(&o, FREE_ALL, budget);
        for (int32_t i = 0; i < s.n; i++)
            assert_int_equal(bytes_of(&s.choices[i]) <= budget, i < s.n_fit);
        for (int32_t i = s.n_fit + 1; i < s.n; i++)
            assert_true(bytes_of(&s.choices[i - 1]) <= bytes_of(&s.choices[i]));
        assert_int_equal(s.n_fit == 0, budget < least);
        assert_int_equal(s.n_fit == s.n, budget >= most);
        train_search_free(&s);
    }
}

/* But for the 2 % that count as equal. */
static void test_more_memory_is_never_slower(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    int64_t least, most;
    double before = 1e30;
    extremes(&o, &least, &most);
    for (int64_t budget = least; budget <= most; budget += (most - least) / 60) {
        struct train_search s = search(&o, FREE_ALL, budget);
        assert_true(s.n_fit > 0);
        assert_true(s.choices[0].seconds <= before * 1.02);
        if (s.choices[0].seconds < before) before = s.choices[0].seconds;
        train_search_free(&s);
    }
    assert_true(before < 1e30);
}

static void test_equal_times(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct train_search s = search(&o, FREE_ALL, 0);
    double fastest = 1e30;
    int32_t group = 0;
    for (int32_t i = 0; i < s.n; i++)
        if (s.choices[i].seconds < fastest) fastest = s.choices[i].seconds;
    while (group < s.n && s.choices[group].seconds <= fastest * 1.02) group++;
    assert_true(group > 1);
    for (int32_t i = group; i < s.n; i++) assert_true(s.choices[i].seconds > fastest * 1.02);
    for (int32_t i = 1; i < group; i++) {
        const struct train_choice *a = &s.choices[i - 1], *b = &s.choices[i];
        assert_true(a->lossy < b->lossy
                    || (a->lossy == b->lossy && bytes_of(a) <= bytes_of(b)));
    }
    assert_int_equal(s.choices[0].lossy, 0); /* with memory to spare nothing is rounded */
    train_search_free(&s);
}

static void test_the_same_every_time(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct train_search a = search(&o, FREE_ALL, 100 << 20), b = search(&o, FREE_ALL, 100 << 20);
    assert_int_equal(a.n, b.n);
    for (int32_t i = 0; i < a.n; i++) {
        assert_null(train_config_difference(&a.choices[i].config, &b.choices[i].config));
        assert_int_equal(a.choices[i].config.recompute, b.choices[i].config.recompute);
        assert_true(a.choices[i].seconds == b.choices[i].seconds);
    }
    train_search_free(&a);
    train_search_free(&b);
}

/* Only what is free is chosen. */
static void test_freedom(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct train_search s = search(&o, 0, 0);
    assert_int_equal(s.n, 1);
    assert_null(train_config_difference(&s.choices[0].config, &o.config));
    train_search_free(&s);
    s = search(&o, FREE_MOMENTS, 0);
    assert_int_equal(s.n, 3);
    train_search_free(&s);
    s = search(&o, FREE_MASTER | FREE_GRADIENTS, 0);
    assert_int_equal(s.n, 4);
    train_search_free(&s);
    s = search(&o, FREE_RECOMPUTE, 0);
    assert_int_equal(s.n, 3);
    assert_int_equal(s.choices[0].config.micro_batch_size, o.config.micro_batch_size);
    train_search_free(&s);
    s = search(&o, FREE_MICRO_BATCH, 0);
    assert_int_equal(s.n, 9); /* 1 2 3 4 6 8 12 16 24 */
    train_search_free(&s);
    o = options(DTYPE_F32); /* its own master */
    s = search(&o, FREE_MASTER, 0);
    assert_int_equal(s.n, 1);
    train_search_free(&s);
}

static void test_freedom_of_a_config(void **state)
{
    struct train_config c;
    train_config_init(&c);
    assert_int_equal(train_search_freedom(&c), FREE_ALL);
    c.moments = MOMENT_Q8;
    c.loss_rows = 64;
    assert_int_equal(train_search_freedom(&c), FREE_ALL & ~FREE_MOMENTS & ~FREE_LOSS_ROWS);
    train_config_resolve(&c, 64, 100);
    assert_int_equal(train_search_freedom(&c), 0);
}

/* What would be used without a budget is among the choices. */
static void test_the_default_is_a_choice(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct train_search s = search(&o, FREE_ALL, 0);
    int32_t found = 0;
    for (int32_t i = 0; i < s.n; i++)
        found += !train_config_difference(&s.choices[i].config, &o.config)
                 && s.choices[i].config.recompute == o.config.recompute;
    assert_int_equal(found, 1);
    train_search_free(&s);
}

static void test_ladder(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct train_search s = search(&o, FREE_ALL, 0);
    const struct train_choice *steps[32];
    int64_t least, most;
    extremes(&o, &least, &most);
    int32_t n = train_search_ladder(&s, steps, 32);
    assert_true(n > 3 && n < 32);
    assert_ptr_equal(steps[0], &s.choices[0]);
    for (int32_t i = 1; i < n; i++) assert_true(bytes_of(steps[i]) < bytes_of(steps[i - 1]));
    for (int32_t i = 1; i < n - 1; i++)
        assert_true((double)bytes_of(steps[i]) <= 0.9 * (double)bytes_of(steps[i - 1]));
    assert_int_equal(bytes_of(steps[n - 1]), least);
    assert_int_equal(train_search_ladder(&s, steps, 2), 2);
    train_search_free(&s);
    s = search(&o, FREE_ALL, 1);
    assert_int_equal(train_search_ladder(&s, steps, 32), 0);
    train_search_free(&s);
}

/* ---- the estimate ---- */

static struct train_choice cost(const struct trainer_options *o, struct device_rates r)
{
    struct train_choice c = {.config = o->config, .memory = planned(o, &o->config)};
    train_cost(o, device, &r, &c);
    return c;
}

static void test_operations_are_counted(void **state)
{
    struct trainer_options o = options(DTYPE_F32);
    /* 12 C^2 weights a layer and the head, 6 operations each; attention's 7 products over half of
     * the sequence. */
    double tokens = 24 * 64, weights = 3 * 12.0 * 128 * 128 + 4000.0 * 128;
    double expected = tokens * (6 * weights + 3 * 7.0 * 64 * 128);
    assert_true(cost(&o, rates).flops == expected);
    o.config.recompute = RECOMPUTE_BLOCK; /* one more forward pass of the blocks */
    expected += tokens * (2 * 3 * 12.0 * 128 * 128 + 3 * 2.0 * 64 * 128);
    assert_true(cost(&o, rates).flops == expected);
    o.config.grad_accum_steps = 3;
    assert_true(cost(&o, rates).flops == 3 * expected);
}

static void test_what_costs_time(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    double plain = cost(&o, rates).seconds;
    assert_true(cost(&o, (struct device_rates){200e9, 20e9, ""}).seconds < plain);
    assert_true(cost(&o, (struct device_rates){100e9, 40e9, ""}).seconds < plain);
    o.config.recompute = RECOMPUTE_SELECTIVE;
    double selective = cost(&o, rates).seconds;
    o.config.recompute = RECOMPUTE_BLOCK;
    double block = cost(&o, rates).seconds;
    assert_true(plain < selective && selective < 1.03 * plain && 1.1 * plain < block);
    o = options(DTYPE_BF16);
    o.config.micro_batch_size = o.config.loss_rows = 1;
    assert_true(cost(&o, rates).seconds > plain);
    o = options(DTYPE_BF16);
    o.config.moments = MOMENT_Q8;
    assert_int_equal(cost(&o, rates).lossy, 2);
}

/* As wide as a config may ask for: sizes that no machine has, and no overflow. */
static void test_absurd_sizes(void **state)
{
    struct trainer_options o = options(DTYPE_BF16);
    struct error err;
    o.model.n_layer = 64;
    o.model.n_embd = o.model.n_ff = CONFIG_MAX_WIDTH;
    o.model.vocab_size = CONFIG_MAX_VOCAB;
    assert_true(gpt_config_check(&o.model, "test", &err));
    struct train_search s = search(&o, FREE_ALL, (int64_t)1 << 40);
    assert_int_equal(s.n_fit, 0);
    for (int32_t i = 0; i < s.n; i++) {
        assert_true(bytes_of(&s.choices[i]) > (int64_t)1 << 40);
        assert_true(s.choices[i].seconds > 1e3);
    }
    train_search_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_are_the_planners),
        cmocka_unit_test(test_what_fits_comes_first),
        cmocka_unit_test(test_more_memory_is_never_slower),
        cmocka_unit_test(test_equal_times),
        cmocka_unit_test(test_the_same_every_time),
        cmocka_unit_test(test_freedom),
        cmocka_unit_test(test_freedom_of_a_config),
        cmocka_unit_test(test_the_default_is_a_choice),
        cmocka_unit_test(test_ladder),
        cmocka_unit_test(test_operations_are_counted),
        cmocka_unit_test(test_what_costs_time),
        cmocka_unit_test(test_absurd_sizes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
