/* `gptd inspect`: what a checkpoint holds and what it will take, from its header alone. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/buf.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "server/command.h"
#include "server/format.h"

enum { REPORT_LIMIT = 64 << 20, TEXT_BYTES = 64 };

enum kind { KIND_EMBEDDING, KIND_ATTENTION, KIND_MLP, KIND_NORM, KIND_LM_HEAD, N_KINDS };
static const char *const kind_names[N_KINDS] = {"embedding", "attention", "mlp", "norm", "lm_head"};

/* How a model may be loaded: as f32, as bf16, and as bf16 but for what the file has quantized
 * (--dtype auto). */
enum { N_LOADS = 3, LOAD_AUTO = 2 };

/* Everything that is printed, whichever way. */
struct report {
    const struct checkpoint *ck;
    const struct gpt_config *config;
    const char *tokenizer;         /* NULL: the model has none */
    int64_t parameters[N_KINDS], total;
    int64_t weight_bytes[N_LOADS];
    int64_t kv_bytes_per_token[N_LOADS];
    int n_loads; /* the last only where a matrix is quantized */
    char fingerprint[17];
};

static const enum dtype load_dtypes[N_LOADS] = {DTYPE_F32, DTYPE_BF16, DTYPE_BF16};
static const char *const load_names[N_LOADS] = {"f32", "bf16", "auto"};

/* ---- Counting ---- */

static enum kind kind_of(enum weight_role role)
{
    switch (role) {
    case WEIGHT_TOKEN_EMBEDDING:
    case WEIGHT_POSITION_EMBEDDING: return KIND_EMBEDDING;
    case WEIGHT_LM_HEAD:
    case WEIGHT_LM_HEAD_BIAS: return KIND_LM_HEAD;
    case WEIGHT_QKV:
    case WEIGHT_QKV_BIAS:
    case WEIGHT_ATTN_OUT:
    case WEIGHT_ATTN_OUT_BIAS: return KIND_ATTENTION;
    case WEIGHT_MLP_UP:
    case WEIGHT_MLP_UP_BIAS:
    case WEIGHT_MLP_DOWN:
    case WEIGHT_MLP_DOWN_BIAS: return KIND_MLP;
    default: return KIND_NORM;
    }
}

/* Bytes that a matrix has in the file more (or less) than as bf16, where it is quantized. */
static int64_t kept_bytes(const struct report *r, enum weight_role role, int64_t n_in)
{
    struct weight_rows rows[CHECKPOINT_MAX_PARTS];
    const struct weight_formats *f = checkpoint_formats(r->ck);
    int64_t bytes = 0, n_layer = weight_role_is_layer(role) ? r->config->n_layer : 1;
    for (int64_t layer = 0; f && layer < n_layer; layer++) {
        int32_t n = weight_formats_rows(f, r->config, role, layer, rows);
        for (int32_t i = 0; i < n; i++)
            bytes += dtype_bytes(rows[i].dtype, rows[i].n_rows * n_in) -
                     dtype_bytes(DTYPE_BF16, rows[i].n_rows * n_in);
    }
    return bytes;
}

/* Matrices take the type that the model is loaded as; positions, norms and biases stay f32. */
static void count(struct report *r)
{
    const struct gpt_config *c = r->config;
    for (int role = 0; role < N_WEIGHT_ROLES; role++) {
        int64_t n_out, n_in;
        if (!weight_role_shape(c, role, &n_out, &n_in)) continue;
        int64_t n = n_out * n_in * (weight_role_is_layer(role) ? c->n_layer : 1);
        bool matrix = n_out > 1 && role != WEIGHT_POSITION_EMBEDDING;
        r->parameters[kind_of(role)] += n;
        r->total += n;
        for (int i = 0; i < N_LOADS; i++)
            r->weight_bytes[i] += dtype_bytes(matrix ? load_dtypes[i] : DTYPE_F32, n);
        r->weight_bytes[LOAD_AUTO] += kept_bytes(r, (enum weight_role)role, n_in);
    }
    r->n_loads = checkpoint_formats(r->ck) ? N_LOADS : LOAD_AUTO;
    for (int i = 0; i < N_LOADS; i++)
        r->kv_bytes_per_token[i] =
            dtype_bytes(load_dtypes[i], 2 * c->n_layer * c->n_kv_head * c->head_dim);
}

/* ---- The config, as pairs of a key and a JSON value ---- */

struct pair { const char *key; char value[TEXT_BYTES]; };
enum { MAX_PAIRS = 32 };
struct pairs { int n; struct pair at[MAX_PAIRS]; };

static struct pair *add(struct pairs *p, const char *key)
{
    ASSERT(p->n < MAX_PAIRS);
    p->at[p->n].key = key;
    return &p->at[p->n++];
}

static void add_int(struct pairs *p, const char *key, int64_t value)
{
    snprintf(add(p, key)->value, TEXT_BYTES, "%" PRId64, value);
}

static void add_float(struct pairs *p, const char *key, float value)
{
    snprintf(add(p, key)->value, TEXT_BYTES, "%.7g", (double)value);
}

static void add_bool(struct pairs *p, const char *key, bool value)
{
    snprintf(add(p, key)->value, TEXT_BYTES, value ? "true" : "false");
}

static void add_word(struct pairs *p, const char *key, const char *value)
{
    snprintf(add(p, key)->value, TEXT_BYTES, "\"%s\"", value);
}

static void add_positions(struct pairs *p, const struct gpt_config *c)
{
    static const char *const scalings[] = {"none", "linear", "llama3"};
    add_word(p, "pos_encoding", c->pos_encoding == POS_ROPE ? "rope" : "learned");
    if (c->pos_encoding != POS_ROPE) return;
    add_float(p, "rope_theta", c->rope_theta);
    add_word(p, "rope_scaling", scalings[c->rope_scaling]);
    if (c->rope_scaling == ROPE_SCALING_NONE) return;
    add_float(p, "rope_factor", c->rope_factor);
    if (c->rope_scaling != ROPE_SCALING_LLAMA3) return;
    add_float(p, "rope_low_freq", c->rope_low_freq);
    add_float(p, "rope_high_freq", c->rope_high_freq);
    add_int(p, "rope_original_context", c->rope_original_context);
}

static void config_pairs(const struct gpt_config *c, struct pairs *p)
{
    static const char *const mlps[] = {"gelu", "gelu_exact", "swiglu"};
    add_int(p, "n_layer", c->n_layer);
    add_int(p, "n_head", c->n_head);
    add_int(p, "n_kv_head", c->n_kv_head);
    add_int(p, "head_dim", c->head_dim);
    add_int(p, "n_embd", c->n_embd);
    add_int(p, "n_ff", c->n_ff);
    add_int(p, "vocab_size", c->vocab_size);
    add_int(p, "block_size", c->block_size);
    add_positions(p, c);
    add_word(p, "norm_type", c->norm_type == NORM_RMSNORM ? "rmsnorm" : "layernorm");
    add_float(p, "norm_eps", c->norm_eps);
    add_word(p, "mlp_type", mlps[c->mlp_type]);
    add_bool(p, "bias_qkv", c->bias_qkv);
    add_bool(p, "bias_attn_out", c->bias_attn_out);
    add_bool(p, "bias_mlp", c->bias_mlp);
    add_bool(p, "bias_norm", c->bias_norm);
    add_bool(p, "bias_lm_head", c->bias_lm_head);
    add_bool(p, "qk_norm", c->qk_norm);
    add_bool(p, "tie_weights", c->tie_weights);
}

/* ---- For people ---- */

static void print_shape(struct buf *out, const struct checkpoint_tensor *t)
{
    buf_putc(out, '[');
    for (int32_t i = 0; i < t->n_dims && i < 4; i++)
        buf_printf(out, "%s%" PRId64, i ? ", " : "", t->dims[i]);
    buf_putc(out, ']');
}

static void print_tensors(struct buf *out, const struct checkpoint *ck)
{
    int64_t n = checkpoint_n_tensors(ck);
    int width = 0;
    struct checkpoint_tensor t;
    for (int64_t i = 0; i < n; i++) {
        checkpoint_tensor(ck, i, &t);
        if ((int)strlen(t.name) > width) width = (int)strlen(t.name);
    }
    buf_printf(out, "\ntensors (%" PRId64 ")\n", n);
    for (int64_t i = 0; i < n; i++) {
        checkpoint_tensor(ck, i, &t);
        buf_printf(out, "  %-*s  %-5s ", width, t.name, t.type);
        print_shape(out, &t);
        buf_puts(out, "  ");
        format_grouped(out, t.bytes);
        buf_putc(out, '\n');
    }
}

static const char *format_name(const struct checkpoint *ck)
{
    return checkpoint_format(ck) == CHECKPOINT_GGUF ? "gguf" : "huggingface";
}

static void print_text(struct buf *out, const struct report *r)
{
    struct pairs config = {0};
    config_pairs(r->config, &config);
    buf_printf(out, "path          %s\nformat        %s\narchitecture  %s\n",
               checkpoint_path(r->ck), format_name(r->ck), r->config->arch);
    buf_printf(out, "dtype         %s\nfingerprint   %s\n",
               dtype_info(checkpoint_dtype(r->ck))->name, r->fingerprint);
    buf_printf(out, "tokenizer     %s\nweight files  ",
               r->tokenizer ? r->tokenizer : "none: serves token ids only");
    format_bytes(out, checkpoint_file_bytes(r->ck));
    buf_puts(out, "\n\nconfig\n");
    for (int i = 0; i < config.n; i++)
        buf_printf(out, "  %-22s %s\n", config.at[i].key, config.at[i].value);
    buf_puts(out, "\nparameters    ");
    format_grouped(out, r->total);
    buf_putc(out, '\n');
    for (int k = 0; k < N_KINDS; k++) {
        buf_printf(out, "  %-22s ", kind_names[k]);
        format_grouped(out, r->parameters[k]);
        buf_putc(out, '\n');
    }
    buf_puts(out, "\nmemory, without what a device adds\n");
    for (int i = 0; i < r->n_loads; i++) {
        const char *name = load_names[i];
        buf_printf(out, "  weights as %-11s ", name);
        format_bytes(out, r->weight_bytes[i]);
        buf_printf(out, "\n  KV a token as %-8s ", name);
        format_bytes(out, r->kv_bytes_per_token[i]);
        buf_putc(out, '\n');
    }
    print_tensors(out, r->ck);
}

/* ---- For programs ---- */

static void print_json_tensors(struct buf *out, const struct checkpoint *ck)
{
    for (int64_t i = 0; i < checkpoint_n_tensors(ck); i++) {
        struct checkpoint_tensor t;
        checkpoint_tensor(ck, i, &t);
        buf_puts(out, i ? ",{\"name\":" : "{\"name\":");
        json_out_string(out, t.name, strlen(t.name));
        buf_printf(out, ",\"dtype\":\"%s\",\"shape\":", t.type);
        print_shape(out, &t);
        buf_printf(out, ",\"bytes\":%" PRId64 "}", t.bytes);
    }
}

static void print_json(struct buf *out, const struct report *r)
{
    struct pairs config = {0};
    config_pairs(r->config, &config);
    buf_puts(out, "{\"path\":");
    json_out_text(out, checkpoint_path(r->ck));
    buf_printf(out, ",\"format\":\"%s\",\"architecture\":\"%s\",\"dtype\":\"%s\","
               "\"fingerprint\":\"%s\",\"tokenizer\":", format_name(r->ck), r->config->arch,
               dtype_info(checkpoint_dtype(r->ck))->name, r->fingerprint);
    json_out_text(out, r->tokenizer);
    buf_printf(out, ",\"file_bytes\":%" PRId64 ",\"config\":{", checkpoint_file_bytes(r->ck));
    for (int i = 0; i < config.n; i++)
        buf_printf(out, "%s\"%s\":%s", i ? "," : "", config.at[i].key, config.at[i].value);
    buf_printf(out, "},\"parameters\":{\"total\":%" PRId64, r->total);
    for (int k = 0; k < N_KINDS; k++)
        buf_printf(out, ",\"%s\":%" PRId64, kind_names[k], r->parameters[k]);
    buf_puts(out, "},\"memory\":{");
    for (int i = 0; i < r->n_loads; i++)
        buf_printf(out, "%s\"%s\":{\"weight_bytes\":%" PRId64 ",\"kv_bytes_per_token\":%" PRId64
                   "}", i ? "," : "", load_names[i], r->weight_bytes[i],
                   r->kv_bytes_per_token[i]);
    buf_puts(out, "},\"tensors\":[");
    print_json_tensors(out, r->ck);
    buf_puts(out, "]}\n");
}

/* ---- The command ---- */

static bool print_report(const struct checkpoint *ck, const struct tokenizer *tokenizer, bool json,
                         struct error *err)
{
    struct report r = {.ck = ck, .config = checkpoint_config(ck)};
    struct buf out;
    if (tokenizer) r.tokenizer = tokenizer_description(tokenizer);
    if (!checkpoint_fingerprint(ck, r.fingerprint, err)) return false;
    count(&r);
    buf_init(&out, REPORT_LIMIT);
    if (json)
        print_json(&out, &r);
    else
        print_text(&out, &r);
    bool ok = buf_check(&out, "the report", err);
    if (ok && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0))
        ok = error_errno(err, "cannot write the report");
    buf_free(&out);
    return ok;
}

static bool inspect(const char *path, bool json, struct error *err)
{
    struct checkpoint *ck = NULL;
    struct tokenizer *tokenizer = NULL;
    bool ok = checkpoint_open(path, &ck, err) && checkpoint_open_tokenizer(ck, &tokenizer, err) &&
              print_report(ck, tokenizer, json, err);
    tokenizer_free(tokenizer);
    checkpoint_close(ck);
    return ok;
}

int cmd_inspect(int argc, char **argv)
{
    bool json = false, help;
    const struct option table[] = {
        {"json", OPTION_FLAG, &json, 0, 0, NULL, "Print one JSON object."},
    };
    const char *path = NULL;
    int n_paths = 0;
    struct error err;
    if (!options_parse(table, 1, argc, argv, 2, &path, 1, &n_paths, &help, &err))
        return command_usage("inspect", &err);
    if (help) {
        options_print_help(stdout, "gptd inspect PATH [OPTIONS]",
                           "Prints what a model (a Hugging Face directory or a .gguf file) holds "
                           "and how much memory it takes.", table, 1);
        return EXIT_DONE;
    }
    if (n_paths != 1) {
        error_set(&err, ERR_INVALID, "PATH", "say which model: gptd inspect PATH");
        return command_usage("inspect", &err);
    }
    return inspect(path, json, &err) ? EXIT_DONE : command_fail("inspect", &err);
}
