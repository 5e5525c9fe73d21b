/* Jobs under a supervisor, with the trainer that tests/fake_trainer.py plays; and what is on disk
 * of them. What clients see of it all is in tests/http/test_fine_tuning.py. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "server/job_process.h"
#include "server/job_store.h"
#include "server/jobs.h"

struct fixture {
    char root[64];
    struct data_dir dir;
    struct file_store *files;
    struct jobs *jobs;
};

static void fixture_open(struct fixture *f)
{
    struct jobs_options o;
    struct error err;
    jobs_options_init(&o);
    o.trainer = "tests/fake_trainer.py";
    if (!data_dir_init(&f->dir, f->root, &err) || !data_dir_take(&f->dir, &err)
        || !file_store_open(&f->dir, 1000, &f->files, &err)
        || !jobs_start(&f->dir, f->files, &o, &f->jobs, &err))
        fail_msg("%s", err.text);
}

static void fixture_close(struct fixture *f)
{
    jobs_stop(f->jobs, 60);
    file_store_close(f->files);
    data_dir_release(&f->dir);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->root, "/tmp/gptd-jobs-XXXXXX");
    if (!mkdtemp(f->root)) return -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    struct error err;
    bool ok = data_remove_tree(f->root, &err);
    free(f);
    return ok ? 0 : -1;
}

static void upload(struct fixture *f, const char *text, struct api_file *out)
{
    struct file_upload *u;
    struct error err;
    if (!file_upload_begin(f->files, "t.txt", &u, &err)
        || !file_upload_append(u, text, strlen(text), &err)
        || !file_upload_finish(u, "fine-tune", out, &err))
        fail_msg("%s", err.text);
}

static struct ft_job create(struct fixture *f, const char *plan)
{
    struct api_file file;
    struct buf out;
    struct error err;
    struct ft_job job;
    upload(f, plan, &file);
    struct ft_request r = {.model = "configs/tiny_char", .training_file = file.id, .seed = -1};
    buf_init(&out, 1 << 16);
    char path[1024];
    if (!jobs_preset_path(f->jobs, r.model, path, sizeof path, &err)
        || !jobs_create(f->jobs, &r, path, NULL, &out, &err)
        || !ft_job_parse(out.data, out.len, "reply", &job, &err))
        fail_msg("%s", err.text);
    buf_free(&out);
    return job;
}

static struct ft_job look(struct fixture *f, const char *id)
{
    struct buf out;
    struct error err;
    struct ft_job job;
    buf_init(&out, 1 << 16);
    if (!jobs_get(f->jobs, id, &out, &err) || !ft_job_parse(out.data, out.len, "reply", &job, &err))
        fail_msg("%s", err.text);
    buf_free(&out);
    return job;
}

static struct ft_job wait_for(struct fixture *f, const char *id, enum job_state state, int64_t step)
{
    struct ft_job job;
    for (int i = 0; i < 3000; i++) {
        job = look(f, id);
        if (job.state == state && job.step >= step) return job;
        usleep(10000);
    }
    fail_msg("the job is %s at step %lld: %s", job_state_name(job.state), (long long)job.step,
             job.error_message);
    return job;
}

static void give_order(struct fixture *f, const char *id, enum job_order order, bool allowed)
{
    struct buf out;
    struct error err;
    buf_init(&out, 1 << 16);
    bool ok = jobs_order(f->jobs, id, order, &out, &err);
    buf_free(&out);
    assert_int_equal(ok, allowed);
}

static void test_to_success(void **state)
{
    struct fixture *f = *state;
    char path[DATA_PATH_MAX], name[FT_CHECKPOINT_NAME_MAX];
    int64_t created;
    fixture_open(f);
    struct ft_job job = create(f, "steps=6 save=3\n");
    assert_false(jobs_find_model(f->jobs, "ft:none", path, &created));
    job = wait_for(f, job.id, JOB_SUCCEEDED, 6);
    assert_true(jobs_find_model(f->jobs, job.fine_tuned_model, path, &created));
    assert_true(file_is_dir(path) && created == job.finished_at);
    for (int64_t step = 1; step <= 6; step++) {
        ft_checkpoint_name(&job, step, name);
        assert_int_equal(jobs_find_model(f->jobs, name, path, &created), step % 3 == 0);
    }
    assert_true(file_is_dir(path) && created >= job.started_at);
    give_order(f, job.id, JOB_CANCEL, false);
    give_order(f, job.id, JOB_PAUSE, false);
    give_order(f, job.id, JOB_RESUME, false);
    fixture_close(f);
}

static void test_orders(void **state)
{
    struct fixture *f = *state;
    fixture_open(f);
    struct ft_job job = create(f, "steps=1000 pause=0.01\n");
    struct ft_job next = create(f, "steps=1\n");
    wait_for(f, job.id, JOB_RUNNING, 2);
    assert_int_equal(look(f, next.id).state, JOB_QUEUED);
    give_order(f, job.id, JOB_RESUME, false);
    give_order(f, job.id, JOB_PAUSE, true);
    wait_for(f, next.id, JOB_SUCCEEDED, 1);
    assert_int_equal(look(f, job.id).state, JOB_PAUSED);
    give_order(f, job.id, JOB_PAUSE, false);
    give_order(f, job.id, JOB_RESUME, true);
    wait_for(f, job.id, JOB_RUNNING, look(f, job.id).step + 2);
    give_order(f, job.id, JOB_CANCEL, true);
    assert_int_equal(look(f, job.id).state, JOB_CANCELLED);
    fixture_close(f);
}

/* It goes on before one that is older but waited. */
static void test_who_ran_goes_first(void **state)
{
    struct fixture *f = *state;
    fixture_open(f);
    struct ft_job older = create(f, "steps=1000 pause=0.01\n");
    struct ft_job job = create(f, "steps=40 pause=0.05\n");
    wait_for(f, older.id, JOB_RUNNING, 1);
    give_order(f, older.id, JOB_PAUSE, true);
    wait_for(f, job.id, JOB_RUNNING, 2);
    give_order(f, older.id, JOB_RESUME, true);
    fixture_close(f);
    fixture_open(f);
    wait_for(f, job.id, JOB_RUNNING, 5);
    assert_int_equal(look(f, older.id).state, JOB_QUEUED);
    wait_for(f, job.id, JOB_SUCCEEDED, 40);
    give_order(f, older.id, JOB_CANCEL, true);
    fixture_close(f);
}

/* Paused, and resumed before the trainer is gone. */
static void test_orders_in_a_hurry(void **state)
{
    struct fixture *f = *state;
    fixture_open(f);
    struct ft_job job = create(f, "steps=40 pause=0.02\n");
    wait_for(f, job.id, JOB_RUNNING, 2);
    give_order(f, job.id, JOB_PAUSE, true);
    give_order(f, job.id, JOB_RESUME, true);
    wait_for(f, job.id, JOB_SUCCEEDED, 40);
    fixture_close(f);
}

static void test_restarts(void **state)
{
    struct fixture *f = *state;
    fixture_open(f);
    struct ft_job job = create(f, "steps=60 pause=0.02\n");
    struct ft_job next = create(f, "steps=1\n");
    for (int i = 1; i <= 3; i++) {
        wait_for(f, job.id, JOB_RUNNING, 5 * i);
        fixture_close(f);
        fixture_open(f);
    }
    wait_for(f, job.id, JOB_SUCCEEDED, 60);
    wait_for(f, next.id, JOB_SUCCEEDED, 1);
    fixture_close(f);
}

static void test_damaged_folders_are_left_out(void **state)
{
    struct fixture *f = *state;
    char path[DATA_PATH_MAX];
    struct error err;
    fixture_open(f);
    struct ft_job job = create(f, "steps=1\n");
    wait_for(f, job.id, JOB_SUCCEEDED, 1);
    struct ft_job lost = create(f, "steps=1\n");
    wait_for(f, lost.id, JOB_SUCCEEDED, 1);
    fixture_close(f);
    assert_true(job_path(&f->dir, &lost, "job.json", path, &err));
    assert_int_equal(truncate(path, 30), 0);
    fixture_open(f);
    assert_int_equal(look(f, job.id).state, JOB_SUCCEEDED);
    struct buf out;
    buf_init(&out, 1 << 16);
    assert_false(jobs_get(f->jobs, lost.id, &out, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    buf_free(&out);
    fixture_close(f);
}

/* A line that a crash cut short is passed over, and does not swallow the next one. */
static void test_events_after_a_crash(void **state)
{
    struct fixture *f = *state;
    char path[DATA_PATH_MAX];
    struct error err;
    struct buf out;
    struct api_page page = {.limit = 10};
    fixture_open(f);
    struct ft_job job = create(f, "steps=1\n");
    wait_for(f, job.id, JOB_SUCCEEDED, 1);
    assert_true(job_path(&f->dir, &job, "events.jsonl", path, &err));
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs("{\"id\":\"ftevent-cut", file);
    fclose(file);
    job_store_event(&f->dir, &job, "info", NULL, "after %s", "it");
    buf_init(&out, 1 << 16);
    assert_true(job_store_list_events(&f->dir, &job, &page, &out, &err));
    assert_null(strstr(out.data, "ftevent-cut"));
    assert_non_null(strstr(out.data, "after it"));
    assert_non_null(strstr(out.data, "Created"));
    page.after = "ftevent-none";
    buf_clear(&out);
    assert_false(job_store_list_events(&f->dir, &job, &page, &out, &err));
    buf_free(&out);
    fixture_close(f);
}

static void count_line(void *ctx, const char *line, size_t n) { *(int *)ctx += (int)n; }

static void test_metrics_in_pieces(void **state)
{
    struct fixture *f = *state;
    struct ft_job job = {.id = "ftjob-x"};
    char path[DATA_PATH_MAX];
    struct error err;
    int64_t offset = 0;
    int n = 0;
    assert_true(data_dir_init(&f->dir, f->root, &err) && data_dir_take(&f->dir, &err));
    job_read_metrics(&f->dir, &job, &offset, count_line, &n);
    assert_int_equal(n, 0);
    assert_true(job_path(&f->dir, &job, "model", path, &err));
    char command[DATA_PATH_MAX + 16];
    snprintf(command, sizeof command, "mkdir -p %s", path);
    assert_int_equal(system(command), 0);
    assert_true(job_path(&f->dir, &job, "model/metrics.jsonl", path, &err));
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("12345\n123", file);
    fflush(file);
    job_read_metrics(&f->dir, &job, &offset, count_line, &n);
    assert_int_equal(n, 5);
    fputs("456\n", file);
    fflush(file);
    job_read_metrics(&f->dir, &job, &offset, count_line, &n);
    assert_int_equal(n, 11);
    for (int i = 0; i < 200000; i++) fputc('x', file); /* longer than any line of the trainer's */
    fputs("\n12\n", file);
    fclose(file);
    n = 0;
    job_read_metrics(&f->dir, &job, &offset, count_line, &n);
    assert_true(n >= 2 && n < 200000);
    assert_int_equal(truncate(path, 6), 0);
    n = 0;
    job_read_metrics(&f->dir, &job, &offset, count_line, &n); /* it shrank: from its beginning */
    assert_int_equal(n, 5);
    data_dir_release(&f->dir);
}

static void test_processes(void **state)
{
    struct fixture *f = *state;
    struct job_command c = {.program = "/bin/sh"};
    struct error err;
    char out[128], text[64] = "";
    int status = 0;
    pid_t pid;
    snprintf(out, sizeof out, "%s/out", f->root);
    job_command_add(&c, "sh");
    job_command_add(&c, "-c");
    job_command_add(&c, "echo $(ls /proc/self/fd | wc -l); exec sleep %d", 100);
    assert_true(job_process_start(&c, out, out, &pid, &err));
    assert_false(job_process_ended(pid, &status));
    for (int i = 0; i < 500 && !text[0]; i++) {
        FILE *file = fopen(out, "r");
        if (file && !fgets(text, sizeof text, file)) text[0] = 0;
        if (file) fclose(file);
        usleep(10000);
    }
    assert_int_equal(atoi(text), 4); /* three, and the one that ls reads */
    job_process_signal(pid, SIGTERM);
    for (int i = 0; i < 500 && !job_process_ended(pid, &status); i++) usleep(10000);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    c.program = "/nowhere/at/all";
    assert_false(job_process_start(&c, out, out, &pid, &err));
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    job_command_free(&c);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_to_success), TEST(test_orders), TEST(test_orders_in_a_hurry),
        TEST(test_who_ran_goes_first),
        TEST(test_restarts), TEST(test_damaged_folders_are_left_out),
        TEST(test_events_after_a_crash), TEST(test_metrics_in_pieces), TEST(test_processes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
