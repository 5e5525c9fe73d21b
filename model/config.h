/* What a model is: one decoder with switches, so that GPT-2, Llama, Mistral, Qwen2 and Qwen3
 * shapes (and gptd's presets) are one straight forward pass.
 *
 * Shape letters, everywhere in gptd: B batch, T tokens (R rows: tokens of one step), L layers,
 * C width (n_embd), H query heads, G key/value heads, K head size, F feed-forward width,
 * V vocabulary, P page length. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum pos_encoding { POS_LEARNED, POS_ROPE };
enum norm_type { NORM_LAYERNORM, NORM_RMSNORM };
enum mlp_type { MLP_GELU_TANH, MLP_GELU_EXACT, MLP_SWIGLU };
enum rope_scaling { ROPE_SCALING_NONE, ROPE_SCALING_LINEAR, ROPE_SCALING_LLAMA3 };

struct gpt_config {
    char arch[24]; /* "gpt2" "llama" "mistral" "qwen2" "qwen3": the family it came from */
    int64_t n_layer, n_head, n_kv_head, head_dim, n_embd, n_ff, vocab_size;
    int64_t block_size; /* context: the most tokens a sequence may hold */
    enum pos_encoding pos_encoding;
    enum norm_type norm_type;
    float norm_eps;
    enum mlp_type mlp_type;
    bool bias_qkv, bias_attn_out, bias_mlp, bias_norm, bias_lm_head;
    bool qk_norm; /* RMSNorm of each query and key head before RoPE (Qwen3) */
    bool tie_weights;
    float rope_theta;
    enum rope_scaling rope_scaling;
    float rope_factor;                       /* linear and llama3 */
    float rope_low_freq, rope_high_freq;     /* llama3: low_freq_factor, high_freq_factor */
    int64_t rope_original_context;           /* llama3: original_max_position_embeddings */
    /* Training's starting values (presets); 0 when the file does not say. */
    float dropout;
};

enum {
    CONFIG_MAX_LAYER = 1024,
    CONFIG_MAX_WIDTH = 1 << 17,
    CONFIG_MAX_VOCAB = 1 << 22,
    CONFIG_MAX_CONTEXT = 1 << 24,
    CONFIG_MAX_HEAD_DIM = 128,
};

/* Every bound and relation that the rest relies on (positive, heads divide, head sizes of the
 * design's list plus 8 for toy models, limits above). The error names the key. `where` is the
 * file, for the text. */
bool gpt_config_check(const struct gpt_config *c, const char *where, struct error *err) MUST_CHECK;

/* A Hugging Face config.json (`json`, n bytes). Unsupported settings that would change the
 * result (another activation, another rope type, a sliding window shorter than the context...)
 * are errors that name the key; harmless keys are ignored. */
bool gpt_config_from_hf(const char *json, size_t n, const char *where, struct gpt_config *out,
                        struct error *err) MUST_CHECK;

/* A preset or the user's own config in nanoGPT's words (configs/NAME.json). Unknown keys are
 * errors that name the key and the nearest known one. vocab_size may be 0 or absent: it then comes
 * from the data (*_char presets), and gpt_config_check refuses the config until it is set. */
bool gpt_config_from_preset(const char *json, size_t n, const char *where, struct gpt_config *out,
                            struct error *err) MUST_CHECK;

/* The same text beside a model that exists: its training keys count, and what it says of the model
 * must be so. */
bool gpt_config_agrees(const char *json, size_t n, const char *where,
                       const struct gpt_config *model, struct error *err) MUST_CHECK;

/* Adds the model's keys to a JSON object, as gpt_config_from_preset reads them; `dropout` is left
 * to train_config_to_json. False: out of memory. */
struct cJSON;
bool gpt_config_to_preset(const struct gpt_config *c, struct cJSON *object) MUST_CHECK;

/* The first key whose values differ, `dropout` aside; NULL when there is none. */
const char *gpt_config_difference(const struct gpt_config *a, const struct gpt_config *b);

/* Parameters by kind. Tied weights count once. Fits int64 for any checked config. */
int64_t gpt_config_parameters(const struct gpt_config *c);
