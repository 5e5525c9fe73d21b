/* Tests of server/page.c: the files that are compiled in, and who has them already. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "server/page.h"

static void test_files_by_name(void **state)
{
    const struct page_file *page = page_find("");
    assert_non_null(page);
    assert_string_equal(page->name, "page.html");
    assert_memory_equal(page->data, "<!doctype html>", 15);
    assert_ptr_equal(page_find("page.html"), page);
    assert_string_equal(page_content_type(page), "text/html; charset=utf-8");
    assert_string_equal(page_content_type(page_find("page.css")), "text/css; charset=utf-8");
    assert_string_equal(page_content_type(page_find("page.js")), "text/javascript; charset=utf-8");
    assert_string_equal(page_content_type(page_find("icon.svg")), "image/svg+xml");
    assert_null(page_find("page"));
    assert_null(page_find("page.htm"));
    assert_null(page_find("../page.html"));
}

/* What is compiled in is what lies there, to the last byte. Run from the root of the sources. */
static void test_bytes(void **state)
{
    static unsigned char data[1 << 16];
    const struct page_file *file = page_find("playground.js");
    FILE *source = fopen("server/page/playground.js", "rb");
    assert_non_null(source);
    size_t n = fread(data, 1, sizeof data, source);
    fclose(source);
    assert_int_equal(file->size, n);
    assert_memory_equal(file->data, data, n);
}

static void test_who_knows_it(void **state)
{
    const struct page_file *file = page_find("page.js");
    char text[100];
    assert_false(page_is_known(file, NULL));
    assert_false(page_is_known(file, ""));
    assert_false(page_is_known(file, "\"\""));
    assert_false(page_is_known(file, page_find("page.css")->etag));
    assert_true(page_is_known(file, "*"));
    assert_true(page_is_known(file, file->etag));
    snprintf(text, sizeof text, "\"other\", W/%s", file->etag);
    assert_true(page_is_known(file, text));
    snprintf(text, sizeof text, "%.*s", (int)strlen(file->etag) - 2, file->etag + 1);
    assert_false(page_is_known(file, text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files_by_name),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_who_knows_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
