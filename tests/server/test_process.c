/* Tests of server/process.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "server/process.h"

static void test_touched_memory_shows(void **state)
{
    enum { BYTES = 64 << 20 };
    int64_t before = process_rss_bytes();
    assert_true(before > 0);
    char *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    memset(p, 1, BYTES);
    struct api_process_memory m = {.baseline_bytes = before};
    process_memory(&m);
    /* The kernel counts in batches: a MiB of slack. Sanitizers add shadow memory on top. */
    assert_true(m.rss_bytes - before > BYTES - (1 << 20));
    assert_true(m.peak_rss_bytes >= m.rss_bytes);
    assert_int_equal(m.baseline_bytes, before);
    munmap(p, BYTES);
    int64_t peak = m.peak_rss_bytes, during = m.rss_bytes;
    process_memory(&m);
    assert_true(during - m.rss_bytes > BYTES / 2);
    assert_true(m.peak_rss_bytes >= peak - (1 << 20)); /* what was, stays the peak */
}

/* ---- what is left: files of a made-up machine ---- */

static void write_file(const char *root, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static char *new_root(char *template)
{
    assert_non_null(mkdtemp(template));
    write_file(template, "proc/meminfo", "MemTotal: 1000 kB\nMemAvailable:    900 kB\n");
    return template;
}

static void remove_root(const char *root)
{
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", root);
    assert_int_equal(system(command), 0);
}

static void test_nothing_known_is_no_limit(void **state)
{
    assert_true(process_memory_available("/nonexistent") == INT64_MAX);
}

static void test_cgroup_v2_narrows_what_is_available(void **state)
{
    char template[] = "/tmp/test_process_XXXXXX", *root = new_root(template);
    assert_int_equal(process_memory_available(root), 900 * 1024);
    write_file(root, "proc/self/cgroup", "0::/outer/inner\n");
    write_file(root, "sys/fs/cgroup/outer/inner/memory.max", "max\n");
    write_file(root, "sys/fs/cgroup/outer/inner/memory.current", "5000\n");
    assert_int_equal(process_memory_available(root), 900 * 1024);
    write_file(root, "sys/fs/cgroup/outer/memory.max", "600000\n");
    write_file(root, "sys/fs/cgroup/outer/memory.current", "200000\n");
    assert_int_equal(process_memory_available(root), 400000);
    write_file(root, "sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 50000\n");
    assert_int_equal(process_memory_available(root), 450000);
    write_file(root, "sys/fs/cgroup/outer/memory.current", "700000\n"); /* over its limit */
    write_file(root, "sys/fs/cgroup/outer/memory.stat", "anon 1\n");
    assert_int_equal(process_memory_available(root), 0);
    remove_root(root);
}

static void test_cgroup_v1_narrows_what_is_available(void **state)
{
    char template[] = "/tmp/test_process_XXXXXX", *root = new_root(template);
    write_file(root, "proc/self/cgroup", "3:cpu:/elsewhere\n2:memory:/box\n");
    write_file(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "300000\n");
    write_file(root, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", "100000\n");
    assert_int_equal(process_memory_available(root), 200000);
    remove_root(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_touched_memory_shows),
        cmocka_unit_test(test_nothing_known_is_no_limit),
        cmocka_unit_test(test_cgroup_v2_narrows_what_is_available),
        cmocka_unit_test(test_cgroup_v1_narrows_what_is_available),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
