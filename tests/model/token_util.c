#include "tests/model/token_util.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

void assert_ids(const struct tokenizer *t, const char *text, int flags, size_t n,
                const int32_t *expected)
{
    struct token_ids ids = {0};
    struct error err = {0};
    if (!tokenizer_encode(t, text, strlen(text), flags, SIZE_MAX, &ids, &err))
        fail_msg("%s", err.text);
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.ids, expected, n * sizeof *expected);
    token_ids_free(&ids);
}
