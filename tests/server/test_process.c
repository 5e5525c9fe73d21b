/* Tests of server/process.c. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "server/process.h"

/* The sanitizers' malloc tells mallinfo2 nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { HAS_GLIBC_HEAP = 0 };
#else
enum { HAS_GLIBC_HEAP = 1 };
#endif

static void test_touched_memory_shows(void **state)
{
    enum { BYTES = 64 << 20 };
    struct process_baseline before = process_baseline();
    struct api_process_memory m;
    assert_true(before.rss_bytes > 0);
    char *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    memset(p, 1, BYTES);
    process_memory(&before, 0, &m);
    /* The kernel counts in batches: a MiB of slack. Sanitizers add shadow memory on top. */
    assert_true(m.rss_bytes - before.rss_bytes > BYTES - (1 << 20));
    assert_true(m.peak_rss_bytes >= m.rss_bytes);
    assert_int_equal(m.baseline_bytes, before.rss_bytes);
    assert_true(m.heap_bytes < BYTES / 2 && m.file_bytes < BYTES / 2); /* it is of neither kind */
    munmap(p, BYTES);
    int64_t peak = m.peak_rss_bytes, during = m.rss_bytes;
    process_memory(&before, 0, &m);
    assert_true(during - m.rss_bytes > BYTES / 2);
    assert_true(m.peak_rss_bytes >= peak - (1 << 20)); /* what was, stays the peak */
}

static void test_the_heap_shows(void **state)
{
    enum { BYTES = 10 << 20 };
    struct process_baseline before = process_baseline();
    struct api_process_memory m;
    void *volatile block = malloc(BYTES);
    process_memory(&before, 0, &m);
    int64_t with = m.heap_bytes;
    process_memory(&before, BYTES, &m); /* as if the block were an arena */
    int64_t without = m.heap_bytes;
    free(block);
    assert_int_equal(with - without, BYTES);
    if (HAS_GLIBC_HEAP) assert_true(with >= BYTES && with < BYTES + (1 << 20));
}

static void test_residence(void **state)
{
    enum { PAGES = 5000, PAGE = 4096 };
    char *p = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    assert_true(p != MAP_FAILED);
    assert_int_equal(madvise(p, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE), 0);
    assert_int_equal(process_resident_bytes(p, (int64_t)PAGES * PAGE), 0);
    memset(p, 1, 4500 * PAGE); /* over more than one question to the kernel */
    assert_int_equal(process_resident_bytes(p, (int64_t)PAGES * PAGE), 4500 * PAGE);
    assert_int_equal(process_resident_bytes(p + 10, 1), PAGE);
    assert_int_equal(process_resident_bytes(p + 10, PAGE), 2 * PAGE);
    assert_int_equal(process_resident_bytes(p, 0), 0);
    munmap(p, (size_t)PAGES * PAGE);
    assert_int_equal(process_resident_bytes(p, PAGE), 0); /* another device's memory */
}

static void test_another_process(void **state)
{
    int64_t rss = 0, peak = 0;
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    assert_true(child > 0);
    assert_true(process_memory_of(child, &rss, &peak));
    assert_true(rss > 0 && peak >= rss);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_false(process_memory_of(child, &rss, &peak));
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
        cmocka_unit_test(test_the_heap_shows),
        cmocka_unit_test(test_residence),
        cmocka_unit_test(test_another_process),
        cmocka_unit_test(test_nothing_known_is_no_limit),
        cmocka_unit_test(test_cgroup_v2_narrows_what_is_available),
        cmocka_unit_test(test_cgroup_v1_narrows_what_is_available),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
