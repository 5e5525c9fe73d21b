/* Tests of server/job_memory.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"
#include "server/job_memory.h"

static char dir[] = "/tmp/gptd-test-XXXXXX";
static char path[64];

static int set_up(void **state)
{
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/memory.json", dir);
    return 0;
}

static int tear_down(void **state)
{
    unlink(path);
    return rmdir(dir); /* and nothing else is left in it */
}

static void write_example(void)
{
    struct error err;
    struct memory_plan plan = {.component = {[MEMORY_WEIGHTS] = 3, [MEMORY_HOST] = 4},
                               .total_bytes = 7};
    struct api_job_memory m = {.rss_bytes = 20, .peak_rss_bytes = (int64_t)1 << 50,
                               .baseline_bytes = 5};
    job_memory_set_plan(&m, &plan);
    assert_true(job_memory_write(dir, &m, &err));
}

static void test_what_is_written_is_read(void **state)
{
    struct error err;
    struct api_job_memory m = {.id = "ftjob-7"};
    write_example();
    assert_true(job_memory_read(dir, &m, &err));
    assert_string_equal(m.id, "ftjob-7");
    assert_true(m.reported);
    assert_int_equal(m.planned_bytes, 7);
    assert_int_equal(m.planned[MEMORY_WEIGHTS], 3);
    assert_int_equal(m.planned[MEMORY_HOST], 4);
    assert_int_equal(m.rss_bytes, 20);
    assert_int_equal(m.peak_rss_bytes, (int64_t)1 << 50);
    assert_int_equal(m.baseline_bytes, 5);
    assert_int_equal(api_job_unexplained_bytes(&m), 8);
}

/* The file with `from` replaced by `to`. */
static void falsify(const char *from, const char *to)
{
    struct buf text;
    struct error err;
    write_example();
    buf_init(&text, 1 << 16);
    assert_true(file_read(path, &text, &err));
    char *at = strstr(text.data, from);
    assert_non_null(at);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, "%.*s%s%s", (int)(at - text.data), text.data, to, at + strlen(from));
    assert_int_equal(fclose(f), 0);
    buf_free(&text);
}

static void test_what_cannot_be_is_refused(void **state)
{
    static const char *const lies[][2] = {
        {"\"planned_bytes\":7", "\"planned_bytes\":8"},
        {"\"weights\":3", "\"weights\":-3"},
        {"\"weights\":3", "\"weights\":1e300"},
        {"\"weights\":3", "\"weights\":\"3\""},
        {"\"host\":4", "\"cellar\":4"},
        {"\"rss_bytes\":20", "\"rss_bytes\":0.5"},
        {"\"baseline_bytes\":5,", ""},
        {"\"components\":", "\"components\":[],\"x\":"},
        {"{\"planned", "[{\"planned"},
    };
    struct error err;
    struct api_job_memory m = {.id = "same", .rss_bytes = 1};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        falsify(lies[i][0], lies[i][1]);
        assert_false(job_memory_read(dir, &m, &err));
        assert_non_null(strstr(err.text, "memory.json"));
        assert_int_equal(m.rss_bytes, 1);
    }
    unlink(path);
    assert_false(job_memory_read(dir, &m, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
