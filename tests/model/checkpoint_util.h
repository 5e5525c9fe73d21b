/* What the tests of checkpoints share: a directory that dies with the test, small models in it, and
 * checks of single weights. */
#pragma once

#include <stdint.h>

#include "model/checkpoint.h"
#include "tests/model/fake_model.h"

/* Sizes of the models below: width, vocabulary, context, feed-forward width, layers. */
enum { C = 16, V = 40, T = 12, F = 24, L = 2 };

/* A directory for one test: set up and tear down around each. */
const char *test_dir(void);
const char *in_test_dir(const char *name); /* valid until the next call */
int set_up_dir(void **state);
int tear_down_dir(void **state);

/* Fail the test unless... */
struct checkpoint *open_good(const char *path);         /* it opens */
void refuse(const char *path, const char *why);         /* it does not, and the text says why */
/* The whole weight; freed by the caller. */
float *read_all(const struct checkpoint *ck, enum weight_role role, int64_t layer, int64_t *n);
/* ... the weight is exactly the tensors' values, one after the other; NULL ends the names. */
void check_weight(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                  const char *const *names, const int64_t *counts);
void check_one(const struct checkpoint *ck, enum weight_role role, int64_t layer, const char *name);

/* A Hugging Face GPT-2 of the sizes above. */
extern const char gpt2_config[];
struct fake_model fake_gpt2(const char *prefix, bool biases);
/* config.json and model.safetensors in the test's directory; frees the model. */
void save_hf(struct fake_model *m, const char *config);
/* A GGUF of a RoPE family: two query heads of 8 on one key/value head, feed-forward width 32. */
struct fake_model fake_gguf(const char *arch);
/* The file's path in the test's directory; frees the model. */
const char *save_gguf(struct fake_model *m);
