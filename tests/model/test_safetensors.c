/* The safetensors reader: what a good header says arrives; every contradiction between header and
 * file is refused with words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/safetensors.h"
#include "tests/model/flip_bits.h"
#include "tests/model/safetensors_writer.h"

static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"h.0.attn.bias\":{\"dtype\":\"U8\",\"shape\":[1,1,2,2],\"data_offsets\":[24,28]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[28,32]},"
    "\"s\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[32,34]},"
    "\"none\":{\"dtype\":\"I64\",\"shape\":[0,5],\"data_offsets\":[34,34]}}   ";

static struct buf new_file(const char *header, size_t n_data)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    safetensors_put(&b, header, NULL, n_data);
    assert_false(b.failed);
    return b;
}

/* Opens an exact heap copy, so that the sanitizers see a read past the end. */
static bool open_copy(const struct buf *b, struct error *err)
{
    uint8_t *copy = malloc(b->len ? b->len : 1);
    assert_non_null(copy);
    if (b->len) memcpy(copy, b->data, b->len);
    struct safetensors *s;
    bool ok = safetensors_open_bytes(copy, b->len, "test.safetensors", &s, err);
    if (ok) safetensors_close(s);
    free(copy);
    return ok;
}

static void refuse(const char *header, size_t n_data, const char *why)
{
    struct buf b = new_file(header, n_data);
    struct error err = {0};
    if (open_copy(&b, &err)) fail_msg("taken: %s", header);
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_non_null(strstr(err.text, "test.safetensors"));
    buf_free(&b);
}

static void test_tensors_arrive(void **state)
{
    struct buf b = new_file(good_header, 34);
    struct safetensors *s;
    struct error err;
    if (!safetensors_open_bytes((uint8_t *)b.data, b.len, "t", &s, &err)) fail_msg("%s", err.text);
    assert_int_equal(s->n_tensors, 5);
    const struct safetensors_tensor *t = s->tensors;
    const uint8_t *data = (uint8_t *)b.data + 8 + strlen(good_header);
    assert_string_equal(t[0].name, "w");
    assert_true(t[0].usable && t[0].dtype == DTYPE_F32 && t[0].n_dims == 2);
    assert_true(t[0].dims[0] == 2 && t[0].dims[1] == 3 && t[0].size == 24 && t[0].data == data);
    assert_true(!t[1].usable && t[1].n_dims == 4 && t[1].size == 4);
    assert_string_equal(t[1].type, "U8");
    assert_true(t[2].usable && t[2].dtype == DTYPE_BF16 && t[2].data == data + 28);
    assert_true(t[3].usable && t[3].dtype == DTYPE_F16 && t[3].n_dims == 0 && t[3].size == 2);
    assert_true(!t[4].usable && t[4].size == 0);
    safetensors_close(s);
    safetensors_close(NULL);
    buf_free(&b);
}

static void test_truncated_anywhere_is_refused(void **state)
{
    struct buf b = new_file(good_header, 34);
    size_t full = b.len;
    for (size_t n = 0; n < full; n++) {
        struct error err = {0};
        b.len = n;
        assert_false(open_copy(&b, &err));
        assert_true(err.code == ERR_FORMAT && err.text[0]);
    }
    b.len = full;
    assert_true(open_copy(&b, NULL));
    buf_free(&b);
}

static void test_any_flipped_bit_is_survived(void **state)
{
    struct buf b = new_file(good_header, 34);
    assert_true(flip_each_bit(&b, open_copy) > 1000);
    buf_free(&b);
}

static void test_absurd_header_lengths_are_refused(void **state)
{
    static const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 7, 1ull << 40, 100};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct buf b;
        struct error err = {0};
        buf_init(&b, 64);
        buf_append(&b, &lengths[i], 8);
        buf_puts(&b, "{}");
        assert_false(open_copy(&b, &err));
        assert_non_null(strstr(err.text, "the header has"));
        buf_free(&b);
    }
}

static void test_header_over_the_cap_is_refused_unread(void **state)
{
    size_t n = (17 << 20) + 8;
    uint64_t length = 17 << 20;
    uint8_t *data = calloc(1, n);
    assert_non_null(data);
    memcpy(data, &length, 8);
    struct safetensors *s;
    struct error err = {0};
    assert_false(safetensors_open_bytes(data, n, "t", &s, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    free(data);
}

static void test_bad_headers_are_refused(void **state)
{
    refuse("[]", 0, "an array, not an object");
    refuse("{", 0, "invalid JSON");
    refuse("{\"a\":[[[[[]]]]]}", 0, "deeper");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
           "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "duplicate key");
    refuse("{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "control");
    refuse("{\"\\u001b[2J\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
           "control");
    refuse("{\"a\":3}", 0, "tensor a is not described");
}

static void test_bad_tensors_are_refused_by_name(void **state)
{
    refuse("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor a has no known dtype");
    refuse("{\"a\":{\"dtype\":\"X9\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "no known dtype");
    refuse("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no shape");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "impossible");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4, "impossible");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
           "more than 8");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}",
           4, "impossible");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4000000000,1500000000],\"data_offsets\":[0,4]}}",
           4, "impossible");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "no data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "no data_offsets");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 4, "truncated");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "truncated");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "truncated");
    refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "need 8");
    refuse("{\"a\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "need 2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_arrive),
        cmocka_unit_test(test_truncated_anywhere_is_refused),
        cmocka_unit_test(test_any_flipped_bit_is_survived),
        cmocka_unit_test(test_absurd_header_lengths_are_refused),
        cmocka_unit_test(test_header_over_the_cap_is_refused_unread),
        cmocka_unit_test(test_bad_headers_are_refused),
        cmocka_unit_test(test_bad_tensors_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
