/* A model opened on a device and ready to answer: device, tokenizer and engine, opened in that
 * order from one path, closed in reverse. `serve` and `generate` share it, with its options. */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "base/options.h"
#include "model/engine.h"
#include "server/device.h"

/* Plain variables for the option table: model_options_table points into one of these. */
struct model_options {
    struct device_options device;
    const char *dtype, *kv_dtype;
    int64_t memory_budget, max_context, max_seqs, max_batch_tokens, max_queue, kv_cache;
    bool prefix_cache;
};
void model_options_init(struct model_options *o);

enum { N_MODEL_OPTIONS = 13 };
/* Appends the table's entries for `o` at table[0..N_MODEL_OPTIONS). */
void model_options_table(struct model_options *o, struct option *table);
/* Do the options make sense, whatever the model and the machine? ERR_INVALID names the one that
 * does not. */
bool model_options_check(const struct model_options *o, struct error *err) MUST_CHECK;
/* What --dtype and --kv-dtype say. "auto" is bf16 beside what a file has quantized, and KV_AUTO.
 * ERR_INVALID names the option. */
bool model_types_parse(const char *dtype_name, const char *kv_dtype_name, enum dtype *dtype,
                       enum dtype *kv_dtype, struct error *err) MUST_CHECK;

struct model {
    char id[128];     /* the name clients use */
    const char *path; /* borrowed */
    struct device *device;
    struct tokenizer *tokenizer; /* NULL: the model has none, token ids only */
    struct engine *engine;
};

/* PATH or NAME=PATH; without a name it is PATH's last component less ".gguf". The pointer into
 * `spec` that the path is goes to *path. ERR_INVALID for names that would not do in a URL. */
bool model_name(const char *spec, char *id, size_t id_size, const char **path, struct error *err)
    MUST_CHECK;
/* `spec` as above; options that were checked. On failure everything is closed again. */
bool model_open(const char *spec, const struct model_options *o, struct model *out,
                struct error *err) MUST_CHECK;
void model_close(struct model *m); /* harmless on a zeroed struct */
