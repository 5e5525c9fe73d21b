/* `gptd eval`: the loss and the perplexity of any model on any text. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/json_out.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/log.h"
#include "model/evaluate.h"
#include "model/tokenizer.h"
#include "server/chat_data.h"
#include "server/command.h"
#include "server/model.h"

enum { N_EVAL_OPTIONS = 9 + N_DEVICE_OPTIONS, JSON_BYTES = 1 << 16 };

struct eval_options {
    struct device_options device;
    const char *model, *tokenizer, *dtype, *kv_dtype;
    struct option_list input;
    const char *inputs[COMMAND_MAX_INPUTS + OPTION_LIST_MAX];
    int32_t n_inputs;
    int64_t max_context, memory_budget;
    bool json, verbose;
};

static void fill_table(struct eval_options *o, struct option table[N_EVAL_OPTIONS])
{
    const struct option entries[N_EVAL_OPTIONS - N_DEVICE_OPTIONS] = {
        {"model", OPTION_STRING, &o->model, 0, 0, "PATH",
         "A Hugging Face directory or a .gguf file."},
        {"input", OPTION_LIST, &o->input, 0, 0, "FILE",
         "Text or JSON lines: a file, a glob, or a directory of token shards; more may follow."},
        {"tokenizer", OPTION_STRING, &o->tokenizer, 0, 0, "PATH",
         "A directory with tokenizer.json, or a .gguf file, instead of the model's own."},
        {"max-context", OPTION_INT, &o->max_context, 0, CONFIG_MAX_CONTEXT, "N",
         "Tokens of a sequence; 0: as many as the model was trained for."},
        {"dtype", OPTION_STRING, &o->dtype, 0, 0, "auto|f32|bf16|f16|q8_0|q4_0",
         "Element type of weights and matrix products; auto: as serve's."},
        {"kv-dtype", OPTION_STRING, &o->kv_dtype, 0, 0, "auto|f32|bf16|q8_0",
         "Element type of keys and values; auto: as products compute."},
        {"memory-budget", OPTION_BYTES, &o->memory_budget, 0, 0, "SIZE",
         "The most memory to take; 0: 80 % of what the GPU, or the machine and the cgroup, leave."},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "Print one JSON object."},
        {"verbose", OPTION_FLAG, &o->verbose, 0, 0, NULL, "What serve logs, on stderr."},
    };
    memcpy(table, entries, sizeof entries);
    device_options_table(&o->device, DEVICE_HELP_RUN, table + N_EVAL_OPTIONS - N_DEVICE_OPTIONS);
}

static bool check_options(const struct eval_options *o, enum dtype *dtype, enum dtype *kv_dtype,
                          struct error *err)
{
    if (!o->model)
        return error_set(err, ERR_INVALID, "model", "say which model: --model PATH");
    if (o->n_inputs == 0)
        return error_set(err, ERR_INVALID, "input", "say on which text: --input FILE");
    if (!model_types_parse(o->dtype, o->kv_dtype, dtype, kv_dtype, err)) return false;
    return device_options_check(&o->device, err);
}

struct evaluating {
    const struct eval_options *options;
    enum dtype dtype, kv_dtype;
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer;
    struct chat_data chat_data;
    struct dataset_chat chat;
    struct dataset *data;
    struct device *device;
    struct evaluator *evaluator;
    int64_t context;
};

/* The model's own, or --tokenizer; none will do for token shards alone. */
static bool open_tokenizer(struct evaluating *e, struct error *err)
{
    char path[TOKENIZER_PATH_BYTES];
    const char *given = e->options->tokenizer;
    if (!given) return checkpoint_open_tokenizer(e->checkpoint, &e->tokenizer, err);
    if (!command_tokenizer_path(given, path, err) || !tokenizer_open_path(path, &e->tokenizer, err))
        return false;
    return e->tokenizer || error_set(err, ERR_NOT_FOUND, "tokenizer",
                                     "--tokenizer %s: has no tokenizer.json", given);
}

static bool open_all(struct evaluating *e, struct error *err)
{
    const struct eval_options *o = e->options;
    if (!checkpoint_open(o->model, &e->checkpoint, err) || !open_tokenizer(e, err)) return false;
    const struct gpt_config *c = checkpoint_config(e->checkpoint);
    if (o->max_context > c->block_size)
        return error_set(err, ERR_INVALID, "max-context", "--max-context is %lld; the model has "
                         "%lld positions", (long long)o->max_context, (long long)c->block_size);
    e->context = o->max_context > 0 ? o->max_context : c->block_size;
    if (e->tokenizer) chat_data_init(&e->chat_data, e->tokenizer, &e->chat);
    struct dataset_options data = {
        .inputs = o->inputs, .n_inputs = o->n_inputs, .tokenizer = e->tokenizer,
        .chat = e->tokenizer ? &e->chat : NULL,
        .val_fraction = 1, .block_size = e->context, .vocab_size = c->vocab_size,
    };
    if (!dataset_open(&data, &e->data, err) || !device_open(&o->device, &e->device, err))
        return false;
    struct evaluator_options evaluator = {
        .checkpoint = e->checkpoint,
        .dtype = e->dtype,
        .keep_formats = strcmp(o->dtype, "auto") == 0,
        .kv_dtype = e->kv_dtype,
        /* A short text needs no more than its length. */
        .max_sequence = min_i64(e->context, dataset_tokens(e->data, SPLIT_VALIDATION)),
        .memory_budget = o->memory_budget > 0 ? o->memory_budget
                             : device_budget_default(&o->device),
    };
    return evaluator_open(e->device, &evaluator, &e->evaluator, err);
}

static void close_all(struct evaluating *e)
{
    evaluator_close(e->evaluator);
    device_close(e->device);
    dataset_close(e->data);
    tokenizer_free(e->tokenizer);
    checkpoint_close(e->checkpoint);
}

static bool print_json(const struct evaluating *e, const struct evaluation *sum, double seconds,
                       struct error *err)
{
    double loss = sum->nll / (double)sum->tokens;
    struct buf out;
    buf_init(&out, JSON_BYTES);
    buf_puts(&out, "{\"model\":");
    json_out_text(&out, e->options->model);
    buf_puts(&out, ",\"loss\":");
    json_out_double(&out, loss);
    buf_puts(&out, ",\"perplexity\":");
    json_out_double(&out, exp(loss));
    buf_printf(&out, ",\"tokens\":%lld,\"context\":%lld,\"tokens_per_s\":%.1f,"
               "\"memory_bytes\":%lld}\n", (long long)sum->tokens, (long long)e->context,
               (double)sum->tokens / seconds, (long long)evaluator_memory(e->evaluator));
    bool ok = buf_check(&out, "the result", err);
    if (ok) fputs(out.data, stdout);
    buf_free(&out);
    return ok;
}

static bool evaluate(struct evaluating *e, struct error *err)
{
    struct evaluation sum = {0};
    if (!open_all(e, err)) return false;
    int64_t n = dataset_sequences(e->data, SPLIT_VALIDATION), begin = clock_ns();
    for (int64_t i = 0; i < n; i++)
        if (!evaluator_add(e->evaluator, e->data, SPLIT_VALIDATION, i, &sum, err)) return false;
    if (sum.tokens == 0)
        return error_set(err, ERR_INVALID, NULL, "the input has no token to predict");
    double seconds = (double)(clock_ns() - begin) / 1e9, loss = sum.nll / (double)sum.tokens;
    if (e->options->json && !print_json(e, &sum, seconds, err)) return false;
    if (!e->options->json)
        printf("loss %.6f  perplexity %.4f  %lld tokens in sequences of %lld  %.0f tokens/s\n",
               loss, exp(loss), (long long)sum.tokens, (long long)e->context,
               (double)sum.tokens / seconds);
    return fflush(stdout) == 0 || error_errno(err, "cannot write the report");
}

int cmd_eval(int argc, char **argv)
{
    struct eval_options o = {.device = {.name = "auto", .cpu_isa = "best"}, .dtype = "f32",
                             .kv_dtype = "auto"};
    struct option table[N_EVAL_OPTIONS];
    struct error err;
    bool help;
    int n_positional;
    fill_table(&o, table);
    if (!options_parse(table, N_EVAL_OPTIONS, argc, argv, 2, o.inputs, COMMAND_MAX_INPUTS,
                       &n_positional, &help, &err))
        return command_usage("eval", &err);
    if (help) {
        options_print_help(stdout, "gptd eval --model PATH --input FILE [OPTIONS]",
                           "Loss and perplexity of a model on text.", table, N_EVAL_OPTIONS);
        return EXIT_DONE;
    }
    o.n_inputs = command_inputs(&o.input, o.inputs, n_positional);
    struct evaluating e = {.options = &o};
    if (!check_options(&o, &e.dtype, &e.kv_dtype, &err)) return command_usage("eval", &err);
    log_set_level(o.verbose ? LOG_INFO : LOG_WARN);
    bool ok = evaluate(&e, &err);
    close_all(&e);
    return ok ? EXIT_DONE : command_fail("eval", &err);
}
