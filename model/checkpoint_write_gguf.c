/* A model as a GGUF file: see checkpoint_write_gguf.h; read back by checkpoint_gguf.c. */
#include "model/checkpoint_write_gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/dtype_write.h"
#include "model/gguf_write.h"
#include "model/hf_config_write.h"
#include "model/rope_freqs.h"
#include "model/tokenizer_export.h"

/* ---- The family ---- */

static bool unsaid(struct error *err, const char *what)
{
    return error_set(err, ERR_UNSUPPORTED, "model",
                     "the model cannot be written to GGUF: no architecture there has %s", what);
}

/* What the file will hold, as hf_config_family says it for Hugging Face. llama takes biases as they
 * come; llama.cpp's qwen2 and qwen3 do not. */
static bool gguf_family(const struct gpt_config *c, struct gpt_config *as, struct error *err)
{
    struct gpt_config hf;
    hf_config_family(c, &hf);
    *as = *c;
    if (strcmp(hf.arch, "gptd") == 0)
        return unsaid(err, "this combination of positions, norms, MLP and biases");
    bool llama3 = c->pos_encoding == POS_ROPE && c->rope_scaling == ROPE_SCALING_LLAMA3;
    const char *arch = "llama";
    if (strcmp(hf.arch, "gpt2") == 0) {
        if (c->mlp_type != MLP_GELU_TANH)
            return unsaid(err, "the exact GELU (its gpt2 has the tanh form)");
        *as = hf;
        arch = "gpt2";
    } else if (c->qk_norm) {
        if (c->bias_qkv || c->bias_attn_out) return unsaid(err, "norms of q and k beside biases");
        if (llama3) return unsaid(err, "norms of q and k beside Llama 3's rope scaling");
        arch = "qwen3";
    } else if (strcmp(hf.arch, "qwen2") == 0 && !llama3 && c->n_head * c->head_dim == c->n_embd) {
        arch = "qwen2";
    }
    snprintf(as->arch, sizeof as->arch, "%s", arch);
    return true;
}

/* ---- Metadata ---- */

static const char *arch_key(const struct gpt_config *c, const char *key, char out[96])
{
    snprintf(out, 96, "%s.%s", c->arch, key);
    return out;
}

static void put_size(struct gguf_meta *m, const struct gpt_config *c, const char *key, int64_t size)
{
    char name[96]; /* sizes of a checked config fit 32 bits */
    gguf_meta_u32(m, arch_key(c, key, name), (uint32_t)size);
}

static void put_number(struct gguf_meta *m, const struct gpt_config *c, const char *key,
                       float value)
{
    char name[96];
    gguf_meta_f32(m, arch_key(c, key, name), value);
}

static void put_rope(struct gguf_meta *m, const struct gpt_config *c)
{
    char name[96];
    put_number(m, c, "rope.freq_base", c->rope_theta);
    put_size(m, c, "rope.dimension_count", c->head_dim);
    put_size(m, c, "attention.key_length", c->head_dim);
    put_size(m, c, "attention.value_length", c->head_dim);
    if (c->rope_scaling != ROPE_SCALING_LINEAR) return;
    gguf_meta_string(m, arch_key(c, "rope.scaling.type", name), "linear", 6);
    put_number(m, c, "rope.scaling.factor", c->rope_factor);
}

static void put_config(struct gguf_meta *m, const struct gguf_export *e, const struct gpt_config *c)
{
    static const uint32_t file_types[N_DTYPES] = {
        [DTYPE_F32] = 0, [DTYPE_F16] = 1, [DTYPE_Q8_0] = 7, [DTYPE_BF16] = 32};
    gguf_meta_string(m, "general.architecture", c->arch, strlen(c->arch));
    gguf_meta_string(m, "general.name", e->name, strlen(e->name));
    gguf_meta_u32(m, "general.file_type", file_types[e->dtype]);
    if (e->dtype == DTYPE_Q8_0) gguf_meta_u32(m, "general.quantization_version", 2);
    put_size(m, c, "vocab_size", c->vocab_size);
    put_size(m, c, "context_length", c->block_size);
    put_size(m, c, "embedding_length", c->n_embd);
    put_size(m, c, "block_count", c->n_layer);
    put_size(m, c, "feed_forward_length", c->n_ff);
    put_size(m, c, "attention.head_count", c->n_head);
    put_size(m, c, "attention.head_count_kv", c->n_kv_head);
    bool rms = c->norm_type == NORM_RMSNORM;
    put_number(m, c, rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
               c->norm_eps);
    if (c->pos_encoding == POS_ROPE) put_rope(m, c);
}

static bool put_tokenizer(struct gguf_meta *m, const struct gguf_export *e,
                          const struct gpt_config *c, struct error *err)
{
    if (e->gguf) tokenizer_copy_gguf(e->gguf, m);
    else if (e->tokenizer) return tokenizer_export_gguf(e->tokenizer, c->vocab_size, m, err);
    /* Without the key llama.cpp refuses the file. */
    else gguf_meta_string(m, "tokenizer.ggml.model", "none", 4);
    return true;
}

/* ---- Tensors ---- */

static bool read_weight(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                        uint8_t *out, struct error *err)
{
    return export_read(ctx, t->tag, offset, n, out, err);
}

/* Llama 3's scaling, spelled out. */
static bool read_rope_freqs(void *ctx, const struct tensor_source *t, int64_t offset, int64_t n,
                            uint8_t *out, struct error *err)
{
    float factors[CONFIG_MAX_HEAD_DIM / 2];
    for (int64_t i = 0; i < t->dims[0]; i++) factors[i] = (float)rope_llama3_factor(ctx, i);
    memcpy(out, (const uint8_t *)factors + offset, (size_t)n);
    return true;
}

/* The element types that the rows allow; then the sources for the writer. */
static void list_sources(struct export_tensor *tensors, int64_t n, struct export_reader *reader,
                         struct tensor_source *out)
{
    for (int64_t i = 0; i < n; i++) {
        struct export_tensor *t = &tensors[i];
        struct tensor_source *s = &out[i];
        *s = (struct tensor_source){.read = read_weight, .ctx = reader, .tag = i};
        s->n_dims = export_shape(t, s->dims);
        if (s->dims[s->n_dims - 1] % dtype_info(t->dtype)->block != 0) t->dtype = DTYPE_F16;
        s->dtype = t->dtype;
        s->bytes = export_bytes(t);
        ASSERT(strlen(t->name) < sizeof s->name);
        strcpy(s->name, t->name);
    }
}

static bool write_file(const char *path, const struct gguf_meta *m, struct gpt_config *as,
                       const struct weight_source *source, struct export_tensor *tensors,
                       int64_t n, struct error *err)
{
    struct export_reader reader;
    struct tensor_source *sources = calloc((size_t)n + 1, sizeof *sources);
    if (!sources) return error_set(err, ERR_MEMORY, NULL, "%s: no memory to write it", path);
    if (!export_reader_open(&reader, source, tensors, n, err)) {
        free(sources);
        return false;
    }
    list_sources(tensors, n, &reader, sources);
    if (as->pos_encoding == POS_ROPE && as->rope_scaling == ROPE_SCALING_LLAMA3) {
        sources[n++] = (struct tensor_source){
            .name = "rope_freqs.weight", .dtype = DTYPE_F32, .n_dims = 1,
            .dims = {as->head_dim / 2}, .bytes = as->head_dim / 2 * (int64_t)sizeof(float),
            .read = read_rope_freqs, .ctx = as};
    }
    bool ok = gguf_write(path, m, sources, n, err);
    export_reader_close(&reader);
    free(sources);
    return ok;
}

bool checkpoint_write_gguf(const struct gguf_export *e, const char *path, struct error *err)
{
    struct gpt_config as;
    struct export_tensor *tensors = NULL;
    struct gguf_meta meta;
    int64_t n;
    ASSERT(dtype_is_written(e->dtype));
    if (!gguf_family(e->source->config, &as, err)) return false;
    struct tensor_names names = tensor_names_gguf(as.arch, strcmp(as.arch, "gpt2") == 0);
    gguf_meta_init(&meta);
    put_config(&meta, e, &as);
    bool ok = put_tokenizer(&meta, e, &as, err) &&
              export_list(e->source, &names, &as, e->dtype, &tensors, &n, err) &&
              write_file(path, &meta, &as, e->source, tensors, n, err);
    gguf_meta_free(&meta);
    free(tensors);
    return ok;
}
