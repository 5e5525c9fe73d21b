/* Loss on text through the forward pass that serves: the same bits as training's evaluation of
 * the same sequences, in pieces as at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "model/evaluate.h"
#include "tests/model/train_fixture.h"

static struct train_fixture f;
static double trained_loss;

static int set_up(void **state)
{
    train_fixture_open(&f, 4000);
    return 0;
}

static int tear_down(void **state)
{
    train_fixture_close(&f);
    return 0;
}

static void see(void *ctx, const struct trainer_evaluation *e) { trained_loss = e->loss[0]; }

/* Trains a little, and evaluates the whole validation set at the end. */
static void train(int64_t block_size)
{
    f.options.model.block_size = block_size;
    f.options.config.sequence_length = 0;
    f.options.config.eval_interval = 10;
    f.options.config.eval_iters = 1000000;
    f.options.config.max_iters = 10;
    f.options.listener.evaluated = see;
    train_fixture_open_data(&f);
    train_fixture_begin(&f);
    train_fixture_run(&f);
    train_fixture_end(&f);
}

/* Of the run's model, over the whole validation set. */
static bool evaluate(enum dtype dtype, struct evaluation *sum, struct error *err)
{
    struct checkpoint *ck;
    struct evaluator *e;
    if (!checkpoint_open(f.run, &ck, err)) fail_msg("%s", err->text);
    struct evaluator_options o = {.checkpoint = ck, .dtype = dtype, .kv_dtype = KV_AUTO,
                                  .max_sequence = f.options.config.sequence_length};
    if (!evaluator_open(f.device, &o, &e, err)) fail_msg("%s", err->text);
    bool ok = true;
    for (int64_t i = 0; i < dataset_sequences(f.data, SPLIT_VALIDATION) && ok; i++)
        ok = evaluator_add(e, f.data, SPLIT_VALIDATION, i, sum, err);
    evaluator_close(e);
    checkpoint_close(ck);
    return ok;
}

static void check_same_bits(int64_t block_size, enum dtype dtype)
{
    f.options.config.dtype = dtype;
    train(block_size);
    struct evaluation sum = {0};
    struct error err;
    if (!evaluate(dtype, &sum, &err)) fail_msg("%s", err.text);
    assert_int_equal(sum.tokens, dataset_tokens(f.data, SPLIT_VALIDATION) - 1);
    assert_true(sum.nll / (double)sum.tokens == trained_loss); /* to the bit */
    assert_true(trained_loss < 3.2 && trained_loss > 1);
}

static void test_as_training_f32(void **state) { check_same_bits(16, DTYPE_F32); }
static void test_as_training_bf16(void **state) { check_same_bits(16, DTYPE_BF16); }
/* Sequences of more rows than a piece, and pieces that end within a page. */
static void test_long_sequences_in_pieces(void **state) { check_same_bits(300, DTYPE_F32); }

/* It has no loss, and none is made up. */
static void test_a_model_of_nan_is_an_error(void **state)
{
    struct evaluation sum = {0};
    struct error err;
    char path[PATH_MAX];
    train(16);
    snprintf(path, sizeof path, "%s/model.safetensors", f.run);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fseek(file, -64, SEEK_END), 0);
    for (int i = 0; i < 64; i++) fputc(0xFF, file);
    assert_int_equal(fclose(file), 0);
    assert_false(evaluate(DTYPE_F32, &sum, &err));
    assert_non_null(strstr(err.text, "its weights hold NaN"));
}

static void test_over_the_budget(void **state)
{
    struct checkpoint *ck;
    struct evaluator *e = NULL;
    struct error err = {0};
    train(16);
    assert_true(checkpoint_open(f.run, &ck, &err));
    struct evaluator_options o = {.checkpoint = ck, .dtype = DTYPE_F32, .kv_dtype = KV_AUTO,
                                  .max_sequence = 16};
    assert_true(evaluator_open(f.device, &o, &e, &err));
    o.memory_budget = evaluator_memory(e) - 1;
    evaluator_close(e);
    assert_false(evaluator_open(f.device, &o, &e, &err));
    assert_int_equal(err.code, ERR_NO_FIT);
    assert_non_null(strstr(err.text, "1 over the memory budget"));
    checkpoint_close(ck);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_as_training_f32),
        TEST(test_as_training_bf16),
        TEST(test_long_sequences_in_pieces),
        TEST(test_a_model_of_nan_is_an_error),
        TEST(test_over_the_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
