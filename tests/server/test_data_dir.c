/* The folder of files and jobs: ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <time.h>

#include "server/data_dir.h"

/* So lists and queues keep their order within a second, which is what created_at tells apart. */
static void test_ids_sort_as_they_were_made(void **state)
{
    char last[48] = "file-", id[48];
    struct error err;
    for (int i = 0; i < 20; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
        assert_true(data_new_id("file-", id, sizeof id, &err));
        assert_true(data_is_id("file-", id));
        assert_true(strcmp(last, id) < 0);
        strcpy(last, id);
    }
}

static void test_what_is_no_id(void **state)
{
    assert_false(data_is_id("file-", "file-"));
    assert_false(data_is_id("file-", "file-../../../../../etc/passwd"));
    assert_false(data_is_id("file-", "ftjob-abcdefghijklmnopqrstuvwx"));
    assert_true(data_is_id("file-", "file-abcdefghijklmnopqrstuvwx"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_sort_as_they_were_made),
        cmocka_unit_test(test_what_is_no_id),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
