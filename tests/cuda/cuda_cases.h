/* Cases of test_cuda_ops, by the file of cuda/ that they are about. */
#pragma once

/* cases_matmul.c */
void test_products(void **state);
void test_quantized_products(void **state);
void test_products_without_tensor_cores(void **state);
void test_rows_do_not_know_their_neighbours(void **state);
void test_wide_products(void **state);
void test_wide_products_in_less_shared_memory(void **state);
void test_norms_and_gates_of_products(void **state);
void test_weights_come_back(void **state);
void test_weights_in_pieces(void **state);
void test_products_backward(void **state);
void test_gradients_are_rounded_by_place_and_key(void **state);
void test_products_backward_by_library(void **state);
void test_slopes_of_two_layers_by_library(void **state);
void test_more_shapes_than_plans_by_library(void **state);

/* cases_rows.c */
void test_norms(void **state);
void test_activations(void **state);
void test_dropout(void **state);
void test_embedding(void **state);
void test_embedding_of_frequent_tokens(void **state);
void test_norms_of_wide_rows_backward(void **state);
void test_cross_entropy(void **state);

/* cases_attention.c */
void test_attention(void **state);
void test_attention_splits_change_no_bit(void **state);
void test_attention_without_tensor_cores(void **state);
void test_attention_backward(void **state);
void test_attention_backward_without_tensor_cores(void **state);
void test_rope_backward(void **state);

/* cases_sample.c */
void test_sampling(void **state);
void test_penalties(void **state);
void test_sampling_of_hard_rows(void **state);

/* cases_optimizer.c */
void test_adamw(void **state);
void test_adamw_of_many_tensors(void **state);
void test_grad_squares(void **state);
