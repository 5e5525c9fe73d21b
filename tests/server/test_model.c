/* Tests of server/model.c and server/device.c: names, options, and opening the shipped model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/log.h"
#include "server/model.h"

static void test_names(void **state)
{
    static const struct { const char *spec, *id, *path; } good[] = {
        {"models/shakespeare", "shakespeare", "models/shakespeare"},
        {"models/shakespeare//", "shakespeare", "models/shakespeare//"},
        {"/a/b/Tiny.Q8_0.gguf", "Tiny.Q8_0", "/a/b/Tiny.Q8_0.gguf"},
        {"x.GGUF", "x", "x.GGUF"},
        {".gguf", ".gguf", ".gguf"},
        {"bard=models/shakespeare", "bard", "models/shakespeare"},
        {"dir/with=sign", "with=sign", "dir/with=sign"},
        {"a=b=c", "a", "b=c"},
    };
    static const char *const bad[] = {
        "", "=x", ".", "..", "/", "a b", "x\"y=path", "tab\t=path", "dir/a?b", "dir/a#b", "dir/a%b",
    };
    char id[16];
    const char *path;
    struct error err;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(model_name(good[i].spec, id, sizeof id, &path, &err));
        assert_string_equal(id, good[i].id);
        assert_string_equal(path, good[i].path);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(model_name(bad[i], id, sizeof id, &path, &err));
        assert_string_equal(err.param, "model");
    }
    assert_false(model_name("a-name-that-is-too-long", id, sizeof id, &path, &err));
}

static void test_options_that_will_not_do(void **state)
{
    struct model_options o;
    struct error err;
    model_options_init(&o);
    assert_true(model_options_check(&o, &err));
    o.dtype = "q4_K";
    assert_false(model_options_check(&o, &err));
    assert_string_equal(err.param, "dtype");
    model_options_init(&o);
    o.max_batch_tokens = o.max_seqs - 1;
    assert_false(model_options_check(&o, &err));
    assert_string_equal(err.param, "max-batch-tokens");
    model_options_init(&o);
    o.device.cpu_isa = "sse9";
    assert_false(model_options_check(&o, &err));
    assert_string_equal(err.param, "cpu-isa");
    static const char *const no_device[] = {"", "gpu", "cpu:0", "cuda:", "cuda:x", "cuda0"};
    for (size_t i = 0; i < sizeof no_device / sizeof *no_device; i++) {
        model_options_init(&o);
        o.device.name = no_device[i];
        assert_false(model_options_check(&o, &err));
        assert_string_equal(err.param, "device");
    }
}

static void test_a_missing_gpu_is_an_error(void **state)
{
    struct model_options o;
    struct model m;
    struct error err;
    model_options_init(&o);
    o.device.name = "cuda:0";
    assert_true(model_options_check(&o, &err));
    assert_false(model_open("models/shakespeare", &o, &m, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "cuda:0"));
}

static void test_opening(void **state)
{
    struct model_options o;
    struct model m;
    struct error err;
    model_options_init(&o);
    o.device.threads = 1;
    o.max_context = 64;
    assert_true(model_open("bard=models/shakespeare", &o, &m, &err));
    assert_string_equal(m.id, "bard");
    assert_non_null(m.tokenizer);
    assert_int_equal(engine_max_context(m.engine), 64);
    model_close(&m);
    assert_null(m.engine);
    model_close(&m); /* harmless */
}

static void test_what_cannot_be_opened(void **state)
{
    struct model_options o;
    struct model m;
    struct error err;
    model_options_init(&o);
    assert_false(model_open("no/such/model", &o, &m, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.text, "no/such/model"));
    o.memory_budget = 1 << 20;
    assert_false(model_open("models/shakespeare", &o, &m, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
}

int main(void)
{
    log_set_level(LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_options_that_will_not_do),
        cmocka_unit_test(test_a_missing_gpu_is_an_error),
        cmocka_unit_test(test_opening),
        cmocka_unit_test(test_what_cannot_be_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
