/* Tests of server/process.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_touched_memory_shows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
