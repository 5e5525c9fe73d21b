/* A config as Hugging Face's config.json: which family can express the model, and its keys. */
#pragma once

#include "base/buf.h"
#include "model/config.h"
#include "model/dtype.h"

/* What the file will hold: `c` with the family's model_type as its arch and with the biases that
 * the family always has (their values are zeros where c has none). Chosen by what the model does,
 * not by the name it came with:
 *   gpt2     learned positions, LayerNorm, GELU, as many key/value as query heads, heads that
 *            make up the width, no lm_head bias; all other biases always
 *   qwen3    RoPE, RMSNorm, SwiGLU, norms of q and k, no MLP bias
 *   qwen2    RoPE, RMSNorm, SwiGLU, biases of q, k and v alone
 *   mistral  RoPE, RMSNorm, SwiGLU, no biases, when it came as mistral
 *   llama    RoPE, RMSNorm, SwiGLU, with or without biases
 *   gptd     everything else: gptd's own keys and tensor names, which transformers does not know */
void hf_config_family(const struct gpt_config *c, struct gpt_config *as);

/* Appends config.json's text for what hf_config_family answered. bos and eos: -1 for none. */
void hf_config_print(struct buf *out, const struct gpt_config *as, enum dtype dtype, int32_t bos,
                     int32_t eos);
