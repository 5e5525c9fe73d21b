/* Safetensors files that gptd writes: what goes in comes out, in order and in place; a source that
 * fails leaves nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "model/checkpoint_write.h"
#include "model/safetensors.h"
#include "tests/model/checkpoint_util.h"

/* Byte i of tensor `tag`. */
static uint8_t byte_at(int64_t tag, int64_t i) { return (uint8_t)(i * 7 + i / 251 + tag * 31); }

struct log { int n_reads; int64_t fail_at; /* tag; -1: never */ };

static bool read_bytes(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                       uint8_t *out, struct error *err)
{
    struct log *log = ctx;
    log->n_reads++;
    assert_true(offset >= 0 && n > 0 && offset + n <= t->bytes);
    if (t->tag == log->fail_at) return error_set(err, ERR_IO, NULL, "the device is gone");
    for (int64_t i = 0; i < n; i++) out[i] = byte_at(t->tag, offset + i);
    return true;
}

static struct tensor_source source(const char *name, enum dtype dtype, const char *raw,
                                   int32_t n_dims, const int64_t *dims, int64_t bytes, int64_t tag,
                                   struct log *log)
{
    struct tensor_source t = {.dtype = dtype, .raw_type = raw, .n_dims = n_dims, .bytes = bytes,
                              .read = read_bytes, .ctx = log, .tag = tag};
    strcpy(t.name, name);
    for (int32_t i = 0; i < n_dims; i++) t.dims[i] = dims[i];
    return t;
}

static void check_tensor(const struct safetensors *s, size_t i, const struct tensor_source *t,
                         const char *type)
{
    const struct safetensors_tensor *r = &s->tensors[i];
    assert_string_equal(r->name, t->name);
    assert_string_equal(r->type, type);
    assert_int_equal(r->n_dims, t->n_dims);
    for (int32_t d = 0; d < t->n_dims; d++) assert_int_equal(r->dims[d], t->dims[d]);
    assert_int_equal(r->size, t->bytes);
    for (int64_t b = 0; b < r->size; b++)
        if (r->data[b] != byte_at(t->tag, b)) fail_msg("%s: byte %d", t->name, (int)b);
}

static void test_what_goes_in_comes_out(void **state)
{
    struct log log = {.fail_at = -1};
    struct error err = {0};
    const int64_t large[2] = {1300, 1001}, cube[4] = {2, 1, 3, 4}, n = 10;
    const struct tensor_source tensors[] = {
        source("z.large", DTYPE_F32, NULL, 2, large, 1300 * 1001 * 4, 1, &log), /* over a chunk */
        source("a \"quoted\\name\" é", DTYPE_BF16, NULL, 4, cube, 48, 2, &log),
        source("raw", DTYPE_F32, "U8", 1, &n, 10, 3, &log),
        source("scalar", DTYPE_F16, NULL, 0, NULL, 2, 4, &log),
        source("none", DTYPE_F32, NULL, 1, (int64_t[]){0}, 0, 5, &log),
    };
    static const char *const types[] = {"F32", "BF16", "U8", "F16", "F32"};
    static const char *const metadata[] = {"format", "pt", "step", "12", NULL};
    if (!safetensors_write(in_test_dir("x.safetensors"), tensors, 5, metadata, &err))
        fail_msg("%s", err.text);
    struct safetensors *s;
    if (!safetensors_open(in_test_dir("x.safetensors"), &s, &err)) fail_msg("%s", err.text);
    assert_int_equal(s->n_tensors, 5);
    for (size_t i = 0; i < 5; i++) check_tensor(s, i, &tensors[i], types[i]);
    /* Others map the file and read f32 in place. */
    assert_int_equal(s->header_size % 8, 0);
    assert_ptr_equal(s->tensors[0].data, s->map.data + s->header_size);
    static const char wanted[] = "\"__metadata__\":{\"format\":\"pt\",\"step\":\"12\"}";
    assert_non_null(memmem(s->map.data, s->header_size, wanted, strlen(wanted)));
    assert_int_equal((int64_t)s->map.size, (int64_t)s->header_size + 1300 * 1001 * 4 + 60);
    safetensors_close(s);
    assert_true(log.n_reads >= 5); /* the large one in more than one piece */
}

static void test_a_file_of_no_tensors(void **state)
{
    struct error err = {0};
    struct safetensors *s;
    assert_true(safetensors_write(in_test_dir("x"), NULL, 0, NULL, &err));
    assert_true(safetensors_open(in_test_dir("x"), &s, &err));
    assert_int_equal(s->n_tensors, 0);
    safetensors_close(s);
}

static void test_a_source_that_fails_leaves_nothing(void **state)
{
    struct log log = {.fail_at = 2};
    struct error err = {0};
    const int64_t n = 1000;
    const struct tensor_source tensors[] = {
        source("a", DTYPE_F32, NULL, 1, &n, 4000, 1, &log),
        source("b", DTYPE_F32, NULL, 1, &n, 4000, 2, &log),
    };
    assert_false(safetensors_write(in_test_dir("x"), tensors, 2, NULL, &err));
    assert_string_equal(err.text, "the device is gone");
    assert_false(file_exists(in_test_dir("x")));
    assert_false(file_exists(in_test_dir("x.tmp")));
}

static void test_sizes_past_63_bits_are_refused(void **state)
{
    struct log log = {.fail_at = -1};
    struct error err = {0};
    const int64_t n = INT64_MAX / 4;
    const struct tensor_source tensors[] = {
        source("a", DTYPE_F32, NULL, 1, &n, INT64_MAX - 3, 1, &log),
        source("b", DTYPE_F32, NULL, 1, &n, INT64_MAX - 3, 2, &log),
    };
    assert_false(safetensors_write(in_test_dir("x"), tensors, 2, NULL, &err));
    assert_false(file_exists(in_test_dir("x")));
    assert_int_equal(log.n_reads, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up_dir, tear_down_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_what_goes_in_comes_out),
        TEST(test_a_file_of_no_tensors),
        TEST(test_a_source_that_fails_leaves_nothing),
        TEST(test_sizes_past_63_bits_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
