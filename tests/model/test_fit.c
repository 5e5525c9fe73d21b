/* Answers agree with each other: what fits is within the budget, what does not says by how much,
 * and cards follow from the same plans. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_sizes.h"
#include "model/fit.h"

static struct fit_question question(int64_t budget)
{
    static const char json[] = "{\"n_layer\": 6, \"n_head\": 6, \"n_embd\": 384, "
                               "\"block_size\": 256, \"vocab_size\": 5000, \"batch_size\": 32}";
    struct fit_question q = {.longer_context = true, .device = cuda_sizes(86), .budget = budget};
    struct error err;
    train_config_init(&q.training);
    if (!gpt_config_from_preset(json, strlen(json), "test", &q.model, &err)
        || !train_config_from_json(json, strlen(json), "test", &q.training, &err))
        fail_msg("%s", err.text);
    q.training.dtype = DTYPE_BF16;
    q.card_training = q.training;
    q.freedom = train_search_freedom(&q.training);
    q.rates = gpu_rates(gpu_find("RTX 3060"));
    fit_serving_init(&q.serving);
    return q;
}

static struct fit_answer *answer(const struct fit_question *q)
{
    struct fit_answer *a = malloc(sizeof *a);
    struct error err;
    assert_non_null(a);
    if (!fit_answer(q, a, &err)) fail_msg("%s", err.text);
    return a;
}

static void test_alternatives_go_down_to_the_smallest(void **state)
{
    struct fit_question q = question(0);
    struct fit_answer *a = answer(&q);
    assert_true(a->training_fits && a->generation_fits && a->n_alternatives > 1);
    int64_t last = a->training.memory.total_bytes;
    for (int32_t i = 0; i < a->n_alternatives; i++) {
        assert_true(a->alternatives[i].memory.total_bytes < last);
        last = a->alternatives[i].memory.total_bytes;
    }
    /* No combination is smaller. */
    q.budget = last - 1;
    struct fit_answer *none = answer(&q);
    assert_false(none->training_fits);
    assert_int_equal(fit_shortfall_training(&q, none), 1);
    assert_int_equal(none->max_micro_batch_size, 0);
    /* Shorter sequences are what is left. */
    assert_true(none->n_alternatives > 0);
    for (int32_t i = 0; i < none->n_alternatives; i++) {
        assert_true(none->alternatives[i].config.sequence_length < 256);
        assert_true(none->alternatives[i].memory.total_bytes <= q.budget);
    }
    free(none);
    free(a);
}

static void test_what_was_said_is_kept_and_freed_only_to_propose(void **state)
{
    struct fit_question q = question(0);
    struct fit_answer *free_one = answer(&q);
    q.budget = free_one->alternatives[free_one->n_alternatives - 1].memory.total_bytes;
    q.training.recompute = RECOMPUTE_NONE;
    q.training.moments = MOMENT_F32;
    q.training.micro_batch_size = 32;
    q.freedom = train_search_freedom(&q.training);
    struct fit_answer *a = answer(&q);
    assert_false(a->training_fits);
    assert_int_equal(a->training.config.recompute, RECOMPUTE_NONE);
    assert_int_equal(a->training.config.moments, MOMENT_F32);
    assert_int_equal(a->training.config.micro_batch_size, 32);
    assert_true(fit_shortfall_training(&q, a) > 0);
    assert_true(a->n_alternatives > 0);
    assert_true(a->alternatives[0].memory.total_bytes <= q.budget);
    assert_int_equal(a->alternatives[0].config.sequence_length, 256);
    free(a);
    free(free_one);
}

static void test_the_largest_is_the_largest(void **state)
{
    struct fit_question q = question(400 << 20);
    struct fit_answer *a = answer(&q);
    int64_t n = a->max_micro_batch_size;
    assert_true(a->training_fits && n > 1 && a->max_sequence_length > 256);
    q.training.batch_size = q.training.micro_batch_size = n;
    q.freedom = train_search_freedom(&q.training);
    struct fit_answer *most = answer(&q);
    assert_true(most->training_fits);
    q.training.batch_size = q.training.micro_batch_size = n + 1;
    struct fit_answer *more = answer(&q);
    /* In the formats of the smallest plan, and in none that is larger. */
    assert_false(more->training_fits);
    free(more);
    free(most);
    free(a);
}

static void test_cards_follow_from_plans(void **state)
{
    struct fit_question q = question(0);
    q.model.n_embd *= 8;
    q.model.head_dim = 128;
    q.model.n_head = q.model.n_kv_head = 24;
    q.model.n_ff *= 8;
    q.model.n_layer = 24;
    struct fit_card *cards = calloc(n_gpus, sizeof *cards);
    struct error err;
    int n_trains = 0;
    if (!fit_cards(&q, cuda_sizes, cards, &err)) fail_msg("%s", err.text);
    for (size_t i = 0; i < n_gpus; i++) {
        struct fit_question one = q;
        one.device = cuda_sizes(gpus[i].sm);
        one.rates = gpu_rates(&gpus[i]);
        one.budget = gpu_budget(&gpus[i]);
        fit_half(&one);
        n_trains += cards[i].trains;
        if (i % 8) continue; /* an answer each takes its time */
        struct fit_answer *a = answer(&one);
        assert_ptr_equal(cards[i].gpu, &gpus[i]);
        assert_int_equal(cards[i].trains, a->training_fits);
        assert_int_equal(cards[i].generates, a->generation_fits);
        if (cards[i].trains) assert_true(cards[i].plan.memory.total_bytes <= one.budget);
        free(a);
    }
    assert_true(n_trains > 0 && n_trains < (int)n_gpus);
    free(cards);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alternatives_go_down_to_the_smallest),
        cmocka_unit_test(test_what_was_said_is_kept_and_freed_only_to_propose),
        cmocka_unit_test(test_the_largest_is_the_largest),
        cmocka_unit_test(test_cards_follow_from_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
