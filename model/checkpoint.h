/* A checkpoint opened for reading: a Hugging Face directory (config.json + model.safetensors,
 * or shards through model.safetensors.index.json) or one GGUF file. Opening maps the weights and
 * checks everything - header, offsets against the file's size, names, shapes and element
 * types of every tensor that the config calls for - before anything is allocated in proportion
 * to the model. After that, reading rows cannot fail. Read-only after open: any thread.
 *
 * The many ways that files lay out one decoder (Conv1D's transposed matrices, q/k/v apart or
 * fused, GGUF's interleaved RoPE rows) end here: callers ask for a weight by its role and get
 * rows of a plain [n_out, n_in] matrix as f32. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "model/config.h"
#include "model/dtype.h"
#include "model/gguf.h"

enum weight_role {
    /* Of the whole model. */
    WEIGHT_TOKEN_EMBEDDING,    /* [V, C] */
    WEIGHT_POSITION_EMBEDDING, /* [block_size, C], POS_LEARNED */
    WEIGHT_FINAL_NORM,         /* [C] */
    WEIGHT_FINAL_NORM_BIAS,    /* [C] */
    WEIGHT_LM_HEAD,            /* [V, C], when not tied */
    WEIGHT_LM_HEAD_BIAS,       /* [V] */
    /* Of a layer. */
    WEIGHT_ATTN_NORM,          /* [C] */
    WEIGHT_ATTN_NORM_BIAS,     /* [C] */
    WEIGHT_QKV,                /* [(H + 2G) K, C]: all query heads, then keys, then values;
                                  rows of a head in the rotate-half order */
    WEIGHT_QKV_BIAS,           /* [(H + 2G) K] */
    WEIGHT_Q_NORM,             /* [K] */
    WEIGHT_K_NORM,             /* [K] */
    WEIGHT_ATTN_OUT,           /* [C, H K] */
    WEIGHT_ATTN_OUT_BIAS,      /* [C] */
    WEIGHT_MLP_NORM,           /* [C] */
    WEIGHT_MLP_NORM_BIAS,      /* [C] */
    WEIGHT_MLP_UP,             /* [F, C]; MLP_SWIGLU: [2F, C], gate rows then up rows */
    WEIGHT_MLP_UP_BIAS,        /* [F] or [2F] */
    WEIGHT_MLP_DOWN,           /* [C, F] */
    WEIGHT_MLP_DOWN_BIAS,      /* [C] */
    N_WEIGHT_ROLES,
};

const char *weight_role_name(enum weight_role role); /* "token_embedding", "qkv", ... */
/* Does a model of this config have the weight, and of which shape (vectors: n_out = 1)? */
bool weight_role_shape(const struct gpt_config *c, enum weight_role role, int64_t *n_out,
                       int64_t *n_in);
bool weight_role_is_layer(enum weight_role role);

/* A tensor as the file has it: for `gptd inspect`. */
struct checkpoint_tensor {
    char name[96];
    char type[12];     /* the element type in the file's words: "F32", "I64", "q4_K" */
    bool usable;       /* an element type that we compute with: then `dtype` says which */
    enum dtype dtype;
    int32_t n_dims;
    int64_t dims[4]; /* outermost first, as Hugging Face prints shapes */
    int64_t bytes;
};

/* ---- Types of matrices ----
 *
 * GGUF files quantize tensor by tensor: one matrix may have another type than the next, and so may
 * the parts of a matrix that come from several tensors (queries and keys in q4_K, values in
 * q6_K). */

enum { CHECKPOINT_MAX_PARTS = 3 };

/* The types of one layer's matrices, or of those of the whole model: by role and tensor,
 * enum dtype. */
struct weight_formats {
    uint8_t n_parts[N_WEIGHT_ROLES]; /* 0: no matrix, or none whose tensors are all quantized */
    uint8_t parts[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS];
};

struct weight_rows {
    enum dtype dtype;
    int64_t n_rows;
};

/* The weight's rows as runs of one quantized type each; `f` as checkpoint_formats has them. Returns
 * the number of runs, 0 for a weight that is not quantized. */
int32_t weight_formats_rows(const struct weight_formats *f, const struct gpt_config *c,
                            enum weight_role role, int64_t layer,
                            struct weight_rows out[CHECKPOINT_MAX_PARTS]);
/* The quantized type that most elements have. */
enum dtype weight_formats_main(const struct weight_formats *f, const struct gpt_config *c);

enum checkpoint_format { CHECKPOINT_HF, CHECKPOINT_GGUF };

struct checkpoint;
struct tokenizer;

bool checkpoint_open(const char *path, struct checkpoint **out, struct error *err) MUST_CHECK;
void checkpoint_close(struct checkpoint *ck); /* NULL-safe */

enum checkpoint_format checkpoint_format(const struct checkpoint *ck);
const char *checkpoint_path(const struct checkpoint *ck);
const struct gpt_config *checkpoint_config(const struct checkpoint *ck);
const struct gguf *checkpoint_gguf(const struct checkpoint *ck); /* NULL for a HF directory */
/* The element type most of the matrices have in the file. */
enum dtype checkpoint_dtype(const struct checkpoint *ck);
int64_t checkpoint_file_bytes(const struct checkpoint *ck); /* of the weight files together */
int64_t checkpoint_n_tensors(const struct checkpoint *ck);
void checkpoint_tensor(const struct checkpoint *ck, int64_t i, struct checkpoint_tensor *out);
/* The tokenizer that came with it; *out is NULL when none did. */
bool checkpoint_open_tokenizer(const struct checkpoint *ck, struct tokenizer **out,
                               struct error *err) MUST_CHECK;
/* SHA-256 of the weight files' headers, sizes and a sample of their bytes, 16 hex digits + NUL:
 * names a weight version (system_fingerprint). */
bool checkpoint_fingerprint(const struct checkpoint *ck, char out[17], struct error *err)
    MUST_CHECK;

/* Rows [row0, row0 + n_rows) of the weight as f32, row-major [n_rows, n_in]. `layer` is ignored
 * for roles of the whole model. The role must exist for this config and the rows lie inside it
 * (asserted: the caller asks by weight_role_shape). */
void checkpoint_read_rows(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                          int64_t row0, int64_t n_rows, float *dst);
/* What the matrices are quantized as: of the whole model, then [n_layer]. NULL when none is. */
const struct weight_formats *checkpoint_formats(const struct checkpoint *ck);
/* The same rows as the file's blocks, each row dtype_bytes(type, n_in) bytes; they must lie
 * in one of weight_formats_rows' runs. */
void checkpoint_read_blocks(const struct checkpoint *ck, enum weight_role role, int64_t layer,
                            int64_t row0, int64_t n_rows, uint8_t *dst);
/* Have the weight files been left alone since they were opened? To be asked when all that matters
 * has been read. False with the reason in `err`. */
bool checkpoint_unchanged(const struct checkpoint *ck, struct error *err) MUST_CHECK;
/* What reading has brought into memory leaves it again: a loader calls it after each block, so
 * that a model is never there twice. */
void checkpoint_forget(const struct checkpoint *ck);
