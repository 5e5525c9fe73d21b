/* Feeds of events: what a listener gets, from where, and how it ends; with events that come from
 * another thread. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/file_write.h"
#include "server/job_feed.h"

struct fixture {
    char root[64];
    struct data_dir dir;
    struct ft_job job;
    struct job_feeds feeds;
    _Atomic int n_told;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    char path[DATA_PATH_MAX];
    struct error err;
    strcpy(f->root, "/tmp/gptd-feed-XXXXXX");
    if (!mkdtemp(f->root) || !data_dir_init(&f->dir, f->root, &err)
        || !data_dir_take(&f->dir, &err))
        return -1;
    strcpy(f->job.id, "ftjob-x");
    job_feeds_init(&f->feeds);
    *state = f;
    return job_path(&f->dir, &f->job, NULL, path, &err) && directory_make(path, &err) ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    struct error err;
    job_feeds_free(&f->feeds);
    data_dir_release(&f->dir);
    bool ok = data_remove_tree(f->root, &err);
    free(f);
    return ok ? 0 : -1;
}

static void add(struct fixture *f, const char *message)
{
    job_store_event(&f->dir, &f->job, "info", NULL, "%s", message);
    job_feeds_tell(&f->feeds, f->job.id, false);
}

static struct job_feed *open_feed(struct fixture *f, const char *after, bool ended)
{
    struct job_feed *feed;
    struct error err;
    if (!job_feed_open(&f->feeds, &f->dir, &f->job, after, ended, &feed, &err))
        fail_msg("%s", err.text);
    return feed;
}

/* Everything that is there: "one two " of messages, "!" for an error, "." for [DONE]. */
static enum completion_status read_all(struct job_feed *feed, char *seen)
{
    enum completion_status status;
    struct buf out;
    buf_init(&out, 1 << 24);
    while ((status = job_feed_read(feed, &out)) == COMPLETION_DATA) continue;
    seen[0] = 0;
    for (char *event = out.data; event && *event;) {
        char *end = strstr(event, "\n\n"), word[64] = "";
        assert_non_null(end);
        *end = 0;
        assert_memory_equal(event, "data: ", 6);
        const char *message = strstr(event, "\"message\":\"");
        if (strcmp(event, "data: [DONE]") == 0) strcpy(word, ".");
        else if (strstr(event, "{\"error\":")) strcpy(word, "!");
        else if (message) sscanf(message + 11, "%62[^\"]", word);
        strcat(word, *word == '.' || *word == '!' ? "" : " ");
        strcat(seen, word);
        event = end + 2;
    }
    buf_free(&out);
    return status;
}

static void count(void *ctx) { atomic_fetch_add((_Atomic int *)ctx, 1); }

static void test_events_as_they_come(void **state)
{
    struct fixture *f = *state;
    char seen[256];
    add(f, "one");
    add(f, "two");
    struct job_feed *feed = open_feed(f, NULL, false), *other = open_feed(f, NULL, false);
    job_feed_listen(feed, count, &f->n_told);
    assert_int_equal(read_all(feed, seen), COMPLETION_WAIT);
    assert_string_equal(seen, "one two ");
    assert_int_equal(f->n_told, 0);
    add(f, "three");
    assert_int_equal(f->n_told, 1);
    assert_int_equal(read_all(feed, seen), COMPLETION_WAIT);
    assert_string_equal(seen, "three ");
    job_feeds_tell(&f->feeds, "ftjob-y", true); /* another's end */
    assert_int_equal(read_all(feed, seen), COMPLETION_WAIT);
    job_store_event(&f->dir, &f->job, "info", NULL, "last");
    job_feeds_tell(&f->feeds, f->job.id, true);
    assert_int_equal(f->n_told, 2);
    assert_int_equal(read_all(feed, seen), COMPLETION_ENDED);
    assert_string_equal(seen, "last .");
    assert_int_equal(read_all(other, seen), COMPLETION_ENDED); /* who did not read in between */
    assert_string_equal(seen, "one two three last .");
    job_feed_close(feed);
    feed = open_feed(f, NULL, true);
    assert_int_equal(read_all(feed, seen), COMPLETION_ENDED);
    assert_string_equal(seen, "one two three last .");
    job_feed_close(other);
    job_feed_close(feed);
}

static void test_after_an_event(void **state)
{
    struct fixture *f = *state;
    char seen[256], id[64];
    const char *const wrong[] = {"", "-", "ftevent-x", "ftevent-x-", "ftevent-x-1", "ftevent-y-0",
                                 "ftevent-x--1", "ftevent-x-0x", "ftevent-x-999999999999999999999"};
    struct error err;
    struct buf list;
    struct job_feed *feed;
    add(f, "one");
    add(f, "two");
    buf_init(&list, 1 << 16);
    assert_true(job_store_list_events(&f->dir, &f->job, &(struct api_page){.limit = 1}, &list,
                                      &err));
    assert_int_equal(sscanf(strstr(list.data, "\"id\":\""), "\"id\":\"%63[^\"]", id), 1);
    buf_free(&list);
    feed = open_feed(f, id, true);
    read_all(feed, seen);
    assert_string_equal(seen, ".");
    job_feed_close(feed);
    feed = open_feed(f, "ftevent-x-0", true);
    read_all(feed, seen);
    assert_string_equal(seen, "two .");
    job_feed_close(feed);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        err = (struct error){0};
        assert_false(job_feed_open(&f->feeds, &f->dir, &f->job, wrong[i], false, &feed, &err));
        assert_int_equal(err.code, ERR_INVALID);
        assert_string_equal(err.param, "after");
    }
}

/* A line that a crash cut short is no event; more than a chunk of lines comes in pieces. */
static void test_damage_and_length(void **state)
{
    struct fixture *f = *state;
    char path[DATA_PATH_MAX];
    struct error err;
    struct buf out;
    size_t n = 0;
    assert_true(job_path(&f->dir, &f->job, "events.jsonl", path, &err));
    FILE *file = fopen(path, "w");
    fputs("{\"id\":\"ftevent-cut", file);
    fclose(file);
    for (int i = 0; i < 1000; i++) job_store_event(&f->dir, &f->job, "info", NULL, "event %d", i);
    struct job_feed *feed = open_feed(f, NULL, true);
    buf_init(&out, 1 << 24);
    enum completion_status status;
    do {
        size_t before = out.len;
        status = job_feed_read(feed, &out);
        assert_true(out.len - before < 64 * 1024);
        n++;
    } while (status == COMPLETION_DATA);
    assert_true(n > 3);
    assert_null(strstr(out.data, "ftevent-cut"));
    n = 0;
    for (const char *p = out.data; (p = strstr(p, "\"message\":\"event ")); p++) n++;
    assert_int_equal(n, 1000);
    buf_free(&out);
    job_feed_close(feed);
}

static void test_cancel(void **state)
{
    struct fixture *f = *state;
    char seen[256];
    add(f, "one");
    struct job_feed *feed = open_feed(f, NULL, false);
    read_all(feed, seen);
    job_feed_cancel(feed);
    assert_int_equal(read_all(feed, seen), COMPLETION_ENDED);
    assert_string_equal(seen, "!.");
    job_feed_close(feed);
    struct job_feed *none;
    struct error err;
    strcpy(f->job.id, "ftjob-z"); /* without events */
    assert_false(job_feed_open(&f->feeds, &f->dir, &f->job, NULL, false, &none, &err));
}

enum { EVENTS = 200 };

static void *tell_all(void *arg)
{
    for (int i = 0; i < EVENTS; i++) add(arg, "event");
    job_feeds_tell(&((struct fixture *)arg)->feeds, "ftjob-x", true);
    return NULL;
}

/* While another thread tells: feeds come and go, and one that stays misses nothing. */
static void test_threads(void **state)
{
    struct fixture *f = *state;
    pthread_t teller;
    struct buf out;
    size_t n = 0;
    add(f, "first");
    struct job_feed *feed = open_feed(f, NULL, false);
    job_feed_listen(feed, count, &f->n_told);
    assert_int_equal(pthread_create(&teller, NULL, tell_all, f), 0);
    buf_init(&out, 1 << 24);
    while (job_feed_read(feed, &out) != COMPLETION_ENDED) {
        struct job_feed *passing = open_feed(f, NULL, false);
        job_feed_listen(passing, count, &f->n_told);
        job_feed_close(passing);
    }
    pthread_join(teller, NULL);
    for (const char *p = out.data; (p = strstr(p, "\"message\":")); p++) n++;
    assert_int_equal(n, EVENTS + 1);
    assert_true(f->n_told >= EVENTS);
    buf_free(&out);
    job_feed_close(feed);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_events_as_they_come), TEST(test_after_an_event), TEST(test_damage_and_length),
        TEST(test_cancel), TEST(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
