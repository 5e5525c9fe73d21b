/* GGUF writes Llama 3's RoPE scaling out as one factor a frequency; the config has it as
 * parameters. */
#pragma once

#include "model/config.h"

/* The factor that llama3 scaling (the config's rope_* parameters) divides frequency i of
 * head_dim / 2 by. Source: transformers, modeling_rope_utils, _compute_llama3_parameters. */
double rope_llama3_factor(const struct gpt_config *c, int64_t i);

/* Sets the config's rope scaling so that it divides frequency i by factors[i], i < n = head_dim /
 * 2, within float rounding: none, linear or llama3. ERR_UNSUPPORTED when none of them does. */
bool rope_freqs_to_config(const float *factors, int64_t n, const char *where,
                          struct gpt_config *c, struct error *err) MUST_CHECK;
