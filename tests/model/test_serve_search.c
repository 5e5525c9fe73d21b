/* The largest that fits is the largest: one more does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "base/checked.h"
#include "cuda/cuda_sizes.h"
#include "cpu/cpu.h"
#include "model/serve_search.h"

static struct gpt_config model(void)
{
    static const char json[] = "{\"n_layer\": 4, \"n_head\": 4, \"n_embd\": 256, "
                               "\"block_size\": 512, \"vocab_size\": 5000}";
    struct gpt_config c;
    struct error err;
    if (!gpt_config_from_preset(json, strlen(json), "test", &c, &err)) fail_msg("%s", err.text);
    return c;
}

static struct engine_options options(void)
{
    struct engine_options o;
    engine_options_init(&o);
    o.max_seqs = 1;
    o.max_batch_tokens = 64;
    return o;
}

static int64_t planned(const struct gpt_config *c, const struct engine_options *o,
                       const struct device *d)
{
    struct engine_need need;
    struct error err;
    if (!serve_plan_full(c, o, d, NULL, NULL, &need, &err)) fail_msg("%s", err.text);
    /* Every sequence has its pages, whatever the budget. */
    assert_int_equal(need.kv_pages, o->max_seqs * ceil_div(need.max_context, KV_PAGE_TOKENS));
    return need.memory.total_bytes;
}

static struct serve_limits limits(const struct gpt_config *c, const struct engine_options *o,
                                  const struct device *d, int64_t budget)
{
    struct serve_limits l;
    struct error err;
    if (!serve_search(c, o, d, budget, &l, &err)) fail_msg("%s", err.text);
    return l;
}

static void check_each_is_the_largest(const struct device *d)
{
    struct gpt_config c = model();
    struct engine_options o = options();
    int64_t one = planned(&c, &o, d);
    for (int64_t more = 0; more <= 64 << 20; more = more * 3 + 100000) {
        int64_t budget = one + more;
        struct serve_limits l = limits(&c, &o, d, budget);
        assert_int_equal(l.max_context, c.block_size);
        assert_int_equal(l.context, c.block_size);
        struct engine_options seqs = o, rows = o;
        seqs.max_seqs = l.max_seqs;
        rows.max_batch_tokens = l.max_batch_tokens;
        assert_true(planned(&c, &seqs, d) <= budget && planned(&c, &rows, d) <= budget);
        seqs.max_seqs++;
        rows.max_batch_tokens++;
        assert_true(planned(&c, &seqs, d) > budget && planned(&c, &rows, d) > budget);
    }
}

static void test_one_more_does_not_fit_on_the_cpu(void **state)
{
    struct cpu_options cpu = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct device *d;
    struct error err;
    if (!cpu_device_open(&cpu, &d, &err)) fail_msg("%s", err.text);
    check_each_is_the_largest(d);
    d->ops->close(d);
}

static void test_one_more_does_not_fit_on_a_gpu(void **state)
{
    check_each_is_the_largest(cuda_sizes(86));
    check_each_is_the_largest(cuda_sizes(90));
}

static void test_context_shrinks_before_nothing_fits(void **state)
{
    const struct device *d = cuda_sizes(86);
    struct gpt_config c = model();
    struct engine_options o = options();
    int64_t whole = planned(&c, &o, d);
    struct serve_limits l = limits(&c, &o, d, whole - 1);
    assert_true(l.max_context < c.block_size && l.max_context > 0);
    assert_int_equal(l.context, l.max_context);
    o.max_context = l.max_context;
    assert_true(planned(&c, &o, d) <= whole - 1);
    o.max_context++;
    assert_true(planned(&c, &o, d) > whole - 1);
    o.max_context = 0;
    l = limits(&c, &o, d, 1 << 20);
    assert_int_equal(l.max_context, 0);
    assert_int_equal(l.max_seqs, 0);
    assert_int_equal(l.max_batch_tokens, 0);
}

static void test_without_a_budget_the_limits_are_the_engines(void **state)
{
    struct gpt_config c = model();
    struct engine_options o = options();
    struct serve_limits l = limits(&c, &o, cuda_sizes(86), 0);
    assert_int_equal(l.max_context, c.block_size);
    assert_int_equal(l.max_seqs, ENGINE_MAX_SEQS);
    assert_int_equal(l.max_batch_tokens, ENGINE_MAX_BATCH_TOKENS);
}

static void test_quantized_weights_keep_bf16_pages(void **state)
{
    struct gpt_config c = model();
    struct engine_options o = options();
    const struct device *d = cuda_sizes(86);
    int64_t bf16 = planned(&c, &o, d);
    o.dtype = DTYPE_Q8_0;
    int64_t q8 = planned(&c, &o, d);
    o.dtype = DTYPE_Q4_0;
    int64_t q4 = planned(&c, &o, d);
    o.dtype = DTYPE_F32;
    assert_true(q4 < q8 && q8 < bf16 && bf16 < planned(&c, &o, d));
}

static void test_a_quantized_cache_on_the_cpu_alone(void **state)
{
    struct cpu_options cpu = {.n_threads = 1, .isa = CPU_ISA_REFERENCE};
    struct gpt_config c = model();
    struct engine_options o = options();
    struct engine_need need;
    struct device *d;
    struct error err = {0};
    if (!cpu_device_open(&cpu, &d, &err)) fail_msg("%s", err.text);
    int64_t bf16 = planned(&c, &o, d), pages = c.n_layer * ceil_div(c.block_size, KV_PAGE_TOKENS);
    o.kv_dtype = DTYPE_Q8_0;
    int64_t saved = d->ops->kv_page_bytes(d, DTYPE_BF16, 4, 64) -
                    d->ops->kv_page_bytes(d, DTYPE_Q8_0, 4, 64);
    assert_int_equal(planned(&c, &o, d), bf16 - pages * saved);
    d->ops->close(d);
    assert_false(serve_plan_full(&c, &o, cuda_sizes(86), NULL, NULL, &need, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_string_equal(err.param, "kv_dtype");
    assert_non_null(strstr(err.text, "bf16, not in q8_0"));
}

static void test_options_that_no_engine_takes_are_errors(void **state)
{
    struct gpt_config c = model();
    struct engine_options o = options();
    struct serve_limits l;
    struct error err = {0};
    o.max_context = c.block_size + 1;
    assert_false(serve_search(&c, &o, cuda_sizes(86), 0, &l, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err.param, "max_context");
    /* More pages than slots can be numbered: refused, never less than was asked for. */
    o = options();
    c.block_size = o.max_context = CONFIG_MAX_CONTEXT;
    o.max_seqs = ENGINE_MAX_SEQS;
    struct engine_need need;
    assert_false(serve_plan_full(&c, &o, cuda_sizes(86), NULL, NULL, &need, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_more_does_not_fit_on_the_cpu),
        cmocka_unit_test(test_one_more_does_not_fit_on_a_gpu),
        cmocka_unit_test(test_context_shrinks_before_nothing_fits),
        cmocka_unit_test(test_without_a_budget_the_limits_are_the_engines),
        cmocka_unit_test(test_quantized_weights_keep_bf16_pages),
        cmocka_unit_test(test_a_quantized_cache_on_the_cpu_alone),
        cmocka_unit_test(test_options_that_no_engine_takes_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
