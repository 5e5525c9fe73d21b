/* What is asked of the planner, in words that the command line (`gptd plan`) and POST
 * /v1/memory/plan share, and the question for model/fit.h that it comes to. What is not said is
 * open: of training's memory formats the planner then chooses. */
#pragma once

#include "model/fit.h"

enum plan_purpose { PLAN_BOTH, PLAN_TRAINING, PLAN_GENERATION };

/* All borrowed; 0 and NULL: not said. */
struct plan_request {
    const char *name;   /* of the model, for people and for messages */
    /* The model: a config in nanoGPT's words, or one that exists. */
    const char *config;
    size_t n_config;
    const struct gpt_config *known;
    const struct weight_formats *formats; /* of one that exists: what it keeps quantized, unless
                                             `dtype` is said */
    int64_t vocab_size; /* of a config that leaves it to the data */
    int64_t block_size; /* of a config: instead of its own */

    const char *device; /* "cpu", "cuda"; not said: cuda with a GPU, else cpu */
    const char *gpu;    /* a card's name, or memory: "8GiB" */
    int64_t memory_budget;
    const char *purpose; /* "both", "training", "generation": what must fit */

    /* Training: the keys of a config file, which count more than those in it. */
    int64_t batch_size, grad_accum_steps, micro_batch_size, sequence_length, loss_rows;
    const char *dtype, *recompute, *moments, *master, *gradients;
    /* Generation. */
    const char *kv_dtype;
    int64_t max_context, max_seqs, max_batch_tokens;
};

enum { PLAN_ASSUMED_VOCAB = 96 }; /* characters of plain English text */

/* The request's numbers (key, most, help) and words (key, as JSON literals, help), for tables:
 * the flag is --batch-size, the parameter batch_size. Numbers begin at 1. */
#define PLAN_KEYS(NUMBER, WORD) \
    WORD(device, "\"cpu\",\"cuda\"", \
         "Whose layouts count; without it cuda where a GPU is named, else cpu.") \
    WORD(purpose, "\"both\",\"training\",\"generation\"", "What must fit; without it both.") \
    NUMBER(vocab_size, CONFIG_MAX_VOCAB, \
           "Of a config whose vocabulary comes from the data; without it 96 characters.") \
    NUMBER(block_size, CONFIG_MAX_CONTEXT, "Context of a new model, instead of the config's.") \
    NUMBER(batch_size, 65536, "Sequences of a batch.") \
    NUMBER(grad_accum_steps, 65536, "Batches whose gradients add up to one step.") \
    NUMBER(micro_batch_size, 65536, \
           "Sequences computed at a time; without it the planner chooses.") \
    NUMBER(sequence_length, CONFIG_MAX_CONTEXT, \
           "Tokens of a training sequence; without it block_size.") \
    NUMBER(loss_rows, 1 << 20, \
           "Tokens whose logits exist at a time; without it the planner chooses.") \
    WORD(dtype, "\"auto\",\"f32\",\"f16\",\"bf16\",\"q8_0\",\"q4_0\"", \
         "Of weights: f32, f16 and bf16 count for training, f32, bf16, q8_0 and q4_0 for " \
         "generation. Without it auto: bf16, but for training on the CPU f32, unless the config " \
         "says another, and for generating from a quantized GGUF file what the file has.") \
    WORD(recompute, "\"auto\",\"none\",\"selective\",\"block\"", \
         "What the backward pass computes again; without it auto: the planner chooses.") \
    WORD(moments, "\"auto\",\"f32\",\"bf16\",\"q8\"", \
         "How AdamW keeps its averages; without it auto: the planner chooses.") \
    WORD(master, "\"auto\",\"f32\",\"remainder\"", \
         "What bf16 weights lack of f32 ones; without it auto: the planner chooses.") \
    WORD(gradients, "\"auto\",\"f32\",\"bf16\"", \
         "How the blocks' matrices add up gradients; without it auto: the planner chooses.") \
    WORD(kv_dtype, "\"auto\",\"f32\",\"bf16\",\"q8_0\"", \
         "Of keys and values when generating; q8_0 on the CPU alone. Without it auto: as " \
         "products compute.") \
    NUMBER(max_context, CONFIG_MAX_CONTEXT, \
           "Tokens of a sequence that is generated; without it block_size.") \
    NUMBER(max_seqs, ENGINE_MAX_SEQS, \
           "Sequences generated at once, each of full length; without it 1.") \
    NUMBER(max_batch_tokens, ENGINE_MAX_BATCH_TOKENS, \
           "Tokens of one generating step; without it 4, the least that is of use.")

struct plan_key {
    const char *name;
    size_t offset;     /* in struct plan_request */
    int64_t max;       /* of a number; 0: a word */
    const char *words; /* the literals; NULL: a number */
    const char *help;
};
enum { N_PLAN_KEYS = 18 };
extern const struct plan_key plan_keys[N_PLAN_KEYS];

/* Whose sizes are asked: this machine's CPU, and any CUDA device. */
struct plan_devices {
    const struct device *cpu;
    fit_sizes cuda;
};

/* The question, and what it rests on. */
struct plan_case {
    const char *name;
    struct fit_question question;
    enum plan_purpose purpose;
    bool assumed_vocab;      /* PLAN_ASSUMED_VOCAB */
    bool on_cuda, has_gpu;
    struct gpu gpu;          /* has_gpu */
    int64_t overhead_bytes;  /* what the device takes beside the plan; an estimate */
    const char *overhead_source;
};

/* ERR_INVALID names the key (as in plan_keys) that makes no sense. */
bool plan_request_resolve(const struct plan_request *r, const struct plan_devices *devices,
                          struct plan_case *out, struct error *err) MUST_CHECK;

/* Does what was asked for fit, and how many bytes are missing? */
bool plan_case_fits(const struct plan_case *c, const struct fit_answer *a);
int64_t plan_case_shortfall(const struct plan_case *c, const struct fit_answer *a);
