/* Bodies that create jobs, and job objects out and in. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/files.h"
#include "api/fine_tuning.h"
#include "api/params.h"
#include "model/train_config.h"

static bool parse(const char *body, struct ft_request *out, struct arena *arena, struct error *err)
{
    struct api_limits limits;
    api_limits_init(&limits);
    arena_init(arena, 1 << 16);
    *err = (struct error){0};
    return ft_request_parse(&limits, body, strlen(body), arena, out, err);
}

static void refused(const char *body, const char *param)
{
    struct ft_request r;
    struct arena arena;
    struct error err;
    if (parse(body, &r, &arena, &err)) fail_msg("accepted: %s", body);
    assert_string_equal(err.param, param);
    arena_free(&arena);
}

#define BASE "\"model\":\"m\",\"training_file\":\"f\""

static void test_plain_and_hyperparameters(void **state)
{
    struct ft_request r;
    struct arena arena;
    struct error err;
    assert_true(parse("{" BASE ",\"suffix\":\"a-b\",\"seed\":9007199254740991,\"max_iters\":10,"
                      "\"learning_rate\":0.25,\"dtype\":\"bf16\",\"freeze_embeddings\":true,"
                      "\"metadata\":{\"k\":\"v\"},\"method\":{\"type\":\"supervised\","
                      "\"supervised\":{\"hyperparameters\":{\"n_epochs\":\"auto\","
                      "\"batch_size\":4,\"learning_rate_multiplier\":2}}}}", &r, &arena, &err));
    assert_string_equal(r.model, "m");
    assert_string_equal(r.training_file, "f");
    assert_string_equal(r.suffix, "a-b");
    assert_string_equal(r.metadata, "{\"k\":\"v\"}");
    assert_int_equal(r.seed, 9007199254740991);
    assert_int_equal(r.n_epochs, 0);
    assert_int_equal(r.batch_size, 4);
    assert_true(r.learning_rate_multiplier == 2);
    assert_null(r.validation_file);
    assert_int_equal(r.n_keys, 4);
    assert_string_equal(r.keys[0].name, "max_iters");
    assert_string_equal(r.keys[0].value, "10");
    assert_string_equal(r.keys[1].value, "0.25");
    assert_true(r.keys[2].is_word);
    assert_string_equal(r.keys[2].value, "bf16");
    assert_string_equal(r.keys[3].value, "true");
    arena_free(&arena);
}

static void test_what_is_refused(void **state)
{
    refused("{\"model\":\"m\"}", "training_file");
    refused("{\"training_file\":\"f\"}", "model");
    refused("{" BASE ",\"max_itres\":5}", "max_itres");
    refused("{" BASE ",\"max_iters\":0}", "max_iters");
    refused("{" BASE ",\"dropout\":1}", "dropout");
    refused("{" BASE ",\"freeze_embeddings\":1}", "freeze_embeddings");
    refused("{" BASE ",\"lr_schedule\":\"\"}", "lr_schedule");
    refused("{" BASE ",\"dtype\":\"f64\"}", "dtype");
    refused("{" BASE ",\"suffix\":\"\"}", "suffix");
    refused("{" BASE ",\"suffix\":\".a\"}", "suffix");
    refused("{" BASE ",\"suffix\":\"--x y\"}", "suffix");
    refused("{" BASE ",\"hyperparameters\":{\"n_epochs\":0}}", "hyperparameters.n_epochs");
    refused("{" BASE ",\"hyperparameters\":{\"learning_rate_multiplier\":0}}",
            "hyperparameters.learning_rate_multiplier");
    refused("{" BASE ",\"hyperparameters\":{\"n_epochs\":2},\"max_iters\":5}", "max_iters");
    refused("{" BASE ",\"method\":{}}", "method.type");
    refused("{" BASE ",\"method\":{\"type\":\"supervised\",\"dpo\":{}}}", "method");
    refused("{" BASE ",\"metadata\":{\"a\":{}}}", "metadata");
}

/* Every key the trainer knows is a parameter, but those that OpenAI's shape has a place for. */
static void test_the_table_follows_the_trainer(void **state)
{
    size_t n, found = 0;
    const struct param *rows = ft_param_table(&n);
    for (size_t k = 0; k < N_TRAIN_KEYS; k++) {
        size_t times = 0;
        for (size_t i = 0; i < n; i++) times += strcmp(rows[i].name, train_keys[k].name) == 0;
        if (times != 1) fail_msg("%s is there %zu times", train_keys[k].name, times);
        found += times;
    }
    assert_int_equal(found, N_TRAIN_KEYS);
    assert_true((int)N_TRAIN_KEYS <= (int)FT_MAX_KEYS);
}

static void fill(struct ft_job *job)
{
    *job = (struct ft_job){
        .id = "ftjob-1", .model = "configs/tiny", .suffix = "s", .training_file = "file-1",
        .validation_file = "file-2", .fine_tuned_model = "s", .state = JOB_FAILED,
        .created_at = 10, .started_at = 11, .finished_at = 12, .seed = 5, .n_epochs = 3,
        .batch_size = 2, .learning_rate_multiplier = 0.1, .n_keys = 3, .step = 77,
        .trained_tokens = 9856,
        .metadata = "{\"a\":\"b\"}", .error_code = "killed",
        .error_message = "a \"quoted\" \n line",
        .config_path = "/c/tiny.json", .training_path = "training.txt",
        .validation_path = "validation.jsonl",
    };
    job->keys[0] = (struct ft_key){.name = "max_iters", .value = "12"};
    job->keys[1] = (struct ft_key){.name = "lr_schedule", .is_word = true, .value = "cosine"};
    job->keys[2] = (struct ft_key){.name = "freeze_embeddings", .value = "false"};
}

static void test_a_job_reads_back(void **state)
{
    struct ft_job a, b;
    struct buf first, second;
    struct error err;
    fill(&a);
    buf_init(&first, 1 << 16);
    buf_init(&second, 1 << 16);
    ft_job_render(&a, &first);
    if (!ft_job_parse(first.data, first.len, "job.json", &b, &err)) fail_msg("%s", err.text);
    ft_job_render(&b, &second);
    assert_string_equal(first.data, second.data);
    assert_int_equal(b.state, JOB_FAILED);
    assert_int_equal(b.n_keys, 3);
    assert_int_equal(b.trained_tokens, 9856);
    /* What was expected of a run says nothing once it has ended. */
    a.estimated_finish = 99;
    for (int running = 0; running < 2; running++) {
        a.state = running ? JOB_RUNNING : JOB_FAILED;
        buf_clear(&first);
        ft_job_render(&a, &first);
        assert_int_equal(strstr(first.data, "\"estimated_finish\":99") != NULL, running);
        assert_int_equal(strstr(first.data, "\"estimated_finish\":null") != NULL, !running);
    }
    assert_string_equal(b.keys[1].value, "cosine");
    assert_true(b.keys[1].is_word);
    assert_string_equal(b.error_message, a.error_message);
    assert_true(b.learning_rate_multiplier == a.learning_rate_multiplier);
    buf_free(&first);
    buf_free(&second);
}

static void replaced(const char *from, const char *to)
{
    struct ft_job job;
    struct buf json;
    struct error err;
    fill(&job);
    buf_init(&json, 1 << 16);
    ft_job_render(&job, &json);
    char *at = strstr(json.data, from);
    assert_non_null(at);
    struct buf changed;
    buf_init(&changed, 1 << 16);
    buf_append(&changed, json.data, (size_t)(at - json.data));
    buf_puts(&changed, to);
    buf_puts(&changed, at + strlen(from));
    assert_false(ft_job_parse(changed.data, changed.len, "job.json", &job, &err));
    assert_non_null(strstr(err.text, "job.json"));
    buf_free(&changed);
    buf_free(&json);
}

/* A job.json that somebody changed never reaches a command line with what is not ours. */
static void test_damaged_jobs(void **state)
{
    replaced("\"failed\"", "\"odd\"");
    replaced("\"max_iters\"", "\"out_dir\"");
    replaced("\"cosine\"", "\"cosine --x\"");
    replaced("\"training.txt\"", "null");
    replaced("77", "7.5");
    replaced("{\"id\"", "{\"id\":1,\"id\"");
}

static void test_file_names(void **state)
{
    char out[32];
    api_file_clean_name("../../etc/passwd", out, sizeof out);
    assert_string_equal(out, "passwd");
    api_file_clean_name("a\nb\x7f\xff" "c", out, sizeof out);
    assert_string_equal(out, "abc");
    api_file_clean_name("dir/", out, sizeof out);
    assert_string_equal(out, "file");
    api_file_clean_name("\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", out,
                        sizeof out);
    assert_true(strlen(out) < sizeof out && strlen(out) % 2 == 0);
}

static void test_a_file_reads_back(void **state)
{
    struct api_file a = {.id = "file-1", .purpose = "fine-tune", .filename = "x \"y\".txt",
                         .bytes = INT64_C(1) << 40, .created_at = 5}, b;
    struct buf json;
    struct error err;
    buf_init(&json, 4096);
    api_file_render(&a, &json);
    assert_true(api_file_parse(json.data, json.len, "file.json", &b, &err));
    assert_memory_equal(&a, &b, sizeof a);
    assert_false(api_file_parse("{}", 2, "file.json", &b, &err));
    buf_free(&json);
}

static void test_checkpoints_without_metrics(void **state)
{
    struct ft_job job = {.id = "ftjob-1"};
    struct ft_checkpoint c = {.path = "/p", .step = 3, .train_loss = NAN,
                              .valid_loss = NAN};
    struct buf out;
    buf_init(&out, 4096);
    ft_checkpoint_render(&job, &c, &out);
    assert_non_null(strstr(out.data, "\"metrics\":{\"step\":3}"));
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_and_hyperparameters),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_the_table_follows_the_trainer),
        cmocka_unit_test(test_a_job_reads_back),
        cmocka_unit_test(test_damaged_jobs),
        cmocka_unit_test(test_file_names),
        cmocka_unit_test(test_a_file_reads_back),
        cmocka_unit_test(test_checkpoints_without_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
