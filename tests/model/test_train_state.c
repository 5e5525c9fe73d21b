/* Checkpoints on disk: only complete ones count; what a kill leaves behind is passed over and
 * cleared away; damaged state is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/model/train_fixture.h"

static struct train_fixture f;

/* A run with checkpoints of steps 2, 4, 6 and 8. */
static int set_up(void **state)
{
    train_fixture_open(&f, 2000);
    f.options.config.save_interval = 2;
    f.options.config.keep_checkpoints = 10;
    train_fixture_begin(&f);
    train_fixture_steps(&f, 8);
    train_fixture_end(&f);
    return 0;
}

static int tear_down(void **state)
{
    train_fixture_close(&f);
    return 0;
}

static const char *in_step(int64_t step, const char *name)
{
    static char path[RUN_PATH_MAX];
    snprintf(path, sizeof path, "%s/checkpoints/step-%lld/%s", f.run, (long long)step, name);
    return path;
}

static bool there(int64_t step)
{
    return access(in_step(step, ""), F_OK) == 0;
}

/* Overwrites one byte of a file. */
static void damage(const char *path, long at, char byte)
{
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    fseek(file, at, SEEK_SET);
    fputc(byte, file);
    assert_int_equal(fclose(file), 0);
}

static void test_newest_complete(void **state)
{
    assert_int_equal(train_state_newest(f.run), 8);
    assert_int_equal(unlink(in_step(8, "manifest.json")), 0); /* killed before its end */
    assert_int_equal(train_state_newest(f.run), 6);
    assert_int_equal(truncate(in_step(6, "optimizer.safetensors"), 100), 0);
    assert_int_equal(train_state_newest(f.run), 4);
    damage(in_step(4, "model.safetensors"), 2000, 'x');
    assert_int_equal(train_state_newest(f.run), 2);
    assert_int_equal(unlink(in_step(2, "trainer_state.json")), 0);
    assert_int_equal(train_state_newest(f.run), -1);
    char nowhere[RUN_PATH_MAX];
    snprintf(nowhere, sizeof nowhere, "%s/nowhere", f.dir);
    assert_int_equal(train_state_newest(nowhere), -1);
}

static void test_other_names_are_not_checkpoints(void **state)
{
    static const char *const names[] = {"step-", "step-x", "step-9x", "step--9", "stp-99",
                                        "step-99999999999999999999"};
    char path[RUN_PATH_MAX];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/checkpoints/%s", f.run, names[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    assert_int_equal(train_state_newest(f.run), 8);
}

static void test_prune(void **state)
{
    struct error err;
    assert_int_equal(unlink(in_step(6, "manifest.json")), 0);
    assert_true(train_state_prune(f.run, 8, 2, 1, &err));
    assert_true(there(8) && there(2)); /* the last and the best */
    assert_false(there(6) || there(4)); /* incomplete; too many */
    assert_int_equal(train_state_newest(f.run), 8);
}

static void test_prune_leaves_what_is_newer(void **state)
{
    struct error err;
    assert_true(train_state_prune(f.run, 4, 0, 1, &err));
    assert_true(there(8) && there(6) && there(4));
    assert_false(there(2));
}

static void test_remove_and_clear(void **state)
{
    struct error err;
    assert_true(train_state_remove(f.run, 6, &err));
    assert_false(there(6));
    assert_true(train_state_remove(f.run, 6, &err)); /* nothing to do */
    assert_true(train_state_exists(f.run));
    assert_true(train_state_clear(f.run, &err));
    assert_false(there(2) || there(4) || there(8));
    assert_true(train_state_exists(f.run)); /* config.json is a model's */
    char path[RUN_PATH_MAX];
    snprintf(path, sizeof path, "%s/config.json", f.run);
    assert_int_equal(unlink(path), 0);
    assert_false(train_state_exists(f.run));
}

static void test_best_is_replaced(void **state)
{
    struct error err;
    char path[RUN_PATH_MAX], target[64] = "";
    snprintf(path, sizeof path, "%s/checkpoints/best", f.run);
    for (int64_t step = 2; step <= 4; step += 2) {
        assert_true(train_state_link_best(f.run, step, &err));
        ssize_t n = readlink(path, target, sizeof target - 1);
        assert_true(n > 0);
        target[n] = 0;
        assert_string_equal(target, step == 2 ? "step-2" : "step-4");
    }
}

static void test_one_trainer_a_directory(void **state)
{
    struct error err = {0};
    int first, second;
    assert_true(train_state_lock(f.run, &first, &err));
    assert_false(train_state_lock(f.run, &second, &err));
    assert_int_equal(err.code, ERR_BUSY);
    close(first);
    assert_true(train_state_lock(f.run, &second, &err));
    close(second);
    assert_false(train_state_lock("/nowhere/at/all", &second, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_state_is_read_back(void **state)
{
    struct train_state s = {.step = 5, .best_loss = 1.0 / 3, .best_step = 4, .evals_since_best = 1};
    struct train_state back;
    struct error err;
    char path[RUN_PATH_MAX];
    assert_true(train_state_path(f.run, 8, path, &err));
    assert_true(train_state_read(path, &s, &err));
    assert_int_equal(s.step, 8);
    assert_int_equal(s.spikes.n, 8);
    assert_true(s.spikes.losses[7] > 0);
    assert_string_equal(s.fingerprint, dataset_fingerprint(f.data));
    train_fixture_resume(&f); /* writes the state that it read, when it stops */
    trainer_stop(f.trainer);
    train_fixture_steps(&f, 1);
    assert_true(train_state_path(f.run, 9, path, &err));
    assert_true(train_state_read(path, &back, &err));
    assert_memory_equal(back.spikes.losses, s.spikes.losses, 8 * sizeof(double));
    assert_int_equal(back.spikes.n, 9);
}

static void refuse_state(const char *text, const char *why)
{
    struct train_state s;
    struct error err = {0};
    char path[RUN_PATH_MAX];
    FILE *file = fopen(in_step(8, "trainer_state.json"), "w");
    fputs(text, file);
    fclose(file);
    assert_true(train_state_path(f.run, 8, path, &err));
    if (train_state_read(path, &s, &err)) fail_msg("taken: %s", text);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
}

static void test_damaged_state_is_refused(void **state)
{
    refuse_state("", "invalid JSON");
    refuse_state("3", "not an object");
    refuse_state("{}", "\"format\" is missing");
    refuse_state("{\"format\":2}", "format is not 1");
#define HEAD "{\"format\":1,\"best_step\":0,\"best_loss\":0,\"evaluations_since_best\":0," \
             "\"spikes_in_a_row\":0,\"data\":\"x\","
    refuse_state(HEAD "\"step\":-1,\"ordinary_losses\":0,\"recent_losses\":[]}", "negative");
    refuse_state(HEAD "\"step\":1,\"ordinary_losses\":2,\"recent_losses\":[1]}", "recent_losses");
    refuse_state(HEAD "\"step\":1,\"ordinary_losses\":1,\"recent_losses\":[\"x\"]}",
                 "recent_losses");
    refuse_state(HEAD "\"step\":1,\"ordinary_losses\":0,\"recent_losses\":[],\"loss_scale\":-2}",
                 "no run writes this");
    refuse_state(HEAD "\"step\":1,\"ordinary_losses\":-1,\"recent_losses\":[]}", "recent_losses");
}

/* Arrays of another run: refused by name and size, not read past their end. */
static void test_arrays_of_another_run(void **state)
{
    struct error err = {0};
    char path[RUN_PATH_MAX];
    assert_true(train_state_path(f.run, 8, path, &err));
    FILE *file = fopen(in_step(8, "optimizer.safetensors"), "w");
    static const char header[] = "{\"0.exp_avg\":{\"dtype\":\"U8\",\"shape\":[4],"
                                 "\"data_offsets\":[0,4]}}";
    uint64_t n = sizeof header - 1;
    fwrite(&n, sizeof n, 1, file);
    fputs(header, file);
    fputs("abcd", file);
    fclose(file);
    assert_false(trainer_open(f.device, &f.options, path, &f.trainer, &err));
    f.trainer = NULL;
    assert_non_null(strstr(err.text, "has 1 arrays; this run has"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    log_set_level(LOG_ERROR); /* the warnings are the point, but not to be read */
    const struct CMUnitTest tests[] = {
        TEST(test_newest_complete),
        TEST(test_other_names_are_not_checkpoints),
        TEST(test_prune),
        TEST(test_prune_leaves_what_is_newer),
        TEST(test_remove_and_clear),
        TEST(test_best_is_replaced),
        TEST(test_one_trainer_a_directory),
        TEST(test_state_is_read_back),
        TEST(test_damaged_state_is_refused),
        TEST(test_arrays_of_another_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
