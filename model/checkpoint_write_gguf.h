/* A model as one GGUF file that llama.cpp and gptd read. */
#pragma once

#include "model/tokenizer.h"
#include "model/weight_export.h"

/* What the file is made of. */
struct gguf_export {
    const struct weight_source *source;
    enum dtype dtype;                  /* of the matrices: f32, f16, bf16, q8_0 */
    const char *name;                  /* general.name */
    const struct gguf *gguf;           /* the tokenizer, as this file has it; else NULL and... */
    const struct tokenizer *tokenizer; /* ... as it was read; NULL: none */
};

/* Families: gpt2 (tanh GELU; zero biases where the model has none), llama (also for Mistral),
 * qwen2, qwen3. A model that none of them computes is ERR_UNSUPPORTED. q8_0 packs 32 elements of a
 * row: matrices with rows of another length are stored as f16, as llama.cpp does. Whole or not at
 * all. */
bool checkpoint_write_gguf(const struct gguf_export *e, const char *path, struct error *err)
    MUST_CHECK;
