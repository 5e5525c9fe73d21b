/* Training keys: read, checked, written, compared; every one of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/config.h"
#include "model/train_config.h"

static struct train_config read_good(const char *json)
{
    struct train_config c;
    struct error err;
    train_config_init(&c);
    if (!train_config_from_json(json, strlen(json), "own.json", &c, &err)) fail_msg("%s", err.text);
    if (!train_config_check(&c, "own.json", &err)) fail_msg("%s", err.text);
    return c;
}

static void test_against_the_model(void **state)
{
    struct gpt_config model = {.block_size = 128, .n_layer = 4};
    struct train_config c;
    struct error err;
    train_config_init(&c);
    c.sequence_length = 128, c.freeze_layers = 4;
    assert_true(train_config_check_model(&c, &model, &err));
    c.sequence_length = 129;
    assert_false(train_config_check_model(&c, &model, &err));
    assert_string_equal(err.param, "sequence_length");
    c.sequence_length = 0, c.freeze_layers = 5;
    assert_false(train_config_check_model(&c, &model, &err));
    assert_string_equal(err.param, "freeze_layers");
}

static void test_a_run_shorter_than_its_warm_up(void **state)
{
    static const struct { double warmup; int64_t steps; bool good; } runs[] = {
        {100, 101, true}, {100, 100, false}, {100, 5, false}, {0.5, 5, true}, {0, 2, true},
        {1, 1, true}, {7, 1, true},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct train_config c;
        struct error why = {0};
        train_config_init(&c);
        c.warmup_iters = runs[i].warmup, c.max_iters = runs[i].steps;
        assert_int_equal(train_config_warms_up(&c, &why), runs[i].good);
        assert_string_equal(why.param, runs[i].good ? "" : "warmup_iters");
    }
}

static void refuse(const char *json, const char *param, const char *why)
{
    struct train_config c;
    struct error err = {0};
    train_config_init(&c);
    if (train_config_from_json(json, strlen(json), "own.json", &c, &err)
        && train_config_check(&c, "own.json", &err))
        fail_msg("taken: %s", json);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_string_equal(err.param, param);
    assert_non_null(strstr(err.text, "own.json"));
}

static void test_defaults_are_valid(void **state)
{
    struct train_config c = read_good("{}");
    assert_int_equal(c.batch_size, 16);
    assert_true(c.learning_rate == 1e-3 && c.lr_schedule == LR_COSINE && c.dtype == DTYPE_F32);
    assert_true((int)c.recompute == TRAIN_AUTO && (int)c.moments == TRAIN_AUTO);
    assert_true((int)c.master == TRAIN_AUTO && (int)c.gradients == TRAIN_AUTO);
    train_config_resolve(&c, 16, 100);
    assert_true(c.recompute == RECOMPUTE_NONE && c.moments == MOMENT_F32);
    assert_true(c.master == MASTER_REMAINDER && c.gradients == DTYPE_F32);
}

static void test_keys_are_read(void **state)
{
    struct train_config c = read_good(
        "{\"batch_size\":3,\"grad_accum_steps\":5,\"max_iters\":70,\"learning_rate\":0.5,"
        "\"min_lr\":0.25,\"warmup_iters\":0.1,\"lr_schedule\":\"wsd\",\"decay_iters\":7,"
        "\"dtype\":\"bf16\",\"gradients\":\"bf16\",\"recompute\":\"block\",\"moments\":\"q8\","
        "\"master\":\"f32\",\"freeze_embeddings\":true,\"seed\":9007199254740992,"
        "\"dropout\":0.25,\"sequence_length\":31}");
    assert_true(c.batch_size == 3 && c.grad_accum_steps == 5 && c.max_iters == 70);
    assert_true(c.learning_rate == 0.5 && c.min_lr == 0.25 && c.warmup_iters == 0.1);
    assert_true(c.lr_schedule == LR_WSD && c.decay_iters == 7 && c.dtype == DTYPE_BF16);
    assert_true(c.recompute == RECOMPUTE_BLOCK && c.moments == MOMENT_Q8);
    assert_int_equal(c.gradients, DTYPE_BF16);
    assert_true(c.master == MASTER_F32 && c.freeze_embeddings && c.seed == 9007199254740992);
    assert_true(c.dropout == 0.25 && c.sequence_length == 31);
    struct schedule s = train_config_schedule(&c);
    assert_true(s.warmup_iters == 7 && s.decay_iters == 7 && s.max_iters == 70);
}

static void test_wrong_values_are_refused(void **state)
{
    refuse("{\"batch_size\":0}", "batch_size", "from 1 to 65536");
    refuse("{\"batch_size\":1.5}", "batch_size", "not an integer");
    refuse("{\"batch_size\":\"x\"}", "batch_size", "a string");
    refuse("{\"seed\":-1}", "seed", "from 0");
    refuse("{\"learning_rate\":-1}", "learning_rate", "from 0 to 10");
    refuse("{\"learning_rate\":1e-4,\"min_lr\":1e-3}", "min_lr", "above learning_rate");
    refuse("{\"min_lr\":-0.5}", "min_lr", "or -1");
    refuse("{\"lr_schedule\":\"cos\"}", "lr_schedule", "cosine, linear, constant, wsd");
    refuse("{\"dtype\":\"f64\"}", "dtype", "known are f32, f16, bf16");
    refuse("{\"gradients\":\"f16\"}", "gradients", "known are f32, bf16");
    refuse("{\"gradients\":\"\"}", "gradients", "known are f32, bf16");
    refuse("{\"loss_scale\":0.5}", "loss_scale", "at least 1");
    refuse("{\"master\":\"none\"}", "master", "known are f32, remainder");
    refuse("{\"recompute\":3}", "recompute", "a number, not a string");
    refuse("{\"freeze_embeddings\":1}", "freeze_embeddings", "true or false");
    refuse("{\"dropout\":1}", "dropout", "from 0 to 0.99");
    refuse("{\"micro_batch_size\":33,\"batch_size\":16,\"grad_accum_steps\":2}",
           "micro_batch_size", "a step has 32 sequences");
    refuse("{\"lr_schedule\":\"wsd\",\"warmup_iters\":0.6,\"decay_iters\":0.6}", "decay_iters",
           "over max_iters");
    refuse("3", "", "a number");
    refuse("{", "", "invalid JSON");
}

/* A key's ends are in its range; just outside is not. */
static void test_every_range(void **state)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) {
        const struct train_key *key = &train_keys[i];
        char json[100];
        struct train_config c;
        struct error err;
        if (key->type != TRAIN_INT && key->type != TRAIN_DOUBLE) continue;
        for (int outside = 0; outside < 2; outside++) {
            snprintf(json, sizeof json, "{\"%s\":%.17g}", key->name,
                     outside ? key->max * 2 + 1 : key->min);
            train_config_init(&c);
            bool ok = train_config_from_json(json, strlen(json), "x", &c, &err) &&
                      train_config_check(&c, "x", &err);
            if (outside) assert_false(ok);
            else if (!ok && strcmp(key->name, "learning_rate") != 0) fail_msg("%s", err.text);
        }
    }
}

static void test_names_are_distinct_and_explained(void **state)
{
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) {
        assert_true(strlen(train_keys[i].help) > 10);
        assert_true(train_keys[i].type != TRAIN_WORD || train_keys[i].words);
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(train_keys[i].name, train_keys[j].name);
            assert_int_not_equal(train_keys[i].offset, train_keys[j].offset);
        }
    }
}

static void test_resolving(void **state)
{
    struct train_config c = read_good("{\"batch_size\":64,\"grad_accum_steps\":2}");
    train_config_resolve(&c, 128, 65);
    assert_true(c.sequence_length == 128 && c.micro_batch_size == 16);
    assert_true(c.min_lr == 1e-4 && c.loss_rows == 2048); /* all rows: few logits each */
    c = read_good("{\"batch_size\":64,\"min_lr\":0}");
    train_config_resolve(&c, 1024, 50304);
    assert_true(c.micro_batch_size == 2 && c.loss_rows == 512 && c.min_lr == 0);
    c = read_good("{\"batch_size\":64}");
    train_config_resolve(&c, 1024, 128000);
    assert_int_equal(c.loss_rows, 256); /* 128 MiB */
    c = read_good("{\"batch_size\":64,\"sequence_length\":10,\"micro_batch_size\":3}");
    train_config_resolve(&c, 1 << 20, 1 << 22);
    assert_true(c.micro_batch_size == 3 && c.sequence_length == 10 && c.loss_rows == 30);
    c = read_good("{\"batch_size\":64}");
    train_config_resolve(&c, 1 << 20, 65); /* one sequence at least */
    assert_int_equal(c.micro_batch_size, 1);
}

/* The key's value becomes another valid one. */
static void change(const struct train_key *key, struct train_config *c)
{
    void *at = (char *)c + key->offset;
    switch (key->type) {
    case TRAIN_INT: *(int64_t *)at += 1; break;
    case TRAIN_DOUBLE: *(double *)at = *(double *)at / 3 + 1e-3; break;
    case TRAIN_BOOL: *(bool *)at = !*(bool *)at; break;
    case TRAIN_WORD: *(int *)at = *(int *)at == 2 ? (key->words[0][0] ? 0 : 1) : 2; break;
    }
}

/* Each key, changed alone, survives being written and read, and is named as the difference if a
 * resumed run may not change it. */
static void test_every_key_is_written_and_compared(void **state)
{
    struct train_config plain;
    train_config_init(&plain);
    for (size_t i = 0; i < N_TRAIN_KEYS; i++) {
        struct train_config c = plain, back;
        struct error err;
        change(&train_keys[i], &c);
        struct cJSON *object = cJSON_CreateObject();
        assert_true(train_config_to_json(&c, object));
        char *text = cJSON_Print(object);
        train_config_init(&back);
        if (!train_config_from_json(text, strlen(text), "x", &back, &err)) fail_msg("%s", err.text);
        cJSON_free(text);
        cJSON_Delete(object);
        assert_null(train_config_difference(&c, &back));
        for (size_t j = 0; j < N_TRAIN_KEYS; j++) {
            size_t size = train_keys[j].type == TRAIN_BOOL   ? sizeof(bool)
                          : train_keys[j].type == TRAIN_WORD ? sizeof(int)
                                                             : 8;
            assert_memory_equal((char *)&c + train_keys[j].offset,
                                (char *)&back + train_keys[j].offset, size);
        }
        assert_ptr_equal(train_config_difference(&plain, &c),
                         train_keys[i].fixed ? &train_keys[i] : NULL);
    }
}

static void test_numbers_are_exact(void **state)
{
    static const double values[] = {0.1, 1.0 / 3, 1e-300, 6e-5, 9007199254740991.0, 1e22, -0.7};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        struct cJSON *object = cJSON_CreateObject();
        assert_true(json_add_number(object, "x", values[i]));
        char *text = cJSON_PrintUnformatted(object);
        assert_true(strtod(text + 5, NULL) == values[i]);
        cJSON_free(text);
        cJSON_Delete(object);
    }
    struct cJSON *object = cJSON_CreateObject();
    assert_false(json_add_number(object, "x", 1.0 / 0.0));
    assert_true(json_add_float(object, "y", 1e-5f));
    char *text = cJSON_PrintUnformatted(object);
    assert_string_equal(text, "{\"y\":1e-05}");
    cJSON_free(text);
    cJSON_Delete(object);
}

/* A resolved config with its model is a config file again. */
static void test_model_and_training_keys_in_one_file(void **state)
{
    static const char own[] = "{\"n_layer\":2,\"n_head\":4,\"n_kv_head\":2,\"n_embd\":64,"
                              "\"block_size\":32,\"vocab_size\":100,\"pos_encoding\":\"rope\","
                              "\"norm_type\":\"rmsnorm\",\"mlp_type\":\"swiglu\",\"bias_qkv\":true,"
                              "\"rope_theta\":500000,\"dropout\":0.1,\"batch_size\":7}";
    struct gpt_config model, back;
    struct train_config c = read_good(own), c_back;
    struct error err;
    assert_true(gpt_config_from_preset(own, strlen(own), "own.json", &model, &err));
    struct cJSON *object = cJSON_CreateObject();
    assert_true(gpt_config_to_preset(&model, object) && train_config_to_json(&c, object));
    char *text = cJSON_Print(object);
    if (!gpt_config_from_preset(text, strlen(text), "back.json", &back, &err))
        fail_msg("%s", err.text);
    assert_null(gpt_config_difference(&model, &back));
    assert_string_equal(model.arch, back.arch);
    assert_true(back.dropout == 0.1f);
    c_back = read_good(text);
    assert_null(train_config_difference(&c, &c_back));
    back.n_ff++;
    assert_string_equal(gpt_config_difference(&model, &back), "n_ff");
    cJSON_free(text);
    cJSON_Delete(object);
}

static void test_a_config_beside_a_model(void **state)
{
    static const char own[] = "{\"n_layer\":2,\"n_head\":4,\"n_embd\":64,\"block_size\":32,"
                              "\"vocab_size\":100}";
    struct gpt_config model;
    struct error err = {0};
    assert_true(gpt_config_from_preset(own, strlen(own), "own.json", &model, &err));
    static const char same[] = "{\"n_layer\":2,\"bias\":false,\"batch_size\":3}";
    if (!gpt_config_agrees(same, strlen(same), "same.json", &model, &err)) fail_msg("%s", err.text);
    static const char other[] = "{\"n_layer\":3}";
    assert_false(gpt_config_agrees(other, strlen(other), "other.json", &model, &err));
    assert_string_equal(err.param, "n_layer");
    static const char unknown[] = "{\"batchsize\":3}";
    assert_false(gpt_config_agrees(unknown, strlen(unknown), "x.json", &model, &err));
    assert_string_equal(err.param, "batchsize");
}

static void test_presets(void **state)
{
    glob_t found;
    assert_int_equal(glob("configs/*.json", 0, NULL, &found), 0);
    assert_true(found.gl_pathc >= 14);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct buf text;
        struct error err;
        buf_init(&text, 1 << 16);
        assert_true(file_read(found.gl_pathv[i], &text, &err));
        struct train_config c = read_good(text.data);
        assert_true(c.max_iters >= 1000 && c.min_lr > 0);
        buf_free(&text);
    }
    globfree(&found);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_valid),
        cmocka_unit_test(test_keys_are_read),
        cmocka_unit_test(test_wrong_values_are_refused),
        cmocka_unit_test(test_every_range),
        cmocka_unit_test(test_against_the_model),
        cmocka_unit_test(test_a_run_shorter_than_its_warm_up),
        cmocka_unit_test(test_names_are_distinct_and_explained),
        cmocka_unit_test(test_resolving),
        cmocka_unit_test(test_every_key_is_written_and_compared),
        cmocka_unit_test(test_numbers_are_exact),
        cmocka_unit_test(test_model_and_training_keys_in_one_file),
        cmocka_unit_test(test_a_config_beside_a_model),
        cmocka_unit_test(test_presets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
