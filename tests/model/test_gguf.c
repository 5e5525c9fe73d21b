/* The GGUF reader: what a good file says arrives; every way to damage one is refused with words,
 * without a crash and without an allocation that the file's size does not justify. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/gguf.h"
#include "tests/model/flip_bits.h"
#include "tests/model/gguf_writer.h"

static struct buf new_file(uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    gguf_write_head(&b, version, n_tensors, n_values);
    return b;
}

/* A file with one key of every kind and two tensors. */
static struct buf good_file(uint32_t version)
{
    struct buf b = new_file(version, 2, 7);
    gguf_write_key_string(&b, "general.architecture", "llama");
    gguf_write_key_u32(&b, "llama.block_count", 3);
    gguf_write_key_f32(&b, "eps", 1e-5f);
    gguf_write_key(&b, "flag", GGUF_BOOL);
    buf_putc(&b, 1);
    gguf_write_key(&b, "big", GGUF_U64);
    gguf_write_u64(&b, UINT64_MAX);
    gguf_write_key(&b, "tokens", GGUF_ARRAY);
    gguf_write_u32(&b, GGUF_STRING);
    gguf_write_u64(&b, 3);
    gguf_write_string(&b, "a");
    gguf_write_string(&b, "");
    gguf_write_string(&b, "bcd");
    gguf_write_key(&b, "scores", GGUF_ARRAY);
    gguf_write_u32(&b, GGUF_I8);
    gguf_write_u64(&b, 2);
    buf_append(&b, "\x05\xFF", 2);
    gguf_write_tensor(&b, "m", 32, 2, GGML_Q8_0, 0);
    gguf_write_tensor(&b, "v", 3, 0, GGML_F32, 96);
    gguf_write_padding(&b, 32);
    for (int i = 0; i < 96 + 12; i++) buf_putc(&b, (char)i);
    return b;
}

/* Opens an exact heap copy, so that the sanitizers see a read past the end. Frees the buffer. */
static bool open_copy(const struct buf *b, struct error *err)
{
    uint8_t *copy = malloc(b->len ? b->len : 1);
    assert_non_null(copy);
    if (b->len) memcpy(copy, b->data, b->len);
    struct gguf *g;
    bool ok = gguf_open_bytes(copy, b->len, "test.gguf", &g, err);
    if (ok) gguf_close(g);
    free(copy);
    return ok;
}

static void refuse(struct buf b, const char *why)
{
    struct error err = {0};
    assert_false(b.failed);
    assert_false(open_copy(&b, &err));
    if (!strstr(err.text, why)) fail_msg("expected \"%s\" in \"%s\"", why, err.text);
    assert_non_null(strstr(err.text, "test.gguf"));
    buf_free(&b);
}

static const struct gguf_tensor *find_tensor(const struct gguf *g, const char *name)
{
    for (size_t i = 0; i < g->n_tensors; i++) {
        const struct gguf_string *s = &g->tensors[i].name;
        if (s->len == strlen(name) && memcmp(s->data, name, s->len) == 0) return &g->tensors[i];
    }
    return NULL;
}

static void check_good(uint32_t version)
{
    struct buf b = good_file(version);
    struct gguf *g;
    struct error err;
    if (!gguf_open_bytes((uint8_t *)b.data, b.len, "test.gguf", &g, &err)) fail_msg("%s", err.text);
    assert_int_equal(g->version, version);
    assert_int_equal(g->n_values, 7);
    struct gguf_string s;
    assert_true(gguf_get_string(gguf_find(g, "general.architecture"), &s));
    assert_true(s.len == 5 && memcmp(s.data, "llama", 5) == 0);
    const struct gguf_tensor *m = find_tensor(g, "m"), *v = find_tensor(g, "v");
    assert_true(m && v && m->dtype == DTYPE_Q8_0 && m->n_dims == 2);
    assert_true(m->dims[0] == 32 && m->dims[1] == 2 && m->size == 68);
    assert_true(v->dims[0] == 3 && v->size == 12);
    assert_int_equal(m->data[0], 0);
    assert_int_equal(v->data[0], 96);
    assert_null(gguf_find(g, "missing"));
    gguf_close(g);
    buf_free(&b);
}

static void test_versions_2_and_3_open(void **state)
{
    check_good(2);
    check_good(3);
}

static void test_typed_readers(void **state)
{
    struct buf b = good_file(3);
    struct gguf *g;
    struct error err;
    assert_true(gguf_open_bytes((uint8_t *)b.data, b.len, "test.gguf", &g, &err));
    int64_t i = 0;
    double d = 0;
    bool flag = false;
    struct gguf_string s;
    assert_true(gguf_get_i64(gguf_find(g, "llama.block_count"), &i) && i == 3);
    assert_true(gguf_get_f64(gguf_find(g, "llama.block_count"), &d) && d == 3.0);
    assert_true(gguf_get_f64(gguf_find(g, "eps"), &d) && (float)d == 1e-5f);
    assert_false(gguf_get_i64(gguf_find(g, "eps"), &i));
    assert_false(gguf_get_i64(gguf_find(g, "big"), &i)); /* over INT64_MAX */
    assert_true(gguf_get_bool(gguf_find(g, "flag"), &flag) && flag);
    assert_false(gguf_get_bool(gguf_find(g, "eps"), &flag));
    assert_false(gguf_get_string(gguf_find(g, "tokens"), &s));
    assert_false(gguf_get_i64(NULL, &i));

    size_t cursor = 0;
    const struct gguf_value *tokens = gguf_find(g, "tokens"), *scores = gguf_find(g, "scores");
    assert_true(gguf_next_string(tokens, &cursor, &s) && s.len == 1 && s.data[0] == 'a');
    assert_true(gguf_next_string(tokens, &cursor, &s) && s.len == 0);
    assert_true(gguf_next_string(tokens, &cursor, &s) && s.len == 3);
    assert_false(gguf_next_string(tokens, &cursor, &s));
    assert_true(gguf_item_i64(scores, 1, &i) && i == -1);
    assert_true(gguf_item_f64(scores, 0, &d) && d == 5.0);
    assert_false(gguf_item_i64(scores, 2, &i));
    assert_false(gguf_item_i64(tokens, 0, &i));
    gguf_close(g);
    buf_free(&b);
}

/* Every proper prefix of a good file is refused. */
static void test_truncated_anywhere_is_refused(void **state)
{
    struct buf b = good_file(3);
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

/* One flipped bit anywhere: either still a readable file or an error, never a crash. */
static void test_any_flipped_bit_is_survived(void **state)
{
    struct buf b = good_file(3);
    assert_true(flip_each_bit(&b, open_copy) > 1000);
    buf_free(&b);
}

static void test_not_gguf_is_refused(void **state)
{
    struct buf b = good_file(3);
    b.data[0] = 'X';
    refuse(b, "not a GGUF file");
    refuse(new_file(1, 0, 0), "unknown GGUF version");
    refuse(new_file(4, 0, 0), "unknown GGUF version");
    refuse(new_file(3u << 24, 0, 0), "big endian");
}

static void test_absurd_counts_are_refused_before_allocation(void **state)
{
    refuse(new_file(3, UINT64_MAX, 0), "cannot fit");
    refuse(new_file(3, 0, UINT64_MAX), "cannot fit");
    refuse(new_file(3, 65536, 65536), "cannot fit");
    refuse(new_file(3, 1, 0), "cannot fit");

    struct buf b = new_file(3, 0, 1);
    gguf_write_key(&b, "a", GGUF_ARRAY);
    gguf_write_u32(&b, GGUF_F64);
    gguf_write_u64(&b, UINT64_MAX / 4);
    refuse(b, "inside an array");

    b = new_file(3, 0, 1);
    gguf_write_key(&b, "a", GGUF_ARRAY);
    gguf_write_u32(&b, GGUF_STRING);
    gguf_write_u64(&b, UINT64_MAX);
    refuse(b, "inside an array of strings");

    b = new_file(3, 0, 1);
    gguf_write_key(&b, "a", GGUF_STRING);
    gguf_write_u64(&b, UINT64_MAX);
    refuse(b, "inside a string");
}

static void test_bad_values_are_refused(void **state)
{
    struct buf b = new_file(3, 0, 1);
    gguf_write_key(&b, "a", GGUF_ARRAY);
    gguf_write_u32(&b, GGUF_ARRAY);
    gguf_write_u64(&b, 0);
    refuse(b, "arrays of arrays");

    b = new_file(3, 0, 1);
    gguf_write_key(&b, "a", 99);
    gguf_write_u64(&b, 0);
    refuse(b, "unknown value type 99");

    b = new_file(3, 0, 1);
    gguf_write_key_string(&b, "a\x1b[31m", "");
    refuse(b, "printable");

    b = new_file(3, 0, 1);
    gguf_write_key_string(&b, "", "abc");
    refuse(b, "printable");
}

static void test_duplicate_keys_and_tensors_are_refused(void **state)
{
    struct buf b = new_file(3, 0, 3);
    gguf_write_key_u32(&b, "twice", 1);
    gguf_write_key_u32(&b, "once", 1);
    gguf_write_key_u32(&b, "twice", 2);
    refuse(b, "key twice occurs twice");

    b = new_file(3, 2, 0);
    gguf_write_tensor(&b, "w", 1, 0, GGML_F32, 0);
    gguf_write_tensor(&b, "w", 1, 0, GGML_F32, 0);
    gguf_write_padding(&b, 64);
    refuse(b, "tensor w occurs twice");
}

static struct buf one_tensor(uint64_t dim0, uint64_t dim1, uint32_t type, uint64_t offset)
{
    struct buf b = new_file(3, 1, 0);
    gguf_write_tensor(&b, "w", dim0, dim1, type, offset);
    gguf_write_padding(&b, 32);
    for (int i = 0; i < 64; i++) buf_putc(&b, 0);
    return b;
}

static void test_bad_tensors_are_refused_by_name(void **state)
{
    refuse(one_tensor(4, 0, 99, 0), "tensor w has element type 99");
    refuse(one_tensor(0, 0, GGML_F32, 0), "tensor w has an impossible shape");
    refuse(one_tensor(1ull << 63, 0, GGML_F32, 0), "tensor w has an impossible shape");
    refuse(one_tensor(1ull << 40, 1ull << 40, GGML_F32, 0), "tensor w has an impossible shape");
    refuse(one_tensor(1ull << 62, 0, GGML_F32, 0), "larger than any file");
    refuse(one_tensor(33, 0, GGML_Q8_0, 0), "not a multiple of q8_0's 32");
    refuse(one_tensor(4, 0, GGML_F32, 4), "not a multiple of 32");
    refuse(one_tensor(17, 0, GGML_F32, 0), "past the end");
    refuse(one_tensor(1, 0, GGML_F32, 64), "past the end");
    refuse(one_tensor(1, 0, GGML_F32, UINT64_MAX - 31), "past the end");
    struct buf b = one_tensor(16, 0, GGML_F32, 0);
    assert_true(open_copy(&b, NULL));
    buf_free(&b);
}

static void test_dimension_count_is_checked(void **state)
{
    for (uint32_t n_dims = 0; n_dims < 7; n_dims++) {
        struct buf b = new_file(3, 1, 0);
        gguf_write_string(&b, "w");
        gguf_write_u32(&b, n_dims);
        for (uint32_t i = 0; i < n_dims; i++) gguf_write_u64(&b, 1);
        gguf_write_u32(&b, GGML_F32);
        gguf_write_u64(&b, 0);
        gguf_write_padding(&b, 32);
        gguf_write_u32(&b, 0);
        bool good = n_dims >= 1 && n_dims <= 4;
        if (!good) {
            refuse(b, n_dims ? "dimensions, not 1 to 4" : "w has 0 dimensions");
            continue;
        }
        assert_true(open_copy(&b, NULL));
        buf_free(&b);
    }
}

static void test_alignment_key_is_honoured(void **state)
{
    struct buf b = new_file(3, 1, 1);
    gguf_write_key_u32(&b, "general.alignment", 64);
    gguf_write_tensor(&b, "w", 1, 0, GGML_F32, 0);
    gguf_write_padding(&b, 64);
    size_t begin = b.len;
    buf_append(&b, "\1\2\3\4", 4);
    struct gguf *g;
    assert_true(gguf_open_bytes((uint8_t *)b.data, b.len, "test.gguf", &g, NULL));
    assert_ptr_equal(find_tensor(g, "w")->data, (uint8_t *)b.data + begin);
    gguf_close(g);
    buf_free(&b);

    const uint32_t bad[] = {0, 1, 24, 1u << 31};
    for (size_t i = 0; i < 4; i++) {
        b = new_file(3, 0, 1);
        gguf_write_key_u32(&b, "general.alignment", bad[i]);
        refuse(b, "power of two");
    }
}

static void test_missing_file_and_directory_are_refused(void **state)
{
    struct gguf *g;
    struct error err;
    assert_false(gguf_open("tests/no-such-file.gguf", &g, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_false(gguf_open("tests", &g, &err));
    gguf_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions_2_and_3_open),
        cmocka_unit_test(test_typed_readers),
        cmocka_unit_test(test_truncated_anywhere_is_refused),
        cmocka_unit_test(test_any_flipped_bit_is_survived),
        cmocka_unit_test(test_not_gguf_is_refused),
        cmocka_unit_test(test_absurd_counts_are_refused_before_allocation),
        cmocka_unit_test(test_bad_values_are_refused),
        cmocka_unit_test(test_duplicate_keys_and_tensors_are_refused),
        cmocka_unit_test(test_bad_tensors_are_refused_by_name),
        cmocka_unit_test(test_dimension_count_is_checked),
        cmocka_unit_test(test_alignment_key_is_honoured),
        cmocka_unit_test(test_missing_file_and_directory_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
