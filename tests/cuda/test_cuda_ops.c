/* Every operation of the CUDA device against the CPU's reference kernels, over awkward shapes: on a
 * GPU where there is one, and on the interpreter of tests/ptxsim in the program that is linked with
 * it (make test-cuda), which also watches every access. An argument is a pattern of test names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/cuda/cuda_cases.h"
#include "tests/cuda/cuda_side.h"
#include "tests/ptxsim/ptxsim.h"

#pragma weak ptxsim_budgets_hold
#pragma weak ptxsim_code
#pragma weak ptxsim_coverage
#pragma weak ptxsim_speed

/* Floors and budgets are of sm_80's code: older code also has kernels of bf16, which nobody calls
 * there. */
static void skip_other_code(void)
{
    if (!on_interpreter() || ptxsim_code() != 80) skip();
}

/* Last: the cases above came to every kernel, and to most instructions: nvcc unrolls loops into
 * copies for lengths that small shapes do not have. */
static void test_every_kernel_was_run(void **state)
{
    skip_other_code();
    struct ptxsim_coverage c = ptxsim_coverage(false);
    bool enough = c.n_run == c.n_kernels && c.n_executed * 100 >= c.n_instructions * 60;
    if (!enough) ptxsim_coverage(true);
    print_message("%d of %d kernels, %lld of %lld instructions\n", c.n_run, c.n_kernels,
                  (long long)c.n_executed, (long long)c.n_instructions);
    assert_true(enough);
}

/* ... and left figures of every kernel's memory traffic. `make cuda-budgets` adds ptxas's report of
 * registers, or renews the table. */
static void test_kernels_keep_to_their_budgets(void **state)
{
    skip_other_code();
    assert_true(ptxsim_budgets_hold("tests/cuda/budgets.txt", getenv("PTXAS_REPORT"),
                                    getenv("RENEW_BUDGETS") != NULL));
}

int main(int argc, char **argv)
{
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_come_back),
        cmocka_unit_test(test_weights_in_pieces),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_quantized_products),
        cmocka_unit_test(test_products_without_tensor_cores),
        cmocka_unit_test(test_rows_do_not_know_their_neighbours),
        cmocka_unit_test(test_wide_products),
        cmocka_unit_test(test_wide_products_in_less_shared_memory),
        cmocka_unit_test(test_norms_and_gates_of_products),
        cmocka_unit_test(test_products_backward),
        cmocka_unit_test(test_gradients_are_rounded_by_place_and_key),
        cmocka_unit_test(test_products_backward_by_library),
        cmocka_unit_test(test_slopes_of_two_layers_by_library),
        cmocka_unit_test(test_more_shapes_than_plans_by_library),
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_norms_of_wide_rows_backward),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_embedding_of_frequent_tokens),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_splits_change_no_bit),
        cmocka_unit_test(test_attention_without_tensor_cores),
        cmocka_unit_test(test_attention_backward),
        cmocka_unit_test(test_attention_backward_without_tensor_cores),
        cmocka_unit_test(test_rope_backward),
        cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_sampling_of_hard_rows),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_of_many_tensors),
        cmocka_unit_test(test_grad_squares),
        cmocka_unit_test(test_every_kernel_was_run),
        cmocka_unit_test(test_kernels_keep_to_their_budgets),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (on_interpreter()) {
        uint64_t n;
        double seconds;
        ptxsim_speed(&n, &seconds);
        fprintf(stderr, "%.0f million lane instructions in %.1f s: %.0f million a second\n",
                (double)n * 1e-6, seconds, (double)n * 1e-6 / seconds);
    }
    return failed;
}
