/* Sizes on a CUDA device: layouts as stated, and never less than what an operation is told to
 * use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "cuda/cuda_sizes.h"

static void test_matrices(void **state)
{
    const struct device *d = cuda_sizes(90);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_F32, 3, 5), 3 * 8 * 4);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_BF16, 3, 5), 3 * 8 * 2);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_F16, 50304, 768), 50304 * 768 * 2);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_Q8_0, 2, 33), 2 * 2 * 34);
    assert_int_equal(d->ops->matrix_bytes(d, DTYPE_Q4_0, 2, 64), 2 * 2 * 18);
    assert_int_equal(cuda_row_stride(DTYPE_BF16, 9), 16);
}

static void test_pages_and_moments(void **state)
{
    const struct device *d = cuda_sizes(75);
    assert_int_equal(d->ops->kv_page_bytes(d, DTYPE_BF16, 12, 64), 2 * 12 * 16 * 64 * 2);
    assert_int_equal(d->train->moment_bytes(d, MOMENT_F32, 257), 257 * 4);
    assert_int_equal(d->train->moment_bytes(d, MOMENT_BF16, 257), 257 * 2);
    assert_int_equal(d->train->moment_bytes(d, MOMENT_Q8, 257), 512 + 2 * 4);
}

static void test_workspace(void **state)
{
    const struct workspace_shape s = {
        .dtype = DTYPE_BF16, .max_rows = 8192, .max_logit_rows = 512, .n_embd = 768, .n_ff = 3072,
        .n_head = 12, .n_kv_head = 12, .head_dim = 64, .vocab_size = 50304, .block_size = 1024,
    };
    const struct device *d = cuda_sizes(86);
    int64_t serving = d->ops->workspace_bytes(d, &s), training = d->train->workspace_bytes(d, &s);
    assert_true(serving >= cuda_attention_workspace(&s));
    assert_true(serving >= CUDA_STAGING_BYTES && training >= CUDA_STAGING_BYTES);
    assert_true(training >= cuda_attention_workspace(&s));
    assert_true(training >= cuda_backward_workspace(&s));
    assert_int_equal(serving % DEVICE_ALIGN, 0);
    /* cuBLASLt's scratch, there or not: 4 MiB, or 32 where kernels want more. */
    const struct device *hopper = cuda_sizes(90);
    assert_int_equal(hopper->train->workspace_bytes(hopper, &s), 32 << 20);
    assert_true(hopper->ops->workspace_bytes(hopper, &s) == serving);
    assert_int_equal(training % DEVICE_ALIGN, 0);
    /* Sums of slices: three vectors of all slices together, or of one slice of the widest row; and
     * a number for each row and head. */
    struct workspace_shape wide = s, many = s;
    wide.n_ff = 600000;
    many.max_rows = 1 << 20;
    assert_true(training >= 3 * CUDA_SLICE_FLOATS * (int64_t)sizeof(float));
    assert_true(d->train->workspace_bytes(d, &wide) >= 3 * 2 * wide.n_ff * (int64_t)sizeof(float));
    assert_true(d->train->workspace_bytes(d, &many) >= many.max_rows * many.n_head * (int64_t)sizeof(float));
    /* Few rows are never split further than there are. */
    struct workspace_shape one = s;
    one.max_rows = 1;
    assert_int_equal(cuda_attention_workspace(&one), 12 * CUDA_ATTENTION_SPLITS * 66 * 4);
}

static void test_bf16_begins_with_sm_80(void **state)
{
    const struct device *turing = cuda_sizes(75), *ampere = cuda_sizes(80);
    assert_false(turing->ops->computes_in(turing, DTYPE_BF16));
    assert_true(turing->ops->computes_in(turing, DTYPE_F16));
    assert_true(ampere->ops->computes_in(ampere, DTYPE_BF16));
    assert_false(ampere->ops->computes_in(ampere, DTYPE_Q8_0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_pages_and_moments),
        cmocka_unit_test(test_workspace),
        cmocka_unit_test(test_bf16_begins_with_sm_80),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
