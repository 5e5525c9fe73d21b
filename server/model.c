/* A model on a device: see model.h. */
#include "server/model.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "model/checkpoint.h"
#include "model/dtype.h"
#include "model/gpt.h"
#include "model/tokenizer.h"
#include "server/process.h"

void model_options_init(struct model_options *o)
{
    struct engine_options e;
    engine_options_init(&e);
    *o = (struct model_options){
        .device = {.name = "auto", .cpu_isa = "best"},
        .dtype = "auto",
        .kv_dtype = "auto",
        .memory_budget = e.memory_budget,
        .max_context = e.max_context,
        .max_seqs = e.max_seqs,
        .max_batch_tokens = e.max_batch_tokens,
        .max_queue = e.max_queue,
        .kv_cache = e.kv_bytes,
        .prefix_cache = e.prefix_cache,
    };
}

void model_options_table(struct model_options *o, struct option *table)
{
    const struct option entries[N_MODEL_OPTIONS - N_DEVICE_OPTIONS] = {
        {"dtype", OPTION_STRING, &o->dtype, 0, 0, "auto|f32|bf16|f16|q8_0|q4_0",
         "Element type of weights. auto: quantized matrices of a GGUF file stay as they are (on "
         "the CPU), all else is bf16. q8_0 and q4_0 quantize as they load."},
        {"kv-dtype", OPTION_STRING, &o->kv_dtype, 0, 0, "auto|f32|bf16|q8_0",
         "Element type of keys and values; auto: as products compute, which is bf16 beside "
         "quantized weights. q8_0, on the CPU, takes about half of bf16's memory."},
        {"memory-budget", OPTION_BYTES, &o->memory_budget, 0, 0, "SIZE",
         "The most that the model may take, or a server's models together; what cannot fit is "
         "refused. 0: 80 % of what the GPU, or the machine and the cgroup, leave at start."},
        {"max-context", OPTION_INT, &o->max_context, 0, CONFIG_MAX_CONTEXT, "N",
         "Tokens a sequence may hold; 0: as many as the model was trained for."},
        {"max-seqs", OPTION_INT, &o->max_seqs, 1, 4096, "N", "Sequences that run at once."},
        {"max-batch-tokens", OPTION_INT, &o->max_batch_tokens, 1, 1 << 20, "N",
         "Tokens of one step: one of each running sequence, then a chunk of new prompts."},
        {"max-queue", OPTION_INT, &o->max_queue, 1, 1 << 20, "N",
         "Requests that may wait; more get 429."},
        {"kv-cache", OPTION_BYTES, &o->kv_cache, 0, 0, "SIZE",
         "Memory for keys and values; 0: a quarter of --max-seqs full sequences, as far as the "
         "budget goes."},
        {"prefix-cache", OPTION_FLAG, &o->prefix_cache, 0, 0, NULL,
         "Do not reuse the keys and values of prompts that begin alike."},
    };
    device_options_table(&o->device, DEVICE_HELP_RUN, table);
    memcpy(table + N_DEVICE_OPTIONS, entries, sizeof entries);
}

bool model_types_parse(const char *dtype_name, const char *kv_dtype_name, enum dtype *dtype,
                       enum dtype *kv_dtype, struct error *err)
{
    *dtype = DTYPE_BF16;
    if (strcmp(dtype_name, "auto") != 0
        && (!dtype_parse(dtype_name, dtype) || !gpt_type_is_served(*dtype)))
        return error_set(err, ERR_INVALID, "dtype",
                         "--dtype %s: must be auto, f32, bf16, f16, q8_0 or q4_0", dtype_name);
    if (!gpt_kv_type_parse(kv_dtype_name, kv_dtype))
        return error_set(err, ERR_INVALID, "kv-dtype",
                         "--kv-dtype %s: must be auto, f32, bf16 or q8_0", kv_dtype_name);
    return true;
}

bool model_options_check(const struct model_options *o, struct error *err)
{
    enum dtype dtype, kv_dtype;
    if (!model_types_parse(o->dtype, o->kv_dtype, &dtype, &kv_dtype, err)) return false;
    if (o->max_batch_tokens < o->max_seqs)
        return error_set(err, ERR_INVALID, "max-batch-tokens",
                         "--max-batch-tokens %lld: must be at least --max-seqs, %lld",
                         (long long)o->max_batch_tokens, (long long)o->max_seqs);
    return device_options_check(&o->device, err);
}

static void engine_options_from(const struct model_options *o, struct engine_options *e)
{
    engine_options_init(e);
    ASSERT(model_types_parse(o->dtype, o->kv_dtype, &e->dtype, &e->kv_dtype, NULL));
    e->memory_budget = o->memory_budget > 0 ? o->memory_budget : device_budget_default(&o->device);
    e->max_context = o->max_context;
    e->max_seqs = (int32_t)o->max_seqs;
    e->max_batch_tokens = (int32_t)o->max_batch_tokens;
    e->max_queue = (int32_t)o->max_queue;
    e->kv_bytes = o->kv_cache;
    e->prefix_cache = o->prefix_cache;
}

bool model_name(const char *spec, char *id, size_t id_size, const char **path, struct error *err)
{
    const char *equals = strchr(spec, '=');
    const char *slash = strchr(spec, '/');
    bool named = equals && (!slash || equals < slash);
    const char *name = spec;
    size_t len = 0;
    *path = spec;
    if (named) {
        len = (size_t)(equals - spec);
        *path = equals + 1;
    } else {
        size_t end = strlen(spec);
        while (end > 1 && spec[end - 1] == '/') end--;
        size_t begin = end;
        while (begin > 0 && spec[begin - 1] != '/') begin--;
        name = spec + begin;
        len = end - begin;
        if (len > 5 && strncasecmp(name + len - 5, ".gguf", 5) == 0) len -= 5;
    }
    bool plain = len > 0 && len < id_size;
    for (size_t i = 0; i < len && plain; i++)
        plain = name[i] > ' ' && name[i] != 0x7F && !strchr("\"\\?#%", name[i]);
    if (!plain || !**path || strncmp(name, "..", len) == 0)
        return error_set(err, ERR_INVALID, "model",
                         "--model %s: gives no usable name or no path; say --model NAME=PATH, with "
                         "a NAME of 1 to %zu printable characters", spec, id_size - 1);
    memcpy(id, name, len);
    id[len] = 0;
    return true;
}

static bool open_engine(const struct model_options *o, const struct checkpoint *ck, struct model *m,
                        struct error *err)
{
    struct engine_options e;
    engine_options_from(o, &e);
    const struct weight_formats *formats = checkpoint_formats(ck);
    if (strcmp(o->dtype, "auto") == 0) e.formats = formats;
    if (e.formats && !gpt_keeps_formats(m->device))
        log_warn("model %s: %s does not keep the file's %s weights: they become %s", m->id,
                 m->device->name, dtype_info(checkpoint_dtype(ck))->name,
                 dtype_info(e.dtype)->name);
    return engine_open(m->device, ck, m->tokenizer, &e, &m->engine, err);
}

/* Of the weights, as the log names it. */
static const char *weights_name(const struct model *m, const struct model_options *o)
{
    const struct weight_formats *kept = engine_formats(m->engine);
    enum dtype dtype, kv_dtype;
    ASSERT(model_types_parse(o->dtype, o->kv_dtype, &dtype, &kv_dtype, NULL));
    if (kept) dtype = weight_formats_main(kept, engine_config(m->engine));
    return dtype_info(dtype)->name;
}

bool model_open(const char *spec, const struct model_options *o, struct model *out,
                struct error *err)
{
    struct model m = {0};
    struct checkpoint *ck = NULL;
    struct file_guard guard;
    int64_t begin = clock_ns();
    if (!model_name(spec, m.id, sizeof m.id, &m.path, err)) return false;
    file_guard_begin(&guard);
    bool ok = checkpoint_open(m.path, &ck, err)
              && checkpoint_open_tokenizer(ck, &m.tokenizer, err)
              && device_open(&o->device, &m.device, err)
              && open_engine(o, ck, &m, err)
              && checkpoint_unchanged(ck, err);
    /* What was read of a file that was cut is wrong, and so is any reason that it gave. */
    if (!file_guard_end(&guard, m.path, err) || !ok) {
        checkpoint_close(ck);
        model_close(&m);
        return false;
    }
    checkpoint_close(ck);
    process_trim(); /* of what reading the tokenizer and the files' headers took */
    const struct gpt_config *c = engine_config(m.engine);
    log_info("model %s: %s, %lld parameters, %s%s, %s, opened in %.2f s", m.id, c->arch,
             (long long)gpt_config_parameters(c), weights_name(&m, o),
             engine_formats(m.engine) ? " as in the file" : "",
             m.tokenizer ? tokenizer_description(m.tokenizer) : "no tokenizer: token ids only",
             (double)(clock_ns() - begin) / 1e9);
    *out = m;
    return true;
}

void model_close(struct model *m)
{
    if (m->engine) engine_close(m->engine);
    device_close(m->device);
    tokenizer_free(m->tokenizer);
    *m = (struct model){0};
}
