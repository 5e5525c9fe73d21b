/* How a checkpoint is put together; private to model/checkpoint*.c.
 *
 * Opening goes: map the files, list all their tensors in one table by name; read the config; bind
 * each weight role to its tensors (checkpoint_bind), checking shapes; refuse what is left over. */
#pragma once

#include "model/checkpoint.h"
#include "model/safetensors.h"

enum { CHECKPOINT_MAX_SHARDS = 1024, CHECKPOINT_PATH_MAX = 4096 };

/* A tensor of any of the files. */
struct tensor_entry {
    struct gguf_string name; /* borrowed from the file */
    const char *file;        /* borrowed: the path, for messages */
    const char *type;        /* as the file's format calls the element type */
    bool usable;
    enum dtype dtype;
    int32_t n_dims;
    int64_t dims[SAFETENSORS_MAX_DIMS]; /* outermost first */
    const uint8_t *data;
    int64_t size;
    bool used; /* bound to a weight, or known to be needless */
};

enum part_layout {
    PART_ROWS,       /* [n_rows, n_cols] as it is read */
    PART_TRANSPOSED, /* [n_cols, n_rows]: GPT-2's Conv1D */
    PART_ROPE_PAIRS, /* rows of a head in the order 0, K/2, 1, K/2 + 1, ... (GGUF's llama) */
};

/* Consecutive rows of a weight: one tensor. A vector of n is a part of n rows and one column. */
struct weight_part {
    const uint8_t *data;
    enum dtype dtype;
    enum part_layout layout;
    int64_t n_rows, n_cols;
};

struct weight {
    int32_t n_parts; /* 0: the model has no such weight */
    bool vector;
    struct weight_part parts[CHECKPOINT_MAX_PARTS];
};

struct checkpoint {
    enum checkpoint_format format;
    char *path;
    struct gpt_config config;
    struct gguf *gguf;
    struct safetensors **shards; /* with their paths: messages and fingerprint name them */
    char **shard_paths;
    int32_t n_shards;
    struct tensor_entry *tensors; /* in the files' order */
    struct tensor_entry **by_name;
    int64_t n_tensors;
    struct weight *weights; /* [N_WEIGHT_ROLES] of the model, then [n_layer][N_WEIGHT_ROLES] */
    struct weight_formats *formats; /* [1 + n_layer]; NULL: see checkpoint_formats */
    enum dtype dtype;
};

/* How a family names the tensors of each role: up to three that lie under each other. NULL: this
 * layout has no such weight. */
struct tensor_names {
    const char *prefix;       /* before the names of the whole model, but not lm_head's */
    const char *layer_prefix; /* after it, before the layer's number: "layers." */
    const char *roles[N_WEIGHT_ROLES][CHECKPOINT_MAX_PARTS];
    bool conv1d;              /* matrices inside layers are stored [in, out] */
    bool rope_pairs;          /* q and k rows are stored in pairs */
    const char *const *needless; /* suffixes of tensors that need not be read; NULL ends them */
};

/* tensor_names.c. model_type: "gpt2", "gptd" (gptd's own names) or one of the Llama family. */
struct tensor_names tensor_names_hf(const char *model_type, bool tied);
/* fused_qkv: the file has one tensor of queries, keys and values, where the family may (gpt2
 * does). */
struct tensor_names tensor_names_gguf(const char *arch, bool fused_qkv);

enum { TENSOR_NAME_BYTES = 160 };
/* The full name of part i of a role; false when the layout has none. */
bool tensor_name(const struct tensor_names *names, enum weight_role role, int i, int64_t layer,
                 char out[TENSOR_NAME_BYTES]);
int tensor_n_parts(const struct tensor_names *names, enum weight_role role); /* 0: no such weight */
/* How many of a weight's rows (of a vector's elements) part i of n_parts holds. */
int64_t tensor_part_rows(const struct gpt_config *c, enum weight_role role, int i, int n_parts,
                         int64_t all);
enum part_layout tensor_part_layout(const struct tensor_names *names, enum weight_role role, int i);
bool weight_role_is_vector(enum weight_role role); /* else a matrix */

/* Fills the table from the opened files and sorts by_name. Refuses a name that occurs twice. */
bool checkpoint_list_tensors(struct checkpoint *ck, struct error *err) MUST_CHECK;
struct tensor_entry *checkpoint_find(const struct checkpoint *ck, const char *name);
/* Does the file have the first tensor of this role (in layer 0)? */
bool checkpoint_has(const struct checkpoint *ck, const struct tensor_names *names,
                    enum weight_role role);
/* Sets the config's bias switches and tying by which tensors are there. */
void checkpoint_switches_by_presence(struct checkpoint *ck, const struct tensor_names *names);
/* Binds all weights that ck->config calls for; checks that nothing else is there. */
bool checkpoint_bind(struct checkpoint *ck, const struct tensor_names *names, struct error *err)
    MUST_CHECK;

/* checkpoint_formats.c: fills in ck->formats, of a checkpoint whose weights are bound. */
bool checkpoint_note_formats(struct checkpoint *ck, struct error *err) MUST_CHECK;

bool checkpoint_open_hf(struct checkpoint *ck, struct error *err) MUST_CHECK;
bool checkpoint_open_gguf(struct checkpoint *ck, struct error *err) MUST_CHECK;
